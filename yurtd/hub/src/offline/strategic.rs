//! Strategic merge patch (`application/strategic-merge-patch+json`) for the objects whose status the hub
//! changes while the link is down: Node and Pod.
//!
//! The rules are those of Kubernetes' patch page and of its design proposal on preserving element order: lists
//! with a merge key are merged item by item, other lists are replaced, `null` deletes, and the directives
//! `$patch`, `$retainKeys`, `$setElementOrder/LIST` and `$deleteFromPrimitiveList/LIST` say the rest. The merge
//! keys come from the `patchMergeKey` tags of `k8s.io/api/core/v1`; a field that is not in the table is a map
//! (merged) or an atomic list (replaced).
//!
//! Pure: values in, value out.

use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Why a patch cannot be applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    /// A directive that Kubernetes does not know, or in a place where it means nothing.
    #[error("directive {0} is not valid here")]
    Directive(String),
    /// An item of a merged list lacks its merge key.
    #[error("an item of {list} has no {key}")]
    MissingKey {
        /// The list.
        list: String,
        /// Its merge key.
        key: &'static str,
    },
    /// `$setElementOrder` does not name the items of the patch in their order.
    #[error("the order in {0} does not match its $setElementOrder")]
    Order(String),
    /// `$retainKeys` lacks a key that the patch sets.
    #[error("$retainKeys lacks {0:?}, which the patch sets")]
    RetainKeys(String),
    /// The patch or a directive in it has the wrong JSON type.
    #[error("{0} has the wrong type")]
    Type(String),
}

/// How the fields of one kind of object are merged.
#[derive(Debug)]
pub(crate) struct Schema {
    fields: &'static [(&'static str, Rule)],
}

#[derive(Debug)]
enum Rule {
    /// A map with rules of its own below it.
    Map(&'static Schema),
    /// A list of maps, merged by the value of a key.
    Keyed(&'static str),
    /// A list of scalars, merged as a set.
    Set,
}

const PLAIN: Schema = Schema { fields: &[] };

static METADATA: Schema =
    Schema { fields: &[("ownerReferences", Rule::Keyed("uid")), ("finalizers", Rule::Set)] };

static POD_STATUS: Schema = Schema {
    fields: &[
        ("conditions", Rule::Keyed("type")),
        ("hostIPs", Rule::Keyed("ip")),
        ("podIPs", Rule::Keyed("ip")),
        ("resourceClaimStatuses", Rule::Keyed("name")),
    ],
};

static NODE_STATUS: Schema =
    Schema { fields: &[("conditions", Rule::Keyed("type")), ("addresses", Rule::Keyed("type"))] };

/// Rules for `v1.Pod` as far as its status subresource goes.
pub(crate) static POD: Schema =
    Schema { fields: &[("metadata", Rule::Map(&METADATA)), ("status", Rule::Map(&POD_STATUS))] };

/// Rules for `v1.Node` as far as its status subresource goes.
pub(crate) static NODE: Schema =
    Schema { fields: &[("metadata", Rule::Map(&METADATA)), ("status", Rule::Map(&NODE_STATUS))] };

impl Schema {
    /// Whether a list in the status is merged item by item, not replaced as a whole.
    pub(crate) fn merges_in_status(&self, field: &str) -> bool {
        match self.rule("status") {
            Some(Rule::Map(status)) => matches!(status.rule(field), Some(Rule::Keyed(_) | Rule::Set)),
            _ => false,
        }
    }

    fn rule(&self, field: &str) -> Option<&'static Rule> {
        self.fields.iter().find(|(name, _)| *name == field).map(|(_, rule)| rule)
    }
}

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `original`.
///
/// # Errors
///
/// [`MergeError`]; `original` may then have been changed in part and must be thrown away.
pub(crate) fn apply(original: &mut Value, patch: Value, schema: &Schema) -> Result<(), MergeError> {
    match (original, patch) {
        (Value::Object(original), Value::Object(patch)) => merge_map(original, patch, schema),
        _ => Err(MergeError::Type("the patch".into())),
    }
}

fn merge_map(original: &mut Object, mut patch: Object, schema: &Schema) -> Result<(), MergeError> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => *original = patch,
            Some("delete") => original.clear(),
            _ => return Err(MergeError::Directive(format!("{PATCH}: {directive}"))),
        }
        return Ok(());
    }
    retain_keys(original, &mut patch)?;
    merge_ordered_lists(original, &mut patch, schema)?;
    for (field, change) in patch {
        if let Some(list) = field.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(original, list, &change)?;
            continue;
        }
        if change.is_null() {
            original.remove(&field);
            continue;
        }
        match (original.get_mut(&field), change) {
            (Some(Value::Object(current)), Value::Object(change)) => {
                let below = match schema.rule(&field) {
                    Some(Rule::Map(schema)) => schema,
                    _ => &PLAIN,
                };
                merge_map(current, change, below)?;
            }
            (Some(Value::Array(current)), Value::Array(change)) => {
                *current = merge_list(&field, std::mem::take(current), change, schema.rule(&field))?;
            }
            (_, change) => match without_directives(change) {
                Some(value) => {
                    original.insert(field, value);
                }
                None => {
                    original.remove(&field);
                }
            },
        }
    }
    Ok(())
}

