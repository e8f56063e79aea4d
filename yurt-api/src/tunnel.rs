//! The wire protocol between the tunnel agent on an edge node and the tunnel server in the cloud, and between two servers.
//!
//! One WebSocket over mutual TLS ([`PATH`], [`PEER_PATH`], [`SUBPROTOCOL`]) carries binary messages. Their boundaries mean
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
//! | 1 | HELLO | 0 | magic `YURT`, version `u16`, and what that version has; see below |
//! | 2 | OPEN | ≥ 1 | target `u8`: 1 kubelet, 3 a node's kubelet, 4 a node's session (both: node, text), 5 the agents |
//! | 3 | OPEN_ACK | ≥ 1 | – |
//! | 4 | OPEN_ERROR | ≥ 1 | code `u8`, message (`u8` length, UTF-8) |
//! | 5 | DATA | ≥ 1 | 1 to [`MAX_PAYLOAD`] bytes |
//! | 6 | FIN | ≥ 1 | – |
//! | 7 | RST | ≥ 1 | code `u8` |
//! | 8 | WINDOW | ≥ 1 | increment `u32`, at least 1 |
//! | 9, 10 | PING, PONG | 0 | 8 opaque bytes |
//! | 11 | GOAWAY | 0 | code `u8` |
//! | 12 | BEGIN | 0 | – |
//!
//! HELLO of version 2, behind magic and version; a text is its length as `u8` and that much UTF-8:
//!
//! | sender | |
//! |---|---|
//! | agent | `1`, capabilities `u32`, window `u32`, streams that it takes at a time `u32`, software (text) |
//! | server | `2`, capabilities `u32`, window `u32`, its id (text), software (text) |
//! | server, to another one | `3`, capabilities `u32`, window `u32`, streams that it takes `u32`, its id (text), software (text) |
//!
//! The agent speaks first (HELLO), the server answers with its own HELLO, and BEGIN of the agent makes a session of
//! it. An agent that already has one with a server of this id leaves instead, and nobody's session ends by that.
//! Versions have to be the same, and whoever hears another one says its own HELLO before it leaves, so that both can
//! tell their people; what both sides can do without is a capability, and nobody minds one that it does not know. Bit 0 of a
//! server's: it has a session of the agent's node.
//! The window is the credit that every stream starts with, for its receiver's sender.
//!
//! Between two servers the one that connects is the one that asks: it has the agent's part up to BEGIN, and the server's
//! from there on. An agent serves target 1 alone, and a server, to another one, the others.
//!
//! Only the server opens streams, with ids that it counts up. OPEN is answered by
//! OPEN_ACK or OPEN_ERROR. DATA uses up the receiver's credit, WINDOW gives some back; DATA beyond the credit,
//! an unknown kind, a reserved bit or a byte too many ends the session. FIN closes one direction, RST both.
//! GOAWAY asks for no further streams; those that are open may finish.

mod codec;
mod frame;

pub use codec::{DecodeError, data_header, decode, encode};
pub use frame::{
    Capabilities, Frame, GoAwayCode, Hello, NodeName, OpenErrorCode, ResetCode, Sender, ServerId, StreamId,
    Target,
};

/// Version of the protocol that this build speaks, and the only one.
pub const PROTOCOL_VERSION: u16 = 2;
/// Path of the WebSocket on the tunnel server.
pub const PATH: &str = "/tunnel";
/// Path of the WebSocket of another server.
pub const PEER_PATH: &str = "/peer";
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
/// Bytes of the longest node name and server id: what Kubernetes allows as a Node's name.
pub const MAX_NAME: usize = 253;
/// Credit that this build's HELLO promises every stream, bytes. More comes with WINDOW, as far as there is memory.
pub const INITIAL_WINDOW: u32 = 8 * 1024;
/// No credit of a stream ever exceeds this, bytes.
pub const MAX_WINDOW: u32 = 1 << 30;
