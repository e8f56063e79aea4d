//! What has changed of objects' status while the link was down: on the disk before kubelet is answered, sent once when
//! the link is back ([`Change`]: one an object, however often it changed).
//!
//! # Key layout (bucket `Journal`)
//!
//! ```text
//! PLURAL 0 NAMESPACE 0 NAME 0
//! ```
//!
//! The value is the object's [`Change`] as JSON.
//!
//! # Claims
//!
//! One at a time works on an object: the request that changes it offline (journal and local version belong together),
//! the replay, a newer patch on its way upstream. Whoever does holds its [`Claim`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::change::Change;
use crate::store::{Bucket, Store, StoreError};
use crate::wire::Resource;

/// One object with a change in the journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    /// `pods` or `nodes`.
    pub(crate) plural: String,
    /// Of a pod.
    pub(crate) namespace: Option<String>,
    /// The name.
    pub(crate) name: String,
}

impl ObjectKey {
    /// Its collection.
    pub(crate) fn resource(&self) -> Resource {
        Resource::new("", "v1", &self.plural)
    }

    /// Path of the object.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.resource().path(self.namespace.as_deref()), self.name)
    }

    /// Path of the object's status.
    pub(crate) fn status_path(&self) -> String {
        format!("{}/status", self.path())
    }

    fn key(&self) -> Vec<u8> {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        format!("{}\0{namespace}\0{}\0", self.plural, self.name).into_bytes()
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(key).ok()?.split('\0');
        let (plural, namespace, name, end) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        let key = Self { plural: plural.to_owned(), namespace, name: name.to_owned() };
        (end.is_empty() && parts.next().is_none()).then_some(key)
    }
}

/// What is in the journal, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pending {
    /// Objects with something to replay.
    pub(crate) objects: usize,
    /// Grows with every change.
    generation: u64,
}

/// A pod's end in the journal that only the node's next kubelet can take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    ThisBoot,
    /// Whichever kubelet wrote it has ended with the boot.
    EarlierBoot,
}

/// The journal.
pub(crate) struct Journal {
    store: Store,
    boot: String,
    index: Mutex<BTreeMap<ObjectKey, End>>,
    pending: watch::Sender<Pending>,
    claimed: watch::Sender<HashSet<ObjectKey>>,
}

/// While it is held nobody else works on the object.
pub(crate) struct Claim<'j> {
    journal: &'j Journal,
    object: ObjectKey,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.journal.claimed.send_modify(|claimed| {
            claimed.remove(&self.object);
        });
    }
}

