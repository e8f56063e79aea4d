//! What `convert` is going to do, decided from what is there and what was asked, before anything is changed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use yurt_api::{
    names,
    status::{ClusterConfig, ConversionState},
};

use crate::{
    cluster::node::{self, known},
    error::Error,
    options::nodes::{Split, TunnelAddresses},
    output::words::{self, join},
};

/// The oldest Kubernetes on which the eviction policy works (ValidatingAdmissionPolicy is GA).
const OLDEST_MINOR: u32 = 30;
/// The first Kubernetes with MutatingAdmissionPolicy as GA.
const MUTATING_MINOR: u32 = 36;

/// Version of the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// `1`
    pub major: u32,
    /// `36`
    pub minor: u32,
}

impl ServerVersion {
    /// Reads `major` and `minor` of `/version`; some distributions put a `+` behind the minor one.
    pub fn parse(major: &str, minor: &str) -> Option<Self> {
        let digits = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        Some(Self { major: digits(major)?, minor: digits(minor)? })
    }

    /// Refuses a server that is too old.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with both versions.
    pub fn check(self) -> Result<(), Error> {
        if self >= (Self { major: 1, minor: OLDEST_MINOR }) {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "this cluster runs Kubernetes {}.{}, and 1.{OLDEST_MINOR} or newer is needed; nothing was changed",
            self.major, self.minor
        )))
    }

    /// The server has MutatingAdmissionPolicy.
    pub fn has_mutating_policies(self) -> bool {
        self >= (Self { major: 1, minor: MUTATING_MINOR })
    }
}

/// Which nodes become what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Nodes to be edge nodes, those that are already included.
    pub edge: BTreeSet<String>,
    /// Nodes to be labelled as cloud nodes.
    pub cloud: BTreeSet<String>,
}

/// Chooses the nodes. `selected` are the names that the server found for a selector.
///
/// # Errors
///
/// [`Error::Refused`] when a name is unknown or the result makes no sense.
pub fn choose(nodes: &[Node], split: &Split, selected: &BTreeSet<String>) -> Result<Choice, Error> {
    let by_name: BTreeMap<String, &Node> = nodes.iter().map(|node| (node.name_any(), node)).collect();
    let all: BTreeSet<String> = by_name.keys().cloned().collect();
    let is_edge = |name: &String| by_name.get(name).is_some_and(|node| node::is_edge(node));

    // Nodes that became edge nodes in an earlier run stay what they are.
    let beside =
        |edge: &BTreeSet<String>| all.difference(edge).filter(|name| !is_edge(name)).cloned().collect();
    let (edge, cloud): (BTreeSet<String>, BTreeSet<String>) = match split {
        Split::Cloud(cloud) => {
            known(cloud, &all)?;
            if let Some(name) = cloud.iter().find(|name| is_edge(name)) {
                return Err(Error::Refused(format!(
                    "node {name:?} is an edge node: `kubectl yurt revert` brings the cluster back first; nothing was changed"
                )));
            }
            (all.difference(cloud).cloned().collect(), cloud.clone())
        }
        Split::Edge(edge) => {
            known(edge, &all)?;
            (edge.clone(), beside(edge))
        }
        Split::Labelled(_) => (selected.clone(), beside(selected)),
    };

    if edge.is_empty() {
        let why = match split {
            Split::Labelled(selector) => format!("no node has the labels {selector:?}"),
            Split::Cloud(_) | Split::Edge(_) => "every node stays in the cloud".to_owned(),
        };
        return Err(Error::Refused(format!("{why}: there is nothing to convert")));
    }
    let control_plane: BTreeSet<String> = by_name
        .iter()
        .filter(|(_, node)| node::is_control_plane(node))
        .map(|(name, _)| name.clone())
        .collect();
    if !control_plane.is_empty() && control_plane.is_subset(&edge) {
        return Err(Error::Refused(format!(
            "every control-plane node ({}) would become an edge node: list at least one in --cloud-nodes; nothing was \
             changed",
            join(&control_plane)
        )));
    }
    if cloud.is_empty() {
        return Err(Error::Refused(
            "no node would stay in the cloud, where the controller runs; nothing was changed".into(),
        ));
    }
    Ok(Choice { edge, cloud })
}

/// What is to be done with each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// Nodes to bring to *edge* and follow.
    pub convert: BTreeSet<String>,
    /// Nodes that are edge nodes already.
    pub converted: BTreeSet<String>,
    /// Those of them that are there and get another release; see [`upgrades`].
    pub upgrade: BTreeSet<String>,
    /// Converted nodes that are not reachable now: their keepers catch up by themselves.
    pub away: BTreeSet<String>,
    /// Cloud nodes whose label is missing or different.
    pub label: BTreeSet<String>,
    /// Nodes that the tunnel server is for but that are not ready: it starts there when they are back.
    pub later: BTreeSet<String>,
}

