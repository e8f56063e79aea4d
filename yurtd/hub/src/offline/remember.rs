//! Answers of the API server kept for the time without a link: GETs of single objects and lists that no view
//! covers, and discovery.
//!
//! Key: whose answer it is (nobody's for discovery, which every authenticated user may read), of which resource, path,
//! canonical query, `Accept` ([`Key`]). The memory is bounded ([`index`]); the answers that were seen longest ago go
//! first. A quarter is kubelet's alone, and nobody else has more than a quarter: a client that asks for ten thousand
//! different things forgets its own answers and nobody else's. Of discovery that is what it has asked for. Answers of
//! those who have a pod on the node go after all others: it asks again when it starts. When an answer was seen last is
//! known in memory alone; after a restart all are equally old.
//!
//! # Writing
//!
//! An answer that has not changed is not written again, and one that has is not written at once: a standby of a leader
//! election reads its Lease every two seconds, and finds it changed. It stays in memory, and what has waited for a
//! minute is written together with all that waits ([`Remembered::write_back`]); so is everything when the link is lost,
//! and when the hub stops. The first answer to a question of somebody who has a pod on the node is written at once: the
//! link and the power may go together. A process that is killed in between has the answers of a minute ago. What waits
//! is bounded as well ([`UNWRITTEN`]): behind a disk that hangs the oldest answers are dropped, which costs nothing but
//! them. What is worth nothing after a restart ([`Keep::InMemory`]) is never written.

mod index;
mod key;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::Answer;
use crate::limits::UNWRITTEN;
use crate::store::{Bucket, Durability, Store, StoreError, Table, bucket_key};

use index::{Entry, Index, Older};
use key::{KEY, OLDER_KEY, OWNER, SUBJECT};
pub(crate) use key::{Key, Owner};

/// In the bucket `Misc`, before the name of the memory: the day on which answers with older keys were found first.
const OLDER_SINCE: &str = "remembered of an older release/";
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

fn older_since(bucket: Bucket) -> Vec<u8> {
    format!("{OLDER_SINCE}{bucket:?}").into_bytes()
}

impl Remembered {
    /// Finds what is there. Nothing is unsealed yet: that takes a while on a small board, and clients are waiting.
    pub(crate) fn open(store: Store, bucket: Bucket, bounds: Bounds) -> Self {
        let mut index = Index::default();
        let found = store.sizes(bucket).unwrap_or_else(|error| {
            tracing::error!(%error, ?bucket, "remembered answers cannot be read");
            Vec::new()
        });
        // Nobody will ask for keys of another length: they go with the next writing.
        let is_key = |key: &[u8]| matches!(key.len(), KEY | OLDER_KEY);
        let (found, other): (Vec<_>, Vec<_>) = found.into_iter().partition(|(key, _)| is_key(key));
        index.removed.extend(other.into_iter().map(|(key, _)| key));
        if found.iter().any(|(key, _)| key.len() == OLDER_KEY) {
            let since = store.get(Bucket::Misc, &older_since(bucket)).unwrap_or_default();
            let day = since.and_then(|day| <[u8; 8]>::try_from(day).ok()).map(u64::from_be_bytes);
            index.older = Older::since(day);
            if day.is_none() {
                index.waiting = Some(Instant::now());
            }
        }
        for (key, size) in found {
            index.found(key, size);
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
        let unknown = self.lock().entries.get(&key.bytes).is_some_and(|entry| entry.digest.is_none());
        if unknown
            && let Ok(Some(stored)) = self.store.get(self.bucket, &key.bytes)
            && let Some(entry) = self.lock().entries.get_mut(&key.bytes)
        {
            entry.digest.get_or_insert_with(|| Sha256::digest(&stored).into());
        }
        let mut index = self.lock();
        if index.is_known(&key.bytes, &digest) {
            index.confirm(&key.bytes, key.by);
            index.evict(&self.bounds);
            return;
        }
        let first = !index.entries.contains_key(&key.bytes) && keep == Keep::Stored && index.stays(key.by);
        index.insert(key.bytes.clone(), key.by, value, digest, keep);
        index.remove(&key.older());
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
        self.forget_all(|known| *known == key.bytes || *known == key.older()).await
    }

    /// Forgets every answer of the owner about the same subject.
    ///
    /// # Errors
    ///
    /// When the store fails; they are then removed with the next writing, and told to nobody before.
    pub(crate) async fn forget_subject(&self, key: &Key) -> Result<(), StoreError> {
        let (subject, owner) = (&key.bytes[..SUBJECT], &key.bytes[..OWNER]);
        // An older key does not say what it is about.
        self.forget_all(|known| {
            known.starts_with(subject) || (known.len() == OLDER_KEY && known.starts_with(owner))
        })
        .await
    }

    async fn forget_all(&self, which: impl Fn(&Vec<u8>) -> bool) -> Result<(), StoreError> {
        let stored: Vec<Vec<u8>> = {
            let mut index = self.lock();
            let keys: Vec<_> = index.entries.keys().filter(|known| which(known)).cloned().collect();
            keys.iter().for_each(|key| index.remove(key));
            index.removed.iter().filter(|known| which(known)).cloned().collect()
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
        let older = key.older();
        let (key, day) = {
            let mut index = self.lock();
            let (key, day) = if index.entries.contains_key(&key.bytes) {
                (&key.bytes, None)
            } else {
                (&older, Some(index.older.day))
            };
            index.see(key);
            match index.entries.get(key) {
                None => return Ok(None),
                Some(Entry { unwritten: Some(value), .. }) => return Ok(Answer::from_bytes(value)),
                Some(_) => (key, day),
            }
        };
        let answer = self.store.get(self.bucket, key)?.and_then(|value| Answer::from_bytes(&value));
        if answer.is_none() {
            // It is to be written again when it comes again.
            self.lock().lose(key);
        }
        Ok(answer.map(|answer| Answer { confirmed: answer.confirmed.or(day), ..answer }))
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
        let (removed, written, older) = {
            let mut index = self.lock();
            index.waiting = None;
            let removed: Vec<Vec<u8>> = index.removed.iter().cloned().collect();
            let written: Vec<(Vec<u8>, Vec<u8>)> = index
                .entries
                .iter()
                .filter(|(_, entry)| entry.keep == Keep::Stored)
                .filter_map(|(key, entry)| Some((key.clone(), entry.unwritten.clone()?)))
                .collect();
            (removed, written, Some(index.older).filter(|older| older.is_new))
        };
        if removed.is_empty() && written.is_empty() && older.is_none() {
            return Ok(());
        }
        let outcome = self.write(&removed, &written, older).await;
        let mut index = self.lock();
        match outcome {
            Ok(()) => {
                index.older.is_new = false;
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

    async fn write(
        &self,
        removed: &[Vec<u8>],
        written: &[(Vec<u8>, Vec<u8>)],
        older: Option<Older>,
    ) -> Result<(), StoreError> {
        let removed: Vec<_> = removed.iter().map(|key| bucket_key(self.bucket, key)).collect();
        let mut sealed = Vec::with_capacity(written.len());
        for (key, value) in written {
            let key = bucket_key(self.bucket, key);
            let value = self.store.sealer().seal(&key, value)?;
            sealed.push((key, value));
        }
        if let Some(Older { day, .. }) = older {
            let key = bucket_key(Bucket::Misc, &older_since(self.bucket));
            let value = self.store.sealer().seal(&key, &day.to_be_bytes())?;
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

#[cfg(test)]
mod tests;
