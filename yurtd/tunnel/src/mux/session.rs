//! One session: the multiplexer's bytes through one WebSocket, and time.
//!
//! [`establish`] exchanges HELLO and gives three things: the [`Session`] (a handle that can be cloned), the stream of
//! requests to open streams (the agent's side) and the [`Driver`], a future that does all the work and
//! ends with the session. Whoever spawns the driver owns the session; dropping it ends every stream.
//!
//! Reading never waits for anything but the connection, so that a stalled stream stops no other one. Writing takes a
//! batch of frames, hands it to TLS and waits until the socket has taken it before the next one is chosen:
//! what is not chosen yet can still be overtaken.

mod driver;
mod receiver;
mod writer;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use yurt_api::tunnel::{GoAwayCode, OpenErrorCode, ResetCode, StreamId, Target};

pub use self::driver::{Driver, establish};
use super::chunks::{Chunks, Pieces};
use super::liveness;
use super::state::State;
pub use super::state::{Role, Violation};
use super::stream::TunnelStream;

/// How often to look whether a peer that was asked has answered.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Limits and times of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many streams the peer may have open; the server takes none.
    pub max_streams: u32,
    /// When to ask whether the peer is there.
    pub liveness: liveness::Settings,
    /// How long OPEN may stay unanswered.
    pub open_timeout: Duration,
}

impl Settings {
    /// The agent's: it is the one who keeps the NAT binding alive.
    pub fn agent() -> Self {
        Self {
            max_streams: 1024,
            liveness: liveness::Settings {
                silence: Duration::from_secs(20),
                answer: Duration::from_secs(5),
                misses: 3,
            },
            open_timeout: Duration::from_secs(15),
        }
    }

    /// The server's: a healthy agent speaks before the server has to ask.
    pub fn server() -> Self {
        let mut settings = Self { max_streams: 0, ..Self::agent() };
        settings.liveness.silence = Duration::from_secs(25);
        settings
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The peer closed the connection.
    #[error("the other side closed the connection")]
    ClosedByPeer,
    /// The peer said why it goes.
    #[error("the other side is leaving: {0}")]
    GoAway(GoAwayCode),
    /// This side closed it.
    #[error("closed: {0}")]
    Closed(GoAwayCode),
    /// The connection failed.
    #[error("connection failed: {0}")]
    Connection(String),
    /// Nothing was heard for too long.
    #[error("the other side does not answer any more")]
    Dead,
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The driver was dropped.
    #[error("the session was abandoned")]
    Abandoned,
}

/// Why a session could not be established.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The connection failed.
    #[error("connection failed: {0}")]
    Connection(#[from] std::io::Error),
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer left before it said HELLO.
    #[error("the other side closed the connection before it said anything")]
    Closed,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailure {
    /// The session is over or ends.
    #[error("the session has ended")]
    SessionEnded,
    /// The agent did not answer in time.
    #[error("no answer in time")]
    NoAnswer,
    /// The agent reset the stream instead of answering.
    #[error("the stream was reset")]
    Reset,
    /// As many streams are open as the agent takes.
    #[error("too many streams")]
    TooManyStreams,
    /// The agent's answer.
    #[error("the agent {code}: {message}")]
    Rejected {
        /// What it says.
        code: OpenErrorCode,
        /// Details for a person.
        message: String,
    },
}

/// State and signals that handle, streams and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There may be something to write.
    work: Notify,
    close: CancellationToken,
    /// The peer wants no more streams in this session.
    leaving: CancellationToken,
    closed: CancellationToken,
}

impl Shared {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held has ended one task; the state is consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle of a session.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    open_timeout: Duration,
}

/// Figures of a session.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Last measured round trip.
    pub round_trip: Option<Duration>,
    /// Streams open now.
    pub streams: usize,
    /// Bytes sent, WebSocket and TLS not counted.
    pub bytes_sent: u64,
    /// Bytes received, WebSocket and TLS not counted.
    pub bytes_received: u64,
}

impl Session {
    /// Asks the agent to connect to `target`.
    ///
    /// # Errors
    ///
    /// [`OpenFailure`], at the latest after the settings' `open_timeout`.
    pub async fn open(&self, target: Target) -> Result<TunnelStream, OpenFailure> {
        let (id, answered) = self.shared.with(|state| state.open(target, Instant::now()))?;
        // Dropped on every failure below, which resets the stream.
        let stream = TunnelStream::new(self.shared.clone(), id);
        match tokio::time::timeout(self.open_timeout, answered).await {
            Ok(Ok(Ok(()))) => Ok(stream),
            Ok(Ok(Err(failure))) => Err(failure),
            Ok(Err(_)) => Err(OpenFailure::SessionEnded),
            Err(_) => Err(OpenFailure::NoAnswer),
        }
    }

    /// Asks the peer to use another session for new streams; those that are open go on.
    pub fn go_away(&self, code: GoAwayCode) {
        self.shared.with(|state| state.go_away(code));
    }

    /// Ends the session and tells the peer why.
    pub fn close(&self, code: GoAwayCode) {
        self.shared.with(|state| {
            state.go_away(code);
            state.end(End::Closed(code));
        });
        self.shared.close.cancel();
    }

    /// Resolves when the peer has asked to use another session, and when the session is over.
    pub async fn leaving(&self) {
        tokio::select! {
            () = self.shared.leaving.cancelled() => {}
            () = self.shared.closed.cancelled() => {}
        }
    }

    /// Asks the peer now; whether anything was heard of it `within` this time.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = Instant::now();
        self.shared.with(|state| state.ask(asked));
        while asked.elapsed() < within {
            if self.shared.lock().heard > asked {
                return true;
            }
            tokio::select! {
                () = self.closed() => return false,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        false
    }

    /// Resolves when the session is over.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Figures for status and logs.
    pub fn figures(&self) -> Figures {
        let state = self.shared.lock();
        Figures {
            round_trip: state.last_round_trip(),
            streams: state.streams(),
            bytes_sent: state.bytes_sent,
            bytes_received: state.bytes_received,
        }
    }

    /// Name and version of the peer's software, as it says.
    pub fn peer_software(&self) -> String {
        self.shared.lock().peer.software.clone()
    }
}

/// The server asks for a stream. Dropped without an answer, it is rejected.
#[derive(Debug)]
pub struct OpenRequest {
    stream: Option<TunnelStream>,
    shared: Arc<Shared>,
    id: StreamId,
    target: Target,
}

impl OpenRequest {
    /// What the server wants to be connected to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Says that the target is connected.
    pub fn accept(mut self) -> Option<TunnelStream> {
        let stream = self.stream.take();
        self.shared.with(|state| state.answer(self.id, Ok(())));
        stream
    }

    /// Says why it is not.
    pub fn reject(self, code: OpenErrorCode, message: String) {
        self.shared.with(|state| state.answer(self.id, Err((code, message))));
        // The stream's own drop finds nothing left to reset.
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.stream.is_some() {
            let rejection = (OpenErrorCode::Unreachable, "the agent gave up".to_owned());
            self.shared.with(|state| state.answer(self.id, Err(rejection)));
        }
    }
}

impl Shared {
    pub(super) async fn read_pieces(&self, id: StreamId) -> std::io::Result<Option<Pieces>> {
        poll_fn(|cx| self.with(|state| state.poll_read(id, cx, Instant::now(), Chunks::take))).await
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
