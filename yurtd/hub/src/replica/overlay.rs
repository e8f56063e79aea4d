//! The node's own pods in views of EndpointSlices, whoever's they are. What is shown is decided in
//! `view::overlay`; here it is written over the slices, and taken off again.

use std::collections::HashSet;
use std::sync::Arc;

use super::Views;
use crate::store::{Durability, StoreError, Tx};
use crate::view::overlay::{Book, Overlay};
use crate::view::record::ViewId;
use crate::view::table::Written;
use crate::view::{Question, View};
use crate::wire::endpoint_slice::{is_slice, publishes_not_ready};
use crate::wire::object::meta;

/// Services that publish what is not ready, and the views' states that say so.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    seen: Vec<(ViewId, u64)>,
    services: HashSet<(String, String)>,
}

impl Views {
    /// What slices show of the node's own pods.
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.inner.overlay
    }

    /// Has every slice show what the book says: watchers hear of those that change as MODIFIED. A view that cannot be
    /// written is logged; it shows what it showed.
    pub(crate) async fn show(&self, book: Book) {
        // First for those who write slices anyway, then for those that are there: none is left out.
        self.inner.overlay.set(book);
        for view in self.inner.catalogue.all() {
            if is_slice(view.spec.resource())
                && view.is_stored()
                && let Err(error) = self.show_in(&view).await
            {
                tracing::warn!(%error, view = %view.name(), "the node's own pods cannot be shown");
            }
        }
    }

    async fn show_in(&self, view: &Arc<View>) -> Result<(), StoreError> {
        let (view, overlay) = (Arc::clone(view), self.inner.overlay.clone());
        let told = Arc::clone(&view);
        let job = move |tx: &mut Tx<'_>| {
            let mut table = view.table(tx)?.showing(overlay.book());
            if table.overlay()? { table.save().map(Some) } else { Ok(None) }
        };
        let then = move |written: &mut Option<Written>| {
            if let Some(written) = written {
                told.publish(written);
            }
        };
        // It can be made again from the journal.
        self.inner.store.write_then(Durability::Soon, job, then).await?;
        Ok(())
    }

    /// The Services that want their pods' addresses published whether or not they are ready, as far as any view of the
    /// node has them: kubelet's own leaves out headless ones.
    pub(crate) fn publishing<'p>(&self, known: &'p mut Publishing) -> &'p HashSet<(String, String)> {
        let mut views = self.inner.catalogue.all();
        views.retain(|view| {
            let resource = view.spec.resource();
            resource.group.is_empty() && resource.plural == "services" && view.may_answer(Question::Any)
        });
        let mut seen: Vec<_> = views.iter().map(|view| (view.id, view.progress.borrow().sequence)).collect();
        seen.sort_unstable();
        if seen != known.seen {
            known.services.clear();
            for view in views {
                let encoding = view.spec.encoding();
                let found = view.for_each(|stored| {
                    // One that cannot be read publishes nothing.
                    if publishes_not_ready(encoding, stored).unwrap_or_default()
                        && let Ok(meta) = meta(encoding, stored)
                    {
                        known.services.insert((meta.namespace, meta.name));
                    }
                    Ok(())
                });
                if let Err(error) = found {
                    tracing::warn!(%error, view = %view.name(), "Services cannot be read");
                }
            }
            known.seen = seen;
        }
        &known.services
    }
}
