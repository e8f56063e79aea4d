//! How sessions and streams end, and why they do not begin: the reasons, for every file of the multiplexer.

use yurt_api::tunnel::{DecodeError, GoAwayCode, OpenErrorCode, PROTOCOL_VERSION, StreamId};

use super::websocket::WebSocketError;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The peer closed the connection.
    #[error("the other side closed the connection")]
    ClosedByPeer,
    /// The peer said why it goes.
    #[error("the other side is leaving: {0}")]
    GoAway(GoAwayCode),
    /// This side closed it.
    #[error("closed: {0}")]
    Closed(GoAwayCode),
    /// The connection failed.
    #[error("connection failed: {0}")]
    Connection(String),
    /// Nothing was heard for too long.
    #[error("the other side does not answer any more")]
    Dead,
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The driver was dropped.
    #[error("the session was abandoned")]
    Abandoned,
}

/// Why a session could not be established.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The connection failed.
    #[error("connection failed: {0}")]
    Connection(#[from] std::io::Error),
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer speaks another version of the protocol.
    #[error(
        "the other side speaks version {0} of the tunnel protocol and this side {PROTOCOL_VERSION}: upgrade the older one"
    )]
    Version(u16),
    /// The peer left before it said HELLO.
    #[error("the other side closed the connection before it said anything")]
    Closed,
    /// The agent left before it said BEGIN.
    #[error(
        "the agent leaves: it, or another machine with its certificate, has a session with this server already"
    )]
    Declined,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailure {
    /// The session is over or ends.
    #[error("the session has ended")]
    SessionEnded,
    /// The agent did not answer in time.
    #[error("no answer in time")]
    NoAnswer,
    /// The agent reset the stream instead of answering.
    #[error("the stream was reset")]
    Reset,
    /// As many streams are open as the agent takes.
    #[error("too many streams")]
    TooManyStreams,
    /// The agent's answer.
    #[error("the agent {code}: {message}")]
    Rejected {
        /// What it says.
        code: OpenErrorCode,
        /// Details for a person.
        message: String,
    },
}

/// What the peer did wrong. Ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// The bytes are no WebSocket.
    #[error(transparent)]
    WebSocket(#[from] WebSocketError),
    /// A frame that this side never gets.
    #[error("unexpected {0} frame")]
    Unexpected(&'static str),
    /// A stream that was never opened, or opened twice.
    #[error("{0} frame for stream {1} out of order")]
    Stream(&'static str, StreamId),
    /// More data than there was credit.
    #[error("stream {0} exceeded its credit")]
    Overrun(StreamId),
    /// More credit than there may be.
    #[error("stream {0} was given too much credit")]
    Credit(StreamId),
    /// It makes this side answer and does not read the answers.
    #[error("answers are not being read")]
    NotReading,
}
