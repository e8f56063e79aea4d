//! Status patches that were answered while the link was down, on the disk before they were answered, and replayed
//! in their order when it is back.
//!
//! # Key layout (bucket `Journal`)
//!
//! ```text
//! PLURAL 0 NAMESPACE 0 NAME 0 SEQUENCE     sequence: 8 bytes, big endian, from one counter
//! ```
//!
//! so that the patches of one object lie together, oldest first. The value is an [`Entry`] as JSON.
//!
//! # Why a bound is harmless
//!
//! kubelet patches its Node every few minutes. More than [`MAX_PATCHES`] of one object are not kept: that object is
//! then marked, its patches are dropped, and after reconnection it is brought up to date by kubelet alone, which
//! compares the API server's version with its own state and patches again. The replay makes that faster; it is
//! not what makes it right.
//!
//! # Claims
//!
//! One at a time works on an object: the request that changes it offline (journal and local version belong together),
//! the replay, a newer patch on its way upstream. Whoever does holds its [`Claim`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::patch::PatchType;
use crate::store::{Bucket, Store, StoreError};

/// Patches of one object kept at most.
const MAX_PATCHES: usize = 64;

/// One object with patches in the journal.
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
    /// Path of the object's status.
    pub(crate) fn status_path(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("/api/v1/namespaces/{namespace}/{}/{}/status", self.plural, self.name),
            None => format!("/api/v1/{}/{}/status", self.plural, self.name),
        }
    }

    fn prefix(&self) -> Vec<u8> {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        format!("{}\0{namespace}\0{}\0", self.plural, self.name).into_bytes()
    }

    fn parse(key: &[u8]) -> Option<(Self, u64)> {
        let (text, sequence) = key.split_at_checked(key.len().checked_sub(8)?)?;
        let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
        let mut parts = std::str::from_utf8(text).ok()?.split('\0');
        let (plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Some((Self { plural: plural.to_owned(), namespace, name: name.to_owned() }, sequence))
    }
}

/// One patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Entry {
    /// Its `Content-Type`.
    pub(crate) content_type: String,
    /// The body, JSON.
    pub(crate) body: String,
}

/// The patches of one object, as they were when they were read.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Oldest first.
    pub(crate) entries: Vec<Entry>,
    sequences: Vec<u64>,
}

#[derive(Debug, Default)]
struct Pending {
    /// Sequence numbers of the entries on the disk, oldest first.
    sequences: Vec<u64>,
    /// There were too many: nothing is replayed.
    overflown: bool,
}

#[derive(Debug, Default)]
struct Index {
    objects: BTreeMap<ObjectKey, Pending>,
    next: u64,
}

