//! Which addresses of kubelets lead to which edge node.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names::{KUBELET_PORT, LABEL_EDGE_WORKER, LABEL_EDGE_WORKER_LEGACY};

/// (Address, port) of every edge node's kubelet as the API server connects to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoints(HashMap<SocketAddr, Arc<str>>);

impl Endpoints {
    /// The node behind a destination.
    pub(super) fn node(&self, destination: SocketAddr) -> Option<&Arc<str>> {
        self.0.get(&destination)
    }

    /// All of them, sorted.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.0.keys().copied().collect();
        addresses.sort();
        addresses
    }

    /// An address that two nodes have belongs to neither: a log of one node must never be answered by the other.
    fn of(nodes: &BTreeMap<String, Vec<SocketAddr>>) -> Self {
        let mut owners: HashMap<SocketAddr, Vec<&str>> = HashMap::new();
        for (node, addresses) in nodes {
            for address in addresses {
                owners.entry(*address).or_default().push(node);
            }
        }
        let mut endpoints = HashMap::new();
        for (address, nodes) in owners {
            match nodes[..] {
                [node] => {
                    endpoints.insert(address, node.into());
                }
                _ => tracing::warn!(%address, ?nodes, "nodes with the same kubelet address are left out"),
            }
        }
        Self(endpoints)
    }
}

#[cfg(test)]
impl<const N: usize> From<[(SocketAddr, &str); N]> for Endpoints {
    fn from(endpoints: [(SocketAddr, &str); N]) -> Self {
        Self(endpoints.into_iter().map(|(address, node)| (address, node.into())).collect())
    }
}

/// The addresses at which the API server looks for a node's kubelet; none unless it is an edge node.
fn addresses_of(node: &Node) -> Vec<SocketAddr> {
    let labels = node.labels();
    let label = labels.get(LABEL_EDGE_WORKER).or_else(|| labels.get(LABEL_EDGE_WORKER_LEGACY));
    if label.is_none_or(|value| value != "true") {
        return Vec::new();
    }
    let Some(status) = &node.status else { return Vec::new() };
    let port = status
        .daemon_endpoints
        .as_ref()
        .and_then(|endpoints| endpoints.kubelet_endpoint.as_ref())
        .and_then(|endpoint| u16::try_from(endpoint.port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(KUBELET_PORT);
    let addresses = status.addresses.iter().flatten();
    let mut addresses: Vec<SocketAddr> = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse::<IpAddr>().ok())
        // A node that says so of itself could otherwise catch what the API server sends to itself.
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
        .map(|ip| SocketAddr::new(ip, port))
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Follows the Nodes until `stop`. What `endpoints` shows is complete: `None` until there was a whole list.
pub(super) async fn follow(
    client: kube::Client,
    endpoints: watch::Sender<Option<Endpoints>>,
    stop: CancellationToken,
) {
    let events = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let mut nodes = BTreeMap::new();
    let mut listed = None;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                if apply(event, &mut nodes, &mut listed) {
                    endpoints.send_if_modified(|current| {
                        let new = Some(Endpoints::of(&nodes));
                        let changed = *current != new;
                        *current = new;
                        changed
                    });
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "cannot follow the cluster's nodes; trying again"),
            None => return,
        }
    }
}

type Nodes = BTreeMap<String, Vec<SocketAddr>>;

/// Takes an event over; says whether `nodes` is complete and may have changed.
fn apply(event: Event<Node>, nodes: &mut Nodes, listed: &mut Option<Nodes>) -> bool {
    match event {
        Event::Init => *listed = Some(BTreeMap::new()),
        Event::InitApply(node) => {
            if let Some(listed) = listed {
                listed.insert(node.name_any(), addresses_of(&node));
            }
        }
        Event::InitDone => {
            if let Some(listed) = listed.take() {
                *nodes = listed;
                return true;
            }
        }
        Event::Apply(node) => {
            let addresses = addresses_of(&node);
            return nodes.insert(node.name_any(), addresses.clone()).as_ref() != Some(&addresses);
        }
        Event::Delete(node) => return nodes.remove(&node.name_any()).is_some(),
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, label: &str, address: &str, port: u16) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { LABEL_EDGE_WORKER: label } },
            "status": {
                "addresses": [
                    { "type": "Hostname", "address": name },
                    { "type": "ExternalIP", "address": "203.0.113.1" },
                    { "type": "InternalIP", "address": address },
                ],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
            },
        }))
        .unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_edge_node_is_found_by_its_internal_address_and_kubelet_port() {
        assert_eq!(
            addresses_of(&node("a", "true", "192.168.0.100", 10250)),
            [address("192.168.0.100:10250")]
        );
        assert_eq!(addresses_of(&node("a", "true", "fd00::1", 10350)), [address("[fd00::1]:10350")]);
        assert_eq!(addresses_of(&node("a", "true", "192.168.0.100", 0)), [address("192.168.0.100:10250")]);
    }

    #[test]
    fn cloud_nodes_and_odd_addresses_are_not_redirected() {
        assert_eq!(addresses_of(&node("a", "false", "192.168.0.100", 10250)), []);
        assert_eq!(addresses_of(&node("a", "true", "127.0.0.1", 10250)), []);
        assert_eq!(addresses_of(&node("a", "true", "0.0.0.0", 10250)), []);
        assert_eq!(addresses_of(&node("a", "true", "nonsense", 10250)), []);
        assert_eq!(addresses_of(&Node::default()), []);
        let legacy = serde_json::from_value(json!({
            "metadata": { "name": "b", "labels": { LABEL_EDGE_WORKER_LEGACY: "true" } },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.9" }] },
        }));
        assert_eq!(addresses_of(&legacy.unwrap()), [address("10.0.0.9:10250")]);
    }

    #[test]
    fn an_address_of_two_nodes_belongs_to_neither() {
        let shared = vec![address("192.168.0.100:10250")];
        let nodes = BTreeMap::from([
            ("a".to_owned(), shared.clone()),
            ("b".to_owned(), shared),
            ("c".to_owned(), vec![address("192.168.0.101:10250")]),
        ]);
        assert_eq!(Endpoints::of(&nodes), Endpoints::from([(address("192.168.0.101:10250"), "c")]));
    }

    #[test]
    fn a_list_replaces_everything_at_its_end() {
        let (mut nodes, mut listed) = (BTreeMap::new(), None);
        assert!(apply(Event::Apply(node("old", "true", "10.0.0.1", 10250)), &mut nodes, &mut listed));
        assert!(!apply(Event::Init, &mut nodes, &mut listed));
        assert!(!apply(Event::InitApply(node("new", "true", "10.0.0.2", 10250)), &mut nodes, &mut listed));
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["old"]);
        assert!(apply(Event::InitDone, &mut nodes, &mut listed));
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["new"]);
        // A heartbeat changes nothing.
        assert!(!apply(Event::Apply(node("new", "true", "10.0.0.2", 10250)), &mut nodes, &mut listed));
        assert!(apply(Event::Delete(node("new", "true", "10.0.0.2", 10250)), &mut nodes, &mut listed));
    }
}
