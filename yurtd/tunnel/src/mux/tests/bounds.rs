//! Two multiplexers without I/O: what a receiver holds, and who goes first.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use yurt_api::tunnel::{Frame, INITIAL_WINDOW, StreamId, Target, decode};

use super::super::chunks::{Chunks, Pieces};
use super::super::state::{Event, Role, State, Terms};
use super::super::window::START;

const STREAMS: u32 = 1024;
/// What a session may hold of what it has received: what HELLO promises every stream, and the budget.
const BOUND: usize = STREAMS as usize * INITIAL_WINDOW as usize + 8 * 1024 * 1024;

struct Two {
    server: State,
    agent: State,
    now: Instant,
}

impl Two {
    fn new() -> Self {
        let now = Instant::now();
        let terms = || Terms {
            max_streams: STREAMS,
            receive_window: INITIAL_WINDOW,
            send_window: INITIAL_WINDOW,
            software: String::new(),
        };
        Self {
            server: State::new(Role::Server, terms(), now),
            agent: State::new(Role::Agent, terms(), now),
            now,
        }
    }

    /// Carries everything that either side has to say; streams that are asked for are there.
    fn carry(&mut self) {
        while self.server.has_work() || self.agent.has_work() {
            for frame in said(&mut self.server, self.now) {
                if let Some(Event::Opened(id, _)) = self.agent.receive(frame, self.now).unwrap() {
                    self.agent.answer(id, Ok(()));
                }
            }
            for frame in said(&mut self.agent, self.now) {
                self.server.receive(frame, self.now).unwrap();
            }
        }
    }

    fn open(&mut self, streams: u32) -> Vec<StreamId> {
        let ids = (0..streams).map(|_| self.server.open(Target::Kubelet, self.now).unwrap().0).collect();
        self.carry();
        ids
    }
}

fn said(state: &mut State, now: Instant) -> Vec<Frame> {
    let mut out = BytesMut::new();
    state.fill(&mut out, 64 * 1024, now);
    std::iter::from_fn(|| decode(&mut out).unwrap()).collect()
}

fn write(state: &mut State, id: StreamId, wanted: usize, now: Instant) -> usize {
    match state.poll_room(id, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(room) => {
            let count = room.unwrap().min(wanted);
            state.queue(id, Bytes::from(vec![7; count]), now);
            count
        }
        Poll::Pending => 0,
    }
}

fn take(state: &mut State, id: StreamId) -> Option<Pieces> {
    match state.poll_read(id, &mut Context::from_waker(Waker::noop()), Chunks::take) {
        Poll::Ready(taken) => taken.unwrap(),
        Poll::Pending => None,
    }
}

/// Writes on every stream until nothing more is taken, while readers `take` what has arrived and are never done with it.
/// How much was written, and the pieces that are somewhere.
fn stall(two: &mut Two, streams: &[StreamId], upwards: bool, takes: bool) -> (usize, Vec<Pieces>) {
    let (mut total, mut taken) = (0, Vec::new());
    loop {
        let (sender, now) = (if upwards { &mut two.agent } else { &mut two.server }, two.now);
        let written: usize = streams.iter().map(|id| write(sender, *id, usize::MAX, now)).sum();
        two.carry();
        if takes {
            let receiver = if upwards { &mut two.server } else { &mut two.agent };
            taken.extend(streams.iter().filter_map(|id| take(receiver, *id)));
        }
        total += written;
        if written == 0 {
            return (total, taken);
        }
    }
}

#[test]
fn all_the_streams_that_there_may_be_hold_no_more_than_the_bound_when_their_readers_stall() {
    for (upwards, takes) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut two = Two::new();
        let streams = two.open(STREAMS);
        let (written, taken) = stall(&mut two, &streams, upwards, takes);
        let receiver = if upwards { &mut two.server } else { &mut two.agent };
        assert_eq!(receiver.held, written);
        assert!(written <= BOUND, "{written} of at most {BOUND}");
        // Nobody was starved for it, and the first have what makes a stream fast.
        assert!(written >= BOUND - START as usize, "{written}");
        receiver.assert_sums();

        // A reader that goes on is served, whatever the others hold.
        let last = streams[streams.len() - 1];
        drop(taken);
        take(receiver, last);
        receiver.consumed(last, INITIAL_WINDOW as usize, two.now);
        two.carry();
        let sender = if upwards { &mut two.agent } else { &mut two.server };
        assert_eq!(write(sender, last, usize::MAX, two.now), INITIAL_WINDOW as usize);
    }
}

