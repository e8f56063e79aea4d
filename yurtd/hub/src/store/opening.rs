//! Opening a store: whether what is in the folder can be used, and what is done if it cannot. `unsafe`: a memory map is,
//! and one flag.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, WithoutTls};

use super::env::{Environment, TABLES, Table, broken_file, counted_on, failed};
use super::seal::Sealer;
use super::{Opened, StoreError, structure};

/// Changes whenever the layout of any value does; a store of another version is set aside, but for the one before.
pub(super) const VERSION: &[u8] = b"yurt store 2";
const PROBE: &[u8] = b"probe";
/// Starts that may die while the store is being checked before that counts as damage.
const MAX_ATTEMPTS: u64 = 3;
/// Transactions that may read at the same time; each lasts microseconds.
const MAX_READERS: u32 = 256;

/// How a file is looked at before LMDB opens it.
pub(super) type Look = dyn Fn(&Path) -> Result<(), StoreError>;

/// Opens or makes the environment in `dir`.
pub(super) fn open(dir: &Path, map_size: usize) -> Result<(Environment, Opened), StoreError> {
    open_after(dir, map_size, &structure::check)
}

/// The same after another look.
pub(super) fn open_after(
    dir: &Path,
    map_size: usize,
    look: &Look,
) -> Result<(Environment, Opened), StoreError> {
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
        open_and_check(&folder, &key_file, map_size, look)
    };
    let found = match outcome {
        Ok(environment) => {
            let opened = if existed { Opened::Existing } else { Opened::Created };
            Ok((environment, opened))
        }
        Err(StoreError::Damaged(reason) | StoreError::Broken(reason)) => {
            let set_aside = set_aside(dir, &folder)?;
            let environment = open_and_check(&folder, &key_file, map_size, look)?;
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

fn open_and_check(
    folder: &Path,
    key_file: &Path,
    map_size: usize,
    look: &Look,
) -> Result<Environment, StoreError> {
    let path = folder.join("data.mdb");
    refuse_what_is_no_file(folder, &path)?;
    make_private(folder)?;
    look(&path)?;
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
    let environment = Environment::new(env, tables, Sealer::load(key_file)?, map_size, file);
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
}
