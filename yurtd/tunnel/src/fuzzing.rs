//! What a fuzzer may call: one function a parser of what comes over a wire.
//!
//! Each takes any bytes and panics when what must hold of every input does not. `fuzz/` calls them; nothing else does,
//! and a program that does not call them does not contain them.

use bytes::BytesMut;

use crate::mux::websocket::{Decoder, Event, MAX_HEADER, Side, close_frame, frame, pong_frame};

pub use crate::mux::fuzzing::mux;
pub use crate::server::api::fuzzing::pod_request;

/// The WebSocket decoder: events are the same however the bytes are cut, no longer than what came, and what one side
/// frames the other reads.
pub fn websocket(input: &[u8]) {
    let [choice, step, wire @ ..] = input else { return };
    let (side, other) = match choice % 2 {
        0 => (Side::Client, Side::Server),
        _ => (Side::Server, Side::Client),
    };
    let whole = decode(side, wire, wire.len().max(1));
    assert_eq!(decode(side, wire, usize::from(*step) + 1), whole);
    assert!(whole.payload.len() <= wire.len());

    let mask = [*choice, *step, choice ^ step, 7];
    let mut sent = BytesMut::zeroed(MAX_HEADER);
    sent.extend_from_slice(wire);
    frame(other, mask, &mut sent);
    let mut control = BytesMut::new();
    pong_frame(other, mask, &wire[..wire.len().min(125)], &mut control);
    sent.extend_from_slice(&control);
    close_frame(other, mask, &mut control);
    sent.extend_from_slice(&control);
    let expected = Decoded { payload: wire.to_vec(), closed: true, ..Decoded::default() };
    assert_eq!(decode(side, &sent, usize::from(*step) + 1), expected);
}

/// What came out of a decoder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    payload: Vec<u8>,
    pings: Vec<Vec<u8>>,
    closed: bool,
    refused: bool,
}

fn decode(side: Side, wire: &[u8], step: usize) -> Decoded {
    let mut decoder = Decoder::new(side);
    let (mut input, mut decoded) = (BytesMut::new(), Decoded::default());
    for chunk in wire.chunks(step) {
        input.extend_from_slice(chunk);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Event::Data(data))) => decoded.payload.extend_from_slice(&data),
                Ok(Some(Event::Ping(payload))) => {
                    assert!(payload.len() <= 125);
                    decoded.pings.push(payload.to_vec());
                }
                Ok(Some(Event::Close)) => decoded.closed = true,
                Ok(None) => break,
                Err(_) => {
                    decoded.refused = true;
                    return decoded;
                }
            }
        }
    }
    decoded
}
