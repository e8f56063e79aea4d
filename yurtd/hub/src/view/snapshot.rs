//! The state of a view as upstream has it, in pages, for a view within it.
//!
//! One transaction on a thread of its own reads it, so that all pages are of one state; one page is read ahead.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::record::ObjectRecord;
use super::selector::Selector;
use super::{State, View, feed};
use crate::store::{StoreError, Table};
use crate::wire::{Item, ListPage, ObjectMeta};

/// Bytes of a page.
const PAGE: usize = 256 << 10;

impl View {
    /// The objects that `selector` selects, without what is laid over them here. Who takes them sees the last page by its
    /// lack of a token; pages that end without it are none.
    pub(crate) fn pages(
        self: &Arc<Self>,
        selector: Selector,
    ) -> mpsc::Receiver<Result<ListPage, StoreError>> {
        let (pages, receiver) = mpsc::channel(1);
        let view = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let send = |page| pages.blocking_send(Ok(page)).map_err(|_| StoreError::Closed);
            if let Err(error) = view.read_pages(&selector, send) {
                // Nobody takes it, if it is that nobody takes them.
                drop(pages.blocking_send(Err(error)));
            }
        });
        receiver
    }

    fn read_pages(
        &self,
        selector: &Selector,
        send: impl Fn(ListPage) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // Read before the transaction: whatever happened up to there is in it.
        let known = self.resource_version();
        let encoding = self.spec.encoding();
        self.read(|reader| {
            let record = feed::load(reader, self.id)?;
            let kind = record.kind.clone().filter(|_| record.state != State::Empty);
            let kind = kind.ok_or_else(|| StoreError::Failed("the view is not complete".to_owned()))?;
            let resource_version = record.resource_version.max(known);
            let page = |items, more: bool| ListPage {
                kind: kind.clone(),
                resource_version,
                continue_token: more.then(String::new),
                items,
            };
            let (mut items, mut bytes) = (Vec::new(), 0);
            reader.scan(Table::Objects, &self.id.prefix(), None, |full, value| {
                let object = ObjectRecord::decode(value)?;
                let key = std::str::from_utf8(&full[4..]).unwrap_or_default();
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                let body = object.open(reader.sealer(), full)?;
                let fits = selector.fits(encoding, namespace, &body);
                if !fits.map_err(|error| StoreError::Failed(error.to_string()))? {
                    return Ok(true);
                }
                if bytes >= PAGE {
                    send(page(std::mem::take(&mut items), true))?;
                    bytes = 0;
                }
                bytes += body.len();
                let meta = ObjectMeta {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    uid: object.uid.to_owned(),
                    resource_version: object.version,
                };
                items.push(Item { meta, body: Bytes::from(body.into_owned()) });
                Ok(true)
            })?;
            send(page(items, false))
        })
    }
}
