//! One pass after another: looks at what the Node asks for and lets the engine go towards it, until the keeper is
//! stopped or can neither do nor report anything.

use std::path::Path;
use std::time::Duration;

use yurt_api::names;

use super::cluster::{ApiCluster, ClusterError, Follower, OwnNode, Route};
use super::engine::{Engine, KeeperError, Target};
use super::pause::{DRIFT, Pause};
use super::systemd::Systemd;

/// How long a pass waits for the first sight of its Node.
const FIRST_SIGHT: Duration = Duration::from_secs(5);

/// Passes without end, unless the keeper can neither do nor report anything: then it ends with its reason in
/// `last_words`, which kubelet puts into the pod's status and the plugin shows.
pub(crate) async fn watch_over<S: Systemd>(
    mut engine: Engine<S, ApiCluster>,
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
    engine: &mut Engine<S, ApiCluster>,
    node: &str,
    follower: &mut Option<Follower>,
    last_seen: &mut Option<OwnNode>,
) -> Result<(), Ended> {
    engine.identify().await.map_err(Ended::Unheard)?;
    let route = if engine.is_converted() { Route::Hub } else { Route::Direct };
    if follower.as_ref().is_none_or(|found| found.route != route) || engine.cluster().has_changed() {
        if route == Route::Hub
            && let Err(error) = engine.meet_hub().await
        {
            tracing::debug!(%error, "the hub is not known yet; its node is followed past it for now");
        }
        let mut ways = vec![(Route::Direct, engine.cluster().client(Route::Direct)?)];
        if route == Route::Hub {
            ways.insert(0, (Route::Hub, engine.cluster().client(Route::Hub)?));
        }
        engine.cluster().forget_change();
        *follower = Some(Follower::start(node, route, ways));
    }
    let Some(follower) = follower else { return Ok(()) };
    // Without having seen the Node nothing new is begun, but what was begun is kept up.
    let seen = {
        let waited = follower.seen.wait_for(Option::is_some);
        match tokio::time::timeout(FIRST_SIGHT, waited).await {
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
