//! Frames to the connection, a batch at a time.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt, WriteHalf};
use yurt_api::tunnel::MAX_FRAME;

use crate::mux::end::End;
use crate::mux::schedule::next_batch;
use crate::mux::shared::Shared;
use crate::mux::websocket::{self, Side};

/// How long a session may be idle before its buffer is given up.
const REST_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Writer<'a, S> {
    io: WriteHalf<S>,
    side: Side,
    shared: Arc<Shared>,
    /// The latest unanswered WebSocket ping (a proxy's; agent and server ask with frames of their own).
    pongs: &'a Mutex<Option<Bytes>>,
    /// What is left to write of the current message. Kept here so that the farewell can finish it.
    batch: BytesMut,
    masks: Masks,
}

impl<S: AsyncWrite + Unpin> Writer<'_, S> {
    pub(super) fn new(
        io: WriteHalf<S>,
        side: Side,
        shared: Arc<Shared>,
        pongs: &Mutex<Option<Bytes>>,
    ) -> Writer<'_, S> {
        Writer { io, side, shared, pongs, batch: BytesMut::new(), masks: Masks::new(side) }
    }

    pub(super) async fn run(&mut self) -> End {
        match self.write_all().await {
            Ok(never) => match never {},
            Err(error) => End::Connection(error.to_string()),
        }
    }

    async fn write_all(&mut self) -> std::io::Result<Infallible> {
        let mut limit = MAX_FRAME;
        loop {
            let ping = self.pongs.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(payload) = ping {
                websocket::pong_frame(self.side, self.masks.next(), &payload, &mut self.batch);
                self.flush().await?;
            }
            let sent = self.fill(limit);
            if sent == 0 {
                let work = self.shared.work.notified();
                if tokio::time::timeout(REST_AFTER, work).await.is_err() {
                    // An idle session holds no buffer.
                    self.batch = BytesMut::new();
                    self.shared.work.notified().await;
                }
                continue;
            }
            let started = Instant::now();
            self.flush().await?;
            limit = next_batch(limit, sent, started.elapsed());
        }
    }

    /// Fills the batch with one message; says how many bytes of frames are in it.
    fn fill(&mut self, limit: usize) -> usize {
        self.batch.clear();
        if self.shared.lock().has_work() {
            self.batch.reserve(websocket::MAX_HEADER + limit + MAX_FRAME);
        }
        self.batch.resize(websocket::MAX_HEADER, 0);
        self.shared.lock().fill(&mut self.batch, limit, Instant::now());
        let sent = self.batch.len() - websocket::MAX_HEADER;
        if sent == 0 {
            // Not the room for a header either: whatever is in the batch will be written.
            self.batch.clear();
        } else {
            websocket::frame(self.side, self.masks.next(), &mut self.batch);
        }
        sent
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.io.write_all_buf(&mut self.batch).await?;
        self.io.flush().await
    }

    /// GOAWAY if there is one, and a tidy end.
    pub(super) async fn farewell(&mut self) -> std::io::Result<()> {
        self.flush().await?;
        if self.fill(MAX_FRAME) > 0 {
            self.flush().await?;
        }
        websocket::close_frame(self.side, self.masks.next(), &mut self.batch);
        self.flush().await?;
        self.io.shutdown().await
    }
}

/// Masks that nobody can foresee, as RFC 6455 wants them from clients.
pub(super) struct Masks {
    side: Side,
    pool: [u8; 256],
    used: usize,
}

impl Masks {
    pub(super) fn new(side: Side) -> Self {
        Self { side, pool: [0; 256], used: 256 }
    }

    pub(super) fn next(&mut self) -> [u8; 4] {
        if self.side == Side::Server {
            return [0; 4];
        }
        if self.used == self.pool.len() {
            // The tunnel's bytes are inside TLS: should the system have no randomness, a known mask hurts nobody.
            let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut self.pool);
            self.used = 0;
        }
        let mask = self.pool[self.used..].first_chunk().copied().unwrap_or_default();
        self.used += 4;
        mask
    }
}
