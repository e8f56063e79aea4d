//! One forwarded TCP connection over one WebSocket (`v4.channel.k8s.io`, one port): channel 0 carries the data,
//! channel 1 what went wrong; the first message of each is the port, little-endian.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::sleep,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use super::remote::{framed, pings};

const DATA: u8 = 0;
const ERROR: u8 = 1;
/// How much is sent at once.
const CHUNK: usize = 32 * 1024;
/// The protocol cannot say that only one direction has ended. When ours has, the other one gets this much silence
/// before both do: as long as TCP waits in FIN-WAIT-2, halved.
const LINGER: Duration = Duration::from_secs(30);

/// Why a connection was not forwarded to its end.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The other side says why.
    #[error("{0}")]
    Remote(String),
    /// The connection to the server failed.
    #[error("{0}")]
    Socket(#[from] Box<tungstenite::Error>),
    /// The server does not follow the protocol.
    #[error("the server sent {0}, which is no part of port forwarding")]
    Protocol(&'static str),
}

impl From<tungstenite::Error> for ForwardError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// Passes bytes until both directions have ended.
///
/// # Errors
///
/// [`ForwardError`] when the remote side could not be reached or the connection failed.
pub async fn run<S, L>(socket: WebSocketStream<S>, local: L) -> Result<(), ForwardError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    L: AsyncRead + AsyncWrite,
{
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(local);
    let arrived = AtomicU64::new(0);
    let mut incoming = std::pin::pin!(receive(&mut source, &mut writer, &arrived));
    let ended = tokio::select! {
        biased;
        result = &mut incoming => Some(result),
        result = send(&mut sink, &mut reader) => {
            result?;
            None
        }
    };
    let result = match ended {
        Some(result) => result,
        None => loop {
            let before = arrived.load(Ordering::Relaxed);
            tokio::select! {
                result = &mut incoming => break result,
                () = sleep(LINGER) => {
                    if arrived.load(Ordering::Relaxed) == before {
                        break Ok(());
                    }
                }
            }
        },
    };
    // A courtesy: the result is known whether or not the peer hears it.
    let _ = sink.send(Message::Close(None)).await;
    result
}

/// Writes what arrives to the local side until the remote side ends.
async fn receive<T, W>(source: &mut T, local: &mut W, arrived: &AtomicU64) -> Result<(), ForwardError>
where
    T: futures::Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut opened = [false; 2];
    while let Some(message) = source.next().await {
        let bytes = match message? {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => break,
            _ => continue,
        };
        arrived.fetch_add(1, Ordering::Relaxed);
        let Some((channel, data)) = bytes.split_first() else { continue };
        let Some(opened) = opened.get_mut(usize::from(*channel)) else {
            return Err(ForwardError::Protocol("an unknown channel"));
        };
        if !*opened {
            if data.len() != 2 {
                return Err(ForwardError::Protocol("a first message that is not a port"));
            }
            *opened = true;
        } else if *channel == ERROR {
            return Err(ForwardError::Remote(String::from_utf8_lossy(data).trim().to_owned()));
        } else if local.write_all(data).await.is_err() {
            // Whoever was connected here has gone.
            return Ok(());
        }
    }
    let _ = local.shutdown().await;
    Ok(())
}

/// Sends what the local side writes until it ends.
async fn send<T, R>(sink: &mut T, local: &mut R) -> Result<(), ForwardError>
where
    T: futures::Sink<Message, Error = tungstenite::Error> + Unpin,
    R: AsyncRead + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    let mut ping = pings();
    loop {
        tokio::select! {
            read = local.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => sink.send(framed(DATA, buffer.get(..count).unwrap_or_default())).await?,
            },
            _ = ping.tick() => sink.send(Message::Ping(tungstenite::Bytes::new())).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn sockets() -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (client, server) = duplex(4096);
        tokio::join!(
            WebSocketStream::from_raw_socket(client, Role::Client, None),
            WebSocketStream::from_raw_socket(server, Role::Server, None)
        )
    }

    async fn open(server: &mut WebSocketStream<DuplexStream>) {
        for channel in [DATA, ERROR] {
            server.send(framed(channel, &80_u16.to_le_bytes())).await.unwrap();
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_remote_end_closes_the_local_one() {
        let (client, mut server) = sockets().await;
        let (mut user, local) = duplex(64);
        let peer = tokio::spawn(async move {
            open(&mut server).await;
            assert_eq!(server.next().await.unwrap().unwrap(), framed(DATA, b"GET /"));
            server.send(framed(DATA, b"200 OK")).await.unwrap();
            server.close(None).await.unwrap();
        });
        let forwarding = tokio::spawn(run(client, local));
        user.write_all(b"GET /").await.unwrap();
        let mut answer = Vec::new();
        user.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"200 OK");
        forwarding.await.unwrap().unwrap();
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_still_arrives_when_the_asker_has_finished_writing() {
        let (client, mut server) = sockets().await;
        let (mut user, local) = duplex(64);
        let peer = tokio::spawn(async move {
            open(&mut server).await;
            assert_eq!(server.next().await.unwrap().unwrap(), framed(DATA, b"?"));
            server.send(framed(DATA, b"late")).await.unwrap();
            server.close(None).await.unwrap();
        });
        let forwarding = tokio::spawn(run(client, local));
        user.write_all(b"?").await.unwrap();
        user.shutdown().await.unwrap();
        let mut answer = Vec::new();
        user.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"late");
        forwarding.await.unwrap().unwrap();
        peer.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_remote_does_not_keep_a_finished_connection() {
        let (client, mut server) = sockets().await;
        let (user, local) = duplex(64);
        open(&mut server).await;
        drop(user);
        run(client, local).await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap(), Message::Close(None));
    }

    #[tokio::test]
    async fn what_the_remote_side_says_is_the_error() {
        let (client, mut server) = sockets().await;
        let (_user, local) = duplex(64);
        open(&mut server).await;
        server.send(framed(ERROR, b"connection refused\n")).await.unwrap();
        let error = run(client, local).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn a_peer_that_breaks_the_protocol_is_reported() {
        let (client, mut server) = sockets().await;
        let (_user, local) = duplex(64);
        server.send(framed(7, b"??")).await.unwrap();
        assert!(matches!(run(client, local).await, Err(ForwardError::Protocol(_))));
    }
}
