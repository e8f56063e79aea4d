//! Which cluster the store is of. A node that has joined another cluster, or whose control plane was built anew at the
//! same address, must not be given what an earlier one had: kubelet would run its pods.
//!
//! The cluster is known by the UID of its namespace `kube-system`, where the node may read that, or else by those of the
//! Service `default/kubernetes` and of the node's own Node. Either of the two may be made anew in a cluster that goes
//! on, and so may its CA; two of the three together are another cluster. Whenever the link comes the hub looks. If it is
//! another one, the process ends, and its next start sets the store aside ([`Store::abandon`]).

use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use yurt_node::link::LinkState;

use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Store, StoreError};

const KEY: &[u8] = b"cluster";
/// A Node is mostly status.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// Between attempts to learn it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a cluster is known by; what could not be learnt is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Stamp {
    /// UID of the namespace `kube-system`.
    namespace: Option<String>,
    /// UID of the Service `default/kubernetes`.
    service: Option<String>,
    /// UID of the node's own Node.
    node: Option<String>,
    /// SHA-256 of the API server's CA.
    ca: Option<String>,
}

impl Stamp {
    /// Whether `now` is certainly another cluster than this one.
    fn is_another(&self, now: &Self) -> bool {
        let differ = |before: &Option<String>, now: &Option<String>| matches!((before, now), (Some(before), Some(now)) if before != now);
        if self.namespace.is_some() && now.namespace.is_some() {
            return differ(&self.namespace, &now.namespace);
        }
        let signs =
            [differ(&self.service, &now.service), differ(&self.node, &now.node), differ(&self.ca, &now.ca)];
        signs.into_iter().filter(|differs| *differs).count() > 1
    }

    /// What is known of the same cluster by now.
    fn with(self, now: Self) -> Self {
        Self {
            namespace: now.namespace.or(self.namespace),
            service: now.service.or(self.service),
            node: now.node.or(self.node),
            ca: now.ca.or(self.ca),
        }
    }
}

/// Sees to it that the store is of the cluster that the API server is of.
pub(crate) struct Guard {
    store: Store,
    client: NodeClient,
    link: Link,
    node_name: String,
    ca: String,
    checked: watch::Sender<bool>,
}

/// Whether the cluster has been looked at since the process began.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    checked: watch::Receiver<bool>,
    /// Since when somebody has waited for it.
    since: Arc<OnceLock<Instant>>,
}

impl Checked {
    fn new(checked: watch::Receiver<bool>) -> Self {
        Self { checked, since: Arc::default() }
    }

    /// Waits for it, at most until `limit` after the first who did: it may never be known, and not every request has to
    /// wait for that.
    pub(crate) async fn settled(&self, limit: Duration) {
        let mut checked = self.checked.clone();
        if !*checked.borrow() {
            let until = *self.since.get_or_init(Instant::now) + limit;
            let _ = tokio::time::timeout_at(until, checked.wait_for(|checked| *checked)).await;
        }
    }
}

