//! The whole collection, committed when its last page is there.

use std::pin::pin;
use std::sync::Arc;

use super::Reflector;
use super::watch::until_lost;
use crate::caller::Credential;
use crate::clock;
use crate::replica::fetch::{self, FetchError, ListParameters};
use crate::replica::step::Outcome;
use crate::store::{Durability, StoreError, Table};
use crate::view::record::ViewRecord;
use crate::view::table::ViewTable;
use crate::view::{Request, Transition};
use crate::wire::ListPage;

impl Reflector {
    /// The whole collection, page by page, committed with the last one.
    pub(super) async fn list(&mut self, at: Option<u64>) -> Outcome {
        let mut parameters = ListParameters { at, continue_token: None };
        let mut first = true;
        if !matches!(*self.credential.borrow(), Credential::Node) && !self.store.has_room_for_others() {
            let error = StoreError::Full("what is left of it is kubelet's".to_owned());
            return self.store_failed(Request::List, error).await;
        }
        loop {
            let credential = self.credential.borrow_and_update().clone();
            let page = match self.page(&credential, &parameters).await {
                Ok(page) => page,
                Err(answer) => return self.answered(Request::List, answer).await,
            };
            match page.continue_token.clone() {
                Some(token) => {
                    if let Err(error) = self.stage(page, first).await {
                        return self.store_failed(Request::List, error).await;
                    }
                    first = false;
                    parameters.continue_token = Some(token);
                }
                None => match self.commit(page, first).await {
                    Ok(record) => {
                        self.rebuild = false;
                        self.view.publish(&record);
                        self.view.sync.send_modify(|sync| {
                            sync.attempts += 1;
                            sync.failure = None;
                            sync.state = sync.state.after(Transition::Listed, clock::now());
                        });
                        return Outcome::Listed;
                    }
                    Err(error) => return self.store_failed(Request::List, error).await,
                },
            }
        }
    }

    /// One page. When the link goes while it is under way it may come to its end yet; until then nothing is followed.
    async fn page(
        &mut self,
        credential: &Credential,
        parameters: &ListParameters,
    ) -> Result<ListPage, FetchError> {
        let (upstream, view) = (self.upstream.clone(), Arc::clone(&self.view));
        let mut page = pin!(fetch::list(&upstream, credential, &view.spec, parameters));
        tokio::select! {
            page = &mut page => page,
            () = until_lost(&mut self.link) => {
                self.failed(Request::List, None, Outcome::Unreachable).await;
                page.await
            }
        }
    }

    /// A record without anything in it, behind everything that watchers may have read.
    fn new_record(&self) -> ViewRecord {
        let mut record = ViewRecord::new(self.view.identity.as_str(), &self.view.spec, clock::now());
        record.sequence = self.view.progress.borrow().sequence;
        record
    }

    async fn stage(&self, page: ListPage, first: bool) -> Result<(), StoreError> {
        let (id, record) = (self.view.id, self.new_record());
        self.store
            .write(Durability::Soon, move |tx| {
                if tx.get(Table::Views, &id.prefix())?.is_none() {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                ViewTable::load(tx, id)?.stage(&page.items, first)
            })
            .await
    }

    async fn commit(&self, page: ListPage, only: bool) -> Result<ViewRecord, StoreError> {
        let (id, record, rebuild) = (self.view.id, self.new_record(), self.rebuild);
        let overlay = self.overlay.clone();
        let reached = self.view.resource_version();
        self.store
            .write(Durability::Soon, move |tx| {
                if rebuild {
                    ViewTable::reset(tx, id, &record)?;
                } else if tx.get(Table::Views, &id.prefix())?.is_none() {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                let mut table = ViewTable::load(tx, id)?.showing(overlay.book());
                if only {
                    // Leftovers of a list that never came to its last page.
                    table.stage(&[], true)?;
                }
                table.apply_list(&page, reached, clock::now())?;
                table.save()
            })
            .await
    }
}
