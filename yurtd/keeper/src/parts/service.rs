//! The hub's units: in place, enabled, running with what is on the disk now.

use std::path::Path;

use yurt_api::names;

use super::configuration::CA_FILE;
use super::fingerprint;
use crate::cluster::Cluster;
use crate::engine::{Engine, KeeperError};
use crate::journal::Journal;
use crate::systemd::{Systemd, Unit};
use crate::units;

/// What has changed of that with which the units run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changed {
    /// The release: every process of it is to be another one.
    pub program: bool,
    /// What the hub alone reads.
    pub configuration: bool,
}

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Units in place, enabled and running with what is on disk now.
    pub(crate) async fn ensure_service(
        &mut self,
        journal: &mut Journal,
        changed: Changed,
    ) -> Result<(), KeeperError> {
        let (mut written, mut socket_written, mut address_written) = (false, false, false);
        for unit in units::ALL {
            let changed = self.host.write(unit.path(), unit.text.as_bytes(), 0o644)?;
            written |= changed;
            socket_written |= changed && unit.name == units::SOCKET.name;
            address_written |= changed && unit.name == units::ADDRESS.name;
            self.host.make_dir(unit.wants_dir(), 0o755)?;
            written |= self.host.link(unit.wants_link(), unit.path().as_ref())?;
        }
        let service = self.systemd.unit(units::SERVICE.name).await?;
        if written || service.need_reload || !service.is_loaded() {
            self.systemd.reload().await?;
        }
        if socket_written && self.systemd.unit(units::SOCKET.name).await?.is_active() {
            // Sockets are not opened anew under a running service.
            self.systemd.stop(units::SERVICE.name).await?;
            self.systemd.restart(units::SOCKET.name).await?;
        }
        // The address is gone for a moment. A lost packet is sent again.
        if (changed.program || address_written) && self.systemd.unit(units::ADDRESS.name).await?.is_active() {
            self.systemd.restart(units::ADDRESS.name).await?;
        }
        for unit in [units::ADDRESS, units::SOCKET] {
            if !self.systemd.unit(unit.name).await?.is_active() {
                self.systemd.start(unit.name).await?;
            }
        }
        let wanted = self.service_inputs(journal)?;
        let service = self.systemd.unit(units::SERVICE.name).await?;
        self.show(&service);
        if !service.is_active() {
            self.systemd.start(units::SERVICE.name).await?;
        } else if changed.program
            || changed.configuration
            || written
            || journal.applied_service.as_ref() != Some(&wanted)
        {
            self.systemd.restart(units::SERVICE.name).await?;
        }
        if journal.applied_service.as_ref() != Some(&wanted) {
            journal.applied_service = Some(wanted);
            journal.save(&self.host)?;
        }
        Ok(())
    }

    /// Shows what the hub says of itself, so that `kubectl logs` of this pod tells how it is. (Its log is in the node's
    /// journal, whose files only libsystemd reads.)
    fn show(&mut self, service: &Unit) {
        let now =
            (service.active_state.clone(), service.service.restarts, service.service.status_text.clone());
        if self.hub_said.as_ref() != Some(&now) {
            let found = &service.service;
            tracing::info!(state = %now.0, restarts = now.1, result = %found.result, status = %now.2, "hub");
            self.hub_said = Some(now);
        }
    }

    /// Digest of everything that a running hub has read at its start.
    fn service_inputs(&self, journal: &Journal) -> Result<String, KeeperError> {
        let config = self.host.read(names::EDGE_CONFIG)?.unwrap_or_default();
        let ca = self.host.read(CA_FILE)?.unwrap_or_default();
        Ok(fingerprint(&[journal.release.digest.as_bytes(), units::SERVICE.text.as_bytes(), &config, &ca]))
    }

    /// Takes the hub's address off the node, and the table that leads there: what the unit does when it stops, unless it,
    /// or its program, is gone. Pods would be led to nobody.
    async fn remove_address(&mut self, mut program: String) -> Result<(), KeeperError> {
        if !self.host.exists(&program) {
            let release = self.release.clone();
            self.install(&release)?;
            program = release.program();
        }
        let command = [program, "address".into(), "remove".into()];
        Ok(self.systemd.run("yurt-address-remove.service", &command).await?)
    }

    /// The address, and the table that leads there, go with their unit; or by a call, if it is half gone.
    /// This release knows all of them, one of before perhaps not.
    pub(crate) async fn release_address(&mut self) -> Result<(), KeeperError> {
        let program = self.release.program();
        let there = self.host.exists(&program);
        let current = self.host.read_link(names::CURRENT_LINK);
        let in_use = current.is_some_and(|current| current == Path::new(&self.release.folder()));
        let unit = self.systemd.unit(units::ADDRESS.name).await?;
        if unit.is_loaded() && unit.active_state != "inactive" {
            self.systemd.stop(units::ADDRESS.name).await?;
        }
        if there && !(in_use && unit.is_active()) {
            self.remove_address(program).await?;
        }
        Ok(())
    }

    /// Takes the units and the hub's state away.
    pub(crate) async fn remove_service(&mut self, journal: &Journal) -> Result<(), KeeperError> {
        let program = format!("{}/yurtd", names::CURRENT_LINK);
        let address = self.systemd.unit(units::ADDRESS.name).await?;
        // One of before that was swapped back knows the address and nothing of the table.
        let is_ours = journal.release == self.release;
        let takes_it_along =
            is_ours && address.is_loaded() && address.is_active() && self.host.exists(&program);
        // The socket first, or a last connection starts the service again.
        for unit in [units::SOCKET, units::SERVICE, units::ADDRESS] {
            let found = self.systemd.unit(unit.name).await?;
            if found.is_loaded() && found.active_state != "inactive" {
                self.systemd.stop(unit.name).await?;
            }
        }
        if !takes_it_along {
            self.remove_address(if is_ours { program } else { self.release.program() }).await?;
        }
        // Only while its unit is there does systemd know which folder is the service's.
        if self.host.exists(units::SERVICE.path()) {
            if !self.systemd.unit(units::SERVICE.name).await?.is_loaded() {
                self.systemd.reload().await?;
            }
            // systemd cleans what is dead, and *failed* is not dead.
            self.systemd.reset_failed(units::SERVICE.name).await?;
            self.systemd.clean_state(units::SERVICE.name).await?;
        }
        for unit in units::ALL {
            self.systemd.reset_failed(unit.name).await?;
            self.host.remove(unit.wants_link())?;
            self.remove_folder_of_ours(journal, &unit.wants_dir())?;
        }
        // The service's unit last: as long as it is there, its state may be too.
        for unit in [units::ADDRESS, units::SOCKET, units::SERVICE] {
            self.host.remove(unit.path())?;
        }
        self.systemd.reload().await?;
        Ok(())
    }
}
