//! Changes of one view, inside one transaction: events as they come, whole lists as a difference, local versions.
//!
//! Pure over a [`Tx`]: what is written follows from what is stored and what came. Each change is noted as an event too,
//! for those who watch; the transaction ends with what they are to be told once it is committed ([`Written`]).

mod lists;
mod local;
mod selected;

use std::sync::Arc;

use bytes::Bytes;

use super::State;
use super::overlay::Book;
use super::record::{LogEntry, ObjectRecord, ViewId, ViewRecord};
use super::ring::{NewEvent, News};
use crate::store::{StoreError, Table, Tx};
use crate::wire::{self, EventType, Item, ObjectMeta};

pub(crate) use lists::Taken;

/// Tombstones a view keeps for watchers that come back.
const MAX_TOMBSTONES: u64 = 512;
/// And their bytes.
const MAX_TOMBSTONE_BYTES: u64 = 1 << 20;

/// One change from upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) event_type: EventType,
    pub(crate) item: Item,
}

/// What a transaction has made of a view. It is told ([`View::publish`](super::View::publish)) when it is committed.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) record: ViewRecord,
    pub(super) news: News,
}

/// A view's record and its part of the tables, within a transaction.
pub(crate) struct ViewTable<'t, 'e> {
    tx: &'t mut Tx<'e>,
    id: ViewId,
    pub(crate) record: ViewRecord,
    /// The view's sequence when the transaction began: no watcher has read what is behind it.
    began: u64,
    /// What EndpointSlices show of the node's own pods.
    book: Arc<Book>,
    news: News,
}

impl<'t, 'e> ViewTable<'t, 'e> {
    /// Reads the record.
    pub(crate) fn load(tx: &'t mut Tx<'e>, id: ViewId) -> Result<Self, StoreError> {
        let record = tx.get(Table::Views, &id.prefix())?.map(ViewRecord::decode).transpose()?;
        let record = record.ok_or_else(|| StoreError::Failed("the view was dropped".to_owned()))?;
        let (began, news) = (record.sequence, News::after(&record));
        Ok(Self { tx, id, record, began, book: Arc::default(), news })
    }

    /// The same, with its events noted if somebody listens. Nobody watches a view that is not complete.
    pub(crate) fn told(mut self, is_listened_to: bool) -> Self {
        if is_listened_to && self.record.state != State::Empty {
            self.news.collect();
        }
        self
    }

    /// The same, with what EndpointSlices show of the node's own pods.
    pub(crate) fn showing(mut self, book: Arc<Book>) -> Self {
        self.book = book;
        self
    }

    /// Writes the record back.
    pub(crate) fn save(self) -> Result<Written, StoreError> {
        self.tx.put(Table::Views, &self.id.prefix(), &self.record.encode()?)?;
        Ok(Written { record: self.record, news: self.news })
    }

    /// Applies watch events in their order; `version` is that of a bookmark behind them, if there was one.
    pub(crate) fn apply_events(&mut self, changes: &[Change], version: u64) -> Result<(), StoreError> {
        for change in changes {
            let item = &change.item;
            match change.event_type {
                EventType::Added | EventType::Modified => self.upsert(&item.meta, &item.body)?,
                EventType::Deleted => {
                    self.remove(&item.meta.key(), item.meta.resource_version, Some(&item.body))?;
                }
            }
            self.advance(item.meta.resource_version);
        }
        self.advance(version);
        self.trim()
    }

    /// Removes everything of the view, its record too.
    pub(crate) fn destroy(tx: &mut Tx<'_>, id: ViewId) -> Result<(), StoreError> {
        for table in [Table::Objects, Table::Log, Table::Locals, Table::Staging] {
            tx.delete_prefix(table, &id.prefix())?;
        }
        tx.delete(Table::Views, &id.prefix()).map(drop)
    }

    /// Replaces a view that cannot be read any more by an empty one. Pages of a list that are staged stay.
    pub(crate) fn reset(tx: &mut Tx<'_>, id: ViewId, record: &ViewRecord) -> Result<(), StoreError> {
        for table in [Table::Objects, Table::Log, Table::Locals] {
            tx.delete_prefix(table, &id.prefix())?;
        }
        tx.put(Table::Views, &id.prefix(), &record.encode()?)
    }

    fn clear(&mut self) -> Result<(), StoreError> {
        for table in [Table::Objects, Table::Log, Table::Locals] {
            self.tx.delete_prefix(table, &self.id.prefix())?;
        }
        (self.record.tombstones, self.record.tombstone_bytes, self.record.locals) = (0, 0, 0);
        self.record.bytes = 0;
        // Watchers' positions stay behind this one.
        self.record.next_sequence();
        self.news.drop_all();
        Ok(())
    }

    fn advance(&mut self, version: u64) {
        self.record.resource_version = self.record.resource_version.max(version);
    }

