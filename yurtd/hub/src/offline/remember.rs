//! Answers of the API server kept for the time without a link: GETs of single objects and lists that no view
//! covers, and discovery.
//!
//! Key: whose answer it is (nobody's for discovery, which every authenticated user may read), of which resource, path,
//! canonical query, `Accept`. The memory is bounded; the answers that were seen longest ago go first. A quarter is
//! kubelet's alone, and nobody else has more than a quarter: a client that asks for ten thousand different things forgets
//! its own answers and nobody else's. Answers of those who have a pod on the node go after all others: it asks again when it starts.
//! When an answer was seen last is known in memory alone; after a restart all are equally old.
//!
//! # Writing
//!
//! An answer that has not changed is not written again, and one that has is not written at once: a standby of a leader
//! election reads its Lease every two seconds, and finds it changed. It stays in memory, and what has waited for a
//! minute is written together with all that waits ([`Remembered::write_back`]); so is everything when the link is lost,
//! and when the hub stops. The first answer to a question of somebody who has a pod on the node is written at once: the
//! link and the power may go together. A process that is killed in between has the answers of a minute ago. What waits is bounded as
//! well ([`UNWRITTEN`]): behind a disk that hangs the oldest answers are dropped, which costs nothing but them. What is
//! worth nothing after a restart ([`Keep::InMemory`]) is never written.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::Answer;
use crate::caller::Permit;
use crate::limits::UNWRITTEN;
use crate::store::{Bucket, Durability, Store, StoreError, Table, bucket_key};

/// Changed answers wait so long for company.
const WRITE_AFTER: Duration = Duration::from_secs(60);

/// Bounds of one memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of one answer.
    pub(crate) answer: usize,
    /// Bytes of all of them.
    pub(crate) total: usize,
    /// Number of answers.
    pub(crate) count: usize,
}

/// Remembered answers in one bucket.
pub(crate) struct Remembered {
    store: Store,
    bucket: Bucket,
    bounds: Bounds,
    index: Mutex<Index>,
    /// There is what should not wait to be written.
    full: Notify,
}

/// How long an answer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// In the store, sooner or later.
    Stored,
    /// As long as the process: a Lease of others, which says who leads *now*.
    InMemory,
}

#[derive(Default)]
struct Index {
    entries: HashMap<Vec<u8>, Entry>,
    total: usize,
    clock: u64,
    /// Bytes that wait to be written, or are kept in memory alone.
    unwritten: usize,
    /// Keys whose value in the store is to be removed.
    removed: HashSet<Vec<u8>>,
    /// Since when something waits to be written.
    waiting: Option<Instant>,
    /// What the keys of those begin with who have a pod on the node.
    stay: HashSet<[u8; OWNER]>,
}

struct Entry {
    size: usize,
    /// Of the value; not known of what an earlier process left.
    digest: Option<[u8; 32]>,
    seen: u64,
    /// The value, if the store has none or an older one.
    unwritten: Option<Vec<u8>>,
    keep: Keep,
    /// Whether the store has a value for the key.
    stored: bool,
}

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner<'i> {
    /// kubelet.
    Node(&'i str),
    /// Somebody else, by user name.
    Other(&'i str),
    /// Every authenticated user may read it.
    Everybody,
}

impl<'i> Owner<'i> {
    /// The caller.
    pub(crate) fn of(permit: &'i Permit) -> Self {
        let identity = permit.identity().as_str();
        if permit.is_node() { Self::Node(identity) } else { Self::Other(identity) }
    }

    fn parts(self) -> (u8, &'i str) {
        match self {
            Self::Node(identity) => (0, identity),
            Self::Other(identity) => (OTHER, identity),
            Self::Everybody => (2, ""),
        }
    }

    /// What its keys begin with.
    fn prefix(self) -> [u8; OWNER] {
        let (kind, identity) = self.parts();
        let mut prefix = [kind; OWNER];
        prefix[1..].copy_from_slice(&Sha256::digest(identity.as_bytes())[..OWNER - 1]);
        prefix
    }
}

/// What keys begin with: a byte for the kind of owner, and for [`Owner::Other`] a digest of its name.
const OWNER: usize = 9;
/// The owner, and a digest of what the answer is about.
const SUBJECT: usize = OWNER + 8;
/// The whole key: these, a digest of everything.
const KEY: usize = SUBJECT + 32;
const OTHER: u8 = 1;

/// Under which key an answer is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// The answer's key. `subject`: the resource, `group/plural`.
    pub(crate) fn new(
        owner: Owner<'_>,
        subject: &str,
        path: &str,
        canonical_query: &str,
        accept: &str,
    ) -> Self {
        let text = [owner.parts().1, path, canonical_query, accept].join("\0");
        // LMDB keys are short; digests keep them so, and distinct.
        let mut key = owner.prefix().to_vec();
        key.extend_from_slice(&Sha256::digest(subject.as_bytes())[..SUBJECT - OWNER]);
        key.extend_from_slice(&Sha256::digest(text.as_bytes()));
        Self(key)
    }
}

