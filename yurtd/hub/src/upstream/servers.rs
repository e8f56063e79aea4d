//! Which API servers there are: those of the configuration, and those that the cluster has named
//! ([`api_servers`](crate::api_servers)).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use rustls::pki_types::ServerName;
use yurt_node::dial;

use super::pool::OpenError;
use super::{UpstreamConfig, UpstreamError};

/// For a name whose addresses are known from before.
const RESOLVE_AGAIN: Duration = Duration::from_millis(200);
/// The name that every API server of a cluster can prove: pods call it so.
const API_SERVER: &str = "kubernetes.default.svc";

pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authority: Authority,
    pub(super) name: ServerName<'static>,
    /// Where its name led last: a name server that is out of reach must not make the link look worse than it is.
    addresses: Mutex<Vec<IpAddr>>,
}

impl Server {
    fn parse(url: &str) -> Result<Self, UpstreamError> {
        let fault = || UpstreamError::Request(format!("{url:?} is not https://host:port"));
        let uri: Uri = url.parse().map_err(|_| fault())?;
        let authority = uri.authority().ok_or_else(fault)?.clone();
        if uri.scheme_str() != Some("https") {
            return Err(fault());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| fault())?;
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self { host, port, authority, name, addresses: Mutex::default() })
    }

    /// One that the cluster has named.
    fn at(address: SocketAddr) -> Result<Self, UpstreamError> {
        let named = Self::parse(&format!("https://{address}"))?;
        let name = ServerName::try_from(API_SERVER);
        let name = name.map_err(|error| UpstreamError::Request(error.to_string()))?;
        Ok(Self { name, ..named })
    }

    /// Where it is, as far as that is known. An address in text is one before anybody has connected.
    fn known(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        addresses.extend(self.host.parse::<IpAddr>());
        addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect()
    }

    pub(super) async fn resolve(&self, patience: Duration) -> Result<Vec<IpAddr>, OpenError> {
        let known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let patience = if known.is_empty() { patience } else { patience.min(RESOLVE_AGAIN) };
        let error = match tokio::time::timeout(patience, dial::resolve(&self.host)).await {
            Ok(Ok(addresses)) => {
                self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&addresses);
                return Ok(addresses);
            }
            Ok(Err(error)) => error.into(),
            Err(_) => OpenError::TimedOut,
        };
        if known.is_empty() { Err(error) } else { Ok(known) }
    }
}

/// All of them.
pub(super) struct Servers {
    configured: Vec<Arc<Server>>,
    found: Mutex<Vec<Arc<Server>>>,
    /// The one that answered last.
    preferred: Mutex<Option<Arc<Server>>>,
}

impl Servers {
    pub(super) fn of(config: &UpstreamConfig) -> Result<Self, UpstreamError> {
        let configured: Vec<_> =
            config.servers.iter().map(|url| Server::parse(url).map(Arc::new)).collect::<Result<_, _>>()?;
        if configured.is_empty() {
            return Err(none());
        }
        Ok(Self { configured, found: Mutex::default(), preferred: Mutex::default() })
    }

    /// Those of the configuration.
    pub(super) fn configured(&self) -> &[Arc<Server>] {
        &self.configured
    }

    /// Those that the cluster has named besides.
    pub(super) fn found(&self) -> Vec<Arc<Server>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cluster has named these. What is open to others stays open.
    pub(super) fn set_found(&self, addresses: &[SocketAddr]) {
        let is_configured = |address: &SocketAddr| {
            let ip = address.ip().to_string();
            self.configured.iter().any(|server| server.host == ip && server.port == address.port())
        };
        let before = self.found();
        let server = |address: &SocketAddr| {
            let authority = address.to_string();
            match before.iter().find(|server| server.authority.as_str() == authority) {
                Some(server) => Some(Arc::clone(server)),
                None => Server::at(*address).ok().map(Arc::new),
            }
        };
        let found = addresses.iter().filter(|address| !is_configured(address)).filter_map(server).collect();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// All of them, the one that answered last before the others.
    pub(super) fn in_turn(&self) -> Vec<Arc<Server>> {
        let preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut servers: Vec<_> = self.configured.iter().cloned().chain(self.found()).collect();
        servers.sort_by_key(|server| !preferred.as_ref().is_some_and(|first| Arc::ptr_eq(first, server)));
        servers
    }

    /// The first of them.
    pub(super) fn first(&self) -> Result<Arc<Server>, UpstreamError> {
        self.in_turn().into_iter().next().ok_or_else(none)
    }

    /// This one has answered.
    pub(super) fn answered(&self, server: &Arc<Server>) {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(server));
    }

    /// Where they are: what their names led to last.
    pub(super) fn addresses(&self) -> BTreeSet<SocketAddr> {
        let servers = self.configured.iter().cloned().chain(self.found());
        servers.flat_map(|server| server.known()).collect()
    }

    /// `host:port` of each, those of the configuration first.
    pub(super) fn names(&self) -> Vec<String> {
        let servers = self.configured.iter().cloned().chain(self.found());
        servers.map(|server| server.authority.to_string()).collect()
    }
}

fn none() -> UpstreamError {
    UpstreamError::Request("no API server is configured".to_owned())
}
