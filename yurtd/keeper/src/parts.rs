//! The parts of a conversion, a file each: what it does, how it is seen to be done, and its inverse.
//!
//! | part | file | reached by | undone by |
//! |--|--|--|--|
//! | what would fail later is refused | `preflight` | nothing is touched | |
//! | program | `program` | `install` | `uninstall` |
//! | what the hub reads | `configuration` | `configure` | with the program |
//! | units of the hub | `service` | `ensure_service` | `remove_service` |
//! | the hub is ready, is believed and serves | `ready` | `hub_ready`, `meet_hub`, `hub_serves` | |
//! | kubelet uses the hub | `drop_in` | `ensure_drop_in` | `withdraw_drop_in` |
//! | kubelet is well, its containers too | `verify` | `verify` | |
//! | the node's agents use the hub | `agents` | `agents_to_hub` | `agents_to_api_server`, once kubelet has left it |
//!
//! Everything that reaches looks first and acts only where something is not so; conversion, repair and upgrade call the
//! same functions.

mod agents;
mod configuration;
mod drop_in;
mod preflight;
mod program;
mod ready;
mod service;
mod verify;

pub(crate) use self::service::Changed;
pub(crate) use self::verify::Wanted;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use yurt_api::names;

use super::cluster::{Cluster, ClusterError};
use super::engine::{Engine, KeeperError};
use super::journal::{Journal, Step};
use super::systemd::Systemd;

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Does one step.
    pub(crate) async fn forward(&mut self, step: Step, journal: &mut Journal) -> Result<(), KeeperError> {
        match step {
            Step::Look | Step::Preflight => Ok(()),
            Step::Install => {
                let release = journal.release.clone();
                self.install(&release)?;
                self.host.link(names::CURRENT_LINK, release.folder().as_ref())?;
                self.configure(journal).await?;
                Ok(())
            }
            Step::Service => {
                self.ensure_service(journal, Changed::default()).await?;
                let limit = self.settings.hub_limit;
                self.hub_ready(limit).await
            }
            Step::Warm => {
                let limit = self.settings.hub_limit;
                self.hub_serves(limit).await
            }
            Step::Kubelet => {
                self.remember_containers(journal).await?;
                self.ensure_drop_in(journal).await.map(drop)
            }
            Step::Verify => self.verify(journal).await,
            Step::Agents => self.agents_to_hub(journal).await,
        }
    }

    /// Undoes one step.
    pub(crate) async fn backward(&mut self, step: Step, journal: &mut Journal) -> Result<(), KeeperError> {
        match step {
            Step::Look | Step::Preflight | Step::Warm | Step::Verify | Step::Agents => Ok(()),
            Step::Kubelet => {
                self.withdraw_drop_in(journal).await?;
                // While the hub is still there for those that have not had their turn.
                match self.agents_to_api_server(journal).await {
                    Err(KeeperError::Cluster(error)) if !error.is_unreachable() => {
                        self.report_agents(journal, &error.into())
                    }
                    outcome => outcome,
                }
            }
            Step::Service => self.remove_service(journal).await,
            Step::Install => self.uninstall(),
        }
    }

    /// Asks until there is an answer; what may pass by itself is none until the deadline.
    pub(crate) async fn ask<T>(
        &mut self,
        deadline: Instant,
        question: impl AsyncFn(&mut C) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        loop {
            match question(&mut self.cluster).await {
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    tracing::debug!(%error, "asking again");
                    tokio::time::sleep(self.settings.poll).await;
                }
                answer => return answer,
            }
        }
    }

    pub(crate) fn remove_folder_of_ours(&self, journal: &Journal, folder: &str) -> Result<(), KeeperError> {
        if !journal.original.folders.iter().any(|existed| existed == folder) {
            self.host.remove_empty_dir(folder)?;
        }
        Ok(())
    }
}

/// Digest of several texts, none of which can be taken for the end of another.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> String {
    use std::fmt::Write as _;
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_parts_apart() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[b"ab"]), fingerprint(&[b"ab"]));
    }
}