impl Remembered {
    /// Finds what is there. Nothing is unsealed yet: that takes a while on a small board, and clients are waiting.
    pub(crate) fn open(store: Store, bucket: Bucket, bounds: Bounds) -> Self {
        let mut index = Index::default();
        let found = store.sizes(bucket).unwrap_or_else(|error| {
            tracing::error!(%error, ?bucket, "remembered answers cannot be read");
            Vec::new()
        });
        // Keys of another length are an older release's, and nobody will ask for them: they go with the next writing.
        let (found, old): (Vec<_>, Vec<_>) = found.into_iter().partition(|(key, _)| key.len() == KEY);
        index.removed.extend(old.into_iter().map(|(key, _)| key));
        for (key, size) in found {
            index.clock += 1;
            index.total += size;
            let (seen, keep) = (index.clock, Keep::Stored);
            index
                .entries
                .insert(key, Entry { size, digest: None, seen, unwritten: None, keep, stored: true });
        }
        Self { store, bucket, bounds, index: Mutex::new(index), full: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an answer of that size would be kept.
    pub(crate) fn limit(&self) -> usize {
        self.bounds.answer
    }

    /// Who has a pod on the node from now on.
    pub(crate) fn stay<'i>(&self, owners: impl Iterator<Item = Owner<'i>>) {
        let stay = owners.map(Owner::prefix).collect();
        self.lock().stay = stay;
    }

    /// Keeps an answer, in memory at first.
    pub(crate) fn remember(&self, key: &Key, answer: &Answer, keep: Keep) {
        if answer.body.len() > self.bounds.answer {
            return;
        }
        let value = answer.to_bytes();
        let digest: [u8; 32] = Sha256::digest(&value).into();
        let unknown = self.lock().entries.get(&key.0).is_some_and(|entry| entry.digest.is_none());
        if unknown
            && let Ok(Some(stored)) = self.store.get(self.bucket, &key.0)
            && let Some(entry) = self.lock().entries.get_mut(&key.0)
        {
            entry.digest.get_or_insert_with(|| Sha256::digest(&stored).into());
        }
        let mut index = self.lock();
        if index.is_known(&key.0, &digest) {
            return index.see(&key.0);
        }
        let first = !index.entries.contains_key(&key.0) && keep == Keep::Stored && index.stays(&key.0);
        index.insert(key.0.clone(), value, digest, keep);
        index.evict(&self.bounds);
        if first || index.unwritten > UNWRITTEN / 2 {
            self.full.notify_one();
        }
        index.drop_unwritten(UNWRITTEN);
    }

    /// Forgets an answer: what it told of is gone, or no longer for this caller.
    ///
    /// # Errors
    ///
    /// When the store fails; the answer is then still there, and removed with the next writing.
    pub(crate) async fn forget(&self, key: &Key) -> Result<(), StoreError> {
        let stored = {
            let mut index = self.lock();
            index.remove(&key.0);
            index.removed.contains(&key.0)
        };
        if !stored {
            return Ok(());
        }
        self.store.delete(self.bucket, std::slice::from_ref(&key.0)).await?;
        self.lock().removed.remove(&key.0);
        Ok(())
    }

    /// Forgets every answer of the owner about the same subject.
    ///
    /// # Errors
    ///
    /// When the store fails; they are then removed with the next writing, and told to nobody before.
    pub(crate) async fn forget_subject(&self, key: &Key) -> Result<(), StoreError> {
        let stored: Vec<Vec<u8>> = {
            let mut index = self.lock();
            let subject = &key.0[..SUBJECT];
            let keys: Vec<_> = index.entries.keys().filter(|key| key.starts_with(subject)).cloned().collect();
            keys.iter().for_each(|key| index.remove(key));
            keys.into_iter().filter(|key| index.removed.contains(key)).collect()
        };
        if stored.is_empty() {
            return Ok(());
        }
        self.store.delete(self.bucket, &stored).await?;
        let mut index = self.lock();
        for key in &stored {
            index.removed.remove(key);
        }
        Ok(())
    }

    /// The answer as last seen.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn recall(&self, key: &Key) -> Result<Option<Answer>, StoreError> {
        {
            let mut index = self.lock();
            index.see(&key.0);
            match index.entries.get(&key.0) {
                None => return Ok(None),
                Some(Entry { unwritten: Some(value), .. }) => return Ok(Answer::from_bytes(value)),
                Some(_) => {}
            }
        }
        Ok(self.store.get(self.bucket, &key.0)?.and_then(|value| Answer::from_bytes(&value)))
    }

