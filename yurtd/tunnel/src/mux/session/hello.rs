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
//!
//! A server that asks another one begins as an agent does, and then has the server's part: it opens the streams.

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
    let mut opening = Opening::new(io, Side::Server);
    let peer = opening.answer(Sender::Server { id }, settings.capabilities).await?;
    let Sender::Agent { max_streams } = peer.sender else {
        return Err(Violation::Unexpected("server's HELLO").into());
    };
    opening.hear_begin().await?;
    let max_streams = max_streams.min(settings.max_streams);
    Ok(opening.establish(Role::Server, max_streams, peer, &settings))
}

/// The side of a server that another one asks, on a connection whose WebSocket handshake is done; says which one asks. The
/// caller sets a deadline.
///
/// # Errors
///
/// [`HelloError`]; [`HelloError::Declined`] when it did not mean this server.
pub async fn accept_peer<S>(
    io: S,
    id: ServerId,
    settings: Settings,
) -> Result<(ServerId, Established<S>), HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = Opening::new(io, Side::Server);
    let max_streams = settings.max_streams;
    let peer = opening.answer(Sender::Peer { id, max_streams }, settings.capabilities).await?;
    let Sender::Peer { id, .. } = peer.sender.clone() else {
        return Err(Violation::Unexpected("agent's HELLO").into());
    };
    opening.hear_begin().await?;
    Ok((id, opening.establish(Role::Agent, max_streams, peer, &settings)))
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
    let mut opening = Opening::new(io, Side::Client);
    let max_streams = settings.max_streams;
    opening.say(Frame::Hello(hello(Sender::Agent { max_streams }, settings.capabilities))).await?;
    let peer = opening.hear_hello().await?;
    let Sender::Server { id } = peer.sender.clone() else {
        return Err(Violation::Unexpected("agent's HELLO").into());
    };
    Ok(Greeting { opening, role: Role::Agent, server: id, max_streams, peer, settings })
}

/// The side of a server that asks another one, up to where it knows which one that is. The caller sets a deadline.
///
/// # Errors
///
/// [`HelloError`].
pub async fn greet_peer<S>(io: S, id: ServerId, settings: Settings) -> Result<Greeting<S>, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = Opening::new(io, Side::Client);
    opening.say(Frame::Hello(hello(Sender::Peer { id, max_streams: 0 }, settings.capabilities))).await?;
    let peer = opening.hear_hello().await?;
    let Sender::Peer { id, max_streams } = peer.sender.clone() else {
        return Err(Violation::Unexpected("HELLO that is no server's to another").into());
    };
    let max_streams = max_streams.min(settings.max_streams);
    Ok(Greeting { opening, role: Role::Server, server: id, max_streams, peer, settings })
}

/// Both sides have said HELLO, and the one that connected may still leave.
#[derive(Debug)]
pub struct Greeting<S> {
    opening: Opening<S>,
    /// What this side is from BEGIN on.
    role: Role,
    server: ServerId,
    max_streams: u32,
    peer: Hello,
    settings: Settings,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeting<S> {
    /// Which server it is.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// Whether the server has a session of this node's, as it says.
    pub fn node_is_here(&self) -> bool {
        self.peer.capabilities.has(Capabilities::NODE_IS_HERE)
    }

    /// Makes a session of it. The server ends one that it has with this node, or this server, already.
    ///
    /// # Errors
    ///
    /// [`HelloError`] when the connection fails.
    pub async fn begin(mut self) -> Result<Established<S>, HelloError> {
        self.opening.say(Frame::Begin).await?;
        Ok(self.opening.establish(self.role, self.max_streams, self.peer, &self.settings))
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

fn hello(sender: Sender, capabilities: Capabilities) -> Hello {
    Hello {
        sender,
        capabilities,
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
    fn new(io: S, side: Side) -> Self {
        Self { io, side, receiver: Receiver::new(side) }
    }

    /// Hears HELLO, and says this side's.
    async fn answer(&mut self, sender: Sender, capabilities: Capabilities) -> Result<Hello, HelloError> {
        let peer = self.hear_hello().await;
        if matches!(peer, Ok(_) | Err(HelloError::Version(_))) {
            // One of another version is told with whom it cannot speak.
            self.say(Frame::Hello(hello(sender, capabilities))).await?;
        }
        peer
    }

    async fn hear_begin(&mut self) -> Result<(), HelloError> {
        match self.hear().await {
            Ok(Frame::Begin) => Ok(()),
            Ok(_) => Err(Violation::Unexpected("second").into()),
            Err(HelloError::Closed) => Err(HelloError::Declined),
            Err(error) => Err(error),
        }
    }

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
