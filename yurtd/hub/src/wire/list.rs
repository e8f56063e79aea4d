//! Lists: taken apart page by page as they come, put together again for local clients.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::proto::{self, Value, Writer};
use super::{Encoding, Item, TypeMeta, WireError, json, parse_resource_version};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListPage {
    /// Of the objects, not of the list.
    pub(crate) kind: TypeMeta,
    /// Of the collection.
    pub(crate) resource_version: u64,
    /// Where the next page starts.
    pub(crate) continue_token: Option<String>,
    /// Objects in the order of the API server.
    pub(crate) items: Vec<Item>,
}

/// Takes a page apart.
///
/// # Errors
///
/// [`WireError`]: then nothing of the page may be used.
pub(crate) fn split_list(encoding: Encoding, body: &Bytes) -> Result<ListPage, WireError> {
    if encoding.is_protobuf() { split_protobuf(body) } else { split_json(encoding, body) }
}

fn item_kind(api_version: &str, list_kind: &str) -> Result<TypeMeta, WireError> {
    let kind = list_kind
        .strip_suffix("List")
        .ok_or_else(|| WireError::malformed("list", format!("{list_kind:?} is no kind of list")))?;
    Ok(TypeMeta::new(api_version, kind))
}

/// `*List{metadata 1, items 2}`, `ListMeta{resourceVersion 2, continue 3}`.
fn split_protobuf(body: &Bytes) -> Result<ListPage, WireError> {
    let (list, raw) = proto::open_envelope(body)?;
    let kind = item_kind(&list.api_version, &list.kind)?;
    let (mut resource_version, mut continue_token) = (String::new(), None);
    let mut items = Vec::new();
    for field in proto::fields("list", &raw) {
        match field? {
            (1, Value::Bytes(meta)) => {
                for field in proto::fields("list metadata", meta) {
                    match field? {
                        (2, Value::Bytes(value)) => resource_version = proto::text("list", value)?.to_owned(),
                        (3, Value::Bytes(value)) if !value.is_empty() => {
                            continue_token = Some(proto::text("list", value)?.to_owned());
                        }
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(item)) => {
                items.push(Item { meta: proto::object_meta(item)?, body: raw.slice_ref(item) });
            }
            _ => {}
        }
    }
    let resource_version = parse_resource_version(&resource_version)?;
    Ok(ListPage { kind, resource_version, continue_token, items })
}

fn split_json(encoding: Encoding, body: &[u8]) -> Result<ListPage, WireError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List<'a> {
        #[serde(default)]
        kind: String,
        #[serde(default)]
        api_version: String,
        metadata: ListMeta,
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMeta {
        #[serde(default)]
        resource_version: String,
        #[serde(default, rename = "continue")]
        continue_token: Option<String>,
    }
    let list: List<'_> = serde_json::from_slice(body).map_err(|error| WireError::malformed("list", error))?;
    let kind = item_kind(&list.api_version, &list.kind)?;
    let resource_version = parse_resource_version(&list.metadata.resource_version)?;
    let continue_token = list.metadata.continue_token.filter(|token| !token.is_empty());
    let items = list.items.unwrap_or_default();
    let items =
        items.iter().map(|raw| Ok(json::decode_item(encoding, raw.get())?.1)).collect::<Result<_, _>>()?;
    Ok(ListPage { kind, resource_version, continue_token, items })
}

/// How large a list will be, so that it is written into memory of exactly that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListSize {
    encoding: Encoding,
    items: usize,
    bytes: usize,
}

impl ListSize {
    /// Of an empty list.
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self { encoding, items: 0, bytes: 0 }
    }

    /// About how long the whole list will be.
    pub(crate) fn total(&self) -> usize {
        self.bytes + self.items + 256
    }

    /// Adds a stored object of `length` bytes.
    pub(crate) fn add(&mut self, length: usize) {
        self.items += 1;
        self.bytes += if self.encoding.is_protobuf() { proto::field_size(length) } else { length };
    }
}

