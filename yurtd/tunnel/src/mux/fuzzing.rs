//! Both ends of the multiplexer without I/O, for a fuzzer that plays the peer and the streams' holders.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use yurt_api::tunnel::{Frame, GoAwayCode, MAX_WINDOW, OpenErrorCode, ResetCode, StreamId, Target, decode};

use super::end::End;
use super::state::{Event, Role, State, Terms};

/// What each side gives every stream at first.
const WINDOW: u32 = 64;
const STREAMS: u32 = 4;

/// The multiplexer's state machine: whatever the peer sends and the holders do, it says nothing that is no frame, sends no
/// byte that it had no credit for, and holds no more than the windows and the bounds of its queues.
pub fn mux(input: &[u8]) {
    let [role, commands @ ..] = input else { return };
    let role = if role % 2 == 0 { Role::Agent } else { Role::Server };
    let terms =
        Terms { max_streams: STREAMS, receive_window: WINDOW, send_window: WINDOW, software: String::new() };
    let mut now = Instant::now();
    let mut state = State::new(role, terms, now);
    let mut credit: HashMap<StreamId, u64> = HashMap::new();
    let mut context = Context::from_waker(Waker::noop());
    for command in commands.chunks_exact(3) {
        let [kind, number, amount] = [command[0], command[1], command[2]];
        let Some(id) = StreamId::new(u32::from(number % 6) + 1) else { return };
        let piece = Bytes::from(vec![amount; usize::from(amount)]);
        now += Duration::from_millis(u64::from(amount));
        let frame = match kind % 16 {
            0 => Some(Frame::Data { stream: id, payload: piece.clone() }),
            1 => NonZeroU32::new(u32::from(amount) << (number % 24))
                .map(|increment| Frame::Window { stream: id, increment }),
            2 => Some(Frame::Fin { stream: id }),
            3 => Some(Frame::Reset { stream: id, code: ResetCode::Failed }),
            4 => Some(Frame::Open { stream: id, target: Target::Kubelet }),
            5 => Some(Frame::OpenAck { stream: id }),
            6 => {
                let code = OpenErrorCode::TooManyStreams;
                Some(Frame::OpenError { stream: id, code, message: String::new() })
            }
            7 => Some(Frame::Ping(amount.into())),
            8 => Some(Frame::Pong(amount.into())),
            _ => None,
        };
        if let Some(frame) = frame {
            if let Frame::Window { stream, increment } = &frame {
                *credit.entry(*stream).or_insert(WINDOW.into()) += u64::from(increment.get());
            }
            match state.receive(frame, now) {
                Ok(Some(Event::Opened(id, _))) if amount % 8 != 0 => state.answer(id, Ok(())),
                Ok(Some(Event::Opened(id, _))) => {
                    state.answer(id, Err((OpenErrorCode::TooManyStreams, String::new())));
                }
                Ok(_) => {}
                Err(_) => return state.end(End::ClosedByPeer),
            }
            continue;
        }
        match kind % 16 {
            9 => drop(state.open(Target::Kubelet, now)),
            10 => {
                if let Poll::Ready(Ok(room)) = state.poll_room(id, &mut context) {
                    assert!(room > 0);
                    state.queue(id, piece.slice(..piece.len().min(room)), now);
                }
            }
            11 => state.finish(id, now),
            12 => state.drop_stream(id, ResetCode::Failed),
            13 => {
                let taken = state.poll_read(id, &mut context, |received| {
                    let length = received.len().min(amount.into());
                    received.take_into(length, &mut BytesMut::new())
                });
                // Some of it stays with its reader.
                if let Poll::Ready(Ok(Some(taken))) = taken {
                    state.consumed(id, taken - usize::from(number % 3).min(taken), now);
                }
            }
            14 => state.go_away(GoAwayCode::ShuttingDown),
            _ => say(&mut state, now, &mut credit),
        }
        assert!(state.streams() <= 2 * STREAMS as usize);
        state.assert_sums();
    }
    say(&mut state, now, &mut credit);
}

/// What the state says next, as the peer reads it.
fn say(state: &mut State, now: Instant, credit: &mut HashMap<StreamId, u64>) {
    let mut out = BytesMut::new();
    state.fill(&mut out, 4096, now);
    loop {
        match decode(&mut out) {
            Ok(Some(Frame::Data { stream, payload })) => {
                let left = credit.entry(stream).or_insert(WINDOW.into());
                assert!(payload.len() as u64 <= *left, "stream {stream} has no credit");
                *left -= payload.len() as u64;
            }
            Ok(Some(Frame::Window { increment, .. })) => assert!(increment.get() <= MAX_WINDOW),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => panic!("it says what is no frame: {error}"),
        }
    }
    assert!(out.is_empty(), "it says half a frame");
}
