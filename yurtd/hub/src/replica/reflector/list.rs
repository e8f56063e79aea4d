//! The whole collection, committed when its last page is there.

use std::pin::pin;
use std::sync::Arc;

use super::Reflector;
use super::watch::until_lost;
use crate::caller::Credential;
use crate::clock;
use crate::limits::{self, PageSize};
use crate::replica::fetch::{self, FetchError, ListParameters};
use crate::replica::step::Outcome;
use crate::store::{Durability, StoreError, Table, Tx};
use crate::view::record::ViewRecord;
use crate::view::table::{Taken, ViewTable, Written};
use crate::view::{Request, State, Transition, ViewError};
use crate::wire::ListPage;

/// How far a list has come.
#[derive(Debug, Default)]
pub(super) struct Taking {
    pages: usize,
    /// Bytes of the pages, and those of what has changed and waits for the last one.
    listed: u64,
    waiting: usize,
}

impl Reflector {
    /// The whole collection, page by page, committed with the last one.
    pub(super) async fn list(&mut self, at: Option<u64>) -> Outcome {
        let mut parameters = ListParameters { at, continue_token: None, size: PageSize::new() };
        let mut taking = Taking::default();
        if !self.credentials.is_node() && !self.store.has_room_for_others() {
            let error = StoreError::Full("what is left of it is kubelet's".to_owned());
            return self.store_failed(Request::List, error).await;
        }
        loop {
            let credential = self.credential();
            let page = match self.page(&credential, &parameters).await {
                Ok(page) => page,
                Err(FetchError::TooBig) if parameters.size.was_too_big() => continue,
                Err(answer) => return self.answered(Request::List, answer).await,
            };
            self.credentials.accepted(&credential);
            parameters.size.came(page.list.items.len(), page.bytes);
            let token = page.list.continue_token.clone();
            match self.take_page(page.list, page.bytes, &mut taking).await {
                Ok(true) => parameters.continue_token = token,
                Ok(false) => return Outcome::Listed,
                Err(outcome) => return outcome,
            }
        }
    }

    /// Takes a page, of so many bytes; whether it was not the last one.
    pub(super) async fn take_page(
        &mut self,
        page: ListPage,
        bytes: usize,
        taking: &mut Taking,
    ) -> Result<bool, Outcome> {
        taking.listed += bytes as u64;
        if !self.may_store(taking.listed) {
            return Err(self.too_large().await);
        }
        let first = taking.pages == 0;
        taking.pages += 1;
        let taken = if page.continue_token.is_some() {
            self.stage(page, first).await
        } else {
            self.commit(page, first).await
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(self.store_failed(Request::List, error).await),
        };
        self.rebuild = false;
        match taken {
            Taken::Listed => {
                // What has changed is not told event by event.
                self.view.close_taps();
                self.view.sync.send_modify(|sync| {
                    sync.attempts += 1;
                    sync.failure = None;
                    sync.state = sync.state.after(Transition::Listed, clock::now());
                });
                return Ok(false);
            }
            Taken::InPlace => self.is_empty(),
            Taken::Staged(bytes) => taking.waiting += bytes,
            Taken::AnotherHistory => return Err(self.start_over().await),
        }
        if taking.waiting > limits::DIFFERENCE {
            tracing::info!(view = %self.view.name(), "almost everything has changed; the view starts over");
            return Err(self.start_over().await);
        }
        Ok(true)
    }

    /// What is stored of the view is not all of it any more, or not yet.
    fn is_empty(&self) {
        self.view
            .sync
            .send_if_modified(|sync| std::mem::replace(&mut sync.state, State::Empty) != State::Empty);
    }

