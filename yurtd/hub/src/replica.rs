//! Reflectors: each keeps one view equal to the API server's collection, with one LIST and one WATCH.
//!
//! What to do after what is decided by [`step`], a machine without I/O; this file does it. A reflector
//!
//! - resumes its watch at the last resourceVersion after the link was lost, and lists again only on 410; the
//!   difference reaches local watchers as ordinary events (`view::table`),
//! - sleeps while the link is down, and while its credential is refused; a 403 is marked in the store, and the view
//!   served to nobody until a list succeeds,
//! - uses the freshest credential that the identity has shown,
//! - ends when nobody has used its view for a while, unless kubelet needs it. The view stays in the store.

mod fetch;
mod step;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::caller::Credential;
use crate::store::{Durability, StoreError, Table};
use crate::upstream::{ResponseBody, Upstream, jitter};
use crate::view::record::ViewRecord;
use crate::view::table::{Change, ViewTable};
use crate::view::{View, ViewError};
use crate::wire::frame::decode_event;
use crate::wire::{Event, FrameDecoder, ListPage};
use fetch::{FetchError, ListParameters};
use step::{Action, Outcome, Step};
use yurt_node::link::LinkState;

pub(crate) use step::Start;

/// Without watchers and lists for that long, a reflector ends.
const IDLE_SECONDS: u64 = 900;
/// A collection that cannot be a view is not asked for again by every request for it.
const NO_VIEW_FOR: Duration = Duration::from_secs(600);
/// A refused credential is tried again after about this time: the node's certificate, a token.
const NODE_AGAIN: Duration = Duration::from_secs(60);
const BEARER_AGAIN: Duration = Duration::from_secs(600);
/// The first times after a 403 to the node: just after its start the API server does not know yet which pods the node
/// has, and refuses what they refer to.
const FORBIDDEN_AGAIN: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(15)];
/// And a refusal of the node is believed when it has lasted that long: a link that goes down in those seconds must not
/// cost the node its pods.
const FORBIDDEN_FOR: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 15 });
/// Changes that go into one transaction.
const GROUP: usize = 256;
/// Bytes of watch events that are collected before they are stored.
const BURST: usize = 256 << 10;
/// A resumed watch that is silent for that long after its start has sent what was missed.
const CAUGHT_UP: Duration = Duration::from_millis(250);
/// An opener may shorten a pause, but not below this.
const PATIENCE: Duration = Duration::from_secs(1);

/// One view's reflector.
pub(crate) struct Reflector {
    pub(crate) view: Arc<View>,
    pub(crate) upstream: Upstream,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) credential: watch::Receiver<Credential>,
    /// What is stored of the view cannot be read: its next list replaces everything.
    pub(crate) rebuild: bool,
    /// 403s in a row, and when the first of them came.
    pub(crate) refusals: usize,
    pub(crate) refused_since: Option<Instant>,
}

impl Reflector {
    /// Runs until nobody uses the view.
    pub(crate) async fn run(mut self, start: Start) {
        let (complete, refused) = (self.view.is_complete(), self.view.is_refused());
        let start = if refused { Start::Fresh } else { start };
        let mut step = Step::new(start, complete || refused);
        let mut outcome = Outcome::Started;
        loop {
            if self.view.idle() > IDLE_SECONDS {
                break;
            }
            let action = step.next(outcome, jitter());
            outcome = match action {
                Action::List { at } => self.list(at).await,
                Action::Watch => self.watch().await,
                Action::Pause(pause) => self.pause(pause).await,
                Action::AwaitLink => self.await_link().await,
                Action::AwaitCredential => self.await_credential().await,
                Action::End => break,
            };
            match outcome {
                Outcome::Forbidden => self.mark_refused().await,
                Outcome::Listed | Outcome::Ended => (self.refusals, self.refused_since) = (0, None),
                _ => {}
            }
        }
        self.view.status.send_modify(|status| status.live = false);
        tracing::debug!(view = %self.view.name(), "the reflector ends");
    }

