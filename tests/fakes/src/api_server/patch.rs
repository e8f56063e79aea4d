//! Patches, as far as our clients go.

use serde_json::{Map, Value};

use super::encode::Failure;

/// Lists that are merged by one of these fields of their items, as strategic merge patches do.
const MERGE_KEYS: [&str; 3] = ["type", "name", "ip"];

/// Changes an object by a patch of this content type.
pub(super) fn apply(content_type: &str, live: &mut Value, patch: &Value) -> Result<(), Failure> {
    let content_type = content_type.split(';').next().unwrap_or_default();
    match content_type {
        "application/merge-patch+json" | "application/apply-patch+yaml" => json_patch::merge(live, patch),
        "application/strategic-merge-patch+json" => strategic(live, patch),
        "application/json-patch+json" => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Failure::new(400, &error.to_string()))?;
            json_patch::patch(live, &operations).map_err(|error| Failure::new(422, &error.to_string()))?;
        }
        _ => return Err(Failure::new(415, &format!("{content_type:?} is no patch"))),
    }
    Ok(())
}

fn strategic(live: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *live = patch.clone();
        return;
    };
    if !live.is_object() || patch.get("$patch").is_some_and(|directive| directive == "replace") {
        *live = Value::Object(Map::new());
    }
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        let fields = live.as_object_mut().unwrap();
        match value {
            Value::Null => {
                fields.remove(name);
            }
            Value::Array(items) if items.iter().any(|item| item["$patch"] == "replace") => {
                let kept = items.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
                fields.insert(name.clone(), Value::Array(kept));
            }
            Value::Array(items) => match items.iter().find_map(merge_key) {
                Some(key) => merge_list(fields.entry(name.as_str()).or_insert(Value::Null), items, key),
                None => {
                    fields.insert(name.clone(), value.clone());
                }
            },
            other => strategic(fields.entry(name.as_str()).or_insert(Value::Null), other),
        }
    }
}

fn merge_key(item: &Value) -> Option<&'static str> {
    MERGE_KEYS.into_iter().find(|key| item.get(key).is_some())
}

fn merge_list(live: &mut Value, patch: &[Value], key: &str) {
    if !live.is_array() {
        *live = Value::Array(Vec::new());
    }
    let list = live.as_array_mut().unwrap();
    for item in patch {
        let at = list.iter().position(|one| one[key] == item[key]);
        match (at, item.get("$patch").and_then(Value::as_str)) {
            (Some(at), Some("delete")) => {
                list.remove(at);
            }
            (None, Some("delete")) => {}
            (Some(at), _) => strategic(&mut list[at], item),
            (None, _) => {
                let mut new = Value::Null;
                strategic(&mut new, item);
                list.push(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_patch_does_what_its_type_says() {
        let live = json!({"a": [{"type": "x", "v": 1}, {"type": "y"}], "gone": 1, "kept": 1});
        let patched = |content_type: &str, patch: Value| {
            let mut live = live.clone();
            apply(content_type, &mut live, &patch).map(|()| live).map_err(|failure| failure.code)
        };
        let patch = json!({"gone": null, "$setElementOrder/a": [], "a": [{"type": "x", "v": 2}, {"type": "y", "$patch": "delete"}]});
        assert_eq!(
            patched("application/strategic-merge-patch+json", patch.clone()).unwrap(),
            json!({"a": [{"type": "x", "v": 2}], "kept": 1})
        );
        let patch_of_list = json!({"a": [{"$patch": "replace"}, {"type": "z"}], "gone": null});
        assert_eq!(
            patched("application/strategic-merge-patch+json", patch_of_list).unwrap(),
            json!({"a": [{"type": "z"}], "kept": 1})
        );
        let merged = patched("application/merge-patch+json; charset=utf-8", json!({"gone": null, "a": []}));
        assert_eq!(merged.unwrap(), json!({"a": [], "kept": 1}));
        let steps = json!([{"op": "remove", "path": "/gone"}, {"op": "remove", "path": "/a"}]);
        assert_eq!(patched("application/json-patch+json", steps.clone()).unwrap(), json!({"kept": 1}));
        assert_eq!(patched("application/json", patch), Err(415));
        assert_eq!(patched("application/json-patch+json", json!([{"op": "remove", "path": "/b"}])), Err(422));
    }
}
