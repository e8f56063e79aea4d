//! Documents that one component writes and another reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::way_in::WayIn;

/// Where a node stands between *vanilla* and *edge*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConversionState {
    /// The keeper is bringing the node to *edge*.
    Converting,
    /// The node is an edge node and has been verified.
    Converted,
    /// A step failed and everything before it was undone; `step` and `message` say which and why.
    Failed,
    /// The keeper is bringing the node back to *vanilla*.
    Reverting,
    /// The node is vanilla again; nothing of ours is left on it.
    Reverted,
}

/// The keeper's report about its node, JSON in
/// [`ANNOTATION_CONVERSION`](crate::names::ANNOTATION_CONVERSION).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversionStatus {
    /// Where the node stands.
    pub state: ConversionState,
    /// Name of the step in progress, or of the one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Number of the step, from 1.
    #[serde(default)]
    pub step_index: u32,
    /// How many steps there are.
    #[serde(default)]
    pub steps: u32,
    /// What happened, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Version of the `yurtd` that is, or is being, installed.
    pub version: String,
    /// When the state was entered, RFC 3339.
    pub time: String,
    /// When kubelet came to the hub, RFC 3339: what it started since knows the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// By which way its pods come to the hub; by their environment where a keeper of before says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_in: Option<NodeWayIn>,
    /// Tunnel servers that the node has no session with, as its tunnel agent says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnel: Vec<TunnelFault>,
    /// What became of the node's infrastructure agents on its way to this state.
    #[serde(default, skip_serializing_if = "Agents::is_empty")]
    pub agents: Agents,
}

/// Why a node has no session with a tunnel server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelFault {
    /// `host:port`
    pub server: String,
    /// For a person.
    pub error: String,
    /// For programs, a word that stays: `WrongCa`. Nothing from an agent of before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// By which way the pods of a node come to the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeWayIn {
    /// Those that begin now.
    pub way: WayIn,
    /// Why it is not the one that was chosen for the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Until when pods were led by their environment, which they keep, RFC 3339; nothing if none was, or all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment_until: Option<String>,
}

/// What the keeper did with the node's infrastructure agents ([`crate::agent`]). Pods are named `namespace/name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agents {
    /// Restarted, in this order, and Ready again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarted: Vec<String>,
    /// Not restarted, or not Ready again in time. What they are is told apart by the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<AgentFailure>,
    /// Left as they were because that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

impl Agents {
    /// True if there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An agent that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentFailure {
    /// The pod; empty when the agents could not even be found.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Why, for a person.
    pub message: String,
}

/// Cluster-wide configuration, JSON under [`CONFIG_KEY`](crate::names::CONFIG_KEY).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterConfig {
    /// `host:port` of every tunnel server as agents reach it; empty with `--skip-tunnel`.
    #[serde(default)]
    pub tunnel_addresses: Vec<String>,
    /// `host:port` of the tunnel server's API endpoint as the plugin reaches it.
    #[serde(default)]
    pub tunnel_api_addresses: Vec<String>,
}

/// State of one agent's session, as the tunnel server shows it at
/// `/apis/tunnel.openyurt.io/v1alpha1/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Node name, from the agent's certificate.
    pub node: String,
    /// Name of the tunnel server that holds the session.
    pub server: String,
    /// Version of the agent.
    pub version: String,
    /// Remote address that the server sees.
    pub remote_address: String,
    /// When the session began, RFC 3339.
    pub connected_since: String,
    /// Last measured round trip, microseconds.
    pub rtt_micros: Option<u64>,
    /// Streams open now.
    pub streams: u32,
    /// Bytes sent to the agent since the session began.
    pub bytes_sent: u64,
    /// Bytes received from the agent since the session began.
    pub bytes_received: u64,
    /// Where the API server finds the node's kubelet, `address:port`, as far as that is redirected on this server's host. The
    /// port is kubelet's own, or one that the controller has given ([`crate::kubelet_port`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirected: Vec<String>,
    /// Addresses of the node's kubelet that are not redirected on this server's host, each with the reason: plain kubectl
    /// cannot use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_redirected: Vec<String>,
    /// Another machine shows the same certificate: most likely one of the two is a copy of the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<DuplicateAgent>,
}

/// Two agents with one node's certificate: the newer connection took the place of one that still answered. Forgotten
/// when it has not happened for an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DuplicateAgent {
    /// How often it has happened.
    pub times: u32,
    /// When it happened last, RFC 3339.
    pub last: String,
    /// Where the connection came from that was there then.
    pub older_address: String,
    /// Where the one came from that took its place.
    pub newer_address: String,
}

/// Answer of `/apis/tunnel.openyurt.io/v1alpha1/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatusList {
    /// `tunnel.openyurt.io/v1alpha1`.
    pub api_version: String,
    /// `AgentStatusList`.
    pub kind: String,
    /// One entry a session of an agent: those of the server that was asked, and those of its peers.
    pub items: Vec<AgentStatus>,
    /// Peers that the server could not ask for theirs, by the name of their node, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub silent: BTreeMap<String, String>,
    /// Nodes that were connected to this server and are not, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostAgent>,
    /// The redirect on this server's host; nothing from a server of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectStatus>,
}

/// A node whose session has ended, and no other has begun on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostAgent {
    /// Node name, from the agent's certificate.
    pub node: String,
    /// Name of the tunnel server that held the session.
    pub server: String,
    /// Remote address that the server saw.
    pub remote_address: String,
    /// When it ended, RFC 3339.
    pub last_seen: String,
    /// Why, for a person.
    pub reason: String,
}

/// How a tunnel server's redirect of connections to edge nodes' kubelets stands on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedirectStatus {
    /// Name of the server's node.
    pub server: String,
    /// Whether plain kubectl finds its way.
    pub state: RedirectState,
    /// Kubelet addresses that are redirected.
    pub kubelets: u32,
    /// How often somebody else had changed the rules and they were put back.
    pub repaired: u64,
    /// Since when it stands so, RFC 3339.
    pub since: String,
    /// Why it is not in place, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether the rules are in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectState {
    /// The cluster's nodes are not known yet.
    Waiting,
    /// They were seen in the kernel, whole.
    InPlace,
    /// The kernel does not take them, or does not say what it has.
    Failing,
}
