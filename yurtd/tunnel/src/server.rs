//! Root of `yurtd-cloud tunnel-server`: brings API server traffic to edge nodes that nothing can reach.
//!
//! ```text
//! API server ──connect to kubelet──► nft redirect ──► intercept ─┬► ways ─► registry ─► session ══TLS══► agent ─► kubelet
//! plugin ─────Kubernetes API paths────────────────► api ─────────┘     └──► peers ─► session ══TLS══► another server
//! agents ─────mutual TLS, WebSocket───────────────► agents ─► registry
//! servers ────mutual TLS, WebSocket───────────────► agents ─► asked (one hop at most: the registry, and no peer)
//! ```
//!
//! TLS between the API server and kubelet stays end to end on the first way: bytes are moved and never looked at.

mod agents;
pub(crate) mod api;
mod client_ca;
mod connections;
mod direct;
mod drain;
mod duplicates;
mod intercept;
mod listeners;
mod lost;
mod nft;
mod nodes;
mod peers;
mod registry;
mod ways;

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_api::names;
use yurt_api::status::{AgentStatus, LostAgent, RedirectState};
use yurt_api::tunnel::ServerId;
use yurt_node::nft::Held;
use yurt_node::pki::MountedCertificate;
use yurt_node::supervise::Tasks;

use self::agents::Agents;
use self::api::client_certificate::ClientCertificate;
pub use self::api::client_certificate::request as certificate_request;
use self::api::tunnel::{Stream, Tunnel};
use self::api::{Api, ApiOptions, ConnectAdmission, Trail};
use self::client_ca::ClientCa;
use self::connections::Connections;
use self::drain::Drain;
use self::intercept::Intercept;
use self::peers::{Asked, Found, Identity, Peers, Said, discovery};
use self::registry::{DialError, Registry};
use self::ways::Ways;
use crate::mux::session::Settings;

/// Where Kubernetes puts the cluster's CA for a pod.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// How long open streams may go on after SIGTERM; the pod is killed after 15 s.
const DRAIN: Duration = Duration::from_secs(8);
/// How long streams may take to notice that they are cut, and their records to be written.
const CUT: Duration = Duration::from_millis(500);
/// What comes after the streams: withdrawing the rules, sessions that say goodbye.
const LAST: Duration = Duration::from_secs(5);

/// What the role is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node the server runs on.
    pub node_name: String,
    /// Folder with the serving certificate (`tls.crt`, `tls.key`).
    pub tls_dir: PathBuf,
    /// Folder with the tunnel CA's certificate (`ca.crt`), by which other servers are known.
    pub tunnel_ca_dir: PathBuf,
    /// Port for agents.
    pub agent_port: u16,
    /// Port of the Kubernetes API paths for the plugin.
    pub api_port: u16,
    /// Port to which the API server's connections are redirected.
    pub intercept_port: u16,
    /// Ports of kubelets on edge nodes; connections to others are never redirected.
    pub kubelet_ports: Vec<u16>,
    /// Where audit records of the API port go; standard output if nowhere else.
    pub audit_log: Option<PathBuf>,
    /// Serve exec, attach and port-forward at the API port although admission rules for `CONNECT` are not asked there.
    pub allow_connect_admission_bypass: bool,
}

