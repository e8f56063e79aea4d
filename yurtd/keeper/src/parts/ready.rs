//! The hub is ready, and serves what kubelet will ask it for.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::engine::{Engine, KeeperError};
use crate::systemd::{Systemd, SystemdError};
use crate::units;

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Waits until the hub says that it is ready.
    pub(crate) async fn hub_ready(&mut self, limit: Duration) -> Result<(), KeeperError> {
        let deadline = Instant::now() + limit;
        loop {
            let Err(error) = self.cluster.hub_ready().await else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(self.hub_not_ready(limit, error.to_string()).await?);
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// Waits until the hub serves the node's own views.
    pub(crate) async fn hub_serves(&mut self, limit: Duration) -> Result<(), KeeperError> {
        let deadline = Instant::now() + limit;
        loop {
            let Err(error) = self.cluster.hub_serves().await else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(self.hub_not_ready(limit, error.to_string()).await?);
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// What is known about a hub that is not ready: its answer, and what systemd says of it.
    async fn hub_not_ready(&mut self, limit: Duration, answer: String) -> Result<KeeperError, SystemdError> {
        let unit = self.systemd.unit(units::SERVICE.name).await?;
        let mut last = format!("{answer}; {} is {}", units::SERVICE.name, unit.active_state);
        if unit.service.restarts > 0 {
            last =
                format!("{last}, restarted {} times (last: {})", unit.service.restarts, unit.service.result);
        }
        if !unit.service.status_text.is_empty() {
            last = format!("{last}, {:?}", unit.service.status_text);
        }
        Ok(KeeperError::HubNotReady { limit, last })
    }
}