    /// Nothing to do for a while; a credential, the link or an opener may end it early.
    async fn pause(&mut self, pause: Duration) -> Outcome {
        let until = Instant::now() + pause;
        sleep(pause.min(PATIENCE)).await;
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.view.poke.notified() => {}
            _ = self.credential.changed() => {}
            _ = self.link.wait_for(|state| *state == LinkState::Offline) => {}
        }
        Outcome::Rested
    }

    async fn await_link(&mut self) -> Outcome {
        loop {
            tokio::select! {
                state = self.link.wait_for(|state| *state == LinkState::Online) => {
                    return if state.is_ok() { Outcome::Rested } else { Outcome::Closed };
                }
                () = sleep(Duration::from_secs(60)) => if self.view.idle() > IDLE_SECONDS {
                    return Outcome::Closed;
                }
            }
        }
    }

    /// Until there is another credential, or somebody wants to try. The node's is a file that changes unseen, and
    /// permissions may be given later: now and then it tries by itself.
    async fn await_credential(&mut self) -> Outcome {
        sleep(PATIENCE).await;
        let node = matches!(*self.credential.borrow(), Credential::Node);
        let pause = match self.refusals.checked_sub(1).and_then(|index| FORBIDDEN_AGAIN.get(index)) {
            Some(pause) if node => *pause,
            _ if node => NODE_AGAIN,
            _ => BEARER_AGAIN,
        };
        let again = Instant::now() + pause.mul_f64(0.75 + 0.5 * jitter());
        loop {
            tokio::select! {
                () = sleep_until(again) => return Outcome::Rested,
                changed = self.credential.changed() => {
                    return if changed.is_ok() { Outcome::Rested } else { Outcome::Closed };
                }
                () = self.view.poke.notified() => return Outcome::Rested,
                () = sleep(Duration::from_secs(60)) => if self.view.idle() > IDLE_SECONDS {
                    return Outcome::Closed;
                }
            }
        }
    }

    fn offline(&self) -> bool {
        *self.link.borrow() == LinkState::Offline
    }

    /// Records a failure, for openers, and says what kind it is.
    fn failed(&self, error: Option<ViewError>, outcome: Outcome) -> Outcome {
        if let Some(error) = &error {
            tracing::debug!(%error, ?outcome, view = %self.view.name(), "upstream");
        }
        let believed = self.believes_refusal();
        self.view.status.send_modify(|status| {
            status.live = false;
            if outcome == Outcome::Forbidden && believed {
                (status.complete, status.refused) = (false, true);
            }
            if error.is_some() {
                status.attempts += 1;
                let no_view = outcome == Outcome::NotAView;
                status.no_view_until = no_view.then(|| Instant::now() + NO_VIEW_FOR);
                status.failure = error;
            }
        });
        outcome
    }

    /// Whether a 403 now would be the API server's considered word.
    fn believes_refusal(&self) -> bool {
        let node = matches!(*self.credential.borrow(), Credential::Node);
        !node || self.refused_since.is_some_and(|since| since.elapsed() >= FORBIDDEN_FOR)
    }

    /// The mark outlives the process: what the identity may not read is not read to it after a restart either.
    async fn mark_refused(&mut self) {
        let believed = self.believes_refusal();
        self.refusals += 1;
        self.refused_since.get_or_insert_with(Instant::now);
        if !believed {
            return;
        }
        let id = self.view.id;
        let marked = self
            .view
            .store
            .write(Durability::Durable, move |tx| {
                let Some(value) = tx.get(Table::Views, &id.prefix())? else { return Ok(()) };
                let mut record = ViewRecord::decode(value)?;
                if !std::mem::replace(&mut record.refused, true) {
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                Ok(())
            })
            .await;
        if let Err(error) = marked {
            tracing::warn!(%error, view = %self.view.name(), "that the view was refused cannot be stored");
        }
    }

    fn store_failed(&mut self, error: StoreError) -> Outcome {
        tracing::warn!(%error, view = %self.view.name(), "the view cannot be stored");
        let outcome = if matches!(error, StoreError::Damaged(_)) {
            self.rebuild = true;
            Outcome::Unreadable
        } else {
            Outcome::Failed
        };
        self.failed(Some(ViewError::Store(error)), outcome)
    }

    fn answered(&self, error: FetchError) -> Outcome {
        match error {
            FetchError::Unreachable(error) => {
                tracing::debug!(error, view = %self.view.name(), "upstream cannot be reached");
                let outcome = if self.offline() { Outcome::Unreachable } else { Outcome::Broken };
                self.failed(None, outcome)
            }
            FetchError::Status(status) => {
                let outcome = match status.code.as_u16() {
                    401 => Outcome::Refused,
                    403 => Outcome::Forbidden,
                    410 => Outcome::Expired,
                    // Not a collection any more, or never: a CRD that was removed.
                    404 => Outcome::Gone,
                    // Not in this encoding: custom resources have no protobuf.
                    406 | 415 => Outcome::NotAView,
                    _ => Outcome::Failed,
                };
                self.failed(Some(ViewError::Upstream(status)), outcome)
            }
            FetchError::Unreadable(error) => {
                tracing::warn!(%error, view = %self.view.name(), "upstream's answer is no list for a view");
                self.failed(Some(ViewError::NotAView), Outcome::NotAView)
            }
        }
    }

    /// The whole collection, page by page, committed with the last one.
    async fn list(&mut self, at: Option<u64>) -> Outcome {
        let mut parameters = ListParameters { at, continue_token: None };
        let mut first = true;
        loop {
            let credential = self.credential.borrow_and_update().clone();
            let page = match fetch::list(&self.upstream, &credential, &self.view.spec, &parameters).await {
                Ok(page) => page,
                Err(answer) => return self.answered(answer),
            };
            match page.continue_token.clone() {
                Some(token) => {
                    if let Err(error) = self.stage(page, first).await {
                        return self.store_failed(error);
                    }
                    first = false;
                    parameters.continue_token = Some(token);
                }
                None => match self.commit(page, first).await {
                    Ok(record) => {
                        self.rebuild = false;
                        self.view.publish(&record);
                        self.view.status.send_modify(|status| {
                            status.attempts += 1;
                            status.failure = None;
                            status.live = true;
                        });
                        return Outcome::Listed;
                    }
                    Err(error) => return self.store_failed(error),
                },
            }
        }
    }

    /// A record without anything in it, behind everything that watchers may have read.
    fn new_record(&self) -> ViewRecord {
        let mut record = ViewRecord::new(self.view.identity.as_str(), &self.view.spec, crate::clock::now());
        record.sequence = self.view.progress.borrow().sequence;
        record
    }

    async fn stage(&self, page: ListPage, first: bool) -> Result<(), StoreError> {
        let (id, record) = (self.view.id, self.new_record());
        self.view
            .store
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
        self.view
            .store
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
                table.apply_list(&page)?;
                table.save()
            })
            .await
    }

    /// The watch from the view's resourceVersion on, until it ends.
    async fn watch(&mut self) -> Outcome {
        let version = self.view.resource_version();
        let credential = self.credential.borrow_and_update().clone();
        let answer = fetch::watch(&self.upstream, &credential, &self.view.spec, version, jitter()).await;
        let body = match answer {
            Ok(body) => body,
            Err(answer) => return self.answered(answer),
        };
        let started = Instant::now();
        let (outcome, received) = self.follow(body).await;
        match outcome {
            // The API server ends watches when their time is over. One that ends at once is about to fail.
            Outcome::Ended if !received && started.elapsed() < Duration::from_secs(1) => {
                self.failed(None, Outcome::Broken)
            }
            other => other,
        }
    }

    async fn follow(&mut self, mut body: ResponseBody) -> (Outcome, bool) {
        let mut frames = FrameDecoder::new(self.view.spec.encoding());
        let mut received = false;
        let mut caught_up = Some(Instant::now() + CAUGHT_UP);
        let mut look_again = Instant::now() + Duration::from_secs(60);
        // What has already arrived behind a chunk but could not be added to it: the end.
        let mut behind = None;
        loop {
            let chunk = match behind.take() {
                Some(chunk) => chunk,
                None => tokio::select! {
                    frame = body.frame() => frame,
                    () = self.view.damage.notified() => {
                        self.rebuild = true;
                        return (self.failed(None, Outcome::Unreadable), received);
                    }
                    () = sleep_until(caught_up.unwrap_or(look_again)) => {
                        if caught_up.take().is_some() {
                            self.live();
                        } else if self.view.idle() > IDLE_SECONDS {
                            return (Outcome::Closed, received);
                        } else {
                            look_again = Instant::now() + Duration::from_secs(60);
                        }
                        continue;
                    }
                },
            };
            let data = match chunk {
                None if frames.is_clean() => return (Outcome::Ended, received),
                None => {
                    return (
                        self.answered(FetchError::Unreachable("the watch was cut".to_owned())),
                        received,
                    );
                }
                Some(Err(error)) => {
                    return (
                        self.answered(FetchError::Unreachable(crate::upstream::chain(&error))),
                        received,
                    );
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            received |= !data.is_empty();
            if let Some(at) = &mut caught_up {
                *at = Instant::now() + CAUGHT_UP;
            }
            frames.push(&data);
            // A burst is one transaction, however slow the disk: take along what has arrived in the meantime.
            while frames.buffered() < BURST
                && let Some(chunk) = body.frame().now_or_never()
            {
                match chunk {
                    Some(Ok(frame)) => frames.push(&frame.into_data().unwrap_or_default()),
                    end => {
                        behind = Some(end);
                        break;
                    }
                }
            }
            loop {
                match self.take(&mut frames).await {
                    Ok(Taken { more, bookmark, end }) => {
                        if let Some(outcome) = end {
                            return (outcome, received);
                        }
                        if bookmark && caught_up.take().is_some() {
                            self.live();
                        }
                        if !more {
                            break;
                        }
                    }
                    Err(error) => return (self.store_failed(error), received),
                }
            }
        }
    }

    fn live(&self) {
        self.view.status.send_if_modified(|status| {
            let news = !status.live || status.failure.is_some();
            status.live = true;
            status.failure = None;
            if news {
                status.attempts += 1;
            }
            news
        });
    }

    /// Applies the whole frames that are there, at most a group.
    async fn take(&self, frames: &mut FrameDecoder) -> Result<Taken, StoreError> {
        let mut changes = Vec::new();
        let mut version = 0;
        let mut taken = Taken { more: false, bookmark: false, end: None };
        while changes.len() < GROUP {
            let event = frames.next_frame().and_then(|frame: Option<Bytes>| {
                frame.map(|frame| decode_event(self.view.spec.encoding(), &frame)).transpose()
            });
            match event {
                Ok(None) => break,
                Ok(Some(Event::Object { event_type, item, .. })) => changes.push(Change { event_type, item }),
                Ok(Some(Event::Bookmark { resource_version })) => {
                    version = resource_version;
                    taken.bookmark = true;
                }
                Ok(Some(Event::Error(status))) => {
                    taken.end = Some(match status.code {
                        410 => Outcome::Expired,
                        401 => Outcome::Refused,
                        403 => Outcome::Forbidden,
                        _ => Outcome::Failed,
                    });
                    tracing::debug!(?status, view = %self.view.name(), "upstream ends the watch");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, view = %self.view.name(), "a watch event cannot be read");
                    taken.end = Some(Outcome::Unreadable);
                    break;
                }
            }
        }
        taken.more = changes.len() >= GROUP;
        if !changes.is_empty() {
            let id = self.view.id;
            let record = self
                .view
                .store
                .write(Durability::Soon, move |tx| {
                    let mut table = ViewTable::load(tx, id)?;
                    table.apply_events(&changes, version)?;
                    table.save()
                })
                .await?;
            self.view.publish(&record);
        } else if version > 0 {
            self.view.publish_bookmark(version);
        }
        if let Some(outcome) = taken.end {
            self.failed(None, outcome);
        }
        Ok(taken)
    }
}

struct Taken {
    /// Whole frames may be left.
    more: bool,
    bookmark: bool,
    end: Option<Outcome>,
}

/// At most `limit` for an answer.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}
