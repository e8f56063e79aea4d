//! Command line: one subcommand a role.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use yurt_api::names;

/// Edge hub, tunnel, keeper and controller of kubectl-yurt.
#[derive(Debug, Parser)]
#[command(name = "yurtd", version)]
pub struct Cli {
    /// What this process is.
    #[command(subcommand)]
    pub role: Role,
}

/// The role of the process.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Hub and tunnel agent on an edge node (started by systemd)
    Edge(EdgeArgs),
    /// Install, repair and remove the edge service on this node (runs in the DaemonSet)
    Keeper(KeeperArgs),
    /// Bring API server traffic to edge nodes (runs on control-plane nodes)
    TunnelServer(TunnelServerArgs),
    /// Autonomy policies' parameter, certificates (runs in the cloud)
    Controller(ControllerArgs),
    /// Hold or release the hub's pod address on the loopback interface (started by systemd)
    Address(AddressArgs),
}

/// Arguments of `yurtd edge`.
#[derive(Debug, Args)]
pub struct EdgeArgs {
    /// Configuration that the keeper writes
    #[arg(long, default_value = names::EDGE_CONFIG)]
    pub config: PathBuf,
    /// Where the store and the serving certificate live
    #[arg(long, default_value = names::STATE_DIR, env = "STATE_DIRECTORY")]
    pub state_dir: PathBuf,
}

/// Arguments of `yurtd keeper`.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace of our components
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Where the host's root folders are mounted in this container
    #[arg(long, default_value = "/host")]
    pub host_root: PathBuf,
    /// Folder with the mounted cluster configuration
    #[arg(long, default_value = "/etc/yurt/config")]
    pub config_dir: PathBuf,
    /// Folder with the mounted certificate of the tunnel CA
    #[arg(long, default_value = "/etc/yurt/tunnel-ca")]
    pub tunnel_ca_dir: PathBuf,
}

/// Arguments of `yurtd tunnel-server`.
#[derive(Debug, Args)]
pub struct TunnelServerArgs {
    /// Name of the node the server runs on
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Folder with the serving certificate (`tls.crt`, `tls.key`)
    #[arg(long, default_value = "/etc/yurt/tls")]
    pub tls_dir: PathBuf,
    /// Port for agents
    #[arg(long, default_value_t = names::TUNNEL_AGENT_PORT)]
    pub agent_port: u16,
    /// Port of the Kubernetes API paths for the plugin
    #[arg(long, default_value_t = names::TUNNEL_API_PORT)]
    pub api_port: u16,
    /// Port to which the API server's connections are redirected
    #[arg(long, default_value_t = names::TUNNEL_INTERCEPT_PORT)]
    pub intercept_port: u16,
    /// Port of kubelets on edge nodes; connections to others are never redirected (may be given several times)
    #[arg(long = "kubelet-port", value_name = "PORT", default_values_t = [names::KUBELET_PORT])]
    pub kubelet_ports: Vec<u16>,
}

/// Arguments of `yurtd controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Namespace of our components
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Identity in the leader election
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Folder with the mounted cluster configuration
    #[arg(long, default_value = "/etc/yurt/config")]
    pub config_dir: PathBuf,
    /// Port for probes (`/healthz`)
    #[arg(long, default_value_t = names::CONTROLLER_HEALTH_PORT)]
    pub health_port: u16,
}

/// Arguments of `yurtd address`.
#[derive(Debug, Args)]
pub struct AddressArgs {
    /// What to do with the address
    #[arg(value_enum)]
    pub action: AddressAction,
}

/// What to do with the hub's pod address.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum AddressAction {
    /// Put it on `lo`; nothing to do if it is there
    Add,
    /// Take it off `lo`; nothing to do if it is not there
    Remove,
}
