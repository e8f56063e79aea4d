//! Root of `yurtd-cloud controller`: the cloud's part of autonomy and of the certificates.
//!
//! One replica works at a time ([`elect`], [`election`]). While it does ([`term`]), four reconcilers go round whenever
//! the cluster changes, and every ten seconds anyway: what somebody deleted or edited is put right.
//!
//! | decides (pure) | applies | writes |
//! |---|---|---|
//! | [`autonomy`] | [`nodes`] | AutonomousNodes `yurt-autonomous-nodes`, node condition `Autonomy`, Events |
//! | [`kubelet_ports`] | [`ports`] | ConfigMap `yurt-kubelet-ports`, label of nodes that share an address |
//! | [`approval`] | [`requests`] | approval of the tunnel servers' certificate requests |
//! | [`tunnel_ca`] | [`certificates`] | Secrets and ConfigMap of the tunnel's CA and serving certificate |
//!
//! Nothing that keeps pods alive depends on this process: the admission policies are inside the API
//! server and go on with their parameter as it was.

pub mod approval;
mod autonomy;
mod certificates;
mod context;
mod elect;
mod election;
mod health;
mod kubelet_ports;
mod nodes;
mod ports;
mod requests;
mod term;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tunnel_ca;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_api::names;
use yurt_node::supervise::Tasks;

use self::elect::elect;
use self::health::Pulse;
use self::term::Settings;

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent: on a watch there is a bookmark every minute, so that more than two
/// mean a connection that nobody told us is gone.
const SILENCE: Duration = Duration::from_secs(150);
/// How long the role may take to stop: the last write, and letting go of the Lease. The pod is killed after 30 s.
const LAST: Duration = Duration::from_secs(25);

/// What the role is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of our components.
    pub namespace: String,
    /// Identity in the leader election: the pod's name.
    pub identity: String,
    /// Folder with the mounted cluster configuration.
    pub config_dir: PathBuf,
    /// Port for probes (`/healthz`).
    pub health_port: u16,
}

/// Runs the role until `stop`, then lets go of the Lease.
///
/// # Errors
///
/// When there is no cluster to talk to, when the port for probes is taken, or when a part of the role ended.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    // In a pod: KUBERNETES_SERVICE_HOST, an address, so that nothing has to be resolved.
    let mut config = match kube::Config::incluster_env() {
        Ok(config) => config,
        Err(_) => kube::Config::infer().await.context("cannot find out how to reach the cluster")?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    let client = kube::Client::try_from(config).context("cannot make a client for the cluster")?;
    let listener = listen(options.health_port)
        .await
        .with_context(|| format!("cannot listen on port {} for probes", options.health_port))?;
    let settings = Settings {
        namespace: options.namespace,
        identity: options.identity,
        config_file: options.config_dir.join(names::CONFIG_KEY),
    };
    let pulse = Pulse::new();
    let tasks = Tasks::new(stop.clone());
    tasks.part("the port for probes", health::serve(listener, pulse.clone(), tasks.clone()));
    tasks.part("the work of the leader", elect(client, settings, pulse, stop));
    let outcome = tasks.until_stopped().await;
    let left = tasks.finish(LAST).await;
    if left > 0 {
        tracing::warn!(tasks = left, "some tasks did not end in time");
    }
    Ok(outcome?)
}

/// Every address, of both families where the node has IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}
