//! Joins a TCP connection and a stream: bytes both ways, each direction ended by itself.
//!
//! No buffer is held while nothing moves: a log that is followed for hours in silence costs two wakers.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::TunnelStream;
use super::socket::close_hard;

/// The most that is read from TCP at once, bytes.
const READ: usize = 64 * 1024;

/// Copies until both directions have ended.
///
/// # Errors
///
/// The first failure of either side. The other side is then closed hard, so that nobody takes half of the data for
/// all of it.
pub async fn pipe(mut tcp: TcpStream, stream: TunnelStream) -> io::Result<()> {
    let (reader, writer) = tcp.split();
    let result = tokio::try_join!(upstream(reader, &stream), downstream(writer, &stream));
    match result {
        Ok(_) => Ok(()),
        Err(error) => {
            close_hard(&tcp);
            stream.fail();
            Err(error)
        }
    }
}

async fn upstream(mut tcp: ReadHalf<'_>, stream: &TunnelStream) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let room = stream.room().await?;
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

async fn downstream(mut tcp: WriteHalf<'_>, stream: &TunnelStream) -> io::Result<()> {
    while let Some(mut pieces) = stream.read_pieces().await? {
        tcp.write_all_buf(&mut pieces).await?;
    }
    tcp.shutdown().await
}
