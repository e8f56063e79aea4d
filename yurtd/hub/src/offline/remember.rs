//! Answers of the API server kept for the time without a link: GETs of single objects and lists that no view
//! covers, and discovery.
//!
//! Key: whose answer it is (nobody's for discovery, which every authenticated user may read), path, canonical
//! query, `Accept`. An answer that has not changed is not written again. The memory is bounded; the answers that
//! were seen longest ago go first. A quarter is kubelet's alone, and nobody else has more than a quarter: a client that
//! asks for ten thousand different things forgets its own answers and nobody else's. Answers of those who have a pod on
//! the node go after all others: it asks again when it starts. When an answer was seen last is
//! known in memory alone; after a restart all are equally old.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::answer::Answer;
use crate::caller::Permit;
use crate::store::{Bucket, Store, StoreError};

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
}

#[derive(Default)]
struct Index {
    entries: HashMap<Vec<u8>, Entry>,
    total: usize,
    clock: u64,
}

struct Entry {
    size: usize,
    digest: [u8; 32],
    seen: u64,
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
/// The whole key: the owner, a digest of everything.
const KEY: usize = OWNER + 32;
const OTHER: u8 = 1;

/// Under which key an answer is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// The answer's key.
    pub(crate) fn new(owner: Owner<'_>, path: &str, canonical_query: &str, accept: &str) -> Self {
        let text = [owner.parts().1, path, canonical_query, accept].join("\0");
        // LMDB keys are short; digests keep them so, and distinct.
        let mut key = owner.prefix().to_vec();
        key.extend_from_slice(&Sha256::digest(text.as_bytes()));
        Self(key)
    }
}

impl Remembered {
    /// Reads what is there.
    pub(crate) fn open(store: Store, bucket: Bucket, bounds: Bounds) -> Self {
        let mut index = Index::default();
        let mut after: Option<Vec<u8>> = None;
        loop {
            // A few at a time: the values are read to learn their size and digest.
            let page = store.scan(bucket, b"", after.as_deref(), 32).unwrap_or_else(|error| {
                tracing::error!(%error, ?bucket, "remembered answers cannot be read");
                Vec::new()
            });
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            // Keys of another length are an older release's, and nobody will ask for them.
            for (key, value) in page.into_iter().filter(|(key, _)| key.len() == KEY) {
                index.insert(key, &value);
            }
        }
        Self { store, bucket, bounds, index: Mutex::new(index) }
    }

    /// Whether an answer of that size would be kept.
    pub(crate) fn limit(&self) -> usize {
        self.bounds.answer
    }

    /// Keeps an answer. Those of owners that `stay` go after all others.
    ///
    /// # Errors
    ///
    /// When it cannot be stored; what was kept before under this key may still be there.
    pub(crate) async fn remember(
        &self,
        key: &Key,
        answer: &Answer,
        stay: &[Owner<'_>],
    ) -> Result<(), StoreError> {
        if answer.body.len() > self.bounds.answer {
            return Ok(());
        }
        let value = answer.to_bytes();
        let evicted = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            if !index.insert(key.0.clone(), &value) {
                return Ok(());
            }
            index.evict(&self.bounds, &stay.iter().map(|owner| owner.prefix()).collect())
        };
        if !evicted.is_empty() {
            self.store.delete(self.bucket, &evicted).await?;
        }
        let stored = self.store.put(self.bucket, &key.0, &value).await;
        if stored.is_err() {
            // Not there, or an older one: the next answer is written whatever it says.
            self.index.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.0);
        }
        stored
    }

    /// Forgets an answer: what it told of is gone, or no longer for this caller.
    ///
    /// # Errors
    ///
    /// When the store fails; the answer may then still be there.
    pub(crate) async fn forget(&self, key: &Key) -> Result<(), StoreError> {
        let known = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            let known = index.entries.contains_key(&key.0);
            index.remove(&key.0);
            known
        };
        if known { self.store.delete(self.bucket, std::slice::from_ref(&key.0)).await } else { Ok(()) }
    }

    /// The answer as last seen.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn recall(&self, key: &Key) -> Result<Option<Answer>, StoreError> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).see(&key.0);
        Ok(self.store.get(self.bucket, &key.0)?.and_then(|value| Answer::from_bytes(&value)))
    }
}

