//! Versions of the hub's own over objects: statuses that were written without a link, and what EndpointSlices show of the
//! node's own pods.

use std::collections::HashSet;

use bytes::Bytes;

use super::ViewTable;
use crate::store::{StoreError, Table};
use crate::view::record::{LogEntry, ObjectRecord};
use crate::view::ring::NewEvent;
use crate::wire::EventType;
use crate::wire::endpoint_slice::is_slice;

impl ViewTable<'_, '_> {
    /// Puts a local version over an object; `false` if the view does not have it.
    pub(crate) fn apply_local(&mut self, key: &str, stored: &[u8]) -> Result<bool, StoreError> {
        let there = self.touch(key, Some(stored))?;
        if there {
            self.put_local(key, stored)?;
        }
        Ok(there)
    }

    pub(super) fn put_local(&mut self, key: &str, stored: &[u8]) -> Result<(), StoreError> {
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

    pub(super) fn shows_pods(&self) -> bool {
        is_slice(self.record.spec.resource())
    }

    pub(super) fn forget_local(&mut self, key: &str) -> Result<bool, StoreError> {
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
    pub(super) fn changed_here(&mut self) {
        self.record.local_version = self.record.local_version.max(self.record.resource_version);
    }
}
