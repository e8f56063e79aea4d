//! What is stored of views apart from their objects, now and then; and views that nobody uses, until they are gone.

use std::sync::Arc;
use std::time::Duration;

use yurt_node::link::LinkState;

use super::Views;
use crate::clock;
use crate::store::{Durability, StoreError, Table, Tx};
use crate::view::record::{ViewId, ViewRecord};
use crate::view::table::ViewTable;
use crate::view::{State, Transition, View};

/// So long after the link is back nothing is written about views that nobody follows.
const CATCH_UP: Duration = Duration::from_secs(30);
const HOUSEKEEP_EVERY: Duration = Duration::from_secs(60);
/// Seconds that an event is in memory for those who keep up; they take it in milliseconds. It may be of a Secret.
const EVENTS_FOR: u64 = 60;
/// What has changed in records but not in objects (bookmarks, last use) is stored every so many rounds.
const SAVE_EVERY: u32 = 5;
/// A stored view that nobody has used for so long is forgotten, while online.
const FORGET_AFTER: u64 = 7 * 24 * 3600;
/// The same when the store is full. What kubelet needs is in use all the time (`kept`).
const FORGET_WHEN_FULL: u64 = 3600;

impl Views {
    pub(super) async fn housekeep(&self) {
        let mut rounds = 0_u32;
        loop {
            self.follow_needed();
            tokio::time::sleep(HOUSEKEEP_EVERY).await;
            rounds = rounds.wrapping_add(1);
            let before = clock::steady().saturating_sub(EVENTS_FOR);
            self.inner.catalogue.all().iter().for_each(|view| view.forget_events(before));
            if self.inner.store.stats().full
                && self.inner.link.is_online()
                && let Err(error) = self.forget(FORGET_WHEN_FULL).await
            {
                tracing::warn!(%error, "the store is full and unused views could not be removed");
            }
            if !rounds.is_multiple_of(SAVE_EVERY) {
                continue;
            }
            if let Err(error) = self.save().await {
                tracing::warn!(%error, "bookmarks could not be stored");
            }
            if self.inner.link.is_online()
                && let Err(error) = self.forget(FORGET_AFTER).await
            {
                tracing::warn!(%error, "unused views could not be removed");
            }
        }
    }

    /// Whenever the link is lost: what the API server has confirmed was for as long as there was one.
    pub(super) async fn doubt_rights(&self) {
        let mut link = self.inner.link.subscribe();
        let mut heeded = 0;
        loop {
            // Counted, not seen: it may be over before this is woken, or come again while it is written down.
            let losses = self.inner.link.losses();
            if losses != heeded {
                heeded = losses;
                self.unconfirm_all().await;
            } else if link.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whenever the link is there again: what nobody follows may change unseen from now on.
    pub(super) async fn outdate(&self) {
        let mut link = self.inner.link.subscribe();
        while link.wait_for(|state| *state == LinkState::Online).await.is_ok() {
            for view in self.inner.catalogue.all() {
                view.turn(Transition::Online);
            }
            // Most are followed again at once, and then nothing has to be written.
            let offline = async { drop(link.wait_for(|state| *state != LinkState::Online).await) };
            if tokio::time::timeout(CATCH_UP, offline).await.is_ok() {
                continue;
            }
            if let Err(error) = self.save().await {
                tracing::warn!(%error, "what views are worth could not be stored");
            }
            if link.wait_for(|state| *state != LinkState::Online).await.is_err() {
                return;
            }
        }
    }

    /// Stores what these views are worth.
    pub(super) async fn keep_states(&self, views: &[Arc<View>]) -> Result<(), StoreError> {
        if views.is_empty() {
            return Ok(());
        }
        let states: Vec<_> = views.iter().map(|view| (view.id, view.state())).collect();
        self.inner
            .store
            .write(Durability::Soon, move |tx| {
                for (id, state) in &states {
                    let Some(mut record) = stored(tx, *id)? else { continue };
                    record.state = *state;
                    let value = record.encode()?;
                    tx.put(Table::Views, &id.prefix(), &value)?;
                }
                Ok(())
            })
            .await
    }

    /// Stores bookmarks, times of use and what views are worth, in one transaction. Worth it before the process ends.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub(crate) async fn save(&self) -> Result<(), StoreError> {
        self.see_confirmations();
        let mut views = self.inner.catalogue.all();
        views.retain(|view| view.is_stored());
        let now = clock::now();
        let changes: Vec<_> = views
            .iter()
            .map(|view| {
                // The version first: what is in it is in the state.
                let version = view.resource_version();
                let state = match view.state() {
                    State::Following { .. } => State::Following { seen: now },
                    other => other,
                };
                (Arc::clone(view), version, view.used(), state)
            })
            .collect();
        self.inner
            .store
            .write(Durability::Soon, move |tx| {
                for (view, version, used, state) in &changes {
                    let Some(mut record) = stored(tx, view.id)? else { continue };
                    // A use alone is worth a write once an hour.
                    let aged = used.saturating_sub(record.used) >= 3600;
                    let confirmation = view.confirmation();
                    let same = record.resource_version >= *version && record.confirmation == confirmation;
                    if same && !aged && !state.differs_from(record.state) {
                        continue;
                    }
                    record.confirmation = confirmation;
                    record.state = *state;
                    record.resource_version = record.resource_version.max(*version);
                    record.used = record.used.max(*used);
                    let value = record.encode()?;
                    tx.put(Table::Views, &view.id.prefix(), &value)?;
                }
                Ok(())
            })
            .await
    }

    /// Removes views that nobody has used for `seconds`.
    pub(super) async fn forget(&self, seconds: u64) -> Result<(), StoreError> {
        self.forget_at(seconds, clock::steady()).await
    }

    pub(super) async fn forget_at(&self, seconds: u64, now: u64) -> Result<(), StoreError> {
        self.follow_needed();
        let followers = &self.inner.followers;
        followers.prune();
        let unused = self.inner.catalogue.take_unused(seconds, now, |view| followers.is_running(view.id));
        // Somebody may have found one before it was taken out, and start it now.
        for view in &unused {
            followers.end(view).await;
        }
        if !unused.is_empty() {
            tracing::info!(views = unused.len(), "views that nobody uses any more are removed");
        }
        self.destroy(unused.iter().map(|view| view.id).collect()).await
    }

    /// Ends a view that is in the catalogue no more.
    pub(super) async fn discard(self, view: Arc<View>) {
        self.inner.followers.end(&view).await;
        if let Err(error) = self.destroy(vec![view.id]).await {
            tracing::warn!(%error, view = %view.name(), "what is stored of a view could not be removed");
        }
    }

    /// Removes what is stored of views.
    pub(super) async fn destroy(&self, views: Vec<ViewId>) -> Result<(), StoreError> {
        if views.is_empty() {
            return Ok(());
        }
        self.inner
            .store
            .write(Durability::Soon, move |tx| views.iter().try_for_each(|id| ViewTable::destroy(tx, *id)))
            .await
    }
}

/// The record of a view; nothing for one that is damaged, which its own reader finds out.
pub(super) fn stored(tx: &Tx<'_>, id: ViewId) -> Result<Option<ViewRecord>, StoreError> {
    match tx.get(Table::Views, &id.prefix()) {
        Ok(value) => value.map(ViewRecord::decode).transpose(),
        Err(StoreError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
