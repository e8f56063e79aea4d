//! The hub is ready, says by which CA it is to be believed, and serves what kubelet will ask it for.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterError};
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
            let outcome = match self.meet_hub().await {
                Ok(_) => self.cluster.hub_serves().await.map_err(KeeperError::from),
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(self.hub_not_ready(limit, error.to_string()).await?);
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// The CA (PEM) with which the hub vouches for itself, and by which it is believed from now on; nothing from one of
    /// a release before, which has a certificate of the cluster's.
    ///
    /// It says so on a port that any process may bind. While systemd holds the socket, nobody else does: seen before
    /// and after the question.
    pub(crate) async fn meet_hub(&mut self) -> Result<Option<String>, KeeperError> {
        self.socket_is_held().await?;
        let node_ca = self.cluster.hub_ca().await?;
        self.socket_is_held().await?;
        self.cluster.believe_hub(node_ca.as_deref());
        Ok(node_ca)
    }

    async fn socket_is_held(&mut self) -> Result<(), KeeperError> {
        let socket = self.systemd.unit(units::SOCKET.name).await?;
        if socket.is_active() {
            return Ok(());
        }
        let message =
            format!("{} is {}, so nobody knows who listens", units::SOCKET.name, socket.active_state);
        Err(ClusterError::Unreachable { what: "the hub", message }.into())
    }

    /// The same, asked until the hub answers.
    pub(super) async fn wait_for_hub(&mut self) -> Result<Option<String>, KeeperError> {
        let limit = self.settings.hub_limit;
        let deadline = Instant::now() + limit;
        loop {
            let error = match self.meet_hub().await {
                Ok(node_ca) => return Ok(node_ca),
                Err(error) => error,
            };
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
