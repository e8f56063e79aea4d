//! Command line of the keeper.

use std::path::PathBuf;

use clap::Parser;
use yurt_api::names;

/// Installs, repairs and removes the edge service of kubectl-yurt on this node (runs in the DaemonSet).
#[derive(Debug, Parser)]
#[command(name = "yurtd-keeper", version)]
pub(crate) struct Cli {
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Namespace of our components
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// The program to install
    #[arg(long, default_value = "/yurtd")]
    pub(crate) program: PathBuf,
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

impl From<Cli> for yurt_keeper::Options {
    fn from(args: Cli) -> Self {
        let Cli { node_name, namespace, program, host_root, config_dir, tunnel_ca_dir } = args;
        Self { node_name, namespace, program, host_root, config_dir, tunnel_ca_dir }
    }
}
