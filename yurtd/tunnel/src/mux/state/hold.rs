//! What the holder of a stream does with it.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use yurt_api::tunnel::{Frame, ResetCode, StreamId};

use super::{MAX_QUEUED_TOTAL, Sending, State};
use crate::mux::chunks::Chunks;
use crate::mux::end::End;

impl State {
    /// What has arrived, as `take` takes it out of the queue; `None` at the end of data. Whoever takes it says with
    /// [`Self::consumed`] when it is done with it.
    pub(in crate::mux) fn poll_read<T>(
        &mut self,
        id: StreamId,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Chunks) -> T,
    ) -> Poll<io::Result<Option<T>>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone(&self.end))) };
        if !stream.received.is_empty() {
            return Poll::Ready(Ok(Some(take(&mut stream.received))));
        }
        if stream.receive_finished {
            return Poll::Ready(Ok(None));
        }
        if let Some(code) = stream.reset {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, code.to_string())));
        }
        if self.end.is_some() {
            return Poll::Ready(Err(gone(&self.end)));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The reader is done with `bytes` of what it took: the peer may send as many again.
    pub(in crate::mux) fn consumed(&mut self, id: StreamId, bytes: usize, now: Instant) {
        let round_trip = self.round_trips.iter().min().copied();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let bytes = bytes.min(stream.unread);
        stream.unread -= bytes;
        self.held -= bytes;
        if stream.receive_finished || stream.reset.is_some() {
            return;
        }
        if let Some(credit) = stream.window.consumed(bytes, now, round_trip, &mut self.budget) {
            if stream.update == 0 {
                self.updates.push_back(id);
            }
            stream.update = stream.update.saturating_add(credit);
        }
    }

    /// How many bytes may be queued now; at least one.
    pub(in crate::mux) fn poll_room(
        &mut self,
        id: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let crowded = self.queued > MAX_QUEUED_TOTAL;
        if self.end.is_some() {
            return Poll::Ready(Err(gone(&self.end)));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone(&self.end))) };
        if let Some(code) = stream.reset {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, code.to_string())));
        }
        if stream.sending != Sending::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match stream.room(crowded) {
            0 => {
                stream.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Ready when the peer has reset the stream or the session has ended, whatever can still be read.
    pub(in crate::mux) fn poll_broken(&mut self, id: StreamId, cx: &mut Context<'_>) -> Poll<io::Error> {
        let stream = self.streams.get_mut(&id).filter(|_| self.end.is_none());
        let Some(stream) = stream else { return Poll::Ready(gone(&self.end)) };
        if let Some(code) = stream.reset {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, code.to_string()));
        }
        stream.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Queues a piece, no longer than [`Self::poll_room`] said.
    pub(in crate::mux) fn queue(&mut self, id: StreamId, piece: Bytes, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if self.end.is_some() || stream.reset.is_some() || piece.is_empty() {
            return;
        }
        debug_assert!(piece.len() <= stream.credit as usize);
        stream.credit = stream.credit.saturating_sub(piece.len() as u32);
        self.queued += piece.len();
        stream.queue.push(piece);
        self.schedule(id, now);
    }

    fn schedule(&mut self, id: StreamId, now: Instant) {
        if self.end.is_some() {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.scheduled
        {
            stream.scheduled = true;
            self.ready.push(id, stream.load.class(now));
        }
    }

    /// Nothing more will be written.
    pub(in crate::mux) fn finish(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.sending == Sending::Open
        {
            stream.sending = Sending::Finishing;
            self.schedule(id, now);
        }
    }

    /// The holder is gone. What it finished is still delivered; what it did not finish is reset.
    pub(in crate::mux) fn drop_stream(&mut self, id: StreamId, code: ResetCode) {
        let ended = self.end.is_some();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.held = false;
        stream.received.clear();
        self.held -= std::mem::take(&mut stream.unread);
        if ended || stream.reset.is_some() {
            self.remove(id);
        } else if stream.sending == Sending::Open {
            self.control.push_back(Frame::Reset { stream: id, code });
            self.remove(id);
        } else {
            self.remove_if_over(id);
        }
    }
}

fn gone(end: &Option<End>) -> io::Error {
    let why = end
        .as_ref()
        .map_or_else(|| "stream is gone".to_owned(), |end| format!("tunnel session ended: {end}"));
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}
