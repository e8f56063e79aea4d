//! Which cluster the store is of. A node that has joined another cluster, or whose control plane was built anew at the
//! same address, must not be given what an earlier one had: kubelet would run its pods.
//!
//! The cluster is known by the UID of its namespace `kube-system`, where the node may read that, or else by those of the
//! Service `default/kubernetes` and of the node's own Node. Either of the two may be made anew in a cluster that goes
//! on, and so may its CA; two of the three together are another cluster. Whenever the link comes the hub looks. If it is
//! another one, the process ends, and its next start sets the store aside ([`Store::abandon`]).

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use yurt_node::link::LinkState;

use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Store, StoreError};

const KEY: &[u8] = b"cluster";
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
pub(crate) struct Checked(watch::Receiver<bool>);

impl Checked {
    /// Waits for it, at most `limit`.
    pub(crate) async fn settled(&self, limit: Duration) {
        let mut checked = self.0.clone();
        if !*checked.borrow() {
            let _ = tokio::time::timeout(limit, checked.wait_for(|checked| *checked)).await;
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
        (guard, Checked(receiver))
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
        let known = match self.store.get(Bucket::Misc, KEY)? {
            // What cannot be read is learnt anew.
            Some(value) => serde_json::from_slice(&value).unwrap_or_default(),
            None => Stamp::default(),
        };
        let now = self.look(&known).await?;
        if known.is_another(&now) {
            tracing::error!(?known, ?now, "the API server is of another cluster than the store");
            self.store.abandon("it is of another cluster");
            return Ok(());
        }
        let stamp = known.clone().with(now);
        if stamp != known {
            let value = serde_json::to_vec(&stamp).map_err(|error| StoreError::Failed(error.to_string()))?;
            self.store.put_durable(Bucket::Misc, KEY, &value).await?;
        }
        self.checked.send_replace(true);
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
            if known.service != now.service || known.ca != now.ca || known.node.is_none() {
                now.node = self.uid(&format!("/api/v1/nodes/{}", self.node_name)).await?;
            }
        }
        Ok(now)
    }

    /// Nothing if there is no such object, or it is not the node's to read.
    async fn uid(&self, path: &str) -> Result<Option<String>, CallError> {
        match self.client.get(path).await {
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
    use super::*;

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
}
