//! One stream of a tunnel session, as the rest of the program sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use yurt_api::tunnel::{ResetCode, StreamId};

use super::chunks::Pieces;
use super::shared::Shared;

/// A byte stream through the tunnel.
///
/// `shutdown` closes the writing half alone (the other end reads the end of data). Dropping a stream that was
/// shut down delivers what was written; dropping one that was not resets it, and the other end's reads and
/// writes fail. When the session ends, what has arrived can still be read before reads fail.
#[derive(Debug)]
pub struct TunnelStream {
    shared: Arc<Shared>,
    id: StreamId,
    /// What `poll_read` took out of the queue and its caller had no room for.
    unread: Bytes,
    /// How long that piece was as a whole.
    piece: usize,
    on_drop: ResetCode,
}

impl TunnelStream {
    pub(super) fn new(shared: Arc<Shared>, id: StreamId) -> Self {
        Self { shared, id, unread: Bytes::new(), piece: 0, on_drop: ResetCode::Cancelled }
    }

    /// Resets the stream, with the word that what is behind it failed.
    pub fn fail(mut self) {
        self.on_drop = ResetCode::Failed;
        self.shared.drop_stream(self.id, ResetCode::Failed);
    }

    /// Everything that has arrived, without a copy; `None` at the end of data. Not to be mixed with `AsyncRead`.
    /// [`Self::consumed`] says when it is somewhere else.
    pub(super) async fn read_pieces(&self) -> io::Result<Option<Pieces>> {
        self.shared.read_pieces(self.id).await
    }

    /// This many bytes of what was read are not held here any more: the other end may send as many again.
    pub(super) fn consumed(&self, bytes: usize) {
        self.shared.with(|state| state.consumed(self.id, bytes, Instant::now()));
    }

    /// Waits until something may be written; says how many bytes.
    pub(super) async fn room(&self) -> io::Result<usize> {
        self.shared.room(self.id).await
    }

    /// Waits until the other end has reset the stream, or the session has ended.
    pub(super) async fn broken(&self) -> io::Error {
        self.shared.broken(self.id).await
    }

    /// Sends a piece that is no longer than [`Self::room`] said.
    pub(super) fn write_piece(&self, piece: Bytes) {
        self.shared.with(|state| state.queue(self.id, piece, Instant::now()));
    }

    /// Says that nothing more will be written.
    pub(super) fn finish(&self) {
        self.shared.with(|state| state.finish(self.id, Instant::now()));
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            let id = self.id;
            let taken = self
                .shared
                .with(|state| state.poll_read(id, cx, |received| received.pop().unwrap_or_default()));
            match ready!(taken)? {
                Some(piece) => {
                    self.piece = piece.len();
                    self.unread = piece;
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        if self.unread.is_empty() {
            // Not the read buffer either that it may have been a part of.
            self.unread = Bytes::new();
            let piece = std::mem::take(&mut self.piece);
            self.consumed(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.shared.with(|state| state.poll_room(self.id, cx)))?;
        let count = room.min(buf.len());
        // Copied outside the lock: room only grows, as nobody else writes to this stream.
        let piece = Bytes::copy_from_slice(&buf[..count]);
        self.write_piece(piece);
        Poll::Ready(Ok(count))
    }

    /// What was written is on its way; there is nothing to wait for.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.shared.drop_stream(self.id, self.on_drop);
    }
}
