//! The program on the host: one folder a release, a link to the one in use.

use yurt_api::names;

use crate::cluster::Cluster;
use crate::engine::{Engine, KeeperError};
use crate::journal::Release;
use crate::systemd::Systemd;

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Puts a release's program on the host. Only this program can be installed.
    pub(crate) fn install(&mut self, release: &Release) -> Result<(), KeeperError> {
        let program = release.program();
        let stamp = self.host.stamp(&program);
        if stamp.is_some() && stamp == self.verified {
            return Ok(());
        }
        if self.host.digest(&program)?.as_deref() != Some(&release.digest) {
            if *release != self.release {
                return Err(KeeperError::Refused(format!(
                    "{program} is missing or damaged, and this keeper is another release"
                )));
            }
            self.host.make_dir(names::INSTALL_DIR, 0o755)?;
            self.host.make_dir(format!("{}/{}", names::INSTALL_DIR, release.folder()), 0o755)?;
            self.host.install(&self.sources.executable, &program)?;
            tracing::info!(%program, "installed");
        }
        self.verified = self.host.stamp(&program);
        Ok(())
    }

    /// Takes every release away but this one.
    pub(crate) fn remove_other_releases(&self, current: &Release) -> Result<(), KeeperError> {
        for entry in self.host.list(names::INSTALL_DIR)? {
            let folder = format!("{}/{entry}", names::INSTALL_DIR);
            if entry != current.folder()
                && self.host.exists(format!("{folder}/yurtd"))
                && self.host.read_link(&folder).is_none()
            {
                self.host.remove_tree(&folder)?;
            }
        }
        Ok(())
    }

    /// Takes every release, the configuration and the link away; the journal, which is in the same folder, goes last.
    pub(crate) fn uninstall(&self) -> Result<(), KeeperError> {
        for entry in self.host.list(names::INSTALL_DIR)? {
            let path = format!("{}/{entry}", names::INSTALL_DIR);
            if self.host.read_link(&path).is_some() {
                self.host.remove(&path)?;
            } else if !names::KEEPER_JOURNAL.starts_with(&format!("{path}/")) {
                self.host.remove_tree(&path)?;
            }
        }
        // An interrupted swap of the link.
        self.host.remove(names::CURRENT_LINK)?;
        Ok(())
    }
}
