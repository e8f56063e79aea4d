//! The last events of a view, encoded, in memory: a watcher that keeps up is sent each of them as the API server sent it,
//! three versions of one object as three, and all watchers are sent the same bytes. Nothing is read or decoded for it.
//!
//! ```text
//!  the log in the store   ────────────────────────────────────┤ of each object the last change, and deletions
//!  the ring                          ├──────────────────┤       every event
//!                                  floor              last
//!  a watcher                │                 │
//!                         behind           keeps up
//! ```
//!
//! The ring has every event behind `floor`, without a gap, up to `last`, which is as far as has been committed and told:
//! the store's writer appends in the order of its commits. Whoever stands at a sequence number that is not before the
//! floor takes what is behind that number; whoever stands before it reads the log ([`feed`](super::feed)) until nothing is
//! left, and goes on here. A position is the same number in both, so nothing is lost or told twice where one passes into
//! the other. The log may be ahead: a transaction is read before it is told.
//!
//! When the ring is full its oldest events go. Upstream's next ones wait a moment for those who have not taken them
//! ([`Ring::make_way`]), as kube-apiserver's do: what comes in a burst is larger than the ring, and who reads it as fast
//! as it can keeps up. Whoever has kept the others waiting is not waited for again before it has taken everything.
//!
//! A view collects while somebody watches, and for half a minute after the last watcher has gone, somebody has listed or
//! the process has begun: that one comes (again). Rings of other views are empty. What was longest in memory goes after
//! two minutes: events of Secrets are here as plain text, as they are in what is being sent.
//!
//! A channel that broadcasts has a bound of messages and not of bytes, and one list of waiters more; it was left out.

mod budget;
mod news;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::feed::Position;
use super::record::ViewRecord;
use crate::clock::steady;
use crate::limits;
use crate::wire::frame::encode_event;
use crate::wire::{Encoding, TypeMeta};

pub(super) use budget::Ahead;
pub(crate) use budget::Rings;
#[cfg(test)]
pub(crate) use news::Noted;
pub(crate) use news::{NewEvent, News};

/// Seconds that a view without watchers goes on collecting for one that is expected.
const LINGERS: u64 = 30;

/// One event as watchers get it.
struct Frame {
    sequence: u64,
    version: u64,
    local: bool,
    /// When it came, as [`steady`] says.
    came: u64,
    bytes: Bytes,
}

impl Frame {
    fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

/// The last events of one view.
pub(crate) struct Ring {
    encoding: Encoding,
    inner: Mutex<Inner>,
    /// Bytes of the frames, for those who look at all rings.
    bytes: AtomicUsize,
    /// Those who listen, and when somebody was last expected to, as [`steady`] says.
    listeners: AtomicUsize,
    expected: AtomicU64,
    /// Somebody has taken something, or has gone, while that is waited for.
    taken: Notify,
    rings: Arc<Rings>,
}

struct Inner {
    frames: VecDeque<Frame>,
    bytes: usize,
    limit: usize,
    /// Everything behind it, up to `last`, is in the frames.
    floor: u64,
    last: u64,
    /// No change up to the floor has a higher resourceVersion.
    floor_version: u64,
    /// The collection's resourceVersion at `last`.
    version: u64,
    kind: Option<Arc<TypeMeta>>,
    /// Watchers, by their seats.
    watchers: Vec<Option<Watcher>>,
    free: Vec<usize>,
    /// Somebody waits until more is taken.
    awaited: bool,
}

/// Somebody in a seat.
#[derive(Default)]
struct Watcher {
    /// What is up to there was taken, or is not wanted.
    stands: u64,
    /// It has kept others waiting and has not taken everything since.
    slow: bool,
    /// Of one that waits.
    waker: Option<Waker>,
}

impl Inner {
    /// Nothing of what was before is continued.
    fn restart(&mut self, floor: u64, version: u64) {
        self.frames.clear();
        (self.bytes, self.floor, self.floor_version) = (0, floor, version);
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(frame) = self.frames.pop_front() else { return false };
        self.bytes -= frame.size();
        self.floor = frame.sequence;
        self.floor_version = self.floor_version.max(frame.version);
        true
    }

    fn shrink_to(&mut self, bytes: usize, last_one_taken: u64) {
        while self.bytes > bytes
            && self.frames.front().is_some_and(|oldest| oldest.sequence <= last_one_taken)
            && self.drop_oldest()
        {}
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }

    /// Up to where all who keep up have taken everything.
    fn taken_up_to(&self) -> u64 {
        let watchers = self.watchers.iter().flatten().filter(|watcher| !watcher.slow);
        watchers.map(|watcher| watcher.stands).min().unwrap_or(self.last)
    }

