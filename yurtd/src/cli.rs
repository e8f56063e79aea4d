//! Command line: one subcommand a role.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use yurt_api::names;

/// Edge hub, tunnel, keeper and controller of kubectl-yurt.
#[derive(Debug, Parser)]
#[command(name = "yurtd", version)]
pub(crate) struct Cli {
    /// What this process is.
    #[command(subcommand)]
    pub(crate) role: Role,
}

/// The role of the process.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
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
pub(crate) struct EdgeArgs {
    /// Configuration that the keeper writes
    #[arg(long, default_value = names::EDGE_CONFIG)]
    pub(crate) config: PathBuf,
    /// Where the store and the serving certificate live
    #[arg(long, default_value = names::STATE_DIR, env = "STATE_DIRECTORY")]
    pub(crate) state_dir: PathBuf,
}

/// Arguments of `yurtd keeper`.
#[derive(Debug, Args)]
pub(crate) struct KeeperArgs {
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Namespace of our components
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// Where the host's root folders are mounted in this container
    #[arg(long, default_value = "/host")]
    pub(crate) host_root: PathBuf,
    /// Folder with the mounted cluster configuration
    #[arg(long, default_value = "/etc/yurt/config")]
    pub(crate) config_dir: PathBuf,
    /// Folder with the mounted certificate of the tunnel CA
    #[arg(long, default_value = "/etc/yurt/tunnel-ca")]
    pub(crate) tunnel_ca_dir: PathBuf,
}

/// Arguments of `yurtd tunnel-server`.
#[derive(Debug, Args)]
pub(crate) struct TunnelServerArgs {
    /// Name of the node the server runs on
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Folder with the serving certificate (`tls.crt`, `tls.key`)
    #[arg(long, default_value = "/etc/yurt/tls")]
    pub(crate) tls_dir: PathBuf,
    /// Port for agents
    #[arg(long, default_value_t = names::TUNNEL_AGENT_PORT)]
    pub(crate) agent_port: u16,
    /// Port of the Kubernetes API paths for the plugin
    #[arg(long, default_value_t = names::TUNNEL_API_PORT)]
    pub(crate) api_port: u16,
    /// Port to which the API server's connections are redirected
    #[arg(long, default_value_t = names::TUNNEL_INTERCEPT_PORT)]
    pub(crate) intercept_port: u16,
    /// Port of kubelets on edge nodes; connections to others are never redirected (may be given several times)
    #[arg(long = "kubelet-port", value_name = "PORT", default_values_t = [names::KUBELET_PORT])]
    pub(crate) kubelet_ports: Vec<u16>,
}

/// Arguments of `yurtd controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// Namespace of our components
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// Identity in the leader election
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// Folder with the mounted cluster configuration
    #[arg(long, default_value = "/etc/yurt/config")]
    pub(crate) config_dir: PathBuf,
    /// Port for probes (`/healthz`)
    #[arg(long, default_value_t = names::CONTROLLER_HEALTH_PORT)]
    pub(crate) health_port: u16,
}

/// Arguments of `yurtd address`.
#[derive(Debug, Args)]
pub(crate) struct AddressArgs {
    /// What to do with the address
    #[arg(value_enum)]
    pub(crate) action: AddressAction,
}

/// What to do with the hub's pod address.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum AddressAction {
    /// Put it on `lo`; nothing to do if it is there
    Add,
    /// Take it off `lo`; nothing to do if it is not there
    Remove,
}

impl From<AddressAction> for yurt_hub::address::Action {
    fn from(action: AddressAction) -> Self {
        match action {
            AddressAction::Add => Self::Add,
            AddressAction::Remove => Self::Remove,
        }
    }
}

impl From<KeeperArgs> for yurt_keeper::Options {
    fn from(args: KeeperArgs) -> Self {
        let KeeperArgs { node_name, namespace, host_root, config_dir, tunnel_ca_dir } = args;
        Self { node_name, namespace, host_root, config_dir, tunnel_ca_dir }
    }
}

impl From<TunnelServerArgs> for yurt_tunnel::server::Options {
    fn from(args: TunnelServerArgs) -> Self {
        let TunnelServerArgs { node_name, tls_dir, agent_port, api_port, intercept_port, kubelet_ports } =
            args;
        Self { node_name, tls_dir, agent_port, api_port, intercept_port, kubelet_ports }
    }
}

impl From<ControllerArgs> for yurt_controller::Options {
    fn from(args: ControllerArgs) -> Self {
        let ControllerArgs { namespace, pod_name, config_dir, health_port } = args;
        Self { namespace, identity: pod_name, config_dir, health_port }
    }
}
