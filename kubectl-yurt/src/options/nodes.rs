//! The verbs that change nodes: `convert`, `revert`, `autonomy`.

use std::{collections::BTreeSet, time::Duration};

use super::{Faults, form};
use crate::{
    args::nodes::{AskedWayIn, AutonomyChangeArgs, AutonomyStatusArgs, ConvertArgs, DryRun, RevertArgs},
    error::Error,
    output::Form,
};

/// `convert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convert {
    /// Which nodes.
    pub which: Split,
    /// Image of yurtd; `None` to find out.
    pub image: Option<String>,
    /// Whether to do it.
    pub dry_run: DryRun,
    /// How long to wait for the components, and then for each node.
    pub timeout: Duration,
    /// Do not ask.
    pub yes: bool,
    /// How many nodes to convert at once, after the first.
    pub max_parallel: usize,
    /// Addresses of the tunnel server; `None` to do without it.
    pub tunnel: Option<TunnelAddresses>,
    /// Leave the nodes' infrastructure agents as they are.
    pub keep_agents: bool,
    /// How pods come to the hub; `None` for what an earlier run decided.
    pub way_in: Option<AskedWayIn>,
    /// Whether the tunnel server's endpoint serves what only the API server could admit; `None` for what an earlier run
    /// decided.
    pub connect_bypass: Option<bool>,
}

/// How `convert` is told which nodes stay in the cloud and which do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// These stay in the cloud.
    Cloud(BTreeSet<String>),
    /// These become edge nodes.
    Edge(BTreeSet<String>),
    /// Nodes with these labels become edge nodes. The server understands selectors, and says in kubectl's words when one
    /// makes no sense.
    Labelled(String),
}

/// Where the tunnel server is to be found, as `host:port`; where there is none it is found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelAddresses {
    /// By agents.
    pub agents: Vec<String>,
    /// By plugins.
    pub plugins: Vec<String>,
}

impl Convert {
    pub(super) fn resolve(args: ConvertArgs, faults: &mut Faults) -> Option<Self> {
        let which = if let Some(selector) = args.selector {
            Split::Labelled(selector)
        } else if args.cloud_nodes.is_empty() {
            Split::Edge(names(args.edge_nodes))
        } else {
            Split::Cloud(names(args.cloud_nodes))
        };
        let tunnel = if args.skip_tunnel {
            Some(None)
        } else {
            let agents = faults.take_all(args.tunnel_address.into_iter().map(host_and_port));
            let plugins = faults.take_all(args.tunnel_api_address.into_iter().map(host_and_port));
            agents.zip(plugins).map(|(agents, plugins)| Some(TunnelAddresses { agents, plugins }))
        };
        Some(Self {
            which,
            image: args.image,
            dry_run: args.dry_run,
            timeout: args.timeout,
            yes: args.yes,
            max_parallel: args.max_parallel.into(),
            tunnel: tunnel?,
            keep_agents: args.keep_agents,
            way_in: args.way_in,
            connect_bypass: args.allow_connect_admission_bypass,
        })
    }
}

fn names(listed: Vec<String>) -> BTreeSet<String> {
    listed.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn host_and_port(address: String) -> Result<String, Error> {
    let authority = address.parse::<http::uri::Authority>().ok();
    if authority.is_none_or(|authority| authority.port_u16().is_none() || authority.host().is_empty()) {
        return Err(Error::Refused(format!("{address:?} is not HOST:PORT")));
    }
    Ok(address)
}

/// `revert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revert {
    /// How long to wait for each node.
    pub timeout: Duration,
    /// Do not ask.
    pub yes: bool,
    /// How many nodes to revert at once.
    pub max_parallel: usize,
    /// Leave the nodes' infrastructure agents as they are.
    pub keep_agents: bool,
}

impl From<RevertArgs> for Revert {
    fn from(args: RevertArgs) -> Self {
        Self {
            timeout: args.timeout,
            yes: args.yes,
            max_parallel: args.max_parallel.into(),
            keep_agents: args.keep_agents,
        }
    }
}

/// `autonomy enable`, `autonomy disable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutonomyChange {
    /// Which nodes.
    pub which: EdgeNodes,
    /// Do not ask.
    pub yes: bool,
}

/// Which edge nodes are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeNodes {
    /// These.
    Named(BTreeSet<String>),
    /// Those with these labels.
    Labelled(String),
    /// Every one.
    All,
}

impl From<AutonomyChangeArgs> for AutonomyChange {
    fn from(args: AutonomyChangeArgs) -> Self {
        let which = match args.selector {
            Some(selector) => EdgeNodes::Labelled(selector),
            None if args.all => EdgeNodes::All,
            None => EdgeNodes::Named(args.nodes.iter().map(|name| without_kind(name)).collect()),
        };
        Self { which, yes: args.yes }
    }
}

/// `autonomy status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutonomyStatus {
    /// Which nodes.
    pub which: EdgeNodes,
    /// How to print them.
    pub form: Form,
}

impl From<AutonomyStatusArgs> for AutonomyStatus {
    fn from(args: AutonomyStatusArgs) -> Self {
        let names: BTreeSet<String> = args.nodes.iter().map(|name| without_kind(name)).collect();
        let which = if names.is_empty() { EdgeNodes::All } else { EdgeNodes::Named(names) };
        Self { which, form: form(args.output) }
    }
}

/// kubectl's `node/NAME` is `NAME`.
fn without_kind(name: &str) -> String {
    name.trim_start_matches("nodes/").trim_start_matches("node/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_s_form_of_a_name_is_understood() {
        let args = AutonomyStatusArgs { nodes: vec!["node/edge".into(), "b".into()], output: None };
        let expected = ["b".to_owned(), "edge".to_owned()].into();
        assert_eq!(AutonomyStatus::from(args).which, EdgeNodes::Named(expected));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["10.0.0.1:443", "[fd00::2]:443", "edge.example.com:1"] {
            assert_eq!(host_and_port(good.into()).as_deref().ok(), Some(good));
        }
        for bad in ["", ":443", "10.0.0.1", "a b:1", "https://a:1"] {
            assert_eq!(host_and_port(bad.into()).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }
}
