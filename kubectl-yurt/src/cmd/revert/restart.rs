//! Which pods have to be restarted after a revert. A container that started while pods of its node were led to the hub by
//! their environment keeps what kubelet gave it then: the hub as the API server (`KUBERNETES_SERVICE_HOST`), which is gone
//! with the hub. Pods on the host's network are given the same. Whatever the way, kube-proxy keeps a kubeconfig that
//! leads there. Pods that are led there at the Service's address need nothing. The keeper restarts the node's own agents;
//! everything else is the user's to restart. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use yurt_api::{
    names,
    status::{Agents, ConversionState, NodeWayIn},
    way_in::WayIn,
};

use crate::{
    cluster::{node, node_agents, pods},
    output::words::count_of,
};

/// How many pods are named.
const NAMED: usize = 10;

/// When a node was an edge node, by its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    since: Timestamp,
    /// Not yet over without it.
    until: Option<Timestamp>,
    led: Led,
}

/// When pods were led to the hub by their environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Led {
    Always,
    Never,
    /// The second counts.
    Until(Timestamp),
}

impl Led {
    fn of(way_in: Option<&NodeWayIn>) -> Self {
        match way_in {
            // A keeper of before knows no other way.
            None | Some(NodeWayIn { way: WayIn::Environment, .. }) => Self::Always,
            Some(NodeWayIn { environment_until: None, .. }) => Self::Never,
            Some(NodeWayIn { environment_until: Some(until), .. }) => {
                until.parse().map_or(Self::Always, Self::Until)
            }
        }
    }

    fn holds(self, started: Timestamp) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Until(until) => started.as_second() <= until.as_second(),
        }
    }
}

/// When each node was an edge node, and what its keeper did with its agents when that was over.
#[derive(Debug, Default)]
pub struct Windows {
    windows: BTreeMap<String, Window>,
    agents: BTreeMap<String, Agents>,
    nothing: Agents,
}

impl Windows {
    /// The windows of the nodes that are edge nodes now. Of a node that is on its way back already nobody knows when it
    /// became one.
    pub fn of(nodes: &[Node]) -> Self {
        let entries = nodes.iter().filter_map(|node| {
            let status =
                node::conversion(node).filter(|status| status.state == ConversionState::Converted)?;
            let since: Timestamp = status.since.as_ref().unwrap_or(&status.time).parse().ok()?;
            let led = Led::of(status.way_in.as_ref());
            Some((node.name_any(), Window { since, until: None, led }))
        });
        Self { windows: entries.collect(), ..Self::default() }
    }

    /// Closes the window of a node that has reported that it is vanilla again.
    pub fn close(&mut self, node: &Node) {
        let status = node::conversion(node).filter(|status| status.state == ConversionState::Reverted);
        let time = status.as_ref().and_then(|status| status.time.parse().ok());
        if let Some(window) = self.windows.get_mut(&node.name_any()) {
            window.until = time;
        }
        self.agents.extend(status.map(|status| (node.name_any(), status.agents)));
    }

    /// What a node's keeper did with the agents.
    pub fn agents(&self, node: &str) -> &Agents {
        self.agents.get(node).unwrap_or(&self.nothing)
    }
}

/// A pod to be restarted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stale {
    namespace: String,
    name: String,
    /// Something makes it again when it is deleted.
    controlled: bool,
    /// It is an infrastructure agent, which the keeper restarts.
    agent: bool,
}

impl Stale {
    /// True if the node's keeper restarts it.
    pub fn is_agent(&self) -> bool {
        self.agent
    }

