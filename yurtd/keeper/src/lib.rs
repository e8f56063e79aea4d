//! Root of `yurtd keeper`, the DaemonSet's pod: the only thing of ours that edits a node. It brings the node from
//! *vanilla* to *edge* and keeps it there, or brings it back.
//!
//! ```text
//! cluster::Follower (own Node: target) ─► engine::reconcile ─► steps ─► host (files), systemd (units)
//!                                              │                └► cluster (API server, hub)
//!                                              └─ journal (on the node, before each action)
//! ```
//!
//! It acts with the node's own client certificate, for which it needs no rights of its own, and keeps running
//! wherever it stands when it is killed: `engine` says how.

mod cluster;
mod containers;
mod engine;
mod flags;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod journal;
mod kubeconfig;
mod kubelet;
mod look;
mod maintain;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod sim;
mod steps;
mod systemd;
#[cfg(test)]
mod tests;
mod units;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use yurt_api::names;

use self::cluster::{ClusterError, Follower, KubeCluster, OwnNode, Route};
use self::engine::{Engine, KeeperError, Settings, Sources, Target};
use self::journal::{Release, Step};
use self::systemd::{Bus, Systemd};

/// How often a settled node is looked at for drift. All of it is local.
const DRIFT: Duration = Duration::from_secs(10);
/// Pauses after passes that failed double from the first to the last. A conversion that fails is begun again,
/// because its reason may have gone, but not often: it may restart kubelet.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const FIRST_PAUSE_AFTER_REFUSING: Duration = Duration::from_secs(15);
const FIRST_PAUSE_AFTER_UNDOING: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
const LONGEST_PAUSE_OFFLINE: Duration = Duration::from_secs(15);
/// Where kubelet reads why a container ended (`terminationMessagePath`, whose default this is).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What the role is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node.
    pub node_name: String,
    /// Namespace of our components.
    pub namespace: String,
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
    let executable = Path::new("/proc/self/exe");
    let release = Release {
        version: env!("CARGO_PKG_VERSION").into(),
        digest: host::digest(executable).context("cannot read my own program")?,
    };
    tracing::info!(node = %args.node_name, release = %release.folder(), "keeper started");
    let engine = Engine::new(
        new_host(&args.host_root),
        Bus::new(&args.host_root.join("run/dbus/system_bus_socket")),
        KubeCluster::new(&args.node_name, &args.namespace),
        &args.node_name,
        Sources {
            executable: executable.into(),
            config_dir: args.config_dir,
            tunnel_ca_dir: args.tunnel_ca_dir,
        },
        settings(),
        release,
    );
    watch_over(engine, &args.node_name, Path::new(TERMINATION_LOG)).await
}

/// Passes without end, unless the keeper can neither do nor report anything: then it ends with its reason in
/// `last_words`, which kubelet puts into the pod's status and the plugin shows.
async fn watch_over<S: Systemd>(
    mut engine: Engine<S, KubeCluster>,
    node: &str,
    last_words: &Path,
) -> anyhow::Result<()> {
    let mut follower: Option<Follower> = None;
    let mut last_seen: Option<OwnNode> = None;
    let mut pause = Pause::default();
    let mut left = String::new();
    loop {
        let outcome = pass(&mut engine, node, &mut follower, &mut last_seen).await;
        let words = match &outcome {
            Err(Ended::Unheard(error)) => error.to_string(),
            _ => String::new(),
        };
        if words != left {
            if let Err(error) = std::fs::write(last_words, &words) {
                tracing::warn!(%error, "cannot write {}", last_words.display());
            }
            left = words;
        }
        let wait = match outcome {
            Ok(()) => {
                pause = Pause::default();
                DRIFT
            }
            // What was begun is kept up as well as may be; a node that nobody has touched needs no keeper that waits.
            Err(Ended::Unheard(error)) if !engine.has_begun() => {
                return Err(anyhow::Error::new(error).context("this cannot be reported to the API server"));
            }
            Err(Ended::Unheard(error) | Ended::Heard(error)) => {
                let wait = pause.after(&error);
                tracing::warn!(%error, retry_in = ?wait, "the node is not yet what it should be");
                wait
            }
        };
        match &mut follower {
            Some(follower) => {
                // A change of the wish ends every pause; the heartbeats of the node do not.
                let wish = follower.seen.borrow_and_update().as_ref().map(wish);
                let changed = follower.seen.wait_for(|seen| seen.as_ref().map(self::wish) != wish);
                if tokio::time::timeout(wait, changed).await.is_ok() {
                    pause = Pause::default();
                }
            }
            None => tokio::time::sleep(wait).await,
        }
    }
}