impl Guard {
    /// `ca`: the certificates that the API server's are signed with, in DER.
    pub(crate) fn new<'c>(
        store: Store,
        client: NodeClient,
        link: Link,
        node_name: &str,
        ca: impl IntoIterator<Item = &'c [u8]>,
    ) -> (Self, Checked) {
        let mut certificates: Vec<_> = ca.into_iter().collect();
        certificates.sort_unstable();
        let mut fingerprint = String::new();
        for byte in
            certificates.into_iter().fold(Sha256::new(), |digest, der| digest.chain_update(der)).finalize()
        {
            // Into a String: this cannot fail.
            let _ = write!(fingerprint, "{byte:02x}");
        }
        let (checked, receiver) = watch::channel(false);
        let guard = Self { store, client, link, node_name: node_name.to_owned(), ca: fingerprint, checked };
        (guard, Checked::new(receiver))
    }

    /// Looks whenever the link comes.
    pub(crate) async fn run(self) {
        let mut link = self.link.subscribe();
        while link.wait_for(|state| *state == LinkState::Online).await.is_ok() {
            let mut pause = FIRST_PAUSE;
            while let Err(error) = self.check().await {
                tracing::debug!(%error, "which cluster this is cannot be learnt yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                if *link.borrow() != LinkState::Online {
                    break;
                }
            }
            if link.wait_for(|state| *state != LinkState::Online).await.is_err() {
                return;
            }
        }
    }

    async fn check(&self) -> Result<(), CheckError> {
        let known: Stamp = match self.store.get(Bucket::Misc, KEY) {
            // What cannot be read is learnt anew.
            Ok(Some(value)) => serde_json::from_slice(&value).unwrap_or_default(),
            Ok(None) => Stamp::default(),
            Err(error) => {
                tracing::warn!(%error, "which cluster the store is of cannot be read; it is learnt anew");
                Stamp::default()
            }
        };
        let now = self.look(&known).await?;
        if known.is_another(&now) {
            tracing::error!(?known, ?now, "the API server is of another cluster than the store");
            self.store.abandon("it is of another cluster");
            return Ok(());
        }
        // Nobody waits for the disk, which may be full.
        self.checked.send_replace(true);
        let stamp = known.clone().with(now);
        if stamp != known {
            let value = serde_json::to_vec(&stamp).map_err(|error| StoreError::Failed(error.to_string()))?;
            self.store.put_durable(Bucket::Misc, KEY, &value).await?;
        }
        Ok(())
    }

    /// What the API server's cluster is known by; no more is asked for than decides.
    async fn look(&self, known: &Stamp) -> Result<Stamp, CallError> {
        let mut now = Stamp { ca: Some(self.ca.clone()), ..Stamp::default() };
        let is_new = *known == Stamp::default();
        if is_new || known.namespace.is_some() {
            now.namespace = self.uid("/api/v1/namespaces/kube-system").await?;
        }
        if now.namespace.is_none() {
            now.service = self.uid("/api/v1/namespaces/default/services/kubernetes").await?;
            // Both, so that what is known of them is from the same time: of signs that have changed one after the other,
            // in months, none would be missing.
            now.node = self.uid(&format!("/api/v1/nodes/{}", self.node_name)).await?;
        }
        Ok(now)
    }

    /// Nothing if there is no such object, or it is not the node's to read.
    async fn uid(&self, path: &str) -> Result<Option<String>, CallError> {
        match self.client.get_as(path, METADATA).await {
            Ok(object) => Ok(object["metadata"]["uid"].as_str().map(str::to_owned)),
            Err(CallError::Refused { code, .. }) if matches!(code.as_u16(), 403 | 404) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use yurt_fakes::api_server::{FakeApi, Fault, When};
    use yurt_node::supervise::Tasks;

    use super::*;
    use crate::upstream::{Upstream, UpstreamConfig};

    fn stamp(namespace: &str, service: &str, node: &str, ca: &str) -> Stamp {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Stamp { namespace: some(namespace), service: some(service), node: some(node), ca: some(ca) }
    }

    #[test]
    fn one_sign_is_not_another_cluster_unless_it_is_the_namespace() {
        let known = stamp("", "s", "n", "c");
        for (now, another) in [
            (stamp("", "s", "n", "c"), false),
            (stamp("", "s", "n", "rotated"), false),
            (stamp("", "made anew", "n", "c"), false),
            (stamp("", "s", "registered again", "c"), false),
            (stamp("", "other", "other", "c"), true),
            (stamp("", "other", "n", "other"), true),
            (stamp("", "other", "", "other"), true),
            (stamp("", "", "", "other"), false),
            (stamp("k", "", "", "c"), false),
            (stamp("", "", "", ""), false),
        ] {
            assert_eq!(known.is_another(&now), another, "{now:?}");
            assert!(!Stamp::default().is_another(&now), "nothing is known of the cluster before");
        }
        let known = stamp("k", "", "", "c");
        assert!(known.is_another(&stamp("other", "", "", "c")), "built anew with the same CA");
        assert!(!known.is_another(&stamp("k", "other", "other", "other")));
        assert_eq!(known.with(stamp("", "s", "", "rotated")), stamp("k", "s", "", "rotated"));
    }

    struct Cluster {
        api: FakeApi,
        store: Store,
        stop: CancellationToken,
        guard: Guard,
        checked: Checked,
        _dir: tempfile::TempDir,
    }

    impl Drop for Cluster {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
    const NODE: &str = "/api/v1/nodes/edge";

    impl Cluster {
        /// One whose namespaces the node may not read.
        async fn start() -> Self {
            let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
            api.fault(When::path("/api/v1/namespaces/kube-system"), Fault::Answer(403));
            let stop = CancellationToken::new();
            let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
            let (upstream, link) =
                Upstream::start(&UpstreamConfig::of(&api), &Tasks::new(stop.clone())).unwrap();
            assert_eq!(link.settled(Duration::from_secs(5)).await, LinkState::Online);
            let client = NodeClient::new(upstream);
            let (guard, checked) = Guard::new(store.clone(), client, link, "edge", [&b"ca"[..]]);
            let cluster = Self { api, store, stop, guard, checked, _dir: dir };
            cluster.make(SERVICE, "Service");
            cluster.make(NODE, "Node");
            cluster
        }

        fn make(&self, path: &str, kind: &str) {
            if self.api.get(path).is_some() {
                self.api.delete(path);
            }
            self.api.put(path, serde_json::json!({"kind": kind, "apiVersion": "v1"}));
        }

        fn is_checked(&self) -> bool {
            *self.checked.checked.borrow()
        }
    }

    #[tokio::test]
    async fn a_stamp_that_cannot_be_written_or_read_keeps_nobody_waiting() {
        let cluster = Cluster::start().await;
        for (size, name) in [(100 << 10, "l"), (10 << 10, "m"), (1 << 10, "s"), (10, "t")] {
            for number in 0.. {
                let key = format!("{name}{number}");
                if cluster.store.put(Bucket::Journal, key.as_bytes(), &vec![7; size]).await.is_err() {
                    break;
                }
            }
        }
        assert!(matches!(cluster.guard.check().await, Err(CheckError::Store(StoreError::Full(_)))));
        assert!(cluster.is_checked());

        let cluster = Cluster::start().await;
        let key = crate::store::bucket_key(Bucket::Misc, KEY);
        let torn =
            move |tx: &mut crate::store::Tx<'_>| tx.put(crate::store::Table::Buckets, &key, b"not sealed");
        cluster.store.write(crate::store::Durability::Durable, torn).await.unwrap();
        assert_eq!(cluster.store.get(Bucket::Misc, KEY).unwrap(), None);
        cluster.guard.check().await.unwrap();
        assert!(cluster.is_checked() && cluster.store.get(Bucket::Misc, KEY).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_cluster_once_and_not_each() {
        let (_never, receiver) = watch::channel(false);
        let (checked, limit, begin) = (Checked::new(receiver), Duration::from_secs(2), Instant::now());
        for _ in 0..3 {
            checked.clone().settled(limit).await;
            assert_eq!(begin.elapsed().as_secs(), 2);
        }
    }

    #[tokio::test]
    async fn no_more_of_an_object_is_asked_for_than_its_metadata() {
        let cluster = Cluster::start().await;
        cluster.guard.check().await.unwrap();
        let seen = cluster.api.requests();
        let asked = seen.iter().filter(|seen| seen.path == NODE || seen.path == SERVICE);
        let accepts: Vec<_> = asked.map(|seen| seen.headers["accept"].to_str().unwrap()).collect();
        assert_eq!(accepts, [METADATA; 2]);
    }

    #[tokio::test]
    async fn signs_that_changed_one_after_the_other_are_not_another_cluster() {
        let cluster = Cluster::start().await;
        cluster.guard.check().await.unwrap();
        for (path, kind) in [(NODE, "Node"), (SERVICE, "Service")] {
            cluster.make(path, kind);
            cluster.guard.check().await.unwrap();
            assert!(!cluster.store.broken().is_cancelled(), "{kind}");
        }
        cluster.make(NODE, "Node");
        cluster.make(SERVICE, "Service");
        cluster.guard.check().await.unwrap();
        assert!(cluster.store.broken().is_cancelled(), "both at a time");
    }
}
