//! What Deployments, DaemonSets and our keeper make of the objects. Runs after every write until nothing changes.

use serde_json::{Value, json};
use yurt_api::names;

use super::{Key, State, core};

const APPS: &str = "/apis/apps/v1";

pub(super) fn run(state: &mut State) {
    loop {
        let before = state.version;
        definitions(state);
        workloads(state);
        orphans(state);
        keepers(state);
        if state.version == before {
            return;
        }
    }
}

/// A definition is established; without it there are no objects of its kind.
fn definitions(state: &mut State) {
    let key = super::definition();
    if let Some(mut object) = state.objects.get(&key).cloned() {
        object["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
        state.put(key, object);
    } else {
        let all: Vec<Key> = state.objects.keys().filter(|key| key.0 == super::CUSTOM).cloned().collect();
        for key in all {
            state.remove(&key);
        }
    }
}

fn workloads(state: &mut State) {
    let all: Vec<(Key, Value)> = state
        .objects
        .iter()
        .filter(|(key, _)| key.0 == APPS)
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect();
    for (key, mut object) in all {
        let name = key.3.clone();
        let good = !state.behaviour.no_image;
        if key.1 == "deployments" {
            pod(state, &key, &format!("{name}-abc-x"), ("ReplicaSet", &format!("{name}-abc")), None, &object);
            let available = i32::from(good);
            object["status"] = json!({ "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1,
                "availableReplicas": available, "readyReplicas": available });
        } else {
            let nodes = fitting(state, &object);
            for node in &nodes {
                pod(state, &key, &format!("{name}-{node}"), ("DaemonSet", &name), Some(node), &object);
            }
            let pulled = nodes.iter().filter(|node| !state.behaviour.unpulled.contains(*node)).count();
            let (wanted, ready) = (nodes.len(), if good { pulled } else { 0 });
            object["status"] = json!({ "observedGeneration": 1, "currentNumberScheduled": wanted,
                "desiredNumberScheduled": wanted, "numberMisscheduled": 0, "numberReady": ready,
                "updatedNumberScheduled": wanted });
        }
        state.put(key, object);
    }
}

fn fitting(state: &State, set: &Value) -> Vec<String> {
    let spec = &set["spec"]["template"]["spec"];
    let selector = spec["nodeSelector"].as_object().cloned().unwrap_or_default();
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let required = terms["nodeSelectorTerms"][0]["matchExpressions"].as_array().cloned().unwrap_or_default();
    state
        .objects
        .iter()
        .filter(|(key, node)| {
            let labels = &node["metadata"]["labels"];
            key.1 == "nodes"
                && selector.iter().all(|(label, value)| labels[label] == *value)
                && required.iter().all(|one| {
                    assert_eq!(one["operator"], "Exists");
                    labels.get(one["key"].as_str().unwrap()).is_some()
                })
        })
        .map(|(key, _)| key.3.clone())
        .collect()
}

fn pod(state: &mut State, of: &Key, name: &str, owner: (&str, &str), node: Option<&str>, workload: &Value) {
    let template = &workload["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let unpulled = node.is_some_and(|node| state.behaviour.unpulled.contains(node));
    let good = !state.behaviour.no_image && !unpulled;
    let waiting = if unpulled {
        json!({ "waiting": { "reason": "ErrImagePull", "message": "dial tcp 203.0.113.1:443: i/o timeout" } })
    } else {
        json!({ "waiting": { "reason": "ErrImageNeverPull" } })
    };
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": of.2, "labels": template["metadata"]["labels"],
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": owner.0, "name": owner.1, "uid": "" }]
        },
        "spec": { "nodeName": node.unwrap_or("master"), "containers": [container] },
        "status": {
            "phase": if good { "Running" } else { "Pending" },
            "conditions": [{ "type": "Ready", "status": if good { "True" } else { "False" } }],
            "containerStatuses": [{ "name": container["name"], "image": "", "imageID": "", "ready": good,
                "restartCount": 0, "state": if good { json!({ "running": {} }) } else { waiting } }]
        }
    });
    state.put(core("pods", of.2.as_deref(), name), object);
}

