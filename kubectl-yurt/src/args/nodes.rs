//! The words of the verbs that change nodes: `convert`, `revert`, `autonomy`.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{Format, duration};

/// `convert`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["cloud_nodes", "edge_nodes", "selector"]))]
pub struct ConvertArgs {
    /// Nodes that stay in the cloud; every other node becomes an edge node
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    pub cloud_nodes: Vec<String>,
    /// Nodes that become edge nodes
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    pub edge_nodes: Vec<String>,
    /// Nodes with these labels become edge nodes
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Image of yurtd [default: this plugin's version]
    #[arg(long)]
    pub image: Option<String>,
    /// Show what would be done, as this program knows it or as the server answers
    #[arg(long, value_name = "STRATEGY", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub dry_run: DryRun,
    /// How long to wait for the components, and then for each node
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How many nodes to convert at once, after the first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_parallel: u16,
    /// Where edge nodes reach the tunnel server [default: the control-plane nodes' addresses, port 10262]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "skip_tunnel")]
    pub tunnel_address: Vec<String>,
    /// Where this plugin reaches the tunnel server [default: the control-plane nodes' addresses, port 10263]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "skip_tunnel")]
    pub tunnel_api_address: Vec<String>,
    /// Do without the tunnel
    #[arg(long)]
    pub skip_tunnel: bool,
    /// Do not restart the nodes' infrastructure agents (kube-proxy, the CNI's): they go past the hub until somebody does
    #[arg(long)]
    pub keep_agents: bool,
    /// Let kubectl yurt exec and port-forward past admission policies and webhooks for CONNECT, which only the API
    /// server asks [default: as an earlier run decided, or false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        conflicts_with = "skip_tunnel")]
    pub allow_connect_admission_bypass: Option<bool>,
    /// How pods of edge nodes come to the hub [default: as an earlier run decided, or auto]
    #[arg(long, value_name = "WAY")]
    pub way_in: Option<AskedWayIn>,
}

/// `--way-in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AskedWayIn {
    /// At the Service's address where kube-proxy carries it, or else by their environment
    Auto,
    /// At the address of Service default/kubernetes, from where a table of the node's leads to the hub
    Service,
    /// By KUBERNETES_SERVICE_HOST in their environment
    Environment,
}

/// `--dry-run`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Do it
    #[default]
    None,
    /// Print the objects and the plan
    Client,
    /// Send the objects to the server, which stores nothing
    Server,
}

/// `revert`.
#[derive(Debug, Clone, Args)]
pub struct RevertArgs {
    /// How long to wait for each node
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How many nodes to revert at once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_parallel: u16,
    /// Do not restart the nodes' infrastructure agents (kube-proxy, the CNI's): they miss the hub until somebody does
    #[arg(long)]
    pub keep_agents: bool,
}

/// `autonomy`.
#[derive(Debug, Subcommand)]
pub enum AutonomyCommand {
    /// Keep the pods of these nodes when their link is lost
    Enable(AutonomyChangeArgs),
    /// Let Kubernetes evict the pods of these nodes again when they are away
    Disable(AutonomyChangeArgs),
    /// Show which nodes are autonomous and whether that is in effect
    Status(AutonomyStatusArgs),
}

/// `autonomy enable`, `autonomy disable`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["nodes", "selector", "all"]))]
pub struct AutonomyChangeArgs {
    /// The nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Edge nodes with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Every edge node
    #[arg(long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `autonomy status`.
#[derive(Debug, Clone, Args)]
pub struct AutonomyStatusArgs {
    /// The nodes [default: every edge node]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}
