//! How a server leaves: a roll-out takes up to half of them away at a time.
//!
//! Agents and peers are asked to go elsewhere (GOAWAY). For as long as streams run in this server's own sessions it still
//! takes connections, of its host's API server above all, and hands them to its peers; then it takes none any more, and what
//! has not ended by itself in time is cut.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::peers::{Asked, Peers};
use super::registry::Registry;

/// How often to look whether streams have ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a server has that goes elsewhere.
pub(super) struct Drain {
    pub(super) registry: Arc<Registry>,
    pub(super) asked: Arc<Asked>,
    pub(super) peers: Arc<Peers>,
}

impl Drain {
    /// Asks everybody to go elsewhere, and leads new streams there while old ones end, at most until `deadline`. Without a
    /// peer nothing new can be led anywhere.
    pub(super) async fn hand_over(&self, deadline: Instant) {
        self.registry.go_away();
        self.asked.go_away();
        while self.peers.any() && self.registry.streams() > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
