//! A whole answer of the hub's own: what is remembered of upstream's answers and what is replayed of them.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock::today;
use crate::limits::UNPACKED;
use crate::view::overlay::Book;
use crate::wire::list::{ListSize, ListWriter};
use crate::wire::object::{decode_object, encode_object};
use crate::wire::{Encoding, split_list};

/// Status, a few headers, body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) code: StatusCode,
    /// `Content-Type`
    pub(crate) content_type: String,
    /// `Content-Encoding`, if the body is compressed.
    pub(crate) content_encoding: Option<String>,
    /// `ETag`, if upstream gave one.
    pub(crate) etag: Option<String>,
    /// The day, since 1970, on which the API server gave it. Once a day an answer that has not changed is written again.
    pub(crate) confirmed: Option<u64>,
    /// The body.
    pub(crate) body: Bytes,
}

/// Head of the stored form: a line of JSON, then the body as it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    content_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmed: Option<u64>,
}

impl Answer {
    /// An answer with a body in one encoding.
    pub(crate) fn new(code: StatusCode, content_type: &str, body: Bytes) -> Self {
        let content_type = content_type.to_owned();
        Self { code, content_type, content_encoding: None, etag: None, confirmed: None, body }
    }

    /// Upstream's answer, 200; `None` when it does not say what it is.
    pub(crate) fn of_upstream(headers: &HeaderMap, body: Bytes) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Some(Self {
            code: StatusCode::OK,
            content_type: text(CONTENT_TYPE)?,
            content_encoding: text(CONTENT_ENCODING).filter(|encoding| encoding != "identity"),
            etag: text(ETAG),
            confirmed: Some(today()),
            body,
        })
    }

    /// The stored form.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let head = Head {
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            etag: self.etag.clone(),
            confirmed: self.confirmed,
        };
        // Strings alone: this cannot fail, and an empty head is refused when it is read.
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Reads the stored form; `None` when it is none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
        Some(Self {
            code: StatusCode::OK,
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            etag: head.etag,
            confirmed: head.confirmed,
            body: Bytes::copy_from_slice(&bytes[end + 1..]),
        })
    }

    /// An EndpointSlice, or a list of them, with the node's own pods as they are here. What cannot be read, and what is
    /// one page of several, stays as it is.
    pub(crate) fn showing(self, book: &Book) -> Self {
        let edited = || shown(self.encoding()?, &self.plain()?, book);
        let edited = if book.is_empty() { None } else { edited() };
        match edited {
            Some(body) => Self { body, content_encoding: None, ..self },
            None => self,
        }
    }

    /// resourceVersion of the object that it is, if it is one.
    pub(crate) fn version(&self) -> Option<u64> {
        let body = self.plain()?;
        let (_, item) = decode_object(self.encoding()?, &body).ok()?;
        Some(item.meta.resource_version)
    }

    /// resourceVersion of the whole list that it is, if it is one. Whoever has a page
    /// alone knows less than who has all of an older list.
    pub(crate) fn list_version(&self) -> Option<u64> {
        self.collection().filter(|(_, whole)| *whole).map(|(version, _)| version)
    }

    /// resourceVersion of the list that it is, or is a page of.
    pub(crate) fn page_version(&self) -> Option<u64> {
        self.collection().map(|(version, _)| version)
    }

    /// Whether it is a page of a list that has more.
    pub(crate) fn is_page(&self) -> bool {
        self.collection().is_some_and(|(_, whole)| !whole)
    }

    /// Of a list: its resourceVersion, and whether that is all of it.
    fn collection(&self) -> Option<(u64, bool)> {
        let body = self.plain()?;
        let page = split_list(self.encoding()?, &body).ok()?;
        Some((page.resource_version, page.continue_token.is_none()))
    }

    fn encoding(&self) -> Option<Encoding> {
        let known = [Encoding::Json, Encoding::Protobuf];
        known.into_iter().find(|encoding| encoding.content_type() == self.content_type)
    }

    fn plain(&self) -> Option<Bytes> {
        self.clone().decompressed("", UNPACKED).map(|answer| answer.body)
    }

    /// The answer for a client that may not take compressed bodies; `None` when it cannot be decompressed.
    pub(crate) fn decompressed(self, accept_encoding: &str, limit: usize) -> Option<Self> {
        let Some(encoding) = &self.content_encoding else { return Some(self) };
        if accept_encoding
            .split(',')
            .any(|accepted| accepted.split(';').next().is_some_and(|name| name.trim() == encoding))
        {
            return Some(self);
        }
        if encoding != "gzip" {
            return None;
        }
        let mut body = Vec::new();
        let decoder = flate2::read::GzDecoder::new(&*self.body);
        std::io::Read::read_to_end(&mut std::io::Read::take(decoder, limit as u64 + 1), &mut body).ok()?;
        (body.len() <= limit).then(|| Self { content_encoding: None, body: body.into(), ..self })
    }
}