#[test]
fn what_streams_held_is_free_again_when_they_are_gone() {
    let mut two = Two::new();
    for _ in 0..3 {
        let streams = two.open(STREAMS);
        let (written, _) = stall(&mut two, &streams, false, false);
        assert!(written >= BOUND - START as usize, "{written}");
        for id in streams {
            two.agent.drop_stream(id, yurt_api::tunnel::ResetCode::Cancelled);
            two.server.drop_stream(id, yurt_api::tunnel::ResetCode::Cancelled);
        }
        two.carry();
        assert_eq!((two.agent.held, two.agent.streams(), two.server.streams()), (0, 0, 0));
        two.agent.assert_sums();
    }
}

#[test]
fn a_stream_starts_with_the_wide_window_in_both_directions() {
    let mut two = Two::new();
    let streams = two.open(1);
    assert_eq!(write(&mut two.server, streams[0], usize::MAX, two.now), START as usize);
    assert_eq!(write(&mut two.agent, streams[0], usize::MAX, two.now), START as usize);
}

/// Moves `bytes` from the server to the agent, which reads them at once.
fn move_all(two: &mut Two, id: StreamId, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        left -= write(&mut two.server, id, left, two.now);
        two.carry();
        if let Some(taken) = take(&mut two.agent, id) {
            two.agent.consumed(id, bytes::Buf::remaining(&taken), two.now);
        }
        two.carry();
    }
}

#[test]
fn a_shell_that_printed_a_lot_goes_before_a_copy_again_after_a_silence() {
    let mut two = Two::new();
    let streams = two.open(2);
    let [copy, shell] = [streams[0], streams[1]];
    move_all(&mut two, copy, 1024 * 1024);
    move_all(&mut two, shell, 1024 * 1024);
    two.now += Duration::from_secs(10);
    move_all(&mut two, copy, 1024 * 1024);
    write(&mut two.server, copy, usize::MAX, two.now);
    assert_eq!(write(&mut two.server, shell, 1, two.now), 1);
    let mut out = BytesMut::new();
    two.server.fill(&mut out, 1, two.now);
    let first = decode(&mut out).unwrap().unwrap();
    assert!(matches!(first, Frame::Data { stream, .. } if stream == shell), "{first:?}");
}

#[test]
fn a_copy_moves_although_others_that_are_not_bulk_fill_the_link() {
    let mut two = Two::new();
    let streams = two.open(40);
    let copy = streams[0];
    move_all(&mut two, copy, 1024 * 1024);
    let (mut copied, mut sent) = (0, 0);
    // A link of 1 Mbit/s, a frame at a time: less than the others have to say.
    while sent < 2_000_000 {
        for id in &streams {
            write(&mut two.server, *id, 16_000, two.now);
        }
        let mut out = BytesMut::new();
        two.server.fill(&mut out, 1, two.now);
        two.now += Duration::from_secs_f64(out.len() as f64 / 125_000.0);
        sent += out.len();
        while let Some(frame) = decode(&mut out).unwrap() {
            if let Frame::Data { stream, payload } = &frame
                && *stream == copy
            {
                copied += payload.len();
            }
            two.agent.receive(frame, two.now).unwrap();
        }
        for id in &streams {
            if let Some(taken) = take(&mut two.agent, *id) {
                two.agent.consumed(*id, bytes::Buf::remaining(&taken), two.now);
            }
        }
        for frame in said(&mut two.agent, two.now) {
            two.server.receive(frame, two.now).unwrap();
        }
    }
    assert!(copied >= sent / 10, "{copied} of {sent}");
}
