//! Changes of one view, inside one transaction: events as they come, whole lists as a difference, local versions.
//!
//! Pure over a [`Tx`]: what is written follows from what is stored and what came. Each change is noted as an event too,
//! for those who watch; the transaction ends with what they are to be told once it is committed ([`Written`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::State;
use super::overlay::Book;
use super::record::{LogEntry, ObjectRecord, ViewId, ViewRecord};
use super::ring::{NewEvent, News};
use crate::store::{StoreError, Table, Tx};
use crate::wire::endpoint_slice::is_slice;
use crate::wire::{self, EventType, Item, ListPage, ObjectMeta};

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

/// What became of a page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is in the view, which is not complete before the last one.
    InPlace,
    /// It waits for the last one, with so many bytes of what has changed.
    Staged(usize),
    /// It was the last one.
    Listed,
    /// The view cannot be continued by it.
    AnotherHistory,
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

    /// Takes a page of a list whose last page has not come yet. `reached` is as in [`Self::apply_list`].
    ///
    /// A view that has never been complete is served to nobody: its pages go where they belong at once. So they do when
    /// the whole view has to start over. Of any other view the pages are staged, and of what has not changed the head
    /// alone.
    pub(crate) fn stage(&mut self, page: &ListPage, first: bool, reached: u64) -> Result<Taken, StoreError> {
        if first {
            self.unstage()?;
            if self.record.state == State::Empty {
                self.clear()?;
                self.begin(page.resource_version);
            }
        }
        if self.record.state == State::Empty {
            self.record.kind = Some(page.kind.clone());
            page.items.iter().try_for_each(|item| self.upsert(&item.meta, &item.body))?;
            return Ok(Taken::InPlace);
        }
        if self.is_of_another_history(page, reached)? {
            return Ok(Taken::AnotherHistory);
        }
        let mut staged = 0;
        for item in &page.items {
            let key = self.id.object(&item.meta.key());
            let known = self.has(&key, &item.meta)?;
            staged += if known { 0 } else { item.body.len() };
            let (sealed, body) = if known { (false, (&[][..]).into()) } else { self.seal(&key, &item.body)? };
            let record = ObjectRecord {
                sequence: 0,
                entered_sequence: 0,
                entered_version: 0,
                version: item.meta.resource_version,
                sealed,
                uid: &item.meta.uid,
                body: &body,
            };
            self.tx.put(Table::Staging, &key, &record.encode())?;
        }
        Ok(Taken::Staged(staged))
    }

    /// Whether the page shows that etcd was restored (see [`Self::apply_list`]): then what was staged of the list is not
    /// enough, and the view has to [start over](Self::start_over).
    pub(crate) fn is_of_another_history(
        &mut self,
        page: &ListPage,
        reached: u64,
    ) -> Result<bool, StoreError> {
        let reached = reached.max(self.record.resource_version);
        let mut another = page.resource_version < reached;
        for item in &page.items {
            let old = item.meta.resource_version <= reached;
            another |= old && !self.has(&self.id.object(&item.meta.key()), &item.meta)?;
        }
        if another {
            let version = page.resource_version;
            tracing::warn!(reached, version, "the API server's state is another one; the view starts over");
            self.record.abandoned = self.record.abandoned.max(reached);
        }
        Ok(another)
    }

    /// Whether exactly this version of the object is stored.
    fn has(&self, key: &[u8], meta: &ObjectMeta) -> Result<bool, StoreError> {
        let Some(value) = self.tx.get(Table::Objects, key)? else { return Ok(false) };
        let known = ObjectRecord::decode(value)?;
        Ok(known.version == meta.resource_version && known.uid == meta.uid)
    }

    /// Empties the view, as if it had never been complete.
    pub(crate) fn start_over(&mut self) -> Result<(), StoreError> {
        self.unstage()?;
        self.clear()?;
        self.record.state = State::Empty;
        self.begin(self.record.horizon);
        Ok(())
    }

    /// Forgets the pages of a list that never came to its last one.
    pub(crate) fn unstage(&mut self) -> Result<(), StoreError> {
        self.tx.delete_prefix(Table::Staging, &self.id.prefix())
    }

    /// Ends a list whose other pages are in the view already.
    pub(crate) fn finish_list(&mut self, last: &ListPage, now: u64) -> Result<(), StoreError> {
        self.record.kind = Some(last.kind.clone());
        last.items.iter().try_for_each(|item| self.upsert(&item.meta, &item.body))?;
        self.record.state = self.record.state.after(super::Transition::Listed, now);
        self.record.resource_version = last.resource_version;
        self.record.horizon = last.resource_version;
        self.record.horizon_sequence = self.record.sequence;
        self.trim()
    }

    /// Nothing that watchers know can be continued, from here on.
    fn begin(&mut self, version: u64) {
        self.record.horizon = version;
        self.record.horizon_sequence = self.record.sequence;
        self.record.reset_sequence = self.record.sequence;
        self.record.resource_version = 0;
    }

    /// Makes the view what the list says: the staged pages and the last one. What has not changed is not written;
    /// what has becomes events for the watchers, deletions first, then the rest in the order of resourceVersions. `reached` is the resourceVersion
    /// of the view with the bookmarks that are not stored yet, `now` the time.
    pub(crate) fn apply_list(&mut self, last: &ListPage, reached: u64, now: u64) -> Result<(), StoreError> {
        let version = last.resource_version;
        let reached = reached.max(self.record.resource_version);
        let mut listed = self.staged()?;
        for item in &last.items {
            let source = Listed { meta: item.meta.clone(), body: Some(item.body.clone()) };
            listed.insert(item.meta.key(), source);
        }
        let mut gone = Vec::new();
        let mut same = HashSet::new();
        self.tx.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
            let record = ObjectRecord::decode(value)?;
            let key = std::str::from_utf8(&key[4..]).unwrap_or_default();
            match listed.get(key) {
                None => gone.push(key.to_owned()),
                Some(new) if new.meta.resource_version == record.version && new.meta.uid == record.uid => {
                    same.insert(key.to_owned());
                }
                Some(_) => {}
            }
            Ok(true)
        })?;
        // The view knows every object as it was at `reached`. One that is listed with a resourceVersion from before
        // and is not what is stored is of another history, as is a collection that is younger: etcd was restored from
        // a backup, with `--bump-revision` (the collection's version goes on, the objects' do not) or without. Nothing
        // that watchers know can be continued.
        let old = |new: &Listed| new.meta.resource_version <= reached;
        let restored = version < reached || listed.iter().any(|(key, new)| old(new) && !same.contains(key));
        let stored = self.record.state != State::Empty;
        if stored && restored {
            tracing::warn!(reached, version, "the API server's state is another one; the view starts over");
            self.record.abandoned = self.record.abandoned.max(reached);
        }
        if !stored || restored {
            self.clear()?;
            self.begin(version);
            gone.clear();
        } else {
            for key in same {
                listed.remove(&key);
            }
        }
        self.record.kind = Some(last.kind.clone());
        let mut changed: Vec<_> = listed.into_iter().collect();
        changed.sort_by(|(one_key, one), (other_key, other)| {
            (one.meta.resource_version, one_key).cmp(&(other.meta.resource_version, other_key))
        });
        // Deletions first. They count as of the list's version, and what a client that watches on from a version has seen
        // are all changes up to there: behind a change of that version they might be taken for seen.
        for key in gone {
            self.remove(&key, version, None)?;
        }
        for (key, Listed { meta, body }) in changed {
            let body = match body {
                Some(body) => body,
                None => self.staged_body(&key)?,
            };
            self.upsert(&meta, &body)?;
            self.advance(meta.resource_version.min(version));
        }
        self.tx.delete_prefix(Table::Staging, &self.id.prefix())?;
        self.record.state = self.record.state.after(super::Transition::Listed, now);
        self.record.resource_version = version;
        self.trim()
    }

    /// Puts a local version over an object; `false` if the view does not have it.
    pub(crate) fn apply_local(&mut self, key: &str, stored: &[u8]) -> Result<bool, StoreError> {
        let there = self.touch(key, Some(stored))?;
        if there {
            self.put_local(key, stored)?;
        }
        Ok(there)
    }

    fn put_local(&mut self, key: &str, stored: &[u8]) -> Result<(), StoreError> {
        let full = self.id.object(key);
        if self.tx.get(Table::Locals, &full)?.is_none() {
            self.record.locals += 1;
        }
        let (sealed, body) = self.seal(&full, stored)?;
        let mut value = vec![u8::from(sealed)];
        value.extend_from_slice(&body);
        self.tx.put(Table::Locals, &full, &value)
    }

    /// Takes the local version off again; `false` if there is none.
    pub(crate) fn drop_local(&mut self, key: &str) -> Result<bool, StoreError> {
        Ok(self.forget_local(key)? && self.touch(key, None)?)
    }

    /// Takes all local versions off but these; returns whether there was another.
    pub(crate) fn drop_locals_but(&mut self, keep: &HashSet<String>) -> Result<bool, StoreError> {
        let mut gone = Vec::new();
        self.tx.scan(Table::Locals, &self.id.prefix(), None, |full, _| {
            let key = String::from_utf8_lossy(&full[4..]).into_owned();
            if !keep.contains(&key) {
                gone.push(key);
            }
            Ok(true)
        })?;
        for key in &gone {
            self.drop_local(key)?;
        }
        Ok(!gone.is_empty())
    }

    /// Makes every EndpointSlice what the book says, where it is something else; returns whether there was one.
    pub(crate) fn overlay(&mut self) -> Result<bool, StoreError> {
        if !self.shows_pods() || (self.book.is_empty() && self.record.locals == 0) {
            return Ok(false);
        }
        let encoding = self.record.spec.encoding();
        let mut changes = Vec::new();
        self.tx.scan(Table::Objects, &self.id.prefix(), None, |full, value| {
            let body = ObjectRecord::decode(value)?.open(self.tx.sealer(), full)?;
            let wanted = self.book.edited(encoding, &body);
            let shown = self.tx.get(Table::Locals, full)?.map(|local| local.get(1..).unwrap_or_default());
            if wanted.as_deref() != shown {
                changes.push((String::from_utf8_lossy(&full[4..]).into_owned(), wanted));
            }
            Ok(true)
        })?;
        for (key, wanted) in &changes {
            match wanted {
                Some(body) => self.apply_local(key, body)?,
                None => self.drop_local(key)?,
            };
        }
        Ok(!changes.is_empty())
    }

    fn shows_pods(&self) -> bool {
        is_slice(self.record.spec.resource())
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

    fn forget_local(&mut self, key: &str) -> Result<bool, StoreError> {
        let there = self.tx.delete(Table::Locals, &self.id.object(key))?;
        if there {
            self.record.locals = self.record.locals.saturating_sub(1);
        }
        Ok(there)
    }

    /// Moves an object's log entry to the end, marked as the hub's own doing; `false` if there is no such object. What
    /// is shown of it from now on is upstream's version if nothing is given.
    fn touch(&mut self, key: &str, shown: Option<&[u8]>) -> Result<bool, StoreError> {
        let full = self.id.object(key);
        let Some(value) = self.tx.get(Table::Objects, &full)? else { return Ok(false) };
        let value = value.to_vec();
        let record = ObjectRecord::decode(&value)?;
        self.tx.delete(Table::Log, &self.id.log(record.sequence))?;
        let sequence = self.record.next_sequence();
        self.tx.put(Table::Objects, &full, &ObjectRecord { sequence, ..record }.encode())?;
        let version = record.version;
        let entry = LogEntry::Live { version, local: true, key };
        self.tx.put(Table::Log, &self.id.log(sequence), &entry.encode())?;
        self.changed_here();
        if self.news.are_collected() {
            let body = match shown {
                Some(shown) => Bytes::copy_from_slice(shown),
                None => record.open(self.tx.sealer(), &full)?.into_owned().into(),
            };
            let event_type = EventType::Modified;
            self.news.add(NewEvent { sequence, version, local: true, event_type, body });
        }
        Ok(true)
    }

    /// Watchers are sent something that does not come from upstream, with a resourceVersion from long ago.
    fn changed_here(&mut self) {
        self.record.local_version = self.record.local_version.max(self.record.resource_version);
    }

    fn staged(&self) -> Result<HashMap<String, Listed>, StoreError> {
        let mut staged = HashMap::new();
        self.tx.scan(Table::Staging, &self.id.prefix(), None, |key, value| {
            let record = ObjectRecord::decode(value)?;
            let key = String::from_utf8_lossy(&key[4..]).into_owned();
            let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
            let meta = ObjectMeta {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: record.uid.to_owned(),
                resource_version: record.version,
            };
            staged.insert(key, Listed { meta, body: None });
            Ok(true)
        })?;
        Ok(staged)
    }

    fn staged_body(&self, key: &str) -> Result<Bytes, StoreError> {
        let full = self.id.object(key);
        let value = self.tx.get(Table::Staging, &full)?;
        let value = value.ok_or_else(|| StoreError::Damaged("a staged object is gone".to_owned()))?;
        let record = ObjectRecord::decode(value)?;
        if record.body.is_empty() {
            // It was taken for one that the view has, which it has no more: the next list brings all of it.
            return Err(StoreError::Damaged("a staged object has no body".to_owned()));
        }
        Ok(record.open(self.tx.sealer(), &full)?.into_owned().into())
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

struct Listed {
    meta: ObjectMeta,
    /// Nothing: it is staged.
    body: Option<Bytes>,
}
