//! The environment: its tables, the file behind it, what it does when it is full or broken. How it is opened is in
//! [`opening`](super::opening), what is done in it in [`transaction`](super::transaction).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use heed::types::Bytes;
use heed::{Database, Env, MdbError, WithoutTls};
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::seal::Sealer;
use super::transaction::{Reader, Tx};

/// Length of the file beyond what is in use.
const RESERVE: u64 = 8 << 20;
/// A disk with less free than this is full.
const NO_ROOM: u64 = 1 << 20;

pub(super) type Raw = Database<'static, Bytes, Bytes>;

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Table {
    /// What the store says about itself.
    Meta,
    /// View records.
    Views,
    /// Objects of views.
    Objects,
    /// Changes of views in order.
    Log,
    /// Local versions of objects.
    Locals,
    /// Pages of unfinished lists.
    Staging,
    /// Key/value spaces.
    Buckets,
}

pub(super) const TABLES: [(Table, &str); 7] = [
    (Table::Meta, "meta"),
    (Table::Views, "views"),
    (Table::Objects, "objects"),
    (Table::Log, "log"),
    (Table::Locals, "locals"),
    (Table::Staging, "staging"),
    (Table::Buckets, "buckets"),
];

pub(super) struct Environment {
    pub(super) env: Env<WithoutTls>,
    tables: [Raw; TABLES.len()],
    pub(super) sealer: Sealer,
    pub(super) map_size: usize,
    pub(super) broken: CancellationToken,
    /// The file behind the map, to make it longer. Never written.
    file: fs::File,
    /// Its length, as far as we made it.
    length: AtomicU64,
    /// What did not fit.
    full: Mutex<Option<Full>>,
}

/// A write that did not fit. It says that the store is full until one of that size fits, or room was made.
#[derive(Debug, Clone, Copy)]
struct Full {
    /// Bytes of the largest.
    wanted: u64,
    /// Bytes that were in use then.
    used: u64,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("path", &self.env.path()).finish_non_exhaustive()
    }
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        let text = error.to_string();
        match error {
            heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => Self::Full(text),
            heed::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full(text)
            }
            heed::Error::Mdb(
                MdbError::Corrupted
                | MdbError::PageNotFound
                | MdbError::Invalid
                | MdbError::VersionMismatch
                | MdbError::Incompatible
                | MdbError::CursorFull
                | MdbError::PageFull
                | MdbError::Panic,
            ) => Self::Broken(text),
            _ => Self::Failed(text),
        }
    }
}

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| {
        let text = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(text),
            _ => StoreError::Failed(text),
        }
    }
}

/// Where damage is noted that showed while the store was in use. In its folder: it is set aside with it.
pub(super) fn broken_file(folder: &Path) -> PathBuf {
    folder.join("broken")
}

/// Bytes of the file that the meta page counts on.
pub(super) fn counted_on(env: &Env<WithoutTls>) -> u64 {
    (env.info().last_page_number as u64 + 1) * u64::from(env.unnamed_database_stat().page_size)
}

impl Environment {
    /// Of what was opened. `file` is the one behind the map.
    pub(super) fn new(
        env: Env<WithoutTls>,
        tables: [Raw; TABLES.len()],
        sealer: Sealer,
        map_size: usize,
        file: fs::File,
    ) -> Self {
        let environment = Self {
            env,
            tables,
            sealer,
            map_size,
            broken: CancellationToken::new(),
            file,
            length: AtomicU64::new(0),
            full: Mutex::default(),
        };
        environment.reserve();
        environment
    }

    /// Keeps the file longer than what is in use. The extra length is a hole: it takes no room on the disk.
    fn reserve(&self) {
        let needed = counted_on(&self.env) + RESERVE / 2;
        if self.length.load(Ordering::Relaxed) >= needed {
            return;
        }
        let extended = self.file.metadata().and_then(|metadata| {
            let length = metadata.len().max(needed + RESERVE / 2);
            self.file.set_len(length).map(|()| length)
        });
        match extended {
            Ok(length) => self.length.store(length, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "the store's file cannot be made longer"),
        }
    }

    pub(super) fn read<T>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let outcome = (|| {
            let transaction = self.env.read_txn()?;
            job(&Reader { environment: self, transaction: &transaction })
        })();
        self.note(outcome)
    }

    /// Runs jobs in one transaction.
    pub(super) fn write(
        &self,
        jobs: impl FnOnce(&mut Tx<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut written = 0;
        let outcome = (|| {
            let mut tx = Tx { environment: self, transaction: self.env.write_txn()?, written: 0 };
            let outcome = jobs(&mut tx);
            written = tx.written;
            outcome?;
            tx.transaction.commit()?;
            Ok(())
        })();
        self.reserve();
        let outcome = outcome.map_err(|error| self.full_or(error));
        self.weigh(&outcome, written);
        self.note(outcome)
    }

    /// Remembers what did not fit, and forgets it when as much does.
    fn weigh(&self, outcome: &Result<(), StoreError>, written: u64) {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        match (outcome, *full) {
            (Err(StoreError::Full(_)), before) => {
                let wanted = before.map_or(written, |before| before.wanted.max(written));
                *full = Some(Full { wanted, used: self.used_bytes() });
            }
            (Ok(()), Some(before)) if written >= before.wanted => *full = None,
            _ => {}
        }
    }

    /// Whether what was to be written lately did not fit and would not now.
    pub(super) fn is_full(&self) -> bool {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Full { wanted, used }) = *full else { return false };
        let (now, map) = (self.used_bytes(), self.map_size as u64);
        // Pages are not filled to their ends, and a transaction copies what it changes.
        let needed = wanted.saturating_mul(2);
        let disk = self.disk_free();
        let fits = now.saturating_add(needed) < map && disk > NO_ROOM.saturating_add(needed);
        // What does not fit at all does not make the store full for ever: whoever wants it finds out again.
        let made_room = disk > NO_ROOM && now + needed.min(map / 64) < used;
        if fits || made_room {
            *full = None;
        }
        full.is_some()
    }

    /// Bytes of the map that hold something.
    pub(super) fn used_bytes(&self) -> u64 {
        let pages = self.env.read_txn().and_then(|transaction| {
            let mut pages = 0;
            for table in &self.tables {
                let stat = table.stat(&transaction)?;
                pages += (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64
                    * u64::from(stat.page_size);
            }
            Ok(pages)
        });
        pages.unwrap_or_default()
    }

    fn disk_free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.env.path());
        disk.map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// LMDB reports a write that was cut short for lack of room as an I/O error.
    fn full_or(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Failed(text) if self.disk_free() < NO_ROOM => StoreError::Full(text),
            other => other,
        }
    }

    /// Leaves a note for the next start if the database is broken.
    fn note<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Broken(reason)) = &outcome
            && !self.broken.is_cancelled()
        {
            tracing::error!(reason, "the store is broken; the next start sets it aside");
            if let Err(error) = fs::write(broken_file(self.env.path()), reason) {
                tracing::error!(%error, "that cannot be noted");
            }
            self.broken.cancel();
        }
        outcome
    }

    /// The same for a database that is whole and must not be used any more.
    pub(super) fn abandon(&self, reason: &str) {
        // It has no other outcome.
        let _ = self.note::<()>(Err(StoreError::Broken(reason.to_owned())));
    }

    /// Flushes everything that was committed.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.env.force_sync()?)
    }

    /// Bytes that the file takes on the disk.
    pub(super) fn file_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    pub(super) fn table(&self, table: Table) -> Raw {
        self.tables[table as usize]
    }
}
