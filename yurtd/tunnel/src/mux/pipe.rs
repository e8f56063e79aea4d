//! Joins a TCP connection and a stream: bytes both ways, each direction ended by itself.
//!
//! A caller who is gone must not leave kubelet with an exec that nobody will end. So his reset is noticed at once, also
//! while nothing can be written to the other end; and there, at kubelet's end, the stream's. It is not so the other way
//! round: what kubelet said before it went is still delivered, however slow the link is.
//!
//! No buffer is held while nothing moves: a log that is followed for hours in silence costs two wakers.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, Ready};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::TunnelStream;
use super::socket::close_hard;

/// Whose the TCP connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// His who asked for the stream.
    Caller,
    /// Kubelet's.
    Target,
}

/// The most that is read from TCP at once, bytes.
const READ: usize = 64 * 1024;

/// Copies until both directions have ended.
///
/// # Errors
///
/// The first failure of either side. The other side is then closed hard, so that nobody takes half of the data for
/// all of it.
pub async fn pipe(tcp: TcpStream, stream: TunnelStream, side: Side) -> io::Result<()> {
    pipe_until(tcp, stream, side, std::future::pending()).await
}

/// [`pipe`], until `cut` says why both ends are to be closed hard.
///
/// # Errors
///
/// As [`pipe`], and what `cut` says.
pub async fn pipe_until(
    mut tcp: TcpStream,
    stream: TunnelStream,
    side: Side,
    cut: impl Future<Output = io::Error>,
) -> io::Result<()> {
    let (reader, writer) = tcp.split();
    let moving =
        async { tokio::try_join!(upstream(reader, &stream, side), downstream(writer, &stream, side)) };
    let result = tokio::select! {
        biased;
        result = moving => result,
        error = stream.broken(), if side == Side::Target => Err(error),
        error = cut => Err(error),
    };
    match result {
        Ok(_) => Ok(()),
        Err(error) => {
            close_hard(&tcp);
            stream.fail();
            Err(error)
        }
    }
}

async fn upstream(mut tcp: ReadHalf<'_>, stream: &TunnelStream, side: Side) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let room = tokio::select! {
            biased;
            room = stream.room() => room?,
            error = tcp.ready(Interest::ERROR), if side == Side::Caller => return Err(reset(error)),
        };
        if buffer.capacity() == 0 {
            // Nothing is allocated until there is something to read.
            tcp.ready(Interest::READABLE).await?;
        }
        buffer.reserve(READ.min(room));
        let count = (&mut tcp).take(room as u64).read_buf(&mut buffer).await?;
        if count == 0 {
            stream.finish();
            return Ok(());
        }
        let small = count < READ / 4;
        stream.write_piece(buffer.split().freeze());
        if small {
            buffer = BytesMut::new();
        }
    }
}

async fn downstream(mut tcp: WriteHalf<'_>, stream: &TunnelStream, side: Side) -> io::Result<()> {
    loop {
        let pieces = tokio::select! {
            biased;
            pieces = stream.read_pieces() => pieces?,
            error = tcp.ready(Interest::ERROR), if side == Side::Caller => return Err(reset(error)),
        };
        let Some(mut pieces) = pieces else { return tcp.shutdown().await };
        tcp.write_all_buf(&mut pieces).await?;
    }
}

fn reset(watched: io::Result<Ready>) -> io::Error {
    watched.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}
