//! What the small client reads of an API server, for a fuzzer.

use bytes::Bytes;
use serde_json::Value;

use super::items::{Items, ListError, ListMetadata};
use super::watch::{Lines, event};

fn split(text: &[u8], size: usize) -> Result<(Vec<Value>, ListMetadata), ListError> {
    let mut items = Items::default();
    let mut found = Vec::new();
    for chunk in text.chunks(size) {
        items.feed(chunk, |item| serde_json::from_slice(item).map(|item| found.push(item)))?;
    }
    Ok((found, items.finish()?))
}

/// A list: the objects are the same however it is cut, and those that a parser of the whole finds are among them.
pub fn api_list(input: &[u8]) {
    let [step, text @ ..] = input else { return };
    let whole = split(text, text.len().max(1)).ok();
    assert_eq!(split(text, usize::from(*step) + 1).ok(), whole);
    let Ok(list) = serde_json::from_slice::<Value>(text) else { return };
    let (Some((found, metadata)), Some(objects)) = (whole, list["items"].as_array()) else { return };
    if objects.iter().all(Value::is_object) {
        assert!(objects.is_empty() || found.windows(objects.len()).any(|part| part == objects));
        let version = &list["metadata"]["resourceVersion"];
        assert!(version.is_null() || *version == *metadata.resource_version);
    }
}

/// A watch: its lines are the same however it is cut.
pub fn api_watch(input: &[u8]) {
    let [step, text @ ..] = input else { return };
    let whole = lines(text, text.len().max(1));
    assert_eq!(lines(text, usize::from(*step) + 1), whole);
    for line in whole {
        let _ = event::<Value>(&line);
    }
}

fn lines(text: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for chunk in text.chunks(size) {
        lines.arrived = Bytes::copy_from_slice(chunk);
        while let Ok(Some(line)) = lines.next() {
            found.push(line);
        }
    }
    found
}
