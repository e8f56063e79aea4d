//! Which pods are infrastructure agents: those that the keeper restarts once when its node changes the way to the API
//! server, and that the plugin names beforehand. One rule for both. Pure.
//!
//! An agent is what a DaemonSet puts on every node to make it work (kube-proxy, the CNI's agent, a CSI node plugin), and
//! that talks to the API server. Everything else on a node is somebody's business and is never touched.
//!
//! What a container is told about the API server (its environment, for kube-proxy its kubeconfig) is written when kubelet
//! starts it, and never again. So it follows from when it started, by the node's clock, whether it goes through the hub
//! ([`Moment`]).

mod volume;

use serde::{Deserialize, Serialize};

pub use self::volume::Volume;
use crate::names;
use crate::way_in::WayIn;

/// The namespace of the cluster's own components.
const CLUSTER_NAMESPACE: &str = "kube-system";
/// Priority classes that every cluster has, for what it cannot do without.
const CRITICAL: [&str; 2] = ["system-node-critical", "system-cluster-critical"];

/// What of a pod makes it an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Kind of the owner that controls it.
    pub controller: Option<&'a str>,
    /// Its `spec.priorityClassName`.
    pub priority_class: Option<&'a str>,
    /// The value of its label [`names::LABEL_PART_OF`].
    pub part_of: Option<&'a str>,
    /// It has a ServiceAccount's token for the API server, or a kubeconfig ([`is_kubeconfig`]).
    pub uses_api: bool,
}

impl Traits<'_> {
    /// Whether the pod is an infrastructure agent. A static pod is controlled by its Node, so it is none.
    pub fn is_agent(&self) -> bool {
        let infrastructure = self.namespace == CLUSTER_NAMESPACE
            || self.priority_class.is_some_and(|class| CRITICAL.contains(&class));
        self.controller == Some("DaemonSet")
            && infrastructure
            && self.uses_api
            && self.part_of != Some(names::PART_OF)
    }
}

/// Whether a volume, a ConfigMap, a Secret or a key of one is a kubeconfig by its name.
pub fn is_kubeconfig(name: &str) -> bool {
    name.to_ascii_lowercase().contains("kubeconfig")
}

/// A moment of the node: its clock may say another time after a reboot, and nothing that ran before runs after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// The kernel's boot id, with dashes or, as systemd writes it, without.
    pub boot_id: Option<String>,
    /// Seconds since 1970.
    pub second: i64,
}

impl Moment {
    /// Whether a container that runs in this boot began before the moment; `started` in seconds since 1970. In its second
    /// counts: kubelet takes longer than that to be back and start one.
    pub fn is_after(&self, started: i64, boot_id: Option<&str>) -> bool {
        let hex = |id: &str| id.bytes().filter(|byte| *byte != b'-').collect::<Vec<_>>();
        self.boot_id.as_deref().map(hex) == boot_id.map(hex) && started <= self.second
    }
}

/// Agents that the keeper is about to restart, all of them named before the first is. What their processes of now do in
/// their last moments does not count: they are treated as if they had begun anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Turn {
    /// Tells one turn from another: when it began, seconds since 1970.
    pub second: i64,
    /// `namespace/name`
    pub pods: Vec<String>,
}

impl Turn {
    /// Longer than a keeper needs for all of them. One that was killed, and does not come back, leaves its turn.
    const LONGEST: u64 = 600;

    /// Whether it may still be going on at `second`.
    pub fn may_last(&self, second: i64) -> bool {
        second.abs_diff(self.second) <= Self::LONGEST
    }
}

/// Which CA kubelet believes the hub by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Believed {
    /// Its certificate, PEM.
    pub ca: String,
    /// When kubelet had been restarted for it. What began before may have another one in its `ca.crt`.
    pub since: Moment,
}

/// What the keeper has written down of the node's way, for who runs on the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Course {
    /// When kubelet came to the hub; nothing while it does not work through it.
    pub came: Option<Moment>,
    /// By which CA it believes the hub; nothing while that is not known.
    pub believed: Option<Believed>,
    /// Agents whose turn it is.
    pub turn: Option<Turn>,
    /// By which way kubelet has pods come to the hub, as far as the keeper knows.
    pub way_in: Option<WayIn>,
    /// Some of what runs was, or may have been, led to the hub by its environment.
    pub environment: bool,
}

impl From<Moment> for Course {
    fn from(came: Moment) -> Self {
        Self { came: Some(came), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_began_before_kubelet_came_to_the_hub_talks_past_it() {
        let came = Moment { boot_id: Some("1-a".into()), second: 100 };
        assert!(came.is_after(99, Some("1-a")) && came.is_after(100, Some("1-a")));
        assert!(!came.is_after(101, Some("1-a")));
        assert!(came.is_after(99, Some("1a")), "systemd writes it without dashes");
        assert!(!came.is_after(99, Some("2-a")) && !came.is_after(99, None), "the node was booted since");
    }

    #[test]
    fn a_turn_has_an_end_also_when_its_keeper_has_not_come_back_or_the_clock_was_set() {
        let turn = Turn { second: 1000, pods: Vec::new() };
        assert!(turn.may_last(1000) && turn.may_last(1600) && turn.may_last(990));
        assert!(!turn.may_last(1601) && !turn.may_last(0));
    }

    #[test]
    fn an_agent_is_a_daemon_sets_pod_of_the_cluster_itself_that_uses_the_api() {
        let proxy = Traits {
            namespace: "kube-system",
            controller: Some("DaemonSet"),
            priority_class: Some("system-node-critical"),
            part_of: None,
            uses_api: true,
        };
        let flannel = Traits { namespace: "kube-flannel", ..proxy };
        let plain = Traits { priority_class: None, ..proxy };
        for agent in [proxy, flannel, plain] {
            assert!(agent.is_agent(), "{agent:?}");
        }
        let others = [
            ("somebody's DaemonSet", Traits { namespace: "shop", priority_class: None, ..proxy }),
            ("its class is somebody's own", Traits { priority_class: Some("gold"), ..flannel }),
            ("CoreDNS", Traits { controller: Some("ReplicaSet"), ..proxy }),
            ("a static pod", Traits { controller: Some("Node"), ..proxy }),
            ("a pod that nobody makes again", Traits { controller: None, ..proxy }),
            ("ours", Traits { part_of: Some(names::PART_OF), ..proxy }),
            ("it asks the API server for nothing", Traits { uses_api: false, ..proxy }),
        ];
        for (what, pod) in others {
            assert!(!pod.is_agent(), "{what}");
        }
    }

    #[test]
    fn a_kubeconfig_shows_in_a_name() {
        assert!(is_kubeconfig("kubeconfig.conf") && is_kubeconfig("agent-Kubeconfig"));
        assert!(!is_kubeconfig("config.conf"));
    }
}
