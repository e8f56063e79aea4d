//! The multiplexer without I/O: streams, their queues and credit, and what is sent next.
//!
//! A stream only takes bytes from its writer that the peer has given credit for, so whatever is queued may be
//! sent at once and a stalled reader at the other end costs nothing here but its own writer's patience.
//! Received bytes wait in the stream's queue, bounded by the window ([`super::window`]); reading from the
//! connection never waits for a stream. Credit goes back for what its reader is done with, and not for what it merely
//! took out of the queue: so the windows bound all that is held of a session's received bytes, wherever it is.
//!
//! ```text
//!  open ──► Opening ──OPEN_ACK──► Open ──FIN sent and received──► gone
//!              │                    │
//!              └──OPEN_ERROR────────┴──RST sent or received──► gone (when its handle is dropped)
//! ```
//!
//! Only the server opens streams. Frames for streams that are gone are late and are ignored; frames for streams
//! that never were end the session.

mod hold;
mod receive;
mod send;

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use yurt_api::tunnel::{Frame, GoAwayCode, OpenErrorCode, ResetCode, StreamId, Target};

use super::chunks::Chunks;
use super::end::{End, OpenFailure};
use super::schedule::{Load, Ready};
use super::window::{Budget, ReceiveWindow};

/// What one stream may have queued for sending, bytes.
const MAX_QUEUED: usize = 128 * 1024;
/// What one stream may have queued while the session has more than [`MAX_QUEUED_TOTAL`] queued.
const MAX_QUEUED_CROWDED: usize = 16 * 1024;
/// What all streams of a session may have queued before each is held shorter, bytes.
const MAX_QUEUED_TOTAL: usize = 4 * 1024 * 1024;
/// What the windows of a session may have in total beyond what HELLO promised, bytes.
const WINDOW_BUDGET: u32 = 8 * 1024 * 1024;
/// Received pieces are kept as they came, with the read buffers that they are parts of, while a session holds less than
/// this, bytes. Beyond it they are copied, so that what is held is what is in memory.
const KEEP_BUFFERS: usize = 512 * 1024;
/// After this many bytes in either direction the round trip is measured again ...
const MEASURE_AFTER: u64 = 1024 * 1024;
/// ... but not more often than this.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// How many measurements the shortest round trip is taken from.
const ROUND_TRIPS: usize = 8;

/// Which part of a session this side has: that of the server, or of a server that asks another one, or that of the agent,
/// or of a server that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Opens streams.
    Server,
    /// Is asked to.
    Agent,
}

/// What both sides' HELLO come to.
#[derive(Debug)]
pub(super) struct Terms {
    /// Streams at a time.
    pub(super) max_streams: u32,
    /// Credit that this side gives every stream from the start, bytes.
    pub(super) receive_window: u32,
    /// Credit that the peer gives every stream from the start, bytes.
    pub(super) send_window: u32,
    /// Name and version of the peer's software, as it says.
    pub(super) software: String,
}

/// Something that the session's driver has to act on.
#[derive(Debug)]
pub(super) enum Event {
    /// The server asks for a stream; it has been registered.
    Opened(StreamId, Target),
    /// The peer wants no more streams.
    GoAway(GoAwayCode),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// FIN goes out when the queue is empty.
    Finishing,
    Finished,
}

#[derive(Debug)]
struct Stream {
    /// Waits for the agent's answer.
    opening: Option<oneshot::Sender<Result<(), OpenFailure>>>,
    /// Somebody holds the stream. Without, it only lives until its queue is sent.
    held: bool,
    sending: Sending,
    queue: Chunks,
    /// What may still be queued.
    credit: u32,
    scheduled: bool,
    load: Load,
    received: Chunks,
    /// What has arrived and its reader is not done with: in the queue, or taken out of it.
    unread: usize,
    window: ReceiveWindow,
    receive_finished: bool,
    /// Credit to give to the peer.
    update: u32,
    reset: Option<ResetCode>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
}

