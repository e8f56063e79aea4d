//! The API server (directly and through the hub) and the hub's health, as the keeper asks them: always with the
//! node's own client certificate, so that the keeper can do nothing that kubelet could not.
//!
//! This file is what can be asked and what can go wrong; [`api`] asks, [`objects`] and [`agents`] are what is read of the
//! answers, [`follow`] watches the own Node, [`health`] asks the hub how it is.

mod agents;
mod api;
mod follow;
mod health;
mod objects;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use yurt_api::doctor::TunnelSession;
use yurt_api::status::ConversionStatus;
use yurt_api::way_in::WayIn;
pub(crate) use yurt_node::api_client::Access;
use yurt_node::api_client::ApiError;

pub(crate) use self::api::ApiCluster;
pub(crate) use self::follow::Follower;
pub(crate) use self::objects::OwnNode;
#[cfg(test)]
pub(crate) use self::objects::Pod;
use super::agents::Agent;
use super::containers::Running;

/// Why an answer did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// Nobody answers: the link is down, or nothing listens.
    #[error("cannot reach {what}: {message}")]
    Unreachable { what: &'static str, message: String },
    /// Somebody answers, but says no.
    #[error("{what} refused: {message}")]
    Refused {
        what: &'static str,
        /// HTTP status.
        code: u16,
        message: String,
    },
    /// Somebody answers, but not what was asked for.
    #[error("the answer of {what} cannot be read: {message}")]
    Unreadable { what: &'static str, message: String },
    #[error("kubelet's client certificate cannot be used: {0}")]
    Credentials(String),
}

impl ClusterError {
    fn of(route: Route, error: ApiError) -> Self {
        let what = route.what();
        match error {
            ApiError::Unreachable(message) => Self::Unreachable { what, message },
            ApiError::Refused { code, message, .. } => Self::Refused { what, code: code.as_u16(), message },
            ApiError::Unreadable(message) => Self::Unreadable { what, message },
        }
    }

    /// Whether this may pass by itself when the link is back.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the same question may be answered in a moment: nobody was reached, too many ask (429), or the API server
    /// has a fault that passes (5xx: its etcd elects a leader, it starts or stops).
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => *code == 429 || *code >= 500,
            Self::Unreadable { .. } | Self::Credentials(_) => false,
        }
    }
}

/// By which way pods come to the hub, as it says; one of before says nothing, and knows their environment alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HubWayIn {
    /// Which one it is.
    #[serde(rename = "wayIn")]
    pub(crate) way: WayIn,
    /// Why it is not the one that it was told.
    #[serde(rename = "wayInWhy")]
    pub(crate) why: Option<String>,
    /// At the Service's address they are led there.
    #[serde(rename = "wayInOpen")]
    pub(crate) open: bool,
    /// Agents of this turn are as if they had begun anew.
    #[serde(rename = "wayInTurn")]
    pub(crate) turn: Option<i64>,
}

/// By which way a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the API server that kubelet's own kubeconfig names.
    Direct,
    /// To the hub on this node.
    Hub,
}

impl Route {
    fn what(self) -> &'static str {
        match self {
            Self::Direct => "the API server",
            Self::Hub => "the hub",
        }
    }
}

/// Everything that the keeper asks over a connection. Implemented over HTTP and in memory for the tests that kill
/// the keeper between any two steps.
pub(crate) trait Cluster {
    /// From now on, this API server and these credentials.
    fn set_access(&mut self, access: Access);
    /// The own Node, from the API server itself.
    async fn node(&mut self) -> Result<OwnNode, ClusterError>;
    /// By how many seconds the node's clock differs from the API server's.
    async fn clock_skew(&mut self) -> Result<i64, ClusterError>;
    /// When kubelet last renewed its Lease, from the API server itself.
    async fn lease(&mut self) -> Result<Option<Timestamp>, ClusterError>;
    /// The containers that run on the node.
    async fn containers(&mut self) -> Result<Running, ClusterError>;
    /// The node's infrastructure agents.
    async fn agents(&mut self, route: Route) -> Result<Vec<Agent>, ClusterError>;
    /// Data of a ConfigMap of ours; `None` when it is not there (yet).
    async fn config_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ClusterError>;
    /// Writes the status into the own Node's annotation.
    async fn report(&mut self, status: &ConversionStatus) -> Result<(), ClusterError>;
    /// Whether the hub says that it is ready.
    async fn hub_ready(&mut self) -> Result<(), ClusterError>;
    /// By which way pods come to the hub, as it says.
    async fn hub_way_in(&mut self) -> Result<HubWayIn, ClusterError>;

    /// How the sessions of its tunnel agent fare; none from a hub of before.
    async fn hub_tunnel(&mut self) -> Result<Vec<TunnelSession>, ClusterError>;
    /// The CA (PEM) with which the hub vouches for itself; `None` from a hub of before, which has none of its own.
    async fn hub_ca(&mut self) -> Result<Option<String>, ClusterError>;
    /// From now on the hub is believed by this CA beside the cluster's.
    fn believe_hub(&mut self, node_ca: Option<&str>);
    /// Whether the hub serves the node's own Node and pods.
    async fn hub_serves(&mut self) -> Result<(), ClusterError>;
}
