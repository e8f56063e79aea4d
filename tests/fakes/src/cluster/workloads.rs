//! Pods of Deployments and DaemonSets, and their statuses.

use serde_json::{Value, json};
use yurt_api::names;

use super::Behaviour;
use crate::api_server::{Key, Resource, Store};

const APPS: &str = "/apis/apps/v1";

pub(super) fn run(store: &mut Store, behaviour: &Behaviour) {
    workloads(store, behaviour);
    orphans(store);
}

fn workloads(store: &mut Store, behaviour: &Behaviour) {
    let all = store.objects().filter(|(key, _)| key.resource.prefix == APPS);
    let all: Vec<(Key, Value)> = all.map(|(key, object)| (key.clone(), object.clone())).collect();
    for (key, mut object) in all {
        let name = key.name().to_owned();
        let good = !behaviour.no_image;
        if key.plural() == "deployments" {
            let owner = ("ReplicaSet", format!("{name}-abc"));
            pod(store, behaviour, &key, &format!("{name}-abc-x"), owner, None, &object);
            let available = i32::from(good);
            object["status"] = json!({ "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1,
                "availableReplicas": available, "readyReplicas": available });
        } else {
            let nodes = fitting(store, &object);
            for node in &nodes {
                let owner = ("DaemonSet", name.clone());
                pod(store, behaviour, &key, &format!("{name}-{node}"), owner, Some(node), &object);
            }
            let pulled = nodes.iter().filter(|node| !behaviour.unpulled.contains(*node)).count();
            let (wanted, ready) = (nodes.len(), if good { pulled } else { 0 });
            object["status"] = json!({ "observedGeneration": 1, "currentNumberScheduled": wanted,
                "desiredNumberScheduled": wanted, "numberMisscheduled": 0, "numberReady": ready,
                "updatedNumberScheduled": wanted });
        }
        store.set(&key, object);
    }
}

fn fitting(store: &Store, set: &Value) -> Vec<String> {
    let spec = &set["spec"]["template"]["spec"];
    let selector = spec["nodeSelector"].as_object().cloned().unwrap_or_default();
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let required = terms["nodeSelectorTerms"][0]["matchExpressions"].as_array().cloned().unwrap_or_default();
    let fit = store.objects().filter(|(key, node)| {
        let labels = &node["metadata"]["labels"];
        key.plural() == "nodes"
            && selector.iter().all(|(label, value)| labels[label] == *value)
            && required.iter().all(|one| {
                assert_eq!(one["operator"], "Exists");
                labels.get(one["key"].as_str().unwrap()).is_some()
            })
    });
    fit.map(|(key, _)| key.name().to_owned()).collect()
}

fn pod(
    store: &mut Store,
    behaviour: &Behaviour,
    of: &Key,
    name: &str,
    owner: (&str, String),
    node: Option<&str>,
    workload: &Value,
) {
    let template = &workload["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let unpulled = node.is_some_and(|node| behaviour.unpulled.contains(node));
    let good = !behaviour.no_image && !unpulled;
    let waiting = if unpulled {
        json!({ "waiting": { "reason": "ErrImagePull", "message": "dial tcp 203.0.113.1:443: i/o timeout" } })
    } else {
        json!({ "waiting": { "reason": "ErrImageNeverPull" } })
    };
    let object = json!({
        "metadata": {
            "labels": template["metadata"]["labels"],
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
    store.set(&Resource::core("pods").key(of.namespace(), name), object);
}

/// Pods of ours whose owner has gone, or whose node does not fit any more.
fn orphans(store: &mut Store) {
    let pods = store.objects().filter(|(key, pod)| {
        key.plural() == "pods" && pod["metadata"]["labels"][names::LABEL_PART_OF] == names::PART_OF
    });
    let pods: Vec<(Key, Value)> = pods.map(|(key, pod)| (key.clone(), pod.clone())).collect();
    for (key, pod) in pods {
        let owner = &pod["metadata"]["ownerReferences"][0];
        let Some(name) = owner["name"].as_str() else { continue };
        let (plural, name) = match owner["kind"] == "DaemonSet" {
            true => ("daemonsets", name),
            false => ("deployments", name.trim_end_matches("-abc")),
        };
        let workload = store.get(&Resource::new(APPS, plural).key(key.namespace(), name));
        let fits = workload.is_some_and(|workload| {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            plural == "deployments" || fitting(store, workload).iter().any(|name| name == node)
        });
        if !fits {
            store.remove(&key);
        }
    }
}