/// The journal.
pub(crate) struct Journal {
    store: Store,
    index: Mutex<Index>,
    pending: watch::Sender<usize>,
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
    /// Reads what an earlier process left. What cannot be read is not replayed: kubelet puts it right.
    pub(crate) fn open(store: Store) -> Self {
        let mut index = Index::default();
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
            for (key, _) in page {
                let Some((object, sequence)) = ObjectKey::parse(&key) else {
                    tracing::warn!("the journal has a key that nothing of ours wrote");
                    continue;
                };
                index.next = index.next.max(sequence + 1);
                index.objects.entry(object).or_default().sequences.push(sequence);
            }
        }
        let pending = watch::Sender::new(index.objects.len());
        Self { store, index: Mutex::new(index), pending, claimed: watch::Sender::new(HashSet::new()) }
    }

    /// Adds a patch; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be stored; then it must not be answered as done.
    pub(crate) async fn append(
        &self,
        object: &ObjectKey,
        patch_type: PatchType,
        body: &str,
    ) -> Result<(), StoreError> {
        let (key, overflow) = {
            let mut index = self.index();
            let sequence = index.next;
            index.next += 1;
            let pending = index.objects.entry(object.clone()).or_default();
            let mut overflow = Vec::new();
            if pending.overflown || pending.sequences.len() >= MAX_PATCHES {
                pending.overflown = true;
                overflow = std::mem::take(&mut pending.sequences);
            }
            pending.sequences.push(sequence);
            let count = index.objects.len();
            self.pending.send_replace(count);
            (key(object, sequence), overflow)
        };
        let entry = Entry { content_type: patch_type.content_type().to_owned(), body: body.to_owned() };
        let value = serde_json::to_vec(&entry).map_err(|error| StoreError::Failed(error.to_string()))?;
        self.store.put_durable(Bucket::Journal, &key, &value).await?;
        if !overflow.is_empty() {
            let keys: Vec<_> = overflow.into_iter().map(|sequence| self::key(object, sequence)).collect();
            self.store.delete(Bucket::Journal, &keys).await?;
        }
        Ok(())
    }

    /// The objects that have changed while the link was down.
    pub(crate) fn objects(&self) -> Vec<ObjectKey> {
        self.index().objects.keys().cloned().collect()
    }

    /// Whether this object has.
    pub(crate) fn has(&self, object: &ObjectKey) -> bool {
        self.index().objects.contains_key(object)
    }

    /// What to replay for an object, oldest first; no entries when there were too many.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn replay(&self, object: &ObjectKey) -> Result<Replay, StoreError> {
        let (sequences, overflown) = match self.index().objects.get(object) {
            Some(pending) => (pending.sequences.clone(), pending.overflown),
            None => return Ok(Replay::default()),
        };
        let mut entries = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter().filter(|_| !overflown) {
            // What is not there was never acknowledged.
            let Some(value) = self.store.get(Bucket::Journal, &key(object, *sequence))? else { continue };
            entries.push(
                serde_json::from_slice(&value).map_err(|error| StoreError::Damaged(error.to_string()))?,
            );
        }
        Ok(Replay { entries, sequences })
    }

    /// Forgets what has been replayed, or refused for good. Patches that came meanwhile stay.
    ///
    /// # Errors
    ///
    /// When the store fails; it is then replayed again after a restart, which changes nothing.
    pub(crate) async fn forget(&self, object: &ObjectKey, replay: &Replay) -> Result<(), StoreError> {
        let count = {
            let mut index = self.index();
            if let Some(pending) = index.objects.get_mut(object) {
                pending.sequences.retain(|sequence| !replay.sequences.contains(sequence));
                pending.overflown &= !pending.sequences.is_empty();
                if pending.sequences.is_empty() {
                    index.objects.remove(object);
                }
            }
            index.objects.len()
        };
        self.pending.send_replace(count);
        let keys: Vec<_> = replay.sequences.iter().map(|sequence| key(object, *sequence)).collect();
        if keys.is_empty() { Ok(()) } else { self.store.delete(Bucket::Journal, &keys).await }
    }

    /// How many objects have something to replay, now and whenever that changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
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

    /// Everything that an object has in the journal, without reading it.
    pub(crate) fn replay_keys(&self, object: &ObjectKey) -> Replay {
        let index = self.index();
        let sequences = index.objects.get(object).map(|pending| pending.sequences.clone());
        Replay { entries: Vec::new(), sequences: sequences.unwrap_or_default() }
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(object: &ObjectKey, sequence: u64) -> Vec<u8> {
    let mut key = object.prefix();
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> ObjectKey {
        ObjectKey { plural: "pods".into(), namespace: Some("shop".into()), name: name.into() }
    }

    fn bodies(journal: &Journal, object: &ObjectKey) -> Vec<String> {
        journal.replay(object).unwrap().entries.into_iter().map(|entry| entry.body).collect()
    }

    async fn forget(journal: &Journal, name: &str) {
        let replay = journal.replay(&pod(name)).unwrap();
        journal.forget(&pod(name), &replay).await.unwrap();
    }

    #[tokio::test]
    async fn patches_survive_the_process_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone());
        for (name, body) in [("a", "1"), ("b", "2"), ("a", "3")] {
            journal.append(&pod(name), PatchType::StrategicMerge, body).await.unwrap();
        }
        drop((journal, store));
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone());
        assert_eq!(journal.objects(), [pod("a"), pod("b")]);
        assert_eq!(bodies(&journal, &pod("a")), ["1", "3"]);
        journal.append(&pod("a"), PatchType::StrategicMerge, "4").await.unwrap();
        assert_eq!(bodies(&journal, &pod("a")), ["1", "3", "4"]);
        // One that comes while the others are replayed is not lost.
        let replay = journal.replay(&pod("a")).unwrap();
        journal.append(&pod("a"), PatchType::StrategicMerge, "5").await.unwrap();
        journal.forget(&pod("a"), &replay).await.unwrap();
        assert_eq!(bodies(&journal, &pod("a")), ["5"]);
        forget(&journal, "a").await;
        assert_eq!(Journal::open(store).objects(), [pod("b")]);
    }

    #[tokio::test]
    async fn too_many_patches_of_one_object_are_dropped_and_the_object_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = Journal::open(store.clone());
        for number in 0..=MAX_PATCHES {
            journal.append(&pod("a"), PatchType::Merge, &number.to_string()).await.unwrap();
        }
        assert_eq!(journal.objects(), [pod("a")]);
        assert_eq!(bodies(&journal, &pod("a")), Vec::<String>::new());
        assert_eq!(store.scan(Bucket::Journal, b"", None, 1000).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn one_at_a_time_works_on_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let journal = std::sync::Arc::new(Journal::open(store));
        let (a, b) = (journal.claim(&pod("a")).await, journal.try_claim(&pod("b")));
        assert!(b.is_some() && journal.try_claim(&pod("a")).is_none());
        let waiting = tokio::spawn({
            let journal = journal.clone();
            async move { drop(journal.claim(&pod("a")).await) }
        });
        drop(b);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(a);
        waiting.await.unwrap();
        assert!(journal.try_claim(&pod("a")).is_some());
    }

    #[test]
    fn keys_keep_the_order_of_an_objects_patches() {
        let pod = ObjectKey { plural: "pods".into(), namespace: Some("shop".into()), name: "web-0".into() };
        let node = ObjectKey { plural: "nodes".into(), namespace: None, name: "edge".into() };
        assert!(key(&pod, 1) < key(&pod, 256));
        assert_eq!(ObjectKey::parse(&key(&pod, 7)), Some((pod.clone(), 7)));
        assert_eq!(ObjectKey::parse(&key(&node, u64::MAX)), Some((node.clone(), u64::MAX)));
        assert_eq!(ObjectKey::parse(b"short"), None);
        assert_eq!(pod.status_path(), "/api/v1/namespaces/shop/pods/web-0/status");
        assert_eq!(node.status_path(), "/api/v1/nodes/edge/status");
    }
}
