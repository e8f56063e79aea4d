//! The pods that a [`Target`] means: itself, or those that its selector finds, best pod first. Also which of a pod's
//! containers is meant when nobody says.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
    runtime::{WatchStreamExt as _, watcher},
};

use crate::{
    connect::session::Session,
    error::Error,
    options::target::{Target, TargetKind},
};

/// Annotation that names the container a person usually means.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The pods that were meant, best first, and the Service they were meant through.
#[derive(Debug, Clone)]
pub struct FoundPods {
    /// At least one pod.
    pub first: Pod,
    /// How many pods there are.
    pub count: usize,
    /// The Service, if a Service was named: its ports are mapped to the pod's.
    pub service: Option<Service>,
}

/// Finds the pod that `target` means, waiting up to `timeout` for a first one to exist.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] in kubectl's words when there is no pod in time.
pub async fn find(session: &Session, target: &Target, timeout: Duration) -> Result<FoundPods, Error> {
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let (selector, service) = match target.kind {
        TargetKind::Pod => {
            let first = pods.get(&target.name).await?;
            return Ok(FoundPods { first, count: 1, service: None });
        }
        TargetKind::Service => {
            let services: Api<Service> = Api::namespaced(session.client.clone(), &session.namespace);
            let service = services.get(&target.name).await?;
            let labels = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
            let selector = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
            (selector.join(","), Some(service))
        }
        TargetKind::Owner(group, version, kind, plural) => {
            let resource =
                ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
            let api: Api<DynamicObject> =
                Api::namespaced_with(session.client.clone(), &session.namespace, &resource);
            (owner_selector(&api.get(&target.name).await?)?, None)
        }
    };
    if selector.is_empty() {
        return Err(Error::Failed(format!("{} has no pod selector", target.name)));
    }
    let mut found = pods.list(&ListParams::default().labels(&selector)).await?.items;
    if found.is_empty() {
        found.push(wait_for_one(session.client.clone(), &session.namespace, &selector, timeout).await?);
    }
    found.sort_by_key(rank);
    let count = found.len();
    let first = found.swap_remove(0);
    Ok(FoundPods { first, count, service })
}

async fn wait_for_one(
    client: Client,
    namespace: &str,
    selector: &str,
    timeout: Duration,
) -> Result<Pod, Error> {
    use futures::StreamExt as _;
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let mut events =
        watcher(api, watcher::Config::default().labels(selector)).default_backoff().applied_objects().boxed();
    let first = async {
        loop {
            match events.next().await {
                Some(Ok(pod)) => return Some(pod),
                Some(Err(_)) => {}
                None => return None,
            }
        }
    };
    match tokio::time::timeout(timeout, first).await {
        Ok(Some(pod)) => Ok(pod),
        _ => Err(Error::Failed("timed out waiting for the condition".into())),
    }
}

/// `spec.selector` of a workload as a selector text. ReplicationControllers have a plain map there.
fn owner_selector(object: &DynamicObject) -> Result<String, Error> {
    let bad = || Error::Failed(format!("{} has no pod selector", object.name_any()));
    let selector = object.data.pointer("/spec/selector").ok_or_else(bad)?;
    if selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none() {
        let labels: std::collections::BTreeMap<String, String> =
            serde_json::from_value(selector.clone()).map_err(|_| bad())?;
        return Ok(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","));
    }
    let selector: LabelSelector = serde_json::from_value(selector.clone()).map_err(|_| bad())?;
    Ok(selector_text(&selector))
}

/// A label selector as it goes into a query.
fn selector_text(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    for requirement in selector.match_expressions.iter().flatten() {
        let key = &requirement.key;
        let values = requirement.values.iter().flatten().cloned().collect::<Vec<_>>().join(",");
        parts.push(match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// Smallest first: bound to a node, running, ready, ready for longest, fewest restarts, oldest.
fn rank(pod: &Pod) -> (bool, u8, bool, Option<jiff::Timestamp>, i32, Option<jiff::Timestamp>, String) {
    let bound =
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|name| !name.is_empty());
    let phase = match phase(pod) {
        "Running" => 0,
        "Unknown" => 1,
        "Pending" => 2,
        _ => 3,
    };
    let ready = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let restarts = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .map(|status| status.restart_count)
        .max()
        .unwrap_or(0);
    let since = ready.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (!bound, phase, ready.is_none(), since, restarts, created, pod.name_any())
}

/// A pod's phase, `Pending` before it has one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The containers of a pod in the order in which logs are printed: init, regular, ephemeral.
pub fn containers(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|container| container.name.clone());
    let regular = spec.containers.iter().map(|container| container.name.clone());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.name.clone());
    init.chain(regular).chain(ephemeral).collect()
}

