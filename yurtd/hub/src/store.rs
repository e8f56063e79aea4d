//! What is on the disk: one LMDB environment in the state folder, for everything that has to outlive the process.
//!
//! # Where it stands
//!
//! The store knows tables, keys and bytes, not Kubernetes. `view` lays its objects out in it, `replica` and the
//! offline journal write. Reading is a closure over a transaction, so that none can live across an await.
//!
//! # Tables and keys
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | version stamp; a sealed probe that tells whether the key file belongs to this store |
//! | `views` | view id, u32 big-endian | the view's record (`view::record`) |
//! | `objects` | view id ++ `namespace/name` | header and stored object; sealed for Secrets |
//! | `log` | view id ++ sequence, u64 big-endian | which object changed at that point, or a tombstone |
//! | `locals` | view id ++ `namespace/name` | the local version of an object that was changed offline |
//! | `staging` | view id ++ `namespace/name` | pages of a list whose last page has not come yet |
//! | `buckets` | bucket, u8 ++ key | sealed value |
//!
//! Object keys sort like etcd's (`/` between namespace and name), so a list is one walk over neighbouring pages. The
//! log holds every object exactly once, at its latest change, plus a bounded number of tombstones: it is at the
//! same time the index by resourceVersion that resumes watches and the queue that feeds them, and there is no copy
//! of any object in memory.
//!
//! # Durability
//!
//! One thread writes ([`writer`]); whatever waits while it commits goes into the next transaction. The environment
//! is opened with `MDB_NOMETASYNC`: a commit flushes its pages, its meta page is flushed with the next commit or
//! within a second. A power cut loses at most that second and never tears anything; a killed process loses nothing.
//! Writes that only we can know (journal, tokens) are flushed entirely before they are acknowledged. `MDB_NOSYNC` was
//! rejected: it would save the second flush as well, but a power cut could then destroy the whole store.
//!
//! # When it fails
//!
//! A full disk or map fails the transaction that did not fit and nothing else; readers go on seeing the last
//! committed state. The store says that it is full until a write of that size has fitted or room was made.
//!
//! A store of the version before is converted at its first start. One that is damaged, of any other version, or sealed
//! with a lost key is renamed (`store.damaged`) and a new one started: everything but the journal can be had from upstream
//! again. LMDB trusts what it reads, so that a damaged page kills the process, or hides records; whether all pages are there
//! and in order is therefore looked at before it is opened ([`structure`]), and every value has a checksum ([`checksum`]).
//! A single record that is damaged costs its view, which is listed again; in a bucket it costs itself: it is not there,
//! for whoever reads it, and is removed. A start that dies
//! while it looks at the store, or a disk that gives errors, three times in a row, counts as damage, too.
//! Damage that shows only later is noted beside the store ([`Store::broken`]) for the next start.

mod checksum;
mod convert;
mod env;
mod opening;
mod seal;
mod structure;
mod transaction;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(crate) use env::Table;
pub(crate) use seal::Sealer;
pub(crate) use transaction::{Reader, Tx};
pub(crate) use writer::Durability;

use env::Environment;
use writer::Writer;

/// How far the store may grow. Address space, not disk, until it is used.
const MAP_SIZE: usize = if cfg!(target_pointer_width = "64") { 1 << 30 } else { 256 << 20 };

/// Why the store cannot do what was asked. What was stored before is still there.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// The disk or the map is full; the last good state stays.
    #[error("the store is full: {0}")]
    Full(String),
    /// Anything else that the database or the disk says.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The disk does not give what is on it. At the next start it may.
    #[error("the store cannot be read: {0}")]
    Unreadable(String),
    /// A record that nothing of ours wrote, or sealed with another key.
    #[error("a record of the store is damaged: {0}")]
    Damaged(String),
    /// The database itself is broken. See [`Store::broken`].
    #[error("the store is broken: {0}")]
    Broken(String),
    /// The process is about to end.
    #[error("the store is closed")]
    Closed,
}

