//! Root of `yurtd tunnel-server`: brings API server traffic to edge nodes that nothing can reach.
//!
//! ```text
//! API server ──connect to kubelet──► nft redirect ──► intercept ─┐
//! plugin ─────Kubernetes API paths────────────────► api ─────────┼─► registry ─► session ══TLS══► agent ─► kubelet
//! agents ─────mutual TLS, WebSocket───────────────► accept ──────┘ (registers)
//! ```
//!
//! TLS between the API server and kubelet stays end to end on the first way: bytes are moved and never looked at.

mod accept;
pub mod api;
mod intercept;
pub(crate) mod nft;
mod nodes;
pub mod registry;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use yurt_api::names;
use yurt_api::tunnel::Target;

use self::accept::Agents;
pub use self::api::identity::request as certificate_request;
use self::api::{Api, ApiOptions};
use self::intercept::Intercept;
pub use self::registry::{DialError, Registry};
use crate::mux::session::Settings;
use yurt_node::pki::ServingCertificate;
use yurt_node::supervise::Tasks;

/// Where Kubernetes puts the cluster's CA for a pod.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// How long open streams may go on after SIGTERM; the pod is killed after 15 s.
const DRAIN: Duration = Duration::from_secs(8);
/// What comes after the streams: withdrawing the rules, sessions that say goodbye.
const LAST: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 1024;

/// What the role is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node the server runs on.
    pub node_name: String,
    /// Folder with the serving certificate (`tls.crt`, `tls.key`).
    pub tls_dir: PathBuf,
    /// Port for agents.
    pub agent_port: u16,
    /// Port of the Kubernetes API paths for the plugin.
    pub api_port: u16,
    /// Port to which the API server's connections are redirected.
    pub intercept_port: u16,
    /// Ports of kubelets on edge nodes; connections to others are never redirected.
    pub kubelet_ports: Vec<u16>,
}

/// Wires everything and runs it until `stop`.
///
/// # Errors
///
/// When the role cannot start, or a part of it ended.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let config = kube::Config::incluster_env().context("not in a cluster")?;
    let client = kube::Client::try_from(config).context("cannot set up the client of the API server")?;
    let registry = Registry::new(options.node_name.clone());

    let certificate = ServingCertificate::in_folder(&options.tls_dir);
    if !certificate.wait(&stop).await {
        return Ok(());
    }

    let api = Api::new(api_options(client.clone(), registry.clone()))?;
    let agents = Arc::new(Agents {
        registry: registry.clone(),
        certificate: certificate.clone(),
        client_ca: api.client_ca(),
        settings: Settings::server(),
    });
    let (endpoints, _) = watch::channel(None);
    let intercept = Arc::new(Intercept {
        registry: registry.clone(),
        endpoints: endpoints.subscribe(),
        original: intercept::original_destination,
    });

    let tasks = Tasks::new(stop.clone());
    let connections = TaskTracker::new();
    let kill = CancellationToken::new();

    let agents_listener = listen_everywhere(options.agent_port)?;
    let accept = accept::run(agents, agents_listener, tasks.clone(), stop.clone(), kill.clone());
    tasks.part("the listener for agents", accept);
    for listener in listen_twice(options.intercept_port)? {
        let serve = intercept.clone().run(listener, connections.clone(), stop.clone(), kill.clone());
        tasks.part("the listener for redirected connections", serve);
    }
    // The rules come after the port that they lead to.
    match nft::Table::new(names::NFT_TABLE, options.intercept_port) {
        Ok(table) => tasks.part("the redirect", nft::keep(table, endpoints.subscribe(), stop.clone())),
        Err(error) => tracing::error!(%error, "no redirect of the API server's connections"),
    }
    let ports = options.kubelet_ports.iter().copied().collect();
    tasks.part("the watch on nodes", nodes::follow(client, ports, registry.clone(), endpoints, stop.clone()));
    tasks.part("the serving certificate", certificate.clone().follow(stop.clone()));
    let api_listener = listen_everywhere(options.api_port)?;
    tasks.part("the listener for the plugin", api.serve(api_listener, certificate, stop.clone()));
    tracing::info!(
        agents = options.agent_port,
        api = options.api_port,
        intercept = options.intercept_port,
        "tunnel server runs"
    );

    let outcome = tasks.until_stopped().await;
    stop.cancel();
    drain(&registry, &connections).await;
    kill.cancel();
    let left = tasks.finish(LAST).await;
    if left > 0 {
        tracing::warn!(tasks = left, "some tasks did not end in time");
    }
    Ok(outcome?)
}

/// Agents are asked to go, and open streams have [`DRAIN`] to end.
async fn drain(registry: &Registry, connections: &TaskTracker) {
    tracing::info!(streams = registry.streams(), "stopping");
    registry.go_away();
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::info!(streams = registry.streams(), "streams are cut");
    }
}

fn api_options(client: kube::Client, registry: Arc<Registry>) -> ApiOptions {
    let listed = registry.clone();
    let dial = move |node: String| {
        let registry = registry.clone();
        async move {
            let stream = registry.dial(&node, Target::Kubelet).await?;
            Ok(Box::new(stream) as Box<dyn api::Stream>)
        }
        .boxed()
    };
    ApiOptions {
        client,
        agents: api::Agents::new(dial, move || listed.statuses()),
        cluster_ca: std::fs::read(CLUSTER_CA).ok(),
    }
}

/// One listener for IPv6 and IPv4, or for IPv4 where there is no IPv6.
fn listen_everywhere(port: u16) -> anyhow::Result<TcpListener> {
    let listener = bind((Ipv6Addr::UNSPECIFIED, port).into(), false)
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into(), false));
    listener.with_context(|| format!("cannot listen on port {port}"))
}

/// A listener for IPv4 and, where there is IPv6, one for it: a socket of its own family knows the original
/// destination of its connections.
fn listen_twice(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into(), false);
    let mut listeners = vec![v4.with_context(|| format!("cannot listen on port {port}"))?];
    match bind((Ipv6Addr::UNSPECIFIED, port).into(), true) {
        Ok(v6) => listeners.push(v6),
        Err(error) => tracing::info!(%error, "no IPv6 on the intercept port"),
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, only_v6: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
