//! The tunnel as the endpoint sees it: a way to a node's kubelet, who is connected and who was, and how far away a node is.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use yurt_api::status::{AgentStatus, LostAgent};

use crate::server::peers::Said;
use crate::server::registry::DialError;

/// A connection to a node's kubelet.
pub(in crate::server) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the endpoint needs of the tunnel. It knows no sessions.
pub(in crate::server) trait Tunnel: Send + Sync {
    /// Opens a stream to the kubelet of `node`, and gives up by itself.
    fn dial(&self, node: &str) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>>;

    /// The agents that are connected to this server now, one entry each.
    fn agents(&self) -> Vec<AgentStatus>;

    /// One entry a session of an agent with any server, this one's first. Comes back soon, also when peers say nothing.
    fn everywhere(&self) -> BoxFuture<'static, Said>;

    /// Nodes that were connected and are not, the newest first.
    fn lost(&self) -> Vec<LostAgent>;

    /// How long the agent of `node` takes to answer now, if it does `within` this time.
    fn measure(&self, node: &str, within: Duration) -> BoxFuture<'static, Option<Duration>>;
}
