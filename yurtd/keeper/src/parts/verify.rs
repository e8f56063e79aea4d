//! kubelet is back after a restart, and its containers have not noticed.

use jiff::Timestamp;
use tokio::time::Instant;

use super::drop_in::uses_hub;
use crate::cluster::{Cluster, ClusterError};
use crate::containers::{self, Before};
use crate::engine::{Engine, KeeperError};
use crate::journal::Journal;
use crate::systemd::Systemd;
use crate::units;

/// What a kubelet that is back has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It renews its Lease.
    Lease,
    /// Its node is Ready, too.
    Ready,
}

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Writes down what runs, as long as it is not kubelet's restart that is to be judged by it.
    pub(crate) async fn remember_containers(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        if uses_hub(self.kubelet().await?.1.as_ref()) {
            return Ok(());
        }
        let deadline = Instant::now() + self.settings.kubelet_limit;
        let running = self.ask(deadline, async |cluster| cluster.containers().await).await?;
        journal.before = Some(Before {
            boot_id: self.boot_id(),
            ids: containers::settled(&running, (self.settings.now)()),
            restarted: None,
        });
        journal.save(&self.host)?;
        Ok(())
    }

    /// Changes with every boot of the node.
    pub(super) fn boot_id(&self) -> Option<String> {
        let text = self.host.read_text("/proc/sys/kernel/random/boot_id").ok().flatten();
        text.map(|text| text.trim().to_owned())
    }

    /// kubelet works through the hub, and every container that ran for a while still does.
    pub(crate) async fn verify(&mut self, journal: &Journal) -> Result<(), KeeperError> {
        self.kubelet_back(true, Wanted::Ready).await?;
        let boot_id = self.boot_id();
        let Some(before) = journal.before.as_ref().filter(|before| before.boot_id == boot_id) else {
            tracing::info!("the node was booted since, there are no containers to compare");
            return Ok(());
        };
        // Whatever a restart does to containers it does at once; what is there after a while stays.
        let until = Instant::now() + self.settings.settle;
        let deadline = until + self.settings.kubelet_limit;
        loop {
            let at = Instant::now();
            let running = self.ask(deadline, async |cluster| cluster.containers().await).await?;
            let containers = containers::replaced(before, &running);
            if !containers.is_empty() {
                return Err(KeeperError::ContainersChanged { containers });
            }
            if at >= until {
                return Ok(());
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// Waits until kubelet runs with the right kubeconfig, has renewed its Lease since, and its node is as wanted. The
    /// Lease tells by changing, not by its time: a node's clock may jump when it boots. A question that was not answered
    /// is asked again until the time is up.
    pub(crate) async fn kubelet_back(
        &mut self,
        through_hub: bool,
        wanted: Wanted,
    ) -> Result<(), KeeperError> {
        let limit = self.settings.kubelet_limit;
        let deadline = Instant::now() + limit;
        let mut first = None;
        loop {
            let mut unanswered = None;
            let lease = match self.heartbeat(&mut first, wanted).await {
                Ok(news) => news,
                Err(error) if error.is_transient() => {
                    let text = error.to_string();
                    unanswered = Some(error);
                    Some(text)
                }
                Err(error) => return Err(error.into()),
            };
            let (unit, arguments) = self.kubelet().await?;
            let last = if !unit.is_active() || arguments.is_none() {
                format!("kubelet.service is {} ({})", unit.active_state, unit.service.result)
            } else if uses_hub(arguments.as_ref()) != through_hub {
                let found = arguments.and_then(|arguments| arguments.kubeconfig).unwrap_or_default();
                format!(
                    "kubelet runs with --kubeconfig={found}; something else sets ${}",
                    units::KUBECONFIG_VARIABLE
                )
            } else if let Some(text) = lease {
                text
            } else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(match unanswered {
                    Some(error) if error.is_unreachable() => error.into(),
                    _ => KeeperError::KubeletNotBack { limit, last },
                });
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    /// What kubelet has not yet done since `first`, the first Lease that was seen.
    async fn heartbeat(
        &mut self,
        first: &mut Option<Option<Timestamp>>,
        wanted: Wanted,
    ) -> Result<Option<String>, ClusterError> {
        let first = match *first {
            Some(lease) => lease,
            None => *first.insert(self.cluster.lease().await?),
        };
        if self.cluster.lease().await? == first {
            return Ok(Some("it has not renewed its Lease".into()));
        }
        if wanted == Wanted::Lease {
            return Ok(None);
        }
        let ready = self.cluster.node().await?.ready;
        Ok((!ready).then(|| "the node is not Ready".into()))
    }
}
