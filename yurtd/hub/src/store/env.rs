//! The environment: opening and checking it, its tables, transactions over them. `unsafe`: a memory map
//! is, and one flag. (The other file with it takes systemd's sockets: `serve/sockets.rs`.)
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};

use tokio_util::sync::CancellationToken;

use super::seal::Sealer;
use super::{Opened, StoreError, checksum, structure};

/// Changes whenever the layout of any value does; a store of another version is set aside, but for the one before.
const VERSION: &[u8] = b"yurt store 2";
/// The same values without checksums.
const VERSION_BEFORE: &[u8] = b"yurt store 1";
const PROBE: &[u8] = b"probe";
/// Starts that may die while the store is being checked before that counts as damage.
const MAX_ATTEMPTS: u64 = 3;
/// Length of the file beyond what is in use.
const RESERVE: u64 = 8 << 20;
/// A disk with less free than this is full.
const NO_ROOM: u64 = 1 << 20;
/// LMDB's bound.
const MAX_KEY: usize = 511;
/// Transactions that may read at the same time; each lasts microseconds.
const MAX_READERS: u32 = 256;

type Raw = Database<'static, Bytes, Bytes>;

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

const TABLES: [(Table, &str); 7] = [
    (Table::Meta, "meta"),
    (Table::Views, "views"),
    (Table::Objects, "objects"),
    (Table::Log, "log"),
    (Table::Locals, "locals"),
    (Table::Staging, "staging"),
    (Table::Buckets, "buckets"),
];

pub(super) struct Environment {
    env: Env<WithoutTls>,
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

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| {
        let text = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(text),
            _ => StoreError::Failed(text),
        }
    }
}

/// Opens or makes the environment in `dir`.
pub(super) fn open(dir: &Path, map_size: usize) -> Result<(Environment, Opened), StoreError> {
    make_private(dir)?;
    let folder = dir.join("store");
    let key_file = dir.join("store.key");
    let attempts_file = dir.join("store.opening");
    let existed = folder.join("data.mdb").exists() || folder.is_file();
    let broken = fs::read_to_string(broken_file(&folder)).ok();
    let attempts = fs::metadata(&attempts_file).map_or(0, |metadata| metadata.len());
    let outcome = if let Some(reason) = broken.filter(|_| existed) {
        Err(StoreError::Broken(reason))
    } else if existed && attempts >= MAX_ATTEMPTS {
        Err(StoreError::Damaged(format!("the last {attempts} starts died while they checked it")))
    } else {
        count_attempt(&attempts_file);
        open_and_check(&folder, &key_file, map_size)
    };
    let found = match outcome {
        Ok(environment) => {
            let opened = if existed { Opened::Existing } else { Opened::Created };
            Ok((environment, opened))
        }
        Err(StoreError::Damaged(reason) | StoreError::Broken(reason)) => {
            let set_aside = set_aside(dir, &folder)?;
            let environment = open_and_check(&folder, &key_file, map_size)?;
            Ok((environment, Opened::Replaced { set_aside, reason }))
        }
        Err(error) => Err(error),
    };
    // A disk that cannot be read may be better at the next start; one that never can is counted like starts that died.
    if !matches!(found, Err(StoreError::Unreadable(_))) {
        // Not worth a failure: at worst a good store is checked with suspicion.
        let _ = fs::remove_file(&attempts_file);
    }
    found
}

/// Where damage is noted that showed while the store was in use. In its folder: it is set aside with it.
fn broken_file(folder: &Path) -> PathBuf {
    folder.join("broken")
}

/// One byte an attempt. A disk that is too full for it does not stop the start.
fn count_attempt(path: &Path) {
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(b".")) {
        tracing::warn!(path = %path.display(), %error, "cannot note that the store is being opened");
    }
}

fn make_private(folder: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(failed(folder))
}

/// One is enough for whoever wants to know what happened; more would fill the disk.
fn set_aside(dir: &Path, folder: &Path) -> Result<PathBuf, StoreError> {
    let target = dir.join("store.damaged");
    let removed = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&target)(error)),
        _ => {}
    }
    fs::rename(folder, &target).map_err(failed(folder))?;
    Ok(target)
}

