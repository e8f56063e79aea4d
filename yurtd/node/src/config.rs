//! Configuration of `yurtd edge`: written by the keeper, read once at start. Every fault is reported at once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
pub use yurt_api::way_in::WayIn;

/// What the hub and the tunnel agent need to know about their node and cluster. A newer keeper may have written it, and
/// swapped this release back: fields that are not known are not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeConfig {
    /// The node's name, as in its client certificate.
    pub node_name: String,
    /// Base URLs of the API servers, from kubelet's kubeconfig (`https://host:port`).
    pub api_servers: Vec<String>,
    /// PEM file of the CA that signed the API server's certificate; also verifies the hub's callers.
    pub ca_file: PathBuf,
    /// PEM file of the CA that signs client certificates (kubelet's `clientCAFile`).
    pub client_ca_file: PathBuf,
    /// PEM file with kubelet's client certificate; kubelet rotates it, the hub reloads it.
    pub client_certificate: PathBuf,
    /// PEM file with the key; kubelet keeps both in one file.
    pub client_key: PathBuf,
    /// `host:port` of every tunnel server; empty without a tunnel.
    #[serde(default)]
    pub tunnel_servers: Vec<String>,
    /// PEM file of the tunnel CA; may appear later than the service starts.
    pub tunnel_ca_file: PathBuf,
    /// `host:port` of the node's own kubelet, the only target the tunnel agent dials.
    pub kubelet_address: String,
    /// kubelet's version (`v1.36.3`), as its Node reports it.
    #[serde(default)]
    pub kubelet_version: String,
    /// The cluster's domain, from kubelet's configuration; `cluster.local` when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// By which way pods come to the hub.
    #[serde(default, skip_serializing_if = "WayIn::is_environment")]
    pub way_in: WayIn,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a valid configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Values that cannot be used; each entry names its field.
    #[error("{path} cannot be used: {}", faults.join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// One line a fault.
        faults: Vec<String>,
    },
}

impl EdgeConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every fault that was found.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config: Self = serde_json::from_slice(&text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source })?;
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { path: path.into(), faults }) }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.node_name.is_empty() {
            faults.push("nodeName is empty".into());
        }
        if self.api_servers.is_empty() {
            faults.push("apiServers is empty".into());
        }
        for server in &self.api_servers {
            let uri = server.parse::<http::Uri>();
            if !uri.is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
                faults.push(format!("apiServers: {server:?} is not an https URL"));
            }
        }
        for server in self.tunnel_servers.iter().chain([&self.kubelet_address]) {
            let authority = server.parse::<http::uri::Authority>();
            if !authority.is_ok_and(|authority| authority.port_u16().is_some()) {
                faults.push(format!("{server:?} is not host:port"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> EdgeConfig {
        EdgeConfig {
            node_name: "edge-node".into(),
            api_servers: vec!["https://10.80.0.2:6443".into()],
            ca_file: "/ca.crt".into(),
            client_ca_file: "/ca.crt".into(),
            client_certificate: "/kubelet.pem".into(),
            client_key: "/kubelet.pem".into(),
            tunnel_servers: vec!["10.80.0.2:10262".into()],
            tunnel_ca_file: "/tunnel-ca.crt".into(),
            kubelet_address: "127.0.0.1:10250".into(),
            kubelet_version: "v1.36.3".into(),
            cluster_domain: None,
            way_in: WayIn::default(),
        }
    }

    #[test]
    fn a_valid_configuration_has_no_faults() {
        assert_eq!(valid().faults(), Vec::<String>::new());
    }

    #[test]
    fn what_a_newer_keeper_has_written_is_read_too() {
        let mut text = serde_json::to_value(valid()).unwrap();
        for field in ["clusterDomain", "wayIn"] {
            assert!(text.get(field).is_none(), "a hub of before refuses what it does not know");
        }
        text["fromTheFuture"] = serde_json::json!(1);
        assert_eq!(serde_json::from_value::<EdgeConfig>(text).unwrap(), valid());
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let config = EdgeConfig {
            node_name: String::new(),
            api_servers: vec!["http://plain".into()],
            tunnel_servers: vec!["no-port".into()],
            ..valid()
        };
        assert_eq!(config.faults().len(), 3);
    }
}
