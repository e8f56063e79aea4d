//! Bytes from the connection to frames.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use yurt_api::tunnel::{self, Frame};

use crate::mux::end::Violation;
use crate::mux::websocket::{self, Side};

/// Read buffer of a connection that moves data, bytes.
const READ_BUSY: usize = 32 * 1024;
/// Read buffer of a connection that does not, bytes.
const READ_IDLE: usize = 2 * 1024;

/// Bytes from the connection, cut into frames.
#[derive(Debug)]
pub(super) struct Receiver {
    websocket: websocket::Decoder,
    raw: BytesMut,
    /// Payload that is not a whole frame yet: less than the largest frame once it was decoded.
    payload: BytesMut,
    size: usize,
}

pub(super) enum Received {
    Frame(Frame),
    Ping(Bytes),
    Close,
}

impl Receiver {
    pub(super) fn new(side: Side) -> Self {
        Self {
            websocket: websocket::Decoder::new(side),
            raw: BytesMut::new(),
            payload: BytesMut::new(),
            size: READ_IDLE,
        }
    }

    /// The next thing that has been read; `None` when the connection must be read first.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Violation> {
        loop {
            if let Some(frame) = tunnel::decode(&mut self.payload)? {
                return Ok(Some(Received::Frame(frame)));
            }
            match self.websocket.decode(&mut self.raw)? {
                // No copy where the two lie next to each other.
                Some(websocket::Event::Data(data)) => self.payload.unsplit(data),
                Some(websocket::Event::Ping(payload)) => return Ok(Some(Received::Ping(payload))),
                Some(websocket::Event::Close) => return Ok(Some(Received::Close)),
                None => return Ok(None),
            }
        }
    }

    /// Reads what there is. The buffer grows with the traffic and is given up when there is none.
    pub(super) async fn read<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> std::io::Result<usize> {
        if self.raw.capacity() - self.raw.len() < self.size / 2 {
            self.raw.reserve(self.size);
        }
        let room = self.raw.capacity() - self.raw.len();
        let count = io.read_buf(&mut self.raw).await?;
        if count == room {
            self.size = READ_BUSY;
        } else if count < READ_IDLE / 4 && self.size > READ_IDLE {
            self.size = READ_IDLE;
        }
        Ok(count)
    }

    /// Gives up buffers that nothing is waiting in.
    pub(super) fn rest(&mut self) {
        if self.raw.is_empty() && self.size == READ_IDLE && self.raw.capacity() > READ_IDLE {
            self.raw = BytesMut::new();
        }
        if self.payload.is_empty() {
            self.payload = BytesMut::new();
        }
    }
}
