//! Watch streams: frames out of chunks, events out of frames, and frames for local watchers.
//!
//! Protobuf: a four byte big-endian length, then `WatchEvent{type 1, object 2: RawExtension{raw 1}}`, bare, whose
//! `raw` has the envelope. JSON: one object a line.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::proto::{self, Value, Writer};
use super::{Encoding, Item, MAX_FRAME, Status, TypeMeta, WireError, json};

const WHAT: &str = "watch event";

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventType {
    /// It is new, or newly selected.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or no longer selected.
    Deleted,
}

impl EventType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One watch event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something happened to an object.
    Object {
        /// What.
        event_type: EventType,
        /// Its kind.
        kind: TypeMeta,
        /// The object.
        item: Item,
    },
    /// Nothing happened up to this resourceVersion.
    Bookmark {
        /// Of the collection.
        resource_version: u64,
    },
    /// The watch is over.
    Error(Status),
}

/// Cuts a watch stream into frames.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    encoding: Encoding,
    buffer: BytesMut,
    /// Bytes of the buffer known to hold no line end.
    searched: usize,
}

impl FrameDecoder {
    /// For one stream.
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self { encoding, buffer: BytesMut::new(), searched: 0 }
    }

    /// Takes the next chunk of the body.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes that are waiting.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame, without length or line end.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLarge`] before more than the bound is kept.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        if self.encoding.is_protobuf() {
            let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
            let size = u32::from_be_bytes(*length) as usize;
            check(size)?;
            if self.buffer.len() < 4 + size {
                return Ok(None);
            }
            self.buffer.advance(4);
            return Ok(Some(self.buffer.split_to(size).freeze()));
        }
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                check(self.searched)?;
                return Ok(None);
            };
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            check(line.len())?;
            let line = line.slice(..line.len() - 1);
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// Whether the stream ended between two frames.
    pub(crate) fn is_clean(&self) -> bool {
        self.buffer.trim_ascii().is_empty()
    }
}

fn check(size: usize) -> Result<(), WireError> {
    if size > MAX_FRAME { Err(WireError::TooLarge { what: WHAT, size, limit: MAX_FRAME }) } else { Ok(()) }
}

/// Reads a frame.
///
/// # Errors
///
/// [`WireError`].
pub(crate) fn decode_event(encoding: Encoding, frame: &Bytes) -> Result<Event, WireError> {
    if encoding.is_protobuf() { decode_protobuf(frame) } else { decode_json(encoding, frame) }
}

fn event_type(text: &str) -> Result<EventType, WireError> {
    match text {
        "ADDED" => Ok(EventType::Added),
        "MODIFIED" => Ok(EventType::Modified),
        "DELETED" => Ok(EventType::Deleted),
        other => Err(WireError::malformed(WHAT, format!("its type is {other:?}"))),
    }
}

fn decode_protobuf(frame: &Bytes) -> Result<Event, WireError> {
    let (mut type_text, mut object) = ("", Bytes::new());
    for field in proto::fields(WHAT, frame) {
        match field? {
            (1, Value::Bytes(value)) => type_text = proto::text(WHAT, value)?,
            (2, Value::Bytes(extension)) => {
                for field in proto::fields(WHAT, extension) {
                    if let (1, Value::Bytes(value)) = field? {
                        object = frame.slice_ref(value);
                    }
                }
            }
            _ => {}
        }
    }
    match type_text {
        "BOOKMARK" => {
            let (_, raw) = proto::open_envelope(&object)?;
            Ok(Event::Bookmark { resource_version: proto::bookmark_version(&raw)? })
        }
        "ERROR" => Ok(Event::Error(Status::decode(Encoding::Protobuf, &object)?)),
        _ => {
            let event_type = event_type(type_text)?;
            let (kind, raw) = proto::open_envelope(&object)?;
            Ok(Event::Object { event_type, kind, item: Item { meta: proto::object_meta(&raw)?, body: raw } })
        }
    }
}

fn decode_json(encoding: Encoding, frame: &Bytes) -> Result<Event, WireError> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow, rename = "type")]
        event_type: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let event: Frame<'_> =
        serde_json::from_slice(frame).map_err(|error| WireError::malformed(WHAT, error))?;
    let object = event.object.get();
    match &*event.event_type {
        "BOOKMARK" => Ok(Event::Bookmark { resource_version: json::bookmark_version(object)? }),
        "ERROR" => Ok(Event::Error(Status::decode(Encoding::Json, &frame.slice_ref(object.as_bytes()))?)),
        other => {
            let event_type = event_type(other)?;
            let (kind, item) = json::decode_item(encoding, object)?;
            Ok(Event::Object { event_type, kind, item })
        }
    }
}

/// A frame about a stored object.
pub(crate) fn encode_event(
    encoding: Encoding,
    event_type: EventType,
    kind: &TypeMeta,
    stored: &[u8],
) -> Bytes {
    if encoding.is_protobuf() {
        protobuf_frame(event_type.as_str(), &proto::envelope(kind, stored))
    } else {
        let mut out =
            start_json(event_type.as_str(), stored.len() + kind.kind.len() + kind.api_version.len());
        json::write_typed(&mut out, kind, stored);
        finish_json(out)
    }
}

