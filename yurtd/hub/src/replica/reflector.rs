//! One view's reflector: the loop around [`step`](super::step), its pauses, and what becomes of failures.

mod list;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch as channel};
use tokio::time::{Instant, sleep, sleep_until};
use yurt_node::link::LinkState;

use super::Start;
use super::fetch::FetchError;
use super::step::{Action, Outcome, Step};
use crate::caller::Credential;
use crate::store::{Durability, Store, StoreError, Table};
use crate::upstream::{Upstream, jitter};
use crate::view::record::ViewRecord;
use crate::view::{View, ViewError};

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
/// An opener may shorten a pause, but not below this.
const PATIENCE: Duration = Duration::from_secs(1);

/// One view's reflector.
pub(super) struct Reflector {
    pub(super) view: Arc<View>,
    pub(super) store: Store,
    pub(super) upstream: Upstream,
    pub(super) link: channel::Receiver<LinkState>,
    pub(super) credential: channel::Receiver<Credential>,
    /// Large pages that may be in memory at a time.
    pub(super) large: Arc<Semaphore>,
    /// What is stored of the view cannot be read: its next list replaces everything.
    pub(super) rebuild: bool,
    /// 403s in a row, and when the first of them came.
    pub(super) refusals: usize,
    pub(super) refused_since: Option<Instant>,
}

impl Reflector {
    /// Runs until nobody uses the view.
    pub(super) async fn run(mut self, start: Start) {
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
        self.view.sync.send_modify(|state| state.live = false);
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
        self.view.sync.send_modify(|state| {
            state.live = false;
            if outcome == Outcome::Forbidden && believed {
                (state.complete, state.refused) = (false, true);
            }
            if error.is_some() {
                state.attempts += 1;
                let no_view = outcome == Outcome::NotAView;
                state.no_view_until = no_view.then(|| Instant::now() + NO_VIEW_FOR);
                state.failure = error;
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
            FetchError::Refused(response) => {
                let outcome = match response.code.as_u16() {
                    401 => Outcome::Refused,
                    403 => Outcome::Forbidden,
                    410 => Outcome::Expired,
                    // Not a collection any more, or never: a CRD that was removed.
                    404 => Outcome::Gone,
                    // Not in this encoding: custom resources have no protobuf.
                    406 | 415 => Outcome::NotAView,
                    _ => Outcome::Failed,
                };
                self.failed(Some(ViewError::Upstream(response)), outcome)
            }
            FetchError::TooBig => {
                tracing::warn!(view = %self.view.name(), "an object is too large for a view");
                self.failed(Some(ViewError::NotAView), Outcome::NotAView)
            }
            FetchError::Unreadable(error) => {
                tracing::warn!(%error, view = %self.view.name(), "upstream's answer is no list for a view");
                self.failed(Some(ViewError::NotAView), Outcome::NotAView)
            }
        }
    }
}
