//! One view's reflector: the loop around [`step`](super::step), its pauses, and what becomes of failures.

pub(super) mod derived;
mod list;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Semaphore, watch as channel};
use tokio::time::{Instant, sleep, sleep_until};
use yurt_node::link::LinkState;

use super::Start;
use super::credentials::Live;
use super::fetch::FetchError;
use super::step::{Action, Outcome, Step};
use crate::caller::Credential;
use crate::clock;
use crate::own_node::OwnNode;
use crate::store::{Durability, Store, StoreError, Table};
use crate::upstream::{Upstream, jitter};
use crate::view::overlay::Overlay;
use crate::view::record::ViewRecord;
use crate::view::{Failed, Request, Transition, View, ViewError, Why};
use derived::Feeding;

/// Without watchers and lists for that long, a reflector ends.
const IDLE_SECONDS: u64 = 900;
/// A collection that cannot be a view is not asked for again by every request for it.
const NO_VIEW_FOR: Duration = Duration::from_secs(600);
/// A refused credential is tried again after about this time: the node's certificate, a token.
const NODE_AGAIN: Duration = Duration::from_secs(60);
const BEARER_AGAIN: Duration = Duration::from_secs(600);
/// The first times after a 403: just after its start the API server knows neither all roles and bindings nor which
/// pods a node has, and refuses what it allows a little later (kubernetes#101422, #121635).
const FORBIDDEN_AGAIN: [Duration; 4] = if cfg!(test) {
    [Duration::from_millis(500); 4]
} else {
    [Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(20), Duration::from_secs(40)]
};
/// And a refusal is believed when it has lasted that long: a link that goes down in that time must not cost the node its
/// pods, or its kube-proxy.
const FORBIDDEN_FOR: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// An opener may shorten a pause, but not below this.
const PATIENCE: Duration = Duration::from_secs(1);

/// One view's reflector.
pub(super) struct Reflector {
    pub(super) view: Arc<View>,
    pub(super) store: Store,
    /// What EndpointSlices show of the node's own pods.
    pub(super) overlay: Overlay,
    /// As which Node the node's own one is seen.
    pub(super) own_node: OwnNode,
    pub(super) upstream: Upstream,
    pub(super) link: channel::Receiver<LinkState>,
    pub(super) credentials: Live,
    /// The one that the last request went with.
    pub(super) used: Credential,
    /// Large pages that may be in memory at a time.
    pub(super) large: Arc<Semaphore>,
    /// What is stored of the view cannot be read: its next list replaces everything.
    pub(super) rebuild: bool,
    pub(super) refusals: Refusals,
    /// A watch on which nothing has come for so long, no bookmark either, is not believed. The API server sends one a
    /// minute. On a watch from a resourceVersion that etcd has not reached it sends nothing at all, until it has: after
    /// a backup without the latest changes was restored.
    pub(super) silence: Duration,
    /// A list has shown that nothing had happened, and no bookmark has come since: there are none.
    pub(super) no_bookmarks: bool,
    /// What it may be fed from, instead of upstream.
    pub(super) feeding: Feeding,
}

/// The 403s in a row. Any other answer, and an answer that does not come, ends the row.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: usize,
    since: Option<Instant>,
    /// Watches that were refused although a list just before was not.
    watches: usize,
    listed: bool,
}

impl Refusals {
    /// Takes one more; `true` when it is the API server's considered word.
    fn refused(&mut self, now: Instant) -> bool {
        self.count += 1;
        let since = *self.since.get_or_insert(now);
        self.count > 1 && now - since >= FORBIDDEN_FOR
    }

    /// How long to wait before the next try; nothing if there has been time enough.
    fn pause(&self) -> Option<Duration> {
        self.count.checked_sub(1).and_then(|index| FORBIDDEN_AGAIN.get(index)).copied()
    }

    /// A list has succeeded.
    fn listed(&mut self) {
        *self = Self { listed: true, watches: self.watches, ..Self::default() };
    }

    /// A watch was refused; `true` when the identity may list and not watch: twice in a row a list was answered in
    /// between.
    fn watch_refused(&mut self) -> bool {
        self.watches += usize::from(std::mem::take(&mut self.listed));
        self.watches > 1
    }
}