/// Writes a whole list.
#[derive(Debug)]
pub(crate) struct ListWriter {
    state: WriterState,
}

#[derive(Debug)]
enum WriterState {
    Protobuf(Writer),
    Json { out: Vec<u8>, first: bool },
}

impl ListWriter {
    /// Starts a list of objects of `kind` with the collection's resourceVersion.
    pub(crate) fn new(kind: &TypeMeta, resource_version: u64, size: &ListSize) -> Self {
        Self::with_room(kind, resource_version, size, size.bytes + size.items)
    }

    /// The same for one that is [taken](Self::take) piece by piece.
    pub(crate) fn in_pieces(kind: &TypeMeta, resource_version: u64, size: &ListSize) -> Self {
        Self::with_room(kind, resource_version, size, 0)
    }

    fn with_room(kind: &TypeMeta, resource_version: u64, size: &ListSize, room: usize) -> Self {
        let list = TypeMeta::new(&kind.api_version, &format!("{}List", kind.kind));
        let version = resource_version.to_string();
        let state = if size.encoding.is_protobuf() {
            // Go's encoder writes selfLink and continue also when they are empty.
            let mut meta = Writer::default();
            meta.bytes(1, &[]);
            meta.bytes(2, version.as_bytes());
            meta.bytes(3, &[]);
            let meta = meta.finish();
            let length = proto::field_size(meta.len()) + size.bytes;
            let mut out = proto::start_envelope(&list, length, room);
            out.bytes(1, &meta);
            WriterState::Protobuf(out)
        } else {
            let mut out = Vec::with_capacity(room + list.kind.len() + list.api_version.len() + 96);
            out.push(b'{');
            json::write_type_fields(&mut out, &list);
            out.extend_from_slice(b",\"metadata\":{\"resourceVersion\":");
            json::write_string(&mut out, &version);
            out.extend_from_slice(b"},\"items\":[");
            WriterState::Json { out, first: true }
        };
        Self { state }
    }

    /// Appends a stored object.
    pub(crate) fn item(&mut self, stored: &[u8]) {
        match &mut self.state {
            WriterState::Protobuf(out) => out.bytes(2, stored),
            WriterState::Json { out, first } => {
                if !std::mem::replace(first, false) {
                    out.push(b',');
                }
                out.extend_from_slice(stored);
            }
        }
    }

    /// What was written since this was called last, if that is `length` bytes or more.
    pub(crate) fn take(&mut self, length: usize) -> Option<Bytes> {
        let out = match &mut self.state {
            WriterState::Protobuf(out) => out.written(),
            WriterState::Json { out, .. } => out,
        };
        (out.len() >= length).then(|| std::mem::take(out).into())
    }

