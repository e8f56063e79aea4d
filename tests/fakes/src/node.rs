//! A node of the cluster, as the API sees it: the keeper that runs there brings its node to where it should be, and
//! says so in the Node.

use serde_json::{Value, json};
use yurt_api::names;

use crate::api_server::{Key, Resource, Store};
use crate::cluster::Behaviour;

/// A Node of Kubernetes that nobody has touched.
pub fn vanilla(name: &str, control_plane: bool, ready: bool) -> Value {
    let labels = if control_plane { json!({ names::LABEL_CONTROL_PLANE: "" }) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "status": {
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "Unknown" } }],
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }]
        }
    })
}

/// Where a Node is.
pub(crate) fn key(name: &str) -> Key {
    Resource::core("nodes").key(None, name)
}

/// Each running keeper does its work.
pub(crate) fn keepers(store: &mut Store, behaviour: &Behaviour) {
    let nodes = store.objects().filter(|(key, _)| key.plural() == "nodes");
    let nodes: Vec<String> = nodes.map(|(key, _)| key.name().to_owned()).collect();
    for name in nodes {
        let pod = format!("{}-{name}", names::KEEPER);
        let running = store.objects().find(|(key, pod_object)| {
            key.plural() == "pods" && key.name() == pod && pod_object["status"]["phase"] == "Running"
        });
        let Some((_, pod)) = running else { continue };
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        let tag = image.rsplit_once(":v").map_or("", |(_, tag)| tag);
        let release = if tag.contains('.') { tag.to_owned() } else { "0.1.0".to_owned() };
        if !behaviour.asleep.contains(&name) {
            keep(store, behaviour, &name, release);
        }
    }
}

fn keep(store: &mut Store, behaviour: &Behaviour, name: &str, release: String) {
    let mut node = store.get(&key(name)).unwrap().clone();
    let annotations = &node["metadata"]["annotations"];
    let vanilla = annotations[names::ANNOTATION_TARGET] == names::TARGET_VANILLA;
    let before: Option<Value> =
        annotations[names::ANNOTATION_CONVERSION].as_str().and_then(|text| serde_json::from_str(text).ok());
    let next = match (vanilla, behaviour.failing.contains(name)) {
        (true, _) => "Reverted",
        (false, true) => "Failed",
        (false, false) => "Converted",
    };
    let had = before.as_ref().and_then(|report| report["version"].as_str()).unwrap_or(&release).to_owned();
    let swaps = had != release && behaviour.swapping.contains(name);
    let message = match next {
        "Failed" => "port 10261 is in use".to_owned(),
        _ if swaps => format!("version {release} did not work and was swapped back: no health"),
        _ => String::new(),
    };
    let version = if swaps { had } else { release };
    // A keeper that has reported a failure keeps to it.
    if before.is_some_and(|report| {
        let same = report["state"] == next && report["version"] == version && report["message"] == message;
        same || (report["state"] == "Failed" && !vanilla)
    }) {
        return;
    }
    // A day passes before each node is vanilla again.
    let day = if next == "Reverted" { 3 } else { 1 };
    let report = json!({ "state": next, "step": "preflight", "stepIndex": 2, "steps": 6, "message": message,
        "version": version, "time": format!("2026-01-0{day}T00:00:00.{:09}Z", store.version()) });
    if !node["metadata"]["annotations"].is_object() {
        node["metadata"]["annotations"] = json!({});
    }
    node["metadata"]["annotations"][names::ANNOTATION_CONVERSION] = json!(report.to_string());
    store.set(&key(name), node);
}
