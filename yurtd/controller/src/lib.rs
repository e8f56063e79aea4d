//! Root of `yurtd-cloud controller`: the cloud's part of autonomy and of the certificates.
//!
//! One replica works at a time ([`election`]). While it does, three reconcilers go round whenever the
//! cluster changes, and every ten seconds anyway: what somebody deleted or edited is put right.
//!
//! | decides (pure) | applies | writes |
//! |---|---|---|
//! | [`autonomy`] | [`nodes`] | AutonomousNodes `yurt-autonomous-nodes`, node condition `Autonomy`, Events |
//! | [`approval`] | [`requests`] | approval of the hubs' and the tunnel servers' certificate requests |
//! | [`tunnel_ca`] | [`certificates`] | Secrets and ConfigMap of the tunnel's CA and serving certificate |
//!
//! Nothing that keeps pods alive depends on this process: the admission policies are inside the API
//! server and go on with their parameter as it was.

pub mod approval;
mod autonomy;
mod certificates;
mod context;
mod election;
mod health;
mod nodes;
mod requests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tunnel_ca;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt, pin_mut};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::names;

use self::certificates::Certificates;
use self::context::{Context, follow_nodes, within};
use self::election::Election;
use self::health::Pulse;
use self::nodes::{Nodes, Pass};
use self::requests::Requests;

/// How often everything is looked at although nothing seems to have changed.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent: on a watch there is a bookmark every minute, so that more than two
/// mean a connection that nobody told us is gone.
const SILENCE: Duration = Duration::from_secs(150);

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

/// Runs the role until `stop`, then lets go of the lease.
///
/// # Errors
///
/// When there is no cluster to talk to, or the port for probes is taken.
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
    let pulse = Pulse::new();
    let health = health::serve(listener, pulse.clone(), stop.clone());
    let settings = Settings {
        namespace: options.namespace,
        identity: options.identity,
        config_file: options.config_dir.join(names::CONFIG_KEY),
    };
    futures::future::join(health, elect(client, settings, pulse, stop)).await;
    Ok(())
}

/// Every address, of both families where the node has IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// What the role needs besides a client.
#[derive(Debug, Clone)]
struct Settings {
    namespace: String,
    identity: String,
    config_file: PathBuf,
}

/// Stands for election until `stop`, and works while elected.
async fn elect(client: kube::Client, settings: Settings, pulse: Pulse, stop: CancellationToken) {
    let mut election = Election::new(client.clone(), &settings.namespace, settings.identity.clone());
    let mut term: Option<Term> = None;
    let mut renewed = Instant::now();
    loop {
        pulse.beat();
        let began = Instant::now();
        // The holder has to know in time that it is not the holder any more.
        let patience = match &term {
            Some(_) => election::RENEW.saturating_sub(renewed.elapsed()),
            None => election::RENEW,
        };
        let held = tokio::select! {
            () = stop.cancelled() => break,
            held = tokio::time::timeout(patience.min(election::RENEW / 2), election.try_hold()) => held,
        };
        match held {
            Ok(Ok(true)) => {
                // When it was asked for: others count from when they saw it, which is later.
                renewed = began;
                if term.is_none() {
                    tracing::info!(identity = settings.identity, "elected");
                    term = Some(Term::begin(client.clone(), settings.clone()));
                }
            }
            Ok(Ok(false)) => {
                // The record says so: there is no grace to use up.
                if let Some(term) = term.take() {
                    tracing::warn!("another controller holds the lease");
                    term.end().await;
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot get or renew the lease"),
            Err(_) => tracing::warn!("the API server does not answer about the lease"),
        }
        if renewed.elapsed() >= election::RENEW
            && let Some(term) = term.take()
        {
            tracing::warn!("the lease could not be renewed in time: not working until it is");
            term.end().await;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(election::RETRY) => {}
        }
    }
    if let Some(term) = term.take() {
        term.end().await;
        // After the work has ended, never before.
        if let Err(error) = within(election.release()).await {
            tracing::warn!(%error, "cannot let go of the lease; it runs out by itself");
        }
    }
}

/// The time between being elected and not being so any more.
struct Term {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Term {
    fn begin(client: kube::Client, settings: Settings) -> Self {
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(work(client, settings, stop.clone())));
        Self { stop, task }
    }

    /// Returns when the reconcilers write nothing more.
    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the reconcilers ended badly");
        }
    }
}

/// The reconcilers, until `stop`.
async fn work(client: kube::Client, settings: Settings, stop: CancellationToken) {
    let (nodes, follow) = follow_nodes(client.clone(), stop.clone());
    let context = Arc::new(Context {
        client,
        namespace: settings.namespace,
        identity: settings.identity,
        nodes: nodes.clone(),
    });
    let autonomy = async {
        let mut reconciler = Nodes::new(context.clone());
        let mut changes = nodes.changes();
        nodes.ready().await;
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                _ = again.tick() => reconciler.reconcile(Pass::Full).await,
                _ = changes.changed() => reconciler.reconcile(Pass::Changed).await,
            }
        }
    };
    let certificates = async {
        let mut reconciler = Certificates::new(context.clone(), settings.config_file);
        // Without all nodes the certificate would lack names.
        nodes.ready().await;
        let mut again = tokio::time::interval(AGAIN);
        loop {
            again.tick().await;
            reconciler.reconcile().await;
        }
    };
    let approvals = async {
        let (mut reconciler, events) = Requests::new(context.clone());
        let mut changes = nodes.changes();
        nodes.ready().await;
        pin_mut!(events);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::warn!(%error, "cannot follow certificate requests; trying again");
                        continue;
                    }
                    None => return,
                },
                // A node that has been labelled since.
                _ = changes.changed() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
            reconciler.reconcile().await;
        }
    };
    let reconcilers = futures::future::join4(follow, autonomy, certificates, approvals);
    tokio::select! {
        // Between two writes: each is whole by itself, and the next leader continues.
        () = stop.cancelled() => {}
        _ = reconcilers => {}
    }
}