fn open_and_check(folder: &Path, key_file: &Path, map_size: usize) -> Result<Environment, StoreError> {
    let path = folder.join("data.mdb");
    refuse_what_is_no_file(folder, &path)?;
    make_private(folder)?;
    structure::check(&path)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_dbs(TABLES.len() as u32).max_readers(MAX_READERS);
    // SAFETY: NO_META_SYNC weakens durability, never integrity (see the essay in `store`). The map's file belongs to
    // this process alone: a 0700 folder on a local disk that nothing else writes.
    let env = unsafe { options.flags(EnvFlags::NO_META_SYNC).open(folder)? };
    env.clear_stale_readers()?;
    refuse_if_cut_short(&env, &path)?;
    let file = fs::OpenOptions::new().write(true).open(&path).map_err(failed(&path))?;
    let transaction = env.write_txn()?;
    let tables = env
        .create_databases_and_commit(transaction, |opener, transaction| {
            let mut tables = Vec::with_capacity(TABLES.len());
            for (_, name) in TABLES {
                tables.push(opener.create_database::<Bytes, Bytes>(transaction, Some(name))?);
            }
            let tables: [_; TABLES.len()] = tables
                .try_into()
                .map_err(|_| StoreError::Failed("a table could not be opened".to_owned()))?;
            Ok::<_, StoreError>(CommitOrAbort::<_, ()>::Commit(tables))
        })?
        .commit()
        .ok_or_else(|| StoreError::Failed("the tables could not be opened".to_owned()))?;
    let environment = Environment {
        env,
        tables,
        sealer: Sealer::load(key_file)?,
        map_size,
        broken: CancellationToken::new(),
        file,
        length: AtomicU64::new(0),
        full: Mutex::default(),
    };
    environment.reserve();
    environment.check()?;
    Ok(environment)
}

/// What a file system has made something else of is damaged, and no reason to fail at every start.
fn refuse_what_is_no_file(folder: &Path, data: &Path) -> Result<(), StoreError> {
    let is = |path: &Path, expected: fn(&fs::Metadata) -> bool| match fs::symlink_metadata(path) {
        Ok(metadata) => expected(&metadata),
        Err(_) => true,
    };
    if !is(folder, fs::Metadata::is_dir) {
        return Err(StoreError::Damaged(format!("{} is no folder", folder.display())));
    }
    for path in [data, &folder.join("lock.mdb")] {
        if !is(path, fs::Metadata::is_file) {
            return Err(StoreError::Damaged(format!("{} is no file", path.display())));
        }
    }
    Ok(())
}

/// Bytes of the file that the meta page counts on.
fn counted_on(env: &Env<WithoutTls>) -> u64 {
    (env.info().last_page_number as u64 + 1) * u64::from(env.unnamed_database_stat().page_size)
}

/// Touching a page behind the end of the file would be `SIGBUS`, and LMDB trusts what it finds on a page. A file that
/// is shorter than it should be is therefore not read at all. (LMDB alone may leave pages at its end unwritten that
/// it has taken and given back; [`Environment::reserve`] sees to it that the file has them nevertheless.)
fn refuse_if_cut_short(env: &Env<WithoutTls>, path: &Path) -> Result<(), StoreError> {
    let length = fs::metadata(path).map_err(failed(path))?.len();
    // A new environment has two meta pages and nothing else.
    if env.info().last_txn_id > 0 && length < counted_on(env) {
        return Err(StoreError::Damaged(format!("{length} bytes are left of at least {}", counted_on(env))));
    }
    Ok(())
}

impl Environment {
    /// Stamp and key, or whatever is missing of them in a new store.
    fn check(&self) -> Result<(), StoreError> {
        self.convert()?;
        let stamp = self.read(|reader| Ok(reader.get(Table::Meta, b"version")?.map(<[u8]>::to_vec)))?;
        match stamp.as_deref() {
            Some(VERSION) => self.read(|reader| {
                let sealed = reader.get(Table::Meta, b"probe")?;
                let sealed = sealed.ok_or_else(|| StoreError::Damaged("it has no probe".to_owned()))?;
                match self.sealer.open(b"probe", sealed) {
                    Ok(probe) if probe == PROBE => Ok(()),
                    _ => Err(StoreError::Damaged("it was sealed with another key".to_owned())),
                }
            }),
            Some(other) => {
                let other = String::from_utf8_lossy(other).into_owned();
                Err(StoreError::Damaged(format!("its version is {other:?}")))
            }
            None => {
                let probe = self.sealer.seal(b"probe", PROBE)?;
                self.write(|tx| {
                    tx.put(Table::Meta, b"version", VERSION)?;
                    tx.put(Table::Meta, b"probe", &probe)
                })?;
                self.sync()
            }
        }
    }

    /// Gives the values of a store of the version before their checksums, all in one transaction: a node that is upgraded
    /// keeps what nobody gives it again before it is needed.
    fn convert(&self) -> Result<(), StoreError> {
        let is_before = {
            let transaction = self.env.read_txn()?;
            self.table(Table::Meta).get(&transaction, b"version")? == Some(VERSION_BEFORE)
        };
        if !is_before {
            return Ok(());
        }
        let converted = self.write(|tx| {
            for (table, _) in TABLES {
                let raw = self.table(table);
                let keys: Vec<Vec<u8>> = raw
                    .iter(&tx.transaction)?
                    .map(|record| record.map(|(key, _)| key.to_vec()))
                    .collect::<Result<_, _>>()?;
                for key in keys {
                    let value = raw.get(&tx.transaction, &key)?.map(<[u8]>::to_vec);
                    if let Some(value) = value {
                        tx.put(table, &key, &value)?;
                    }
                }
            }
            tx.put(Table::Meta, b"version", VERSION)
        });
        converted.map_err(|error| StoreError::Damaged(format!("it cannot be converted: {error}")))?;
        tracing::info!("the store of the release before was converted");
        self.sync()
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

    fn table(&self, table: Table) -> Raw {
        self.tables[table as usize]
    }
}

/// One state of the store, to read.
pub(crate) struct Reader<'a> {
    environment: &'a Environment,
    transaction: &'a RoTxn<'a, WithoutTls>,
}