/// Sorts the chosen nodes by what is to be done. With `tunnel` the control-plane nodes that stay in the cloud are
/// to run the tunnel server.
///
/// # Errors
///
/// [`Error::Refused`] when a node that something is to be done with is not ready, runs no Linux, or has a layout
/// that is not supported, or when no node is there for the tunnel server.
pub fn work(nodes: &[Node], choice: &Choice, tunnel: bool) -> Result<Work, Error> {
    let mut work = Work::default();
    let (mut unready, mut foreign, mut layouts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut layout = |node: &Node| {
        layouts.extend(node::foreign_layout(node).map(|layout| format!("{} ({layout})", node.name_any())));
    };
    let mut servers = 0;
    for node in nodes {
        let name = node.name_any();
        if choice.cloud.contains(&name) {
            if tunnel && node::is_control_plane(node) {
                layout(node);
                servers += 1;
                if !node::is_ready(node) {
                    work.later.insert(name.clone());
                }
            }
            if node::edge_label(node) != Some("false") {
                work.label.insert(name);
            }
            continue;
        }
        if !choice.edge.contains(&name) {
            continue;
        }
        let converted = node::conversion(node)
            .is_some_and(|status| status.state == ConversionState::Converted)
            && node::edge_label(node) == Some("true")
            && !node::is_reverting(node);
        if converted {
            if !node::is_ready(node) {
                work.away.insert(name.clone());
            }
            work.converted.insert(name);
            continue;
        }
        layout(node);
        if !node::is_ready(node) {
            unready.insert(name.clone());
        }
        if node.labels().get("kubernetes.io/os").is_some_and(|os| os != "linux") {
            foreign.insert(name.clone());
        }
        work.convert.insert(name);
    }
    if !layouts.is_empty() {
        return Err(Error::Refused(format!(
            "not supported yet: {}; what is changed on a node is what kubeadm has laid out, so leave these nodes out; \
             nothing was changed",
            join(&layouts)
        )));
    }
    if servers > 0 && work.later.len() == servers {
        return Err(Error::Refused(format!(
            "no control-plane node that stays in the cloud is ready ({}), and the tunnel server runs on such nodes: \
             bring one back, or pass --skip-tunnel; nothing was changed",
            join(&work.later)
        )));
    }
    if !unready.is_empty() {
        return Err(Error::Refused(format!(
            "{} not ready: {}; bring {} back or leave {} out; nothing was changed",
            words::nodes(unready.len()),
            join(&unready),
            if unready.len() == 1 { "it" } else { "them" },
            if unready.len() == 1 { "it" } else { "them" },
        )));
    }
    if !foreign.is_empty() {
        return Err(Error::Refused(format!(
            "{} no Linux: {}; only Linux nodes can be edge nodes; nothing was changed",
            if foreign.len() == 1 { "this node runs" } else { "these nodes run" },
            join(&foreign)
        )));
    }
    Ok(work)
}

/// The edge nodes that report another release than the one that they are about to get. A node that is away is not
/// among them: nobody waits for it.
pub fn upgrades(nodes: &[Node], work: &Work, release: Option<&str>) -> BTreeSet<String> {
    let Some(release) = release else { return BTreeSet::new() };
    let differs = |node: &Node| {
        node::conversion(node).is_some_and(|status| status.version.trim_start_matches('v') != release)
    };
    let names = nodes.iter().filter(|node| differs(node)).map(|node| node.name_any());
    names.filter(|name| work.converted.contains(name) && !work.away.contains(name)).collect()
}

/// Where agents and plugins reach the tunnel server: what was asked for, what an earlier run decided, or the
/// addresses of the control-plane nodes that stay in the cloud.
///
/// # Errors
///
/// [`Error::Refused`] when no address can be found.
pub fn cluster_config(
    nodes: &[Node],
    choice: &Choice,
    asked: Option<&TunnelAddresses>,
    earlier: Option<ClusterConfig>,
) -> Result<ClusterConfig, Error> {
    let Some(asked) = asked else { return Ok(ClusterConfig::default()) };
    let servers: Vec<&str> = nodes
        .iter()
        .filter(|node| node::is_control_plane(node) && choice.cloud.contains(&node.name_any()))
        .filter_map(node::internal_ip)
        .collect();
    let discovered = |port: u16| -> Vec<String> { servers.iter().map(|ip| host_port(ip, port)).collect() };
    let earlier = earlier.unwrap_or_default();
    let pick = |asked: &[String], earlier: Vec<String>, port: u16| {
        if !asked.is_empty() {
            asked.to_vec()
        } else if !earlier.is_empty() {
            earlier
        } else {
            discovered(port)
        }
    };
    let config = ClusterConfig {
        tunnel_addresses: pick(&asked.agents, earlier.tunnel_addresses, names::TUNNEL_AGENT_PORT),
        tunnel_api_addresses: pick(&asked.plugins, earlier.tunnel_api_addresses, names::TUNNEL_API_PORT),
    };
    if config.tunnel_addresses.is_empty() || config.tunnel_api_addresses.is_empty() {
        return Err(Error::Refused(format!(
            "no node with the label {} and an InternalIP stays in the cloud, and the tunnel server runs on such nodes: \
             pass --skip-tunnel to do without the tunnel",
            names::LABEL_CONTROL_PLANE
        )));
    }
    Ok(config)
}

/// `host:port`, with brackets around an IPv6 address.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