    /// Returns when something should be written.
    pub(crate) async fn due(&self) {
        loop {
            let at = self.lock().waiting.map(|since| since + WRITE_AFTER);
            let full = self.full.notified();
            match at {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    () = full => return,
                },
                None => tokio::select! {
                    () = tokio::time::sleep(WRITE_AFTER) => {}
                    () = full => return,
                },
            }
        }
    }

    /// Writes everything that waits, in one transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: then it goes on waiting.
    pub(crate) async fn write_back(&self) -> Result<(), StoreError> {
        let (removed, written) = {
            let mut index = self.lock();
            index.waiting = None;
            let removed: Vec<Vec<u8>> = index.removed.iter().cloned().collect();
            let written: Vec<(Vec<u8>, Vec<u8>)> = index
                .entries
                .iter()
                .filter(|(_, entry)| entry.keep == Keep::Stored)
                .filter_map(|(key, entry)| Some((key.clone(), entry.unwritten.clone()?)))
                .collect();
            (removed, written)
        };
        if removed.is_empty() && written.is_empty() {
            return Ok(());
        }
        let outcome = self.write(&removed, &written).await;
        let mut index = self.lock();
        match outcome {
            Ok(()) => {
                for key in &removed {
                    index.removed.remove(key);
                }
                for (key, value) in &written {
                    index.is_written(key, value);
                }
                Ok(())
            }
            Err(error) => {
                index.waiting.get_or_insert_with(Instant::now);
                Err(error)
            }
        }
    }

    async fn write(&self, removed: &[Vec<u8>], written: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
        let removed: Vec<_> = removed.iter().map(|key| bucket_key(self.bucket, key)).collect();
        let mut sealed = Vec::with_capacity(written.len());
        for (key, value) in written {
            let key = bucket_key(self.bucket, key);
            let value = self.store.sealer().seal(&key, value)?;
            sealed.push((key, value));
        }
        self.store
            .write(Durability::Relaxed, move |tx| {
                for key in &removed {
                    tx.delete(Table::Buckets, key)?;
                }
                sealed.iter().try_for_each(|(key, value)| tx.put(Table::Buckets, key, value))
            })
            .await
    }
}

impl Index {
    /// Whether the owner of a key has a pod on the node.
    fn stays(&self, key: &[u8]) -> bool {
        self.stay.contains(&key[..OWNER])
    }

