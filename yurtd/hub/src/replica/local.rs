//! Changes that are made here because the API server cannot be asked: local versions of objects, over upstream's.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout_at};

use crate::caller::Permit;
use crate::store::{Durability, StoreError, Table, Tx};
use crate::view::table::{ViewTable, Written};
use crate::view::{Progress, Question, View};
use crate::wire::object::object_key;
use crate::wire::{Encoding, Resource};

use super::Views;

/// What upstream has of an object, as far as views that follow it know.
#[derive(Debug)]
pub(crate) enum Present {
    /// As a GET would answer it, in JSON.
    Has(Bytes),
    /// It was there, and is gone.
    Lacks,
    /// No view of the object has caught up.
    Unknown,
}

impl Views {
    /// Upstream's own version of an object, whatever lies over it here, out of a view that has it and follows upstream
    /// by the deadline.
    pub(crate) async fn present(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        deadline: Instant,
    ) -> Present {
        for view in self.in_json(permit, resource) {
            if !matches!(view.upstreams(namespace, name), Ok(Some(_))) {
                continue;
            }
            let mut sync = view.sync.subscribe();
            let followed = sync.wait_for(|sync| sync.state.is_following());
            if matches!(timeout_at(deadline, followed).await, Ok(Ok(_))) {
                return match view.upstreams(namespace, name) {
                    Ok(Some(body)) => Present::Has(body),
                    Ok(None) => Present::Lacks,
                    Err(_) => Present::Unknown,
                };
            }
        }
        Present::Unknown
    }

    /// Waits until the views of the resource that follow upstream have reached a version, at most until the deadline.
    pub(crate) async fn reaches(
        &self,
        permit: &Permit,
        resource: &Resource,
        version: u64,
        deadline: Instant,
    ) {
        for view in self.in_json(permit, resource) {
            if view.state().is_following() {
                view.wait_for(version, deadline).await;
            }
        }
    }

    /// How far the views come that local versions are put into.
    pub(crate) fn progress(&self, permit: &Permit, resource: &Resource) -> Vec<Receiver<Progress>> {
        self.in_json(permit, resource).iter().map(|view| view.progress.subscribe()).collect()
    }

    fn in_json(&self, permit: &Permit, resource: &Resource) -> Vec<Arc<View>> {
        let mut views = self.inner.catalogue.showing(permit, resource);
        views.retain(|view| view.may_answer(Question::Any) && view.spec.encoding() == Encoding::Json);
        views
    }

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

    /// Forgets the local versions of all of the node's objects of a resource but these, by namespace and name. Returns in
    /// how many views there were others.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn drop_locals_but<'o>(
        &self,
        resource: &Resource,
        keep: impl Iterator<Item = (Option<&'o str>, &'o str)>,
    ) -> Result<usize, StoreError> {
        let keep: HashSet<String> = keep.map(|(namespace, name)| object_key(namespace, name)).collect();
        let node = self.inner.node.clone();
        let views = self.in_json(&node, resource);
        let mut any = false;
        self.inner.store.read(|reader| {
            views.iter().try_for_each(|view| {
                reader.scan(Table::Locals, &view.id.prefix(), None, |_, _| {
                    any = true;
                    Ok(false)
                })
            })
        })?;
        if !any {
            return Ok(0);
        }
        self.change_locally(&node, resource, move |table| table.drop_locals_but(&keep)).await
    }

    async fn change_locally(
        &self,
        permit: &Permit,
        resource: &Resource,
        change: impl Fn(&mut ViewTable<'_, '_>) -> Result<bool, StoreError> + Send + 'static,
    ) -> Result<usize, StoreError> {
        let views = self.in_json(permit, resource);
        let job = move |tx: &mut Tx<'_>| {
            let mut changed = Vec::new();
            for view in &views {
                let mut table = view.table(tx)?;
                if change(&mut table)? {
                    changed.push((Arc::clone(view), table.save()?));
                }
            }
            Ok(changed)
        };
        let then = |changed: &mut Vec<(Arc<View>, Written)>| {
            changed.iter_mut().for_each(|(view, written)| view.publish(written));
        };
        // Durable: a status that kubelet was told is stored has to survive a power cut.
        let changed = self.inner.store.write_then(Durability::Durable, job, then).await?;
        Ok(changed.len())
    }
}
