//! What is wrong with a pod of ours, in words that name the image and the node. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodTemplateSpec};
use kube::ResourceExt as _;

/// How bad it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It will not become better by waiting.
    Fatal(String),
    /// It may pass; worth showing while waiting.
    Passing(String),
}

impl Trouble {
    /// What to print.
    pub fn text(&self) -> &str {
        match self {
            Self::Fatal(text) | Self::Passing(text) => text,
        }
    }
}

/// After how many restarts a crash counts as one that will not pass.
const PATIENCE: i32 = 3;

/// True if the pod belongs to the DaemonSet of this name.
pub fn is_of_daemon_set(pod: &Pod, name: &str) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet" && owner.name == name)
}

/// True if the pod belongs to the Deployment of this name (through a ReplicaSet of `NAME-HASH`).
pub fn is_of_deployment(pod: &Pod, name: &str) -> bool {
    pod.owner_references().iter().any(|owner| {
        owner.kind == "ReplicaSet"
            && owner.name.rsplit_once('-').is_some_and(|(deployment, _)| deployment == name)
    })
}

/// The node that the pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// The image of the pod's first container.
pub fn image_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// The image of a workload's first container.
pub fn template_image(template: &PodTemplateSpec) -> Option<&str> {
    template.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// True if every container of the pod runs and is ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What keeps the pod from running; `None` if nothing does.
pub fn trouble(pod: &Pod) -> Option<Trouble> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let statuses =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let containers = statuses.filter_map(|container| container_trouble(pod, container));
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .and_then(|condition| condition.message.as_ref())
        .map(|message| Trouble::Passing(format!("pod {} is not scheduled: {message}", pod.name_any())));
    let mut all: Vec<Trouble> = containers.chain(unscheduled).collect();
    all.sort_by_key(|trouble| matches!(trouble, Trouble::Passing(_)));
    all.into_iter().next()
}

fn container_trouble(pod: &Pod, container: &ContainerStatus) -> Option<Trouble> {
    let node = node_of(pod).unwrap_or("<no node>");
    let image = spec_image(pod, &container.name).unwrap_or(&container.image);
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref())?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let detail = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    match reason {
        "ErrImageNeverPull" => Some(Trouble::Fatal(format!(
            "image {image} is not on node {node} and may not be pulled (imagePullPolicy Never)"
        ))),
        "InvalidImageName" => Some(Trouble::Fatal(format!("image {image} is not a valid reference{detail}"))),
        "ImagePullBackOff" => {
            Some(Trouble::Fatal(format!("image {image} is not on node {node} and cannot be pulled{detail}")))
        }
        "ErrImagePull" => {
            Some(Trouble::Passing(format!("image {image} cannot be pulled on node {node}{detail}")))
        }
        "CrashLoopBackOff" => {
            let text = format!(
                "container {} of pod {} on node {node} crashed {} times{}: see `kubectl -n {} logs {} --previous`",
                container.name,
                pod.name_any(),
                container.restart_count,
                last_words(container),
                pod.namespace().unwrap_or_default(),
                pod.name_any()
            );
            Some(if container.restart_count >= PATIENCE {
                Trouble::Fatal(text)
            } else {
                Trouble::Passing(text)
            })
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(Trouble::Passing(format!(
                "container {} on node {node} cannot be started{detail}",
                container.name
            )))
        }
        _ => None,
    }
}

fn spec_image<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.filter(|entry| entry.name == container).find_map(|entry| entry.image.as_deref())
}

/// Exit code and message of the container's last end.
fn last_words(container: &ContainerStatus) -> String {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    last.map(|last| {
        let message = last.message.as_deref().map(|text| format!(", {}", text.trim())).unwrap_or_default();
        format!(" (exit code {}{message})", last.exit_code)
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(reason: &str, message: Option<&str>, restarts: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "yurtd-x", "namespace": "kube-system" },
            "spec": { "nodeName": "edge-node", "containers": [{ "name": "keeper", "image": "r/yurtd:v1" }] },
            "status": { "containerStatuses": [{
                "name": "keeper", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
                "state": { "waiting": { "reason": reason, "message": message } }
            }] }
        }))
        .unwrap()
    }

    #[test]
    fn a_missing_image_is_fatal_and_names_image_and_node() {
        let trouble = trouble(&pod("ImagePullBackOff", Some("no such host"), 0)).unwrap();
        let Trouble::Fatal(text) = trouble else { panic!("not fatal") };
        assert!(text.contains("r/yurtd:v1") && text.contains("edge-node") && text.contains("no such host"));
        assert!(matches!(super::trouble(&pod("ErrImageNeverPull", None, 0)), Some(Trouble::Fatal(_))));
    }

    #[test]
    fn a_first_failed_pull_and_a_first_crash_may_pass() {
        assert!(matches!(trouble(&pod("ErrImagePull", None, 0)), Some(Trouble::Passing(_))));
        assert!(matches!(trouble(&pod("CrashLoopBackOff", None, 1)), Some(Trouble::Passing(_))));
        assert!(matches!(trouble(&pod("CrashLoopBackOff", None, 3)), Some(Trouble::Fatal(_))));
    }

    #[test]
    fn a_starting_pod_is_in_no_trouble() {
        assert_eq!(trouble(&pod("ContainerCreating", None, 0)), None);
    }

    #[test]
    fn a_pod_on_its_way_out_is_in_no_trouble() {
        let mut pod = pod("ImagePullBackOff", None, 0);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(trouble(&pod), None);
    }
}