    /// Whether the same value is there already.
    fn is_known(&self, key: &[u8], digest: &[u8; 32]) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.digest.as_ref() == Some(digest))
    }

    fn insert(&mut self, key: Vec<u8>, value: Vec<u8>, digest: [u8; 32], keep: Keep) {
        self.remove(&key);
        let stored = self.removed.remove(&key);
        self.clock += 1;
        self.total += value.len();
        self.unwritten += value.len();
        if keep == Keep::Stored {
            self.waiting.get_or_insert_with(Instant::now);
        }
        let (size, digest, seen) = (value.len(), Some(digest), self.clock);
        self.entries.insert(key, Entry { size, digest, seen, unwritten: Some(value), keep, stored });
    }

    fn see(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.clock += 1;
            entry.seen = self.clock;
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.total -= entry.size;
            self.unwritten -= entry.unwritten.map_or(0, |value| value.len());
            if entry.stored {
                self.removed.insert(key.to_vec());
                self.waiting.get_or_insert_with(Instant::now);
            }
        }
    }

    /// The store has this value now; if another one has come meanwhile, that waits.
    fn is_written(&mut self, key: &[u8], value: &[u8]) {
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.stored = true;
                if entry.unwritten.as_deref() == Some(value) {
                    entry.unwritten = None;
                    self.unwritten -= value.len();
                }
            }
            // Removed meanwhile.
            None => {
                self.removed.insert(key.to_vec());
            }
        }
    }

    /// Drops what has waited longest, until no more than `limit` waits, or the newest alone.
    fn drop_unwritten(&mut self, limit: usize) {
        while self.unwritten > limit {
            let waiting = || self.entries.iter().filter(|(_, entry)| entry.unwritten.is_some());
            let oldest = waiting().min_by_key(|(_, entry)| entry.seen).map(|(key, _)| key.clone());
            match oldest {
                Some(oldest) if waiting().count() > 1 => self.remove(&oldest),
                _ => return,
            }
        }
    }

    /// Takes out what was seen longest ago until the bounds hold; never the newest.
    fn evict(&mut self, bounds: &Bounds) -> Vec<Vec<u8>> {
        let mut evicted = Vec::new();
        while self.entries.len() > 1 {
            let Some(key) = self.victim(bounds) else { break };
            self.remove(&key);
            evicted.push(key);
        }
        evicted
    }

    /// What has to go next: of the owner with more than its share, or else of those without a claim to theirs.
    fn victim(&self, bounds: &Bounds) -> Option<Vec<u8>> {
        let newest = self.entries.iter().max_by_key(|(_, entry)| entry.seen)?.0;
        let quarter = Usage { count: bounds.count.div_ceil(4), size: bounds.total / 4 };
        let whole = Usage { count: bounds.count, size: bounds.total };
        let mut owners: HashMap<&[u8], Usage> = HashMap::new();
        for (key, entry) in &self.entries {
            owners.entry(&key[..OWNER]).or_default().add(entry);
        }
        let others = owners.iter().filter(|(owner, _)| owner[0] == OTHER);
        let all = owners.values().fold(Usage::default(), |all, usage| all.and(usage));
        let all_others = others.clone().fold(Usage::default(), |all, (_, usage)| all.and(usage));
        let greedy = others.clone().find(|(_, usage)| usage.exceeds(&quarter)).map(|(owner, _)| *owner);
        // Three quarters together.
        let three = Usage { count: bounds.count - quarter.count, size: bounds.total - quarter.size };
        let may_go = |key: &[u8]| match greedy {
            Some(owner) => key.starts_with(owner),
            None if all_others.exceeds(&three) => key[0] == OTHER,
            // Shares within the reserve stay.
            None => key[0] == OTHER || owners[&key[..OWNER]].exceeds(&quarter),
        };
        if greedy.is_none() && !all_others.exceeds(&three) && !all.exceeds(&whole) {
            return None;
        }
        self.entries
            .iter()
            .filter(|(key, _)| *key != newest && may_go(key))
            .min_by_key(|(key, entry)| (self.stays(key), entry.seen))
            .map(|(key, _)| key.clone())
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    count: usize,
    size: usize,
}

