//! Are the controller and the tunnel server up, and what does a node being converted report? Pure.

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use yurt_api::{names, status::ConversionState};

use crate::cluster::{
    node,
    pods::{self, Trouble},
    rollout::Report,
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

/// Looks at the controller and, with a tunnel, the tunnel server. Only pods with this image count.
pub fn components(view: &View, image: &str, tunnel: bool) -> Components {
    let of_interest = |pod: &&Pod| {
        pods::image_of(pod) == Some(image)
            && (pods::is_of_deployment(pod, names::CONTROLLER)
                || (tunnel && pods::is_of_daemon_set(pod, names::TUNNEL_SERVER)))
    };
    let troubles: Vec<Trouble> = view.pods.values().filter(of_interest).filter_map(pods::trouble).collect();
    if let Some(fatal) = troubles.iter().find(|trouble| matches!(trouble, Trouble::Fatal(_))) {
        return Components::Failed(fatal.text().to_owned());
    }
    let mut waiting = Vec::new();
    if !view.deployments.get(names::CONTROLLER).is_some_and(deployment_is_ready) {
        waiting.push(names::CONTROLLER.to_owned());
    }
    if tunnel {
        match view.daemon_sets.get(names::TUNNEL_SERVER) {
            Some(set) if daemon_set_is_ready(set) => {}
            Some(set) if desired(set) == Some(0) => {
                waiting.push(format!("{} (no node fits it yet)", names::TUNNEL_SERVER));
            }
            _ => waiting.push(names::TUNNEL_SERVER.to_owned()),
        }
    }
    if waiting.is_empty() {
        return Components::Ready;
    }
    let detail = troubles.first().map(|trouble| format!(": {}", trouble.text())).unwrap_or_default();
    Components::Waiting(format!("waiting for {}{detail}", waiting.join(" and ")))
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

/// What a node reports on its way to *edge*.
pub fn conversion(view: &View, name: &str, image: &str) -> Report {
    let Some(node) = view.nodes.get(name) else {
        return Report::Failed("the node has been deleted".into());
    };
    let Some(keeper) = view.keeper(name) else {
        return Report::Working("waiting for its keeper".into());
    };
    if pods::image_of(keeper) != Some(image) {
        return Report::Working("waiting for its new keeper".into());
    }
    let trouble = pods::trouble(keeper);
    if let Some(Trouble::Fatal(text)) = &trouble {
        return Report::Failed(text.clone());
    }
    let away = if node::is_ready(node) { "" } else { " (the node is not ready)" };
    let Some(status) = node::conversion(node) else {
        let text = trouble.map_or_else(
            || if pods::is_ready(keeper) { "keeper is looking".into() } else { "keeper is starting".into() },
            |trouble| trouble.text().to_owned(),
        );
        return Report::Working(text + away);
    };
    match status.state {
        ConversionState::Converted if pods::is_ready(keeper) => {
            Report::Done(format!("converted ({})", version(&status.version)))
        }
        ConversionState::Converted => Report::Working(format!("keeper is starting{away}")),
        ConversionState::Failed => {
            let step = status.step.map(|step| format!("step {step}: ")).unwrap_or_default();
            Report::Failed(format!("{step}{}", status.message))
        }
        // A step failed and is being undone: the message says which and why.
        ConversionState::Converting | ConversionState::Reverting => {
            Report::Working(step_text(&status) + away)
        }
        ConversionState::Reverted => Report::Working(format!("waiting for its keeper to begin{away}")),
    }
}

/// `step 3 of 6: start the hub`
pub fn step_text(status: &yurt_api::status::ConversionStatus) -> String {
    let step = status.step.as_deref().unwrap_or("");
    let position = if status.steps > 0 {
        format!("step {} of {}", status.step_index, status.steps)
    } else {
        "at work".into()
    };
    match (step.is_empty(), status.message.is_empty()) {
        (true, true) => position,
        (true, false) => format!("{position}: {}", status.message),
        (false, true) => format!("{position}: {step}"),
        (false, false) => format!("{position}: {step}: {}", status.message),
    }
}

/// A version with exactly one `v` in front.
pub fn version(text: &str) -> String {
    format!("v{}", text.trim_start_matches('v'))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;

    const IMAGE: &str = "r/yurtd:v1";

    fn node(state: Option<&str>) -> Node {
        let annotations = state.map(|state| {
            let report = json!({ "state": state, "step": "start", "stepIndex": 3, "steps": 6, "message": "port in use",
                "version": "0.1.0", "time": "2026-01-01T00:00:00Z" });
            json!({ names::ANNOTATION_CONVERSION: report.to_string() })
        });
        serde_json::from_value(json!({
            "metadata": { "name": "edge", "annotations": annotations.unwrap_or(json!({})) },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] }
        }))
        .unwrap()
    }

    fn pod(owner: (&str, &str), image: &str, waiting: Option<&str>) -> Pod {
        let state =
            waiting.map_or(json!({ "running": {} }), |reason| json!({ "waiting": { "reason": reason } }));
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

    fn view(state: Option<&str>, keeper: Option<Pod>) -> View {
        View {
            nodes: [node(state)].into_iter().collect(),
            pods: keeper.into_iter().collect(),
            ..View::default()
        }
    }

    fn keeper(waiting: Option<&str>) -> Option<Pod> {
        Some(pod(("DaemonSet", names::KEEPER), IMAGE, waiting))
    }

    #[test]
    fn a_converted_node_is_done_when_its_keeper_runs() {
        let report = conversion(&view(Some("Converted"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Done("converted (v0.1.0)".into()));
        let old = conversion(&view(Some("Converted"), keeper(None)), "edge", "r/yurtd:v2");
        assert!(matches!(old, Report::Working(_)), "the report of the old keeper does not count");
        assert!(matches!(conversion(&view(Some("Converted"), None), "edge", IMAGE), Report::Working(_)));
    }

    #[test]
    fn a_failed_step_is_named_with_its_reason() {
        let report = conversion(&view(Some("Failed"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Failed("step start: port in use".into()));
    }

    #[test]
    fn a_missing_image_fails_the_node_at_once() {
        let report = conversion(&view(None, keeper(Some("ErrImageNeverPull"))), "edge", IMAGE);
        assert!(matches!(report, Report::Failed(text) if text.contains(IMAGE) && text.contains("edge")));
    }

    #[test]
    fn progress_names_the_step() {
        let report = conversion(&view(Some("Converting"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Working("step 3 of 6: start: port in use".into()));
    }

    fn controller(available: i32, seen: i64) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": names::CONTROLLER, "generation": 2 }, "spec": { "replicas": 1, "selector": {}, "template": {} },
            "status": { "observedGeneration": seen, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available }
        }))
        .unwrap()
    }

    fn tunnel(ready: i32, desired: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "name": names::TUNNEL_SERVER, "generation": 1 },
            "status": { "observedGeneration": 1, "currentNumberScheduled": desired, "desiredNumberScheduled": desired,
                "numberMisscheduled": 0, "numberReady": ready, "updatedNumberScheduled": desired }
        }))
        .unwrap()
    }

    fn cloud(available: i32, seen: i64, set: Option<DaemonSet>) -> View {
        View {
            deployments: [controller(available, seen)].into_iter().collect(),
            daemon_sets: set.into_iter().collect(),
            ..View::default()
        }
    }

    #[test]
    fn components_are_ready_when_the_latest_revision_runs() {
        assert_eq!(components(&cloud(1, 2, Some(tunnel(1, 1))), IMAGE, true), Components::Ready);
        assert_eq!(components(&cloud(1, 2, None), IMAGE, false), Components::Ready);
        assert!(
            matches!(components(&cloud(1, 1, None), IMAGE, false), Components::Waiting(_)),
            "old revision"
        );
        assert!(matches!(components(&cloud(1, 2, None), IMAGE, true), Components::Waiting(_)));
        let nowhere = components(&cloud(1, 2, Some(tunnel(0, 0))), IMAGE, true);
        assert!(matches!(nowhere, Components::Waiting(text) if text.contains("no node fits")));
    }

    #[test]
    fn only_pods_of_this_run_can_fail_it() {
        let mut view = cloud(0, 2, Some(tunnel(1, 1)));
        let owner = ("ReplicaSet", "yurt-controller-5d9c");
        view.pods = [pod(owner, "r/yurtd:v0", Some("ErrImageNeverPull"))].into_iter().collect();
        assert!(matches!(components(&view, IMAGE, true), Components::Waiting(_)));
        view.pods = [pod(owner, IMAGE, Some("ErrImageNeverPull"))].into_iter().collect();
        assert!(matches!(components(&view, IMAGE, true), Components::Failed(_)));
    }
}
