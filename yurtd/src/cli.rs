//! Command line: one subcommand a role.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use yurt_api::names;

/// What of kubectl-yurt runs on edge nodes: hub and tunnel agent.
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
    /// Say how this node fares, with or without a link, and what to do about what is wrong (for root)
    ///
    /// Exit code: 0 if all is well, 1 if something needs attention, 2 if the hub cannot be asked.
    Doctor(DoctorArgs),
    /// Hold the hub's pod address on the loopback interface (started by systemd)
    Address,
    /// End the processes of a container, which kubelet then starts again (started by the keeper)
    EndContainer(EndContainerArgs),
}

/// Arguments of `yurtd edge`.
#[derive(Debug, Args)]
pub(crate) struct EdgeArgs {
    /// Configuration that the keeper writes
    #[arg(long, default_value = names::EDGE_CONFIG)]
    pub(crate) config: PathBuf,
    /// Where the store, the node's CA and the hub's certificate live
    #[arg(long, default_value = names::STATE_DIR, env = "STATE_DIRECTORY")]
    pub(crate) state_dir: PathBuf,
    /// Where the socket for `yurtd doctor` is made
    #[arg(long, default_value = names::RUNTIME_DIR, env = "RUNTIME_DIRECTORY")]
    pub(crate) runtime_dir: PathBuf,
}

/// Arguments of `yurtd doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// How to say it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Where the hub's socket is
    #[arg(long, default_value = names::RUNTIME_DIR)]
    pub(crate) runtime_dir: PathBuf,
    /// Where the store is
    #[arg(long, default_value = names::STATE_DIR)]
    pub(crate) state_dir: PathBuf,
}

/// How a report is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// The whole report
    Json,
}

/// Arguments of `yurtd end-container`.
#[derive(Debug, Args)]
pub(crate) struct EndContainerArgs {
    /// The container's id, as its runtime knows it
    pub(crate) id: String,
    /// How long it may take to end by itself
    #[arg(long, default_value_t = 30)]
    pub(crate) grace_seconds: u32,
}