impl Reflector {
    /// Runs until nobody uses the view.
    pub(super) async fn run(mut self, start: Start) {
        let start = if self.view.is_refused() { Start::Fresh } else { start };
        let mut step = Step::new(start, self.view.is_stored());
        let mut outcome = Outcome::Started;
        loop {
            if self.view.idle() > IDLE_SECONDS {
                break;
            }
            let action = step.next(outcome, jitter());
            outcome = match action {
                Action::List { at } => self.list_or_copy(at).await,
                Action::Watch => self.watch_or_follow().await,
                Action::Pause(pause) => self.pause(pause).await,
                Action::AwaitLink => self.await_link().await,
                Action::AwaitCredential => self.await_credential().await,
                Action::End => break,
            };
            match outcome {
                Outcome::Forbidden | Outcome::Started | Outcome::Rested | Outcome::Closed => {}
                // A copy says nothing of what the API server lets anybody list.
                Outcome::Listed if self.is_fed() => {}
                Outcome::Listed => self.refusals.listed(),
                _ => self.refusals = Refusals::default(),
            }
        }
        self.view.set_source(None);
        // Nobody follows from now on, not only until the link is back; and another process has to know.
        if !self.offline() && self.view.turn(Transition::Lost(Why::Unfollowed)).is_following() {
            self.keep_state(Durability::Soon).await;
        }
        tracing::debug!(view = %self.view.name(), "the reflector ends");
    }

