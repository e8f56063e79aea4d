//! A list, taken apart while it arrives: one object at a time, so that a node with hundreds of pods needs no more
//! memory than one with a single pod.
//!
//! A list is `{"kind": …, "metadata": {…}, "items": [{…}, {…}]}`. An item is an object inside an array inside the
//! outermost object; nothing else in a list has this shape. Finding it takes the depth of brackets alone, outside of
//! strings. What an item is worth, and the rest once the items are taken out, `serde_json` decides.

use serde::Deserialize;

use super::MAX_OBJECT;

/// Bound of what is not in `items`.
const MAX_REST: usize = 64 << 10;
/// Depth of what is directly in an item: the outermost object, the array, the item.
const ITEM: u32 = 3;

/// A list cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error("an object of the list is longer than {MAX_OBJECT} bytes")]
    LongItem,
    #[error("the list says too much besides its objects")]
    LongRest,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What a list says of itself.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMetadata {
    pub(super) resource_version: String,
    /// Token of the next page.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// A list that is arriving.
#[derive(Debug, Default)]
pub(super) struct Items {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The outermost array is open.
    in_array: bool,
    item: Vec<u8>,
    rest: Vec<u8>,
}

impl Items {
    /// Takes the next bytes; `each` gets every object that is complete with them.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> serde_json::Result<()>,
    ) -> Result<(), ListError> {
        for byte in bytes.iter().copied() {
            let was_inside = self.is_inside();
            self.step(byte);
            if was_inside || self.is_inside() {
                if self.item.len() >= MAX_OBJECT {
                    return Err(ListError::LongItem);
                }
                self.item.push(byte);
                if !self.is_inside() {
                    each(&self.item)?;
                    self.item.clear();
                }
            } else if !(self.in_array && byte == b',') {
                if self.rest.len() >= MAX_REST {
                    return Err(ListError::LongRest);
                }
                self.rest.push(byte);
            }
        }
        Ok(())
    }

    fn is_inside(&self) -> bool {
        self.in_array && self.depth >= ITEM
    }

    fn step(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                self.in_array |= self.depth == ITEM - 1 && byte == b'[';
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.in_array &= self.depth >= ITEM - 1;
            }
            _ => {}
        }
    }

    /// The end: what is left must be a list without its objects.
    pub(super) fn finish(self) -> Result<ListMetadata, ListError> {
        #[derive(Deserialize)]
        struct Rest {
            metadata: ListMetadata,
        }
        Ok(serde_json::from_slice::<Rest>(&self.rest)?.metadata)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn split(text: &str, size: usize) -> Result<(Vec<Value>, ListMetadata), ListError> {
        let mut items = Items::default();
        let mut found = Vec::new();
        for chunk in text.as_bytes().chunks(size) {
            items.feed(chunk, |item| serde_json::from_slice(item).map(|item| found.push(item)))?;
        }
        Ok((found, items.finish()?))
    }

    #[test]
    fn objects_are_found_wherever_the_bytes_are_cut() {
        let objects = [
            json!({"metadata": {"name": "a", "labels": {}}, "spec": {"containers": [{"args": ["]}", "\"{["]}]}}),
            json!({}),
            json!({"text": "ends with a backslash \\", "nested": [[{}], []], "ümlaut": "{\\\"}"}),
        ];
        let list = json!({"apiVersion": "v1", "items": objects, "kind": "PodList",
            "metadata": {"resourceVersion": "7", "continue": "abc", "remainingItemCount": 2}});
        for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap()] {
            for size in [1, 2, 3, 7, 64, 100_000] {
                let (found, metadata) = split(&text, size).unwrap();
                assert_eq!(found, objects);
                assert_eq!(metadata.resource_version, "7");
                assert_eq!(metadata.next.as_deref(), Some("abc"));
            }
        }
    }

    #[test]
    fn an_empty_list_is_one() {
        for items in ["[]", "[ ]", "null"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":{items}}}"#);
            let (found, metadata) = split(&text, 5).unwrap();
            assert!(found.is_empty() && metadata.resource_version == "1" && metadata.next.is_none());
        }
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for text in [
            "",
            "no JSON",
            "{}",
            "[]",
            r#"{"items":[{"a":1}"#,
            r#"{"items":[{"a":}],"metadata":{}}"#,
            r#"{"items":[}],"metadata":{}}"#,
            "]]]]{{{{",
        ] {
            assert!(split(text, 3).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_longer_than_its_bound() {
        let long = "x".repeat(MAX_OBJECT);
        let item = format!(r#"{{"items":[{{"a":"{long}"}}],"metadata":{{}}}}"#);
        assert!(matches!(split(&item, 1 << 20), Err(ListError::LongItem)));
        let rest = format!(r#"{{"metadata":{{"resourceVersion":"{long}"}},"items":[]}}"#);
        assert!(matches!(split(&rest, 1 << 20), Err(ListError::LongRest)));
    }
}