/// Small typed key/value spaces. Values are sealed with the store's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Bucket {
    /// Replies to TokenRequests.
    Tokens = 1,
    /// Callers that the API server accepted: hashes of bearer tokens, users, what they may read.
    Callers = 2,
    /// Remembered answers of GETs and one-shot LISTs.
    Answers = 3,
    /// Discovery, version, OpenAPI.
    Discovery = 4,
    /// Status patches to replay.
    Journal = 5,
    /// Events to send.
    Events = 6,
    /// Leases as last seen, settings, anything small.
    Misc = 7,
}

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// How the store was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opened {
    /// As it was left.
    Existing,
    /// There was none.
    Created,
    /// There was one that cannot be used; it was set aside.
    Replaced {
        /// Where it is now.
        set_aside: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreStats {
    /// Bytes of the file on the disk.
    pub(crate) file_bytes: u64,
    /// Bytes of it that hold something.
    pub(crate) used_bytes: u64,
    /// Bound of the file.
    pub(crate) map_bytes: u64,
    /// Transactions since the start.
    pub(crate) commits: u64,
    /// Times the disk was waited for: every commit flushes its pages, and every [`Durability::Durable`] one, or a
    /// second of others, its meta page.
    pub(crate) syncs: u64,
    /// Whether what was to be written lately did not fit and would not now.
    pub(crate) full: bool,
}

/// The store of one node. Cheap to clone; the last clone ends the writer.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    environment: Arc<Environment>,
    writer: Arc<Writer>,
}