fn settings() -> Settings {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    Settings {
        hub_limit: Duration::from_secs(60),
        upgrade_limit: Duration::from_secs(30),
        kubelet_limit: Duration::from_secs(90),
        settle: Duration::from_secs(5),
        poll: Duration::from_millis(500),
        ports: vec![
            loopback(names::HUB_PORT),
            loopback(names::HUB_HEALTH_PORT),
            // Its address is not there yet; whoever has the port anywhere has it there.
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), names::HUB_POD_PORT),
        ],
        free_bytes: 128 * 1024 * 1024,
        clock_skew: 300,
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

/// Why a pass ended before the node was what it should be.
enum Ended {
    /// The API server has been told, or will be when it can be reached.
    Heard(KeeperError),
    /// There is nothing to reach it with.
    Unheard(KeeperError),
}

impl From<ClusterError> for Ended {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Credentials(_) => Self::Unheard(error.into()),
            error => Self::Heard(error.into()),
        }
    }
}

/// Looks at the wish, then goes towards it.
async fn pass<S: Systemd>(
    engine: &mut Engine<S, KubeCluster>,
    node: &str,
    follower: &mut Option<Follower>,
    last_seen: &mut Option<OwnNode>,
) -> Result<(), Ended> {
    engine.identify().await.map_err(Ended::Unheard)?;
    let route = if engine.is_converted() { Route::Hub } else { Route::Direct };
    if follower.as_ref().is_none_or(|found| found.route != route) || engine.cluster().has_changed() {
        let mut ways = vec![(Route::Direct, engine.cluster().client(Route::Direct).await?)];
        if route == Route::Hub {
            ways.insert(0, (Route::Hub, engine.cluster().client(Route::Hub).await?));
        }
        engine.cluster().forget_change();
        *follower = Some(Follower::start(node, route, ways));
    }
    let Some(follower) = follower else { return Ok(()) };
    // Without having seen the Node nothing new is begun, but what was begun is kept up.
    let seen = {
        let waited = follower.seen.wait_for(Option::is_some);
        match tokio::time::timeout(Duration::from_secs(5), waited).await {
            Ok(Ok(seen)) => seen.clone(),
            _ => None,
        }
    };
    let target = seen.as_ref().or(last_seen.as_ref()).map_or(Target::Unchanged, target_of);
    let news = seen.as_ref().filter(|seen| Some(*seen) != last_seen.as_ref());
    let outcome = engine.reconcile(target, news).await.map_err(Ended::Heard);
    if seen.is_some() {
        *last_seen = seen;
    }
    outcome
}

/// What the Node asks for.
fn target_of(node: &OwnNode) -> Target {
    match node.target.as_deref() {
        Some(names::TARGET_VANILLA) => Target::Vanilla,
        // Without its label it is not ours; this pod is about to be removed.
        _ if !node.edge => Target::Unchanged,
        _ => Target::Edge,
    }
}

/// What of a Node makes a waiting keeper look again: the target, and a report that somebody removed.
fn wish(node: &OwnNode) -> (Target, bool, String) {
    (target_of(node), node.conversion.is_some(), node.kubelet_version.clone())
}

/// How long to wait after passes that failed.
#[derive(Debug, Default)]
struct Pause {
    last: Option<Duration>,
}

impl Pause {
    fn after(&mut self, error: &KeeperError) -> Duration {
        let (first, longest) = match error {
            KeeperError::Undone { failure } if failure.step <= Step::Preflight => {
                (FIRST_PAUSE_AFTER_REFUSING, LONGEST_PAUSE)
            }
            KeeperError::Undone { .. } => (FIRST_PAUSE_AFTER_UNDOING, LONGEST_PAUSE),
            KeeperError::Offline(_) | KeeperError::Cluster(_) => (FIRST_PAUSE, LONGEST_PAUSE_OFFLINE),
            _ => (FIRST_PAUSE, FIRST_PAUSE_AFTER_UNDOING),
        };
        let next = self.last.map_or(first, |last| last * 2).clamp(first, longest);
        self.last = Some(next);
        next
    }
}
