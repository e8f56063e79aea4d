//! The own Node, followed.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use yurt_node::api_client::{ApiClient, Event};

use super::api::patiently;
use super::objects::Node;
use super::{ClusterError, OwnNode, Route};

/// How long a watch lasts before it is opened again.
const LASTING: Duration = Duration::from_secs(290);
/// A watch that said nothing for so long is over.
const SILENCE: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Follows the own Node in a task of its own until dropped.
pub(crate) struct Follower {
    _task: AbortOnDropHandle<()>,
    /// Which way it goes first.
    pub route: Route,
    pub seen: watch::Receiver<Option<OwnNode>>,
}

impl Follower {
    /// Follows the Node by the first of these ways that works; through the hub it costs no uplink.
    pub(crate) fn start(node: &str, route: Route, ways: Vec<(Route, ApiClient)>) -> Self {
        let (sender, seen) = watch::channel(None);
        let field = format!("metadata.name={node}");
        let task = tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                for (route, client) in &ways {
                    match follow(*route, client, &field, &sender).await {
                        Ok(()) => {
                            pause = FIRST_PAUSE;
                            break;
                        }
                        Err(error) => tracing::debug!(%error, "the own node cannot be followed this way"),
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
        Self { _task: AbortOnDropHandle::new(task), route, seen }
    }
}

/// One list and one watch of the own Node; `Ok` when there was a watch and it ended, however it did. A hub that restarts
/// breaks the watch and is back in a moment: it is no reason to list past it.
async fn follow(
    route: Route,
    client: &ApiClient,
    field: &str,
    sender: &watch::Sender<Option<OwnNode>>,
) -> Result<(), ClusterError> {
    let publish = |node: Node| {
        let seen = Some(OwnNode::from(node));
        sender.send_if_modified(|last| {
            let changed = *last != seen;
            if changed {
                *last = seen;
            }
            changed
        });
    };
    let publish = &publish;
    let version = patiently(route, move || client.list("/api/v1/nodes", field, publish)).await?;
    let opened = client.watch("/api/v1/nodes", field, &version, LASTING).await;
    let mut events = opened.map_err(|error| ClusterError::of(route, error))?;
    loop {
        match events.next(SILENCE).await {
            Ok(Some(Event::Is(node))) => publish(node),
            Ok(Some(Event::Gone(_) | Event::Bookmark)) => {}
            Ok(None) => return Ok(()),
            Err(error) => {
                let error = ClusterError::of(route, error);
                tracing::debug!(%error, "the watch of the own node ended");
                return Ok(());
            }
        }
    }
}
