//! Views: what local clients list and watch, by identity, collection, selectors and encoding.
//!
//! A view is a part of the store (`record`, `table`) that one reflector (`replica`) keeps equal to the API
//! server's collection, and any number of watchers follow (`stream`): those who keep up in memory (`ring`), others in
//! the store (`feed`, `catch_up`). [`catalogue`] knows them all. It outlives its clients, the link and the process. Nothing
//! here knows HTTP beyond an upstream answer that is handed on verbatim; nobody gets here without a
//! [`Permit`](crate::caller::Permit). What is in a view is written by
//! `replica` alone, through `table`; a view itself only reads.

pub(crate) mod catalogue;
mod catch_up;
pub(crate) mod confirmation;
mod feed;
mod list;
mod lookup;
pub(crate) mod overlay;
mod read;
pub(crate) mod record;
mod ring;
pub(crate) mod selector;
mod snapshot;
pub(crate) mod spec;
pub(crate) mod state;
mod stream;
pub(crate) mod table;
pub(crate) mod tap;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::caller::{Identity, rights_last};
use crate::clock::{Boot, DAY, now, steady, today};
use crate::store::{ReadOnlyStore, StoreError, Tx};
use confirmation::Confirmation;
use record::{ViewId, ViewRecord};
use ring::{Ring, Rings};
use table::{ViewTable, Written};
use tap::Taps;

pub(crate) use list::{Patience, Piece};
pub(crate) use lookup::Lookup;
pub(crate) use spec::ViewSpec;
pub(crate) use state::{Question, State, StateCounts, Transition, Why};
pub(crate) use stream::WatchStream;

/// An upstream answer for the client, verbatim.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamResponse {
    /// Status code.
    pub(crate) code: http::StatusCode,
    /// Headers without hop-by-hop ones; `content-type` among them.
    pub(crate) headers: HeaderMap,
    /// Body; `content-encoding` was undone.
    pub(crate) body: Bytes,
}

/// Why there is no view.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ViewError {
    /// The API server said no.
    #[error("the API server answered {}", .0.code)]
    Upstream(Arc<UpstreamResponse>),
    /// Offline, and nothing complete is stored.
    #[error("the edge node is offline and this was never cached")]
    NeverCached,
    /// Offline, and the API server's last word on this was a 403.
    #[error("the edge node is offline, and the API server refused this when it was last asked")]
    Refused,
    /// Online, nothing is stored, and the API server takes too long.
    #[error("the API server has not answered in time, and this was never cached")]
    Late,
    /// Not a collection that can be a view: forward the request instead.
    #[error("this collection cannot be cached")]
    NotAView,
    /// The store failed: forward the request while online.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a watch cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// 410: the resourceVersion is older than what is remembered.
    #[error("the resourceVersion is too old")]
    Expired,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// `resourceVersion` unset or `0`: the current state first, as synthetic ADDED events.
    Any,
    /// After this resourceVersion. One that the view has not reached yet is fine: nothing is sent twice.
    Exactly(u64),
}

/// What a watcher wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatchOptions {
    /// Where to start.
    pub(crate) since: Since,
    /// WatchList: the current state whatever `since` says, then the `k8s.io/initial-events-end` bookmark.
    pub(crate) send_initial_events: bool,
    /// Bookmarks about once a minute and two seconds before the end.
    pub(crate) bookmarks: bool,
    /// When the stream ends by itself (`timeoutSeconds`).
    pub(crate) ends_at: Instant,
}

/// How far a view has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Its own count of changes.
    pub(crate) sequence: u64,
    /// The collection's resourceVersion, with bookmarks that are not stored yet.
    pub(crate) resource_version: u64,
}

/// One of a reflector's two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// The list.
    List,
    /// The watch.
    Watch,
}

/// How a reflector's request failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    /// Which.
    pub(crate) request: Request,
    /// With what.
    pub(crate) error: ViewError,
}

