//! One watch: when to read what, when to send a bookmark, when to end.
//!
//! ```text
//!         ┌──── fell behind ────┐
//!         ▼                     │
//!   log: a batch ── drained ─▶ ring: an event ──▶ nothing: wait
//! ```
//!
//! The first batch is read when the watch begins, and all of them in one transaction if there are readers left
//! (`catch_up`): from then on nothing that happens is folded into something else.
//!
//! It waits for the next event, one timer (a bookmark, the end) and what the view is worth; a bookmark from upstream wakes
//! nobody.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::wrappers::WatchStream as Changes;

use super::catch_up::{self, Origin, Step};
use super::feed::{Batch, Position};
use super::list::{ListBody, Room};
use super::ring::{Ahead, Next, Seat};
use super::{Client, Sync, View, WatchError, WatchOptions};
use crate::store::StoreError;
use crate::wire::Status;
use crate::wire::frame::{encode_bookmark, encode_error};

/// Between bookmarks, as the API server does.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes that long before the end.
const BEFORE_END: Duration = Duration::from_secs(2);

/// Where a thread that reads is to be had.
type Readers = Box<dyn Fn() -> Option<Room> + Send + std::marker::Sync>;

/// Frames of one watch. Ends at the deadline, or after an ERROR frame.
pub(crate) struct WatchStream {
    client: Client,
    seat: Seat,
    position: Position,
    /// Nothing is left in the log: the ring has what comes.
    on_ring: bool,
    /// A thread that reads the log, or the state before it.
    reading: Option<mpsc::Receiver<Step>>,
    readers: Option<Readers>,
    queue: VecDeque<Bytes>,
    /// Room for what is in the queue since the beginning.
    ahead: Option<Ahead>,
    ended: bool,
    sync: Changes<Sync>,
    /// For the next bookmark, or the end.
    timer: Pin<Box<Sleep>>,
    /// A bookmark is due, as soon as everything before it is sent.
    owes_bookmark: bool,
    bookmarks: bool,
    bookmark_at: Option<Instant>,
    last_bookmark: Instant,
    ends_at: Instant,
    #[cfg(test)]
    log_reads: usize,
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("position", &self.position).finish_non_exhaustive()
    }
}

/// Starts a watch.
pub(super) fn start(view: &Arc<View>, options: WatchOptions) -> Result<WatchStream, WatchError> {
    let client = Client::new(view);
    // From here on events are collected.
    let seat = view.ring.listen();
    let known = view.resource_version();
    let first = view.read(|reader| {
        let Some(position) = Origin::Beginning(options).stand(view, reader, known)? else { return Ok(None) };
        let mut behind = position.clone();
        let batch = behind.read(reader, view.id)?;
        Ok(Some((position, behind, batch)))
    })?;
    let (position, behind, batch) = first.ok_or(WatchError::Expired)?;
    // A thousand watches whose clients do not read would hold a thousand batches: those read when they can send.
    let ahead = view.ring.ahead(batch.size());
    let last_bookmark = options.ends_at.checked_sub(BEFORE_END).unwrap_or(options.ends_at);
    let bookmark_at = options.bookmarks.then(|| (Instant::now() + BOOKMARK_EVERY).min(last_bookmark));
    let mut watch = WatchStream {
        client,
        seat,
        position,
        on_ring: false,
        reading: None,
        readers: None,
        queue: VecDeque::new(),
        ahead: None,
        ended: false,
        sync: Changes::new(view.sync.subscribe()),
        timer: Box::pin(sleep_until(bookmark_at.unwrap_or(options.ends_at).min(options.ends_at))),
        owes_bookmark: false,
        bookmarks: options.bookmarks,
        bookmark_at,
        last_bookmark,
        ends_at: options.ends_at,
        #[cfg(test)]
        log_reads: 0,
    };
    if ahead.is_some() {
        watch.accept(behind, batch);
        watch.ahead = ahead;
    }
    Ok(watch)
}

impl WatchStream {
    /// With threads that read what is more than a batch. Once this returns it is decided what the watch begins with:
    /// whatever comes later it is told, event by event. `first` is waited for if one is needed now, `options` are those
    /// the watch was begun with.
    pub(crate) async fn read_by(
        &mut self,
        first: impl Future<Output = Option<Room>>,
        readers: Readers,
        options: WatchOptions,
    ) {
        if !self.on_ring
            && !self.ended
            && let Some(room) = first.await
        {
            let mut reading =
                catch_up::in_one_transaction(&self.client.view, room, Origin::Beginning(options));
            if let Some(step) = reading.recv().await {
                // Instead of what was read before, not after it.
                self.queue.clear();
                self.ahead = None;
                self.owes_bookmark = false;
                self.reading = Some(reading);
                self.took(step);
            }
        }
        self.readers = Some(readers);
    }

    /// For those who put events with old resourceVersions among the frames. client-go takes the resourceVersion of the last
    /// event for the collection's, and would come back with it: too old, perhaps. A bookmark behind them says how it is,
    /// if the client wants bookmarks.
    pub(crate) fn went_back(&mut self) {
        self.owes_bookmark |= self.bookmarks;
    }

