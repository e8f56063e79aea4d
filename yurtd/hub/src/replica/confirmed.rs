//! Which views the API server has confirmed that their identities may read: what is believed, and what is kept of it
//! for the hub's next start ([`Confirmation`]).

use std::sync::Arc;
use std::time::Duration;

use super::Views;
use super::housekeeping::stored;
use crate::store::{Durability, Table};
use crate::view::View;
use crate::view::confirmation::Confirmation;

impl Views {
    /// For how long it is believed yet.
    pub(super) fn confirmed_for(&self, view: &View) -> Option<Duration> {
        view.confirmation()?.lasts(&self.inner.boot, self.inner.link.losses())
    }

    /// The API server has said so, when the link had been lost so often. On the disk when this returns, if the view is.
    pub(super) async fn confirm(&self, view: &Arc<View>, lasts: Duration, losses: u64) {
        view.set_confirmation(Some(Confirmation::new(&self.inner.boot, lasts, losses)));
        self.keep_confirmation(view).await;
    }

    /// It is to be asked again.
    pub(super) async fn unconfirm(&self, view: &Arc<View>) {
        if view.set_confirmation(None).is_some() {
            self.keep_confirmation(view).await;
        }
    }

    /// The link was lost: of all of them it is to be asked again, by the next process, too.
    pub(super) async fn unconfirm_all(&self) {
        let mut views = self.inner.catalogue.all();
        views.retain(|view| self.confirmed_for(view).is_none() && view.set_confirmation(None).is_some());
        self.keep_confirmations(views).await;
    }

    /// The hub is here and has a link: what is believed now is after a restart, too.
    pub(super) fn see_confirmations(&self) {
        // Whether there is one is not known yet, or it is lost.
        if !self.inner.link.is_online() {
            return;
        }
        for view in self.inner.catalogue.all() {
            if self.confirmed_for(&view).is_some() {
                view.see_confirmation(&self.inner.boot);
            }
        }
    }

    /// Writes down what is known of it; nothing is lost if the view has no record yet.
    pub(super) async fn keep_confirmation(&self, view: &Arc<View>) {
        self.keep_confirmations(vec![Arc::clone(view)]).await;
    }

    /// Writes them down. What a power cut takes of it is of a boot that is over.
    async fn keep_confirmations(&self, views: Vec<Arc<View>>) {
        if views.is_empty() {
            return;
        }
        let kept = self.inner.store.write(Durability::Relaxed, move |tx| {
            for view in &views {
                let Some(mut record) = stored(tx, view.id)? else { continue };
                // As it is by now: another one may have been written meanwhile.
                let word = view.confirmation();
                if record.confirmation != word {
                    record.confirmation = word;
                    let value = record.encode()?;
                    tx.put(Table::Views, &view.id.prefix(), &value)?;
                }
            }
            Ok(())
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "which rights are confirmed could not be stored");
        }
    }
}
