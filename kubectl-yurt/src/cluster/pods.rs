//! Whose a pod is and where, how many there are, and what is wrong with one of ours, in words that name the image and the
//! node. Pure, but for the list of all pods ([`unfinished`]).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodTemplateSpec};
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::connect::session::Session;

/// How bad it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It will not become better by waiting.
    Fatal(String),
    /// An image cannot be pulled, perhaps only at the moment: links at the edge hiccup. Whether it lasts is seen
    /// where it is followed ([`View::trouble`](super::view::View::trouble)).
    Pull(String),
    /// It may pass; worth showing while waiting.
    Passing(String),
}

impl Trouble {
    /// What to print.
    pub fn text(&self) -> &str {
        match self {
            Self::Fatal(text) | Self::Pull(text) | Self::Passing(text) => text,
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

/// Every pod of the cluster that is not finished.
///
/// # Errors
///
/// The server's answer.
pub async fn unfinished(session: &Session) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = Api::all(session.client.clone());
    let unfinished = "status.phase!=Succeeded,status.phase!=Failed";
    Ok(api.list(&ListParams::default().fields(unfinished)).await?.items)
}

/// When the pod's running containers started.
pub fn starts(pod: &Pod) -> impl Iterator<Item = Timestamp> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let main = status.and_then(|status| status.container_statuses.as_ref());
    let all = init.into_iter().chain(main).flatten();
    all.filter_map(|container| Some(container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0))
}

/// How many of the pods each of these nodes has.
pub fn count(pods: &[Pod], nodes: &BTreeSet<String>) -> BTreeMap<String, usize> {
    let mut count: BTreeMap<String, usize> = nodes.iter().map(|name| (name.clone(), 0)).collect();
    for pod in pods {
        if let Some(number) = node_of(pod).and_then(|name| count.get_mut(name)) {
            *number += 1;
        }
    }
    count
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
    all.sort_by_key(|trouble| match trouble {
        Trouble::Fatal(_) => 0,
        Trouble::Pull(_) => 1,
        Trouble::Passing(_) => 2,
    });
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
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => {
            let message = waiting.message.as_deref().unwrap_or_default();
            // While it backs off kubelet wraps the reason of the last failure; older ones leave it out.
            let backoff = format!("Back-off pulling image \"{image}\"");
            let why = message.strip_prefix(&backoff).unwrap_or(message);
            let why = why.trim_start_matches(": ").trim_start_matches("ErrImagePull: ");
            let detail = if why.is_empty() { String::new() } else { format!(": {why}") };
            Some(if is_final(why) {
                Trouble::Fatal(format!("image {image} is not on node {node} and cannot be pulled{detail}"))
            } else {
                Trouble::Pull(format!("image {image} is not on node {node} and cannot be pulled yet{detail}"))
            })
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

/// True if a failed pull says that the next one will fail as well: the registry answered, and has no such image or
/// does not give it to this node. In the words of containerd, CRI-O and the registries.
fn is_final(message: &str) -> bool {
    const WORDS: [&str; 9] = [
        ": not found",
        "manifest unknown",
        "name unknown",
        "repository does not exist",
        "unauthorized",
        "authorization failed",
        "authentication required",
        "denied",
        "invalid reference",
    ];
    // What a firewall on the way says is no answer of the registry.
    let message = message.to_ascii_lowercase().replace("connect: permission denied", "");
    WORDS.iter().any(|word| message.contains(word))
}

/// True if the pod has not come to the point of running anything.
pub fn is_pending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending")
}

/// The newest Event that says what a pod waits for: a warning, or that its image is on the way.
pub fn newest_event<'a>(events: impl Iterator<Item = &'a Event>, pod: &Pod) -> Option<&'a Event> {
    let about = |event: &&Event| {
        let object = &event.involved_object;
        let same = object.uid.as_ref().zip(pod.metadata.uid.as_ref()).is_none_or(|(a, b)| a == b);
        same && object.kind.as_deref() == Some("Pod")
            && object.name == pod.metadata.name
            && object.namespace == pod.metadata.namespace
    };
    let telling = |event: &&Event| {
        event.type_.as_deref() == Some("Warning") || event.reason.as_deref() == Some("Pulling")
    };
    events.filter(about).filter(telling).max_by_key(|event| {
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
        [
            series.map(|time| time.0),
            event.event_time.as_ref().map(|time| time.0),
            event.last_timestamp.as_ref().map(|time| time.0),
            event.metadata.creation_timestamp.as_ref().map(|time| time.0),
        ]
        .into_iter()
        .flatten()
        .max()
    })
}

