//! Which edge node gets a kubelet port of its own, because another Node is at its address. Pure.
//!
//! A node keeps kubelet's own port if nobody else is at (address, port), or if all who are can be moved and it is the
//! eldest of them (creation timestamp, then name). Whoever has been given a port keeps it for as long as its Node exists,
//! also when the others have gone: connections and caches of the API server and of metrics-server know it by then. A port
//! is given once in the cluster, and not once an address, since addresses change; only when the range is used up is one
//! given to nodes of different addresses.
//!
//! A node can be moved only when its hub is there to publish the port ([`is_movable`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use yurt_api::kubelet_port::{self, RANGE};
use yurt_api::names;
use yurt_api::node::Kind;
use yurt_api::status::{ConversionState, ConversionStatus};

/// A port that was given to a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) port: u16,
    /// Of the Node: one that was made anew under its name is another.
    pub(super) uid: String,
}

/// The ports that were given, by the Node's name.
pub(super) type Ports = BTreeMap<String, Given>;

impl Given {
    /// As it is kept: the port, and the Node's uid.
    pub(super) fn to_text(&self) -> String {
        format!("{} {}", self.port, self.uid)
    }

    /// Reads what was kept; nothing if somebody wrote something else there.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let (port, uid) = text.split_once(' ')?;
        let port = kubelet_port::parse(port)?;
        (!uid.is_empty()).then(|| Self { port, uid: uid.to_owned() })
    }
}

fn conversion(node: &Node) -> Option<ConversionState> {
    let report = node.annotations().get(names::ANNOTATION_CONVERSION)?;
    serde_json::from_str::<ConversionStatus>(report).ok().map(|status| status.state)
}

/// Whether the node has a hub that publishes a port.
pub(super) fn is_movable(node: &Node) -> bool {
    Kind::of(node.metadata.labels.as_ref()).is_edge() && conversion(node) == Some(ConversionState::Converted)
}

/// Whether a port that was given goes back, with the Node as it is now. A conversion in either direction is no reason: it
/// may fail, and leave things as they were. Nor is a report that is not there, which will be.
pub(super) fn is_over(given: &Given, node: Option<&Node>) -> bool {
    node.is_none_or(|node| {
        node.metadata.uid.as_deref() != Some(&given.uid)
            || !Kind::of(node.metadata.labels.as_ref()).is_edge()
            || conversion(node) == Some(ConversionState::Reverted)
    })
}

/// A Node, as far as it matters here.
struct Contender<'a> {
    name: String,
    node: &'a Node,
    movable: bool,
    addresses: BTreeSet<IpAddr>,
    /// As its status says.
    port: u16,
}

impl<'a> Contender<'a> {
    fn of(node: &'a Node) -> Self {
        let status = node.status.as_ref();
        let addresses = status.into_iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let port = status
            .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
            .and_then(|endpoint| u16::try_from(endpoint.port).ok())
            .filter(|port| *port != 0)
            .unwrap_or(names::KUBELET_PORT);
        Self {
            name: node.name_any(),
            node,
            movable: is_movable(node),
            addresses: internal
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical())
                .collect(),
            port,
        }
    }
}

/// Who is where.
#[derive(Default)]
struct Taken(HashSet<(IpAddr, u16)>);

impl Taken {
    fn is(&self, one: &Contender<'_>, port: u16) -> bool {
        one.addresses.iter().any(|ip| self.0.contains(&(*ip, port)))
    }

    fn take(&mut self, one: &Contender<'_>, port: u16) {
        self.0.extend(one.addresses.iter().map(|ip| (*ip, port)));
    }
}

/// Gives ports to those who need one; what was given stays. Returns the nodes for which there is none left.
pub(super) fn give<'a>(nodes: impl IntoIterator<Item = &'a Node>, ports: &mut Ports) -> Vec<String> {
    let mut nodes: Vec<Contender<'_>> = nodes.into_iter().map(Contender::of).collect();
    // The eldest first. One that does not say when it was made is as old as can be.
    nodes.sort_by_cached_key(|one| {
        let created = one.node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, one.name.clone())
    });
    adopt(&nodes, ports);
    let mut taken = Taken::default();
    for one in &nodes {
        match ports.get(&one.name).map(|given| given.port) {
            // Two who were given the same port meet only if the range was used up before addresses changed: the younger
            // one gives way.
            Some(given) if taken.is(one, given) => drop(ports.remove(&one.name)),
            Some(given) => {
                taken.take(one, given);
                // Without its hub it says kubelet's own port, and may be found there whatever it was given.
                if !one.movable {
                    taken.take(one, one.port);
                }
            }
            None => {}
        }
    }
    for one in nodes.iter().filter(|one| !one.movable && !ports.contains_key(&one.name)) {
        taken.take(one, one.port);
    }
    let used: HashSet<u16> = ports.values().map(|given| given.port).collect();
    let mut unused = RANGE.filter(|port| !used.contains(port));
    let mut without = Vec::new();
    for one in nodes.iter().filter(|one| one.movable) {
        if ports.contains_key(&one.name) {
            continue;
        }
        if !taken.is(one, one.port) {
            taken.take(one, one.port);
            continue;
        }
        let Some(uid) = one.node.metadata.uid.clone() else { continue };
        let mut free = unused.by_ref().chain(RANGE).filter(|port| !taken.is(one, *port));
        let Some(port) = free.next() else {
            without.push(one.name.clone());
            continue;
        };
        taken.take(one, port);
        ports.insert(one.name.clone(), Given { port, uid });
    }
    without
}

/// Takes over what labels say and nothing else does: what was kept is lost, and is made of them again.
fn adopt(nodes: &[Contender<'_>], ports: &mut Ports) {
    let mut known: HashSet<u16> = ports.values().map(|given| given.port).collect();
    for one in nodes.iter().filter(|one| one.movable) {
        let (Some(port), Some(uid)) =
            (kubelet_port::of(one.node.metadata.labels.as_ref()), one.node.metadata.uid.clone())
        else {
            continue;
        };
        if !ports.contains_key(&one.name) && known.insert(port) {
            ports.insert(one.name.clone(), Given { port, uid });
        }
    }
}

#[cfg(test)]
mod tests;
