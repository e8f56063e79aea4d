//! What has changed of one object's status while the link was down: each field that was touched, with its last value.
//! However often it changed, it is sent once, as the difference to what the API server has by then.
//!
//! A field that was touched is kubelet's word even if it is in the end what it was when the link went: the API server
//! may have changed it meanwhile (`Ready` of the pods of a node that is not heard of). One that was not touched is
//! whatever the API server has by then.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::strategic::Schema;

/// Last values by name; nothing for what was removed.
type Touched = BTreeMap<String, Option<Value>>;

/// What has changed of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Change {
    /// Of the object: one that was made anew under its name is another.
    uid: String,
    /// The node's boot in which it was last changed.
    pub(crate) boot: String,
    /// A pod has come to an end that only this node's next kubelet can take back.
    pub(crate) revocable: bool,
    /// Fields of the status, but for its conditions.
    status: Touched,
    /// By their type.
    conditions: Touched,
    labels: Touched,
    annotations: Touched,
}

impl Change {
    /// What a patch that made `after` of `before` adds to what was changed of the same object.
    pub(crate) fn and(earlier: Option<Self>, boot: &str, before: &Value, after: &Value) -> Self {
        let uid = uid_of(after);
        let mut change = earlier.filter(|earlier| earlier.uid == uid).unwrap_or_default();
        uid.clone_into(&mut change.uid);
        boot.clone_into(&mut change.boot);
        change.revocable = ends_for_good(after);
        let fields = |object: &Value| {
            let mut fields = object["status"].as_object().cloned().unwrap_or_default();
            fields.remove("conditions");
            fields
        };
        touch(&mut change.status, &fields(before), &fields(after));
        touch(&mut change.conditions, &conditions(before), &conditions(after));
        for (touched, field) in [(&mut change.labels, "labels"), (&mut change.annotations, "annotations")] {
            let map = |object: &Value| object["metadata"][field].as_object().cloned().unwrap_or_default();
            touch(touched, &map(before), &map(after));
        }
        change
    }

    /// The object that was changed.
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// The object with every change; itself, if it is another one by now.
    pub(crate) fn over(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if uid_of(&object) != self.uid {
            return object;
        }
        if !self.status.is_empty() {
            merge(&mut object["status"], &self.status);
        }
        if !self.conditions.is_empty() {
            let conditions = std::mem::take(&mut object["status"]["conditions"]);
            object["status"]["conditions"] = self.conditions_over(conditions);
        }
        for (touched, field) in [(&self.labels, "labels"), (&self.annotations, "annotations")] {
            // Naming a field makes it.
            if !touched.is_empty() {
                merge(&mut object["metadata"][field], touched);
            }
        }
        object
    }

    fn conditions_over(&self, conditions: Value) -> Value {
        let Value::Array(mut list) = conditions else {
            return self.conditions.values().flatten().cloned().collect();
        };
        for (name, value) in &self.conditions {
            let at = list.iter().position(|condition| condition["type"] == **name);
            match (at, value) {
                (Some(at), Some(value)) => list[at] = value.clone(),
                (Some(at), None) => drop(list.remove(at)),
                (None, Some(value)) => list.push(value.clone()),
                (None, None) => {}
            }
        }
        Value::Array(list)
    }

    /// The strategic merge patch of the status that makes of the API server's `present` object what it is here; `None`
    /// when it is that already, or another object.
    pub(crate) fn patch(&self, present: &Value, schema: &Schema) -> Option<Value> {
        if uid_of(present) != self.uid {
            return None;
        }
        let mut status = Map::new();
        for (field, value) in &self.status {
            let Some(change) = replacing(present["status"].get(field), value.as_ref()) else { continue };
            // Their order counts, and a merge would keep what is gone.
            let change = match change {
                Value::Array(items) if schema.merges_in_status(field) => {
                    std::iter::once(json!({"$patch": "replace"})).chain(items).collect()
                }
                change => change,
            };
            status.insert(field.clone(), change);
        }
        let before = conditions(present);
        let mut changed: Vec<Value> = self
            .conditions
            .iter()
            .filter_map(|(name, value)| {
                let mut change = match (before.get(name), value) {
                    (None, None) => return None,
                    (Some(_), None) => json!({"$patch": "delete"}),
                    (present, value) => replacing(present, value.as_ref())?,
                };
                change["type"] = name.as_str().into();
                Some(change)
            })
            .collect();
        // The API server's merge takes over the order in which a patch names what is there.
        let place = |condition: &Value| {
            let all = present["status"]["conditions"].as_array();
            let at = all.and_then(|all| all.iter().position(|other| other["type"] == condition["type"]));
            at.unwrap_or(usize::MAX)
        };
        changed.sort_by_key(place);
        if !changed.is_empty() {
            status.insert("conditions".to_owned(), changed.into());
        }
        let mut metadata = Map::new();
        for (touched, field) in [(&self.labels, "labels"), (&self.annotations, "annotations")] {
            let map: Map<String, Value> = touched
                .iter()
                .filter_map(|(name, value)| {
                    let change = replacing(present["metadata"][field].get(name), value.as_ref())?;
                    Some((name.clone(), change))
                })
                .collect();
            if !map.is_empty() {
                metadata.insert(field.to_owned(), map.into());
            }
        }
        if status.is_empty() && metadata.is_empty() {
            return None;
        }
        // The API server refuses it for an object that was made anew meanwhile.
        metadata.insert("uid".to_owned(), self.uid.as_str().into());
        Some(json!({"metadata": metadata, "status": status}))
    }
}

