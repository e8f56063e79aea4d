//! Whose a kubelet address is: which of the addresses that edge nodes claim may be redirected. Pure.
//!
//! A Node's addresses are what its own kubelet writes into its status, so each is a claim. A compromised edge node that
//! claimed somebody else's address would draw the control plane's connections there into its own tunnel. So an address is
//! redirected only if it is a plausible one, the port is a kubelet's, and nobody else in the cluster has it; where two
//! edge nodes claim the same, it is neither's: a log of one must never be answered by the other.
//!
//! Nodes that share an address are told apart by a port that the controller has given to one of them, on a label that no
//! node can put on itself ([`yurt_api::kubelet_port`]). It leads to that node whether or not its status says so yet: the
//! API server may hear of the status before this server does. Until it does, kubelet's own port is nobody's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Node;
use yurt_api::kubelet_port;
use yurt_api::names::KUBELET_PORT;
use yurt_api::node::Kind;

use super::{Endpoint, Endpoints};

/// What a Node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    edge: bool,
    /// Where the API server looks for kubelet.
    internal: BTreeSet<IpAddr>,
    /// Every other address.
    other: BTreeSet<IpAddr>,
    port: u16,
    /// The port that the controller has given to it.
    given: Option<u16>,
}

impl Claims {
    /// Where the API server looks for kubelet, or will.
    fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let given = self.given.filter(|given| *given != self.port);
        std::iter::once(self.port).chain(given)
    }

    fn has(&self, port: u16) -> bool {
        self.port == port || self.given == Some(port)
    }
}

impl From<&Node> for Claims {
    fn from(node: &Node) -> Self {
        let (labels, status) = (node.metadata.labels.as_ref(), node.status.as_ref());
        let port = status
            .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
            .and_then(|endpoint| u16::try_from(endpoint.port).ok())
            .filter(|port| *port != 0)
            .unwrap_or(KUBELET_PORT);
        let mut claims = Self {
            edge: Kind::of(labels).is_edge(),
            port,
            given: kubelet_port::of(labels),
            ..Self::default()
        };
        for address in status.into_iter().flat_map(|status| status.addresses.iter().flatten()) {
            // Names are nothing that can be redirected.
            let Ok(ip) = address.address.parse::<IpAddr>() else { continue };
            let of_kind =
                if address.type_ == "InternalIP" { &mut claims.internal } else { &mut claims.other };
            of_kind.insert(ip.to_canonical());
        }
        claims
    }
}

/// What is not a node's, whoever claims it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Addresses of this host.
    pub(super) local: BTreeSet<IpAddr>,
    /// Addresses of the cluster's API servers.
    pub(super) api_servers: BTreeSet<IpAddr>,
    /// The ports that kubelets listen on.
    pub(super) ports: BTreeSet<u16>,
}

/// Why an address is not redirected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Fault {
    /// Loopback, link-local, unspecified, multicast, broadcast.
    #[error("no network leads there")]
    NoUnicast,
    /// Not in the list.
    #[error("{0} is not a kubelet port (--kubelet-port)")]
    Port(u16),
    /// One that the controller gives, and has not given to this node.
    #[error("port {0} was not given to it by the controller")]
    NotGiven(u16),
    /// This host's.
    #[error("it is an address of the tunnel server's own host")]
    Local,
    /// An API server's.
    #[error("it is an address of the API server")]
    ApiServer,
    /// Other nodes'.
    #[error("it is an address of {} too", .0.join(", "))]
    Shared(Vec<String>),
    /// Other nodes', a moment ago.
    #[error("a moment ago it was an address of {}", .0.join(", "))]
    Lately(Vec<String>),
}

/// An address that an edge node claims and does not get.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeftOut {
    pub(super) node: String,
    pub(super) address: SocketAddr,
    pub(super) fault: Fault,
}

