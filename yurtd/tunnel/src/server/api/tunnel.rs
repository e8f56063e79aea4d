//! The tunnel as the endpoint sees it: a way to a node's kubelet, and a list of who is connected where.

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::server::peers::Said;
use crate::server::registry::DialError;

/// A connection to a node's kubelet.
pub(in crate::server) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type DialFn = dyn Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync;
type ListFn = dyn Fn() -> BoxFuture<'static, Said> + Send + Sync;

/// What the endpoint needs of the tunnel. Two functions, so that it knows no sessions.
pub(in crate::server) struct Tunnel {
    dial: Box<DialFn>,
    list: Box<ListFn>,
}

impl Tunnel {
    /// `dial` opens a stream to the kubelet of the node it is given and gives up by itself; `list` has one
    /// entry a session of an agent, this server's first, and comes back soon.
    pub(in crate::server) fn new(
        dial: impl Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync + 'static,
        list: impl Fn() -> BoxFuture<'static, Said> + Send + Sync + 'static,
    ) -> Self {
        Self { dial: Box::new(dial), list: Box::new(list) }
    }

    /// A stream to the kubelet of `node`.
    pub(super) async fn dial(&self, node: &str) -> Result<Box<dyn Stream>, DialError> {
        (self.dial)(node.to_owned()).await
    }

    /// The agents that are connected now.
    pub(super) async fn agents(&self) -> Said {
        (self.list)().await
    }
}
