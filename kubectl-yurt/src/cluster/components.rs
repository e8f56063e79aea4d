//! Whether the controller and the tunnel server are up. Pure.

use std::time::Instant;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Node, Pod},
};
use kube::ResourceExt as _;
use yurt_api::names;

use crate::cluster::{
    node,
    pods::{self, Trouble},
    view::View,
};

/// State of the components in the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Components {
    /// All of them are up.
    Ready,
    /// Something is on its way.
    Waiting(String),
    /// Something will not come up by itself.
    Failed(String),
}

/// Looks at the controller and, with a tunnel, the tunnel server. Only pods with this image count, and of the tunnel
/// server only those on nodes that are ready: one dead control-plane node of several stops nothing.
pub fn components(view: &View, image: &str, tunnel: bool, now: Instant) -> Components {
    let troubles: Vec<Trouble> =
        of_interest(view, image, tunnel).filter_map(|pod| view.trouble(pod, now)).collect();
    if let Some(fatal) = troubles.iter().find(|trouble| matches!(trouble, Trouble::Fatal(_))) {
        return Components::Failed(fatal.text().to_owned());
    }
    let mut waiting = Vec::new();
    if !view.deployments.get(names::CONTROLLER).is_some_and(deployment_is_ready) {
        waiting.push(names::CONTROLLER.to_owned());
    }
    if tunnel {
        waiting.extend(tunnel_server(view, image));
    }
    if waiting.is_empty() {
        return Components::Ready;
    }
    // An Event is not shown: that the tunnel server waits for the Secret that the controller makes is as it should be.
    let detail = of_interest(view, image, tunnel).find_map(pods::trouble);
    let detail = detail.map(|trouble| format!(": {}", trouble.text())).unwrap_or_default();
    Components::Waiting(format!("waiting for {}{detail}", waiting.join(" and ")))
}

/// What the pods that are not up say when it is too late: their newest Events.
pub fn last_words(view: &View, image: &str, tunnel: bool) -> String {
    let pods = of_interest(view, image, tunnel).filter(|pod| !pods::is_ready(pod));
    pods.filter(|pod| pods::trouble(pod).is_none())
        .filter_map(|pod| view.event(pod))
        .map(|text| format!("; {text}"))
        .collect()
}

/// The pods of the controller and of the tunnel server of this run.
fn of_interest<'a>(view: &'a View, image: &'a str, tunnel: bool) -> impl Iterator<Item = &'a Pod> {
    view.pods.values().filter(move |pod| {
        let place = pods::node_of(pod).and_then(|name| view.nodes.get(name));
        pods::image_of(pod) == Some(image)
            && (pods::is_of_deployment(pod, names::CONTROLLER)
                || (tunnel
                    && pods::is_of_daemon_set(pod, names::TUNNEL_SERVER)
                    && place.is_none_or(node::is_ready)))
    })
}

/// What is missing of the tunnel server; `None` if it is up on every node that is there for it, and on one at least.
fn tunnel_server(view: &View, image: &str) -> Option<String> {
    let name = names::TUNNEL_SERVER;
    let Some(set) = view.daemon_sets.get(name) else { return Some(name.to_owned()) };
    if desired(set) == Some(0) {
        return Some(format!("{name} (no node fits it yet)"));
    }
    let here: Vec<&Node> = view
        .nodes
        .values()
        .filter(|node| node::is_control_plane(node) && node::edge_label(node) == Some("false"))
        .filter(|node| node::is_ready(node))
        .collect();
    if here.is_empty() {
        return Some(format!("{name} (no control-plane node is ready)"));
    }
    let runs_on = |node: &str| {
        view.pods.values().any(|pod| {
            pods::is_of_daemon_set(pod, name)
                && pods::node_of(pod) == Some(node)
                && pods::image_of(pod) == Some(image)
                && pods::is_ready(pod)
        })
    };
    let lacking: Vec<String> =
        here.iter().map(|node| node.name_any()).filter(|node| !runs_on(node)).collect();
    if !lacking.is_empty() {
        return Some(format!("{name} on {}", lacking.join(", ")));
    }
    let updated = set.status.as_ref().and_then(|status| status.updated_number_scheduled).unwrap_or(0);
    let latest = desired(set).is_some() && usize::try_from(updated).is_ok_and(|count| count >= here.len());
    (!latest).then(|| name.to_owned())
}

/// True if every replica of the latest revision is available.
pub fn deployment_is_ready(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.replicas.unwrap_or(1);
    observed(status.observed_generation, deployment.metadata.generation)
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
}

/// True if the latest revision runs on every node that it should.
pub fn daemon_set_is_ready(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    observed(status.observed_generation, set.metadata.generation)
        && wanted > 0
        && status.updated_number_scheduled.unwrap_or(0) == wanted
        && status.number_ready == wanted
}

/// How many nodes the DaemonSet should run on, once its controller has looked.
fn desired(set: &DaemonSet) -> Option<i32> {
    let status = set.status.as_ref()?;
    observed(status.observed_generation, set.metadata.generation).then_some(status.desired_number_scheduled)
}

