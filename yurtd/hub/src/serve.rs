//! The hub's front: sockets, TLS, HTTP, and the way of one request through the hub.
//!
//! ```text
//! sockets, ipv6 → listener (TLS in server_tls, one task a connection) → pipeline ⇄ plan
//!                                                                          → read (views)          → respond
//!                                                                          → forward (API server)  → respond
//!                                                                          → local (what is known) → respond
//! ```
//!
//! [`pipeline`] is the whole way in one function, which carries out what [`plan`] decides; [`respond`] is the only
//! place where errors become HTTP. The health port ([`health`]) is another listener altogether: no tokens, no objects,
//! nothing secret.

pub(crate) mod connection;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod ipv6;
pub(crate) mod listener;
pub(crate) mod local;
pub(crate) mod metered;
pub(crate) mod metrics;
pub(crate) mod pipeline;
pub(crate) mod plan;
pub(crate) mod read;
pub(crate) mod respond;
pub(crate) mod server_tls;
pub mod sockets;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use tokio_util::sync::CancellationToken;

use crate::cluster::Checked;
use crate::filter::Filters;
use crate::limits::{Accounts, Observed};
use crate::link::Link;
use crate::offline::Offline;
use crate::replica::Views;
use crate::request::Authenticator;
use crate::upstream::Upstream;
use yurt_node::supervise::Tasks;

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of a response to a local client.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Everything a request may need.
pub(crate) struct Hub {
    /// Who asks.
    pub(crate) authenticator: Authenticator,
    /// What each of them has under way.
    pub(crate) accounts: Accounts,
    /// What is copied of passing answers.
    pub(crate) observed: Observed,
    /// What is listed and watched.
    pub(crate) views: Views,
    /// The API servers.
    pub(crate) upstream: Upstream,
    /// Whether they can be reached.
    pub(crate) link: Link,
    /// Whether they are of the cluster that the store is of.
    pub(crate) cluster: Checked,
    /// Answers without them.
    pub(crate) offline: Arc<Offline>,
    /// What kubelet is told differently.
    pub(crate) filters: Filters,
    /// What is counted.
    pub(crate) metrics: metrics::Metrics,
    /// Cancelled when the process is told to stop: watches end, connections drain.
    pub(crate) stop: CancellationToken,
    /// Owns every task that outlives its request.
    pub(crate) tasks: Tasks,
}
