//! kubelet's drop-in: it works through the hub, and believes it, or works without it again.

use yurt_api::agent::{Believed, Moment};
use yurt_api::names;
use yurt_api::status::Agents;
use yurt_api::way_in::WayIn;

use super::{Wanted, fingerprint};
use crate::arguments::{self, Arguments};
use crate::cluster::Cluster;
use crate::engine::{Engine, KeeperError};
use crate::journal::Journal;
use crate::look::Facts;
use crate::systemd::{Systemd, Unit};
use crate::{kubeconfig, look, units};

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// kubelet runs with the kubeconfig that leads to the hub and believes it. Returns whether kubelet was restarted.
    pub(crate) async fn ensure_drop_in(&mut self, journal: &mut Journal) -> Result<bool, KeeperError> {
        let facts = self.take_access(&journal.original)?;
        let text = self.kubeconfig_for_hub(&facts).await?;
        let told = self.host.read_text(names::KUBELET_KUBECONFIG)?;
        let known = told.and_then(|told| node_ca(&told, &facts.ca));
        let shown = node_ca(&text, &facts.ca);
        if known.is_some_and(|known| shown.as_ref().is_some_and(|new| *new != known)) {
            // What began with the other one in its `ca.crt` does not believe the hub. Before the text is replaced, or a
            // keeper that is killed would leave nothing to tell it by.
            tracing::info!("the hub has another CA, which the node's agents have to be told of");
            journal.agents_before = Some(self.moment());
            journal.agents_due = true;
            journal.agents = Agents::default();
            journal.turn = None;
            journal.save(&self.host)?;
        }
        let mut changed = self.host.write(names::KUBELET_KUBECONFIG, text.as_bytes(), 0o600)?;
        self.host.make_dir(drop_in_dir(), 0o755)?;
        let drop_in = units::kubelet_drop_in(&journal.original.other_flags);
        changed |= self.host.write(names::KUBELET_DROP_IN, drop_in.as_bytes(), 0o644)?;
        let (kubelet, arguments) = self.kubelet().await?;
        if changed || kubelet.need_reload {
            self.systemd.reload().await?;
        }
        let way_in = match self.cluster.hub_way_in().await {
            Ok(said) => {
                self.way_in_why = said.why;
                said.way
            }
            Err(error) => {
                tracing::debug!(%error, "the hub does not say by which way pods come to it; as before");
                journal.way_in.unwrap_or_default()
            }
        };
        // kubelet makes pods' environment of the Service as it read it when it started.
        let way = if way_in == WayIn::Environment { "" } else { way_in.name() };
        let wanted = if way.is_empty() {
            fingerprint(&[text.as_bytes(), drop_in.as_bytes()])
        } else {
            fingerprint(&[text.as_bytes(), drop_in.as_bytes(), way.as_bytes()])
        };
        let mut restarted = false;
        // One that does not run has not gone past the hub: what it started is still told of the hub.
        let elsewhere = journal.applied_kubelet.is_none()
            || match &arguments {
                Some(found) => !uses_hub(Some(found)),
                None => changed,
            };
        // It would work through the hub if it ran, and reads all of it anew when it starts: somebody has stopped it, and
        // knows why.
        self.kubelet_stopped =
            arguments.is_none() && kubelet.active_state == "inactive" && journal.applied_kubelet.is_some();
        if !self.kubelet_stopped
            && (!uses_hub(arguments.as_ref()) || journal.applied_kubelet.as_ref() != Some(&wanted))
        {
            tracing::info!("restarting kubelet, which then works through the hub");
            let now = self.moment();
            if let Some(before) = &mut journal.before
                && before.restarted.is_none()
            {
                before.restarted = Some(now.second);
            }
            let led_by_environment = journal.came.is_some() && journal.way_in != Some(WayIn::Service);
            let changes_way = !elsewhere && led_by_environment && way_in == WayIn::Service;
            if elsewhere {
                journal.left = None;
                journal.agents_before = None;
                journal.agents_due = true;
                journal.agents = Agents::default();
                journal.turn = None;
                // Until it is written down below, the next keeper restarts kubelet again, and nobody is led to the hub.
                journal.applied_kubelet = None;
                journal.believed = None;
            }
            Self::changed_at(journal, now, elsewhere, changes_way);
            journal.save(&self.host)?;
            self.systemd.restart(units::KUBELET).await?;
            // Until it had ended, the one of before went on starting containers with what it knew.
            Self::changed_at(journal, self.moment(), elsewhere, changes_way);
            restarted = true;
        }
        let believed = shown.and_then(|ca| String::from_utf8(ca).ok());
        let known = journal.believed.as_ref().map(|believed| &believed.ca);
        let believes = known == believed.as_ref();
        if !believes {
            let since = self.moment();
            if journal.believed.is_none() && believed.is_some() && !restarted && journal.came.is_some() {
                // A keeper of before did not write it down: who was led to the hub until now is not known to believe it.
                journal.agents_before = Some(since.clone());
                journal.agents_due = true;
                journal.agents = Agents::default();
            }
            journal.believed = believed.map(|ca| Believed { ca, since });
        }
        if restarted
            || !believes
            || journal.applied_kubelet.as_ref() != Some(&wanted)
            || journal.way_in != Some(way_in)
        {
            journal.applied_kubelet = Some(wanted);
            journal.way_in = Some(way_in);
            journal.save(&self.host)?;
        }
        Ok(restarted)
    }

    /// kubelet is what it is to be since then.
    fn changed_at(journal: &mut Journal, moment: Moment, elsewhere: bool, changes_way: bool) {
        if changes_way {
            journal.environment_until = Some(moment.clone());
        }
        if elsewhere {
            journal.came = Some(moment);
        } else if journal.agents_due && journal.agents_before.is_some() {
            journal.agents_before = Some(moment);
        }
    }

    /// kubelet's kubeconfig with the hub as the server. It believes the hub by the CA that the hub says it has; the one
    /// that it is told now if the hub does not answer: who knows whether it has another.
    async fn kubeconfig_for_hub(&mut self, facts: &Facts) -> Result<String, KeeperError> {
        let told = self.host.read_text(names::KUBELET_KUBECONFIG)?;
        let told =
            told.filter(|text| kubeconfig::parse(text).is_ok_and(|found| found.server == look::hub_url()));
        let node_ca = match (self.meet_hub().await, told) {
            (Ok(node_ca), _) => node_ca,
            (Err(error), Some(told)) => {
                tracing::debug!(%error, "the hub does not say what it is to be believed by; kubelet's kubeconfig stays");
                return Ok(told);
            }
            (Err(_), None) => self.wait_for_hub().await?,
        };
        let bundle = node_ca.map(|node_ca| kubeconfig::bundle(&facts.ca, &node_ca));
        kubeconfig::for_hub(&facts.kubeconfig_text, &look::hub_url(), bundle.as_deref())
            .map_err(|error| KeeperError::Refused(format!("kubelet's kubeconfig {error}")))
    }

    /// kubelet runs with its own kubeconfig again.
    pub(crate) async fn withdraw_drop_in(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        let (_, arguments) = self.kubelet().await?;
        if uses_hub(arguments.as_ref()) {
            // Not away from the hub while there is nothing else to go to.
            self.cluster.node().await?;
        }
        self.host.remove(names::KUBELET_DROP_IN)?;
        self.remove_folder_of_ours(journal, drop_in_dir())?;
        // Always: a keeper may have been killed between the removal and the reload.
        self.systemd.reload().await?;
        let leaves = uses_hub(arguments.as_ref()) || arguments.is_none();
        let came = journal.came.is_some() || journal.applied_kubelet.is_some();
        if came && (leaves || journal.left.is_none()) {
            journal.left = Some(self.moment());
            journal.turn = None;
            journal.save(&self.host)?;
        }
        if leaves {
            tracing::info!("restarting kubelet, which then works without the hub");
            self.systemd.restart(units::KUBELET).await?;
            if came {
                // Until it had ended, it went on starting containers for the hub.
                journal.left = Some(self.moment());
                journal.save(&self.host)?;
            }
        }
        self.kubelet_back(false, Wanted::Ready).await?;
        self.host.remove(names::KUBELET_KUBECONFIG)?;
        Ok(())
    }

    /// kubelet's unit, and the arguments of its process.
    pub(super) async fn kubelet(&mut self) -> Result<(Unit, Option<Arguments>), KeeperError> {
        let unit = self.systemd.unit(units::KUBELET).await?;
        let arguments = arguments::of_process(&self.host, unit.service.main_pid)?;
        Ok((unit, arguments))
    }
}

/// Whether kubelet runs, and with the kubeconfig that leads to the hub.
pub(super) fn uses_hub(arguments: Option<&Arguments>) -> bool {
    arguments.is_some_and(|found| found.kubeconfig.as_deref() == Some(names::KUBELET_KUBECONFIG))
}

/// The node's CA in the bundle that a kubeconfig for the hub carries.
fn node_ca(kubeconfig: &str, cluster_ca: &[u8]) -> Option<Vec<u8>> {
    let kubeconfig::CaSource::Inline(bundle) = kubeconfig::parse(kubeconfig).ok()?.ca else { return None };
    let rest = bundle.strip_prefix(cluster_ca.trim_ascii_end())?.trim_ascii();
    (!rest.is_empty()).then(|| rest.to_vec())
}

fn drop_in_dir() -> &'static str {
    names::KUBELET_DROP_IN.rsplit_once('/').map_or(names::SYSTEMD_DIR, |(folder, _)| folder)
}