fn shown(encoding: Encoding, body: &Bytes, book: &Book) -> Option<Bytes> {
    if let Ok((kind, item)) = decode_object(encoding, body)
        && kind.kind == "EndpointSlice"
    {
        return book.edited(encoding, &item.body).map(|edited| encode_object(encoding, &kind, &edited));
    }
    let page = split_list(encoding, body).ok()?;
    if page.kind.kind != "EndpointSlice" || page.continue_token.is_some() {
        return None;
    }
    let items: Vec<Bytes> =
        page.items.into_iter().map(|item| book.edited(encoding, &item.body).unwrap_or(item.body)).collect();
    let mut size = ListSize::new(encoding);
    items.iter().for_each(|item| size.add(item.len()));
    let mut list = ListWriter::new(&page.kind, page.resource_version, &size);
    items.iter().for_each(|item| list.item(item));
    Some(list.finish())
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::io::Write;

    use super::*;

    fn answer() -> Answer {
        Answer {
            etag: Some("\"x\"".into()),
            confirmed: Some(20_000),
            ..Answer::new(StatusCode::OK, "application/json", Bytes::from_static(b"{}\n\n\0"))
        }
    }

    #[test]
    fn the_stored_form_keeps_everything() {
        assert_eq!(Answer::from_bytes(&answer().to_bytes()), Some(answer()));
        assert_eq!(Answer::from_bytes(b"no head"), None);
        assert_eq!(Answer::from_bytes(b"{}\nbody"), None);
    }

    #[test]
    fn an_answer_knows_how_new_it_is() {
        let json = |text: &'static str| {
            Answer::new(StatusCode::OK, "application/json", Bytes::from_static(text.as_bytes()))
        };
        let object =
            json(r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"7"}}"#);
        assert_eq!((object.version(), object.list_version()), (Some(7), None));
        let list =
            json(r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}"#);
        assert_eq!(list.list_version(), Some(9));
        for other in [json("{}"), Answer { content_type: "text/plain".into(), ..object.clone() }] {
            assert_eq!((other.version(), other.list_version()), (None, None), "{other:?}");
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&object.body).unwrap();
        let packed = Answer {
            content_encoding: Some("gzip".into()),
            body: Bytes::from(encoder.finish().unwrap()),
            ..object
        };
        assert_eq!(packed.version(), Some(7));
    }

    #[test]
    fn a_compressed_answer_is_unpacked_for_those_who_need_it() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"hello").unwrap();
        let body = Bytes::from(encoder.finish().unwrap());
        let packed = Answer { content_encoding: Some("gzip".into()), body: body.clone(), ..answer() };
        assert_eq!(packed.clone().decompressed("gzip, deflate", 100).unwrap().body, body);
        let unpacked = packed.clone().decompressed("", 100).unwrap();
        assert_eq!((&*unpacked.body, unpacked.content_encoding), (&b"hello"[..], None));
        assert_eq!(packed.clone().decompressed("", 4), None, "a bomb is not unpacked");
        let unknown = Answer { content_encoding: Some("zstd".into()), ..packed };
        assert_eq!(unknown.decompressed("gzip", 100), None);
    }

    #[test]
    fn a_page_is_no_list() {
        let list = |metadata: &str| {
            let body =
                format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{{metadata}}},"items":[]}}"#);
            Answer::new(StatusCode::OK, "application/json", body.into())
        };
        let whole = list(r#""resourceVersion":"7""#);
        assert_eq!((whole.list_version(), whole.page_version(), whole.is_page()), (Some(7), Some(7), false));
        let page = list(r#""resourceVersion":"7","continue":"t""#);
        assert_eq!((page.list_version(), page.page_version(), page.is_page()), (None, Some(7), true));
        let object = Answer::new(StatusCode::OK, "application/json", Bytes::from_static(b"{}"));
        assert!(!object.is_page());
    }

    #[test]
    fn remembered_slices_show_the_nodes_own_pods() {
        let pod = serde_json::json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": "u-1"}, "status":
            {"podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]}});
        let pods = HashMap::from([("u-1".to_owned(), crate::view::overlay::PodNow::of(&pod))]);
        let book = Book::new(pods, HashSet::new());
        let slice = r#""metadata":{"name":"web-x","namespace":"shop"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"targetRef":{"kind":"Pod","uid":"u-1"}}]}"#;
        let object = format!(r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1",{slice}"#);
        let list = |more: &str| {
            format!(
                r#"{{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{{"resourceVersion":"5"{more}}},"items":[{{{slice}]}}"#
            )
        };
        let shown = |body: String| {
            let answer = Answer::new(StatusCode::OK, "application/json", body.into());
            String::from_utf8(answer.showing(&book).body.to_vec()).unwrap()
        };
        for body in [object, list("")] {
            let shown = shown(body);
            assert!(shown.contains("10.0.0.9") && !shown.contains("10.0.0.1"), "{shown}");
        }
        for other in [list(",\"continue\":\"t\""), "rubbish".to_owned()] {
            assert_eq!(shown(other.clone()), other);
        }
    }
}
