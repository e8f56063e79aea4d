//! Transactions over the tables: what reads, and what writes. Every value that comes out was compared with its checksum.

use std::io::Write;
use std::ops::Bound;

use heed::{RoTxn, RwTxn, WithoutTls};

use super::env::{Environment, Raw, Table};
use super::seal::Sealer;
use super::{StoreError, checksum};

/// LMDB's bound.
const MAX_KEY: usize = 511;

/// One state of the store, to read.
pub(crate) struct Reader<'a> {
    pub(super) environment: &'a Environment,
    pub(super) transaction: &'a RoTxn<'a, WithoutTls>,
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
    pub(super) environment: &'a Environment,
    pub(super) transaction: RwTxn<'a>,
    /// Bytes that were put so far.
    pub(super) written: u64,
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
