//! Command line of the program for the cloud: one subcommand a role.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use yurt_api::names;

/// What of kubectl-yurt runs in the cloud: tunnel server, controller.
#[derive(Debug, Parser)]
#[command(name = "yurtd-cloud", version)]
pub(crate) struct Cli {
    /// What this process is.
    #[command(subcommand)]
    pub(crate) role: Role,
}

/// The role of the process.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Bring API server traffic to edge nodes (runs on control-plane nodes)
    TunnelServer(TunnelServerArgs),
    /// Autonomy policies' parameter, certificates (runs in the cloud)
    Controller(ControllerArgs),
    /// Remove the redirect rules that a tunnel server has left on this host, and end
    RemoveRedirect,
}

/// Arguments of `yurtd-cloud tunnel-server`.
#[derive(Debug, Args)]
pub(crate) struct TunnelServerArgs {
    /// Name of the node the server runs on
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Folder with the serving certificate (`tls.crt`, `tls.key`)
    #[arg(long, default_value = "/etc/yurt/tls")]
    pub(crate) tls_dir: PathBuf,
    /// Folder with the tunnel CA's certificate (`ca.crt`), by which the other servers are known
    #[arg(long, default_value = "/etc/yurt/tunnel-ca")]
    pub(crate) tunnel_ca_dir: PathBuf,
    /// Port for agents, the same for all servers of the cluster
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
    /// File for the audit records of the API port, which standard output has otherwise
    #[arg(long, value_name = "PATH")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Serve exec, attach and port-forward at the API port, although admission policies and webhooks for CONNECT are not
    /// asked there
    #[arg(long)]
    pub(crate) allow_connect_admission_bypass: bool,
}

/// Arguments of `yurtd-cloud controller`.
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

impl From<TunnelServerArgs> for yurt_tunnel::server::Options {
    fn from(args: TunnelServerArgs) -> Self {
        Self {
            node_name: args.node_name,
            tls_dir: args.tls_dir,
            tunnel_ca_dir: args.tunnel_ca_dir,
            agent_port: args.agent_port,
            api_port: args.api_port,
            intercept_port: args.intercept_port,
            kubelet_ports: args.kubelet_ports,
            audit_log: args.audit_log,
            allow_connect_admission_bypass: args.allow_connect_admission_bypass,
        }
    }
}

impl From<ControllerArgs> for yurt_controller::Options {
    fn from(args: ControllerArgs) -> Self {
        let ControllerArgs { namespace, pod_name, config_dir, health_port } = args;
        Self { namespace, identity: pod_name, config_dir, health_port }
    }
}
