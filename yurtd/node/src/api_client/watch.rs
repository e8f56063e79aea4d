//! A watch: lines of JSON without end.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::connection::Connection;
use super::{ApiError, MAX_OBJECT, chain, unreadable};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// There is such an object now, or another version of it.
    Is(T),
    /// The last version of an object that is not there any more.
    Gone(T),
    /// Nothing until this moment (a bookmark).
    Bookmark,
}

/// A watch; dropping it closes its connection.
#[derive(Debug)]
pub struct Watch<T> {
    body: Incoming,
    _connection: Connection,
    lines: Lines,
    object: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Watch<T> {
    pub(super) fn new(body: Incoming, connection: Connection) -> Self {
        Self { body, _connection: connection, lines: Lines::default(), object: PhantomData }
    }

    /// The next event; `None` when the watch came to its end, or said nothing for `silence`: a link that was lost without
    /// a word ends a watch no other way.
    ///
    /// # Errors
    ///
    /// [`ApiError`]; the watch is of no use afterwards.
    pub async fn next(&mut self, silence: Duration) -> Result<Option<Event<T>>, ApiError> {
        loop {
            if let Some(line) = self.lines.next()? {
                return event(&line).map(Some);
            }
            let frame = match tokio::time::timeout(silence, self.body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|error| ApiError::Unreachable(chain(&error)))?,
                Ok(None) | Err(_) => return Ok(None),
            };
            if let Ok(data) = frame.into_data() {
                self.lines.arrived = data;
            }
        }
    }
}

/// Lines that are arriving.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// A line's beginning.
    begun: Vec<u8>,
    pub(super) arrived: Bytes,
}

impl Lines {
    /// The next line that is complete.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        let end = self.arrived.iter().position(|byte| *byte == b'\n');
        let part = &self.arrived[..end.unwrap_or(self.arrived.len())];
        if self.begun.len() + part.len() > MAX_OBJECT {
            return Err(ApiError::Unreadable(format!("an event is longer than {MAX_OBJECT} bytes")));
        }
        self.begun.extend_from_slice(part);
        match end {
            Some(end) => {
                self.arrived.advance(end + 1);
                Ok(Some(std::mem::take(&mut self.begun)))
            }
            None => {
                self.arrived = Bytes::new();
                Ok(None)
            }
        }
    }
}

pub(super) fn event<T: DeserializeOwned>(line: &[u8]) -> Result<Event<T>, ApiError> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let line: Line<'_> = serde_json::from_slice(line).map_err(unreadable)?;
    let object = || serde_json::from_str(line.object.get()).map_err(unreadable);
    match line.kind {
        "ADDED" | "MODIFIED" => object().map(Event::Is),
        "DELETED" => object().map(Event::Gone),
        "BOOKMARK" => Ok(Event::Bookmark),
        "ERROR" => Err(status(line.object.get())),
        other => Err(unreadable(format!("there is no event {other:?}"))),
    }
}

/// The error that a Status is.
fn status(text: &str) -> ApiError {
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        code: u16,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_str::<Status>(text) {
        Ok(Status { code, message }) => ApiError::Refused {
            code: StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message,
            retry_after: None,
        },
        Err(error) => unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_are_found_wherever_the_bytes_are_cut() {
        let text = "one\n\nthree is longer\nbegun";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                lines.arrived = Bytes::copy_from_slice(chunk);
                while let Some(line) = lines.next().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(found, ["one", "", "three is longer"], "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let mut lines = Lines::default();
        for _ in 0..4 {
            lines.arrived = Bytes::from(vec![b'x'; MAX_OBJECT / 4]);
            assert!(lines.next().unwrap().is_none());
        }
        lines.arrived = Bytes::from_static(b"x");
        assert!(matches!(lines.next(), Err(ApiError::Unreadable(_))));
    }

    #[test]
    fn an_event_is_an_object_or_an_error() {
        let read = |text: &str| event::<Value>(text.as_bytes());
        assert_eq!(read(r#"{"type":"ADDED","object":{"a":1}}"#), Ok(Event::Is(serde_json::json!({"a": 1}))));
        assert_eq!(read(r#"{"type":"BOOKMARK","object":{}}"#), Ok(Event::Bookmark));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
        assert!(
            matches!(read(gone), Err(ApiError::Refused { code: StatusCode::GONE, message, .. }) if message == "too old")
        );
        for text in ["", "{}", r#"{"type":"ADDED"}"#, r#"{"type":"OTHER","object":{}}"#] {
            assert!(matches!(read(text), Err(ApiError::Unreadable(_))), "{text}");
        }
    }
}