/// What a view is worth, and how its reflector fares: what openers and watchers wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sync {
    /// What the view is worth.
    pub(crate) state: State,
    /// Requests that have been answered or have failed.
    pub(crate) attempts: u64,
    /// How the last of them failed.
    pub(crate) failure: Option<Failed>,
    /// The collection cannot be a view, at least in this encoding; asked again after this.
    pub(crate) no_view_until: Option<Instant>,
}

/// One view.
pub(crate) struct View {
    pub(crate) id: ViewId,
    pub(crate) identity: Identity,
    pub(crate) spec: ViewSpec,
    store: ReadOnlyStore,
    pub(crate) progress: watch::Sender<Progress>,
    /// Its last events, for those who watch.
    ring: Arc<Ring>,
    /// What upstream tells it, for views within it.
    taps: Taps,
    /// The view that it is fed from; nothing while it has a list and a watch of its own.
    source: Mutex<Weak<View>>,
    /// That its identity may read it.
    confirmation: Mutex<Option<Confirmation>>,
    pub(crate) sync: watch::Sender<Sync>,
    /// Somebody wants the reflector to try again now.
    pub(crate) poke: Notify,
    /// A record of the view cannot be read: it has to be listed anew.
    pub(crate) damage: Notify,
    /// A list that is being sent right now; others who want the same share it.
    list: Mutex<Weak<list::SharedList>>,
    clients: AtomicUsize,
    /// When somebody last used it, as [`steady`] says.
    used: AtomicU64,
    /// In use until then although nobody asks.
    warm_until: AtomicU64,
    /// It is in the catalogue no more, and what is stored of it goes.
    gone: AtomicBool,
    /// In use although nobody asks: kubelet needs it to start the node's pods again (`replica::kept`), or one of them does
    /// when it starts (`replica::accounts`).
    kept: AtomicBool,
    /// Bytes of its objects, which are counted with those of its identity and of all others.
    stored: AtomicU64,
    counts: Stored,
}

/// Bytes that views have in the store, and in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    /// Those of one identity.
    own: Arc<AtomicU64>,
    /// Those of everybody but kubelet.
    others: Arc<AtomicU64>,
    /// Events in memory: kubelet's, or everybody else's.
    rings: Arc<Rings>,
}

