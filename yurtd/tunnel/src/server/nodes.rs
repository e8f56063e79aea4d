//! Which addresses of kubelets lead to which edge node: follows what [`ownership`] decides from.
//!
//! ```text
//! Nodes ─────────────────────────────────┐
//! EndpointSlice default/kubernetes ──────┼─► ownership::decide ─► Endpoints (redirect, intercept)
//! addresses of this host (netlink) ──────┘                     └► what is left out: log, `tunnel status`
//! ```

mod ownership;
mod recent;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watch_object, watcher};
use kube::{Api, ResourceExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use yurt_node::known::Known;

use self::ownership::{Claims, LeftOut, Surroundings, decide};
use self::recent::Recent;
use super::registry::Registry;

/// Where the API servers publish their addresses.
const API_SERVERS: (&str, &str) = ("default", "kubernetes");
/// How often the addresses of this host are read.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Who is behind a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The node.
    pub(super) node: Arc<str>,
    /// It may be dialled there without the tunnel: who answers at the address is this node and no other, and kubelet
    /// listens on the port.
    pub(super) direct: bool,
}

/// (Address, port) of every edge node's kubelet as the API server connects to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoints(HashMap<SocketAddr, Endpoint>);

impl Endpoints {
    /// Who is behind a destination.
    pub(super) fn endpoint(&self, destination: SocketAddr) -> Option<&Endpoint> {
        self.0.get(&destination)
    }

    /// The node behind a destination.
    pub(super) fn node(&self, destination: SocketAddr) -> Option<&Arc<str>> {
        self.endpoint(destination).map(|endpoint| &endpoint.node)
    }

    /// The addresses of each node, sorted.
    fn by_node(&self) -> BTreeMap<String, Vec<String>> {
        let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for address in self.addresses() {
            let node = self.node(address).map(ToString::to_string).unwrap_or_default();
            by_node.entry(node).or_default().push(address.to_string());
        }
        by_node
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in any order.
    pub(super) fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// All of them, sorted.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.0.keys().copied().collect();
        addresses.sort();
        addresses
    }
}

#[cfg(test)]
impl Endpoints {
    /// The same, where none of them is alone at its address.
    pub(super) fn shared(mut self) -> Self {
        self.0.values_mut().for_each(|endpoint| endpoint.direct = false);
        self
    }
}

#[cfg(test)]
impl<const N: usize> From<[(SocketAddr, &str); N]> for Endpoints {
    fn from(endpoints: [(SocketAddr, &str); N]) -> Self {
        endpoints.into_iter().collect()
    }
}

#[cfg(test)]
impl<'a> FromIterator<(SocketAddr, &'a str)> for Endpoints {
    fn from_iter<I: IntoIterator<Item = (SocketAddr, &'a str)>>(endpoints: I) -> Self {
        let endpoint = |node: &str| Endpoint { node: node.into(), direct: true };
        Self(endpoints.into_iter().map(|(address, node)| (address, endpoint(node))).collect())
    }
}

/// Follows the cluster until `stop`. What `endpoints` shows is complete: `None` until everything is known that decides
/// about it. Only `ports` are redirected, and those that the controller has given.
pub(super) async fn follow(
    client: kube::Client,
    ports: BTreeSet<u16>,
    registry: Arc<Registry>,
    endpoints: watch::Sender<Option<Endpoints>>,
    stop: CancellationToken,
) {
    let events = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff();
    let (namespace, name) = API_SERVERS;
    let slices = watch_object(Api::<EndpointSlice>::namespaced(client, namespace), name).default_backoff();
    pin_mut!(events, slices);
    let mut look = tokio::time::interval(LOOK_AGAIN);
    let mut followed =
        Followed { around: Surroundings { ports, ..Surroundings::default() }, ..Followed::default() };
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(Ok(event)) => followed.apply(event),
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot follow the cluster's nodes; trying again");
                    false
                }
                None => return,
            },
            slice = slices.next() => match slice {
                Some(slice) => {
                    let slice = slice.map(|slice| slice.as_ref().map(addresses_in));
                    followed.api_servers(Known::from(slice))
                }
                None => return,
            },
            () = until(followed.settles) => true,
            _ = look.tick() => match local_addresses().await {
                Ok(local) => followed.local(local),
                Err(error) => {
                    tracing::error!("this host's addresses cannot be read: {error:#}");
                    false
                }
            },
        };
        if changed && let Some((new, left_out)) = followed.decide(Instant::now()) {
            registry.set_addresses(new.by_node(), left_out);
            endpoints.send_if_modified(|current| {
                let new = Some(new);
                let changed = *current != new;
                *current = new;
                changed
            });
        }
    }
}