/// A bookmark: an object of the view's kind with the collection's resourceVersion and nothing else. The one that
/// ends the initial events of a WatchList carries the annotation that says so (KEP-3157).
pub(crate) fn encode_bookmark(
    encoding: Encoding,
    kind: &TypeMeta,
    version: u64,
    initial_events_end: bool,
) -> Bytes {
    const ANNOTATION: &str = "k8s.io/initial-events-end";
    let version = version.to_string();
    if encoding.is_protobuf() {
        let mut meta = Writer::default();
        meta.bytes(6, version.as_bytes());
        if initial_events_end {
            let mut entry = Writer::default();
            entry.bytes(1, ANNOTATION.as_bytes());
            entry.bytes(2, b"true");
            meta.bytes(12, &entry.finish());
        }
        let mut object = Writer::default();
        object.bytes(1, &meta.finish());
        protobuf_frame("BOOKMARK", &proto::envelope(kind, &object.finish()))
    } else {
        let mut out = start_json("BOOKMARK", 200);
        out.push(b'{');
        json::write_type_fields(&mut out, kind);
        out.extend_from_slice(b",\"metadata\":{\"resourceVersion\":");
        json::write_string(&mut out, &version);
        if initial_events_end {
            out.extend_from_slice(format!(",\"annotations\":{{\"{ANNOTATION}\":\"true\"}}").as_bytes());
        }
        out.extend_from_slice(b"}}");
        finish_json(out)
    }
}

/// The frame that ends a watch with an error.
pub(crate) fn encode_error(encoding: Encoding, status: &Status) -> Bytes {
    if encoding.is_protobuf() {
        protobuf_frame("ERROR", &status.encode(encoding))
    } else {
        let text = status.to_json();
        let mut out = start_json("ERROR", text.len());
        out.extend_from_slice(&text);
        finish_json(out)
    }
}

fn protobuf_frame(event_type: &str, object: &[u8]) -> Bytes {
    let extension = proto::field_size(object.len());
    let size = proto::field_size(event_type.len()) + proto::field_size(extension);
    let mut out = Writer::with_capacity(4 + size);
    out.raw(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    out.bytes(1, event_type.as_bytes());
    out.header(2, extension);
    out.bytes(1, object);
    out.finish().into()
}

fn start_json(event_type: &str, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length + 80);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(event_type.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out
}

fn finish_json(mut out: Vec<u8>) -> Bytes {
    out.extend_from_slice(b"}\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> TypeMeta {
        TypeMeta::new("v1", "Pod")
    }

    fn stored(encoding: Encoding) -> Bytes {
        if encoding.is_protobuf() {
            let mut meta = Writer::default();
            meta.bytes(1, b"a");
            meta.bytes(6, b"3");
            let mut item = Writer::default();
            item.bytes(1, &meta.finish());
            item.finish().into()
        } else {
            Bytes::from_static(br#"{"metadata":{"name":"a","resourceVersion":"3"},"spec":{}}"#)
        }
    }

    fn stream(encoding: Encoding) -> Vec<u8> {
        let mut all = Vec::new();
        for event in [EventType::Added, EventType::Modified, EventType::Deleted] {
            all.extend(encode_event(encoding, event, &kind(), &stored(encoding)));
        }
        all.extend(encode_bookmark(encoding, &kind(), 77, true));
        all.extend(encode_error(encoding, &Status::expired()));
        all
    }

    fn decode_all(encoding: Encoding, bytes: &[u8], chunk: usize) -> Vec<Event> {
        let mut decoder = FrameDecoder::new(encoding);
        let mut events = Vec::new();
        for chunk in bytes.chunks(chunk) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().unwrap() {
                events.push(decode_event(encoding, &frame).unwrap());
            }
        }
        assert!(decoder.is_clean());
        events
    }

    #[test]
    fn events_survive_any_cut_into_chunks() {
        for encoding in [Encoding::Protobuf, Encoding::Json, Encoding::PartialProtobuf, Encoding::PartialJson]
        {
            let bytes = stream(encoding);
            let whole = decode_all(encoding, &bytes, bytes.len());
            assert_eq!(whole.len(), 5);
            assert!(matches!(&whole[0], Event::Object { event_type: EventType::Added, kind: found, item }
                if *found == kind() && item.meta.resource_version == 3));
            assert_eq!(whole[3], Event::Bookmark { resource_version: 77 });
            assert_eq!(whole[4], Event::Error(Status::expired()));
            for chunk in 1..50 {
                assert_eq!(decode_all(encoding, &bytes, chunk), whole);
            }
        }
    }

    #[test]
    fn the_body_of_an_event_is_the_stored_form() {
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let bytes = encode_event(encoding, EventType::Added, &kind(), &stored(encoding));
            let events = decode_all(encoding, &bytes, 7);
            assert!(matches!(&events[0], Event::Object { item, .. } if item.body == stored(encoding)));
        }
    }

    #[test]
    fn the_last_initial_event_says_so() {
        assert_eq!(
            encode_bookmark(Encoding::Json, &kind(), 5, true),
            "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\
             \"5\",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n"
        );
        assert!(
            !encode_bookmark(Encoding::Json, &kind(), 5, false).as_ref().windows(7).any(|w| w == b"initial")
        );
    }

    #[test]
    fn a_frame_beyond_the_bound_is_refused_before_it_is_read() {
        let mut decoder = FrameDecoder::new(Encoding::Protobuf);
        decoder.push(&(MAX_FRAME as u32 + 1).to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(WireError::TooLarge { .. })));
        let mut decoder = FrameDecoder::new(Encoding::Json);
        decoder.push(&vec![b' '; MAX_FRAME + 1]);
        assert!(matches!(decoder.next_frame(), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_not_clean() {
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let bytes = encode_bookmark(encoding, &kind(), 5, false);
            let mut decoder = FrameDecoder::new(encoding);
            decoder.push(&bytes[..bytes.len() - 1]);
            assert_eq!(decoder.next_frame(), Ok(None));
            assert!(!decoder.is_clean());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            for encoding in [Encoding::Protobuf, Encoding::Json] {
                let mut decoder = FrameDecoder::new(encoding);
                decoder.push(&raw);
                while let Ok(Some(frame)) = decoder.next_frame() {
                    let _ = decode_event(encoding, &frame);
                }
            }
        }
    }
}
