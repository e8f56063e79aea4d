//! Joins two streams of two sessions: on a server that leads another one to a node of its own.
//!
//! The same as [`super::pipe`] at both of its ends. Each direction ends by itself; what is taken from one stream is in the
//! other one's queue, which is bounded, before credit for it goes back; and a caller who is gone is noticed at once, also
//! while nothing can be written to the node.

use std::io;

use bytes::{Buf, Bytes};

use super::TunnelStream;

/// Copies until both directions have ended. `caller` is the stream of who asked.
///
/// # Errors
///
/// The first failure of either stream. Both are then reset, so that nobody takes half of the data for all of it.
pub async fn relay(caller: TunnelStream, target: TunnelStream) -> io::Result<()> {
    let moving = async { tokio::try_join!(one_way(&caller, &target), one_way(&target, &caller)) };
    let result = tokio::select! {
        biased;
        result = moving => result.map(drop),
        error = caller.broken() => Err(error),
    };
    if result.is_err() {
        caller.fail();
        target.fail();
    }
    result
}

async fn one_way(from: &TunnelStream, to: &TunnelStream) -> io::Result<()> {
    while let Some(mut pieces) = from.read_pieces().await? {
        while pieces.has_remaining() {
            let count = to.room().await?.min(pieces.chunk().len());
            // A copy: a piece holds on to the read buffer that it was cut from, and that counts in no session's bounds.
            to.write_piece(Bytes::copy_from_slice(&pieces.chunk()[..count]));
            pieces.advance(count);
            from.consumed(count);
        }
    }
    to.finish();
    Ok(())
}
