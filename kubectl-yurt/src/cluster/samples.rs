//! Objects for tests.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use yurt_api::names;

/// A pod named `p` on node `edge`, of this owner (kind, name) and image; `waiting` is why its container does not run.
pub(crate) fn pod(owner: (&str, &str), image: &str, waiting: Option<&str>) -> Pod {
    let state = waiting.map_or(json!({ "running": {} }), |reason| json!({ "waiting": { "reason": reason } }));
    let ready = if waiting.is_none() { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": { "name": "p", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": owner.0, "name": owner.1, "uid": "" } ] },
        "spec": { "nodeName": "edge", "containers": [{ "name": "c", "image": image }] },
        "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "containerStatuses": [{ "name": "c", "image": image, "imageID": "", "ready": false,
                "restartCount": 0, "state": state }]
        }
    }))
    .unwrap()
}

/// A node named `edge` with this value of our label and these annotations.
pub(crate) fn node(label: &str, annotations: Value) -> Node {
    serde_json::from_value(json!({ "metadata": {
        "name": "edge", "labels": { names::LABEL_EDGE_WORKER: label }, "annotations": annotations } }))
    .unwrap()
}
