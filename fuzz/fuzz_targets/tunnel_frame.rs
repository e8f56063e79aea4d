//! The tunnel's frame decoder against whatever a peer may send: it never panics, never takes more than it was given,
//! and what it accepts is exactly what the encoder writes.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use yurt_api::tunnel::{MAX_FRAME, decode, encode};

fuzz_target!(|input: &[u8]| {
    let mut rest = BytesMut::from(input);
    loop {
        let before = rest.clone();
        match decode(&mut rest) {
            Ok(Some(frame)) => {
                let taken = before.len() - rest.len();
                assert!(taken <= MAX_FRAME);
                let mut again = BytesMut::new();
                encode(&frame, &mut again);
                assert_eq!(again, before[..taken]);
            }
            Ok(None) => {
                assert_eq!(rest, before);
                break;
            }
            Err(_) => break,
        }
    }
});
