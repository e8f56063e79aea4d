//! What each step does, how it is seen to be done, and its inverse; what concerns kubelet is in `kubelet`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use yurt_api::names;
use yurt_api::status::ClusterConfig;

use super::cluster::{Cluster, ClusterError, OwnNode};
use super::engine::{Engine, KeeperError};
use super::journal::{Journal, Release, Step};
use super::look::Facts;
use super::systemd::{Systemd, SystemdError, Unit};
use super::units;
use yurt_node::config::EdgeConfig;

/// Folder of what the hub and kubelet read.
const ETC: &str = "/opt/yurt/etc";
/// The API server's CA, when kubelet's kubeconfig carries it inside.
const CA_FILE: &str = "/opt/yurt/etc/ca.crt";

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Refuses what would fail later. Touches nothing.
    pub(super) async fn preflight(&mut self, facts: &Facts) -> Result<OwnNode, KeeperError> {
        let mut faults = Vec::new();
        for address in &self.settings.ports {
            if let Err(error) = probe(*address) {
                faults.push(format!("port {} cannot be used: {error}", address.port()));
            }
        }
        let free = self.host.free_bytes("/opt")?;
        if free < self.settings.free_bytes {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            faults.push(format!(
                "{} MiB are free in /opt, {} MiB are needed",
                mib(free),
                mib(self.settings.free_bytes)
            ));
        }
        let node = self.ready_node().await?;
        let skew = self.cluster.clock_skew().await?;
        if skew.abs() > self.settings.clock_skew {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            faults.push(format!("the clock is {} s {way} the API server's", skew.abs()));
        }
        if !node.ready {
            faults.push("the node is not Ready".into());
        }
        self.edge_config(facts, &node.kubelet_version).await?;
        if faults.is_empty() { Ok(node) } else { Err(KeeperError::Refused(faults.join("; "))) }
    }

    /// The own Node; one that has just joined gets some time to become Ready.
    async fn ready_node(&mut self) -> Result<OwnNode, KeeperError> {
        let deadline = Instant::now() + self.settings.kubelet_limit;
        loop {
            match self.cluster.node().await {
                Ok(node) if node.ready || Instant::now() >= deadline => return Ok(node),
                // Without a link there is nothing to wait for here: nothing has been begun.
                Err(error)
                    if error.is_unreachable() || !error.is_transient() || Instant::now() >= deadline =>
                {
                    return Err(error.into());
                }
                Ok(_) | Err(_) => tokio::time::sleep(self.settings.poll).await,
            }
        }
    }

    /// Asks until there is an answer; what may pass by itself is none until the deadline.
    pub(super) async fn ask<T>(
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

    /// Does one step.
    pub(super) async fn forward(&mut self, step: Step, journal: &mut Journal) -> Result<(), KeeperError> {
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
                self.ensure_service(journal, false).await?;
                let limit = self.settings.hub_limit;
                self.hub_ready(limit).await
            }
            Step::Warm => {
                let limit = self.settings.hub_limit;
                self.hub_serves(limit).await
            }
            Step::Kubelet => {
                self.remember_containers(journal).await?;
                self.ensure_kubelet(journal).await
            }
            Step::Verify => self.verify(journal).await,
        }
    }

    /// Undoes one step.
    pub(super) async fn backward(&mut self, step: Step, journal: &mut Journal) -> Result<(), KeeperError> {
        match step {
            Step::Look | Step::Preflight | Step::Warm | Step::Verify => Ok(()),
            Step::Kubelet => self.release_kubelet(journal).await,
            Step::Service => self.remove_service(journal).await,
            Step::Install => {
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
    }

    /// Puts a release's program on the host. Only this program can be installed.
    pub(super) fn install(&mut self, release: &Release) -> Result<(), KeeperError> {
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

    /// Writes what the hub reads. Returns whether a restart of the service is needed.
    pub(super) async fn configure(&mut self, journal: &Journal) -> Result<bool, KeeperError> {
        let facts = self.take_access(&journal.original)?;
        self.host.make_dir(ETC, 0o755)?;
        let mut changed = false;
        if facts.ca_file.is_none() {
            changed |= self.host.write(CA_FILE, &facts.ca, 0o644)?;
        }
        let config = self.edge_config(&facts, &journal.kubelet_version).await?;
        let mut text = serde_json::to_vec_pretty(&config).map_err(|error| {
            KeeperError::Refused(format!("the edge configuration cannot be written: {error}"))
        })?;
        text.push(b'\n');
        changed |= self.host.write(names::EDGE_CONFIG, &text, 0o644)?;
        // The tunnel agent reads this one again before it dials.
        if let Some(ca) = self.tunnel_ca(!config.tunnel_servers.is_empty()).await {
            self.host.write(names::TUNNEL_CA_FILE, ca.as_bytes(), 0o644)?;
        }
        Ok(changed)
    }

    async fn edge_config(&mut self, facts: &Facts, kubelet_version: &str) -> Result<EdgeConfig, KeeperError> {
        let cluster_config = match self.mounted(&self.sources.config_dir.join(names::CONFIG_KEY)) {
            Some(text) => Some(text),
            None => self.ask_cluster(names::CONFIG_MAP, names::CONFIG_KEY).await,
        };
        let cluster_config: ClusterConfig = match cluster_config {
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                KeeperError::Refused(format!("ConfigMap {} is not valid: {error}", names::CONFIG_MAP))
            })?,
            None => ClusterConfig::default(),
        };
        let ca_file = facts.ca_file.clone().unwrap_or_else(|| CA_FILE.into());
        Ok(EdgeConfig {
            node_name: self.node.clone(),
            api_servers: vec![facts.kubeconfig.server.clone()],
            client_ca_file: facts.client_ca_file.clone().unwrap_or_else(|| ca_file.clone()).into(),
            ca_file: ca_file.into(),
            client_certificate: facts.kubeconfig.client_certificate.clone().into(),
            client_key: facts.kubeconfig.client_key.clone().into(),
            tunnel_servers: cluster_config.tunnel_addresses,
            tunnel_ca_file: names::TUNNEL_CA_FILE.into(),
            kubelet_address: facts.kubelet_address.clone(),
            kubelet_version: kubelet_version.into(),
        })
    }

    async fn tunnel_ca(&mut self, wanted: bool) -> Option<String> {
        match self.mounted(&self.sources.tunnel_ca_dir.join("ca.crt")) {
            None if wanted => self.ask_cluster(names::TUNNEL_CA_CONFIG_MAP, "ca.crt").await,
            mounted => mounted,
        }
    }

    fn mounted(&self, path: &std::path::Path) -> Option<String> {
        std::fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty())
    }

    /// A ConfigMap that was written after this pod had started shows up in its mount a minute late; ask for it.
    async fn ask_cluster(&mut self, name: &str, key: &str) -> Option<String> {
        match self.cluster.config_map(name).await {
            Ok(data) => data.unwrap_or_else(BTreeMap::new).remove(key),
            Err(error) => {
                tracing::debug!(%error, name, "cannot read the ConfigMap");
                None
            }
        }
    }

    /// Units in place, enabled and running with what is on disk now.
    pub(super) async fn ensure_service(
        &mut self,
        journal: &mut Journal,
        restart: bool,
    ) -> Result<(), KeeperError> {
        let mut written = false;
        let mut socket_written = false;
        for unit in units::ALL {
            let changed = self.host.write(unit.path(), unit.text.as_bytes(), 0o644)?;
            written |= changed;
            socket_written |= changed && unit.name == units::SOCKET.name;
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
        } else if restart || written || journal.applied_service.as_ref() != Some(&wanted) {
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

    async fn remove_service(&mut self, journal: &Journal) -> Result<(), KeeperError> {
        // The socket first, or a last connection starts the service again.
        for unit in [units::SOCKET, units::SERVICE, units::ADDRESS] {
            let found = self.systemd.unit(unit.name).await?;
            if found.is_loaded() && found.active_state != "inactive" {
                self.systemd.stop(unit.name).await?;
            }
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

    pub(super) fn remove_folder_of_ours(&self, journal: &Journal, folder: &str) -> Result<(), KeeperError> {
        if !journal.original.folders.iter().any(|existed| existed == folder) {
            self.host.remove_empty_dir(folder)?;
        }
        Ok(())
    }

    /// Waits until the hub says that it is ready.
    pub(super) async fn hub_ready(&mut self, limit: Duration) -> Result<(), KeeperError> {
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
    pub(super) async fn hub_serves(&mut self, limit: Duration) -> Result<(), KeeperError> {
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

/// Digest of several texts, none of which can be taken for the end of another.
pub(super) fn fingerprint(parts: &[&[u8]]) -> String {
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

/// Whether a port can be had; it is given back at once. Bound, never listened on.
fn probe(address: SocketAddr) -> std::io::Result<()> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    // Connections of the past in TIME_WAIT are no obstacle, a listener is.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_listens_on_cannot_be_had() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(probe(address).is_err());
        drop(taken);
        assert!(probe(address).is_ok());
    }

    #[test]
    fn fingerprints_tell_parts_apart() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[b"ab"]), fingerprint(&[b"ab"]));
    }
}
