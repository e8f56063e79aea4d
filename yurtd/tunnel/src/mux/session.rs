//! One session: the multiplexer's bytes through one WebSocket, and time.
//!
//! [`greet`] (the agent's side) and [`accept`] exchange HELLO and give three things: the [`Session`] (a handle that can
//! be cloned), the stream of requests to open streams (the agent's side) and the [`Driver`], a future that does all the
//! work and ends with the session. Whoever spawns the driver owns the session; dropping it ends every stream.
//!
//! Reading never waits for anything but the connection, so that a stalled stream stops no other one. Writing takes a
//! batch of frames, hands it to TLS and waits until the socket has taken it before the next one is chosen:
//! what is not chosen yet can still be overtaken.

mod driver;
mod hello;
mod receiver;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use yurt_api::tunnel::{Capabilities, GoAwayCode, OpenErrorCode, StreamId, Target};

pub use self::driver::Driver;
pub use self::hello::{Established, Greeting, accept, accept_peer, greet, greet_peer};
use super::end::{End, OpenFailure};
use super::liveness;
use super::shared::Shared;
use super::state::State;
use super::stream::TunnelStream;

/// How often to look whether a peer that was asked has answered.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Limits and times of a session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many streams a session has at a time. The agent's HELLO says its own; the server keeps to the lower.
    pub max_streams: u32,
    /// When to ask whether the peer is there.
    pub liveness: liveness::Settings,
    /// How long OPEN may stay unanswered.
    pub open_timeout: Duration,
    /// What HELLO says beyond the version.
    pub capabilities: Capabilities,
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
            capabilities: Capabilities::default(),
        }
    }

    /// The server's: a healthy agent speaks before the server has to ask.
    pub fn server() -> Self {
        let mut settings = Self::agent();
        settings.liveness.silence = Duration::from_secs(25);
        settings
    }

    /// Between two servers. They are near each other, and one that is dead must not be asked for long. OPEN may take longer
    /// than between the other one and its agent, so that what that comes to is heard.
    pub fn peer() -> Self {
        Self {
            max_streams: 1024,
            liveness: liveness::Settings {
                silence: Duration::from_secs(5),
                answer: Duration::from_secs(2),
                misses: 2,
            },
            open_timeout: Duration::from_secs(17),
            capabilities: Capabilities::default(),
        }
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

    /// Whether new streams may be opened: neither side has asked to use another session.
    pub fn takes_streams(&self) -> bool {
        self.shared.lock().takes_streams()
    }

    /// Ends the session and tells the peer why.
    pub fn close(&self, code: GoAwayCode) {
        self.shared.with(|state| {
            state.go_away(code);
            state.end(End::Closed(code));
        });
        self.shared.close.cancel();
    }

    /// Resolves when the peer has asked to use another session, and when the session is over. Says why the peer asked.
    pub async fn leaving(&self) -> Option<GoAwayCode> {
        tokio::select! {
            () = self.shared.leaving.cancelled() => {}
            () = self.shared.closed.cancelled() => {}
        }
        self.shared.lock().peer_leaves
    }

    /// Asks the peer now; whether anything was heard of it `within` this time.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = Instant::now();
        self.shared.with(|state| state.ask(asked));
        self.becomes(within, |state| state.heard > asked).await
    }

    /// Asks the peer now; whether it answered just that `within` this time. What was on its way before, and arrives
    /// although nobody is there any more, is no answer.
    pub async fn is_alive(&self, within: Duration) -> bool {
        let question = self.shared.with(|state| state.ask(Instant::now()));
        self.becomes(within, |state| state.answered >= question).await
    }

    /// Asks the peer now; how long it took to answer just that, if it did `within` this time.
    pub async fn measure(&self, within: Duration) -> Option<Duration> {
        self.is_alive(within).await.then(|| self.shared.lock().last_round_trip()).flatten()
    }

    async fn becomes(&self, within: Duration, so: impl Fn(&State) -> bool) -> bool {
        let asked = Instant::now();
        while asked.elapsed() < within {
            if so(&self.shared.lock()) {
                return true;
            }
            tokio::select! {
                () = self.closed() => return so(&self.shared.lock()),
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
        self.shared.lock().software().to_owned()
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
    pub fn target(&self) -> &Target {
        &self.target
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
