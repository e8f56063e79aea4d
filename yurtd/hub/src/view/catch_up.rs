//! The way of a watcher from what it has to what is there, in one transaction: the state it has not been sent, what has
//! changed behind its back, each object once and as it was at one moment. Origin that moment on the ring has every event.
//!
//! What fits into a batch is read when the watch begins. More is read on a thread of its own, one batch ahead of whoever
//! takes them, as lists are that are larger than there is room for ([`list`](super::list)). LMDB's readers hold up nobody;
//! how many there may be and how long they may take is bounded, and whoever is too slow or finds no place goes on with a
//! transaction a batch: it ends at the same state, and misses versions in between.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::feed::{self, Batch, Position};
use super::list::Room;
use super::{Since, View, WatchOptions};
use crate::limits;
use crate::store::{Reader, StoreError};

/// A batch, and where its watcher stands when it has been sent it.
pub(super) type Step = Result<(Position, Batch), StoreError>;

/// Where it begins.
pub(super) enum Origin {
    /// Nothing was sent yet. In the other half there is the collection's resourceVersion, read before the transaction.
    Beginning(WatchOptions),
    /// Everything up to there was sent.
    Position(Position),
}

impl Origin {
    /// Where that is in this transaction; none if what the watcher has cannot be continued.
    pub(super) fn stand(
        self,
        view: &View,
        reader: &Reader<'_>,
        known: u64,
    ) -> Result<Option<Position>, StoreError> {
        match self {
            Self::Position(position) => Ok(Some(position)),
            Self::Beginning(options) => beginning(view, reader, known, options),
        }
    }
}

/// Where a watch begins.
fn beginning(
    view: &View,
    reader: &Reader<'_>,
    known: u64,
    options: WatchOptions,
) -> Result<Option<Position>, StoreError> {
    let record = feed::load(reader, view.id)?;
    Ok(match options.since {
        Since::Exactly(since) if !options.send_initial_events => {
            let position = Position::after(&record, known, since, options.bookmarks);
            position.map(|position| match view.ring.seen_by(since) {
                Some(seen) => position.joining(seen),
                None => position,
            })
        }
        Since::Exactly(_) | Since::Any => {
            Some(Position::from_state(&record, known, options.send_initial_events))
        }
    })
}

/// Reads on a thread of its own. Its channel ends without a drained batch when the watcher was too slow.
pub(super) fn in_one_transaction(view: &Arc<View>, room: Room, origin: Origin) -> mpsc::Receiver<Step> {
    let (steps, receiver) = mpsc::channel(1);
    let (view, runtime) = (Arc::clone(view), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _room = room;
        let until = Instant::now() + limits::LIST_WITHIN;
        let send = |step| {
            let by = until.min(Instant::now() + limits::STALLED);
            let sent = runtime.block_on(timeout_at(by, steps.send(step)));
            if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(StoreError::Closed) }
        };
        let known = view.resource_version();
        let read = view.read(|reader| {
            let Some(mut position) = origin.stand(&view, reader, known)? else {
                return send(Ok((Position::default(), Batch::expired())));
            };
            let mut batch = position.read(reader, view.id)?;
            loop {
                let last = batch.drained || batch.expired;
                send(Ok((position.clone(), batch)))?;
                if last {
                    return Ok(());
                }
                batch = position.read_on(reader, view.id)?;
            }
        });
        match read {
            Ok(()) => {}
            Err(StoreError::Closed) => tracing::debug!(view = %view.name(), "a watcher is slow, or gone"),
            Err(error) => drop(send(Err(error))),
        }
    });
    receiver
}