impl Journal {
    /// Reads what an earlier process left; `boot` names this boot of the node. What cannot be read is not replayed:
    /// kubelet puts it right.
    pub(crate) async fn open(store: Store, boot: &str) -> Self {
        let mut index = BTreeMap::new();
        let mut unreadable = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = match store.scan(Bucket::Journal, b"", after.as_deref(), 64) {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "the journal of status patches cannot be read");
                    break;
                }
            };
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in page {
                match (ObjectKey::parse(&key), serde_json::from_slice::<Change>(&value)) {
                    (Some(object), Ok(change)) => drop(index.insert(object, End::of(&change, boot))),
                    _ => unreadable.push(key),
                }
            }
        }
        if !unreadable.is_empty() {
            tracing::warn!(entries = unreadable.len(), "the journal has entries of no use; they are removed");
            if let Err(error) = store.delete(Bucket::Journal, &unreadable).await {
                tracing::warn!(%error, "and cannot be removed");
            }
        }
        let pending = watch::Sender::new(Pending { objects: index.len(), generation: 0 });
        let claimed = watch::Sender::new(HashSet::new());
        Self { store, boot: boot.to_owned(), index: Mutex::new(index), pending, claimed }
    }

    /// Adds what has become of an object whose claim the caller holds; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be stored; then it must not be answered as done.
    pub(crate) async fn append(
        &self,
        object: &ObjectKey,
        before: &Value,
        after: &Value,
    ) -> Result<(), StoreError> {
        let change = Change::and(self.change(object)?, &self.boot, before, after);
        let value = serde_json::to_vec(&change).map_err(|error| StoreError::Failed(error.to_string()))?;
        self.store.put_durable(Bucket::Journal, &object.key(), &value).await?;
        self.index().insert(object.clone(), End::of(&change, &self.boot));
        self.tell();
        Ok(())
    }

    /// The objects that have changed while the link was down.
    pub(crate) fn objects(&self) -> Vec<ObjectKey> {
        self.index().keys().cloned().collect()
    }

    /// Pods whose end only the node's next kubelet can take back.
    pub(crate) fn ended(&self, in_an_earlier_boot: bool) -> Vec<ObjectKey> {
        let ended = |end: End| end == End::EarlierBoot || (!in_an_earlier_boot && end == End::ThisBoot);
        self.index().iter().filter(|(_, end)| ended(**end)).map(|(object, _)| object.clone()).collect()
    }

    /// Whether this object has.
    pub(crate) fn has(&self, object: &ObjectKey) -> bool {
        self.index().contains_key(object)
    }

    /// What has changed of an object.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn change(&self, object: &ObjectKey) -> Result<Option<Change>, StoreError> {
        if !self.has(object) {
            return Ok(None);
        }
        let Some(value) = self.store.get(Bucket::Journal, &object.key())? else { return Ok(None) };
        serde_json::from_slice(&value).map(Some).map_err(|error| StoreError::Damaged(error.to_string()))
    }

    /// Forgets what has been replayed, or refused for good, of an object whose claim the caller holds.
    ///
    /// # Errors
    ///
    /// When the store fails; it is then replayed again after a restart, which changes nothing.
    pub(crate) async fn forget(&self, object: &ObjectKey) -> Result<(), StoreError> {
        if self.index().remove(object).is_none() {
            return Ok(());
        }
        self.tell();
        self.store.delete(Bucket::Journal, &[object.key()]).await
    }

    fn tell(&self) {
        let objects = self.index().len();
        self.pending.send_modify(|pending| {
            *pending = Pending { objects, generation: pending.generation + 1 };
        });
    }

    /// What there is to replay, now and whenever that changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Pending> {
        self.pending.subscribe()
    }

    /// Claims the object if nobody else has.
    pub(crate) fn try_claim(&self, object: &ObjectKey) -> Option<Claim<'_>> {
        let free = self.claimed.send_if_modified(|claimed| claimed.insert(object.clone()));
        free.then(|| Claim { journal: self, object: object.clone() })
    }

    /// Claims the object as soon as nobody else has.
    pub(crate) async fn claim(&self, object: &ObjectKey) -> Claim<'_> {
        let mut claimed = self.claimed.subscribe();
        loop {
            if let Some(claim) = self.try_claim(object) {
                return claim;
            }
            // The sender is ours: this cannot fail.
            let _ = claimed.wait_for(|claimed| !claimed.contains(object)).await;
        }
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, End>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    fn of(change: &Change, boot: &str) -> Self {
        match (change.revocable, change.boot == boot) {
            (false, _) => Self::None,
            (true, true) => Self::ThisBoot,
            (true, false) => Self::EarlierBoot,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey { plural: "pods".into(), namespace: Some("shop".into()), name: name.into() }
    }

    fn pod(phase: &str, ip: &str) -> Value {
        json!({"metadata": {"uid": "u-1"}, "spec": {"containers": []}, "status": {"phase": phase, "podIP": ip}})
    }

    async fn append(journal: &Journal, name: &str, before: &Value, after: &Value) {
        journal.append(&key(name), before, after).await.unwrap();
    }

    #[tokio::test]
    async fn changes_survive_the_process_and_are_one_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone(), "b-1").await;
        let first = pod("Running", "10.0.0.1");
        // Far more than anybody would keep as a list of patches.
        for number in 2..100 {
            let (before, after) = (format!("10.0.0.{}", number - 1), format!("10.0.0.{number}"));
            append(&journal, "a", &pod("Running", &before), &pod("Running", &after)).await;
        }
        append(&journal, "b", &first, &pod("Pending", "10.0.0.1")).await;
        drop((journal, store));
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone(), "b-1").await;
        assert_eq!(journal.objects(), [key("a"), key("b")]);
        let change = journal.change(&key("a")).unwrap().unwrap();
        assert_eq!(change.over(&first), pod("Running", "10.0.0.99"));
        // What comes after a restart is added to what was there.
        append(&journal, "a", &pod("Running", "10.0.0.99"), &pod("Unknown", "10.0.0.99")).await;
        let change = journal.change(&key("a")).unwrap().unwrap();
        assert_eq!(change.over(&first), pod("Unknown", "10.0.0.99"));
        assert_eq!(store.scan(Bucket::Journal, b"", None, 1000).unwrap().len(), 2);
        journal.forget(&key("a")).await.unwrap();
        assert_eq!(journal.change(&key("a")).unwrap(), None);
        assert_eq!(Journal::open(store, "b-1").await.objects(), [key("b")]);
    }

    #[tokio::test]
    async fn entries_that_nothing_of_ours_wrote_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        store.put_durable(Bucket::Journal, b"pods\0shop\0a\0\0\0\0\0\0\0\0\x01", b"{}").await.unwrap();
        store.put_durable(Bucket::Journal, &key("b").key(), b"rubbish").await.unwrap();
        let journal = Journal::open(store.clone(), "b-1").await;
        assert_eq!(journal.objects(), []);
        assert_eq!(store.scan(Bucket::Journal, b"", None, 1000).unwrap(), []);
    }

    #[tokio::test]
    async fn an_end_is_told_by_the_boot_that_saw_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone(), "b-1").await;
        append(&journal, "ended", &pod("Running", ""), &pod("Failed", "")).await;
        append(&journal, "runs", &pod("Pending", ""), &pod("Running", "")).await;
        assert_eq!((journal.ended(false), journal.ended(true)), (vec![key("ended")], vec![]));
        let journal = Journal::open(store, "b-2").await;
        assert_eq!((journal.ended(false), journal.ended(true)), (vec![key("ended")], vec![key("ended")]));
        append(&journal, "ended", &pod("Failed", ""), &pod("Failed", "10.0.0.1")).await;
        assert_eq!((journal.ended(false), journal.ended(true)), (vec![key("ended")], vec![]));
    }

    #[tokio::test]
    async fn one_at_a_time_works_on_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = std::sync::Arc::new(Journal::open(store, "b-1").await);
        let (a, b) = (journal.claim(&key("a")).await, journal.try_claim(&key("b")));
        assert!(b.is_some() && journal.try_claim(&key("a")).is_none());
        let waiting = tokio::spawn({
            let journal = journal.clone();
            async move { drop(journal.claim(&key("a")).await) }
        });
        drop(b);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(a);
        waiting.await.unwrap();
        assert!(journal.try_claim(&key("a")).is_some());
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let node = ObjectKey { plural: "nodes".into(), namespace: None, name: "edge".into() };
        for object in [key("web-0"), node.clone()] {
            assert_eq!(ObjectKey::parse(&object.key()), Some(object));
        }
        assert_eq!(ObjectKey::parse(b"short"), None);
        assert_eq!(key("web-0").status_path(), "/api/v1/namespaces/shop/pods/web-0/status");
        assert_eq!(node.status_path(), "/api/v1/nodes/edge/status");
    }
}
