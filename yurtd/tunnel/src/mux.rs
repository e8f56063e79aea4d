//! The multiplexer: many byte streams over one WebSocket, alike at both ends.
//!
//! ```text
//!   TunnelStream ─┐                                          ┌─ TunnelStream
//!   TunnelStream ─┼─ state ── session ── websocket ── TLS … ─┼─ TunnelStream
//!   TunnelStream ─┘          (I/O, time)                     └─ TunnelStream
//! ```
//!
//! [`state`] is the multiplexer without any I/O: streams, their queues and credit, what is sent next.
//! [`session`] moves its bytes through one WebSocket and keeps time. [`stream`] is what the rest of the program
//! reads and writes; [`pipe`] joins one to a TCP connection, and [`relay`] to one of another session. The frames are those of [`yurt_api::tunnel`].

mod chunks;
mod end;
pub(crate) mod fuzzing;
mod liveness;
pub mod pipe;
pub mod relay;
mod schedule;
pub mod session;
mod shared;
pub mod socket;
mod state;
mod stream;
pub(crate) mod websocket;
mod window;

#[cfg(test)]
mod tests;

pub use end::{End, HelloError, OpenFailure, Violation};
pub use session::{OpenRequest, Session};
pub use stream::TunnelStream;
