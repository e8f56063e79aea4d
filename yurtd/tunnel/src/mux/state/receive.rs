//! What arrives from the peer.

use std::num::NonZeroU32;
use std::time::Instant;

use bytes::Bytes;
use yurt_api::tunnel::{Frame, MAX_WINDOW, OpenErrorCode, ResetCode, StreamId, Target};

use super::{Event, KEEP_BUFFERS, MAX_QUEUED, Role, State};
use crate::mux::end::{OpenFailure, Violation};

impl State {
    pub(in crate::mux) fn receive(&mut self, frame: Frame, now: Instant) -> Result<Option<Event>, Violation> {
        match frame {
            Frame::Data { stream, payload } => self.data(stream, payload)?,
            Frame::Window { stream, increment } => self.credit(stream, increment)?,
            Frame::Fin { stream } => self.fin(stream)?,
            Frame::Reset { stream, code } => {
                if self.known(stream, "RST")? {
                    self.reset_by_peer(stream, code);
                }
            }
            Frame::Open { stream, target } => return self.opened(stream, target, now),
            Frame::OpenAck { stream } => self.acknowledged(stream)?,
            Frame::OpenError { stream, code, message } => self.refused(stream, code, message)?,
            Frame::Ping(number) => self.pong = Some(number),
            Frame::Pong(number) => self.measured(number, now),
            Frame::GoAway(code) => {
                self.going_away = true;
                self.peer_leaves = Some(code);
                return Ok(Some(Event::GoAway(code)));
            }
            Frame::Hello(_) => return Err(Violation::Unexpected("HELLO")),
            Frame::Begin => return Err(Violation::Unexpected("BEGIN")),
        }
        Ok(None)
    }

    /// Whether the stream is there; an error if it never was.
    fn known(&self, stream: StreamId, frame: &'static str) -> Result<bool, Violation> {
        if self.streams.contains_key(&stream) {
            Ok(true)
        } else if stream.get() <= self.last {
            Ok(false)
        } else {
            Err(Violation::Stream(frame, stream))
        }
    }

    fn data(&mut self, id: StreamId, payload: Bytes) -> Result<(), Violation> {
        if !self.known(id, "DATA")? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.opening.is_some() || (stream.receive_finished && stream.reset.is_none()) {
            return Err(Violation::Stream("DATA", id));
        }
        stream.window.received(payload.len()).map_err(|_| Violation::Overrun(id))?;
        if stream.held && stream.reset.is_none() {
            stream.unread += payload.len();
            self.held += payload.len();
            if self.held <= KEEP_BUFFERS {
                stream.received.push_shared(payload);
            } else {
                stream.received.push_copy(&payload);
            }
            if let Some(reader) = stream.reader.take() {
                reader.wake();
            }
        }
        Ok(())
    }

    fn credit(&mut self, id: StreamId, increment: NonZeroU32) -> Result<(), Violation> {
        if !self.known(id, "WINDOW")? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.credit = stream
            .credit
            .checked_add(increment.get())
            .filter(|credit| *credit <= MAX_WINDOW)
            .ok_or(Violation::Credit(id))?;
        if stream.queue.len() <= MAX_QUEUED / 2
            && let Some(writer) = stream.writer.take()
        {
            writer.wake();
        }
        Ok(())
    }

    fn fin(&mut self, id: StreamId) -> Result<(), Violation> {
        if !self.known(id, "FIN")? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.opening.is_some() || stream.receive_finished {
            return Err(Violation::Stream("FIN", id));
        }
        stream.receive_finished = true;
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
        self.remove_if_over(id);
        Ok(())
    }

    fn reset_by_peer(&mut self, id: StreamId, code: ResetCode) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.queued -= stream.queue.len();
        stream.queue.clear();
        stream.reset = Some(code);
        if let Some(opening) = stream.opening.take() {
            let _ = opening.send(Err(OpenFailure::Reset));
        }
        stream.wake();
        if !stream.held {
            self.remove(id);
        }
    }

    fn opened(&mut self, stream: StreamId, target: Target, now: Instant) -> Result<Option<Event>, Violation> {
        if self.role != Role::Agent {
            return Err(Violation::Unexpected("OPEN"));
        }
        if stream.get() <= self.last {
            return Err(Violation::Stream("OPEN", stream));
        }
        self.last = stream.get();
        let refusal = if self.going_away {
            Some(OpenErrorCode::GoingAway)
        } else if self.streams.len() >= self.terms.max_streams as usize {
            Some(OpenErrorCode::TooManyStreams)
        } else {
            None
        };
        if let Some(code) = refusal {
            if self.control.len() > 4 * self.terms.max_streams as usize + 64 {
                return Err(Violation::NotReading);
            }
            self.control.push_back(Frame::OpenError { stream, code, message: String::new() });
            return Ok(None);
        }
        self.insert(stream, None, now);
        Ok(Some(Event::Opened(stream, target)))
    }

    fn acknowledged(&mut self, id: StreamId) -> Result<(), Violation> {
        if self.role != Role::Server {
            return Err(Violation::Unexpected("OPEN_ACK"));
        }
        if !self.known(id, "OPEN_ACK")? {
            return Ok(());
        }
        let opening = self.streams.get_mut(&id).and_then(|stream| stream.opening.take());
        match opening {
            Some(opening) => {
                // Whoever asked may have given up; the stream is reset when its handle goes.
                let _ = opening.send(Ok(()));
                Ok(())
            }
            None => Err(Violation::Stream("OPEN_ACK", id)),
        }
    }

    fn refused(&mut self, id: StreamId, code: OpenErrorCode, message: String) -> Result<(), Violation> {
        if self.role != Role::Server {
            return Err(Violation::Unexpected("OPEN_ERROR"));
        }
        if !self.known(id, "OPEN_ERROR")? {
            return Ok(());
        }
        let opening = self.streams.get_mut(&id).and_then(|stream| stream.opening.take());
        let Some(opening) = opening else { return Err(Violation::Stream("OPEN_ERROR", id)) };
        let _ = opening.send(Err(OpenFailure::Rejected { code, message }));
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reset = Some(ResetCode::Failed);
        }
        Ok(())
    }
}
