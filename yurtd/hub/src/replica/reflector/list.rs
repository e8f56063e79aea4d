//! The whole collection, committed when its last page is there.

use super::Reflector;
use crate::caller::Credential;
use crate::clock;
use crate::replica::fetch::{self, ListParameters};
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
            let page = match fetch::list(&self.upstream, &credential, &self.view.spec, &parameters).await {
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
        let reached = self.view.resource_version();
        self.store
            .write(Durability::Soon, move |tx| {
                if rebuild {
                    ViewTable::reset(tx, id, &record)?;
                } else if tx.get(Table::Views, &id.prefix())?.is_none() {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                let mut table = ViewTable::load(tx, id)?;
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