fn uid_of(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether a pod has come to an end that nobody in the cluster has decided: it is to be started again whenever it ends,
/// and nobody deletes it.
fn ends_for_good(object: &Value) -> bool {
    let spec = &object["spec"];
    let is_pod = spec.get("containers").is_some();
    let always = matches!(spec["restartPolicy"].as_str(), None | Some("Always"));
    let ended = matches!(object["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    is_pod && always && ended && object["metadata"]["deletionTimestamp"].is_null()
}

fn conditions(object: &Value) -> Map<String, Value> {
    let list = object["status"]["conditions"].as_array();
    let named = |condition: &Value| Some((condition["type"].as_str()?.to_owned(), condition.clone()));
    list.into_iter().flatten().filter_map(named).collect()
}

fn touch(touched: &mut Touched, before: &Map<String, Value>, after: &Map<String, Value>) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        if before.get(name) != after.get(name) {
            touched.insert(name.clone(), after.get(name).cloned());
        }
    }
}

fn merge(into: &mut Value, touched: &Touched) {
    if !into.is_object() {
        *into = Map::new().into();
    }
    let Some(fields) = into.as_object_mut() else { return };
    for (name, value) in touched {
        match value {
            Some(value) => drop(fields.insert(name.clone(), value.clone())),
            None => drop(fields.remove(name)),
        }
    }
}

/// The merge patch that makes `wanted` of `present`; `None` when it is that already.
fn replacing(present: Option<&Value>, wanted: Option<&Value>) -> Option<Value> {
    match (present, wanted) {
        (present, wanted) if present == wanted => None,
        (_, None) => Some(Value::Null),
        (Some(Value::Object(present)), Some(Value::Object(wanted))) => {
            let names: BTreeSet<&String> = present.keys().chain(wanted.keys()).collect();
            let changes = names
                .into_iter()
                .filter_map(|name| Some((name.clone(), replacing(present.get(name), wanted.get(name))?)));
            Some(Value::Object(changes.collect()))
        }
        (_, Some(wanted)) => Some(wanted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::strategic;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "a", "uid": "u-1", "labels": {"app": "web"}},
               "spec": {"containers": [{}], "restartPolicy": "Always"}, "status": status})
    }

    fn ready(status: &str) -> Value {
        json!({"type": "Ready", "status": status, "reason": if status == "True" { Value::Null } else { "x".into() }})
    }

    fn running(ip: &str, ready: Value) -> Value {
        json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
               "conditions": [{"type": "PodScheduled", "status": "True"}, ready]})
    }

    fn changed(steps: &[Value]) -> Change {
        let pairs = steps.windows(2);
        let change = pairs.fold(None, |change, pair| Some(Change::and(change, "b-1", &pair[0], &pair[1])));
        change.unwrap()
    }

    /// What the API server makes of the patch.
    fn sent(change: &Change, present: &Value) -> Value {
        let mut result = present.clone();
        if let Some(patch) = change.patch(present, &strategic::POD) {
            strategic::apply(&mut result, patch, &strategic::POD).unwrap();
        }
        result
    }

    #[test]
    fn many_steps_are_one_difference() {
        let first = pod(running("10.0.0.1", ready("True")));
        let last = pod(running("10.0.0.9", ready("True")));
        let change = changed(&[
            first.clone(),
            pod(running("10.0.0.1", ready("False"))),
            pod(json!({"phase": "Pending"})),
            last.clone(),
        ]);
        assert_eq!(sent(&change, &first), last);
        let patch = change.patch(&first, &strategic::POD).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u-1"},
                   "status": {"podIP": "10.0.0.9", "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.9"}]}})
        );
        assert_eq!(change.patch(&last, &strategic::POD), None, "it is there already");
    }

    #[test]
    fn conditions_stay_in_the_order_that_the_api_server_has() {
        let conditions = |status: &str| {
            let types = ["MemoryPressure", "DiskPressure", "Ready"];
            let all = types.map(|kind| json!({"type": kind, "status": status, "lastHeartbeatTime": status}));
            pod(json!({"conditions": all}))
        };
        let change = changed(&[conditions("True"), conditions("False")]);
        assert_eq!(sent(&change, &conditions("Unknown")), conditions("False"));
    }

    #[test]
    fn what_was_touched_counts_against_what_the_api_server_made_of_it_meanwhile() {
        let first = pod(running("10.0.0.1", ready("True")));
        let change = changed(&[first.clone(), pod(running("10.0.0.1", ready("False"))), first.clone()]);
        let unheard = pod(running("10.0.0.1", ready("False")));
        assert_eq!(
            sent(&change, &unheard)["status"]["conditions"][1],
            json!({"type": "Ready", "status": "True"})
        );
    }

    #[test]
    fn what_was_not_touched_is_the_api_servers() {
        let first = pod(running("10.0.0.1", ready("True")));
        let change = changed(&[first.clone(), pod(running("10.0.0.9", ready("True")))]);
        let mut present = first;
        present["metadata"]["labels"]["team"] = "blue".into();
        present["status"]["conditions"][0]["status"] = "False".into();
        present["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "gate", "status": "True"}));
        let mut expected = present.clone();
        expected["status"]["podIP"] = "10.0.0.9".into();
        expected["status"]["podIPs"] = json!([{"ip": "10.0.0.9"}]);
        assert_eq!(sent(&change, &present), expected);
        assert_eq!(change.over(&present), expected);
    }

    #[test]
    fn what_went_away_here_goes_there() {
        let first =
            pod(json!({"phase": "Running", "resize": "x", "conditions": [ready("True"), {"type": "gone"}]}));
        let mut last = pod(json!({"phase": "Running", "conditions": [ready("True")]}));
        last["metadata"]["labels"] = json!({});
        let change = changed(&[first.clone(), last.clone()]);
        assert_eq!(change.over(&first), last);
        let patch = change.patch(&first, &strategic::POD).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u-1", "labels": {"app": null}},
                   "status": {"resize": null, "conditions": [{"type": "gone", "$patch": "delete"}]}})
        );
    }

    #[test]
    fn an_object_that_was_made_anew_is_another() {
        let first = pod(running("10.0.0.1", ready("True")));
        let change = changed(&[first.clone(), pod(running("10.0.0.9", ready("True")))]);
        let mut anew = first;
        anew["metadata"]["uid"] = "u-2".into();
        assert_eq!(change.patch(&anew, &strategic::POD), None);
        assert_eq!(change.over(&anew), anew);
        let mut started = anew.clone();
        started["status"]["podIP"] = "10.0.0.2".into();
        let change = Change::and(Some(change), "b-1", &anew, &started);
        assert_eq!(change.over(&anew), started, "what was changed of the old one is forgotten");
    }

    #[test]
    fn resources_that_went_are_not_merged_back() {
        let node = |capacity: Value| json!({"metadata": {"uid": "n-1"}, "status": {"capacity": capacity}});
        let (first, last) = (node(json!({"cpu": "2", "example.com/gpu": "1"})), node(json!({"cpu": "4"})));
        let patch = changed(&[first.clone(), last]).patch(&first, &strategic::NODE).unwrap();
        assert_eq!(patch["status"], json!({"capacity": {"cpu": "4", "example.com/gpu": null}}));
    }

    #[test]
    fn only_an_end_that_nobody_else_can_take_back_is_revocable() {
        let first = pod(running("10.0.0.1", ready("True")));
        let ended = |edit: &dyn Fn(&mut Value)| {
            let mut last = pod(json!({"phase": "Failed"}));
            edit(&mut last);
            changed(&[first.clone(), last]).revocable
        };
        assert!(ended(&|_| {}));
        assert!(ended(&|pod| pod["status"]["phase"] = "Succeeded".into()));
        assert!(!ended(&|pod| pod["status"]["phase"] = "Running".into()));
        assert!(!ended(&|pod| pod["spec"]["restartPolicy"] = "Never".into()));
        assert!(!ended(&|pod| pod["spec"]["restartPolicy"] = "OnFailure".into()));
        assert!(!ended(&|pod| pod["metadata"]["deletionTimestamp"] = "t".into()));
        let back = changed(&[first.clone(), pod(json!({"phase": "Failed"})), first.clone()]);
        assert!(!back.revocable, "kubelet has taken it back itself");
    }
}