    /// Nothing to do for a while; a credential, the link or an opener may end it early.
    async fn pause(&mut self, pause: Duration) -> Outcome {
        let until = Instant::now() + pause;
        sleep(pause.min(PATIENCE)).await;
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.view.poke.notified() => {}
            () = self.credentials.changed() => {}
            _ = self.link.wait_for(|state| *state == LinkState::Offline) => {}
        }
        Outcome::Rested
    }

    async fn await_link(&mut self) -> Outcome {
        loop {
            tokio::select! {
                state = self.link.wait_for(|state| *state == LinkState::Online) => {
                    if state.is_err() {
                        return Outcome::Closed;
                    }
                    break;
                }
                () = sleep(Duration::from_secs(60)) => if self.view.idle() > IDLE_SECONDS {
                    return Outcome::Closed;
                }
            }
        }
        // Whoever asked for it without a link waits no more.
        self.view.poke.notified().now_or_never();
        tokio::select! {
            () = sleep(self.turn()) => {}
            () = self.view.poke.notified() => {}
        }
        Outcome::Rested
    }

    /// How long after the link is back the watch is resumed: not all of a node's at the same moment, kubelet's first.
    fn turn(&self) -> Duration {
        let node = self.credentials.is_node();
        let most = if node { Duration::from_millis(250) } else { Duration::from_secs(1) };
        most.mul_f64(jitter())
    }

    /// Until there is another credential, or somebody wants to try. The node's is a file that changes unseen, and
    /// permissions may be given later: now and then it tries by itself.
    async fn await_credential(&mut self) -> Outcome {
        sleep(PATIENCE).await;
        let node = self.credentials.is_node();
        let pause = self.refusals.pause().unwrap_or(if node { NODE_AGAIN } else { BEARER_AGAIN });
        let again = Instant::now() + pause.mul_f64(0.75 + 0.5 * jitter());
        loop {
            tokio::select! {
                () = sleep_until(again) => return Outcome::Rested,
                () = self.credentials.changed() => return Outcome::Rested,
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
    async fn failed(&mut self, request: Request, error: Option<ViewError>, outcome: Outcome) -> Outcome {
        if let Some(error) = &error {
            tracing::debug!(%error, ?outcome, view = %self.view.name(), "upstream");
        }
        let online = *self.link.borrow() == LinkState::Online;
        let believed = outcome == Outcome::Forbidden && self.refusals.refused(Instant::now());
        if outcome == Outcome::Forbidden {
            // It is newer than what was said when it was fed.
            self.unconfirm().await;
        }
        let transition = match outcome {
            Outcome::Forbidden if believed => Transition::Refused,
            Outcome::Forbidden => Transition::Lost(Why::Forbidden),
            Outcome::Refused => Transition::Lost(Why::Credential),
            Outcome::NotAView => Transition::Lost(Why::CannotBeWatched),
            // Without the API server nothing else becomes known, either. A connection that breaks again although the
            // link is there is another thing.
            Outcome::Broken if online && !self.view.is_followed() => Transition::Lost(Why::Failed),
            Outcome::Broken | Outcome::Unreachable => Transition::Lost(Why::Disconnected),
            _ if matches!(error, Some(ViewError::Store(_))) => Transition::Lost(Why::Store),
            _ => Transition::Lost(Why::Failed),
        };
        self.view.sync.send_modify(|sync| {
            sync.state = sync.state.after(transition, clock::now());
            if let Some(error) = error {
                sync.attempts += 1;
                // Only a watch shows that it was wrong.
                if outcome == Outcome::NotAView {
                    sync.no_view_until = Some(Instant::now() + NO_VIEW_FOR);
                }
                sync.failure = Some(Failed { request, error });
            }
        });
        if believed {
            // The mark outlives the process: what the identity may not read is not read to it after a restart either.
            self.keep_state(Durability::Durable).await;
        }
        outcome
    }

    /// Takes the credential that the next request goes with.
    fn credential(&mut self) -> Credential {
        self.used = self.credentials.best();
        self.used.clone()
    }

    /// The credential was refused. Whether there is another one, which is tried at once: there are so many that this
    /// comes to an end.
    fn has_another(&self) -> bool {
        let another = self.credentials.refused(&self.used);
        if another {
            tracing::debug!(view = %self.view.name(), "a credential is refused; another one is tried");
        }
        another
    }

    /// Stores what the view is worth.
    async fn keep_state(&self, durability: Durability) {
        let (id, state) = (self.view.id, self.view.state());
        let kept = self
            .store
            .write(durability, move |tx| {
                let Some(value) = tx.get(Table::Views, &id.prefix())? else { return Ok(()) };
                let mut record = ViewRecord::decode(value)?;
                if state.differs_from(record.state) {
                    record.state = state;
                    tx.put(Table::Views, &id.prefix(), &record.encode()?)?;
                }
                Ok(())
            })
            .await;
        if let Err(error) = kept {
            tracing::warn!(%error, view = %self.view.name(), "what the view is worth could not be stored");
        }
    }

    async fn store_failed(&mut self, request: Request, error: StoreError) -> Outcome {
        tracing::warn!(%error, view = %self.view.name(), "the view cannot be stored");
        if matches!(error, StoreError::Damaged(_)) {
            self.rebuild = true;
            return self.failed(request, None, Outcome::Unreadable).await;
        }
        self.failed(request, Some(ViewError::Store(error)), Outcome::Failed).await
    }

    async fn answered(&mut self, request: Request, error: FetchError) -> Outcome {
        match error {
            FetchError::Unreachable(error) => {
                tracing::debug!(error, view = %self.view.name(), "upstream cannot be reached");
                let outcome = if self.offline() { Outcome::Unreachable } else { Outcome::Broken };
                self.failed(request, None, outcome).await
            }
            // Views are the identity's, and not this credential's.
            FetchError::Refused(response) if response.code == 401 && self.has_another() => Outcome::Rested,
            FetchError::Refused(response) => {
                let outcome = match (response.code.as_u16(), request) {
                    (401, _) => Outcome::Refused,
                    (403, Request::Watch) if self.refusals.watch_refused() => Outcome::NotAView,
                    (403, _) => Outcome::Forbidden,
                    (410, _) => Outcome::Expired,
                    // Not a collection any more, or never: a CRD that was removed.
                    (404, _) => Outcome::Gone,
                    // Not in this encoding: custom resources have no protobuf. Or not at all: not every API server
                    // that lists something can watch it.
                    (406 | 415 | 405, _) => Outcome::NotAView,
                    _ => Outcome::Failed,
                };
                self.failed(request, Some(ViewError::Upstream(response)), outcome).await
            }
            FetchError::TooBig => {
                tracing::warn!(view = %self.view.name(), "an object is too large for a view");
                self.failed(request, Some(ViewError::NotAView), Outcome::NotAView).await
            }
            FetchError::Unreadable(error) => {
                tracing::warn!(%error, view = %self.view.name(), "upstream's answer is no list for a view");
                self.failed(request, Some(ViewError::NotAView), Outcome::NotAView).await
            }
        }
    }
}