    /// Bytes that somebody who keeps up has not taken.
    fn untaken(&self) -> usize {
        let taken = self.taken_up_to();
        let first = self.frames.partition_point(|frame| frame.sequence <= taken);
        self.frames.range(first..).map(Frame::size).sum()
    }
}

/// What a watcher finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// The next event.
    Frame {
        bytes: Bytes,
        /// It is the hub's own doing: it has a resourceVersion from long ago.
        local: bool,
    },
    /// The watcher is behind the ring: the log knows more.
    Behind,
    /// It has seen everything; it is woken when there is more.
    Nothing,
}

impl Ring {
    /// That of a view with this record, or of a new one.
    pub(crate) fn new(encoding: Encoding, record: Option<&ViewRecord>, rings: &Arc<Rings>) -> Arc<Self> {
        let (last, version) = record.map_or((0, 0), |record| (record.sequence, record.resource_version));
        let inner = Inner {
            frames: VecDeque::new(),
            bytes: 0,
            limit: limits::RING,
            floor: last,
            last,
            floor_version: version,
            version,
            kind: record.and_then(|record| record.kind.clone()).map(Arc::new),
            watchers: Vec::new(),
            free: Vec::new(),
            awaited: false,
        };
        let ring = Arc::new(Self {
            encoding,
            inner: Mutex::new(inner),
            bytes: AtomicUsize::new(0),
            listeners: AtomicUsize::new(0),
            expected: AtomicU64::new(steady()),
            taken: Notify::new(),
            rings: Arc::clone(rings),
        });
        rings.enter(&ring);
        ring
    }