/// At that moment, if there is one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What is known. Nothing is decided before there was a whole list of the nodes, an answer about the API servers, and
/// the addresses of this host.
#[derive(Default)]
struct Followed {
    nodes: BTreeMap<String, Claims>,
    /// The list that is being received.
    listed: Option<BTreeMap<String, Claims>>,
    nodes_known: bool,
    /// There was an answer about the API servers, if only that nobody can say.
    api_servers_asked: bool,
    around: Surroundings,
    /// Whose addresses were whose a moment ago, and when the next of them is nobody's but its owner's.
    recent: Recent,
    settles: Option<Instant>,
    /// What a person has been told about.
    told: BTreeSet<LeftOut>,
}

impl Followed {
    /// Endpoints, and for each node that has some its addresses that are left out, with the reason.
    fn decide(&mut self, now: Instant) -> Option<(Endpoints, BTreeMap<String, Vec<String>>)> {
        if !self.nodes_known || !self.api_servers_asked || self.around.local.is_empty() {
            return None;
        }
        let (mut endpoints, mut left_out) = decide(&self.nodes, &self.around);
        self.settles = self.recent.hold_back(&mut endpoints, &mut left_out, now);
        for LeftOut { node, address, fault } in left_out.difference(&self.told) {
            tracing::warn!(node, %address, reason = %fault, "a kubelet address is not redirected");
        }
        let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for LeftOut { node, address, fault } in &left_out {
            shown.entry(node.clone()).or_default().push(format!("{address}: {fault}"));
        }
        self.told = left_out;
        Some((endpoints, shown))
    }

    /// Takes an event over; says whether the nodes are complete and may have changed.
    fn apply(&mut self, event: Event<Node>) -> bool {
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitApply(node) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(node.name_any(), Claims::from(&node));
                }
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.nodes = listed;
                    self.nodes_known = true;
                    return true;
                }
            }
            Event::Apply(node) => {
                let claims = Claims::from(&node);
                return self.nodes.insert(node.name_any(), claims.clone()) != Some(claims);
            }
            Event::Delete(node) => return self.nodes.remove(&node.name_any()).is_some(),
        }
        false
    }

    /// Takes over what is known of the API servers' addresses. That nobody can say changes nothing but the first time:
    /// nodes and this host's addresses are what it mostly comes to, and the API server must not be without a way to
    /// kubelets because of it.
    fn api_servers<E: std::fmt::Display>(&mut self, answer: Known<BTreeSet<IpAddr>, E>) -> bool {
        let first = !std::mem::replace(&mut self.api_servers_asked, true);
        let new = match answer {
            Known::Is(addresses) => addresses,
            Known::Absent => BTreeSet::new(),
            Known::Unknown(error) => {
                tracing::warn!(
                    %error,
                    "cannot follow the API servers' addresses: a node that claims one is not stopped; trying again"
                );
                return first;
            }
        };
        let changed = new != self.around.api_servers;
        self.around.api_servers = new;
        first || changed
    }

    fn local(&mut self, new: BTreeSet<IpAddr>) -> bool {
        let changed = new != self.around.local;
        self.around.local = new;
        changed
    }
}

/// The addresses in the EndpointSlice of the API servers.
fn addresses_in(slice: &EndpointSlice) -> BTreeSet<IpAddr> {
    let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|address| address.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect()
}

