//! Pods of an edge node that reach the API server past the hub: they began before kubelet came to it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use yurt_api::{names, status::ConversionState};

use crate::cluster::{node, node_agents, pods};

/// Their names; of a node that is no edge node, or on its way there or back, none.
pub(super) fn the_hub(node: &Node, pods: &[Pod]) -> Vec<String> {
    let report = node::conversion(node).filter(|report| report.state == ConversionState::Converted);
    let since = report.and_then(|report| report.since?.parse::<Timestamp>().ok());
    let Some(since) = since else { return Vec::new() };
    let ours =
        |pod: &Pod| pod.labels().get(names::LABEL_PART_OF).is_some_and(|value| value == names::PART_OF);
    let name = node.name_any();
    let mut past: Vec<String> = pods
        .iter()
        .filter(|pod| pods::node_of(pod) == Some(&name) && !ours(pod) && node_agents::has_token(pod))
        .filter(|pod| pods::starts(pod).any(|start| start.as_second() <= since.as_second()))
        .map(node_agents::name)
        .collect();
    past.sort();
    past
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_began_before_kubelet_came_to_the_hub_goes_past_it() {
        let node = |state: &str| -> Node {
            let report = json!({ "state": state, "version": "0.1.0", "time": "2026-01-01T12:03:00Z",
                "since": "2026-01-01T12:00:00Z" });
            let annotations = json!({ names::ANNOTATION_CONVERSION: report.to_string() });
            serde_json::from_value(json!({ "metadata": { "name": "edge", "annotations": annotations } }))
                .unwrap()
        };
        let pod = |name: &str, started: &str, place: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": name, "namespace": "shop" },
                "spec": { "nodeName": place, "containers": [], "volumes": [
                    { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } } ] },
                "status": { "containerStatuses": [
                    { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                      "state": { "running": { "startedAt": started } } } ] }
            }))
            .unwrap()
        };
        let pods = [
            pod("old", "2026-01-01T11:00:00Z", "edge"),
            pod("same-second", "2026-01-01T12:00:00Z", "edge"),
            pod("new", "2026-01-01T12:00:01Z", "edge"),
            pod("elsewhere", "2026-01-01T11:00:00Z", "cloud"),
        ];
        assert_eq!(the_hub(&node("Converted"), &pods), ["shop/old", "shop/same-second"]);
        assert!(the_hub(&node("Reverting"), &pods).is_empty());
    }
}
