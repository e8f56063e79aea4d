//! Answers of the API server kept for the time without a link: GETs of single objects and lists that no view
//! covers, and discovery.
//!
//! Key: whose answer it is (nobody's for discovery, which every authenticated user may read), path, canonical
//! query, `Accept`. An answer that has not changed is not written again. The memory is bounded; the answers that
//! were written longest ago go first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::answer::Answer;
use crate::store::{Bucket, Store, StoreError};

/// Bounds of one memory.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one answer.
    pub answer: usize,
    /// Bytes of all of them.
    pub total: usize,
    /// Number of answers.
    pub count: usize,
}

/// Remembered answers in one bucket.
pub struct Remembered {
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
    written: u64,
}

/// Under which key an answer is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// `identity` is empty for what every authenticated user may read.
    pub fn new(identity: &str, path: &str, canonical_query: &str, accept: &str) -> Self {
        let text = [identity, path, canonical_query, accept].join("\0");
        // LMDB keys are short; the digest keeps them so, and distinct.
        Self(Sha256::digest(text.as_bytes()).to_vec())
    }
}

impl Remembered {
    /// Reads what is there.
    pub fn open(store: Store, bucket: Bucket, bounds: Bounds) -> Self {
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
            for (key, value) in page {
                index.insert(key, &value);
            }
        }
        Self { store, bucket, bounds, index: Mutex::new(index) }
    }

    /// Whether an answer of that size would be kept.
    pub fn limit(&self) -> usize {
        self.bounds.answer
    }

    /// Keeps an answer.
    ///
    /// # Errors
    ///
    /// When it cannot be stored; what was kept before under this key may still be there.
    pub async fn keep(&self, key: &Key, answer: &Answer) -> Result<(), StoreError> {
        if answer.body.len() > self.bounds.answer {
            return Ok(());
        }
        let value = answer.to_bytes();
        let evicted = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            if !index.insert(key.0.clone(), &value) {
                return Ok(());
            }
            index.evict(&self.bounds)
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
    pub async fn forget(&self, key: &Key) -> Result<(), StoreError> {
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
    pub fn recall(&self, key: &Key) -> Result<Option<Answer>, StoreError> {
        Ok(self.store.get(self.bucket, &key.0)?.and_then(|value| Answer::from_bytes(&value)))
    }
}

impl Index {
    /// `false` when the same value is there already.
    fn insert(&mut self, key: Vec<u8>, value: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(value).into();
        if self.entries.get(&key).is_some_and(|entry| entry.digest == digest) {
            return false;
        }
        self.remove(&key);
        self.clock += 1;
        self.total += value.len();
        self.entries.insert(key, Entry { size: value.len(), digest, written: self.clock });
        true
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.total -= entry.size;
        }
    }

    /// Takes out what was written longest ago until the bounds hold; never the newest.
    fn evict(&mut self, bounds: &Bounds) -> Vec<Vec<u8>> {
        let mut evicted = Vec::new();
        while self.entries.len() > 1 && (self.total > bounds.total || self.entries.len() > bounds.count) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.written);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&key);
            evicted.push(key);
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_stays_within_its_bounds_and_drops_the_oldest() {
        let bounds = Bounds { answer: 100, total: 250, count: 3 };
        let mut index = Index::default();
        assert!(index.insert(vec![1], &[1; 100]));
        assert!(!index.insert(vec![1], &[1; 100]), "unchanged");
        assert!(index.insert(vec![2], &[2; 100]));
        assert!(index.insert(vec![1], &[3; 90]), "changed, and so the newest");
        assert!(index.evict(&bounds).is_empty());
        assert!(index.insert(vec![3], &[3; 100]));
        assert_eq!(index.evict(&bounds), [vec![2]]);
        assert_eq!(index.total, 190);
        for key in 4..6 {
            index.insert(vec![key], &[0; 1]);
        }
        assert_eq!(index.evict(&bounds), [vec![1]]);
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
        let key = |path: &str| Key::new("system:node:edge", path, "", "");
        memory.keep(&key("/a"), &answer("1")).await.unwrap();
        let commits = store.stats().commits;
        memory.keep(&key("/a"), &answer("1")).await.unwrap();
        assert_eq!(store.stats().commits, commits, "unchanged");
        let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
        assert_eq!(memory.recall(&key("/a")).unwrap(), Some(answer("1")));
        memory.keep(&key("/a"), &answer("1")).await.unwrap();
        assert_eq!(store.stats().commits, commits, "still unchanged");
        for path in ["/b", "/c"] {
            memory.keep(&key(path), &answer("2")).await.unwrap();
        }
        assert_eq!(memory.recall(&key("/a")).unwrap(), None, "the oldest went");
        assert_eq!(memory.recall(&key("/c")).unwrap(), Some(answer("2")));
        memory.forget(&key("/c")).await.unwrap();
        assert_eq!(memory.recall(&key("/c")).unwrap(), None);
    }

    #[test]
    fn keys_of_two_identities_never_meet() {
        assert_ne!(Key::new("a", "/b", "", ""), Key::new("", "a/b", "", ""));
        assert_ne!(Key::new("a", "/b", "x=1", "j"), Key::new("a", "/b", "x=1", "p"));
    }
}
