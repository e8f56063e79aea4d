//! Changes that are made here because the API server cannot be asked: local versions of objects, over upstream's.

use crate::caller::Permit;
use crate::store::{Durability, StoreError};
use crate::view::Question;
use crate::view::table::ViewTable;
use crate::wire::object::object_key;
use crate::wire::{Encoding, Resource};

use super::Views;

impl Views {
    /// Replaces an object in every JSON view of the identity that has it: stored, sent to watchers at once, the
    /// resourceVersion unchanged. The local version lives until upstream's own version changes, or
    /// [`Self::drop_local`]. Returns in how many views it was found.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn apply_local(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        object: &serde_json::Value,
    ) -> Result<usize, StoreError> {
        // Stored form: without what the view's kind restores.
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        let stored = serde_json::to_vec(&object).map_err(|error| StoreError::Failed(error.to_string()))?;
        let key = object_key(namespace, name);
        self.change_locally(permit, resource, move |table| table.apply_local(&key, &stored)).await
    }

    /// Forgets the local version: upstream's last version is sent to watchers as MODIFIED. Returns in how many views.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn drop_local(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<usize, StoreError> {
        let key = object_key(namespace, name);
        self.change_locally(permit, resource, move |table| table.drop_local(&key)).await
    }

    async fn change_locally(
        &self,
        permit: &Permit,
        resource: &Resource,
        change: impl Fn(&mut ViewTable<'_, '_>) -> Result<bool, StoreError> + Send + 'static,
    ) -> Result<usize, StoreError> {
        let mut views = self.inner.catalogue.showing(permit, resource);
        views.retain(|view| view.may_answer(Question::Any) && view.spec.encoding() == Encoding::Json);
        let ids: Vec<_> = views.iter().map(|view| view.id).collect();
        // Durable: a status that kubelet was told is stored has to survive a power cut.
        let records = self
            .inner
            .store
            .write(Durability::Durable, move |tx| {
                let mut records = Vec::with_capacity(ids.len());
                for id in &ids {
                    let mut table = ViewTable::load(tx, *id)?;
                    let found = change(&mut table)?;
                    records.push(if found { Some(table.save()?) } else { None });
                }
                Ok(records)
            })
            .await?;
        let mut found = 0;
        for (view, record) in views.iter().zip(records) {
            if let Some(record) = record {
                view.publish(&record);
                found += 1;
            }
        }
        Ok(found)
    }
}
