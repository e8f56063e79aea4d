//! What every reconciler shares: the client, where our objects are, and the cluster's nodes.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names;

/// How long the API server may take for one object.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What every reconciler shares.
pub(super) struct Context {
    /// The controller's own client.
    pub client: kube::Client,
    /// Namespace of our objects.
    pub namespace: String,
    /// Name of this process in the leader election and in Events.
    pub identity: String,
    /// The cluster's nodes.
    pub nodes: NodeCache,
}

/// All nodes, kept up to date by [`follow_nodes`].
#[derive(Clone)]
pub(super) struct NodeCache {
    store: Store<Node>,
    changed: watch::Receiver<u64>,
}

impl NodeCache {
    /// All of them, as last seen.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.store.state()
    }

    /// Counts the changes; changed for the first time when all nodes are known.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Until all nodes are known. (The store's own wait wakes only the last of several tasks that wait.)
    pub(super) async fn ready(&self) {
        if self.changes().wait_for(|changes| *changes > 0).await.is_err() {
            // The one who follows has ended; so will the one who waits.
            std::future::pending::<()>().await;
        }
    }
}

/// An empty cache, and the task that fills it until `stop`.
pub(super) fn follow_nodes(
    client: kube::Client,
    stop: CancellationToken,
) -> (NodeCache, impl Future<Output = ()> + Send) {
    let (store, writer) = reflector::store();
    let (change, changed) = watch::channel(0);
    let task = async move {
        let events = watcher(Api::<Node>::all(client), watcher::Config::default())
            .modify(trim)
            .default_backoff()
            .reflect(writer);
        pin_mut!(events);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                // Half a list is no reason to do anything.
                Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => {}
                Some(Ok(_)) => change.send_modify(|count| *count += 1),
                Some(Err(error)) => tracing::warn!(%error, "cannot follow nodes; trying again"),
                None => return,
            }
        }
    };
    (NodeCache { store, changed }, task)
}

/// A node's images are most of its size, and nothing here reads them.
fn trim(node: &mut Node) {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// Puts our label on an object; says whether it was there already.
pub(super) fn label_ours(metadata: &mut ObjectMeta) -> bool {
    let labels = metadata.labels.get_or_insert_default();
    let before = labels.insert(names::LABEL_PART_OF.to_owned(), names::PART_OF.to_owned());
    before.as_deref() == Some(names::PART_OF)
}

/// Comparable within one resource (KEP-5504). What cannot be read is never older than anything.
pub(super) fn version(node: &Node) -> u128 {
    node.resource_version().and_then(|version| version.parse().ok()).unwrap_or(u128::MAX)
}

/// Why something was not written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The API server says why.
    Api(kube::Error),
    /// The API server says nothing.
    Silent,
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(kube::Error::Api(status)) => f.write_str(&status.message),
            Self::Api(error) => error.fmt(f),
            Self::Silent => write!(f, "the API server did not answer within {TIMEOUT:?}"),
        }
    }
}

impl std::error::Error for Unwritten {}

impl From<kube::Error> for Unwritten {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

/// Bounds what talks to the API server: one that hangs must not hang everything else.
pub(super) async fn within<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Unwritten> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(done) => done.map_err(Unwritten::Api),
        Err(_) => Err(Unwritten::Silent),
    }
}
