//! Sending a request again that the server has certainly not looked at (RFC 9113 §8.7). That includes writes, so it has
//! to be certain; and what has been read of the request's body must be there for another reading.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

use super::RequestBody;

/// Bytes of a body that are kept until there is an answer, and pieces they come in. Beyond, a request is sent once.
const KEPT: usize = 32 << 10;
const PIECES: usize = 64;

type BoxError = Box<dyn Error + Send + Sync>;

/// How the server said that it has not looked at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unprocessed {
    /// GOAWAY, and the stream comes behind the last one that the server takes.
    GoingAway,
    /// `REFUSED_STREAM`.
    Refused,
}

/// Whether an error says so for certain.
pub(super) fn unprocessed(error: &hyper::Error, method: &Method, was_read: bool) -> Option<Unprocessed> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    if !error.is_remote() {
        return None;
    }
    if error.is_reset() {
        return (error.reason() == Some(h2::Reason::REFUSED_STREAM)).then_some(Unprocessed::Refused);
    }
    // hyper says the same of a stream that it has just opened when the GOAWAY arrives, whose place is not known. It has
    // not begun with its body, then.
    (error.is_go_away() && (was_read || method.is_safe())).then_some(Unprocessed::GoingAway)
}

struct Shared {
    /// What is still to be read.
    rest: RequestBody,
    /// What has been read, all of it, or nothing any more.
    kept: Option<Vec<Bytes>>,
    was_read: bool,
    /// Counts readings; the last one counts.
    reading: u32,
}

/// A body that can be read again.
pub(super) struct Again(Arc<Mutex<Shared>>);

impl Again {
    pub(super) fn new(body: RequestBody) -> Self {
        let shared = Shared { rest: body, kept: Some(Vec::new()), was_read: false, reading: 0 };
        Self(Arc::new(Mutex::new(shared)))
    }

    /// From the beginning; nothing if that is not there any more. A reading from before ends with an error.
    pub(super) fn read(&self) -> Option<RequestBody> {
        let mut shared = lock(&self.0);
        shared.kept.as_ref()?;
        shared.reading += 1;
        let reading = Reading { shared: Arc::clone(&self.0), number: shared.reading, next: 0 };
        Some(reading.boxed_unsync())
    }

    /// Whether anybody has begun to read.
    pub(super) fn was_read(&self) -> bool {
        lock(&self.0).was_read
    }

    /// It will not be read again.
    pub(super) fn forget(&self) {
        lock(&self.0).kept = None;
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Reading {
    shared: Arc<Mutex<Shared>>,
    number: u32,
    /// Of what is kept.
    next: usize,
}

impl Body for Reading {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        if shared.reading != this.number {
            return Poll::Ready(Some(Err("the request is sent again".into())));
        }
        shared.was_read = true;
        if let Some(data) = shared.kept.as_ref().and_then(|kept| kept.get(this.next)) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = std::task::ready!(Pin::new(&mut shared.rest).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let kept = shared.kept.take();
                shared.kept = kept.zip(frame.data_ref()).and_then(|(mut kept, data)| {
                    kept.push(data.clone());
                    let is_short = kept.iter().map(Bytes::len).sum::<usize>() <= KEPT;
                    (kept.len() <= PIECES && is_short).then_some(kept)
                });
                this.next += 1;
            }
            Some(Err(_)) => shared.kept = None,
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        let behind = shared.kept.as_ref().is_none_or(|kept| self.next >= kept.len());
        behind && shared.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let kept = shared.kept.iter().flatten().skip(self.next);
        let ahead: u64 = kept.map(|data| data.len() as u64).sum();
        let rest = shared.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;

    use super::*;

    fn body(chunks: &[usize]) -> RequestBody {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> =
            chunks.iter().map(|size| Ok(Frame::data(vec![b'x'; *size].into()))).collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn what_was_read_of_a_short_body_is_read_again() {
        let again = Again::new(body(&[3, 4, 5]));
        let mut first = again.read().unwrap();
        assert!(!again.was_read());
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap().len(), 3);
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap().len(), 4);
        assert!(again.was_read());
        let second = again.read().unwrap();
        assert!(first.frame().await.unwrap().is_err(), "the first has lost its turn");
        assert_eq!(second.collect().await.unwrap().to_bytes().len(), 12);
    }

    #[tokio::test]
    async fn a_long_body_is_read_once_and_not_kept() {
        let again = Again::new(body(&[KEPT, 1, 10]));
        assert_eq!(again.read().unwrap().collect().await.unwrap().to_bytes().len(), KEPT + 11);
        assert!(again.read().is_none());
        let again = Again::new(body(&[1; PIECES + 1]));
        assert_eq!(again.read().unwrap().collect().await.unwrap().to_bytes().len(), PIECES + 1);
        assert!(again.read().is_none());
    }
}
