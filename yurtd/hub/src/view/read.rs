//! Reading a view's objects, one or all of them.

use std::borrow::Cow;

use bytes::Bytes;

use super::record::{ObjectRecord, ViewRecord};
use super::{View, feed};
use crate::store::{Reader, StoreError, Table};

/// One object out of a view.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// As a GET would answer it.
    pub(crate) body: Bytes,
    /// Upstream's resourceVersion of it.
    pub(crate) version: u64,
    /// Whether it is a local version over that.
    pub(crate) local: bool,
}

impl View {
    /// One object of the view.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn get(&self, namespace: Option<&str>, name: &str) -> Result<Option<Found>, StoreError> {
        self.object(namespace, name, feed::body)
    }

    /// The same as upstream has it, without what lies over it here.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn upstreams(&self, namespace: Option<&str>, name: &str) -> Result<Option<Bytes>, StoreError> {
        let found =
            self.object(namespace, name, |reader, _, key, object| object.open(reader.sealer(), key))?;
        Ok(found.map(|found| found.body))
    }

    fn object(
        &self,
        namespace: Option<&str>,
        name: &str,
        body: impl for<'a> FnOnce(
            &Reader<'a>,
            &ViewRecord,
            &[u8],
            &ObjectRecord<'a>,
        ) -> Result<Cow<'a, [u8]>, StoreError>,
    ) -> Result<Option<Found>, StoreError> {
        let key = self.id.object(&crate::wire::object::object_key(namespace, name));
        self.read(|reader| {
            let record = feed::load(reader, self.id)?;
            let (Some(kind), Some(value)) = (&record.kind, reader.get(Table::Objects, &key)?) else {
                return Ok(None);
            };
            let object = ObjectRecord::decode(value)?;
            let local = record.locals > 0 && reader.get(Table::Locals, &key)?.is_some();
            let body = body(reader, &record, &key, &object)?;
            let body = crate::wire::object::encode_object(self.spec.encoding(), kind, &body);
            Ok(Some(Found { body, version: object.version, local }))
        })
    }

    /// Every object in its stored form; returns the sequence number whose state this is.
    pub(crate) fn for_each(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        self.read(|reader| {
            let record = feed::load(reader, self.id)?;
            reader.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
                each(&feed::body(reader, &record, key, &ObjectRecord::decode(value)?)?)?;
                Ok(true)
            })?;
            Ok(record.sequence)
        })
    }

    /// How many bytes its objects take in the store; more than `limit` are not counted on.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn stored_bytes(&self, limit: u64) -> Result<u64, StoreError> {
        self.read(|reader| {
            let mut bytes = 0_u64;
            reader.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
                bytes = bytes.saturating_add((key.len() + value.len()) as u64);
                Ok(bytes <= limit)
            })?;
            Ok(bytes)
        })
    }

    /// Reads; a record that cannot be read has the view listed anew.
    pub(super) fn read<T>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let outcome = self.store.read(job);
        if let Err(StoreError::Damaged(reason)) = &outcome {
            tracing::error!(reason, view = %self.name(), "the view is damaged and will be listed anew");
            self.damage.notify_one();
        }
        outcome
    }
}
