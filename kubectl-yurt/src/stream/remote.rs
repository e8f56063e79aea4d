//! A remote command over one WebSocket: `v4.channel.k8s.io` or `v5.channel.k8s.io`. Each binary message begins with
//! the number of its channel; v5 adds a message that closes a channel, which is the only way to say that stdin has
//! ended (KEP-4006).
//!
//! Reading and writing run side by side and never wait for each other: while the remote command blocks on its output
//! it does not read its input, and one task that did both would block with it.

use futures::{SinkExt as _, StreamExt as _};
use kube::core::Status;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::{Duration, Interval, MissedTickBehavior, interval},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use super::terminal::Size;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How much of stdin is sent at once.
const CHUNK: usize = 32 * 1024;
/// How often an idle connection is kept alive.
const PING: Duration = Duration::from_secs(30);

/// Why a remote command's outcome is not known.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The connection ended before the outcome arrived.
    #[error("the connection ended before the command did")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Socket(#[from] Box<tungstenite::Error>),
    /// The outcome cannot be understood.
    #[error("the command's outcome cannot be understood: {0}")]
    Status(serde_json::Error),
    /// Output cannot be written here.
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
    /// Input cannot be read here.
    #[error("cannot read the input: {0}")]
    Input(std::io::Error),
    /// The peer speaks v4, in which the end of stdin cannot be said.
    #[error(
        "this node cannot be told that the input has ended (its kubelet is older than 1.36): use `kubectl exec` where \
         the API server reaches the node"
    )]
    NoEnd,
}

impl From<tungstenite::Error> for RemoteError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// Passes bytes until the remote command has ended, and returns its outcome.
///
/// # Errors
///
/// [`RemoteError`] when the outcome is not known.
pub async fn run<S, I, O, E>(
    socket: WebSocketStream<S>,
    can_close: bool,
    stdin: Option<I>,
    stdout: O,
    stderr: E,
    sizes: mpsc::Receiver<Size>,
) -> Result<Status, RemoteError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let outgoing = send(&mut sink, can_close, stdin, sizes);
    let incoming = receive(&mut source, stdout, stderr);
    tokio::select! {
        biased;
        status = incoming => status,
        error = outgoing => Err(error),
    }
}

/// Writes what arrives, until the outcome does.
async fn receive<T, O, E>(source: &mut T, mut stdout: O, mut stderr: E) -> Result<Status, RemoteError>
where
    T: futures::Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    while let Some(message) = source.next().await {
        let bytes = match message? {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => break,
            _ => continue,
        };
        let Some((channel, data)) = bytes.split_first() else { continue };
        match *channel {
            STDOUT => write(&mut stdout, data).await?,
            STDERR => write(&mut stderr, data).await?,
            // An empty message opens the channel.
            STATUS if !data.is_empty() => return serde_json::from_slice(data).map_err(RemoteError::Status),
            _ => {}
        }
    }
    Err(RemoteError::Closed)
}

async fn write(output: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), RemoteError> {
    if data.is_empty() {
        return Ok(());
    }
    output.write_all(data).await.map_err(RemoteError::Output)?;
    output.flush().await.map_err(RemoteError::Output)
}

/// Sends stdin, sizes and pings. Returns only what went wrong: that stdin has ended is no end.
async fn send<T, I>(
    sink: &mut T,
    can_close: bool,
    stdin: Option<I>,
    mut sizes: mpsc::Receiver<Size>,
) -> RemoteError
where
    T: futures::Sink<Message, Error = tungstenite::Error> + Unpin,
    I: AsyncRead + Unpin,
{
    let mut stdin = stdin;
    let mut sizes_open = true;
    let mut ping = pings();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = async {
            match &mut stdin {
                Some(stdin) => stdin.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            read = read => match read {
                Ok(0) => {
                    stdin = None;
                    if !can_close {
                        return RemoteError::NoEnd;
                    }
                    Message::binary(vec![CLOSE, STDIN])
                }
                Ok(count) => framed(STDIN, buffer.get(..count).unwrap_or_default()),
                Err(error) => return RemoteError::Input(error),
            },
            size = sizes.recv(), if sizes_open => match size {
                Some(size) => match serde_json::to_vec(&size) {
                    Ok(text) => framed(RESIZE, &text),
                    Err(error) => return RemoteError::Status(error),
                },
                None => {
                    sizes_open = false;
                    continue;
                }
            },
            _ = ping.tick() => Message::Ping(tungstenite::Bytes::new()),
        };
        if let Err(error) = sink.send(message).await {
            // The peer closes its side right after the outcome, which is still to be read.
            if is_closed(&error) {
                return std::future::pending().await;
            }
            return error.into();
        }
    }
}

fn is_closed(error: &tungstenite::Error) -> bool {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => true,
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::SendAfterClosing) => true,
        tungstenite::Error::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset)
        }
        _ => false,
    }
}

/// Ticks that keep an idle connection alive; the first is not at once.
pub fn pings() -> Interval {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    ping
}

/// A message for a channel.
pub fn framed(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::binary(bytes)
}

/// What a command's outcome means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Another exit code.
    Exit(u8),
    /// It was not started, or its end is not known.
    Failed(String),
}

/// Reads an outcome: the exit code is among the causes of a `NonZeroExitCode`.
pub fn outcome(status: &Status) -> Outcome {
    if status.is_success() {
        return Outcome::Success;
    }
    let code = status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .find(|cause| cause.reason == "ExitCode")
        .and_then(|cause| cause.message.parse::<i64>().ok());
    match code {
        // A process's exit code is a byte; the rest cannot be passed on.
        Some(code) => Outcome::Exit(u8::try_from(code & 0xff).unwrap_or(1)),
        None if status.message.is_empty() => {
            Outcome::Failed(format!("the command failed: {}", status.reason))
        }
        None => Outcome::Failed(status.message.clone()),
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
