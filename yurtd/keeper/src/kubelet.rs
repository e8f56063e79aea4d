//! The two steps that concern kubelet itself: it works through the hub, or without it again, and its containers do not
//! notice.

use jiff::Timestamp;
use tokio::time::Instant;
use yurt_api::names;

use super::cluster::{Cluster, ClusterError};
use super::containers::{self, Before};
use super::engine::{Engine, KeeperError};
use super::journal::Journal;
use super::look::{self, Arguments};
use super::steps::fingerprint;
use super::systemd::{Systemd, Unit};
use super::{kubeconfig, units};

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Writes down what runs, as long as it is not kubelet's restart that is to be judged by it.
    pub(super) async fn remember_containers(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        if uses_hub(self.kubelet().await?.1.as_ref()) {
            return Ok(());
        }
        let deadline = Instant::now() + self.settings.kubelet_limit;
        let running = self.ask(deadline, async |cluster| cluster.containers().await).await?;
        journal.before = Some(Before {
            boot_id: self.boot_id(),
            ids: containers::settled(&running, Timestamp::now()),
            restarted: None,
        });
        journal.save(&self.host)?;
        Ok(())
    }

    /// kubelet runs with the kubeconfig that leads to the hub.
    pub(super) async fn ensure_kubelet(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        let facts = self.take_access(&journal.original)?;
        let text = kubeconfig::with_server(&facts.kubeconfig_text, &look::hub_url())
            .map_err(|error| KeeperError::Refused(format!("kubelet's kubeconfig {error}")))?;
        let mut changed = self.host.write(names::KUBELET_KUBECONFIG, text.as_bytes(), 0o600)?;
        self.host.make_dir(drop_in_dir(), 0o755)?;
        let drop_in = units::kubelet_drop_in(&journal.original.other_flags);
        changed |= self.host.write(names::KUBELET_DROP_IN, drop_in.as_bytes(), 0o644)?;
        let (kubelet, arguments) = self.kubelet().await?;
        if changed || kubelet.need_reload {
            self.systemd.reload().await?;
        }
        let wanted = fingerprint(&[text.as_bytes(), drop_in.as_bytes()]);
        if !uses_hub(arguments.as_ref()) || journal.applied_kubelet.as_ref() != Some(&wanted) {
            tracing::info!("restarting kubelet, which then works through the hub");
            if let Some(before) = &mut journal.before
                && before.restarted.is_none()
            {
                before.restarted = Some(Timestamp::now().as_second());
                journal.save(&self.host)?;
            }
            self.systemd.restart(units::KUBELET).await?;
        }
        if journal.applied_kubelet.as_ref() != Some(&wanted) {
            journal.applied_kubelet = Some(wanted);
            journal.save(&self.host)?;
        }
        Ok(())
    }

    pub(super) async fn release_kubelet(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        let (_, arguments) = self.kubelet().await?;
        if uses_hub(arguments.as_ref()) {
            // Not away from the hub while there is nothing else to go to.
            self.cluster.node().await?;
        }
        self.host.remove(names::KUBELET_DROP_IN)?;
        self.remove_folder_of_ours(journal, drop_in_dir())?;
        // Always: a keeper may have been killed between the removal and the reload.
        self.systemd.reload().await?;
        if uses_hub(arguments.as_ref()) || arguments.is_none() {
            tracing::info!("restarting kubelet, which then works without the hub");
            self.systemd.restart(units::KUBELET).await?;
        }
        self.kubelet_back(false).await?;
        self.host.remove(names::KUBELET_KUBECONFIG)?;
        Ok(())
    }

    /// kubelet's unit, and the arguments of its process.
    async fn kubelet(&mut self) -> Result<(Unit, Option<Arguments>), KeeperError> {
        let unit = self.systemd.unit(units::KUBELET).await?;
        let arguments = look::arguments(&self.host, unit.service.main_pid)?;
        Ok((unit, arguments))
    }

    /// Changes with every boot of the node.
    fn boot_id(&self) -> Option<String> {
        let text = self.host.read_text("/proc/sys/kernel/random/boot_id").ok().flatten();
        text.map(|text| text.trim().to_owned())
    }

    pub(super) async fn verify(&mut self, journal: &Journal) -> Result<(), KeeperError> {
        self.kubelet_back(true).await?;
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

    /// Waits until kubelet runs with the right kubeconfig, has renewed its Lease since, and its node is Ready. The
    /// Lease tells by changing, not by its time: a node's clock may jump when it boots. A question that was not answered
    /// is asked again until the time is up.
    async fn kubelet_back(&mut self, through_hub: bool) -> Result<(), KeeperError> {
        let limit = self.settings.kubelet_limit;
        let deadline = Instant::now() + limit;
        let mut first = None;
        loop {
            let mut unanswered = None;
            let lease = match self.heartbeat(&mut first).await {
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
    ) -> Result<Option<String>, ClusterError> {
        let first = match *first {
            Some(lease) => lease,
            None => *first.insert(self.cluster.lease().await?),
        };
        if self.cluster.lease().await? == first {
            return Ok(Some("it has not renewed its Lease".into()));
        }
        let ready = self.cluster.node().await?.ready;
        Ok((!ready).then(|| "the node is not Ready".into()))
    }
}

fn uses_hub(arguments: Option<&Arguments>) -> bool {
    arguments.is_some_and(|found| found.kubeconfig.as_deref() == Some(names::KUBELET_KUBECONFIG))
}

fn drop_in_dir() -> &'static str {
    names::KUBELET_DROP_IN.rsplit_once('/').map_or(names::SYSTEMD_DIR, |(folder, _)| folder)
}
