//! The wire protocol between the tunnel agent on an edge node and the tunnel server in the cloud.
//!
//! One WebSocket over mutual TLS ([`PATH`], [`SUBPROTOCOL`]) carries binary messages. Their boundaries mean
//! nothing: the concatenated payloads are a sequence of frames. A frame is a header of [`HEADER_LEN`] bytes
//! and a payload, together at most [`MAX_FRAME`]; all numbers are big-endian:
//!
//! ```text
//! byte 0        1        2..4      4..8         8..
//! ┌────────┬────────┬──────────┬────────────┬─────────────────────┐
//! │  kind  │ 0 (*)  │  length  │ stream id  │ payload, `length` B │   (*) reserved, must be zero
//! └────────┴────────┴──────────┴────────────┴─────────────────────┘
//! ```
//!
//! | kind | frame | stream | payload |
//! |---|---|---|---|
//! | 1 | HELLO | 0 | magic `YURT`, version `u16`, streams `u32`, window `u32`, software (`u8` length, UTF-8) |
//! | 2 | OPEN | ≥ 1 | target kind `u8`, then nothing (kubelet) or port `u16` and an address of 4 or 16 bytes |
//! | 3 | OPEN_ACK | ≥ 1 | – |
//! | 4 | OPEN_ERROR | ≥ 1 | code `u8`, message (`u8` length, UTF-8) |
//! | 5 | DATA | ≥ 1 | 1 to [`MAX_PAYLOAD`] bytes |
//! | 6 | FIN | ≥ 1 | – |
//! | 7 | RST | ≥ 1 | code `u8` |
//! | 8 | WINDOW | ≥ 1 | increment `u32`, at least 1 |
//! | 9, 10 | PING, PONG | 0 | 8 opaque bytes |
//! | 11 | GOAWAY | 0 | code `u8` |
//!
//! The agent speaks first (HELLO), the server answers with its own HELLO; the lower version counts. The limits
//! in a HELLO are those of its sender as receiver: how many streams it takes, and the credit that every
//! stream starts with. Only the server opens streams, with ids that it counts up. OPEN is answered by
//! OPEN_ACK or OPEN_ERROR. DATA uses up the receiver's credit, WINDOW gives some back; DATA beyond the credit,
//! an unknown kind, a reserved bit or a byte too many ends the session. FIN closes one direction, RST both.
//! GOAWAY asks for no further streams; those that are open may finish.

mod codec;
mod frame;

pub use codec::{DecodeError, data_header, decode, encode};
pub use frame::{Frame, GoAwayCode, Hello, OpenErrorCode, ResetCode, StreamId, Target};

/// Version of the protocol that this build speaks. The lower of both sides' counts.
pub const PROTOCOL_VERSION: u16 = 1;
/// Path of the WebSocket on the tunnel server.
pub const PATH: &str = "/tunnel";
/// `Sec-WebSocket-Protocol` of the tunnel.
pub const SUBPROTOCOL: &str = "tunnel.openyurt.io";
/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 8;
/// Bytes of the largest frame, header included: what fits into one TLS record.
pub const MAX_FRAME: usize = 16 * 1024;
/// Bytes of the largest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER_LEN;
/// Bytes of the longest text in a frame.
pub const MAX_TEXT: usize = 255;
/// Credit that streams start with unless a HELLO says otherwise, bytes.
pub const INITIAL_WINDOW: u32 = 64 * 1024;
/// No credit of a stream ever exceeds this, bytes.
pub const MAX_WINDOW: u32 = 1 << 30;