impl Stored {
    /// The same for another identity.
    fn of_another(&self) -> Self {
        Self { own: Arc::default(), others: Arc::clone(&self.others), rings: Arc::clone(&self.rings) }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("identity", &self.identity)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl View {
    /// The view of a record, or a new one.
    pub(crate) fn new(
        id: ViewId,
        identity: Identity,
        spec: ViewSpec,
        store: ReadOnlyStore,
        counts: Stored,
        record: Option<&ViewRecord>,
    ) -> Self {
        let progress = record.map_or_else(Progress::default, |record| Progress {
            sequence: record.sequence,
            resource_version: record.resource_version,
        });
        let state = record.map_or(State::Empty, |record| record.state.found());
        let sync = Sync { state, ..Sync::default() };
        let ring = Ring::new(spec.encoding(), record, &counts.rings);
        let view = Self {
            id,
            identity,
            spec,
            store,
            ring,
            taps: Taps::default(),
            source: Mutex::default(),
            confirmation: Mutex::new(record.and_then(|record| record.confirmation.clone())),
            stored: AtomicU64::new(0),
            counts,
            progress: watch::channel(progress).0,
            sync: watch::channel(sync).0,
            poke: Notify::new(),
            damage: Notify::new(),
            list: Mutex::default(),
            clients: AtomicUsize::new(0),
            used: AtomicU64::new({
                let idle = record.map_or(0, |record| now().saturating_sub(record.used));
                steady().saturating_sub(idle)
            }),
            warm_until: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        };
        view.count_stored(record.map_or(0, |record| record.bytes));
        view
    }

    /// Its objects have so many bytes now.
    pub(crate) fn count_stored(&self, bytes: u64) {
        let before = self.stored.swap(bytes, Ordering::Relaxed);
        for count in [&self.counts.own, &self.counts.others] {
            count.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Bytes in the store of its identity's other views, and of those of everybody but kubelet.
    pub(crate) fn stored_beside(&self) -> (u64, u64) {
        let own = self.stored.load(Ordering::Relaxed);
        let beside = |count: &AtomicU64| count.load(Ordering::Relaxed).saturating_sub(own);
        (beside(&self.counts.own), beside(&self.counts.others))
    }

    /// Which view this is.
    pub(crate) fn spec(&self) -> &ViewSpec {
        &self.spec
    }

    /// For logs.
    pub(crate) fn name(&self) -> String {
        let spec = &self.spec;
        let mut name = format!("{} as {}", spec.resource().path(spec.namespace()), self.identity);
        for selector in [spec.label_selector(), spec.field_selector()] {
            if !selector.is_empty() {
                name.push_str(" ?");
                name.push_str(selector);
            }
        }
        name
    }

    /// The collection's resourceVersion.
    pub(crate) fn resource_version(&self) -> u64 {
        self.progress.borrow().resource_version
    }

    /// Waits until the view has reached `version`; `false` at the deadline.
    pub(crate) async fn wait_for(&self, version: u64, deadline: Instant) -> bool {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.resource_version >= version);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }

    /// What the view is worth.
    pub(crate) fn state(&self) -> State {
        self.sync.borrow().state
    }

    /// Something has changed what the view is worth; the state before.
    pub(crate) fn turn(&self, transition: Transition) -> State {
        let mut before = State::Empty;
        self.sync.send_if_modified(|sync| {
            before = sync.state;
            sync.state = sync.state.after(transition, now());
            sync.state != before
        });
        before
    }

    /// The one question about freshness.
    pub(crate) fn may_answer(&self, question: Question) -> bool {
        let state = self.state();
        let in_place = matches!(question, Question::AsLastKnown | Question::Absence { .. });
        state.may_answer(question, self.resource_version()) && (!in_place || self.rights_last(state))
    }

    /// Whether the identity may still be believed to have the right to read this, without the API server.
    fn rights_last(&self, state: State) -> bool {
        match state {
            State::Behind { since, .. } if !self.identity.is_node() && !state.was_followed() => {
                rights_last(since / DAY, today(), self.spec.resource().is_secret())
            }
            _ => true,
        }
    }

    /// The view that it is fed from.
    pub(crate) fn source(&self) -> Option<Arc<View>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// It is fed from this view from now on, or from none. Views that are fed are no sources: theirs is.
    pub(crate) fn set_source(&self, source: Option<&Arc<View>>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) =
            source.map(Arc::downgrade).unwrap_or_default();
        // Afterwards: whoever opens one behind this looks whether there is a source.
        if source.is_some() {
            self.close_taps();
        }
    }

    /// The API server's word that its identity may read it, believed still or not any more.
    pub(crate) fn confirmation(&self) -> Option<Confirmation> {
        self.confirmation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a new word, or forgets it; the one before.
    pub(crate) fn set_confirmation(&self, confirmation: Option<Confirmation>) -> Option<Confirmation> {
        let mut known = self.confirmation.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut known, confirmation)
    }

    /// The hub is there and has a link, for the word.
    pub(crate) fn see_confirmation(&self, boot: &Boot) {
        if let Some(known) = &mut *self.confirmation.lock().unwrap_or_else(PoisonError::into_inner) {
            known.see(boot);
        }
    }

    /// Whether a reflector keeps it equal to the API server's collection.
    pub(crate) fn is_followed(&self) -> bool {
        self.state().is_following()
    }

    /// Whether the API server's last word on it was a 403.
    pub(crate) fn is_refused(&self) -> bool {
        self.state().is_refused()
    }

    /// Whether a client watches it right now.
    pub(crate) fn is_watched(&self) -> bool {
        self.clients.load(Ordering::Relaxed) > 0
    }

    /// Whether something of it may be stored, told to anybody or not.
    pub(crate) fn is_stored(&self) -> bool {
        self.state() != State::Empty
    }

    /// Starts a watch.
    ///
    /// # Errors
    ///
    /// [`WatchError`].
    pub(crate) fn watch(self: &Arc<Self>, options: WatchOptions) -> Result<WatchStream, WatchError> {
        self.touch();
        stream::start(self, options)
    }

    /// Somebody uses the view.
    pub(crate) fn touch(&self) {
        self.used.store(steady(), Ordering::Relaxed);
    }

    /// Somebody will want the view although nobody uses it yet.
    pub(crate) fn keep_warm(&self, seconds: u64) {
        self.warm_until.fetch_max(steady() + seconds, Ordering::Relaxed);
    }

    /// Whether the node needs the view, used or not.
    pub(crate) fn set_kept(&self, kept: bool) {
        self.kept.store(kept, Ordering::Relaxed);
    }

    /// Whether the node needs it, used or not.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// It is in the catalogue no more.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether it is in the catalogue no more: whoever still has it has to ask for another.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Seconds since somebody used it; none while somebody watches, or kubelet needs it.
    pub(crate) fn idle(&self) -> u64 {
        self.idle_at(steady())
    }

    /// The same at another time, of [`steady`].
    pub(crate) fn idle_at(&self, now: u64) -> u64 {
        let warm = self.warm_until.load(Ordering::Relaxed) > now;
        let kept = self.kept.load(Ordering::Relaxed);
        if warm || kept || self.clients.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        now.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// When somebody last used it, in seconds since 1970.
    pub(crate) fn used(&self) -> u64 {
        let watched = self.clients.load(Ordering::Relaxed) > 0;
        let idle = steady().saturating_sub(self.used.load(Ordering::Relaxed));
        now().saturating_sub(if watched { 0 } else { idle })
    }

    /// As if somebody had used it last at this time of [`steady`].
    #[cfg(test)]
    pub(crate) fn used_at(&self, seconds: u64) {
        self.used.store(seconds, Ordering::Relaxed);
    }

    /// The view's part of a transaction, which notes what watchers are to be told.
    pub(crate) fn table<'t, 'e>(&self, tx: &'t mut Tx<'e>) -> Result<ViewTable<'t, 'e>, StoreError> {
        Ok(ViewTable::load(tx, self.id)?.told(self.ring.is_listened_to()))
    }

    /// What was a while in memory for those who watch, since before this time of [`steady`], is there no longer.
    pub(crate) fn forget_events(&self, before: u64) {
        self.ring.forget(before);
    }

    /// What a transaction has made of the view, told to its watchers once it is committed, in the order of commits.
    pub(crate) fn publish(&self, written: &mut Written) {
        let Written { record, news } = written;
        self.count_stored(record.bytes);
        let moved = self.ring.append(record, news);
        self.progress.send_if_modified(|progress| {
            let reset = record.reset_sequence > progress.sequence;
            let version = if reset {
                // A collection that went back in time (see `table`) takes the view with it.
                record.resource_version
            } else {
                record.resource_version.max(progress.resource_version)
            };
            let new =
                Progress { sequence: record.sequence.max(progress.sequence), resource_version: version };
            std::mem::replace(progress, new) != new
        });
        // Last: who is woken finds everything as it is now.
        if moved {
            self.ring.wake();
        }
    }

    /// Waits, not long, until watchers who keep up, and views that are fed from it, have room for so many bytes of events.
    pub(crate) async fn make_way(&self, bytes: usize) {
        self.ring.make_way(bytes).await;
        self.taps.make_way(bytes).await;
    }

    /// A bookmark from upstream: nothing has changed up to there. Watchers sleep on: they look when they send one.
    pub(crate) fn publish_bookmark(&self, version: u64) {
        self.progress.send_if_modified(|progress| {
            let newer = version > progress.resource_version;
            if newer {
                progress.resource_version = version;
            }
            newer
        });
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.count_stored(0);
    }
}

/// A client that watches: while there is one, the view is in use.
struct Client {
    view: Arc<View>,
}

impl Client {
    fn new(view: &Arc<View>) -> Self {
        view.clients.fetch_add(1, Ordering::Relaxed);
        Self { view: Arc::clone(view) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.view.touch();
        self.view.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod fan_out;
#[cfg(test)]
mod model;