    /// Whether somebody wants to be told, or will in a moment.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.listeners.load(Ordering::Relaxed) > 0
            || steady().saturating_sub(self.expected.load(Ordering::Relaxed)) < LINGERS
    }

    /// Somebody has listed, or has gone, and will probably watch.
    pub(crate) fn expect_watcher(&self) {
        self.expected.fetch_max(steady(), Ordering::Relaxed);
    }

    /// Waits until so many bytes more find room without what somebody who keeps up has not taken yet, and not long.
    pub(crate) async fn make_way(&self, bytes: usize) {
        let until = Instant::now() + limits::KEEPS_UP;
        loop {
            let taken = self.taken.notified();
            if self.has_way(bytes) {
                return;
            }
            if timeout_at(until, taken).await.is_err() {
                let mut inner = self.lock();
                let last = inner.last;
                let slow = inner.watchers.iter_mut().flatten().filter(|watcher| watcher.stands < last);
                slow.for_each(|watcher| watcher.slow = true);
                inner.awaited = false;
                return;
            }
        }
    }

    /// Whether so many bytes more find room. If not, whoever takes something says so.
    fn has_way(&self, bytes: usize) -> bool {
        let mut inner = self.lock();
        let untaken = inner.untaken();
        let has = untaken == 0
            || untaken.saturating_add(bytes) <= inner.limit
                && self.rings.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= limits::RINGS;
        inner.awaited = !has;
        has
    }

    /// Takes what a transaction has made of the view, once it is committed. Whether there is more than before; nobody has
    /// been [woken](Self::wake) yet.
    pub(crate) fn append(&self, record: &ViewRecord, news: &mut News) -> bool {
        let came = steady();
        let events = news.events.take().zip(record.kind.as_ref()).map(|(events, kind)| {
            let frame = |event: NewEvent| Frame {
                sequence: event.sequence,
                version: event.version,
                local: event.local,
                came,
                bytes: encode_event(self.encoding, event.event_type, kind, &event.body),
            };
            events.into_iter().map(frame).collect::<Vec<_>>()
        });
        let moved = {
            let mut inner = self.lock();
            if inner.kind.as_deref() != record.kind.as_ref() {
                inner.kind = record.kind.clone().map(Arc::new);
            }
            let moved = record.sequence != inner.last;
            match events {
                _ if !moved => {}
                Some(frames) => {
                    if news.from != inner.last {
                        inner.restart(news.from, news.from_version);
                    }
                    inner.bytes += frames.iter().map(Frame::size).sum::<usize>();
                    inner.frames.extend(frames);
                }
                None => inner.restart(record.sequence, record.resource_version),
            }
            (inner.last, inner.version) = (record.sequence, record.resource_version);
            // A single event may be larger than that.
            let limit = inner.limit.max(inner.frames.back().map_or(0, Frame::size));
            inner.shrink_to(limit, u64::MAX);
            self.count(&inner);
            moved
        };
        self.rings.make_room(limits::RINGS);
        moved
    }

    /// Wakes all who wait.
    pub(crate) fn wake(&self) {
        let mut inner = self.lock();
        let waiting = inner.watchers.iter_mut().flatten().filter_map(|watcher| watcher.waker.take());
        let waiting: Vec<Waker> = waiting.collect();
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Up to which sequence number one who comes with this resourceVersion has seen everything that upstream did, if the
    /// ring has all that came afterwards.
    pub(crate) fn seen_by(&self, since: u64) -> Option<u64> {
        let inner = self.lock();
        if since > inner.version {
            // It knows of something that is committed and not told yet, or has listed past the hub. What was made here
            // and has given way to that must not be told to it; what has not is in the log.
            return Some(inner.last);
        }
        let upstreams = inner.frames.iter().filter(|frame| !frame.local);
        let last = upstreams.take_while(|frame| frame.version <= since).last();
        last.map(|frame| frame.sequence).or_else(|| (since >= inner.floor_version).then_some(inner.floor))
    }

    /// The collection's resourceVersion and kind at the end, for one who stands there.
    pub(crate) fn end(&self, sequence: u64) -> Option<(u64, Arc<TypeMeta>)> {
        let inner = self.lock();
        (inner.last == sequence).then(|| Some((inner.version, inner.kind.clone()?))).flatten()
    }

    /// Forgets what has been there since before this time of [`steady`].
    pub(crate) fn forget(&self, before: u64) {
        let mut inner = self.lock();
        while inner.frames.front().is_some_and(|frame| frame.came < before) && inner.drop_oldest() {}
        if inner.frames.is_empty() {
            inner.frames = VecDeque::new();
        }
        self.count(&inner);
    }

    fn shrink_to(&self, bytes: usize, taken: bool) {
        let mut inner = self.lock();
        let up_to = if taken { inner.taken_up_to() } else { u64::MAX };
        inner.shrink_to(bytes, up_to);
        self.count(&inner);
    }

    fn count(&self, inner: &Inner) {
        let before = self.bytes.swap(inner.bytes, Ordering::Relaxed);
        self.rings.bytes.fetch_add(inner.bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes; none if watches have read too much already.
    pub(super) fn ahead(&self, bytes: usize) -> Option<Ahead> {
        let before = self.rings.ahead.fetch_add(bytes, Ordering::Relaxed);
        let ahead = Ahead { rings: Arc::clone(&self.rings), bytes };
        (before.saturating_add(bytes) <= limits::AHEAD).then_some(ahead)
    }

    /// A place to listen from, for one who wants what comes from now on.
    pub(crate) fn listen(self: &Arc<Self>) -> Seat {
        self.listeners.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let watcher = Some(Watcher { stands: inner.last, ..Watcher::default() });
        let number = match inner.free.pop() {
            Some(number) => number,
            None => {
                inner.watchers.push(None);
                inner.watchers.len() - 1
            }
        };
        if let Some(place) = inner.watchers.get_mut(number) {
            *place = watcher;
        }
        drop(inner);
        Seat { ring: Arc::clone(self), number }
    }

    /// Another bound than [`limits::RING`].
    #[cfg(test)]
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.lock().limit = bytes;
        self.shrink_to(bytes, false);
    }

    /// Bytes of its frames, and of those of all that share its bound.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.rings.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.rings.bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Where a watcher listens.
pub(crate) struct Seat {
    ring: Arc<Ring>,
    number: usize,
}

impl Seat {
    /// The next event for one who stands there, and its new position.
    pub(crate) fn next(&self, position: &mut Position, context: &Context<'_>) -> Next {
        let mut inner = self.ring.lock();
        if position.sequence() < inner.floor {
            return Next::Behind;
        }
        let first = inner.frames.partition_point(|frame| frame.sequence <= position.sequence());
        let mut next = Next::Nothing;
        for frame in inner.frames.range(first..) {
            position.pass(frame.sequence);
            if frame.local || frame.version > position.since() {
                next = Next::Frame { bytes: frame.bytes.clone(), local: frame.local };
                break;
            }
        }
        let nothing = matches!(next, Next::Nothing);
        if nothing {
            position.pass(inner.last);
        }
        if let Some(watcher) = inner.watchers.get_mut(self.number).and_then(Option::as_mut) {
            watcher.stands = watcher.stands.max(position.sequence());
            watcher.slow &= !nothing;
            match &mut watcher.waker {
                _ if !nothing => {}
                Some(waker) => waker.clone_from(context.waker()),
                waker @ None => *waker = Some(context.waker().clone()),
            }
        }
        if inner.awaited {
            self.ring.taken.notify_waiters();
        }
        next
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.ring.lock();
        if let Some(place) = inner.watchers.get_mut(self.number) {
            *place = None;
        }
        inner.free.push(self.number);
        drop(inner);
        self.ring.expect_watcher();
        self.ring.listeners.fetch_sub(1, Ordering::Relaxed);
        self.ring.taken.notify_waiters();
    }
}