/// Pods of ours whose owner has gone, or whose node does not fit any more.
fn orphans(state: &mut State) {
    let pods: Vec<(Key, Value)> = state
        .objects
        .iter()
        .filter(|(key, pod)| {
            key.1 == "pods" && pod["metadata"]["labels"][names::LABEL_PART_OF] == names::PART_OF
        })
        .map(|(key, pod)| (key.clone(), pod.clone()))
        .collect();
    for (key, pod) in pods {
        let Some(owner) = pod["metadata"]["ownerReferences"][0]["name"].as_str() else { continue };
        let plural = if pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet" {
            "daemonsets"
        } else {
            "deployments"
        };
        let owner = if plural == "deployments" { owner.trim_end_matches("-abc") } else { owner };
        let workload = state.objects.get(&(APPS.into(), plural.into(), key.2.clone(), owner.into())).cloned();
        let fits = workload.is_some_and(|workload| {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            plural == "deployments" || fitting(state, &workload).iter().any(|name| name == node)
        });
        if !fits {
            state.remove(&key);
        }
    }
}

/// Each running keeper brings its node to where it should be and says so.
fn keepers(state: &mut State) {
    let nodes: Vec<String> =
        state.objects.keys().filter(|key| key.1 == "nodes").map(|key| key.3.clone()).collect();
    for name in nodes {
        let keeper = state.objects.iter().find(|(key, pod)| {
            key.1 == "pods"
                && key.3 == format!("{}-{name}", names::KEEPER)
                && pod["status"]["phase"] == "Running"
        });
        let Some((_, keeper)) = keeper else { continue };
        let image = keeper["spec"]["containers"][0]["image"].as_str().unwrap();
        let tag = image.rsplit_once(":v").map_or("", |(_, tag)| tag);
        let release = if tag.contains('.') { tag.to_owned() } else { "0.1.0".to_owned() };
        if state.behaviour.asleep.contains(&name) {
            continue;
        }
        let key = core("nodes", None, &name);
        let mut node = state.objects[&key].clone();
        let annotations = &node["metadata"]["annotations"];
        let vanilla = annotations[names::ANNOTATION_TARGET] == names::TARGET_VANILLA;
        let before: Option<Value> = annotations[names::ANNOTATION_CONVERSION]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        let next = match (vanilla, state.behaviour.failing.contains(&name)) {
            (true, _) => "Reverted",
            (false, true) => "Failed",
            (false, false) => "Converted",
        };
        let had =
            before.as_ref().and_then(|report| report["version"].as_str()).unwrap_or(&release).to_owned();
        let swaps = had != release && state.behaviour.swapping.contains(&name);
        let message = match next {
            "Failed" => "port 10261 is in use".to_owned(),
            _ if swaps => format!("version {release} did not work and was swapped back: no health"),
            _ => String::new(),
        };
        let version = if swaps { had } else { release };
        // A keeper that has reported a failure keeps to it.
        if before.is_some_and(|report| {
            let same =
                report["state"] == next && report["version"] == version && report["message"] == message;
            same || (report["state"] == "Failed" && !vanilla)
        }) {
            continue;
        }
        // A day passes before each node is vanilla again.
        let day = if next == "Reverted" { 3 } else { 1 };
        let report = json!({ "state": next, "step": "preflight", "stepIndex": 2, "steps": 6, "message": message,
            "version": version, "time": format!("2026-01-0{day}T00:00:00.{:09}Z", state.version) });
        if !node["metadata"]["annotations"].is_object() {
            node["metadata"]["annotations"] = json!({});
        }
        node["metadata"]["annotations"][names::ANNOTATION_CONVERSION] = json!(report.to_string());
        state.put(key, node);
    }
}