    /// The whole state exactly where this watch stands, so that events that are made of it come neither before what it
    /// has not been sent yet nor after what it will be sent. None if there is something between the two: the stream has to
    /// be polled until nothing is ready, and when it is woken again.
    pub(crate) fn state(&self) -> Result<Option<ListBody>, StoreError> {
        if !self.on_ring || !self.queue.is_empty() {
            return Ok(None);
        }
        let list = self.client.view.list()?;
        Ok((list.sequence == self.position.sequence()).then_some(list))
    }

    /// Everything up to this sequence number was sent.
    #[cfg(test)]
    pub(super) fn stands_at(&self) -> u64 {
        self.position.sequence()
    }

    /// How often it has read the store.
    #[cfg(test)]
    pub(super) fn log_reads(&self) -> usize {
        self.log_reads
    }

    /// The resourceVersion that the client came with.
    #[cfg(test)]
    pub(super) fn since(&self) -> u64 {
        self.position.since()
    }

    /// Reads on in the log, or has it read.
    fn read(&mut self) {
        #[cfg(test)]
        {
            self.log_reads += 1;
        }
        let view = &self.client.view;
        let mut position = self.position.clone();
        match view.read(|reader| position.read(reader, view.id)) {
            Ok(batch) if !batch.drained && !batch.expired => {
                let room = self.readers.as_ref().and_then(|readers| readers());
                match room {
                    Some(room) => {
                        let origin = Origin::Position(self.position.clone());
                        self.reading = Some(catch_up::in_one_transaction(view, room, origin));
                    }
                    None => self.accept(position, batch),
                }
            }
            read => self.took(read.map(|batch| (position, batch))),
        }
    }

    fn took(&mut self, step: Step) {
        let view = &self.client.view;
        let status = match step {
            Ok((position, batch)) => return self.accept(position, batch),
            Err(StoreError::Failed(error)) => Status::new(500, "InternalError", error),
            Err(error) => {
                tracing::error!(%error, view = %view.name(), "a watch cannot go on");
                Status::new(500, "InternalError", error.to_string())
            }
        };
        self.end_with(&status);
    }

    fn accept(&mut self, position: Position, batch: Batch) {
        if batch.expired {
            return self.end_with(&Status::expired());
        }
        self.position = position;
        self.queue.extend(batch.frames);
        self.on_ring = batch.drained;
        self.owes_bookmark |= batch.local && self.bookmarks;
        if self.on_ring {
            self.reading = None;
        }
    }

    fn end_with(&mut self, status: &Status) {
        self.queue.push_back(encode_error(self.client.view.spec.encoding(), status));
        self.ended = true;
    }

    /// Puts the bookmark that is due into the queue. `known` is the collection's resourceVersion, read before the ring had
    /// no more. None yet if there is more, or if the log was read ahead of the ring: either wakes the watch.
    fn bookmark(&mut self, known: u64) -> bool {
        let view = &self.client.view;
        let Some((version, kind)) = view.ring.end(self.position.sequence()) else { return false };
        self.owes_bookmark = false;
        let version = version.max(known);
        // Unless the watcher came with a newer resourceVersion than the view has reached yet.
        if version >= self.position.since().max(1) {
            self.queue.push_back(encode_bookmark(view.spec.encoding(), &kind, version, false));
        }
        true
    }

    /// The timer has run out.
    fn is_due(&mut self) {
        let now = Instant::now();
        if now >= self.ends_at {
            self.ended = true;
            return;
        }
        if self.bookmark_at.is_some_and(|at| now >= at) {
            self.owes_bookmark = true;
            self.bookmark_at =
                (now < self.last_bookmark).then(|| (now + BOOKMARK_EVERY).min(self.last_bookmark));
        }
        self.timer.as_mut().reset(self.bookmark_at.unwrap_or(self.ends_at).min(self.ends_at));
    }
}

impl Stream for WatchStream {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let watch = self.get_mut();
        loop {
            if let Some(frame) = watch.queue.pop_front() {
                return Poll::Ready(Some(frame));
            }
            watch.ahead = None;
            if watch.ended {
                return Poll::Ready(None);
            }
            if let Some(reading) = &mut watch.reading {
                match std::task::ready!(reading.poll_recv(context)) {
                    Some(step) => watch.took(step),
                    // It was too slow for the thread.
                    None => watch.reading = None,
                }
                continue;
            }
            if !watch.on_ring {
                watch.read();
                continue;
            }
            let known = watch.owes_bookmark.then(|| watch.client.view.resource_version());
            match watch.seat.next(&mut watch.position, context) {
                Next::Frame { bytes, local } => {
                    watch.owes_bookmark |= local && watch.bookmarks;
                    return Poll::Ready(Some(bytes));
                }
                Next::Behind => {
                    watch.on_ring = false;
                    continue;
                }
                Next::Nothing => {}
            }
            if known.is_some_and(|known| watch.bookmark(known)) {
                continue;
            }
            if watch.timer.as_mut().poll(context).is_ready() {
                watch.is_due();
                continue;
            }
            match watch.sync.poll_next_unpin(context) {
                // The client comes again and is told why.
                Poll::Ready(Some(sync)) => watch.ended |= sync.state.ends_watches(),
                Poll::Ready(None) => watch.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
