//! What runs a session: reading, writing and time, in one future.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::sync::mpsc;
use yurt_api::tunnel::GoAwayCode;

use super::OpenRequest;
use super::receiver::{Received, Receiver};
use super::writer::Writer;
use crate::mux::end::End;
use crate::mux::liveness::{self, Liveness, Step};
use crate::mux::shared::Shared;
use crate::mux::state::Event;
use crate::mux::stream::TunnelStream;
use crate::mux::websocket::Side;

/// How long the last words of a session may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Does the session's work; see [`Driver::run`].
#[derive(Debug)]
pub struct Driver<S> {
    io: S,
    receiver: Receiver,
    side: Side,
    shared: Arc<Shared>,
    opens: mpsc::Sender<OpenRequest>,
    liveness: liveness::Settings,
}

impl<S> Driver<S> {
    pub(super) fn new(
        io: S,
        receiver: Receiver,
        side: Side,
        shared: Arc<Shared>,
        opens: mpsc::Sender<OpenRequest>,
        liveness: liveness::Settings,
    ) -> Self {
        Self { io, receiver, side, shared, opens, liveness }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Runs the session to its end.
    pub async fn run(self) -> End {
        let Self { io, receiver, side, shared, opens, liveness } = self;
        let guard = Guard { shared: shared.clone() };
        let (reading, writing) = tokio::io::split(io);
        let pongs = Mutex::new(None);
        let mut writer = Writer::new(writing, side, shared.clone(), &pongs);
        let end = tokio::select! {
            end = read(reading, receiver, &shared, &opens, &pongs) => end,
            end = writer.run() => end,
            () = keep_alive(&shared, liveness) => End::Dead,
            () = shared.close.cancelled() => shared.lock().end.clone().unwrap_or(End::Abandoned),
        };
        if let End::Violation(_) = &end {
            shared.with(|state| state.go_away(GoAwayCode::ProtocolError));
        }
        shared.with(|state| state.end(end.clone()));
        if matches!(end, End::Violation(_) | End::Closed(_) | End::GoAway(_)) {
            // The peer learns why, if it listens.
            let _ = tokio::time::timeout(FAREWELL, writer.farewell()).await;
        }
        drop(guard);
        end
    }
}

/// Ends every stream when the driver is dropped.
struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.with(|state| state.end(End::Abandoned));
        self.shared.closed.cancel();
    }
}

async fn read<S: AsyncRead + Unpin>(
    mut io: ReadHalf<S>,
    mut receiver: Receiver,
    shared: &Arc<Shared>,
    opens: &mpsc::Sender<OpenRequest>,
    pongs: &Mutex<Option<Bytes>>,
) -> End {
    let mut last_words = None;
    loop {
        match receiver.read(&mut io).await {
            Ok(0) => return last_words.unwrap_or(End::ClosedByPeer),
            Ok(count) => shared.lock().bytes_received += count as u64,
            Err(error) => return last_words.unwrap_or(End::Connection(error.to_string())),
        }
        // One lock for everything that one read brought.
        let mut events = Vec::new();
        let outcome = shared.with(|state| {
            let now = Instant::now();
            state.heard = now;
            loop {
                match receiver.next()? {
                    Some(Received::Frame(frame)) => events.extend(state.receive(frame, now)?),
                    Some(Received::Ping(payload)) => {
                        *pongs.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
                        shared.work.notify_one();
                    }
                    Some(Received::Close) => return Ok(true),
                    None => return Ok(false),
                }
            }
        });
        for event in events {
            match event {
                Event::Opened(id, target) => {
                    let stream = TunnelStream::new(shared.clone(), id);
                    let request = OpenRequest { stream: Some(stream), shared: shared.clone(), id, target };
                    // Nobody serves streams any more: the request's drop refuses.
                    let _ = opens.try_send(request);
                }
                Event::GoAway(code) => {
                    last_words = Some(End::GoAway(code));
                    shared.leaving.cancel();
                }
            }
        }
        match outcome {
            Ok(false) => {}
            Ok(true) => return last_words.unwrap_or(End::ClosedByPeer),
            Err(violation) => return End::Violation(violation),
        }
        receiver.rest();
    }
}

/// Returns when the peer is dead.
async fn keep_alive(shared: &Shared, settings: liveness::Settings) {
    let mut liveness = Liveness::new(settings);
    loop {
        let now = Instant::now();
        let heard = shared.lock().heard;
        let next = match liveness.step(now, heard) {
            Step::Ping(next) => {
                shared.with(|state| state.ask(now));
                next
            }
            Step::Wait(next) => next,
            Step::Dead => return,
        };
        tokio::time::sleep_until(next.into()).await;
    }
}
