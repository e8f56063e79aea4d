//! What the hub reads: its configuration, the CA of the API server, the CA of the tunnel.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use yurt_api::names;
use yurt_api::status::ClusterConfig;
use yurt_node::config::{EdgeConfig, WayIn};
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

/// What of the hub's configuration was decided for the cluster.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Chosen {
    tunnel_servers: Vec<String>,
    way_in: WayIn,
}

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
            // A hub of before these fields refuses to start with what it does not know.
            config.cluster_domain = None;
            config.way_in = WayIn::Environment;
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
        let Chosen { tunnel_servers, way_in } = match self.cluster_config().await {
            Known::Is((text, way_in)) => {
                let config: ClusterConfig = serde_json::from_str(&text).map_err(|error| {
                    KeeperError::Refused(format!("ConfigMap {} is not valid: {error}", names::CONFIG_MAP))
                })?;
                // Of a plugin that knew one way alone there is no word of it.
                let way_in = match way_in.as_deref() {
                    None => WayIn::default(),
                    Some(name) => WayIn::of(name).ok_or_else(|| {
                        let (map, key) = (names::CONFIG_MAP, names::CONFIG_WAY_IN_KEY);
                        KeeperError::Refused(format!("ConfigMap {map} is not valid: {key} is {name:?}"))
                    })?,
                };
                Chosen { tunnel_servers: config.tunnel_addresses, way_in }
            }
            Known::Absent => Chosen::default(),
            Known::Unknown(error) => {
                tracing::debug!(%error, "cannot read the cluster's configuration; what is on the node stays");
                self.installed()
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
            way_in,
        })
    }

    /// The configuration, and the name of the way by which pods come to the hub.
    async fn cluster_config(&mut self) -> Known<(String, Option<String>), ClusterError> {
        let folder = self.sources.config_dir.clone();
        if let Some(text) = mounted(&folder.join(names::CONFIG_KEY)) {
            // Both are of one version: a mount is replaced as a whole.
            return Known::Is((text, mounted(&folder.join(names::CONFIG_WAY_IN_KEY))));
        }
        let read = |mut data: BTreeMap<String, String>| {
            data.remove(names::CONFIG_KEY).map(|text| (text, data.remove(names::CONFIG_WAY_IN_KEY)))
        };
        self.cluster.config_map(names::CONFIG_MAP).await.map(|data| data.and_then(read)).into()
    }

    /// What the hub was last told, by whichever release.
    fn installed(&self) -> Chosen {
        let text = self.host.read(names::EDGE_CONFIG).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
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
