//! The node's Lease while the link is down: kubelet renews it every ten seconds and must not wait for an answer.
//!
//! A renewal is answered with what kubelet sent: its resourceVersion is the last one that the API server gave, so
//! it is valid, and when the link is back the API server answers the first renewal with 409, upon which kubelet reads
//! the Lease and goes on. Renewals are kept in memory alone; on the disk is the Lease as it was first seen, because a
//! kubelet that starts without a link reads it.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::StatusCode;

use super::answer::Answer;
use crate::store::{Bucket, Store, StoreError};
use crate::wire::object::decode_object;
use crate::wire::{Encoding, ObjectMeta};

/// Key in [`Bucket::Misc`].
const KEY: &[u8] = b"node-lease";

/// The node's Lease.
pub(crate) struct NodeLease {
    store: Store,
    node_name: String,
    last: Mutex<Option<(ObjectMeta, Answer)>>,
}

impl NodeLease {
    /// Reads the Lease as it was seen last by another process.
    pub(crate) fn open(store: Store, node_name: &str) -> Self {
        let stored = store.get(Bucket::Misc, KEY).unwrap_or_else(|error| {
            tracing::error!(%error, "the node's Lease cannot be read");
            None
        });
        let last = stored
            .and_then(|value| Answer::from_bytes(&value))
            .and_then(|answer| Some((meta(&answer)?, answer)));
        Self { store, node_name: node_name.to_owned(), last: Mutex::new(last) }
    }

    /// The API server answered a GET, POST or PUT of the Lease.
    ///
    /// # Errors
    ///
    /// When it cannot be stored.
    pub(crate) async fn seen(&self, answer: Answer) -> Result<(), StoreError> {
        let Some(found) = self.own(&answer) else { return Ok(()) };
        let new = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let before = last.replace((found.clone(), answer.clone()));
            before.is_none_or(|(before, _)| before.uid != found.uid)
        };
        if new { self.store.put(Bucket::Misc, KEY, &answer.to_bytes()).await } else { Ok(()) }
    }

    /// The Lease, for a GET.
    pub(crate) fn get(&self) -> Option<Answer> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, answer)| answer.clone())
    }

    /// A renewal; `None` when it is not of the Lease that is known.
    pub(crate) fn renew(&self, content_type: &str, body: &Bytes) -> Option<Answer> {
        let answer = Answer::new(StatusCode::OK, content_type, body.clone());
        let renewed = self.own(&answer)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, _) = last.as_ref()?;
        if known.uid != renewed.uid || renewed.resource_version == 0 {
            return None;
        }
        *last = Some((renewed, answer.clone()));
        Some(answer)
    }

    fn own(&self, answer: &Answer) -> Option<ObjectMeta> {
        meta(answer).filter(|meta| meta.name == self.node_name && !meta.uid.is_empty())
    }
}

fn meta(answer: &Answer) -> Option<ObjectMeta> {
    let encoding = if super::token_request::is_protobuf(&answer.content_type) {
        Encoding::Protobuf
    } else {
        Encoding::Json
    };
    decode_object(encoding, &answer.body).ok().map(|(_, item)| item.meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, uid: &str, version: &str, time: &str) -> Bytes {
        let lease = serde_json::json!({
            "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": name, "namespace": "kube-node-lease", "uid": uid, "resourceVersion": version},
            "spec": {"renewTime": time},
        });
        Bytes::from(lease.to_string())
    }

    fn answer(body: &Bytes) -> Answer {
        Answer::new(StatusCode::OK, "application/json", body.clone())
    }

    #[tokio::test]
    async fn renewals_are_answered_and_only_a_new_lease_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let node_lease = NodeLease::open(store.clone(), "edge");
        assert_eq!(node_lease.get(), None);
        assert_eq!(
            node_lease.renew("application/json", &lease("edge", "u", "7", "t0")),
            None,
            "not known yet"
        );
        let first = lease("edge", "u", "7", "t0");
        node_lease.seen(answer(&first)).await.unwrap();
        let commits = store.stats().commits;
        node_lease.seen(answer(&lease("edge", "u", "8", "t1"))).await.unwrap();
        let renewal = lease("edge", "u", "8", "t2");
        assert_eq!(node_lease.renew("application/json", &renewal), Some(answer(&renewal)));
        assert_eq!(node_lease.get(), Some(answer(&renewal)));
        assert_eq!(store.stats().commits, commits);
        // After a restart: the one that was written, with a resourceVersion that the API server gave.
        assert_eq!(NodeLease::open(store, "edge").get(), Some(answer(&first)));
    }

    #[tokio::test]
    async fn other_leases_are_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let node_lease = NodeLease::open(store, "edge");
        node_lease.seen(answer(&lease("other", "u", "7", "t0"))).await.unwrap();
        assert_eq!(node_lease.get(), None);
        node_lease.seen(answer(&lease("edge", "u", "7", "t0"))).await.unwrap();
        for bad in [lease("other", "u", "7", ""), lease("edge", "v", "7", ""), Bytes::from_static(b"{}")] {
            assert_eq!(node_lease.renew("application/json", &bad), None);
        }
    }
}