impl Index {
    /// `false` when the same value is there already.
    fn insert(&mut self, key: Vec<u8>, value: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(value).into();
        if self.entries.get(&key).is_some_and(|entry| entry.digest == digest) {
            self.see(&key);
            return false;
        }
        self.remove(&key);
        self.clock += 1;
        self.total += value.len();
        self.entries.insert(key, Entry { size: value.len(), digest, seen: self.clock });
        true
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
        }
    }

    /// Takes out what was seen longest ago until the bounds hold; never the newest.
    fn evict(&mut self, bounds: &Bounds, stay: &HashSet<[u8; OWNER]>) -> Vec<Vec<u8>> {
        let mut evicted = Vec::new();
        while self.entries.len() > 1 {
            let Some(key) = self.victim(bounds, stay) else { break };
            self.remove(&key);
            evicted.push(key);
        }
        evicted
    }

    /// What has to go next: of the owner with more than its share, or else of those without a claim to theirs.
    fn victim(&self, bounds: &Bounds, stay: &HashSet<[u8; OWNER]>) -> Option<Vec<u8>> {
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
            .min_by_key(|(key, entry)| (stay.contains(&key[..OWNER]), entry.seen))
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
    use super::*;

    fn key(owner: Owner<'_>, path: &str) -> Vec<u8> {
        Key::new(owner, path, "", "").0
    }

    #[test]
    fn the_index_stays_within_its_bounds_and_drops_what_was_seen_longest_ago() {
        let bounds = Bounds { answer: 100, total: 250, count: 100 };
        let node = |path: &str| key(Owner::Node("node"), path);
        let mut index = Index::default();
        assert!(index.insert(node("1"), &[1; 100]));
        assert!(index.insert(node("2"), &[2; 100]));
        assert!(!index.insert(node("1"), &[1; 100]), "unchanged, but seen again");
        assert!(index.evict(&bounds, &HashSet::new()).is_empty());
        assert!(index.insert(node("3"), &[3; 90]));
        assert_eq!(index.evict(&bounds, &HashSet::new()), [node("2")]);
        assert_eq!(index.total, 190);
        index.see(&node("1"));
        assert!(index.insert(node("4"), &[4; 100]));
        assert_eq!(index.evict(&bounds, &HashSet::new()), [node("3")]);
    }

    #[test]
    fn nobody_drives_out_kubelets_answers_or_has_more_than_a_quarter() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 40 };
        let mut index = Index::default();
        let insert = |index: &mut Index, owner: Owner<'_>, count: usize| {
            for number in 0..count {
                index.insert(key(owner, &number.to_string()), b"x");
                index.evict(&bounds, &HashSet::new());
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
        let mut index = Index::default();
        let (agent, passer_by) = (Owner::Other("agent"), Owner::Other("passer-by"));
        let stay = [agent.prefix()].into();
        index.insert(key(agent, "own pod"), b"x");
        for number in 0..20 {
            for other in [passer_by, Owner::Other("second"), Owner::Other("third")] {
                index.insert(key(other, &number.to_string()), b"x");
                index.evict(&bounds, &stay);
            }
        }
        assert!(index.entries.contains_key(&key(agent, "own pod")));
        assert!(index.entries.len() <= 8);
        // Its own newer ones drive it out all the same: a share is a share.
        for number in 0..3 {
            index.insert(key(agent, &number.to_string()), b"x");
            index.evict(&bounds, &stay);
        }
        assert!(!index.entries.contains_key(&key(agent, "own pod")));
    }

    fn index_of_others(index: &Index) -> usize {
        index.entries.keys().filter(|key| key[0] == OTHER).count()
    }

    #[tokio::test]
    async fn an_answer_is_written_once_and_found_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let bounds = Bounds { answer: 100, total: 1000, count: 2 };
        let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
        let answer = |text: &'static str| {
            Answer::new(http::StatusCode::OK, "application/json", bytes::Bytes::from_static(text.as_bytes()))
        };
        let key = |path: &str| Key::new(Owner::Node("system:node:edge"), path, "", "");
        memory.remember(&key("/a"), &answer("1"), &[]).await.unwrap();
        let commits = store.stats().commits;
        memory.remember(&key("/a"), &answer("1"), &[]).await.unwrap();
        assert_eq!(store.stats().commits, commits, "unchanged");
        let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
        assert_eq!(memory.recall(&key("/a")).unwrap(), Some(answer("1")));
        memory.remember(&key("/a"), &answer("1"), &[]).await.unwrap();
        assert_eq!(store.stats().commits, commits, "still unchanged");
        for path in ["/b", "/c"] {
            memory.remember(&key(path), &answer("2"), &[]).await.unwrap();
        }
        assert_eq!(memory.recall(&key("/a")).unwrap(), None, "the oldest went");
        assert_eq!(memory.recall(&key("/c")).unwrap(), Some(answer("2")));
        memory.forget(&key("/c")).await.unwrap();
        assert_eq!(memory.recall(&key("/c")).unwrap(), None);
    }

    #[test]
    fn keys_of_two_identities_never_meet() {
        let (node, other) = (Owner::Node("a"), Owner::Other("a"));
        assert_ne!(Key::new(node, "/b", "", ""), Key::new(Owner::Everybody, "a/b", "", ""));
        assert_ne!(Key::new(node, "/b", "", ""), Key::new(other, "/b", "", ""));
        assert_ne!(Key::new(node, "/b", "x=1", "j"), Key::new(node, "/b", "x=1", "p"));
    }
}
