//! The tunnel as the endpoint sees it: a way to a node's kubelet, and a list of who is connected.

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use yurt_api::status::AgentStatus;

use crate::server::registry::DialError;

/// A connection to a node's kubelet.
pub(in crate::server) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type DialFn = dyn Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync;
type ListFn = dyn Fn() -> Vec<AgentStatus> + Send + Sync;

/// What the endpoint needs of the tunnel. Two functions, so that it knows no sessions.
pub(in crate::server) struct Tunnel {
    dial: Box<DialFn>,
    list: Box<ListFn>,
}

impl Tunnel {
    /// `dial` opens a stream to the kubelet of the node it is given and gives up by itself; `list` has one
    /// entry a connected agent.
    pub(in crate::server) fn new(
        dial: impl Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync + 'static,
        list: impl Fn() -> Vec<AgentStatus> + Send + Sync + 'static,
    ) -> Self {
        Self { dial: Box::new(dial), list: Box::new(list) }
    }

    /// A stream to the kubelet of `node`.
    pub(super) async fn dial(&self, node: &str) -> Result<Box<dyn Stream>, DialError> {
        (self.dial)(node.to_owned()).await
    }

    /// The agents that are connected now.
    pub(super) fn agents(&self) -> Vec<AgentStatus> {
        (self.list)()
    }
}
