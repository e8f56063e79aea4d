//! The whole list of a view, encoded: one copy out of the memory map, shared by everyone who wants it at the same time.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::record::ObjectRecord;
use super::{Progress, View, feed};
use crate::store::{StoreError, Table};
use crate::wire::list::{ListSize, ListWriter};

/// A complete list.
#[derive(Debug, Clone)]
pub(crate) struct ListBody {
    /// Of the body.
    pub(crate) content_type: &'static str,
    /// The encoded `*List`.
    pub(crate) body: Bytes,
}

pub(super) struct SharedList {
    sequence: u64,
    resource_version: u64,
    body: Bytes,
}

/// Keeps the list for others while somebody sends it.
struct SharedBody(Arc<SharedList>);

impl AsRef<[u8]> for SharedBody {
    fn as_ref(&self) -> &[u8] {
        &self.0.body
    }
}

impl View {
    /// The whole list, encoded.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn list(&self) -> Result<ListBody, StoreError> {
        self.touch();
        // Read before the transaction: whatever happened up to there is in it.
        let known = *self.progress.borrow();
        let shared = self.shared(known);
        let shared = match shared {
            Some(shared) => shared,
            None => {
                let list = Arc::new(self.build(known.resource_version)?);
                *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&list);
                list
            }
        };
        Ok(ListBody {
            content_type: self.spec.encoding().content_type(),
            body: Bytes::from_owner(SharedBody(shared)),
        })
    }

    fn shared(&self, known: Progress) -> Option<Arc<SharedList>> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        (list.sequence == known.sequence && list.resource_version == known.resource_version).then_some(list)
    }

    fn build(&self, known: u64) -> Result<SharedList, StoreError> {
        let encoding = self.spec.encoding();
        self.read(|reader| {
            let record = feed::load(reader, self.id)?;
            let kind = record
                .kind
                .clone()
                .filter(|_| record.complete)
                .ok_or_else(|| StoreError::Failed("the view is not complete".to_owned()))?;
            let resource_version = record.resource_version.max(known);
            // Sealed and local bodies are opened twice: once to know their size. Both are rare.
            let mut size = ListSize::new(encoding);
            reader.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
                size.add(feed::body(reader, &record, key, &ObjectRecord::decode(value)?)?.len());
                Ok(true)
            })?;
            let mut list = ListWriter::new(&kind, resource_version, &size);
            reader.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
                list.item(&feed::body(reader, &record, key, &ObjectRecord::decode(value)?)?);
                Ok(true)
            })?;
            Ok(SharedList { sequence: record.sequence, resource_version, body: list.finish() })
        })
    }
}
