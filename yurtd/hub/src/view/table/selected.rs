//! What upstream told a wider view, applied to one that has a part of its objects.

use super::{Change, ViewTable};
use crate::store::{StoreError, Table};
use crate::view::record::ObjectRecord;
use crate::wire::{self, EventType};

impl ViewTable<'_, '_> {
    /// Applies the changes in their order; `fits` says of each whether the object, as it is from then on, is in the view.
    /// What was told up to `from` is in it already. Whether anything of the view has changed: if not, nothing is worth
    /// writing.
    ///
    /// As the API server does it (`convertToWatchEvent` of its watch cache): an object that comes to be selected is ADDED,
    /// one that is selected no more is DELETED, as it was, with the resourceVersion of the change.
    pub(crate) fn apply_selected(
        &mut self,
        changes: &[Change],
        fits: &[bool],
        from: u64,
        version: u64,
    ) -> Result<bool, StoreError> {
        let before = self.record.sequence;
        for (change, fits) in changes.iter().zip(fits) {
            let (key, at) = (change.item.meta.key(), change.item.meta.resource_version);
            if at <= from {
                continue;
            }
            match change.event_type {
                EventType::Added | EventType::Modified if *fits => {
                    self.upsert(&change.item.meta, &change.item.body)?;
                }
                EventType::Added | EventType::Modified => self.leave(&key, at)?,
                EventType::Deleted => self.remove(&key, at, Some(&change.item.body))?,
            }
        }
        self.advance(version);
        // What is not written back must not have trimmed anything, either.
        let changed = self.record.sequence != before;
        if changed {
            self.trim()?;
        }
        Ok(changed)
    }

    /// An object is not selected any more, since `version`.
    fn leave(&mut self, key: &str, version: u64) -> Result<(), StoreError> {
        let full = self.id.object(key);
        let Some(value) = self.tx.get(Table::Objects, &full)? else { return Ok(()) };
        let last = ObjectRecord::decode(value)?.open(self.tx.sealer(), &full)?;
        let last = wire::object::with_resource_version(self.record.spec.encoding(), &last, version)
            .map_err(|error| StoreError::Damaged(error.to_string()))?;
        self.remove(key, version, Some(&last))
    }
}