/// Wires everything and runs it until `stop`.
///
/// # Errors
///
/// When the role cannot start, or a part of it ended.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let config = kube::Config::incluster_env().context("not in a cluster")?;
    let client = kube::Client::try_from(config).context("cannot set up the client of the API server")?;
    let certificate = MountedCertificate::in_folder(&options.tls_dir);
    if !certificate.wait(&stop).await {
        return Ok(());
    }

    let id = ServerId::new(&options.node_name).context("the node name cannot be a server's id")?;
    let registry = Registry::new(id.clone());
    let identity = Identity::new(options.tunnel_ca_dir.join("ca.crt"), certificate.clone());
    let (peers, asked) = (Peers::new(id, identity.clone()), Asked::new(registry.clone()));
    let ways = Ways::new(registry.clone(), peers.clone());
    let client_ca = Arc::<ClientCa>::default();
    let client_certificate = Arc::<ClientCertificate>::default();
    let (endpoints, _) = watch::channel(None);
    let (redirect, _) = watch::channel(nft::waiting(&options.node_name));
    let agents = Arc::new(Agents {
        registry: registry.clone(),
        certificate: certificate.clone(),
        client_ca: client_ca.clone(),
        identity,
        asked: asked.clone(),
        settings: Settings::server(),
    });
    let intercept = Intercept::new(ways.clone(), endpoints.subscribe(), intercept::original_destination);
    let trail = open_trail(options.audit_log.as_deref()).context("cannot write the audit log")?;
    let (admission, admission_rules) = ConnectAdmission::new(options.allow_connect_admission_bypass);
    let api = Api::new(ApiOptions {
        client: client.clone(),
        tunnel: Arc::new(Sessions { registry: registry.clone(), peers: peers.clone(), ways }),
        client_ca: client_ca.clone(),
        certificate: client_certificate.clone(),
        serving: certificate.clone(),
        node_name: options.node_name.clone(),
        cluster_ca: std::fs::read(CLUSTER_CA).ok(),
        redirect: redirect.subscribe(),
        trail: trail.clone(),
        admission,
    })
    .context("cannot set up TLS towards kubelets")?;

    // Sessions go on until the streams in them have ended, and new streams are led to peers until then.
    let (parts, closing, kill) =
        (Tasks::new(stop.clone()), CancellationToken::new(), CancellationToken::new());
    let sessions = Connections::new(parts.clone(), kill.clone());
    let streams = Connections::new(Tasks::new(closing.clone()), kill);

    let (found, servers) = watch::channel(Found::new());
    parts.part(
        "the watch on other servers",
        discovery::follow(client.clone(), options.agent_port, found, stop.clone()),
    );
    parts.part("the sessions with other servers", peers.clone().run(servers, sessions.clone()));
    let listener = listeners::everywhere(options.agent_port)?;
    parts.part("the listener for agents", agents::run(agents, listener, sessions));
    for listener in listeners::of_each_family(options.intercept_port)? {
        let serve = intercept.clone().run(listener, streams.clone());
        parts.part("the listener for redirected connections", serve);
    }
    // The rules come after the port that they lead to.
    match nft::Redirect::new(names::NFT_TABLE, options.intercept_port) {
        Ok(table) => {
            parts.part("the redirect", nft::keep(table, endpoints.subscribe(), redirect, closing.clone()));
        }
        Err(error) => {
            tracing::error!(%error, "no redirect of the API server's connections");
            nft::say(&redirect, RedirectState::Failing, &error.to_string(), 0);
        }
    }
    let ports = options.kubelet_ports.iter().copied().collect();
    let nodes = nodes::follow(client.clone(), ports, registry.clone(), endpoints, closing);
    parts.part("the watch on nodes", nodes);
    parts.part("the serving certificate", certificate.clone().follow(stop.clone()));
    parts.part("the cluster's admission rules", admission_rules.follow(client.clone(), stop.clone()));
    parts.part("the cluster's client CA", client_ca.follow(client.clone(), stop.clone()));
    parts.part("the client certificate for kubelets", client_certificate.follow(client, stop.clone()));
    let listener = listeners::everywhere(options.api_port)?;
    parts.part("the listener for the plugin", api.serve(listener, certificate, streams.clone()));
    tracing::info!(
        agents = options.agent_port,
        api = options.api_port,
        intercept = options.intercept_port,
        "tunnel server runs"
    );

    let outcome = parts.until_stopped().await;
    stop.cancel();
    tracing::info!(streams = registry.streams(), "stopping");
    let deadline = Instant::now() + DRAIN;
    Drain { registry, asked, peers }.hand_over(deadline).await;
    let cut = streams.drain(deadline.saturating_duration_since(Instant::now())).await;
    if cut > 0 {
        tracing::info!(connections = cut, "connections that did not end in time are cut");
        streams.drain(CUT).await;
    }
    let left = parts.finish(LAST).await;
    if left > 0 {
        tracing::warn!(tasks = left, "some tasks did not end in time");
    }
    // Streams that were cut are written down, too.
    if !trail.written(CUT).await {
        tracing::error!("audit records are lost: they are not taken in time");
    }
    Ok(outcome?)
}

/// Removes the rules that a server has left on this host; nothing to do if there are none.
///
/// # Errors
///
/// When the kernel does not let it, without `CAP_NET_ADMIN` for example.
pub async fn remove_redirect() -> anyhow::Result<()> {
    let mut table = Held::open(names::NFT_TABLE)?;
    table.remove().await.context("cannot remove the redirect rules")?;
    tracing::info!(table = names::NFT_TABLE, "redirect rules removed");
    Ok(())
}

/// The file is one that others have begun, perhaps, and nobody else reads.
fn open_trail(audit_log: Option<&Path>) -> std::io::Result<Arc<Trail>> {
    match audit_log {
        Some(path) => Trail::to(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?),
        None => Trail::to(std::io::stdout()),
    }
}

/// The sessions, for the endpoint.
struct Sessions {
    registry: Arc<Registry>,
    peers: Arc<Peers>,
    ways: Ways,
}

impl Tunnel for Sessions {
    fn dial(&self, node: &str) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> {
        let (ways, node) = (self.ways.clone(), node.to_owned());
        async move { Ok(Box::new(ways.dial(&node).await?) as Box<dyn Stream>) }.boxed()
    }

    fn agents(&self) -> Vec<AgentStatus> {
        self.registry.statuses()
    }

    fn everywhere(&self) -> BoxFuture<'static, Said> {
        let (registry, peers) = (self.registry.clone(), self.peers.clone());
        async move {
            let mut said = peers.agents().await;
            said.agents.splice(..0, registry.statuses());
            said
        }
        .boxed()
    }

    fn lost(&self) -> Vec<LostAgent> {
        self.registry.lost()
    }

    fn measure(&self, node: &str, within: Duration) -> BoxFuture<'static, Option<Duration>> {
        let (registry, node) = (self.registry.clone(), node.to_owned());
        async move { registry.measure(&node, within).await }.boxed()
    }
}