impl Usage {
    fn add(&mut self, entry: &Entry) {
        self.count += 1;
        self.size += entry.size;
    }

    fn and(self, other: &Self) -> Self {
        Self { count: self.count + other.count, size: self.size + other.size }
    }

    fn exceeds(&self, bound: &Self) -> bool {
        self.count > bound.count || self.size > bound.size
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(owner: Owner<'_>, path: &str) -> Vec<u8> {
        Key::new(owner, "", path, "", "").0
    }

    impl Index {
        /// `false` when the same value is there already.
        fn keep(&mut self, key: Vec<u8>, value: &[u8]) -> bool {
            let digest = Sha256::digest(value).into();
            let known = self.is_known(&key, &digest);
            if known {
                self.see(&key);
            } else {
                self.insert(key, value.to_vec(), digest, Keep::Stored);
            }
            !known
        }
    }

    #[test]
    fn the_index_stays_within_its_bounds_and_drops_what_was_seen_longest_ago() {
        let bounds = Bounds { answer: 100, total: 250, count: 100 };
        let node = |path: &str| key(Owner::Node("node"), path);
        let mut index = Index::default();
        assert!(index.keep(node("1"), &[1; 100]));
        assert!(index.keep(node("2"), &[2; 100]));
        assert!(!index.keep(node("1"), &[1; 100]), "unchanged, but seen again");
        assert!(index.evict(&bounds).is_empty());
        assert!(index.keep(node("3"), &[3; 90]));
        assert_eq!(index.evict(&bounds), [node("2")]);
        assert_eq!(index.total, 190);
        index.see(&node("1"));
        assert!(index.keep(node("4"), &[4; 100]));
        assert_eq!(index.evict(&bounds), [node("3")]);
    }

    #[test]
    fn nobody_drives_out_kubelets_answers_or_has_more_than_a_quarter() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 40 };
        let mut index = Index::default();
        let insert = |index: &mut Index, owner: Owner<'_>, count: usize| {
            for number in 0..count {
                index.keep(key(owner, &number.to_string()), b"x");
                index.evict(&bounds);
            }
            let of = key(owner, "");
            index.entries.keys().filter(|key| key[..OWNER] == of[..OWNER]).count()
        };
        let node = Owner::Node("node");
        assert_eq!(insert(&mut index, node, 20), 20);
        for other in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(insert(&mut index, Owner::Other(other), 1000), 10);
            assert!(index_of_others(&index) <= 30);
        }
        assert!(insert(&mut index, node, 0) >= 10, "a quarter is kubelet's whatever others do");
        let others = index_of_others(&index);
        assert_eq!(insert(&mut index, node, 1000), 40 - index_of_others(&index));
        assert!(index_of_others(&index) <= others);
    }

    #[test]
    fn answers_of_those_who_have_a_pod_on_the_node_go_last() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 8 };
        let (agent, passer_by) = (Owner::Other("agent"), Owner::Other("passer-by"));
        let mut index = Index { stay: [agent.prefix()].into(), ..Index::default() };
        index.keep(key(agent, "own pod"), b"x");
        for number in 0..20 {
            for other in [passer_by, Owner::Other("second"), Owner::Other("third")] {
                index.keep(key(other, &number.to_string()), b"x");
                index.evict(&bounds);
            }
        }
        assert!(index.entries.contains_key(&key(agent, "own pod")));
        assert!(index.entries.len() <= 8);
        // Its own newer ones drive it out all the same: a share is a share.
        for number in 0..3 {
            index.keep(key(agent, &number.to_string()), b"x");
            index.evict(&bounds);
        }
        assert!(!index.entries.contains_key(&key(agent, "own pod")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_to_a_pod_of_the_node_is_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (_, memory) = memory(dir.path(), Bounds { answer: 100, total: 1000, count: 10 });
        let (agent, other) = (Owner::Other("agent"), Owner::Other("other"));
        memory.stay([agent].into_iter());
        let keep = |owner: Owner<'_>, text: &str| {
            memory.remember(&Key::new(owner, "/pods", "/own/pod", "", ""), &json(text), Keep::Stored);
        };
        keep(other, "1");
        assert!(memory.due().now_or_never().is_none());
        keep(agent, "1");
        assert!(memory.due().now_or_never().is_some());
        memory.write_back().await.unwrap();
        keep(agent, "2");
        assert!(memory.due().now_or_never().is_none(), "a change waits for company");
    }

    fn index_of_others(index: &Index) -> usize {
        index.entries.keys().filter(|key| key[0] == OTHER).count()
    }

    fn json(text: &str) -> Answer {
        Answer::new(http::StatusCode::OK, "application/json", bytes::Bytes::copy_from_slice(text.as_bytes()))
    }

    fn of_node(path: &str) -> Key {
        Key::new(Owner::Node("system:node:edge"), "", path, "", "")
    }

    fn memory(dir: &std::path::Path, bounds: Bounds) -> (Store, Remembered) {
        let (store, _) = Store::open(dir).unwrap();
        (store.clone(), Remembered::open(store, Bucket::Answers, bounds))
    }

    #[tokio::test]
    async fn an_answer_is_written_once_and_found_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { answer: 100, total: 1000, count: 2 };
        let (store, memory) = memory(dir.path(), bounds);
        let keep = |memory: &Remembered, path: &str, text: &str| {
            memory.remember(&of_node(path), &json(text), Keep::Stored);
        };
        keep(&memory, "/a", "1");
        assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")), "not written yet");
        memory.write_back().await.unwrap();
        let commits = store.stats().commits;
        keep(&memory, "/a", "1");
        memory.write_back().await.unwrap();
        assert_eq!(store.stats().commits, commits, "unchanged");
        let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
        assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")));
        keep(&memory, "/a", "1");
        memory.write_back().await.unwrap();
        assert_eq!(store.stats().commits, commits, "still unchanged");
        for path in ["/b", "/c"] {
            keep(&memory, path, "2");
        }
        assert_eq!(memory.recall(&of_node("/a")).unwrap(), None, "the oldest went");
        memory.write_back().await.unwrap();
        memory.forget(&of_node("/c")).await.unwrap();
        let memory = Remembered::open(store, Bucket::Answers, bounds);
        let left: Vec<_> =
            ["/a", "/b", "/c"].iter().map(|path| memory.recall(&of_node(path)).unwrap()).collect();
        assert_eq!(left, [None, Some(json("2")), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_changing_answers_is_written_once_a_minute_and_leases_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { answer: 100_000, total: 1_000_000, count: 100 };
        let (store, memory) = memory(dir.path(), bounds);
        let hour = async |metrics: bool| {
            let before = store.stats().syncs;
            for second in (0..3600).step_by(2) {
                memory.remember(&of_node("/lease"), &json(&format!("{second}{metrics}")), Keep::InMemory);
                if metrics && second % 15 == 0 {
                    memory.remember(&of_node("/metrics"), &json(&second.to_string()), Keep::Stored);
                }
                tokio::time::advance(Duration::from_secs(2)).await;
                if memory.due().now_or_never().is_some() {
                    memory.write_back().await.unwrap();
                }
            }
            store.stats().syncs - before
        };
        assert_eq!(hour(false).await, 0, "a standby of a leader election");
        let syncs = hour(true).await;
        assert!((30..=130).contains(&syncs), "{syncs}");
        assert_eq!(memory.recall(&of_node("/lease")).unwrap(), Some(json("3598true")));
        let another = Remembered::open(store.clone(), Bucket::Answers, bounds);
        assert_eq!(another.recall(&of_node("/lease")).unwrap(), None);
    }

    #[tokio::test]
    async fn behind_a_disk_that_hangs_the_oldest_answers_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { answer: 512 << 10, total: 8 << 20, count: 1024 };
        let (store, memory) = memory(dir.path(), bounds);
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let mut hangs = Some(hangs);
        let hanging = store.write(Durability::Soon, move |_| {
            let _ = hangs.take().map(|hangs| hangs.recv());
            Ok(())
        });
        let asking = async {
            let text = "x".repeat(200 << 10);
            let (_, writing) = tokio::join!(
                async {
                    for number in 0..200 {
                        memory.remember(&of_node(&number.to_string()), &json(&text), Keep::Stored);
                        assert!(memory.lock().unwritten <= UNWRITTEN);
                        tokio::task::yield_now().await;
                    }
                    release.send(()).unwrap();
                },
                memory.write_back()
            );
            writing.unwrap();
        };
        let (hung, ()) = tokio::join!(hanging, asking);
        hung.unwrap();
        memory.write_back().await.unwrap();
        assert_eq!(memory.recall(&of_node("0")).unwrap(), None);
        assert!(memory.recall(&of_node("199")).unwrap().is_some());
        let index = memory.lock();
        assert_eq!((index.unwritten, index.removed.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { answer: 3 << 20, total: 30 << 20, count: 100 };
        let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
        let memory = Remembered::open(store, Bucket::Answers, bounds);
        memory.remember(&of_node("/small"), &json("1"), Keep::Stored);
        memory.write_back().await.unwrap();
        memory.remember(&of_node("/small"), &json("2"), Keep::Stored);
        memory.remember(&of_node("/large"), &json(&"x".repeat(1100 << 10)), Keep::Stored);
        assert!(matches!(memory.write_back().await, Err(StoreError::Full(_))));
        assert_eq!(memory.recall(&of_node("/small")).unwrap(), Some(json("2")));
        memory.forget(&of_node("/large")).await.unwrap();
        memory.write_back().await.unwrap();
        assert_eq!(memory.lock().unwritten, 0);
        assert_eq!(memory.recall(&of_node("/small")).unwrap(), Some(json("2")));
    }

    #[tokio::test]
    async fn answers_about_one_resource_are_forgotten_together() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let bounds = Bounds { answer: 100, total: 1000, count: 40 };
        let key = |owner: &'static str, subject: &str, path: &str| {
            Key::new(Owner::Other(owner), subject, path, "", "")
        };
        let answer = Answer::new(http::StatusCode::OK, "application/json", bytes::Bytes::from_static(b"{}"));
        let (one, two) = (key("a", "/secrets", "/1"), key("a", "/secrets", "/2"));
        let others = [key("a", "/configmaps", "/3"), key("b", "/secrets", "/1")];
        let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
        memory.remember(&one, &answer, Keep::Stored);
        memory.write_back().await.unwrap();
        memory.remember(&two, &answer, Keep::Stored);
        others.iter().for_each(|key| memory.remember(key, &answer, Keep::Stored));
        memory.forget_subject(&key("a", "/secrets", "/never asked for")).await.unwrap();
        memory.write_back().await.unwrap();
        for memory in [memory, Remembered::open(store, Bucket::Answers, bounds)] {
            assert_eq!([&one, &two].map(|key| memory.recall(key).unwrap()), [None, None]);
            assert!(others.iter().all(|key| memory.recall(key).unwrap().is_some()));
        }
    }

    #[test]
    fn keys_of_two_identities_never_meet() {
        let (node, other) = (Owner::Node("a"), Owner::Other("a"));
        assert_ne!(Key::new(node, "", "/b", "", ""), Key::new(Owner::Everybody, "", "a/b", "", ""));
        assert_ne!(Key::new(node, "", "/b", "", ""), Key::new(other, "", "/b", "", ""));
        assert_ne!(Key::new(node, "", "/b", "x=1", "j"), Key::new(node, "", "/b", "x=1", "p"));
    }
}