    /// Empties the view. The next list fills it page by page.
    async fn start_over(&mut self) -> Outcome {
        let (view, told) = (Arc::clone(&self.view), Arc::clone(&self.view));
        self.is_empty();
        let empty = move |tx: &mut Tx<'_>| {
            let mut table = view.table(tx)?;
            if table.record.state != State::Empty {
                table.start_over()?;
            }
            table.save()
        };
        match self.store.write_then(Durability::Soon, empty, move |written| told.publish(written)).await {
            Ok(_) => self.failed(Request::List, None, Outcome::Expired).await,
            Err(error) => self.store_failed(Request::List, error).await,
        }
    }

    /// Whether the view may have so much of the store.
    fn may_store(&self, bytes: u64) -> bool {
        let (own, others) = self.view.stored_beside();
        let node = self.credentials.is_node();
        node || limits::may_store(own + bytes, others + bytes, self.store.stats().map_bytes)
    }

    /// The collection is more than its identity may have in the store: it is forwarded from now on.
    async fn too_large(&mut self) -> Outcome {
        tracing::warn!(view = %self.view.name(), "the collection is too large to be kept; it is forwarded");
        let id = self.view.id;
        self.is_empty();
        let removed = self.store.write(Durability::Soon, move |tx| ViewTable::destroy(tx, id)).await;
        self.view.count_stored(0);
        match removed {
            Ok(()) => self.failed(Request::List, Some(ViewError::NotAView), Outcome::NotAView).await,
            Err(error) => self.store_failed(Request::List, error).await,
        }
    }

    /// One page. When the link goes while it is under way it may come to its end yet; until then nothing is followed.
    async fn page(
        &mut self,
        credential: &Credential,
        parameters: &ListParameters,
    ) -> Result<fetch::Page, FetchError> {
        let (upstream, view, large) =
            (self.upstream.clone(), Arc::clone(&self.view), Arc::clone(&self.large));
        let mut page = pin!(fetch::list(&upstream, credential, &view.spec, parameters, &large));
        let mut page = tokio::select! {
            page = &mut page => page,
            () = until_lost(&mut self.link) => {
                self.failed(Request::List, None, Outcome::Unreachable).await;
                page.await
            }
        }?;
        let (spec, is_kubelets) = (&self.view.spec, self.credentials.is_node());
        self.own_node.seen_in(spec.resource(), spec.encoding(), &mut page.list, is_kubelets);
        Ok(page)
    }

    /// A record without anything in it, behind everything that watchers may have read.
    fn new_record(&self) -> ViewRecord {
        let mut record = ViewRecord::new(self.view.identity.as_str(), &self.view.spec, clock::now());
        record.sequence = self.view.progress.borrow().sequence;
        record
    }

    /// A page that is not the last one.
    async fn stage(&self, page: ListPage, first: bool) -> Result<Taken, StoreError> {
        let reached = self.view.resource_version();
        self.write(first && self.rebuild, move |table| table.stage(&page, first, reached)).await
    }

    /// The last page.
    async fn commit(&self, page: ListPage, only: bool) -> Result<Taken, StoreError> {
        let reached = self.view.resource_version();
        self.write(only && self.rebuild, move |table| {
            if only {
                // Leftovers of a list that never came to its last page.
                table.unstage()?;
                table.apply_list(&page, reached, clock::now())?;
            } else if table.record.state == State::Empty {
                table.finish_list(&page, clock::now())?;
            } else if table.is_of_another_history(&page, reached)? {
                return Ok(Taken::AnotherHistory);
            } else {
                table.apply_list(&page, reached, clock::now())?;
            }
            Ok(Taken::Listed)
        })
        .await
    }

    async fn write(
        &self,
        rebuild: bool,
        mut take: impl FnMut(&mut ViewTable<'_, '_>) -> Result<Taken, StoreError> + Send + 'static,
    ) -> Result<Taken, StoreError> {
        let (view, new, overlay) = (Arc::clone(&self.view), self.new_record(), self.overlay.clone());
        let told = Arc::clone(&self.view);
        let job = move |tx: &mut Tx<'_>| {
            let id = view.id;
            if rebuild {
                ViewTable::reset(tx, id, &new)?;
            } else if tx.get(Table::Views, &id.prefix())?.is_none() {
                tx.put(Table::Views, &id.prefix(), &new.encode()?)?;
            }
            let mut table = view.table(tx)?.showing(overlay.book());
            let taken = take(&mut table)?;
            Ok((taken, table.save()?))
        };
        let then = move |(_, written): &mut (Taken, Written)| told.publish(written);
        let (taken, _) = self.store.write_then(Durability::Soon, job, then).await?;
        Ok(taken)
    }
}