fn observed(seen: Option<i64>, current: Option<i64>) -> bool {
    seen.unwrap_or(0) >= current.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::samples::pod;

    const IMAGE: &str = "r/yurtd:v1";

    fn components(view: &View, image: &str, tunnel: bool) -> Components {
        super::components(view, image, tunnel, Instant::now())
    }

    fn controller(available: i32, seen: i64) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": names::CONTROLLER, "generation": 2 }, "spec": { "replicas": 1, "selector": {}, "template": {} },
            "status": { "observedGeneration": seen, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available }
        }))
        .unwrap()
    }

    fn master(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name,
                "labels": { names::LABEL_CONTROL_PLANE: "", names::LABEL_EDGE_WORKER: "false" } },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] }
        }))
        .unwrap()
    }

    fn server(on: &str, image: &str, waiting: Option<&str>) -> Pod {
        let mut pod = pod(("DaemonSet", names::TUNNEL_SERVER), image, waiting);
        pod.metadata.name = Some(format!("server-{on}"));
        pod.spec.get_or_insert_default().node_name = Some(on.into());
        pod
    }

    fn tunnel(updated: i32, desired: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "name": names::TUNNEL_SERVER, "generation": 1 },
            "status": { "observedGeneration": 1, "currentNumberScheduled": desired, "desiredNumberScheduled": desired,
                "numberMisscheduled": 0, "numberReady": 0, "updatedNumberScheduled": updated }
        }))
        .unwrap()
    }

    fn cloud(available: i32, seen: i64, set: Option<DaemonSet>, pods: Vec<Pod>) -> View {
        View {
            nodes: [master("m1", "True"), master("m2", "Unknown")].into_iter().collect(),
            pods: pods.into_iter().collect(),
            deployments: [controller(available, seen)].into_iter().collect(),
            daemon_sets: set.into_iter().collect(),
            ..View::default()
        }
    }

    #[test]
    fn components_are_ready_when_the_latest_revision_runs_where_a_node_is() {
        let up = || vec![server("m1", IMAGE, None)];
        assert_eq!(components(&cloud(1, 2, Some(tunnel(1, 2)), up()), IMAGE, true), Components::Ready);
        assert_eq!(components(&cloud(1, 2, None, vec![]), IMAGE, false), Components::Ready);
        let waits = |view: &View, tunnel: bool, on: &str| {
            let state = components(view, IMAGE, tunnel);
            assert!(matches!(&state, Components::Waiting(text) if text.contains(on)), "{on}: {state:?}");
        };
        waits(&cloud(1, 1, None, vec![]), false, "yurt-controller");
        waits(&cloud(1, 2, None, vec![]), true, "yurt-tunnel-server");
        waits(&cloud(1, 2, Some(tunnel(0, 0)), vec![]), true, "no node fits");
        waits(&cloud(1, 2, Some(tunnel(0, 2)), up()), true, "yurt-tunnel-server");
        waits(&cloud(1, 2, Some(tunnel(2, 2)), vec![server("m2", IMAGE, None)]), true, "on m1");
        waits(&cloud(1, 2, Some(tunnel(2, 2)), vec![server("m1", "r/yurtd:v0", None)]), true, "on m1");
        let mut both = cloud(1, 2, Some(tunnel(2, 2)), up());
        both.nodes = [master("m1", "True"), master("m2", "True")].into_iter().collect();
        waits(&both, true, "on m2");
        both.nodes = [master("m1", "Unknown")].into_iter().collect();
        waits(&both, true, "no control-plane node is ready");
    }

    #[test]
    fn what_happened_on_a_dead_node_fails_nothing() {
        let pods = vec![server("m1", IMAGE, None), server("m2", IMAGE, Some("ErrImageNeverPull"))];
        assert_eq!(components(&cloud(1, 2, Some(tunnel(2, 2)), pods), IMAGE, true), Components::Ready);
        let pods = vec![server("m1", IMAGE, Some("ErrImageNeverPull"))];
        let state = components(&cloud(1, 2, Some(tunnel(2, 2)), pods), IMAGE, true);
        assert!(matches!(state, Components::Failed(_)));
    }

    #[test]
    fn only_pods_of_this_run_can_fail_it() {
        let owner = ("ReplicaSet", "yurt-controller-5d9c");
        let with = |pod: Pod| components(&cloud(0, 2, Some(tunnel(1, 1)), vec![pod]), IMAGE, true);
        let state = with(pod(owner, "r/yurtd:v0", Some("ErrImageNeverPull")));
        assert!(matches!(state, Components::Waiting(_)));
        assert!(matches!(with(pod(owner, IMAGE, Some("ErrImageNeverPull"))), Components::Failed(_)));
    }

    #[test]
    fn an_event_is_what_is_left_to_say_when_it_is_too_late() {
        let mut waiting = server("m1", IMAGE, Some("ContainerCreating"));
        waiting.status.get_or_insert_default().phase = Some("Pending".into());
        let mut view = cloud(0, 2, Some(tunnel(1, 1)), vec![waiting]);
        view.events = [serde_json::from_value(json!({
            "metadata": { "name": "e" }, "type": "Warning", "reason": "FailedMount", "message": "no secret",
            "involvedObject": { "kind": "Pod", "name": "server-m1" }
        }))
        .unwrap()]
        .into_iter()
        .collect();
        let state = components(&view, IMAGE, true);
        assert!(matches!(&state, Components::Waiting(text) if !text.contains("FailedMount")), "{state:?}");
        let words = last_words(&view, IMAGE, true);
        assert_eq!(words, "; pod server-m1 on node m1: FailedMount: no secret");
    }
}
