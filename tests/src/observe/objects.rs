//! Everything in the cluster that a conversion could leave something behind in: every object of every
//! kind, without what Kubernetes itself keeps changing.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Snapshot;
use crate::kubectl::Kubectl;

/// Kinds that change by themselves all the time.
const RESTLESS: &[&str] =
    &["events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses"];

/// Label on APIServices that the API server makes, and a moment later takes away, for each definition of a custom
/// resource. The definition is looked at itself.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Fields that say when, by whom or how often, not what.
const VOLATILE_METADATA: &[&str] = &["managedFields", "resourceVersion", "generation", "creationTimestamp"];

/// Every object; secrets, too.
pub fn all(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let kinds = kubectl.ok(["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !RESTLESS.contains(kind)).collect();
    let mut all =
        kubectl.items([kinds.join(",").as_str(), "-A"]).context("getting every object of the cluster")?;
    all.retain(|object| object["metadata"]["labels"].get(MANAGED).is_none());
    Ok(all)
}

/// One section an object, its fields as lines.
pub fn snapshot(kubectl: &Kubectl) -> Result<Snapshot> {
    Ok(all(kubectl)?
        .into_iter()
        .map(|object| {
            let name = name(&object);
            let mut lines = BTreeSet::new();
            flatten("", &normal(object), &mut lines);
            (name, lines)
        })
        .collect())
}

/// Names of objects that have to do with us: by their name, a label, an annotation or a condition.
pub fn of_ours(kubectl: &Kubectl) -> Result<Vec<String>> {
    Ok(all(kubectl)?.iter().filter_map(trace).collect())
}

fn trace(object: &Value) -> Option<String> {
    let meta = &object["metadata"];
    let mut where_found = Vec::new();
    if mentions_us(meta["name"].as_str().unwrap_or_default()) {
        where_found.push("its name".to_owned());
    }
    for field in ["labels", "annotations"] {
        for key in meta[field].as_object().into_iter().flatten().map(|(key, _)| key) {
            if mentions_us(key) || meta[field][key].as_str() == Some("kubectl-yurt") {
                where_found.push(key.clone());
            }
        }
    }
    if object["kind"] == "Node" {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        where_found.extend(
            conditions.filter_map(|c| c["type"].as_str()).filter(|c| *c == "Autonomy").map(str::to_owned),
        );
    }
    (!where_found.is_empty()).then(|| format!("{} ({})", name(object), where_found.join(", ")))
}

/// `last-applied-configuration` and the like are kubectl's; images of the testbed are nobody's.
fn mentions_us(text: &str) -> bool {
    ["yurt", "alibabacloud"].iter().any(|word| text.contains(word)) && !text.starts_with("testbed.yurt")
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    format!("{} {}/{}", text(&object["kind"]), text(&meta["namespace"]), text(&meta["name"]))
}

/// Without what changes by itself.
fn normal(mut object: Value) -> Value {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in VOLATILE_METADATA {
            meta.remove(*field);
        }
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
        }
        // A map without entries is no map: the controller that sets the time takes it away again.
        meta.retain(|_, value| !matches!(value, Value::Object(fields) if fields.is_empty()));
    }
    if kind == "Node" {
        let status = &mut object["status"];
        if let Some(fields) = status.as_object_mut() {
            // What images a node has is not undone: garbage collection is kubelet's.
            fields.remove("images");
            fields.remove("nodeInfo");
        }
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            *condition = serde_json::json!({"type": condition["type"], "status": condition["status"]});
        }
    } else if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        // Addresses and readiness of pods.
        for field in ["endpoints", "subsets"] {
            fields.remove(field);
        }
    }
    object
}

fn flatten(path: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                flatten(&format!("{path}.{key}"), value, lines);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), value, lines);
            }
        }
        _ => {
            lines.insert(format!("{path} = {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_heartbeat_is_no_change_and_a_condition_of_ours_is() {
        let node = |time: &str, kind: &str| {
            json!({"kind": "Node", "metadata": {"name": "a", "resourceVersion": time},
                   "status": {"conditions": [{"type": kind, "status": "True", "lastHeartbeatTime": time}]}})
        };
        assert_eq!(normal(node("1", "Ready")), normal(node("2", "Ready")));
        assert_ne!(normal(node("1", "Ready")), normal(node("1", "Autonomy")));
        assert_eq!(trace(&node("1", "Ready")), None);
        assert!(trace(&node("1", "Autonomy")).is_some());
    }

    #[test]
    fn the_time_of_an_endpoints_change_is_no_change() {
        let endpoints = |meta: Value| normal(json!({"kind": "Endpoints", "metadata": meta}));
        let time = json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"});
        assert_eq!(endpoints(json!({"name": "a", "annotations": time})), endpoints(json!({"name": "a"})));
    }

    #[test]
    fn traces_are_found_in_names_labels_and_annotations() {
        let object = |meta: Value| json!({"kind": "ConfigMap", "metadata": meta});
        assert!(trace(&object(json!({"name": "yurt-config"}))).is_some());
        assert!(
            trace(&object(json!({"name": "a", "labels": {"openyurt.io/is-edge-worker": "true"}}))).is_some()
        );
        assert!(
            trace(&object(json!({"name": "a", "labels": {"app.kubernetes.io/part-of": "kubectl-yurt"}})))
                .is_some()
        );
        assert!(
            trace(&object(json!({"name": "a", "annotations": {"node.beta.openyurt.io/autonomy": "true"}})))
                .is_some()
        );
        assert!(trace(&object(json!({"name": "a", "labels": {"app": "shop"}}))).is_none());
    }

    #[test]
    fn every_field_is_a_line() {
        let mut lines = BTreeSet::new();
        flatten("", &json!({"a": {"b": [1, {"c": "x"}]}, "d": {}}), &mut lines);
        assert_eq!(lines.into_iter().collect::<Vec<_>>(), [".a.b[0] = 1", ".a.b[1].c = \"x\"", ".d = {}"]);
    }
}
