//! Where the cluster's API servers are, beside those that kubelet's kubeconfig names: a node that knows one of three
//! would be cut off by that one's maintenance.
//!
//! The API servers themselves keep their addresses in the Endpoints `default/kubernetes`, which a node may read
//! (`system:node`; EndpointSlices it may not). They are where API servers listen, and perhaps nothing that the node can
//! reach: they are tried when none of the configured ones answers, and by nobody believed before it has shown a
//! certificate of the cluster's CA for `kubernetes.default.svc`, as pods would. What was read is kept on the disk.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use yurt_api::names::HUB_POD_IPV6;
use yurt_node::link::LinkState;

use crate::clock::Boot;
use crate::last_read::LastRead;
use crate::link::Link;
use crate::node_client::NodeClient;
use crate::store::{Bucket, Store, StoreError};
use crate::upstream::{Upstream, jitter};

/// Keys in [`Bucket::Misc`]: what was read, and when.
const KEY: &[u8] = b"api-servers";
const READ: &[u8] = b"api-servers-read";
/// The API servers write it, and no controller: it is there in every cluster.
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
/// Control planes have three or five.
const MOST: usize = 9;
/// Read again after about this time, and after attempts that fail. API servers come and go rarely.
const PERIOD: Duration = Duration::from_secs(3600);
const AGAIN: Duration = Duration::from_secs(300);
/// Not all nodes at the same moment.
const SPREAD: Duration = Duration::from_secs(10);

/// Keeps an [`Upstream`] informed.
pub(crate) struct ApiServers {
    store: Store,
    client: NodeClient,
    upstream: Upstream,
    link: Link,
    last_read: LastRead,
    known: Vec<SocketAddr>,
    /// For the tunnel agent: beside an API server there is a tunnel server.
    told: watch::Sender<Vec<SocketAddr>>,
}

impl ApiServers {
    /// Tells `upstream` what is on the disk.
    pub(crate) fn open(store: Store, client: NodeClient, upstream: Upstream, link: Link, boot: Boot) -> Self {
        let stored = store.get(Bucket::Misc, KEY).unwrap_or_else(|error| {
            tracing::error!(%error, "the addresses of other API servers cannot be read");
            None
        });
        let known: Vec<SocketAddr> =
            stored.and_then(|value| serde_json::from_slice(&value).ok()).unwrap_or_default();
        let known: Vec<_> = known.into_iter().filter(|address| is_servers(address.ip())).take(MOST).collect();
        upstream.found(&known);
        let told = watch::Sender::new(known.clone());
        let last_read = LastRead::of(store.clone(), boot, READ);
        Self { store, client, upstream, link, last_read, known, told }
    }

    /// Those that are known, on the disk at first.
    pub(crate) fn known(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.told.subscribe()
    }

    /// Reads them again and again, while there is a link. Ends when the role stops.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let looking = async {
            let mut states = self.link.subscribe();
            // A process that is started again goes on where the one before was.
            sleep(self.not_before()).await;
            while states.wait_for(|state| *state == LinkState::Online).await.is_ok() {
                sleep(SPREAD.mul_f64(jitter())).await;
                let pause = if self.look().await { PERIOD } else { AGAIN };
                sleep(pause.mul_f64(0.75 + 0.5 * jitter())).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looking => {}
        }
    }

    /// How long they need not be read.
    fn not_before(&self) -> Duration {
        if self.known.is_empty() { Duration::ZERO } else { self.last_read.not_before(PERIOD) }
    }

    /// Whether the API server has told.
    async fn look(&mut self) -> bool {
        let endpoints = match self.client.get(ENDPOINTS).await {
            Ok(endpoints) => endpoints,
            Err(error) => {
                tracing::debug!(%error, "where other API servers are is not known");
                return false;
            }
        };
        let found = addresses(&endpoints);
        // One that says that there is none is about to end, or confused: a restart asks again.
        if found.is_empty() {
            return true;
        }
        if found == self.known {
            self.last_read.is_now().await;
            return true;
        }
        tracing::info!(servers = ?found, "API servers of the cluster");
        self.upstream.found(&found);
        self.told.send_replace(found.clone());
        let written = match serde_json::to_vec(&found) {
            Ok(value) => self.store.put_durable(Bucket::Misc, KEY, &value).await,
            Err(error) => Err(StoreError::Failed(error.to_string())),
        };
        match written {
            Ok(()) => {
                self.known = found;
                // Not before: a restart would go by the ones of before for an hour.
                self.last_read.is_now().await;
            }
            Err(error) => tracing::warn!(%error, "other API servers will not be known after a restart"),
        }
        true
    }
}

