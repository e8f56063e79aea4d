//! The watch: frames off the wire, a burst a transaction.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until};
use yurt_node::link::LinkState;

use super::{IDLE_SECONDS, Reflector, Refusals};
use crate::clock;
use crate::replica::fetch::{self, FetchError};
use crate::replica::step::Outcome;
use crate::store::{Durability, StoreError, Tx};
use crate::upstream::{ResponseBody, chain, jitter};
use crate::view::table::Change;
use crate::view::{Request, Transition};
use crate::wire::frame::decode_event;
use crate::wire::node::is_node;
use crate::wire::{Event, EventType, FrameDecoder, Item};

/// Changes that go into one transaction.
const GROUP: usize = 256;
/// Bytes of watch events that are collected before they are stored.
const BURST: usize = 256 << 10;
/// A resumed watch that is silent for that long after its start has sent what was missed.
const CAUGHT_UP: Duration = Duration::from_millis(250);
/// After that long, and again and again, a view with a watch of its own looks for one that it may be fed from.
const LOOK_FOR_SOURCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });

impl Reflector {
    /// The watch from the view's resourceVersion on, until it ends.
    pub(super) async fn watch(&mut self) -> Outcome {
        let version = self.view.resource_version();
        let credential = self.credential();
        let answer = fetch::watch(&self.upstream, &credential, &self.view.spec, version, jitter()).await;
        let body = match answer {
            Ok(body) => body,
            Err(answer) => return self.answered(Request::Watch, answer).await,
        };
        self.credentials.accepted(&credential);
        let started = Instant::now();
        let (outcome, received) = self.follow(body).await;
        match outcome {
            // The API server ends watches when their time is over. One that ends at once is about to fail.
            Outcome::Ended if !received && started.elapsed() < Duration::from_secs(1) => {
                self.failed(Request::Watch, None, Outcome::Broken).await
            }
            other => other,
        }
    }

    /// Follows a watch. One that is open when the link goes may go on when it is back; what is known without it is as of
    /// now until then.
    async fn follow(&mut self, mut body: ResponseBody) -> (Outcome, bool) {
        let mut frames = FrameDecoder::new(self.view.spec.encoding());
        let mut received = false;
        let mut caught_up = Some(Instant::now() + CAUGHT_UP);
        let mut look_again = Instant::now() + Duration::from_secs(60);
        let mut heard = Instant::now();
        let mut proven = body.proven();
        // The link went, and nothing shows that the watch has outlived that.
        let mut doubtful = false;
        // What has already arrived behind a chunk but could not be added to it: the end.
        let mut behind = None;
        let mut joining = None;
        let mut look_for_source = Instant::now() + LOOK_FOR_SOURCE;
        loop {
            if !doubtful && self.joined(&mut joining) {
                return (Outcome::Rested, received);
            }
            let chunk = match behind.take() {
                Some(chunk) => chunk,
                None => tokio::select! {
                    frame = body.frame() => frame,
                    () = self.view.damage.notified() => {
                        self.rebuild = true;
                        return (self.failed(Request::Watch, None, Outcome::Unreadable).await, received);
                    }
                    () = until_lost(&mut self.link), if !doubtful => {
                        doubtful = true;
                        proven.mark_unchanged();
                        caught_up = None;
                        self.failed(Request::Watch, None, Outcome::Unreachable).await;
                        continue;
                    }
                    // All that was sent meanwhile is on its way here.
                    Ok(()) = proven.changed(), if doubtful => {
                        doubtful = false;
                        heard = Instant::now();
                        caught_up = Some(heard + CAUGHT_UP);
                        continue;
                    }
                    () = sleep_until(heard + self.silence), if !self.no_bookmarks && !doubtful => {
                        tracing::debug!(view = %self.view.name(), "the watch is silent");
                        self.no_bookmarks = true;
                        return (Outcome::Silent, received);
                    }
                    () = sleep_until(look_for_source), if joining.is_none() && !doubtful => {
                        look_for_source = Instant::now() + LOOK_FOR_SOURCE;
                        if caught_up.is_none() {
                            joining = self.join().await;
                        }
                        continue;
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
                    let cut = FetchError::Unreachable("the watch was cut".to_owned());
                    return (self.broke(cut, doubtful).await, received);
                }
                Some(Err(error)) => {
                    let broken = FetchError::Unreachable(chain(&error));
                    return (self.broke(broken, doubtful).await, received);
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            received |= !data.is_empty();
            heard = Instant::now();
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
                        self.no_bookmarks &= !bookmark;
                        if bookmark && !doubtful && caught_up.take().is_some() {
                            self.live();
                        }
                        if !more {
                            break;
                        }
                    }
                    Err(error) => return (self.store_failed(Request::Watch, error).await, received),
                }
            }
        }
    }