/// Which container is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenContainer {
    /// The container.
    pub name: String,
    /// What to say on stderr about how it was chosen.
    pub remark: Option<String>,
}

/// Chooses a container: the one asked for, the annotated one, the first.
///
/// # Errors
///
/// [`Error::Failed`] in kubectl's words when the pod has no such container.
pub fn choose_container(pod: &Pod, asked: Option<&str>) -> Result<ChosenContainer, Error> {
    let all = containers(pod);
    let invalid = |name: &str| {
        Error::Failed(format!(
            "container {name} is not valid for pod {} out of: {}",
            pod.name_any(),
            described(pod)
        ))
    };
    if let Some(name) = asked {
        return if all.iter().any(|container| container == name) {
            Ok(ChosenContainer { name: name.to_owned(), remark: None })
        } else {
            Err(invalid(name))
        };
    }
    if let Some(name) = pod.annotations().get(DEFAULT_CONTAINER).filter(|name| !name.is_empty()) {
        return if all.contains(name) {
            Ok(ChosenContainer { name: name.clone(), remark: None })
        } else {
            Err(invalid(name))
        };
    }
    let first =
        pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.clone()).next();
    let name = first.ok_or_else(|| Error::Failed(format!("pod {} has no containers", pod.name_any())))?;
    let remark = (all.len() > 1).then(|| format!("Defaulted container {name:?} out of: {}", described(pod)));
    Ok(ChosenContainer { name, remark })
}

/// The containers as kubectl lists them: regular ones first, then ephemeral and init ones marked as such.
fn described(pod: &Pod) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let regular = spec.containers.iter().map(|container| container.name.clone());
    let ephemeral =
        spec.ephemeral_containers.iter().flatten().map(|container| format!("{} (ephem)", container.name));
    let init = spec.init_containers.iter().flatten().map(|container| format!("{} (init)", container.name));
    regular.chain(ephemeral).chain(init).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn containers_pod() -> Pod {
        pod(json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "c" }] }
        }))
    }

    #[test]
    fn every_operator_becomes_its_text() {
        let selector: LabelSelector = serde_json::from_value(json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["a", "b"] },
                { "key": "x", "operator": "NotIn", "values": ["c"] },
                { "key": "y", "operator": "Exists" },
                { "key": "z", "operator": "DoesNotExist" }
            ]
        }))
        .unwrap();
        assert_eq!(selector_text(&selector), "app=web,tier in (a,b),x notin (c),y,!z");
    }

    #[test]
    fn a_running_ready_pod_comes_before_a_pending_one() {
        let ready = pod(json!({
            "metadata": { "name": "z" }, "spec": { "nodeName": "n", "containers": [] },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" } ] }
        }));
        let running = pod(json!({
            "metadata": { "name": "b" }, "spec": { "nodeName": "n", "containers": [] },
            "status": { "phase": "Running" }
        }));
        let pending = pod(json!({
            "metadata": { "name": "a" }, "spec": { "containers": [] }, "status": { "phase": "Pending" }
        }));
        let mut pods = [pending, running, ready];
        pods.sort_by_key(rank);
        assert_eq!(pods.map(|pod| pod.name_any()), ["z", "b", "a"]);
    }

    #[test]
    fn the_first_container_is_the_default_and_that_is_said() {
        let choice = choose_container(&containers_pod(), None).unwrap();
        assert_eq!(choice.name, "a");
        assert_eq!(choice.remark.as_deref(), Some("Defaulted container \"a\" out of: a, b, c (init)"));
        assert_eq!(choose_container(&containers_pod(), Some("c")).unwrap().remark, None);
    }

    #[test]
    fn an_annotation_decides_before_the_order_does() {
        let mut pod = containers_pod();
        pod.annotations_mut().insert(DEFAULT_CONTAINER.into(), "b".into());
        assert_eq!(choose_container(&pod, None).unwrap(), ChosenContainer { name: "b".into(), remark: None });
    }

    #[test]
    fn a_container_that_is_not_there_is_refused_with_those_that_are() {
        assert_eq!(
            choose_container(&containers_pod(), Some("x")).unwrap_err().to_string(),
            "container x is not valid for pod p out of: a, b, c (init)"
        );
    }
}
