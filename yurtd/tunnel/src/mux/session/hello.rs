//! How a session begins: HELLO, HELLO, BEGIN.
//!
//! ```text
//!  agent ──HELLO──► server     who speaks, and what it takes
//!  agent ◄──HELLO── server     which server it is
//!  agent ──BEGIN──► server     from here on it is a session; or the agent leaves, and nothing was
//! ```
//!
//! The last step is the agent's, because only the agent knows whether it has a session with this server already: another
//! address may have led to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use yurt_api::tunnel::{self, Capabilities, DecodeError, Frame, Hello, INITIAL_WINDOW, Sender, ServerId};

use super::driver::Driver;
use super::receiver::{Received, Receiver};
use super::writer::Masks;
use super::{OpenRequest, Session, Settings};
use crate::mux::end::{HelloError, Violation};
use crate::mux::shared::Shared;
use crate::mux::state::{Role, State, Terms};
use crate::mux::websocket::{self, Side};

/// How long saying no may take.
const DECLINE: Duration = Duration::from_secs(1);

/// A session that has begun: its handle, the streams that the server asks for, and what runs it.
pub type Established<S> = (Session, mpsc::Receiver<OpenRequest>, Driver<S>);

/// The server's side, on a connection whose WebSocket handshake is done. The caller sets a deadline.
///
/// # Errors
///
/// [`HelloError`]; [`HelloError::Declined`] when the agent has a session with this server already.
pub async fn accept<S>(io: S, id: ServerId, settings: Settings) -> Result<Established<S>, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = Opening { io, side: Side::Server, receiver: Receiver::new(Side::Server) };
    let peer = opening.hear_hello().await;
    if matches!(peer, Ok(_) | Err(HelloError::Version(_))) {
        // One of another version is told with whom it cannot speak.
        opening.say(Frame::Hello(hello(Sender::Server { id }))).await?;
    }
    let peer = peer?;
    let Sender::Agent { max_streams } = peer.sender else {
        return Err(Violation::Unexpected("server's HELLO").into());
    };
    match opening.hear().await {
        Ok(Frame::Begin) => {}
        Ok(_) => return Err(Violation::Unexpected("second").into()),
        Err(HelloError::Closed) => return Err(HelloError::Declined),
        Err(error) => return Err(error),
    }
    let max_streams = max_streams.min(settings.max_streams);
    Ok(opening.establish(Role::Server, max_streams, peer, &settings))
}

/// The agent's side, up to where it knows which server it speaks to. The caller sets a deadline.
///
/// # Errors
///
/// [`HelloError`].
pub async fn greet<S>(io: S, settings: Settings) -> Result<Greeting<S>, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = Opening { io, side: Side::Client, receiver: Receiver::new(Side::Client) };
    opening.say(Frame::Hello(hello(Sender::Agent { max_streams: settings.max_streams }))).await?;
    let peer = opening.hear_hello().await?;
    let Sender::Server { id } = peer.sender.clone() else {
        return Err(Violation::Unexpected("agent's HELLO").into());
    };
    Ok(Greeting { opening, server: id, peer, settings })
}

/// Both sides have said HELLO, and the agent may still leave.
#[derive(Debug)]
pub struct Greeting<S> {
    opening: Opening<S>,
    server: ServerId,
    peer: Hello,
    settings: Settings,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeting<S> {
    /// Which server it is.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// Makes a session of it. The server ends one that it has with this node already.
    ///
    /// # Errors
    ///
    /// [`HelloError`] when the connection fails.
    pub async fn begin(mut self) -> Result<Established<S>, HelloError> {
        self.opening.say(Frame::Begin).await?;
        let max_streams = self.settings.max_streams;
        Ok(self.opening.establish(Role::Agent, max_streams, self.peer, &self.settings))
    }

    /// Leaves. Whatever sessions there are go on.
    pub async fn decline(mut self) {
        let mut close = BytesMut::new();
        websocket::close_frame(Side::Client, Masks::new(Side::Client).next(), &mut close);
        let farewell = async {
            self.opening.io.write_all(&close).await?;
            self.opening.io.shutdown().await
        };
        // The server learns it from the end of the connection otherwise.
        let _ = tokio::time::timeout(DECLINE, farewell).await;
    }
}

fn hello(sender: Sender) -> Hello {
    Hello {
        sender,
        capabilities: Capabilities::default(),
        initial_window: INITIAL_WINDOW,
        software: concat!("yurtd/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// A connection that is no session yet.
#[derive(Debug)]
struct Opening<S> {
    io: S,
    side: Side,
    receiver: Receiver,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opening<S> {
    async fn say(&mut self, frame: Frame) -> Result<(), HelloError> {
        let mut batch = BytesMut::zeroed(websocket::MAX_HEADER);
        tunnel::encode(&frame, &mut batch);
        websocket::frame(self.side, Masks::new(self.side).next(), &mut batch);
        self.io.write_all(&batch).await?;
        Ok(self.io.flush().await?)
    }

    async fn hear(&mut self) -> Result<Frame, HelloError> {
        loop {
            match self.receiver.next()? {
                Some(Received::Frame(frame)) => return Ok(frame),
                Some(Received::Ping(_)) => {}
                Some(Received::Close) => return Err(HelloError::Closed),
                None => {
                    if self.receiver.read(&mut self.io).await? == 0 {
                        return Err(HelloError::Closed);
                    }
                }
            }
        }
    }

    async fn hear_hello(&mut self) -> Result<Hello, HelloError> {
        match self.hear().await {
            Ok(Frame::Hello(hello)) => Ok(hello),
            Ok(_) => Err(Violation::Unexpected("first").into()),
            Err(HelloError::Violation(Violation::Frame(DecodeError::Version(version)))) => {
                Err(HelloError::Version(version))
            }
            Err(error) => Err(error),
        }
    }

    fn establish(self, role: Role, max_streams: u32, peer: Hello, settings: &Settings) -> Established<S> {
        let terms = Terms {
            max_streams,
            receive_window: INITIAL_WINDOW,
            send_window: peer.initial_window,
            software: peer.software,
        };
        let now = Instant::now();
        let mut state = State::new(role, terms, now);
        state.ask(now);
        let shared = Arc::new(Shared::new(state));
        // As many as there can be streams: waiting for the agent's answer is being open.
        let (opens, requests) = mpsc::channel(settings.max_streams.max(1) as usize);
        let session = Session { shared: shared.clone(), open_timeout: settings.open_timeout };
        let driver = Driver::new(self.io, self.receiver, self.side, shared, opens, settings.liveness);
        (session, requests, driver)
    }
}