/// Gives every address to its owner, or to nobody.
pub(super) fn decide(
    nodes: &BTreeMap<String, Claims>,
    around: &Surroundings,
) -> (Endpoints, BTreeSet<LeftOut>) {
    let mut holders: HashMap<IpAddr, Vec<(&str, &Claims)>> = HashMap::new();
    for (name, claims) in nodes {
        for ip in claims.internal.union(&claims.other) {
            holders.entry(*ip).or_default().push((name, claims));
        }
    }
    let mut endpoints = HashMap::new();
    let mut left_out = BTreeSet::new();
    for (name, claims) in nodes.iter().filter(|(_, claims)| claims.edge) {
        let addresses = claims.internal.iter().flat_map(|ip| claims.ports().map(|port| (*ip, port)));
        for address in addresses.map(SocketAddr::from) {
            let holders = holders.get(&address.ip()).map(Vec::as_slice).unwrap_or_default();
            match fault(name, claims, address, holders, around) {
                Some(fault) => {
                    left_out.insert(LeftOut { node: name.clone(), address, fault });
                }
                None => {
                    // Nobody else is there, and kubelet listens on this port itself.
                    let direct = holders.len() == 1 && claims.given != Some(address.port());
                    endpoints.insert(address, Endpoint { node: name.as_str().into(), direct });
                }
            }
        }
    }
    (Endpoints(endpoints), left_out)
}

fn fault(
    name: &str,
    claims: &Claims,
    address: SocketAddr,
    holders: &[(&str, &Claims)],
    around: &Surroundings,
) -> Option<Fault> {
    let (ip, port) = (address.ip(), address.port());
    let given = claims.given == Some(port);
    if !is_unicast(ip) {
        return Some(Fault::NoUnicast);
    }
    if !given && !around.ports.contains(&port) {
        return Some(if kubelet_port::is_given(port) { Fault::NotGiven(port) } else { Fault::Port(port) });
    }
    if around.local.contains(&ip) {
        return Some(Fault::Local);
    }
    if around.api_servers.contains(&ip) {
        return Some(Fault::ApiServer);
    }
    // Edge nodes with kubelets on different ports are told apart. Of a cloud node nothing is ever redirected but a port that
    // nobody listens on, and that the edge node has not chosen itself.
    let shared: Vec<String> = holders
        .iter()
        .filter(|(holder, other)| *holder != name && (other.has(port) || !other.edge && !given))
        .map(|(holder, _)| (*holder).to_owned())
        .collect();
    (!shared.is_empty()).then_some(Fault::Shared(shared))
}