    /// `namespace/name`
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Finds the pods that can talk to the API server and have a container that started in its node's window.
pub fn stale(pods: &[Pod], windows: &Windows) -> Vec<Stale> {
    let ours =
        |pod: &Pod| pod.labels().get(names::LABEL_PART_OF).is_some_and(|value| value == names::PART_OF);
    let in_window = |pod: &Pod| {
        let place = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        let window = place.and_then(|name| windows.windows.get(name));
        window.is_some_and(|window| {
            // Starts are told in whole seconds.
            let since = window.since.as_second();
            pods::starts(pod).any(|time| {
                time.as_second() >= since
                    && window.until.is_none_or(|until| time < until)
                    && (window.led.holds(time) || is_kube_proxy(pod))
            })
        })
    };
    // Begun anew after kubelet had left the hub, and before its node was vanilla.
    let restarted = |pod: &Pod| {
        let node = pods::node_of(pod).unwrap_or_default();
        windows.agents(node).restarted.contains(&node_agents::name(pod))
    };
    let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let mut found: Vec<Stale> = pods
        .iter()
        .filter(|pod| {
            !ours(pod) && !leaves(pod) && node_agents::has_token(pod) && in_window(pod) && !restarted(pod)
        })
        .map(|pod| Stale {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            controlled: pod.owner_references().iter().any(|owner| owner.controller == Some(true)),
            agent: node_agents::is_agent(pod),
        })
        .collect();
    found.sort();
    found
}

/// Whether the pod has the kubeconfig that the hub changes for kubelet: kubeadm's kube-proxy.
fn is_kube_proxy(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let mut maps = volumes.filter_map(|volume| volume.config_map.as_ref());
    pod.namespace().as_deref() == Some("kube-system") && maps.any(|map| map.name == "kube-proxy")
}

/// `default/a, default/b, and 3 more`
pub fn listed(pods: &[Stale]) -> String {
    node_agents::listed(&pods.iter().map(Stale::name).collect::<Vec<_>>())
}

/// What to warn about at the end; `None` if nothing has to be restarted.
pub fn warning(pods: &[Stale]) -> Option<String> {
    if pods.is_empty() {
        return None;
    }
    let mut lines = vec![format!(
        "{} started while the node was an edge node and still {} {} (or {}) for the API server, which is gone; if \
         they use the API server, restart them:",
        count_of(pods.len(), "pod"),
        if pods.len() == 1 { "takes" } else { "take" },
        names::HUB_POD_ADDRESS,
        names::HUB_POD_IPV6
    )];
    // kubeadm's DaemonSet. It has no choice but to use the API server.
    if pods.iter().any(|pod| pod.namespace == "kube-system" && pod.name.starts_with("kube-proxy-")) {
        lines.push(
            "  kube-proxy is among them: until it is restarted, Services on its node stay as they are".into(),
        );
    }
    let mut commands: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in pods.iter().take(NAMED) {
        if pod.controlled {
            commands.entry(&pod.namespace).or_default().push(&pod.name);
        }
    }
    lines.extend(
        commands
            .iter()
            .map(|(namespace, names)| format!("  kubectl -n {namespace} delete pod {}", names.join(" "))),
    );
    for pod in pods.iter().take(NAMED).filter(|pod| !pod.controlled) {
        lines.push(format!(
            "  {}/{} has no controller: delete it and create it again",
            pod.namespace, pod.name
        ));
    }
    if pods.len() > NAMED {
        lines.push(format!("  and {} more", pods.len() - NAMED));
    }
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn edge(state: &str, time: &str) -> Node {
        let report = json!({ "state": state, "version": "0.1.0", "time": time }).to_string();
        serde_json::from_value(json!({
            "metadata": { "name": "edge", "annotations": { names::ANNOTATION_CONVERSION: report } }
        }))
        .unwrap()
    }

    fn pod(name: &str, started: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "shop", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "", "controller": true } ] },
            "spec": { "nodeName": "edge", "containers": [], "volumes": [
                { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } } ] },
            "status": { "containerStatuses": [
                { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                  "state": { "running": { "startedAt": started } } } ] }
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    const LATER: &str = "2026-01-02T00:00:00Z";

    fn names_of(pods: &[Pod], windows: &Windows) -> Vec<String> {
        stale(pods, windows).into_iter().map(|pod| pod.name).collect()
    }

    #[test]
    fn containers_that_started_on_an_edge_node_and_have_a_token_are_found() {
        let mut windows = Windows::of(&[edge("Converted", "2026-01-01T12:00:00.5Z")]);
        let pods = [
            pod("before", "2026-01-01T11:59:59Z", |_| ()),
            pod("later", LATER, |_| ()),
            pod("host", LATER, |pod| pod["spec"]["hostNetwork"] = json!(true)),
            pod("sidecar", "2026-01-01T00:00:00Z", |pod| {
                let mut sidecar = pod["status"]["containerStatuses"].clone();
                sidecar[0]["state"]["running"]["startedAt"] = json!(LATER);
                pod["status"]["initContainerStatuses"] = sidecar;
            }),
            pod("tokenless", LATER, |pod| pod["spec"]["volumes"] = json!([])),
            pod("vault", LATER, |pod| {
                let token = "/spec/volumes/0/projected/sources/0/serviceAccountToken/audience";
                let parent = token.trim_end_matches("/audience");
                pod.pointer_mut(parent).unwrap()["audience"] = json!("vault");
            }),
            pod("elsewhere", LATER, |pod| pod["spec"]["nodeName"] = json!("cloud")),
            pod("ours", LATER, |pod| {
                pod["metadata"]["labels"] = json!({ names::LABEL_PART_OF: names::PART_OF })
            }),
            pod("leaving", LATER, |pod| pod["metadata"]["deletionTimestamp"] = json!(LATER)),
            pod("vanilla", "2026-01-03T00:00:10Z", |_| ()),
        ];
        assert_eq!(names_of(&pods, &windows), ["host", "later", "sidecar", "vanilla"]);
        windows.close(&edge("Reverted", "2026-01-03T00:00:00Z"));
        assert_eq!(names_of(&pods, &windows), ["host", "later", "sidecar"], "started after the revert");
        assert!(Windows::of(&[edge("Reverting", LATER), edge("Converted", "?")]).windows.is_empty());
    }

    #[test]
    fn what_started_since_kubelet_came_to_the_hub_is_found_however_late_that_was_reported() {
        let mut node = edge("Converted", LATER);
        let report = json!({ "state": "Converted", "version": "0.1.0", "time": "2026-01-01T12:03:00.5Z",
            "since": "2026-01-01T12:00:00Z" });
        node.annotations_mut().insert(names::ANNOTATION_CONVERSION.into(), report.to_string());
        let pods = [
            pod("before", "2026-01-01T11:59:59Z", |_| ()),
            pod("agent", "2026-01-01T12:01:00Z", |_| ()),
            pod("same-second", "2026-01-01T12:00:00Z", |_| ()),
        ];
        assert_eq!(names_of(&pods, &Windows::of(&[node])), ["agent", "same-second"]);
    }

    #[test]
    fn only_what_was_led_by_its_environment_holds_an_address_that_is_gone() {
        let windows = |way_in: Value| {
            let mut node = edge("Converted", LATER);
            let report = json!({ "state": "Converted", "version": "0.1.0", "time": LATER,
                "since": "2026-01-01T12:00:00Z", "wayIn": way_in });
            node.annotations_mut().insert(names::ANNOTATION_CONVERSION.into(), report.to_string());
            Windows::of(&[node])
        };
        let pods = [
            pod("early", "2026-01-01T13:00:00Z", |_| ()),
            pod("late", LATER, |_| ()),
            pod("kube-proxy-x", LATER, |pod| {
                pod["metadata"]["namespace"] = json!("kube-system");
                let map = json!({ "name": "c", "configMap": { "name": "kube-proxy" } });
                pod["spec"]["volumes"].as_array_mut().unwrap().push(map);
            }),
        ];
        let of = |way_in| names_of(&pods, &windows(way_in));
        let all = ["kube-proxy-x", "early", "late"];
        assert_eq!(of(json!({ "way": "environment" })), all);
        assert_eq!(of(Value::Null), all, "a keeper of before says nothing");
        assert_eq!(of(json!({ "way": "service" })), ["kube-proxy-x"]);
        let until = json!({ "way": "service", "environmentUntil": "2026-01-01T13:00:00Z" });
        assert_eq!(of(until), ["kube-proxy-x", "early"]);
    }

    #[test]
    fn an_agent_that_the_keeper_restarted_is_not_the_users_to_restart() {
        let mut windows = Windows::of(&[edge("Converted", "2026-01-01T12:00:00Z")]);
        let pods = [pod("kube-proxy-x", LATER, |pod| {
            pod["metadata"]["namespace"] = json!("kube-system");
            pod["metadata"]["ownerReferences"][0]["kind"] = json!("DaemonSet");
        })];
        let found = stale(&pods, &windows);
        assert!(found[0].is_agent());
        assert_eq!(found[0].name(), "kube-system/kube-proxy-x");
        let report = |agents: Value| {
            let report = json!({ "state": "Reverted", "version": "0.1.0", "time": "2026-01-02T00:00:05Z",
                "agents": agents });
            let mut node = edge("Reverted", LATER);
            node.annotations_mut().insert(names::ANNOTATION_CONVERSION.into(), report.to_string());
            node
        };
        windows.close(&report(json!({ "failed": [{ "pod": "kube-system/kube-proxy-x", "message": "" }] })));
        assert_eq!(stale(&pods, &windows).len(), 1);
        windows.close(&report(json!({ "restarted": ["kube-system/kube-proxy-x"] })));
        assert_eq!(windows.agents("edge").restarted.len(), 1);
        assert!(stale(&pods, &windows).is_empty());
    }

    #[test]
    fn ten_are_named_with_the_commands_that_restart_them() {
        let stale = |count: usize| -> Vec<Stale> {
            let names = (0..count).map(|number| format!("p{number}"));
            names
                .map(|name| Stale { namespace: "shop".into(), name, controlled: true, agent: false })
                .collect()
        };
        assert_eq!(warning(&[]), None);
        let mut pods = stale(2);
        pods.push(Stale { namespace: "web".into(), name: "bare".into(), controlled: false, agent: false });
        let text = warning(&pods).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("3 pods started while the node was an edge node and still take 169.254.2.1")
        );
        assert_eq!(lines[1], "  kubectl -n shop delete pod p0 p1");
        assert_eq!(lines[2], "  web/bare has no controller: delete it and create it again");
        let (namespace, name) = ("kube-system".into(), "kube-proxy-x7".into());
        pods.push(Stale { namespace, name, controlled: true, agent: true });
        assert!(warning(&pods).unwrap().contains("kube-proxy is among them"));
        let text = warning(&stale(13)).unwrap();
        assert!(text.contains("p9") && !text.contains("p10") && text.ends_with("\n  and 3 more"), "{text}");
        assert!(listed(&stale(13)).ends_with("shop/p9, and 3 more"));
        assert_eq!(listed(&stale(1)), "shop/p0");
    }
}