/// `$retainKeys`: keys of the original that it does not name go; it must name every key that the patch sets.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), MergeError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(MergeError::Type(RETAIN_KEYS.into())) };
    let named = |key: &str| keys.iter().any(|named| named.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let directive = key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES);
        if !value.is_null() && !directive && !named(key) {
            return Err(MergeError::RetainKeys(key.clone()));
        }
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// Lists for which the patch gives an order: merged, then ordered; both the directive and the list leave the patch.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, schema: &Schema) -> Result<(), MergeError> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(MergeError::Type(directive));
        };
        let field = directive[SET_ORDER.len()..].to_owned();
        let rule = schema.rule(&field);
        let key = merge_key(rule);
        let current = match original.get(&field) {
            None | Some(Value::Null) => None,
            Some(Value::Array(current)) => Some(current.clone()),
            Some(_) => return Err(MergeError::Type(field)),
        };
        let change = match patch.remove(&field) {
            None => None,
            Some(Value::Array(change)) => Some(change),
            Some(Value::Null) => {
                // Deleted after all; nothing is left to order.
                patch.insert(field, Value::Null);
                continue;
            }
            Some(_) => return Err(MergeError::Type(field)),
        };
        if let Some(change) = &change {
            check_order(&field, change, &order, key)?;
        }
        let merged = match (current.clone(), change) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(change)) => change.into_iter().filter_map(without_directives).collect(),
            (Some(current), Some(change)) => merge_list(&field, current, change, rule)?,
        };
        let ordered = reorder(merged, &order, current.as_deref().unwrap_or_default(), key);
        original.insert(field, Value::Array(ordered));
    }
    Ok(())
}

/// The items that the patch sets must appear in the order list, in the same order.
fn check_order(
    list: &str,
    change: &[Value],
    order: &[Value],
    key: Option<&'static str>,
) -> Result<(), MergeError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in change.iter().filter(|item| item.get(PATCH).is_none()) {
        if !rest.any(|ordered| same(item, ordered, key)) {
            return Err(MergeError::Order(list.into()));
        }
    }
    Ok(())
}

fn merge_list(
    list: &str,
    mut current: Vec<Value>,
    change: Vec<Value>,
    rule: Option<&'static Rule>,
) -> Result<Vec<Value>, MergeError> {
    let key = match rule {
        Some(Rule::Keyed(key)) => *key,
        Some(Rule::Set) => {
            let before = current.clone();
            for item in &change {
                if !current.contains(item) {
                    current.push(item.clone());
                }
            }
            return Ok(reorder(current, &change, &before, None));
        }
        // An atomic list.
        Some(Rule::Map(_)) | None => {
            return Ok(change.into_iter().filter_map(without_directives).collect());
        }
    };
    let mut replace = false;
    let mut items = Vec::with_capacity(change.len());
    for item in change {
        let Some(directive) = item.get(PATCH) else {
            items.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let Some(value) = item.get(key) else {
                    return Err(MergeError::MissingKey { list: list.into(), key });
                };
                current.retain(|existing| existing.get(key) != Some(value));
            }
            Some("replace") => replace = true,
            _ => return Err(MergeError::Directive(format!("{PATCH}: {directive}"))),
        }
    }
    if replace {
        return Ok(items);
    }
    let before = current.clone();
    let order = items.clone();
    for item in items {
        let Value::Object(item) = item else { return Err(MergeError::Type(list.into())) };
        let Some(value) = item.get(key) else {
            return Err(MergeError::MissingKey { list: list.into(), key });
        };
        match current.iter_mut().find(|existing| existing.get(key) == Some(value)) {
            Some(Value::Object(existing)) => merge_map(existing, item, &PLAIN)?,
            Some(_) => return Err(MergeError::Type(list.into())),
            None => {
                if let Some(item) = without_directives(Value::Object(item)) {
                    current.push(item);
                }
            }
        }
    }
    Ok(reorder(current, &order, &before, Some(key)))
}