/// The addresses of every interface in this network namespace, the host's.
async fn local_addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let attributes = messages.iter().flat_map(|message| &message.attributes);
    // Of a point-to-point link `Address` is the other end, whom nobody needs to redirect either.
    let addresses = attributes.filter_map(|attribute| match attribute {
        AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(ip.to_canonical()),
        _ => None,
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yurt_api::names::{LABEL_EDGE_WORKER, LABEL_KUBELET_PORT};

    use super::*;

    fn node(name: &str, address: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { LABEL_EDGE_WORKER: "true" } },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        }))
        .unwrap()
    }

    fn slice(address: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "addressType": "IPv4", "endpoints": [{ "addresses": [address] }], "ports": [],
        }))
        .unwrap()
    }

    fn followed() -> Followed {
        let around = Surroundings { ports: [10250].into(), ..Surroundings::default() };
        Followed { around, ..Followed::default() }
    }

    #[test]
    fn a_list_replaces_everything_at_its_end() {
        let mut followed = followed();
        assert!(followed.apply(Event::Apply(node("old", "10.0.0.1"))));
        assert!(!followed.apply(Event::Init));
        assert!(!followed.apply(Event::InitApply(node("new", "10.0.0.2"))));
        assert_eq!(followed.nodes.keys().collect::<Vec<_>>(), ["old"]);
        assert!(followed.apply(Event::InitDone));
        assert_eq!(followed.nodes.keys().collect::<Vec<_>>(), ["new"]);
        // A heartbeat changes nothing.
        assert!(!followed.apply(Event::Apply(node("new", "10.0.0.2"))));
        assert!(followed.apply(Event::Delete(node("new", "10.0.0.2"))));
    }

    #[test]
    fn nothing_is_redirected_before_everything_is_known_that_could_forbid_it() {
        let mut followed = followed();
        let list = [Event::Init, Event::InitApply(node("edge-1", "10.0.0.2")), Event::InitDone];
        for event in list {
            followed.apply(event);
        }
        assert!(followed.decide(Instant::now()).is_none());
        assert!(followed.local(["10.0.0.9".parse().unwrap()].into()));
        assert!(followed.decide(Instant::now()).is_none());
        assert!(followed.api_servers(absent()));
        let (endpoints, left_out) = followed.decide(Instant::now()).unwrap();
        assert_eq!((endpoints.addresses().len(), left_out.len()), (1, 0));

        // An API server appears where the node says that it is.
        assert!(followed.api_servers(at(slice("10.0.0.2"))));
        assert!(!followed.api_servers(at(slice("10.0.0.2"))));
        let (endpoints, left_out) = followed.decide(Instant::now()).unwrap();
        assert_eq!(endpoints, Endpoints::default());
        assert_eq!(left_out["edge-1"], ["10.0.0.2:10250: it is an address of the API server"]);
        assert!(followed.api_servers(at(slice("10.0.0.3"))));
        assert!(followed.local(["10.0.0.2".parse().unwrap()].into()));
        assert_eq!(followed.decide(Instant::now()).unwrap().0, Endpoints::default());
    }

    fn at(slice: EndpointSlice) -> Known<BTreeSet<IpAddr>, watcher::Error> {
        Known::Is(addresses_in(&slice))
    }

    fn absent() -> Known<BTreeSet<IpAddr>, watcher::Error> {
        Known::Absent
    }

    #[test]
    fn that_nobody_can_say_is_no_absence() {
        let mut followed = Followed::default();
        assert!(followed.api_servers(at(slice("10.0.0.2"))));
        assert!(!followed.api_servers(Known::<_, &str>::Unknown("refused")));
        assert_eq!(followed.around.api_servers.len(), 1);
        assert!(followed.api_servers(absent()));
        assert!(followed.around.api_servers.is_empty());
        // Nodes are redirected all the same when it could never be asked.
        assert!(Followed::default().api_servers(Known::<_, &str>::Unknown("refused")));
    }

    fn given(name: &str, published: u16) -> Node {
        let mut node = node(name, "10.0.0.2");
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert(LABEL_KUBELET_PORT.to_owned(), "40000".to_owned());
        let endpoints = json!({ "kubeletEndpoint": { "Port": published } });
        node.status.as_mut().unwrap().daemon_endpoints = serde_json::from_value(endpoints).unwrap();
        node
    }

    /// The API server and metrics-server may have read the second node's port just before it was published.
    #[test]
    fn kubelets_own_port_goes_to_the_first_node_a_moment_after_the_second_has_published_its_own() {
        let mut followed = followed();
        followed.local(["10.0.0.9".parse().unwrap()].into());
        followed.api_servers(absent());
        for event in [Event::Init, Event::InitApply(node("a", "10.0.0.2")), Event::InitDone] {
            followed.apply(event);
        }
        let start = Instant::now();
        let mut shown = |event: Option<Node>, after: Duration| {
            if let Some(node) = event {
                followed.apply(Event::Apply(node));
            }
            let (endpoints, _) = followed.decide(start + after).unwrap();
            let named = |address: &SocketAddr| format!("{address} {}", endpoints.node(*address).unwrap());
            let shown: Vec<_> = endpoints.addresses().iter().map(named).collect();
            (shown, followed.settles.map(|at| at - start))
        };
        let second = Duration::from_secs(1);
        assert_eq!(shown(None, second), (vec!["10.0.0.2:10250 a".to_owned()], None));
        assert_eq!(shown(Some(node("b", "10.0.0.2")), 2 * second), (vec![], None));
        let own = "10.0.0.2:40000 b".to_owned();
        assert_eq!(shown(Some(given("b", 10250)), 60 * second), (vec![own.clone()], None));
        let at = 90 * second;
        assert_eq!(shown(Some(given("b", 40000)), at), (vec![own.clone()], Some(at + recent::HOLD)));
        let both = vec!["10.0.0.2:10250 a".to_owned(), own];
        assert_eq!(shown(None, at + recent::HOLD), (both, None));
    }

    #[tokio::test]
    async fn this_hosts_addresses_are_read_from_the_kernel() {
        let local = local_addresses().await.unwrap();
        assert!(local.contains(&"127.0.0.1".parse().unwrap()), "{local:?}");
    }
}