    /// The watch broke. If that was the link's doing it is resumed as soon as there is one.
    async fn broke(&mut self, error: FetchError, with_the_link: bool) -> Outcome {
        match self.answered(Request::Watch, error).await {
            Outcome::Broken if with_the_link => Outcome::Unreachable,
            outcome => outcome,
        }
    }

    pub(super) fn live(&mut self) {
        self.refusals = Refusals::default();
        self.view.sync.send_if_modified(|sync| {
            let news = !sync.state.is_following() || sync.failure.is_some();
            sync.state = sync.state.after(Transition::CaughtUp, clock::now());
            sync.failure = None;
            sync.no_view_until = None;
            if news {
                sync.attempts += 1;
            }
            news
        });
    }

    /// The node's own Node, if that is what has changed and it is seen as another.
    fn own_node_in(&self, event_type: EventType, item: &Item) -> Option<Bytes> {
        let spec = &self.view.spec;
        let (is_kubelets, gone) = (self.credentials.is_node(), event_type == EventType::Deleted);
        let is_node = is_node(spec.resource());
        is_node.then(|| self.own_node.seen(spec.encoding(), &item.body, is_kubelets, gone)).flatten()
    }

    /// Applies the whole frames that are there, at most a group.
    async fn take(&mut self, frames: &mut FrameDecoder) -> Result<Taken, StoreError> {
        let mut changes = Vec::new();
        let mut version = 0;
        let mut taken = Taken { more: false, bookmark: false, end: None };
        while changes.len() < GROUP {
            let event = frames.next_frame().and_then(|frame: Option<Bytes>| {
                frame.map(|frame| decode_event(self.view.spec.encoding(), &frame)).transpose()
            });
            match event {
                Ok(None) => break,
                Ok(Some(Event::Object { event_type, mut item, .. })) => {
                    if let Some(seen) = self.own_node_in(event_type, &item) {
                        item.body = seen;
                    }
                    changes.push(Change { event_type, item });
                }
                Ok(Some(Event::Bookmark { resource_version })) => {
                    version = resource_version;
                    taken.bookmark = true;
                }
                Ok(Some(Event::Error(status))) => {
                    taken.end = Some(match status.code {
                        410 => Outcome::Expired,
                        401 if self.has_another() => Outcome::Rested,
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
        let last = changes.last().map_or(0, |change| change.item.meta.resource_version);
        let changes: Arc<[Change]> = changes.into();
        if !changes.is_empty() {
            let told_on = Arc::clone(&changes);
            let (view, overlay) = (Arc::clone(&self.view), self.overlay.clone());
            let told = Arc::clone(&self.view);
            // kubelet starts and stops pods by its events; everybody else's may wait for company.
            let node = self.credentials.is_node();
            self.view.make_way(changes.iter().map(|change| change.item.body.len()).sum()).await;
            let durability = if node { Durability::Soon } else { Durability::Relaxed };
            let job = move |tx: &mut Tx<'_>| {
                let mut table = view.table(tx)?.showing(overlay.book());
                table.apply_events(&changes, version)?;
                table.save()
            };
            self.store.write_then(durability, job, move |written| told.publish(written)).await?;
            self.view.tell_taps(&told_on, version.max(last));
        } else if version > 0 {
            self.view.publish_bookmark(version);
            self.view.tell_taps(&changes, version);
        }
        if let Some(outcome) = taken.end.filter(|end| *end != Outcome::Rested) {
            self.failed(Request::Watch, None, outcome).await;
        }
        Ok(taken)
    }
}

/// Until the link is lost; never when nobody looks after it any more.
pub(super) async fn until_lost(link: &mut tokio::sync::watch::Receiver<LinkState>) {
    if link.wait_for(|state| *state == LinkState::Offline).await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Taken {
    /// Whole frames may be left.
    more: bool,
    bookmark: bool,
    end: Option<Outcome>,
}
