//! A view that is fed from another one ([`sources`](crate::replica::sources)): the state is copied here, and what
//! upstream tells the source is told to it, too. The API server has said that its identity may read it, and is asked
//! again.
//!
//! ```text
//!            source is followed, may be read               burst by burst
//!  list ──────────────────────▶ copy of the state ─────────────────────▶ follow
//!                                                                        │  ▲ as soon as it has come to where
//!  own watch, from the resourceVersion it has ◀────────── source ends ────┘  │ the source's events begin
//!      └─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Whatever goes wrong leads to the view's own watch, from its own resourceVersion: nothing depends on the source but
//! the uplink. The futures are boxed: most reflectors are never fed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use yurt_node::link::LinkState;

use super::watch::until_lost;
use super::{IDLE_SECONDS, Reflector};
use crate::replica::fetch::FetchError;
use crate::replica::sources::may_become_followed;
use crate::replica::step::Outcome;
use crate::replica::views::Inner;
use crate::replica::{Views, rights};
use crate::store::{Durability, StoreError, Tx};
use crate::upstream::jitter;
use crate::view::confirmation::LONGEST;
use crate::view::selector::Selector;
use crate::view::table::{Change, Written};
use crate::view::tap::{Tap, Told};
use crate::view::{Request, State, Sync, Transition, View, Why};

/// How long a source may take until it has its first list, and until it has caught up.
/// Shorter than whoever opens the view waits.
const FIRST_LIST_WITHIN: Duration = Duration::from_secs(20);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);
/// A view goes its own way for so long after the API server has not confirmed that it may be read, and after its source
/// could not be copied.
const ALONE_FOR: Duration = Duration::from_secs(600);

/// And after its source had no state to copy.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

const LOST: &str = "it cannot be followed event by event";
const UNCONFIRMED: &str = "the right to read it is not confirmed";

/// What a reflector knows of the views that its own may be fed from.
pub(in crate::replica) struct Feeding {
    views: Weak<Inner>,
    /// Nothing if its selectors cannot be evaluated here, or nobody shares its resource.
    selector: Option<Selector>,
    attached: Option<Attached>,
    /// Nothing is to be fed from before that.
    alone_until: Option<Instant>,
}

/// The source, and everything that upstream has told it since its state was copied.
pub(in crate::replica) struct Attached {
    source: Arc<View>,
    tap: Tap,
    sync: watch::Receiver<Sync>,
    /// What was told up to there is in the copy.
    from: u64,
    /// When the right to read it is asked for again; nothing if it is that of the source.
    asks_at: Option<Instant>,
}

impl Feeding {
    pub(in crate::replica) fn new(views: Weak<Inner>, selector: Option<Selector>) -> Self {
        Self { views, selector, attached: None, alone_until: None }
    }

    fn alone_for(&mut self, time: Duration) {
        self.alone_until = Some(Instant::now() + time);
    }

    /// Nothing when they are gone.
    pub(super) fn views(&self) -> Option<Views> {
        self.views.upgrade().map(|inner| Views { inner })
    }
}

impl Reflector {
    /// The collection, from a source if there is one.
    pub(super) async fn list_or_copy(&mut self, at: Option<u64>) -> Outcome {
        // Whoever watches from a version misses nothing if the list is of that version.
        if at.is_none()
            && let Some(outcome) = Box::pin(self.copy()).await
        {
            return outcome;
        }
        self.view.set_source(None);
        self.list(at).await
    }

    /// What follows the view's resourceVersion, from a source if there is one.
    pub(super) async fn watch_or_follow(&mut self) -> Outcome {
        if let Some(attached) = self.feeding.attached.take() {
            self.view.set_source(Some(&attached.source));
            let outcome = Box::pin(self.follow_source(attached)).await;
            self.view.set_source(None);
            return outcome;
        }
        // A difference has not every event: who watches has them from upstream, until the view can [join](Self::join).
        if !self.view.is_watched()
            && !self.would_ask()
            && let Some(outcome) = Box::pin(self.copy()).await
        {
            return outcome;
        }
        self.view.set_source(None);
        self.watch().await
    }

    /// Whether the list was a copy.
    pub(super) fn is_fed(&self) -> bool {
        self.feeding.attached.is_some()
    }