    fn seal<'b>(&self, key: &[u8], body: &'b [u8]) -> Result<(bool, std::borrow::Cow<'b, [u8]>), StoreError> {
        if self.record.spec.resource().is_secret() {
            Ok((true, self.tx.sealer().seal(key, body)?.into()))
        } else {
            Ok((false, body.into()))
        }
    }

    /// Stores a new version. One that is there already, or older, changes nothing: a resumed watch repeats events.
    fn upsert(&mut self, meta: &ObjectMeta, plain: &Bytes) -> Result<(), StoreError> {
        let (key, version) = (meta.key(), meta.resource_version);
        let full = self.id.object(&key);
        let mut replaced = 0;
        let known = match self.tx.get(Table::Objects, &full)? {
            Some(value) => {
                let record = ObjectRecord::decode(value)?;
                let same = record.uid == meta.uid;
                if same && record.version >= version {
                    return Ok(());
                }
                // One that is another object is removed below.
                replaced = if same { value.len() as u64 } else { 0 };
                same.then_some((record.sequence, record.entered_sequence, record.entered_version))
            }
            None => None,
        };
        if let Some((sequence, ..)) = known {
            self.tx.delete(Table::Log, &self.id.log(sequence))?;
            self.forget_local(&key)?;
        } else {
            // Deleted and made again while nobody looked: watchers hear of both.
            self.remove(&key, version, None)?;
        }
        let sequence = self.record.next_sequence();
        let (entered_sequence, entered_version) =
            known.map_or((sequence, version), |(_, sequence, version)| (sequence, version));
        let (sealed, body) = self.seal(&full, plain)?;
        let record = ObjectRecord {
            sequence,
            entered_sequence,
            entered_version,
            version,
            sealed,
            uid: &meta.uid,
            body: &body,
        };
        let record = record.encode();
        self.record.bytes = self.record.bytes.saturating_sub(replaced) + record.len() as u64;
        self.tx.put(Table::Objects, &full, &record)?;
        // In the same transaction: nobody sees an address in between that leads nowhere.
        let shown =
            if self.shows_pods() { self.book.edited(self.record.spec.encoding(), plain) } else { None };
        if let Some(shown) = &shown {
            self.put_local(&key, shown)?;
        }
        let local = shown.is_some();
        let entry = LogEntry::Live { version, local, key: &key };
        self.tx.put(Table::Log, &self.id.log(sequence), &entry.encode())?;
        if local {
            self.changed_here();
        }
        let event_type = if known.is_some() { EventType::Modified } else { EventType::Added };
        let body = shown.unwrap_or_else(|| plain.clone());
        self.news.add(NewEvent { sequence, version, local, event_type, body });
        Ok(())
    }

    /// Turns an object into a tombstone that sorts at `version`. Upstream's last state of it is `body`; a deletion that
    /// was only inferred carries the collection's version as it was before, the newest that is certainly true.
    fn remove(&mut self, key: &str, version: u64, body: Option<&Bytes>) -> Result<(), StoreError> {
        let full = self.id.object(key);
        let Some(value) = self.tx.get(Table::Objects, &full)? else { return Ok(()) };
        let size = value.len() as u64;
        let record = ObjectRecord::decode(value)?;
        let (sequence, entered_sequence) = (record.sequence, record.entered_sequence);
        let entered_version = record.entered_version;
        let body = match body {
            Some(body) => body.clone(),
            None => {
                let last = record.open(self.tx.sealer(), &full)?;
                let certain = self.record.resource_version.max(record.version);
                wire::object::with_resource_version(self.record.spec.encoding(), &last, certain)
                    .map_err(|error| StoreError::Damaged(error.to_string()))?
            }
        };
        self.tx.delete(Table::Log, &self.id.log(sequence))?;
        self.tx.delete(Table::Objects, &full)?;
        self.record.bytes = self.record.bytes.saturating_sub(size);
        self.forget_local(key)?;
        let sequence = self.record.next_sequence();
        let log_key = self.id.log(sequence);
        let (sealed, stored) = self.seal(&log_key, &body)?;
        let entry =
            LogEntry::Tombstone { version, entered_sequence, entered_version, sealed, key, body: &stored };
        let entry = entry.encode();
        self.record.tombstones += 1;
        self.record.tombstone_bytes += entry.len() as u64;
        self.tx.put(Table::Log, &log_key, &entry)?;
        self.news.add(NewEvent { sequence, version, local: false, event_type: EventType::Deleted, body });
        Ok(())
    }

    /// Drops the oldest tombstones beyond the bounds, a quarter at a time, and moves the horizon behind them. Those of
    /// this transaction stay, however large they are: nobody could have read them, and every watch would end.
    fn trim(&mut self) -> Result<(), StoreError> {
        if self.record.tombstones <= MAX_TOMBSTONES && self.record.tombstone_bytes <= MAX_TOMBSTONE_BYTES {
            return Ok(());
        }
        let (mut count, mut bytes) = (self.record.tombstones, self.record.tombstone_bytes);
        let mut old = Vec::new();
        let new = self.id.log(self.began);
        self.tx.scan(Table::Log, &self.id.prefix(), None, |key, value| {
            if key > &new[..] {
                return Ok(false);
            }
            if let LogEntry::Tombstone { version, .. } = LogEntry::decode(value)? {
                old.push((key.to_vec(), version));
                count -= 1;
                bytes = bytes.saturating_sub(value.len() as u64);
            }
            Ok(count > 0 && (count > MAX_TOMBSTONES * 3 / 4 || bytes > MAX_TOMBSTONE_BYTES * 3 / 4))
        })?;
        for (key, version) in old {
            self.tx.delete(Table::Log, &key)?;
            self.record.horizon = self.record.horizon.max(version);
            if let Some((_, sequence)) = key.split_last_chunk() {
                self.record.horizon_sequence = u64::from_be_bytes(*sequence);
            }
        }
        (self.record.tombstones, self.record.tombstone_bytes) = (count, bytes);
        Ok(())
    }
}