impl<'a> Reader<'a> {
    /// The value of a key, in the memory map.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&'a [u8]>, StoreError> {
        let stored = self.environment.table(table).get(self.transaction, key)?;
        stored.map(|stored| checksum::verified(table as u32, key, stored)).transpose()
    }

    /// Walks over the keys that start with `prefix`, behind `after`, in order, until `visit` returns `false`.
    ///
    /// # Errors
    ///
    /// [`StoreError`], the visitor's or the database's.
    pub(crate) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: impl FnMut(&'a [u8], &'a [u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut visit = visit;
        self.scan_each(table, prefix, after, |key, value| visit(key, value?))
    }

    /// Walks as [`Self::scan`], over records that are worth something by themselves: one that is damaged is the
    /// visitor's to judge.
    ///
    /// # Errors
    ///
    /// [`StoreError`], the visitor's or the database's.
    pub(crate) fn scan_each(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: impl FnMut(&'a [u8], Result<&'a [u8], StoreError>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let raw = self.environment.table(table);
        scan((table, raw), self.transaction, prefix, after, visit)
    }

    /// Opens sealed values.
    pub(crate) fn sealer(&self) -> &'a Sealer {
        &self.environment.sealer
    }
}

/// A transaction that writes.
pub(crate) struct Tx<'a> {
    environment: &'a Environment,
    transaction: RwTxn<'a>,
    /// Bytes that were put so far.
    written: u64,
}

impl Tx<'_> {
    /// The value of a key.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let stored = self.environment.table(table).get(&self.transaction, key)?;
        stored.map(|stored| checksum::verified(table as u32, key, stored)).transpose()
    }

    /// Stores a value.
    ///
    /// # Errors
    ///
    /// [`StoreError`], also for a key that is too long.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(StoreError::Failed(format!("a key has {} bytes, not 1 to {MAX_KEY}", key.len())));
        }
        self.written += (key.len() + value.len()) as u64;
        let sum = checksum::of(table as u32, key, value);
        let (raw, length) = (self.environment.table(table), checksum::stored(value.len()));
        Ok(raw.put_reserved(&mut self.transaction, key, length, |space| {
            space.write_all(value)?;
            space.write_all(&sum)
        })?)
    }

    /// Bytes as they are on the disk.
    #[cfg(test)]
    pub(crate) fn put_raw(&mut self, table: Table, key: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        Ok(self.environment.table(table).put(&mut self.transaction, key, bytes)?)
    }

    /// Removes a key; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.environment.table(table).delete(&mut self.transaction, key)?)
    }

    /// Removes every key that starts with `prefix`.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> Result<(), StoreError> {
        let end = successor(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.environment.table(table).delete_range(&mut self.transaction, &(Bound::Included(prefix), end))?;
        Ok(())
    }

    /// Walks as [`Reader::scan`].
    ///
    /// # Errors
    ///
    /// [`StoreError`], the visitor's or the database's.
    pub(crate) fn scan<'t>(
        &'t self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: impl FnMut(&'t [u8], &'t [u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let (raw, mut visit) = (self.environment.table(table), visit);
        scan((table, raw), &self.transaction, prefix, after, |key, value| visit(key, value?))
    }

    /// Seals and opens values.
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.environment.sealer
    }
}

fn scan<'t>(
    (table, raw): (Table, Raw),
    transaction: &'t RoTxn<'_, WithoutTls>,
    prefix: &[u8],
    after: Option<&[u8]>,
    mut visit: impl FnMut(&'t [u8], Result<&'t [u8], StoreError>) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let start = match after {
        Some(after) if after >= prefix && !after.is_empty() => Bound::Excluded(after),
        _ if prefix.is_empty() => Bound::Unbounded,
        _ => Bound::Included(prefix),
    };
    let end = successor(prefix);
    let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    for record in raw.range(transaction, &(start, end))? {
        let (key, stored) = record?;
        if !visit(key, checksum::verified(table as u32, key, stored))? {
            break;
        }
    }
    Ok(())
}

/// The least key behind every key that starts with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return Some(next);
        }
        next.pop();
    }
    None
}
