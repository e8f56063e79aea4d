//! Bytes in both directions: the channels of a remote command ([`remote`]), a forwarded connection
//! ([`forward`]), the terminal ([`terminal`]).

pub mod forward;
pub mod remote;
pub mod terminal;