/// The addresses of Endpoints, in a fixed order.
fn addresses(endpoints: &Value) -> Vec<SocketAddr> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for subset in list(&endpoints["subsets"]) {
        let ports = list(&subset["ports"]);
        let https = ports.iter().find(|port| port["name"] == "https").or_else(|| ports.first());
        let port = https.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()).filter(|port| *port > 0);
        let Some(port) = port else { continue };
        let ips = list(&subset["addresses"]);
        let ips = ips.iter().filter_map(|address| address["ip"].as_str()?.parse::<IpAddr>().ok());
        found.extend(ips.filter(|ip| is_servers(*ip)).map(|ip| SocketAddr::new(ip, port)));
    }
    found.sort();
    found.dedup();
    found.truncate(MOST);
    found
}

/// Whether it may be that of another machine. kube-apiserver refuses others, too (`ValidateNonSpecialIP`).
fn is_servers(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // The hub would ask itself.
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip == HUB_POD_IPV6,
    };
    // Tests have their API servers on loopback.
    let loopback = ip.is_loopback() && !cfg!(test);
    !(local || loopback || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tokio::time::timeout;
    use yurt_fakes::api_server::FakeApi;
    use yurt_fakes::pki::TestCa;
    use yurt_node::supervise::Tasks;

    use super::*;
    use crate::caller::Credential;
    use crate::upstream::UpstreamConfig;
    use crate::upstream::tests::no_body;

    #[test]
    fn endpoints_name_every_server_once_and_nobody_who_cannot_be_one() {
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.3"}, {"ip": "10.0.0.2"}, {"ip": "10.0.0.2"}, {"ip": "169.254.2.1"}],
             "ports": [{"name": "metrics", "port": 1}, {"name": "https", "port": 6443}]},
            {"addresses": [{"ip": "fd00::1"}, {"ip": "::"}, {"ip": "224.0.0.1"}, {"ip": "fd6b:7975:7274::1"}, {"ip": "a name"}, {}],
             "ports": [{"port": 443}]},
            {"addresses": [{"ip": "10.0.0.4"}]},
            {"addresses": [{"ip": "10.0.0.5"}], "ports": [{"port": 70000}]},
            {"addresses": 7, "ports": "x"},
        ]});
        let found: Vec<String> = addresses(&endpoints).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["10.0.0.2:6443", "10.0.0.3:6443", "[fd00::1]:443"]);
        assert!(addresses(&json!(null)).is_empty());
        let many: Vec<Value> = (0..200).map(|last| json!({"ip": format!("10.0.0.{last}")})).collect();
        let endpoints = json!({"subsets": [{"addresses": many, "ports": [{"port": 6443}]}]});
        assert_eq!(addresses(&endpoints).len(), MOST);
    }

    #[tokio::test]
    async fn a_server_that_the_cluster_has_named_is_asked_when_the_configured_one_is_away_also_after_a_restart()
     {
        let ca = Arc::new(TestCa::new("kubernetes"));
        let (api, other) = (FakeApi::with_ca(ca.clone()).await, FakeApi::with_ca(ca).await);
        let named = json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "subsets": [
            {"addresses": [{"ip": other.address.ip().to_string()}], "ports": [{"port": other.address.port()}]}]});
        api.put("/api/v1/namespaces/default/endpoints/kubernetes", named);
        let dir = tempfile::tempdir().unwrap();
        for process in 0..2 {
            let stop = CancellationToken::new();
            let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
            let config = UpstreamConfig::of(&api);
            let (upstream, link) = Upstream::start(&config, &Tasks::new(stop.clone())).unwrap();
            let client = NodeClient::new(upstream.clone());
            let boot = Boot::new("one");
            let mut servers = ApiServers::open(store, client, upstream.clone(), link.clone(), boot);
            assert_eq!(servers.not_before() > Duration::from_secs(3500), process > 0);
            let known = std::mem::take(&mut servers.known);
            assert_eq!(*servers.known().borrow(), known);
            assert_eq!((known.len(), servers.not_before()), (process, Duration::ZERO), "nothing is known");
            servers.known = known;
            let is = async |wanted: LinkState, within: u64| {
                let mut states = link.subscribe();
                let reached = states.wait_for(|state| *state == wanted);
                timeout(Duration::from_secs(within), reached).await.is_ok()
            };
            assert!(is(LinkState::Online, 20).await);
            if process == 0 {
                let told = servers.known();
                assert!(servers.look().await);
                assert_eq!(*told.borrow(), [other.address]);
                assert_eq!((api.connections() > 0, other.connections()), (true, 0));
                api.cut();
                // It may be noticed by nobody: a server that answers is found at once.
                is(LinkState::Offline, 1).await;
                assert!(is(LinkState::Online, 20).await);
            }
            let request = http::Request::get("/api/v1/nodes").body(no_body()).unwrap();
            assert_eq!(upstream.send(&Credential::Node, request).await.unwrap().status(), 200);
            assert!(other.connections() > 0, "process {process}");
            stop.cancel();
        }
    }
}