    /// A source to follow as soon as the view's own watch has come to where its tap begins ([`Self::joined`]).
    pub(super) async fn join(&mut self) -> Option<Attached> {
        // Nothing to box for those that are never fed.
        self.feeding.selector.as_ref()?;
        Box::pin(self.attach(false)).await
    }

    /// Whether the view has come so far: then its own watch may end, and the source is followed.
    pub(super) fn joined(&mut self, joining: &mut Option<Attached>) -> bool {
        if joining.as_ref().is_some_and(|attached| attached.tap.is_lost()) {
            *joining = None;
        }
        let reached = self.view.resource_version();
        let joined = joining.take_if(|attached| attached.from <= reached);
        let Some(joined) = joined else { return false };
        tracing::debug!(view = %self.view.name(), source = %joined.source.name(), "the view joins a source");
        self.feeding.attached = Some(Attached { from: reached, ..joined });
        true
    }

    /// The state of a source, as a list of its own would have brought it; nothing if there is none to be had.
    async fn copy(&mut self) -> Option<Outcome> {
        let mut attached = self.attach(true).await?;
        if !self.credentials.is_node() && !self.store.has_room_for_others() {
            return None;
        }
        let selector = self.feeding.selector.clone()?;
        // Not all at the same time: pages are in memory.
        let _place = Arc::clone(&self.large).acquire_owned().await.ok()?;
        if attached.tap.is_lost() {
            return None;
        }
        let mut pages = attached.source.pages(selector);
        let mut taking = super::list::Taking::default();
        loop {
            let page = match pages.recv().await? {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, view = %self.view.name(), "the state cannot be copied; it is listed");
                    // One that starts over has its next list soon.
                    let damaged = matches!(error, StoreError::Damaged(_));
                    self.feeding.alone_for(if damaged { ALONE_FOR } else { AGAIN_AFTER });
                    return None;
                }
            };
            // What was told meanwhile is in the copy, and must not be done to it once more.
            attached.from = attached.from.max(page.resource_version);
            let bytes = page.items.iter().map(|item| item.body.len()).sum();
            match self.take_page(page, bytes, &mut taking).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(outcome) => return Some(outcome),
            }
        }
        // It says nothing of whether upstream's bookmarks come.
        self.no_bookmarks = false;
        tracing::debug!(view = %self.view.name(), source = %attached.source.name(), "the view is a copy");
        self.feeding.attached = Some(attached);
        Some(Outcome::Listed)
    }

    /// A source that has come as far as the view, and that it may be fed from. One that is not followed yet is waited
    /// for if it does not have to be one that is.
    async fn attach(&mut self, waits: bool) -> Option<Attached> {
        self.feeding.selector.as_ref()?;
        if self.feeding.alone_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let source = {
            let views = self.feeding.views()?;
            let permit = views.inner.followers.permit_of(&self.view.identity);
            let widen = permit.as_ref().filter(|_| waits && !self.view.is_stored());
            views.source_of(&self.view, widen)?
        };
        let mut sync = source.sync.subscribe();
        if waits {
            self.await_source(&source, &mut sync).await?;
        } else if !source.is_followed() {
            return None;
        }
        if source.identity != self.view.identity && !self.may_read().await {
            return None;
        }
        // Everything that is told from here on comes by the tap; what was told before is in the state.
        let tap = source.tap();
        let from = source.resource_version();
        // One that is behind would take the view back.
        // One that is fed by now tells nothing itself.
        let usable = sync.borrow_and_update().state.is_following()
            && source.source().is_none()
            && from >= self.view.resource_version();
        let asks_at = self.asks_at(&source);
        usable.then(|| Attached { source, tap, sync, from, asks_at })
    }

    /// Waits until the source is followed; nothing if that will not be soon.
    async fn await_source(&mut self, source: &Arc<View>, sync: &mut watch::Receiver<Sync>) -> Option<()> {
        // What the view has and resumes costs less than any list.
        if self.view.is_stored() && !source.is_stored() {
            return None;
        }
        let within = if source.is_stored() { CATCH_UP_WITHIN } else { FIRST_LIST_WITHIN };
        let deadline = Instant::now() + within;
        let ended = self.feeding.views()?.inner.followers.end_of(source.id);
        loop {
            if sync.borrow_and_update().state.is_following() {
                return Some(());
            }
            if !may_become_followed(source) || *self.link.borrow() == LinkState::Offline {
                return None;
            }
            let ended = ended.as_ref()?;
            tokio::select! {
                changed = sync.changed() => changed.ok()?,
                () = until_lost(&mut self.link) => return None,
                () = sleep_until(deadline) => return None,
                // Nobody will follow it.
                () = ended.cancelled() => return None,
            }
        }
    }

    /// Whether the API server would have to be asked before the view can be fed. That costs more than its own watch from
    /// where it is, which joins a source later if the link lasts.
    fn would_ask(&self) -> bool {
        let Some(views) = self.feeding.views().filter(|_| self.feeding.selector.is_some()) else {
            return false;
        };
        let source = views.source_of(&self.view, None);
        source.is_some_and(|source| source.identity != self.view.identity)
            && views.confirmed_for(&self.view).is_none()
    }

    /// Whether the view's identity may list and watch it, by the API server's word.
    async fn may_read(&mut self) -> bool {
        let Some(views) = self.feeding.views() else { return false };
        if views.confirmed_for(&self.view).is_some() {
            return true;
        }
        loop {
            // What goes wrong meanwhile may be later than the word.
            let losses = views.inner.link.losses();
            let credential = self.credential();
            match rights::may_read(&self.upstream, &credential, &self.view.spec).await {
                Ok(true) => {
                    self.credentials.accepted(&credential);
                    // As the API server does when a watch ends.
                    let lasts = LONGEST.mul_f64(0.5 + 0.5 * jitter());
                    views.confirm(&self.view, lasts, losses).await;
                    return true;
                }
                // The API server is to say so itself.
                Ok(false) => {
                    views.unconfirm(&self.view).await;
                    self.feeding.alone_for(ALONE_FOR);
                }
                Err(FetchError::Refused(response)) if response.code == 401 && self.has_another() => continue,
                Err(FetchError::Unreachable(error)) => {
                    tracing::debug!(error, view = %self.view.name(), "whether it may be read is not known");
                }
                Err(error) => {
                    tracing::debug!(?error, view = %self.view.name(), "whether it may be read cannot be asked");
                    self.feeding.alone_for(ALONE_FOR);
                }
            }
            return false;
        }
    }

    /// Follows the source until that ends, or the view is not to be fed from it any more.
    async fn follow_source(&mut self, mut attached: Attached) -> Outcome {
        // Since when the source is not followed.
        let mut lost_at = None;
        let mut look_again = Instant::now() + Duration::from_secs(60);
        attached.tap.follow();
        self.live();
        if let Some(views) = self.feeding.views() {
            // A new view has its record since it is a copy.
            views.keep_confirmation(&self.view).await;
        }
        loop {
            tokio::select! {
                biased;
                told = attached.tap.next() => {
                    let Some(told) = told else { return self.leave(&attached, LOST) };
                    // The link is back, and with it the question.
                    if lost_at.is_some() && !self.is_confirmed(&mut attached).await {
                        return self.leave(&attached, UNCONFIRMED);
                    }
                    if let Err(outcome) = self.take_told(&attached, told).await {
                        return outcome;
                    }
                    // It is catching up.
                    if let Some(at) = &mut lost_at {
                        *at = Instant::now();
                    }
                }
                // It has all of its time from when there is a link.
                Ok(()) = self.link.changed(), if lost_at.is_some() => lost_at = Some(Instant::now()),
                () = self.view.damage.notified() => {
                    self.rebuild = true;
                    return self.failed(Request::Watch, None, Outcome::Unreadable).await;
                }
                changed = attached.sync.changed() => {
                    let state = attached.sync.borrow_and_update().state;
                    match state {
                        State::Following { .. } if changed.is_ok() => {
                            if !self.is_confirmed(&mut attached).await {
                                return self.leave(&attached, UNCONFIRMED);
                            }
                            // What it was told before.
                            while let Some(told) = attached.tap.next_now() {
                                if let Err(outcome) = self.take_told(&attached, told).await {
                                    return outcome;
                                }
                            }
                            if lost_at.take().is_some() {
                                self.live();
                            }
                        }
                        // Its watch goes on when it can, and everything that was missed is told.
                        State::Behind { why: why @ (Why::Disconnected | Why::Unfollowed | Why::Failed), .. }
                            if changed.is_ok() && may_become_followed(&attached.source) =>
                        {
                            self.view.turn(Transition::Lost(why));
                            self.unconfirm().await;
                            lost_at.get_or_insert_with(Instant::now);
                        }
                        _ => return self.leave(&attached, "it is not followed any more"),
                    }
                }
                () = sleep_until(lost_at.unwrap_or(look_again) + CATCH_UP_WITHIN), if lost_at.is_some() => {
                    if *self.link.borrow() == LinkState::Online {
                        return self.leave(&attached, "it does not catch up");
                    }
                    lost_at = Some(Instant::now());
                }
                () = sleep_until(attached.asks_at.unwrap_or(look_again)),
                    if attached.asks_at.is_some_and(|at| at < look_again) && lost_at.is_none() =>
                {
                    if !self.is_confirmed(&mut attached).await {
                        return self.leave(&attached, UNCONFIRMED);
                    }
                }
                () = sleep_until(look_again) => {
                    if self.view.idle() > IDLE_SECONDS {
                        return Outcome::Closed;
                    }
                    look_again = Instant::now() + Duration::from_secs(60);
                }
            }
        }
    }

    /// Whether the view may be fed: the source's own right is that of its identity to a part of it, too.
    async fn is_confirmed(&mut self, attached: &mut Attached) -> bool {
        let confirmed = attached.source.identity == self.view.identity || self.may_read().await;
        attached.asks_at = self.asks_at(&attached.source);
        confirmed
    }

    /// When the API server is asked again whether the view may be fed from this one.
    fn asks_at(&self, source: &View) -> Option<Instant> {
        let views = self.feeding.views().filter(|_| source.identity != self.view.identity)?;
        // What has ended the word meanwhile is about to be told.
        Some(Instant::now() + views.confirmed_for(&self.view).unwrap_or(CATCH_UP_WITHIN))
    }

    /// Nothing says any more that the view may be read.
    pub(super) async fn unconfirm(&self) {
        if let Some(views) = self.feeding.views() {
            views.unconfirm(&self.view).await;
        }
    }

    /// The view goes on from where it is.
    fn leave(&mut self, attached: &Attached, why: &str) -> Outcome {
        tracing::debug!(why, view = %self.view.name(), source = %attached.source.name(), "the view leaves its source");
        let lost = if self.offline() { Why::Disconnected } else { Why::Failed };
        self.view.turn(Transition::Lost(lost));
        Outcome::Rested
    }

    /// Applies what concerns the view.
    async fn take_told(&mut self, attached: &Attached, told: Told) -> Result<(), Outcome> {
        match self.apply_told(attached.from, told).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.store_failed(Request::Watch, error).await),
        }
    }

    async fn apply_told(&mut self, from: u64, told: Told) -> Result<(), StoreError> {
        let Some(selector) = &self.feeding.selector else { return Ok(()) };
        let (encoding, version) = (self.view.spec.encoding(), told.version);
        let fits = |change: &Change| selector.fits(encoding, &change.item.meta.namespace, &change.item.body);
        // What cannot be read was stored by the source, and is for nobody to select.
        let fits: Vec<bool> = told.changes.iter().map(|change| fits(change).unwrap_or_default()).collect();
        if !fits.is_empty() {
            let selected = told.changes.iter().zip(&fits).filter(|(_, fits)| **fits);
            self.view.make_way(selected.map(|(change, _)| change.item.body.len()).sum()).await;
            let (view, overlay) = (Arc::clone(&self.view), self.overlay.clone());
            let known = Arc::clone(&self.view);
            let durability = if self.credentials.is_node() { Durability::Soon } else { Durability::Relaxed };
            let job = move |tx: &mut Tx<'_>| {
                let mut table = view.table(tx)?.showing(overlay.book());
                if table.apply_selected(&told.changes, &fits, from, version)? {
                    table.save().map(Some)
                } else {
                    Ok(None)
                }
            };
            let then = move |written: &mut Option<Written>| {
                if let Some(written) = written {
                    known.publish(written);
                }
            };
            self.store.write_then(durability, job, then).await?;
        }
        self.view.publish_bookmark(version);
        Ok(())
    }
}
