//! Root of `yurtd edge`: everything of the hub and the tunnel agent is wired here, and ends here.
//!
//! Order at start: what needs no network first, so that after a reboot without a link the hub answers from its store
//! within milliseconds. systemd is told READY when the sockets are served; whether kubelet may be sent here is what
//! `/readyz` says.

pub mod address;
pub mod certificate;
pub mod routes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::EdgeArgs;
use crate::config::EdgeConfig;
use crate::filter::Filters;
use crate::link::{Link, LinkState};
use crate::node_client::NodeClient;
use crate::offline::{Offline, rebase};
use crate::request::Authenticator;
use crate::request::authenticate::NodeVerifier;
use crate::request::authorise::Permit;
use crate::request::tokens::Tokens;
use crate::serve::health::{self, Health};
use crate::serve::sockets::{self, Sockets};
use crate::serve::{Hub, listener, tls};
use crate::store::{Opened, Store};
use crate::tunnel::agent::{self, AgentConfig};
use crate::upstream::{Upstream, UpstreamConfig};
use crate::view::Views;
use certificate::CertificateState;

/// Connections and watches have this long to end when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the role until it is told to stop.
///
/// # Errors
///
/// When the role cannot start.
pub async fn run(args: EdgeArgs) -> anyhow::Result<()> {
    let config = EdgeConfig::load(&args.config)?;
    let sockets = sockets::open()?;
    let stop = CancellationToken::new();
    let edge = Edge::start(config, &args.state_dir, sockets, stop.clone()).await?;
    notify(&[NotifyState::Ready]);
    let watchdog = edge.tasks.spawn(watchdog(stop.clone()));
    let broken = edge.broken.clone();
    let outcome = tokio::select! {
        outcome = terminated() => outcome,
        // What answers from a damaged store must not go on: systemd starts the process again, which sets the store
        // aside and fills a new one.
        () = broken.cancelled() => Err(anyhow::anyhow!("the store is damaged; the next start sets it aside")),
    };
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    edge.stop().await;
    watchdog.abort();
    outcome
}

/// The running role.
pub struct Edge {
    /// What the health port says.
    pub health: Arc<Health>,
    /// Cancelled when the store turns out to be damaged.
    pub broken: CancellationToken,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Edge {
    /// Wires the hub and starts serving.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or a socket not be used.
    pub async fn start(
        config: EdgeConfig,
        state_dir: &Path,
        sockets: Sockets,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let tasks = TaskTracker::new();
        let node = &config.node_name;
        let client_ca = read_certificates(&config.client_ca_file)?;
        let verifier = NodeVerifier::new(&client_ca, node)
            .with_context(|| format!("{} is no CA", config.client_ca_file.display()))?;
        let node_permit = Permit::of_node(verifier.user());

        let (store, opened) = Store::open(state_dir).context("cannot open the store")?;
        if let Opened::Replaced { set_aside, reason } = opened {
            tracing::error!(reason, set_aside = %set_aside.display(), "the store could not be used and was set aside");
        }
        let broken = store.broken();
        let upstream_config = UpstreamConfig {
            servers: config.api_servers.clone(),
            ca_file: config.ca_file.clone(),
            client_certificate: config.client_certificate.clone(),
            client_key: config.client_key.clone(),
        };
        let (upstream, link) = Upstream::start(&upstream_config, stop.clone())?;
        let views = Views::load(&store, &upstream, &link, &node_permit, stop.clone())?;
        let client = NodeClient::new(upstream.clone());
        let tokens = Tokens::open(store.clone(), client.clone(), link.clone(), tasks.clone()).await;
        let offline = Offline::open(store, views.clone(), node, &config.kubelet_version).await;
        let offline = Arc::new(offline);
        let hub = Arc::new(Hub {
            authenticator: Authenticator::new(verifier, tokens, link.clone()),
            views,
            upstream,
            link: link.clone(),
            offline: offline.clone(),
            filters: Filters::new(&config.kubelet_version),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });

        let serving = Arc::new(tls::ServingCertificate::default());
        let (certificate_sender, certificate_state) = watch::channel(CertificateState::default());
        let manager = certificate::Manager {
            state_dir: state_dir.to_owned(),
            node_name: node.clone(),
            client: client.clone(),
            link: link.clone(),
            installed: serving.clone(),
            state: certificate_sender,
            stop: stop.clone(),
        };
        tasks.spawn(manager.run(certificate::load(state_dir, node)));
        tasks.spawn(rebase::run(offline.clone(), client, link.clone(), node_permit.clone(), stop.clone()));
        tasks.spawn(prewarm(offline, link.clone(), stop.clone()));
        tasks.spawn(routes::watch(link.clone(), stop.clone()));
        if !config.tunnel_servers.is_empty() {
            let agent = AgentConfig { link: Some(link.subscribe()), ..AgentConfig::from(&config) };
            tasks.spawn(agent::run(agent, stop.clone()));
        }

        let tls = Arc::new(tls::server_config(serving.clone())?);
        for socket in sockets.hub {
            let listener = TcpListener::from_std(socket).context("a hub socket cannot be used")?;
            tasks.spawn(listener::serve(hub.clone(), listener, tls.clone()));
        }
        let health = Arc::new(Health {
            hub,
            certificate: serving,
            certificate_state,
            node: (node_permit, node.clone()),
        });
        if let Some(socket) = sockets.health {
            let listener = TcpListener::from_std(socket).context("the health socket cannot be used")?;
            tasks.spawn(health::serve(health.clone(), listener));
        }
        Ok(Self { health, broken, tasks, stop })
    }

    /// Stops accepting, lets connections and watches end, but not for ever.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "some connections did not end in time");
        }
        if let Err(error) = self.health.hub.views.save().await {
            tracing::warn!(%error, "the last bookmarks could not be stored");
        }
    }
}

/// The views of kube-proxy and CoreDNS, opened again with their stored tokens when the hub has restarted and the link
/// is there.
async fn prewarm(offline: Arc<Offline>, link: Link, stop: CancellationToken) {
    let mut state = link.subscribe();
    let online = tokio::select! {
        () = stop.cancelled() => return,
        online = state.wait_for(|state| *state == LinkState::Online) => online.is_ok(),
    };
    if online {
        offline.prewarm();
    }
}

fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", path.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} holds no certificate", path.display());
    Ok(certificates)
}

async fn terminated() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Tells systemd that the runtime turns, twice as often as it wants to hear it.
async fn watchdog(stop: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => notify(&[NotifyState::Watchdog]),
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