impl Store {
    /// Opens or makes the store in `dir` (0700), the key file beside it.
    ///
    /// # Errors
    ///
    /// When not even a new store can be made.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Opened), StoreError> {
        Self::open_with(dir, MAP_SIZE)
    }

    /// [`Self::open`] with a bound of one's own.
    pub(crate) fn open_with(dir: &Path, map_size: usize) -> Result<(Self, Opened), StoreError> {
        let (environment, opened) = opening::open(dir, map_size)?;
        let environment = Arc::new(environment);
        let writer = Arc::new(Writer::start(Arc::clone(&environment))?);
        Ok((Self { environment, writer }, opened))
    }

    /// Reads in one transaction: one state of everything. The closure must be short.
    ///
    /// # Errors
    ///
    /// [`StoreError`], the closure's or the database's.
    pub(crate) fn read<T>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.environment.read(job)
    }

    /// The same store without its writer.
    pub(crate) fn read_only(&self) -> ReadOnlyStore {
        ReadOnlyStore { environment: Arc::clone(&self.environment) }
    }

    /// Writes in one transaction, with other writers' jobs or alone: all of the job or nothing. The job may run more
    /// than once, and runs even if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(durability, job, |_| ()).await
    }

    /// The same; `then` is called when the transaction is committed, for one job after the other in the order in which they
    /// were, whoever waits for them. It must not take long: nothing is written meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn write_then<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(durability, job, then).await
    }

    /// Seals and opens values.
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.environment.sealer
    }

    /// Stores a value; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn put_durable(
        &self,
        bucket: Bucket,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.put_sealed(Durability::Durable, bucket, key, value).await
    }

    /// Stores a value; a power cut within the next second may lose it, never tear it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn put(&self, bucket: Bucket, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.put_sealed(Durability::Soon, bucket, key, value).await
    }

    async fn put_sealed(
        &self,
        durability: Durability,
        bucket: Bucket,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        let key = bucket_key(bucket, key);
        let value = self.sealer().seal(&key, value)?;
        self.write(durability, move |tx| tx.put(Table::Buckets, &key, &value)).await
    }

    /// Removes values, durably and all at once.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn delete(&self, bucket: Bucket, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        let keys: Vec<_> = keys.iter().map(|key| bucket_key(bucket, key)).collect();
        let job =
            move |tx: &mut Tx<'_>| keys.iter().try_for_each(|key| tx.delete(Table::Buckets, key).map(drop));
        self.write(Durability::Durable, job).await
    }

    /// Reads a value; one that is damaged is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`], but not [`StoreError::Damaged`].
    pub(crate) fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = bucket_key(bucket, key);
        let value = self.read(|reader| {
            reader.get(Table::Buckets, &key)?.map(|sealed| self.sealer().open(&key, sealed)).transpose()
        });
        Ok(self.whole(&key, value)?.flatten())
    }

    /// Keys below `prefix` in order with their values, at most `limit`, starting behind `after`.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn scan(
        &self,
        bucket: Bucket,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let prefix = bucket_key(bucket, prefix);
        let after = after.map(|after| bucket_key(bucket, after));
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.read(|reader| {
            reader.scan_each(Table::Buckets, &prefix, after.as_deref(), |key, sealed| {
                let value = sealed.and_then(|sealed| self.sealer().open(key, sealed));
                if let Some(value) = self.whole(key, value)? {
                    found.push((key[1..].to_vec(), value));
                }
                Ok(found.len() < limit)
            })
        })?;
        Ok(found)
    }

    /// All keys of a bucket with the sizes of their values, which are not unsealed.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn sizes(&self, bucket: Bucket) -> Result<Vec<(Vec<u8>, usize)>, StoreError> {
        let mut found = Vec::new();
        self.read(|reader| {
            reader.scan_each(Table::Buckets, &[bucket as u8], None, |key, sealed| {
                if let Some(sealed) = self.whole(key, sealed)? {
                    found.push((key[1..].to_vec(), sealed.len().saturating_sub(Sealer::OVERHEAD)));
                }
                Ok(true)
            })
        })?;
        Ok(found)
    }

    /// Nothing for a record of a bucket that is damaged, which has it removed: the others are worth something without it,
    /// and nobody else would ever put it right.
    fn whole<T>(&self, key: &[u8], record: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match record {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Damaged(reason)) => {
                tracing::error!(bucket = key.first(), reason, "a stored record is damaged and is removed");
                let key = key.to_vec();
                // Whoever has written it anew meanwhile keeps it.
                self.writer.try_write(move |tx| match read_sealed(tx, &key) {
                    Err(StoreError::Damaged(_)) => tx.delete(Table::Buckets, &key).map(drop),
                    read => read,
                });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Cancelled when the database turns out to be broken, or is abandoned. It cannot be repaired while it is open: the
    /// process should end, and its next start sets the store aside.
    pub(crate) fn broken(&self) -> CancellationToken {
        self.environment.broken.clone()
    }

    /// Has the next start set the store aside, and says so by [`Self::broken`]: what is in it must not be told any more.
    pub(crate) fn abandon(&self, reason: &str) {
        self.environment.abandon(reason);
    }

    /// Cancelled when the writer has ended: nothing can be written any more, and nobody would notice while reading.
    pub(crate) fn writer_ended(&self) -> CancellationToken {
        self.writer.ended()
    }

    /// Figures for metrics.
    pub(crate) fn stats(&self) -> StoreStats {
        let (commits, syncs) = self.writer.counters();
        StoreStats {
            file_bytes: self.environment.file_bytes(),
            used_bytes: self.environment.used_bytes(),
            map_bytes: self.environment.map_size as u64,
            commits,
            syncs,
            full: self.is_full(),
        }
    }

    /// Whether what was to be written lately did not fit and would not now.
    pub(crate) fn is_full(&self) -> bool {
        self.environment.is_full()
    }

    /// Whether others than kubelet may have more of the store: the last three tenths are kubelet's.
    pub(crate) fn has_room_for_others(&self) -> bool {
        self.environment.used_bytes() < self.environment.map_size as u64 / 10 * 7
    }
}

/// Reading alone, for those who must not write. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ReadOnlyStore {
    environment: Arc<Environment>,
}

impl ReadOnlyStore {
    /// See [`Store::read`].
    ///
    /// # Errors
    ///
    /// [`StoreError`], the closure's or the database's.
    pub(crate) fn read<T>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.environment.read(job)
    }
}

/// Whether the record of a bucket can be read.
fn read_sealed(tx: &Tx<'_>, key: &[u8]) -> Result<(), StoreError> {
    tx.get(Table::Buckets, key)?.map_or(Ok(()), |sealed| tx.sealer().open(key, sealed).map(drop))
}

/// Under which key of [`Table::Buckets`] a bucket's is.
pub(crate) fn bucket_key(bucket: Bucket, key: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(key.len() + 1);
    all.push(bucket as u8);
    all.extend_from_slice(key);
    all
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod damaged;
#[cfg(test)]
mod tests;