/// What an Event about a pod says, in one line.
pub fn event_text(pod: &Pod, event: &Event) -> String {
    let place = node_of(pod).map(|node| format!(" on node {node}")).unwrap_or_default();
    let reason = event.reason.as_deref().unwrap_or("Warning");
    if reason == "Pulling" {
        return format!("image {} is being pulled{place}", image_of(pod).unwrap_or("of the pod"));
    }
    let message = event.message.as_deref().unwrap_or_default().trim();
    format!("pod {}{place}: {reason}: {message}", pod.name_any())
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

    /// Messages as containerd 2 and CRI-O 1.34 write them.
    #[test]
    fn a_pull_that_fails_may_pass_unless_the_registry_says_that_it_cannot() {
        let unpack =
            r#"failed to pull and unpack image "r/yurtd:v1": failed to resolve reference "r/yurtd:v1": "#;
        for (reason, message, is_final) in [
            ("ErrImagePull", "", false),
            ("ImagePullBackOff", r#"Back-off pulling image "r/yurtd:v1""#, false),
            (
                "ErrImagePull",
                r#"{}failed to do request: Head "https://r/v2/": dial tcp: lookup r: no such host"#,
                false,
            ),
            ("ErrImagePull", "{}failed to do request: dial tcp 10.0.0.1:443: i/o timeout", false),
            ("ErrImagePull", "{}dial tcp 10.0.0.1:443: connect: permission denied", false),
            ("ErrImagePull", "{}unexpected status from HEAD request: 429 Too Many Requests", false),
            ("RegistryUnavailable", "registry is unavailable", false),
            ("ErrImagePull", "{}r/yurtd:v1: not found", true),
            (
                "ImagePullBackOff",
                r#"Back-off pulling image "r/yurtd:v1": ErrImagePull: {}r/yurtd:v1: not found"#,
                true,
            ),
            ("ErrImagePull", "reading manifest v1 in r/yurtd: manifest unknown", true),
            (
                "ErrImagePull",
                "{}pull access denied, repository does not exist or may require authorization",
                true,
            ),
            (
                "ErrImagePull",
                "unable to retrieve auth token: invalid username/password: unauthorized: no",
                true,
            ),
        ] {
            let message = message.replace("{}", unpack);
            let trouble = trouble(&pod(reason, Some(&message), 0)).unwrap();
            assert_eq!(matches!(trouble, Trouble::Fatal(_)), is_final, "{message}");
            assert_eq!(matches!(trouble, Trouble::Pull(_)), !is_final, "{message}");
            let text = trouble.text();
            assert!(
                text.starts_with("image r/yurtd:v1 is not on node edge-node and cannot be pulled"),
                "{text}"
            );
            assert!(!text.contains("Back-off") && !text.contains("ErrImagePull"), "{text}");
        }
        for reason in ["ErrImageNeverPull", "InvalidImageName"] {
            assert!(matches!(trouble(&pod(reason, None, 0)), Some(Trouble::Fatal(_))), "{reason}");
        }
    }

    #[test]
    fn a_first_crash_may_pass() {
        assert!(matches!(trouble(&pod("CrashLoopBackOff", None, 1)), Some(Trouble::Passing(_))));
        assert!(matches!(trouble(&pod("CrashLoopBackOff", None, 3)), Some(Trouble::Fatal(_))));
    }

    #[test]
    fn the_newest_telling_event_of_this_pod_counts() {
        let pod = pod("ContainerCreating", None, 0);
        let event = |name: &str, object: &str, kind: &str, reason: &str, second: u32| -> Event {
            serde_json::from_value(json!({
                "metadata": { "name": name }, "type": kind, "reason": reason, "message": format!("{reason} it is "),
                "involvedObject": { "kind": "Pod", "name": object, "namespace": "kube-system" },
                "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z")
            }))
            .unwrap()
        };
        let mut events = vec![
            event("a", "yurtd-x", "Warning", "FailedMount", 2),
            event("b", "yurtd-x", "Warning", "FailedScheduling", 1),
            event("c", "yurtd-x", "Normal", "Scheduled", 3),
            event("d", "yurtd-y", "Warning", "Failed", 4),
        ];
        let newest =
            |events: &[Event]| newest_event(events.iter(), &pod).map(|event| event_text(&pod, event));
        assert_eq!(
            newest(&events),
            Some("pod yurtd-x on node edge-node: FailedMount: FailedMount it is".into())
        );
        events.push(event("e", "yurtd-x", "Normal", "Pulling", 5));
        assert_eq!(newest(&events), Some("image r/yurtd:v1 is being pulled on node edge-node".into()));
        assert_eq!(newest(&events[2..4]), None);
    }

    #[test]
    fn a_starting_pod_is_in_no_trouble() {
        assert_eq!(trouble(&pod("ContainerCreating", None, 0)), None);
    }

    #[test]
    fn a_pod_on_its_way_out_is_in_no_trouble() {
        let mut pod = pod("ImagePullBackOff", None, 0);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert_eq!(trouble(&pod), None);
    }
}
