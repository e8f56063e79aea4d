//! What leaves for the peer.

use std::num::NonZeroU32;
use std::time::Instant;

use bytes::BytesMut;
use yurt_api::tunnel::{self, Frame, MAX_PAYLOAD, ResetCode, StreamId};

use super::{MAX_QUEUED, MAX_QUEUED_TOTAL, Sending, State};

impl State {
    /// Whether [`Self::fill`] has anything to write.
    pub(in crate::mux) fn has_work(&self) -> bool {
        !self.control.is_empty() || self.pong.is_some() || !self.updates.is_empty() || !self.ready.is_empty()
    }

    /// Appends the next frames, at most about `limit` bytes of them.
    pub(in crate::mux) fn fill(&mut self, out: &mut BytesMut, limit: usize, now: Instant) {
        let start = out.len();
        self.measure_when_busy(now);
        if let Some(number) = self.pong.take() {
            tunnel::encode(&Frame::Pong(number), out);
        }
        while out.len() - start < limit {
            if let Some(frame) = self.control.pop_front() {
                tunnel::encode(&frame, out);
            } else if let Some(id) = self.updates.pop_front() {
                if let Some(stream) = self.streams.get_mut(&id)
                    && let Some(increment) = NonZeroU32::new(std::mem::take(&mut stream.update))
                    && !stream.receive_finished
                {
                    tunnel::encode(&Frame::Window { stream: id, increment }, out);
                }
            } else if let Some((id, class)) = self.ready.pop() {
                let before = out.len();
                self.fill_from(id, out, now);
                self.ready.sent(class, out.len() - before);
            } else {
                break;
            }
        }
        self.bytes_sent += (out.len() - start) as u64;
    }

    fn fill_from(&mut self, id: StreamId, out: &mut BytesMut, now: Instant) {
        let crowded = self.queued > MAX_QUEUED_TOTAL;
        // Gone or reset since it was scheduled.
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.scheduled = false;
        if stream.reset.is_some() {
            return;
        }
        if !stream.queue.is_empty() {
            // At most MAX_PAYLOAD, which is less than 2^16.
            let length = stream.queue.len().min(MAX_PAYLOAD) as u16;
            out.extend_from_slice(&tunnel::data_header(id, length));
            let taken = stream.queue.take_into(length.into(), out);
            self.queued -= taken;
            stream.load.moved(taken, now);
        }
        if stream.queue.is_empty() {
            if stream.sending == Sending::Finishing {
                stream.sending = Sending::Finished;
                tunnel::encode(&Frame::Fin { stream: id }, out);
            }
        } else {
            stream.scheduled = true;
            self.ready.push(id, stream.load.class(now));
        }
        if stream.queue.len() <= MAX_QUEUED / 2
            && stream.room(crowded) > 0
            && let Some(writer) = stream.writer.take()
        {
            writer.wake();
        }
        self.remove_if_over(id);
    }

    pub(super) fn remove_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.held || stream.sending != Sending::Finished {
            return;
        }
        if !stream.receive_finished {
            // Nobody will read the rest.
            self.control.push_back(Frame::Reset { stream: id, code: ResetCode::Cancelled });
        }
        self.remove(id);
    }
}