fn delete_primitives(original: &mut Object, list: &str, values: &Value) -> Result<(), MergeError> {
    let Value::Array(values) = values else { return Err(MergeError::Type(list.into())) };
    if let Some(Value::Array(current)) = original.get_mut(list) {
        current.retain(|item| !values.contains(item));
    }
    Ok(())
}

/// Items named in `order` take that order; the others keep theirs and go before the first item that followed
/// them in `before`.
fn reorder(merged: Vec<Value>, order: &[Value], before: &[Value], key: Option<&'static str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(item, other, key));
    let (mut ordered, mut others): (Vec<_>, Vec<_>) =
        merged.into_iter().partition(|item| place(order, item).is_some());
    ordered.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(before, item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in ordered {
        while let Some(other) = others.peek() {
            match (place(before, other), place(before, &item)) {
                (Some(left), Some(right)) if left < right => result.extend(others.next()),
                _ => break,
            }
        }
        result.push(item);
    }
    result.extend(others);
    result
}

fn same(left: &Value, right: &Value, key: Option<&'static str>) -> bool {
    match key {
        Some(key) => left.get(key).is_some() && left.get(key) == right.get(key),
        None => left == right,
    }
}

fn merge_key(rule: Option<&'static Rule>) -> Option<&'static str> {
    match rule {
        Some(Rule::Keyed(key)) => Some(key),
        _ => None,
    }
}

/// A value that is new to the object: nulls and directives mean nothing there. `None` for `$patch: delete` and its like.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter()
                .filter(|(key, value)| !value.is_null() && !is_directive(key))
                .filter_map(|(key, value)| Some((key, without_directives(value)?)))
                .collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

fn is_directive(key: &str) -> bool {
    key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut original: Value, patch: Value, schema: &Schema) -> Value {
        apply(&mut original, patch, schema).unwrap();
        original
    }

    #[test]
    fn a_condition_is_merged_by_its_type_and_the_others_stay() {
        let node = json!({"status": {"conditions": [
            {"type": "MemoryPressure", "status": "False", "reason": "Fine"},
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"},
        ]}});
        let patch = json!({"status": {
            "$setElementOrder/conditions": [{"type": "MemoryPressure"}, {"type": "Ready"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }});
        assert_eq!(
            patched(node, patch, &NODE),
            json!({"status": {"conditions": [
                {"type": "MemoryPressure", "status": "False", "reason": "Fine"},
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
            ]}})
        );
    }

    #[test]
    fn the_order_directive_moves_items_and_keeps_those_of_the_server_in_their_place() {
        let node = json!({"status": {"addresses": [
            {"type": "Hostname", "address": "a"}, {"type": "Cloud", "address": "c"}, {"type": "InternalIP", "address": "1"},
        ]}});
        let patch = json!({"status": {
            "$setElementOrder/addresses": [{"type": "InternalIP"}, {"type": "Hostname"}],
            "addresses": [{"type": "InternalIP", "address": "2"}],
        }});
        let merged = patched(node, patch, &NODE);
        let order: Vec<_> = merged["status"]["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|address| address["type"].as_str().unwrap())
            .collect();
        assert_eq!(order, ["Cloud", "InternalIP", "Hostname"]);
        assert_eq!(merged["status"]["addresses"][1]["address"], "2");
    }

    #[test]
    fn an_order_that_lacks_an_item_of_the_patch_is_refused() {
        let patch = json!({"status": {
            "$setElementOrder/conditions": [{"type": "Ready"}],
            "conditions": [{"type": "PIDPressure", "status": "True"}],
        }});
        assert_eq!(
            apply(&mut json!({"status": {}}), patch, &NODE),
            Err(MergeError::Order("conditions".into()))
        );
    }

    #[test]
    fn an_item_is_deleted_by_directive_and_its_order_entry_does_no_harm() {
        let pod = json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}});
        let patch = json!({"status": {
            "$setElementOrder/podIPs": [{"ip": "10.0.0.9"}],
            "podIPs": [{"ip": "10.0.0.9"}, {"$patch": "delete", "ip": "10.0.0.1"}, {"$patch": "delete", "ip": "10.0.0.2"}],
        }});
        assert_eq!(patched(pod, patch, &POD), json!({"status": {"podIPs": [{"ip": "10.0.0.9"}]}}));
    }

    #[test]
    fn container_statuses_are_atomic() {
        let pod = json!({"status": {"containerStatuses": [{"name": "a", "ready": true}, {"name": "b", "ready": true}]}});
        let patch = json!({"status": {"containerStatuses": [{"name": "a", "ready": false}]}});
        assert_eq!(
            patched(pod, patch, &POD),
            json!({"status": {"containerStatuses": [{"name": "a", "ready": false}]}})
        );
    }

    #[test]
    fn null_deletes_a_field_and_means_nothing_where_there_is_none() {
        let pod = json!({"status": {"reason": "Evicted", "phase": "Failed"}});
        let patch = json!({"status": {"reason": null, "message": null, "resize": {"x": null, "y": 1}}});
        assert_eq!(patched(pod, patch, &POD), json!({"status": {"phase": "Failed", "resize": {"y": 1}}}));
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        let node = json!({"status": {"config": {"assigned": {"a": 1}, "error": "x"}}});
        let patch = json!({"status": {"config": {"$retainKeys": ["assigned"], "assigned": {"b": 2}}}});
        assert_eq!(
            patched(node.clone(), patch, &NODE),
            json!({"status": {"config": {"assigned": {"a": 1, "b": 2}}}})
        );
        let bad = json!({"status": {"config": {"$retainKeys": ["other"], "assigned": {}}}});
        assert_eq!(apply(&mut node.clone(), bad, &NODE), Err(MergeError::RetainKeys("assigned".into())));
    }

    #[test]
    fn patch_replace_and_delete_work_on_maps_and_lists() {
        let node = json!({"status": {"nodeInfo": {"a": 1}, "conditions": [{"type": "Ready"}]}});
        let patch = json!({"status": {
            "nodeInfo": {"$patch": "replace", "b": 2},
            "conditions": [{"$patch": "replace"}, {"type": "New"}],
        }});
        assert_eq!(
            patched(node.clone(), patch, &NODE),
            json!({"status": {"nodeInfo": {"b": 2}, "conditions": [{"type": "New"}]}})
        );
        let patch = json!({"status": {"nodeInfo": {"$patch": "delete"}}});
        assert_eq!(patched(node.clone(), patch, &NODE)["status"]["nodeInfo"], json!({}));
        let patch = json!({"status": {"nodeInfo": {"$patch": "frobnicate"}}});
        assert!(matches!(apply(&mut node.clone(), patch, &NODE), Err(MergeError::Directive(_))));
    }

    #[test]
    fn finalizers_are_a_set() {
        let pod = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["c", "b"],
            "finalizers": ["c"],
        }});
        assert_eq!(patched(pod, patch, &POD), json!({"metadata": {"finalizers": ["c", "b"]}}));
    }

    #[test]
    fn an_item_without_its_merge_key_is_refused() {
        let mut node = json!({"status": {"conditions": []}});
        let patch = json!({"status": {"conditions": [{"status": "True"}]}});
        assert!(matches!(apply(&mut node, patch, &NODE), Err(MergeError::MissingKey { key: "type", .. })));
    }

    #[test]
    fn a_new_status_is_taken_without_directives() {
        let patch = json!({"status": {
            "$setElementOrder/conditions": [{"type": "Ready"}],
            "conditions": [{"type": "Ready", "status": "True", "message": null}],
        }});
        assert_eq!(
            patched(json!({}), patch, &POD),
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        );
    }
}
