//! What the keeper reads of the cluster's objects: these fields, and no others are ever in memory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use yurt_api::names;

use super::super::containers::{Container, End, Running};

/// What the keeper wants to know of its Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnNode {
    pub ready: bool,
    pub kubelet_version: String,
    /// The label that makes it an edge node is there.
    pub edge: bool,
    /// [`names::ANNOTATION_TARGET`]
    pub target: Option<String>,
    /// [`names::ANNOTATION_AGENTS`] asks to leave them as they are.
    pub keep_agents: bool,
    /// [`names::ANNOTATION_CONVERSION`]
    pub conversion: Option<String>,
}

/// A Node.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    metadata: NodeMetadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Deserialize)]
struct NodeMetadata {
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    conditions: Option<Vec<Condition>>,
    node_info: Option<NodeInfo>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    kubelet_version: String,
}

impl From<Node> for OwnNode {
    fn from(node: Node) -> Self {
        let mut annotations = node.metadata.annotations.unwrap_or_default();
        let labels = node.metadata.labels.unwrap_or_default();
        let conditions = node.status.conditions.unwrap_or_default();
        Self {
            ready: conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True"),
            kubelet_version: node.status.node_info.map(|info| info.kubelet_version).unwrap_or_default(),
            edge: labels
                .get(names::LABEL_EDGE_WORKER)
                .or_else(|| labels.get(names::LABEL_EDGE_WORKER_LEGACY))
                .is_some_and(|value| value == "true"),
            target: annotations.remove(names::ANNOTATION_TARGET),
            keep_agents: annotations
                .get(names::ANNOTATION_AGENTS)
                .is_some_and(|value| value == names::AGENTS_KEEP),
            conversion: annotations.remove(names::ANNOTATION_CONVERSION),
        }
    }
}

/// A Lease.
#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    spec: Option<LeaseSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<Timestamp>,
}

impl Lease {
    pub(super) fn renewed(self) -> Option<Timestamp> {
        self.spec?.renew_time
    }
}

/// A ConfigMap.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigMap {
    pub(super) data: Option<BTreeMap<String, String>>,
}

/// A Pod.
#[derive(Debug, Deserialize)]
pub(crate) struct Pod {
    metadata: PodMetadata,
    status: Option<PodStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMetadata {
    uid: Option<String>,
    deletion_timestamp: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

/// How a container is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    state: ContainerState,
    #[serde(default)]
    last_state: ContainerState,
}

#[derive(Debug, Default, Deserialize)]
struct ContainerState {
    running: Option<RunningState>,
    terminated: Option<TerminatedState>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunningState {
    started_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TerminatedState {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    exit_code: i32,
    finished_at: Option<Timestamp>,
    reason: Option<String>,
}

impl Pod {
    /// Adds the containers that run, unless the pod is on its way out. Ephemeral containers are people's, and end with
    /// them.
    pub(crate) fn add_to(self, running: &mut Running) {
        let (None, Some(uid), Some(status)) =
            (self.metadata.deletion_timestamp, self.metadata.uid, self.status)
        else {
            return;
        };
        for container in
            [status.container_statuses, status.init_container_statuses].into_iter().flatten().flatten()
        {
            let started = container.state.running.and_then(|running| running.started_at);
            let (Some(id), Some(started)) = (container.container_id, started) else { continue };
            let previous = container.last_state.terminated.map(End::from);
            running.insert(format!("{uid}/{}", container.name), Container { id, started, previous });
        }
    }
}

impl From<TerminatedState> for End {
    fn from(ended: TerminatedState) -> Self {
        Self {
            id: ended.container_id,
            finished: ended.finished_at,
            code: ended.exit_code,
            reason: ended.reason.unwrap_or_default(),
        }
    }
}
