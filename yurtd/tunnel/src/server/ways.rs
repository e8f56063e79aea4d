//! The ways to a node's kubelet through the tunnel: by a session of this server's, or by a peer that has one.

use std::sync::Arc;

use yurt_api::tunnel::Target;

use super::peers::Peers;
use super::registry::{DialError, Registry};
use crate::mux::TunnelStream;

/// This server's sessions, and then the peers'.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    registry: Arc<Registry>,
    peers: Arc<Peers>,
}

impl Ways {
    pub(super) fn new(registry: Arc<Registry>, peers: Arc<Peers>) -> Self {
        Self { registry, peers }
    }

    /// Opens a stream to the kubelet of `node`.
    ///
    /// # Errors
    ///
    /// [`DialError`]; [`DialError::NotConnected`] when nobody who answers has a session with the node.
    pub(super) async fn dial(&self, node: &str) -> Result<TunnelStream, DialError> {
        match self.registry.dial(node, Target::Kubelet).await {
            // It may have one with another server, and has if this one drains.
            Err(own @ (DialError::NotConnected(_) | DialError::SessionEnded(_))) => {
                match self.peers.dial(node).await {
                    Err(DialError::NotConnected(_)) => Err(own),
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }
}
