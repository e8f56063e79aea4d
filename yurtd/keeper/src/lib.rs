//! Root of `yurtd-keeper`, the DaemonSet's pod: the only thing of ours that edits a node. It brings the node from
//! *vanilla* to *edge* and keeps it there, or brings it back.
//!
//! ```text
//! passes (own Node: target) ─► engine::reconcile ─► parts ─► host (files), systemd (units)
//!                                   │                   └► cluster (API server, hub)
//!                                   └─ journal (on the node, before each action)
//! ```
//!
//! It acts with the node's own client certificate, for which it needs no rights of its own, and keeps running
//! wherever it stands when it is killed: `engine` says how.

mod agents;
mod arguments;
pub mod came;
mod cluster;
mod containers;
pub mod end_container;
mod engine;
mod flags;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod journal;
mod kubeconfig;
mod look;
mod maintain;
#[cfg(test)]
mod manifests;
mod parts;
mod passes;
mod pause;
#[cfg(test)]
mod sim;
mod systemd;
#[cfg(test)]
mod tests;
mod tunnel;
mod units;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use yurt_api::names;

use self::cluster::ApiCluster;
use self::engine::{Engine, Settings, Sources};
use self::journal::Release;
use self::systemd::Bus;

/// Where kubelet reads why a container ended (`terminationMessagePath`, whose default this is).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What the role is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node.
    pub node_name: String,
    /// Namespace of our components.
    pub namespace: String,
    /// The program to install, in this container.
    pub program: PathBuf,
    /// Where the host's root folders are mounted in this container.
    pub host_root: PathBuf,
    /// Folder with the mounted cluster configuration.
    pub config_dir: PathBuf,
    /// Folder with the mounted certificate of the tunnel CA.
    pub tunnel_ca_dir: PathBuf,
}

/// Runs the role until `stop`.
///
/// # Errors
///
/// When the role cannot start or cannot go on.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        // Whatever is half done is in the journal; the next keeper goes on from there.
        () = stop.cancelled() => Ok(()),
        outcome = keep(options) => outcome,
    }
}

async fn keep(args: Options) -> anyhow::Result<()> {
    let release = Release {
        version: env!("CARGO_PKG_VERSION").into(),
        digest: host::digest(&args.program)
            .with_context(|| format!("cannot read the program to install, {}", args.program.display()))?,
    };
    tracing::info!(node = %args.node_name, release = %release.folder(), "keeper started");
    let engine = Engine::new(
        new_host(&args.host_root),
        Bus::new(&args.host_root.join("run/dbus/system_bus_socket")),
        ApiCluster::new(&args.node_name, &args.namespace),
        &args.node_name,
        Sources { executable: args.program, config_dir: args.config_dir, tunnel_ca_dir: args.tunnel_ca_dir },
        settings(),
        release,
    );
    passes::watch_over(engine, &args.node_name, Path::new(TERMINATION_LOG)).await
}

fn settings() -> Settings {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    Settings {
        hub_limit: Duration::from_secs(60),
        upgrade_limit: Duration::from_secs(30),
        kubelet_limit: Duration::from_secs(90),
        settle: Duration::from_secs(5),
        agent_limit: Duration::from_secs(90),
        agent_settle: Duration::from_secs(5),
        agents_limit: Duration::from_secs(180),
        way_in_limit: Duration::from_secs(10),
        poll: Duration::from_millis(500),
        ports: vec![
            loopback(names::HUB_PORT),
            loopback(names::HUB_HEALTH_PORT),
            // Its addresses are not there yet; whoever has the port anywhere has it there.
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), names::HUB_POD_PORT),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), names::HUB_POD_PORT),
        ],
        free_bytes: 128 * 1024 * 1024,
        clock_skew: 300,
        now: Timestamp::now,
    }
}

#[cfg(not(test))]
fn new_host(root: &Path) -> host::Host {
    host::Host::new(root)
}

#[cfg(test)]
fn new_host(root: &Path) -> host::Host {
    host::Host::with_fuse(root, sim::Fuse::default())
}