impl Stream {
    fn room(&self, crowded: bool) -> usize {
        let most = if crowded { MAX_QUEUED_CROWDED } else { MAX_QUEUED };
        most.saturating_sub(self.queue.len()).min(self.credit as usize)
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take(), self.watcher.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Everything about a session that is not I/O.
#[derive(Debug)]
pub(super) struct State {
    role: Role,
    terms: Terms,
    streams: HashMap<StreamId, Stream>,
    /// The highest stream there ever was.
    last: u32,
    control: VecDeque<Frame>,
    pong: Option<u64>,
    updates: VecDeque<StreamId>,
    ready: Ready,
    queued: usize,
    /// What all streams have received and nobody is done with.
    pub(super) held: usize,
    budget: Budget,
    pub(super) end: Option<End>,
    /// The peer wants no more streams, and why.
    pub(super) peer_leaves: Option<GoAwayCode>,
    /// Neither side may open streams any more.
    going_away: bool,
    ping: Option<(u64, Instant)>,
    pings: u64,
    /// The latest PING of this side's that the peer has answered.
    pub(super) answered: u64,
    round_trips: VecDeque<Duration>,
    measured: (Instant, u64),
    pub(super) heard: Instant,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
}

impl State {
    pub(super) fn new(role: Role, terms: Terms, now: Instant) -> Self {
        Self {
            role,
            terms,
            streams: HashMap::new(),
            last: 0,
            control: VecDeque::new(),
            pong: None,
            updates: VecDeque::new(),
            ready: Ready::default(),
            queued: 0,
            held: 0,
            budget: Budget::new(WINDOW_BUDGET),
            end: None,
            peer_leaves: None,
            going_away: false,
            ping: None,
            pings: 0,
            answered: 0,
            round_trips: VecDeque::with_capacity(ROUND_TRIPS),
            measured: (now, 0),
            heard: now,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn software(&self) -> &str {
        &self.terms.software
    }

    pub(super) fn last_round_trip(&self) -> Option<Duration> {
        self.round_trips.back().copied()
    }

    pub(super) fn takes_streams(&self) -> bool {
        self.end.is_none() && !self.going_away
    }

    /// Asks the agent for a stream. The caller holds it from now on.
    pub(super) fn open(
        &mut self,
        target: Target,
        now: Instant,
    ) -> Result<(StreamId, oneshot::Receiver<Result<(), OpenFailure>>), OpenFailure> {
        if !self.takes_streams() || self.role != Role::Server {
            return Err(OpenFailure::SessionEnded);
        }
        if self.streams.len() >= self.terms.max_streams as usize {
            return Err(OpenFailure::TooManyStreams);
        }
        let stream = StreamId::new(self.last.wrapping_add(1)).ok_or(OpenFailure::SessionEnded)?;
        self.last = stream.get();
        let (answer, answered) = oneshot::channel();
        self.insert(stream, Some(answer), now);
        self.control.push_back(Frame::Open { stream, target });
        Ok((stream, answered))
    }

    fn insert(
        &mut self,
        stream: StreamId,
        opening: Option<oneshot::Sender<Result<(), OpenFailure>>>,
        now: Instant,
    ) {
        let mut window = ReceiveWindow::new(self.terms.receive_window, now);
        // Behind OPEN or in front of its answer, so that it is there before the first byte wants to be sent.
        let update = window.start(&mut self.budget);
        if update > 0 {
            self.updates.push_back(stream);
        }
        let new = Stream {
            opening,
            held: true,
            sending: Sending::Open,
            queue: Chunks::default(),
            credit: self.terms.send_window,
            scheduled: false,
            load: Load::new(now),
            received: Chunks::default(),
            unread: 0,
            window,
            receive_finished: false,
            update,
            reset: None,
            reader: None,
            writer: None,
            watcher: None,
        };
        self.streams.insert(stream, new);
    }

    /// The agent's answer to OPEN. With an error the stream is gone.
    pub(super) fn answer(&mut self, stream: StreamId, answer: Result<(), (OpenErrorCode, String)>) {
        // A stream that the server has reset in the meantime needs no answer.
        if self.streams.get(&stream).is_none_or(|stream| stream.reset.is_some()) {
            return;
        }
        match answer {
            Ok(()) => self.control.push_back(Frame::OpenAck { stream }),
            Err((code, message)) => {
                self.control.push_back(Frame::OpenError { stream, code, message });
                self.remove(stream);
            }
        }
    }

    /// Asks the peer to open no more streams, and opens none.
    pub(super) fn go_away(&mut self, code: GoAwayCode) {
        self.going_away = true;
        self.control.push_back(Frame::GoAway(code));
    }

    /// Ends every stream. What has arrived can still be read.
    pub(super) fn end(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        // A FIN behind data that was thrown away would make it look whole.
        self.ready = Ready::default();
        self.updates.clear();
        for stream in self.streams.values_mut() {
            if let Some(opening) = stream.opening.take() {
                let _ = opening.send(Err(OpenFailure::SessionEnded));
            }
            stream.queue.clear();
            stream.wake();
        }
        let held = &mut self.held;
        self.streams.retain(|_, stream| {
            if !stream.held {
                *held -= stream.unread;
            }
            stream.held
        });
    }

    fn remove(&mut self, id: StreamId) {
        if let Some(mut stream) = self.streams.remove(&id) {
            self.queued -= stream.queue.len();
            self.held -= stream.unread;
            stream.window.release(&mut self.budget);
            stream.wake();
        }
    }

    /// Panics if what is counted for all streams is not what the streams have. For tests and the fuzzer, before the end.
    pub(super) fn assert_sums(&self) {
        let sum = |part: fn(&Stream) -> usize| self.streams.values().map(part).sum::<usize>();
        assert_eq!(self.queued, sum(|stream| stream.queue.len()));
        assert_eq!(self.held, sum(|stream| stream.unread));
        assert!(self.streams.values().all(|stream| stream.received.len() <= stream.unread));
        assert_eq!(self.budget.spent() as usize, sum(|stream| stream.window.beyond_promise() as usize));
    }

    /// Queues a PING; says its number.
    pub(super) fn ask(&mut self, now: Instant) -> u64 {
        self.pings += 1;
        self.ping = Some((self.pings, now));
        self.measured = (now, self.bytes_sent + self.bytes_received);
        self.control.push_back(Frame::Ping(self.pings));
        self.pings
    }

    fn measured(&mut self, number: u64, now: Instant) {
        if number <= self.pings {
            self.answered = self.answered.max(number);
        }
        let Some((asked, at)) = self.ping else { return };
        if asked == number {
            self.ping = None;
            if self.round_trips.len() == ROUND_TRIPS {
                self.round_trips.pop_front();
            }
            self.round_trips.push_back(now.duration_since(at));
        }
    }

    /// Measures the round trip again while much is moved: windows grow by it.
    fn measure_when_busy(&mut self, now: Instant) {
        let (at, bytes) = self.measured;
        let moved = self.bytes_sent + self.bytes_received - bytes;
        if moved >= MEASURE_AFTER && now.duration_since(at) >= MEASURE_EVERY {
            self.ask(now);
        }
    }
}
