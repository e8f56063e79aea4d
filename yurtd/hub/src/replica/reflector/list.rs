//! The whole collection, committed when its last page is there.

use super::Reflector;
use crate::caller::Credential;
use crate::clock;
use crate::limits::{self, PageSize};
use crate::replica::fetch::{self, FetchError, ListParameters};
use crate::replica::step::Outcome;
use crate::store::{Durability, StoreError, Table};
use crate::view::ViewError;
use crate::view::record::ViewRecord;
use crate::view::table::ViewTable;
use crate::wire::ListPage;

impl Reflector {
    /// The whole collection, page by page, committed with the last one.
    pub(super) async fn list(&mut self, at: Option<u64>) -> Outcome {
        let mut parameters = ListParameters { at, continue_token: None, size: PageSize::new() };
        let (mut first, mut listed, mut waiting) = (true, 0, 0);
        loop {
            let credential = self.credential.borrow_and_update().clone();
            let (view, large) = (&self.view, &self.large);
            let page = match fetch::list(&self.upstream, &credential, &view.spec, &parameters, large).await {
                Ok(page) => page,
                Err(FetchError::TooBig) if parameters.size.was_too_big() => continue,
                Err(answer) => return self.answered(answer),
            };
            parameters.size.came(page.list.items.len(), page.bytes);
            listed += page.bytes as u64;
            if !self.may_store(listed) {
                return self.too_large().await;
            }
            match page.list.continue_token.clone() {
                Some(token) => {
                    match self.stage(page.list, first).await {
                        Ok(staged) => waiting += staged,
                        Err(error) => return self.store_failed(error),
                    }
                    if waiting > limits::DIFFERENCE {
                        tracing::info!(view = %self.view.name(), "almost everything has changed; the view starts over");
                        self.rebuild = true;
                        return self.failed(None, Outcome::Expired);
                    }
                    first = false;
                    parameters.continue_token = Some(token);
                }
                None => match self.commit(page.list, first).await {
                    Ok(record) => {
                        self.rebuild = false;
                        self.view.publish(&record);
                        self.view.sync.send_modify(|state| {
                            state.attempts += 1;
                            state.failure = None;
                            state.live = true;
                        });
                        return Outcome::Listed;
                    }
                    Err(error) => return self.store_failed(error),
                },
            }
        }
    }

    /// Whether the view may have so much of the store.
    fn may_store(&self, bytes: u64) -> bool {
        let (own, others) = self.view.stored_beside();
        let node = matches!(*self.credential.borrow(), Credential::Node);
        node || limits::may_store(own + bytes, others + bytes, self.store.stats().map_bytes)
    }

    /// The collection is more than its identity may have in the store: it is forwarded from now on.
    async fn too_large(&mut self) -> Outcome {
        tracing::warn!(view = %self.view.name(), "the collection is too large to be kept; it is forwarded");
        let id = self.view.id;
        self.view.sync.send_modify(|state| state.complete = false);
        let removed = self.store.write(Durability::Soon, move |tx| ViewTable::destroy(tx, id)).await;
        self.view.count_stored(0);
        match removed {
            Ok(()) => self.failed(Some(ViewError::NotAView), Outcome::NotAView),
            Err(error) => self.store_failed(error),
        }
    }

    /// A record without anything in it, behind everything that watchers may have read.
    fn new_record(&self) -> ViewRecord {
        let mut record = ViewRecord::new(self.view.identity.as_str(), &self.view.spec, clock::now());
        record.sequence = self.view.progress.borrow().sequence;
        record
    }

    async fn stage(&mut self, page: ListPage, first: bool) -> Result<usize, StoreError> {
        let (id, record, rebuild) = (self.view.id, self.new_record(), self.rebuild && first);
        let (staged, record) = self
            .store
            .write(Durability::Soon, move |tx| {
                if rebuild {
                    ViewTable::reset(tx, id, &record)?;
                } else if tx.get(Table::Views, &id.prefix())?.is_none() {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                let mut table = ViewTable::load(tx, id)?;
                let staged = table.stage(&page, first)?;
                Ok((staged, table.save()?))
            })
            .await?;
        if rebuild {
            self.rebuild = false;
        }
        if !record.complete {
            self.view.publish(&record);
        }
        Ok(staged)
    }

    async fn commit(&self, page: ListPage, only: bool) -> Result<ViewRecord, StoreError> {
        let (id, record, rebuild) = (self.view.id, self.new_record(), self.rebuild);
        self.store
            .write(Durability::Soon, move |tx| {
                if rebuild {
                    ViewTable::reset(tx, id, &record)?;
                } else if tx.get(Table::Views, &id.prefix())?.is_none() {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                let mut table = ViewTable::load(tx, id)?;
                if only {
                    table.unstage()?;
                }
                if only || table.record.complete {
                    table.apply_list(&page)?;
                } else {
                    table.finish_list(&page)?;
                }
                table.save()
            })
            .await
    }
}
