//! Whole lists, as a difference to what the view has, page by page.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::ViewTable;
use crate::store::{StoreError, Table};
use crate::view::record::ObjectRecord;
use crate::view::{State, Transition};
use crate::wire::{ListPage, ObjectMeta};

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

struct Listed {
    meta: ObjectMeta,
    /// Nothing: it is staged.
    body: Option<Bytes>,
}

impl ViewTable<'_, '_> {
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
        self.record.state = self.record.state.after(Transition::Listed, now);
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
        self.record.state = self.record.state.after(Transition::Listed, now);
        self.record.resource_version = version;
        self.trim()
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
}