    /// The body, or what is left of it.
    pub(crate) fn finish(self) -> Bytes {
        match self.state {
            WriterState::Protobuf(out) => proto::finish_envelope(out),
            WriterState::Json { mut out, .. } => {
                out.extend_from_slice(b"]}\n");
                out.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(page: &ListPage, encoding: Encoding) -> Bytes {
        let mut size = ListSize::new(encoding);
        page.items.iter().for_each(|item| size.add(item.body.len()));
        let mut list = ListWriter::new(&page.kind, page.resource_version, &size);
        page.items.iter().for_each(|item| list.item(&item.body));
        list.finish()
    }

    #[test]
    fn a_list_in_pieces_is_the_same_list() {
        for (encoding, object) in
            [(Encoding::Json, r#"{"metadata":{"name":"a"}}"#), (Encoding::Protobuf, "object")]
        {
            for items in [0, 1, 200] {
                let kind = TypeMeta::new("v1", "Pod");
                let mut size = ListSize::new(encoding);
                (0..items).for_each(|_| size.add(object.len()));
                let mut whole = ListWriter::new(&kind, 7, &size);
                let mut pieces = ListWriter::in_pieces(&kind, 7, &size);
                let mut taken = Vec::new();
                for _ in 0..items {
                    whole.item(object.as_bytes());
                    pieces.item(object.as_bytes());
                    taken.extend(pieces.take(100));
                }
                assert!(items < 10 || taken.len() > 10);
                taken.push(pieces.finish());
                let whole = whole.finish();
                assert_eq!(taken.concat(), whole);
                assert!(whole.len() <= size.total());
            }
        }
    }

    #[test]
    fn a_json_list_comes_out_as_it_went_in() {
        let text = concat!(
            r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":["#,
            r#"{"metadata":{"name":"a","namespace":"n","uid":"1","resourceVersion":"3"},"new":[1, 2]},"#,
            r#"{"metadata":{"name":"b","namespace":"n","uid":"2","resourceVersion":"4"}}]}"#,
            "\n"
        );
        let page = split_list(Encoding::Json, &Bytes::from(text)).unwrap();
        assert_eq!(page.kind, TypeMeta::new("v1", "Pod"));
        assert_eq!(page.items.len(), 2);
        assert_eq!(write(&page, Encoding::Json), text);
    }

    #[test]
    fn a_protobuf_list_comes_out_as_it_went_in() {
        let mut meta = Writer::default();
        meta.bytes(1, b"");
        meta.bytes(2, b"9");
        meta.bytes(3, b"");
        let mut raw = Writer::default();
        raw.bytes(1, &meta.finish());
        for name in ["a", "b"] {
            let mut meta = Writer::default();
            meta.bytes(1, name.as_bytes());
            meta.bytes(6, b"3");
            let mut item = Writer::default();
            item.bytes(1, &meta.finish());
            item.bytes(99, b"a field of tomorrow");
            raw.bytes(2, &item.finish());
        }
        let body = proto::envelope(&TypeMeta::new("v1", "NodeList"), &raw.finish());
        let page = split_list(Encoding::Protobuf, &body).unwrap();
        assert_eq!(page.items[1].meta.key(), "b");
        assert_eq!(write(&page, Encoding::Protobuf), body);
    }

    #[test]
    fn an_empty_list_has_items_all_the_same() {
        let page = ListPage {
            kind: TypeMeta::new("v1", "Pod"),
            resource_version: 5,
            continue_token: None,
            items: Vec::new(),
        };
        let text = write(&page, Encoding::Json);
        assert_eq!(
            text,
            "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[]}\n"
        );
        assert_eq!(split_list(Encoding::Json, &text).unwrap(), page);
        assert_eq!(split_list(Encoding::Protobuf, &write(&page, Encoding::Protobuf)).unwrap(), page);
    }

    #[test]
    fn items_may_be_null_and_pages_continue() {
        let text = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5","continue":"t"},"items":null}"#;
        let page = split_list(Encoding::Json, &Bytes::from(text)).unwrap();
        assert_eq!((page.items.len(), page.continue_token.as_deref()), (0, Some("t")));
    }

    #[test]
    fn a_list_without_a_numeric_version_is_no_view() {
        for version in ["", "0", "x"] {
            let text = format!(
                r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}},"items":[]}}"#
            );
            assert!(matches!(split_list(Encoding::Json, &text.into()), Err(WireError::ResourceVersion(_))));
        }
    }

    #[test]
    fn a_list_cut_short_is_an_error() {
        let page = ListPage {
            kind: TypeMeta::new("v1", "Pod"),
            resource_version: 5,
            continue_token: None,
            items: vec![json::decode_item(Encoding::Json, r#"{"metadata":{"name":"a"}}"#).unwrap().1],
        };
        let body = write(&page, Encoding::Json);
        for cut in 0..body.len() - 2 {
            assert!(split_list(Encoding::Json, &body.slice(..cut)).is_err(), "{cut}");
        }
    }
}
