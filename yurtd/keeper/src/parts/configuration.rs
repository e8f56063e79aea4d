//! What the hub reads: its configuration, the CA of the API server, the CA of the tunnel.

use std::path::Path;

use serde::Deserialize;
use yurt_api::names;
use yurt_api::status::ClusterConfig;
use yurt_node::config::EdgeConfig;
use yurt_node::known::Known;

use crate::cluster::{Cluster, ClusterError};
use crate::engine::{Engine, KeeperError};
use crate::journal::Journal;
use crate::look::Facts;
use crate::systemd::Systemd;

/// Folder of what the hub and kubelet read.
const ETC: &str = "/opt/yurt/etc";
/// The API server's CA, when kubelet's kubeconfig carries it inside.
pub(super) const CA_FILE: &str = "/opt/yurt/etc/ca.crt";

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Writes what the hub reads. Returns whether a restart of the service is needed.
    pub(crate) async fn configure(&mut self, journal: &Journal) -> Result<bool, KeeperError> {
        let facts = self.take_access(&journal.original)?;
        self.host.make_dir(ETC, 0o755)?;
        let mut changed = false;
        if facts.ca_file.is_none() {
            changed |= self.host.write(CA_FILE, &facts.ca, 0o644)?;
        }
        let mut config = self.edge_config(&facts, &journal.kubelet_version).await?;
        if journal.release != self.release {
            // A hub of before this field refuses to start with what it does not know.
            config.cluster_domain = None;
        }
        let mut text = serde_json::to_vec_pretty(&config).map_err(|error| {
            KeeperError::Refused(format!("the edge configuration cannot be written: {error}"))
        })?;
        text.push(b'\n');
        changed |= self.host.write(names::EDGE_CONFIG, &text, 0o644)?;
        // The tunnel agent reads this one again before it dials.
        if let Known::Is(ca) = self.tunnel_ca(!config.tunnel_servers.is_empty()).await {
            self.host.write(names::TUNNEL_CA_FILE, ca.as_bytes(), 0o644)?;
        }
        Ok(changed)
    }

    pub(crate) async fn edge_config(
        &mut self,
        facts: &Facts,
        kubelet_version: &str,
    ) -> Result<EdgeConfig, KeeperError> {
        let tunnel_servers = match self.cluster_config().await {
            Known::Is(text) => {
                let config: ClusterConfig = serde_json::from_str(&text).map_err(|error| {
                    KeeperError::Refused(format!("ConfigMap {} is not valid: {error}", names::CONFIG_MAP))
                })?;
                config.tunnel_addresses
            }
            Known::Absent => Vec::new(),
            Known::Unknown(error) => {
                tracing::debug!(%error, "cannot read the cluster's configuration; what is on the node stays");
                self.installed_tunnel_servers()
            }
        };
        let ca_file = facts.ca_file.clone().unwrap_or_else(|| CA_FILE.into());
        Ok(EdgeConfig {
            node_name: self.node.clone(),
            api_servers: vec![facts.kubeconfig.server.clone()],
            client_ca_file: facts.client_ca_file.clone().unwrap_or_else(|| ca_file.clone()).into(),
            ca_file: ca_file.into(),
            client_certificate: facts.kubeconfig.client_certificate.clone().into(),
            client_key: facts.kubeconfig.client_key.clone().into(),
            tunnel_servers,
            tunnel_ca_file: names::TUNNEL_CA_FILE.into(),
            kubelet_address: facts.kubelet_address.clone(),
            kubelet_version: kubelet_version.into(),
            // The hub's own default is not told: nothing changes on nodes of before.
            cluster_domain: facts.cluster_domain.clone().filter(|domain| domain != "cluster.local"),
        })
    }

    async fn cluster_config(&mut self) -> Known<String, ClusterError> {
        match mounted(&self.sources.config_dir.join(names::CONFIG_KEY)) {
            Some(text) => Known::Is(text),
            None => self.ask_cluster(names::CONFIG_MAP, names::CONFIG_KEY).await,
        }
    }

    /// The tunnel servers that the hub was last told, by whichever release.
    fn installed_tunnel_servers(&self) -> Vec<String> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Told {
            tunnel_servers: Vec<String>,
        }
        let text = self.host.read(names::EDGE_CONFIG).ok().flatten().unwrap_or_default();
        serde_json::from_slice::<Told>(&text).unwrap_or_default().tunnel_servers
    }

    async fn tunnel_ca(&mut self, wanted: bool) -> Known<String, ClusterError> {
        match mounted(&self.sources.tunnel_ca_dir.join("ca.crt")) {
            Some(text) => Known::Is(text),
            None if wanted => self.ask_cluster(names::TUNNEL_CA_CONFIG_MAP, "ca.crt").await,
            None => Known::Absent,
        }
    }

    /// A ConfigMap that was written after this pod had started shows up in its mount a minute late; ask for it.
    async fn ask_cluster(&mut self, name: &str, key: &str) -> Known<String, ClusterError> {
        self.cluster.config_map(name).await.map(|data| data.and_then(|mut data| data.remove(key))).into()
    }
}

fn mounted(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty())
}
