//! What a session's handle, its streams and its driver share: the state behind one lock, and the signals between them.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use yurt_api::tunnel::{ResetCode, StreamId};

use super::chunks::{Chunks, Pieces};
use super::state::State;

/// State and signals that handle, streams and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There may be something to write.
    pub(super) work: Notify,
    /// This side ends the session.
    pub(super) close: CancellationToken,
    /// The peer wants no more streams in this session.
    pub(super) leaving: CancellationToken,
    /// The session is over.
    pub(super) closed: CancellationToken,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            work: Notify::new(),
            close: CancellationToken::new(),
            leaving: CancellationToken::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Runs `act` on the state and wakes the writer if there is something to write afterwards.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let had_work = state.has_work();
        let result = act(&mut state);
        let wake = !had_work && state.has_work();
        drop(state);
        if wake {
            self.work.notify_one();
        }
        result
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held has ended one task; the state is consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn read_pieces(&self, id: StreamId) -> std::io::Result<Option<Pieces>> {
        poll_fn(|cx| self.with(|state| state.poll_read(id, cx, Chunks::take))).await
    }

    pub(super) async fn room(&self, id: StreamId) -> std::io::Result<usize> {
        poll_fn(|cx| self.with(|state| state.poll_room(id, cx))).await
    }

    pub(super) async fn broken(&self, id: StreamId) -> std::io::Error {
        poll_fn(|cx| self.with(|state| state.poll_broken(id, cx))).await
    }

    pub(super) fn drop_stream(&self, id: StreamId, code: ResetCode) {
        self.with(|state| state.drop_stream(id, code));
    }
}