fn is_unicast(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !special && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use yurt_api::names::{LABEL_EDGE_WORKER, LABEL_EDGE_WORKER_LEGACY, LABEL_KUBELET_PORT};

    use super::*;

    const EDGE: &str = "true";
    const CLOUD: &str = "false";

    fn node(label: &str, addresses: &[(&str, &str)], port: u16) -> Claims {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        let node: Node = serde_json::from_value(json!({
            "metadata": { "labels": { LABEL_EDGE_WORKER: label } },
            "status": {
                "addresses": addresses,
                "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
            },
        }))
        .unwrap();
        Claims::from(&node)
    }

    fn internal(label: &str, address: &str) -> Claims {
        node(label, &[("Hostname", "x"), ("InternalIP", address)], 10250)
    }

    fn ips(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn around() -> Surroundings {
        Surroundings {
            local: ips(&["10.80.0.2", "10.244.0.1"]),
            api_servers: ips(&["10.80.0.3", "fd00::3"]),
            ports: [10250, 10350].into(),
        }
    }

    /// `address → node` of what is redirected, and `node: fault` of what is not.
    fn outcome(nodes: &[(&str, Claims)]) -> (Vec<String>, Vec<String>) {
        let nodes = nodes.iter().map(|(name, claims)| ((*name).to_owned(), claims.clone())).collect();
        let (endpoints, left_out) = decide(&nodes, &around());
        let addresses = endpoints.addresses();
        let redirected =
            addresses.iter().map(|address| format!("{address} {}", endpoints.node(*address).unwrap()));
        let faults = left_out.iter().map(|left| format!("{} {}: {}", left.node, left.address, left.fault));
        (redirected.collect(), faults.collect())
    }

    #[test]
    fn an_edge_node_is_found_by_its_internal_address_and_kubelet_port() {
        let addresses = [
            ("Hostname", "a"),
            ("ExternalIP", "203.0.113.1"),
            ("InternalIP", "192.168.0.100"),
            ("InternalIP", "fd00::1"),
            ("InternalIP", "nonsense"),
        ];
        let (redirected, faults) = outcome(&[("a", node(EDGE, &addresses, 10250))]);
        assert_eq!(redirected, ["192.168.0.100:10250 a", "[fd00::1]:10250 a"]);
        assert!(faults.is_empty());
        // A port of 0 is what the API server takes for the default.
        assert_eq!(outcome(&[("a", node(EDGE, &addresses, 0))]).0.len(), 2);
        let legacy: Node = serde_json::from_value(json!({
            "metadata": { "labels": { LABEL_EDGE_WORKER_LEGACY: "true" } },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.9" }] },
        }))
        .unwrap();
        assert_eq!(outcome(&[("b", Claims::from(&legacy))]).0, ["10.0.0.9:10250 b"]);
    }

    #[test]
    fn cloud_nodes_are_never_redirected() {
        assert_eq!(outcome(&[("a", internal(CLOUD, "192.168.0.100"))]), (vec![], vec![]));
        assert_eq!(outcome(&[("a", Claims::from(&Node::default()))]), (vec![], vec![]));
    }

    #[test]
    fn what_is_no_nodes_is_not_redirected() {
        for (address, reason) in [
            ("127.0.0.1", "no network leads there"),
            ("::1", "no network leads there"),
            ("::ffff:127.0.0.1", "no network leads there"),
            ("0.0.0.0", "no network leads there"),
            ("::", "no network leads there"),
            ("169.254.2.1", "no network leads there"),
            ("fe80::1", "no network leads there"),
            ("224.0.0.1", "no network leads there"),
            ("ff02::1", "no network leads there"),
            ("255.255.255.255", "no network leads there"),
            ("10.80.0.2", "it is an address of the tunnel server's own host"),
            ("10.244.0.1", "it is an address of the tunnel server's own host"),
            ("::ffff:10.80.0.2", "it is an address of the tunnel server's own host"),
            ("10.80.0.3", "it is an address of the API server"),
            ("fd00::3", "it is an address of the API server"),
        ] {
            let (redirected, faults) = outcome(&[("a", internal(EDGE, address))]);
            assert!(redirected.is_empty(), "{address}");
            assert!(faults.len() == 1 && faults[0].ends_with(reason), "{address}: {faults:?}");
        }
    }

    #[test]
    fn only_kubelet_ports_are_redirected() {
        let on = |port| outcome(&[("a", node(EDGE, &[("InternalIP", "192.168.0.100")], port))]);
        assert_eq!(on(10350).0, ["192.168.0.100:10350 a"]);
        for port in [22, 443, 6443, 2379, 10251] {
            let (redirected, faults) = on(port);
            assert!(redirected.is_empty(), "{port}");
            assert!(faults[0].ends_with("is not a kubelet port (--kubelet-port)"), "{faults:?}");
        }
    }

    #[test]
    fn an_address_of_a_cloud_node_stays_the_cloud_nodes() {
        let edge = internal(EDGE, "10.0.0.7");
        for cloud in [
            internal(CLOUD, "10.0.0.7"),
            node(CLOUD, &[("ExternalIP", "10.0.0.7")], 10250),
            node(CLOUD, &[("Hostname", "10.0.0.7")], 10250),
            // Not even on another port.
            node(CLOUD, &[("InternalIP", "10.0.0.7")], 10350),
            // Not labelled yet.
            node("", &[("InternalIP", "10.0.0.7")], 10250),
        ] {
            let (redirected, faults) = outcome(&[("edge", edge.clone()), ("worker", cloud)]);
            assert!(redirected.is_empty());
            assert_eq!(faults, ["edge 10.0.0.7:10250: it is an address of worker too"]);
        }
    }

    #[test]
    fn an_address_of_two_edge_nodes_belongs_to_neither_unless_the_ports_differ() {
        let nodes = [
            ("a", internal(EDGE, "192.168.0.100")),
            ("b", internal(EDGE, "192.168.0.100")),
            ("c", internal(EDGE, "192.168.0.101")),
            ("d", node(EDGE, &[("InternalIP", "192.168.0.100")], 10350)),
            // Somebody else's address on the internet, claimed as one's own.
            ("e", node(EDGE, &[("InternalIP", "192.168.0.102"), ("ExternalIP", "203.0.113.1")], 10250)),
            ("f", internal(EDGE, "203.0.113.1")),
        ];
        let (redirected, faults) = outcome(&nodes);
        assert_eq!(redirected, ["192.168.0.100:10350 d", "192.168.0.101:10250 c", "192.168.0.102:10250 e"]);
        assert_eq!(
            faults,
            [
                "a 192.168.0.100:10250: it is an address of b too",
                "b 192.168.0.100:10250: it is an address of a too",
                "f 203.0.113.1:10250: it is an address of e too",
            ]
        );
    }

    #[test]
    fn edge_nodes_behind_one_address_of_the_internet_do_not_disturb_each_other() {
        let shop = |address| node(EDGE, &[("InternalIP", address), ("ExternalIP", "203.0.113.1")], 10250);
        let (redirected, faults) = outcome(&[("a", shop("192.168.0.1")), ("b", shop("192.168.0.2"))]);
        assert_eq!((redirected.len(), faults.len()), (2, 0));
    }

    fn given(port: u16, published: u16) -> Claims {
        Claims { given: Some(port), ..node(EDGE, &[("InternalIP", "192.168.0.100")], published) }
    }

    #[test]
    fn a_port_that_was_given_is_the_nodes_before_its_status_says_so_and_kubelets_own_is_nobodys_until_then() {
        let first = internal(EDGE, "192.168.0.100");
        let (redirected, faults) = outcome(&[("a", first.clone()), ("b", given(40_000, 10250))]);
        assert_eq!(redirected, ["192.168.0.100:40000 b"]);
        assert_eq!(
            faults,
            [
                "a 192.168.0.100:10250: it is an address of b too",
                "b 192.168.0.100:10250: it is an address of a too",
            ]
        );
        let (redirected, faults) = outcome(&[("a", first), ("b", given(40_000, 40_000))]);
        assert_eq!(redirected, ["192.168.0.100:10250 a", "192.168.0.100:40000 b"]);
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn a_node_cannot_choose_the_port_that_is_led_to_it() {
        let claimed = node(EDGE, &[("InternalIP", "192.168.0.100")], 40_000);
        let (redirected, faults) = outcome(&[("a", claimed.clone())]);
        assert!(redirected.is_empty());
        assert_eq!(faults, ["a 192.168.0.100:40000: port 40000 was not given to it by the controller"]);
        // Nor somebody else's.
        let (redirected, _) = outcome(&[("a", claimed), ("b", given(40_000, 40_000))]);
        assert!(redirected.is_empty());
        let labelled: Node = serde_json::from_value(json!({
            "metadata": { "labels": { LABEL_EDGE_WORKER: EDGE, LABEL_KUBELET_PORT: "443" } },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.9" }],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": 443 } } },
        }))
        .unwrap();
        assert!(outcome(&[("a", Claims::from(&labelled))]).0.is_empty());
    }

    #[test]
    fn a_port_that_was_given_is_led_to_the_edge_node_whoever_else_has_the_address_but_the_api_server() {
        for cloud in [internal(CLOUD, "192.168.0.100"), internal("", "192.168.0.100")] {
            let (redirected, faults) = outcome(&[("edge", given(40_000, 40_000)), ("worker", cloud)]);
            assert_eq!((redirected, faults), (vec!["192.168.0.100:40000 edge".to_owned()], vec![]));
        }
        for address in ["10.80.0.2", "10.80.0.3"] {
            let claims = Claims { given: Some(40_000), ..node(EDGE, &[("InternalIP", address)], 40_000) };
            assert!(outcome(&[("edge", claims)]).0.is_empty());
        }
    }

    #[test]
    fn only_an_address_that_nobody_shares_may_be_dialled_directly_and_at_kubelets_own_port() {
        let direct = |nodes: &[(&str, Claims)]| {
            let nodes = nodes.iter().map(|(name, claims)| ((*name).to_owned(), claims.clone())).collect();
            let (endpoints, _) = decide(&nodes, &around());
            let may = |address: &SocketAddr| endpoints.endpoint(*address).unwrap().direct;
            endpoints
                .addresses()
                .iter()
                .filter(|address| may(address))
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let a = internal(EDGE, "192.168.0.100");
        assert_eq!(direct(&[("a", a.clone())]), ["192.168.0.100:10250"]);
        assert!(direct(&[("a", a), ("b", given(40_000, 40_000))]).is_empty());
        assert!(direct(&[("b", given(40_000, 40_000))]).is_empty());
    }
}
