//! A converted node stays converted: what was removed is put back, what changed upstream is carried over, and a new
//! release of this program takes the old one's place only if it works.

use std::time::Instant;

use yurt_api::names;
use yurt_api::status::{ConversionState, ConversionStatus};

use super::cluster::{Cluster, OwnNode};
use super::engine::since;
use super::engine::{Engine, KeeperError};
use super::journal::{Journal, Release};
use super::parts::{Changed, Wanted};
use super::systemd::Systemd;
use super::units;

/// Another release is in use.
const REPLACED: Changed = Changed { program: true, configuration: true };

impl<S: Systemd, C: Cluster> Engine<S, C> {
    pub(super) async fn maintain(
        &mut self,
        mut journal: Journal,
        seen: Option<&OwnNode>,
    ) -> Result<(), KeeperError> {
        if let Some(seen) = seen
            && !seen.kubelet_version.is_empty()
            && seen.kubelet_version != journal.kubelet_version
        {
            journal.kubelet_version.clone_from(&seen.kubelet_version);
            journal.save(&self.host)?;
        }
        let mut message = String::new();
        if let Some(old) = journal.previous.clone() {
            // Killed while trying a release: nobody knows whether it works.
            message = self.try_release(&mut journal, old).await?;
        } else if journal.release != self.release && journal.rejected.as_ref() != Some(&self.release) {
            // Health with the link up cannot be seen while it is down.
            self.take_access(&journal.original)?;
            if self.cluster.node().await.is_ok() {
                let old = std::mem::replace(&mut journal.release, self.release.clone());
                journal.previous = Some(old.clone());
                journal.save(&self.host)?;
                message = self.try_release(&mut journal, old).await?;
            }
        } else if let Some(rejected) = &journal.rejected
            && *rejected == self.release
            && let Some(last) = &self.reported
        {
            message.clone_from(&last.message);
        }
        let repaired = self.repair(&mut journal).await;
        if let Err(error) = &repaired {
            message = format!("cannot keep the node as it should be: {error}");
        } else if self.kubelet_stopped && message.is_empty() {
            message = format!("{} is stopped, and not by the keeper, which leaves it so", units::KUBELET);
        }
        self.say_converted(&journal, &message).await;
        repaired
    }

    /// The node is an edge node, and this is to be told of it.
    pub(super) async fn say_converted(&mut self, journal: &Journal, message: &str) {
        let sessions = self.cluster.hub_tunnel().await;
        let status = ConversionStatus {
            tunnel: self.tunnel.of(sessions.ok().as_deref(), Instant::now()),
            version: journal.release.version.clone(),
            agents: journal.agents.clone(),
            since: since(journal),
            way_in: self.way_in(journal),
            ..self.status(ConversionState::Converted, message)
        };
        self.say_status(status).await;
    }

    /// Everything as the steps left it; each part looks before it acts.
    async fn repair(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        let release = journal.release.clone();
        // Sweeps up after a keeper that was killed while it wrote.
        journal.save(&self.host)?;
        // An old release that is in use because the new one did not work cannot be installed again by this program.
        let installed = self.install(&release);
        let relinked = self.host.link(names::CURRENT_LINK, release.folder().as_ref())?;
        let reconfigured = self.configure(journal).await?;
        self.ensure_service(journal, Changed { program: relinked, configuration: reconfigured }).await?;
        if self.ensure_drop_in(journal).await? && journal.agents_due {
            self.kubelet_back_if_seen(Wanted::Lease).await?;
        }
        if let Err(error) = self.agents_to_hub(journal).await {
            self.report_agents(journal, &error)?;
        }
        installed
    }

    /// Puts the journal's release in the place of `old`; swaps back if it does not work. Returns what to report.
    async fn try_release(&mut self, journal: &mut Journal, old: Release) -> Result<String, KeeperError> {
        let new = journal.release.clone();
        let outcome = if new == self.release {
            tracing::info!(from = %old.folder(), to = %new.folder(), "upgrading");
            self.switch(journal, &new).await
        } else {
            // A third release took over before it was known whether the second works.
            Err(KeeperError::Refused("the upgrade was not finished".into()))
        };
        match outcome {
            Ok(()) => {
                journal.previous = None;
                journal.rejected = None;
                journal.save(&self.host)?;
                self.remove_other_releases(&new)?;
                tracing::info!(release = %new.folder(), "upgraded");
                Ok(String::new())
            }
            Err(error) => {
                tracing::error!(%error, release = %new.folder(), "the release does not work, putting the old one back");
                self.verified = None;
                journal.release = old.clone();
                // A keeper that was killed while it put the old one back comes here with the old one alone.
                if new != old {
                    journal.rejected = Some(new.clone());
                }
                journal.save(&self.host)?;
                // By the program that knows the table: the one that is put back may be of before.
                if let Err(error) = self.release_address().await {
                    tracing::warn!(%error, "the table of the release that goes may stay");
                }
                self.host.link(names::CURRENT_LINK, old.folder().as_ref())?;
                // The old one may not read all that the new one does.
                if let Err(error) = self.configure(journal).await {
                    tracing::warn!(%error, "the hub's configuration stays as the new release has it");
                }
                self.ensure_service(journal, REPLACED).await?;
                journal.previous = None;
                journal.save(&self.host)?;
                let new = journal.rejected.as_ref().unwrap_or(&new);
                Ok(format!("version {} did not work and was swapped back: {error}", new.version))
            }
        }
    }

    async fn switch(&mut self, journal: &mut Journal, release: &Release) -> Result<(), KeeperError> {
        self.verified = None;
        // One that was not Ready before has its own reasons.
        let ready = self.cluster.node().await.is_ok_and(|node| node.ready);
        self.install(release)?;
        self.host.link(names::CURRENT_LINK, release.folder().as_ref())?;
        self.configure(journal).await?;
        self.ensure_service(journal, REPLACED).await?;
        let limit = self.settings.upgrade_limit;
        self.hub_ready(limit).await?;
        self.hub_serves(limit).await?;
        // The new hub may vouch for itself with something that kubelet does not know yet. kubelet is told of it beside
        // what it knows, so that it works with both: one of a release before is also what is swapped back.
        if self.ensure_drop_in(journal).await? {
            self.kubelet_back_if_seen(if ready { Wanted::Ready } else { Wanted::Lease }).await?;
        }
        Ok(())
    }

    /// Waits until kubelet is back on the hub. The hub serves it without the link, too; whether it renews its Lease
    /// cannot be seen then.
    async fn kubelet_back_if_seen(&mut self, wanted: Wanted) -> Result<(), KeeperError> {
        match self.kubelet_back(true, wanted).await {
            Err(KeeperError::Cluster(error)) if error.is_unreachable() => Ok(()),
            outcome => outcome,
        }
    }
}
