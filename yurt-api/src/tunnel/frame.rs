//! What can be said in the tunnel. How it looks on the wire is in [`super::codec`].

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use bytes::Bytes;

/// Number of a stream within its session; 0 is the session itself and never a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    /// The first stream of a session.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0.
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The stream after this one; `None` when the numbers are used up.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Each side's first frame, and never again.
    Hello(Hello),
    /// The server asks for a connection to `target`.
    Open {
        /// Its number from now on.
        stream: StreamId,
        /// What to connect to.
        target: Target,
    },
    /// The agent is connected.
    OpenAck {
        /// Which one.
        stream: StreamId,
    },
    /// The agent cannot or will not connect; the stream is over.
    OpenError {
        /// Which one.
        stream: StreamId,
        /// Why.
        code: OpenErrorCode,
        /// Details for a person, at most [`super::MAX_TEXT`] bytes.
        message: String,
    },
    /// Bytes of a stream.
    Data {
        /// Which one.
        stream: StreamId,
        /// 1 to [`super::MAX_PAYLOAD`] bytes.
        payload: Bytes,
    },
    /// The sender has no more data for the stream; the other direction goes on.
    Fin {
        /// Which one.
        stream: StreamId,
    },
    /// The stream is over at once, in both directions.
    Reset {
        /// Which one.
        stream: StreamId,
        /// Why.
        code: ResetCode,
    },
    /// The receiver takes more bytes.
    Window {
        /// Which one.
        stream: StreamId,
        /// How many more.
        increment: NonZeroU32,
    },
    /// Asks for a [`Frame::Pong`] with the same number.
    Ping(u64),
    /// Answer to [`Frame::Ping`].
    Pong(u64),
    /// The sender takes or opens no further streams; the ones that are open may finish.
    GoAway(GoAwayCode),
}

/// What each side says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Highest version of the protocol that the sender speaks, at least 1.
    pub version: u16,
    /// How many streams the sender takes at a time.
    pub max_streams: u32,
    /// Credit that the sender gives every new stream, bytes, at most [`super::MAX_WINDOW`].
    pub initial_window: u32,
    /// Name and version of the software, at most [`super::MAX_TEXT`] bytes; for people, never for decisions.
    pub software: String,
}

/// What the server asks the agent to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The node's own kubelet, at the address that the agent's configuration gives.
    Kubelet,
    /// An address; agents refuse every one that is not on their own list.
    Address(SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubelet => f.write_str("kubelet"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Declares a code that travels as one byte, with its text for people.
macro_rules! code {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $value:literal, $text:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $value,)+
        }

        impl $name {
            /// The code for a byte; `None` for one that this version does not know.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($value => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The byte for the code.
            pub fn as_byte(self) -> u8 {
                self as u8
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }
    };
}

code! {
    /// Why the agent did not connect. Reads well after "the agent".
    OpenErrorCode {
        /// The target is not on the agent's list.
        NotAllowed = 1, "does not allow the target";
        /// The target refused the connection.
        Refused = 2, "was refused by the target";
        /// The target did not answer in time.
        TimedOut = 3, "got no answer from the target";
        /// The target cannot be reached for another reason.
        Unreachable = 4, "cannot reach the target";
        /// The agent has as many streams open as it takes.
        TooManyStreams = 5, "has too many streams open";
        /// The agent is shutting down.
        GoingAway = 6, "is shutting down";
    }
}

code! {
    /// Why a stream ended at once.
    ResetCode {
        /// Nobody reads or writes it any more.
        Cancelled = 1, "cancelled by the other side";
        /// The connection behind it failed.
        Failed = 2, "the connection behind it failed";
    }
}

code! {
    /// Why a side wants the session to end.
    GoAwayCode {
        /// It is shutting down or being replaced.
        ShuttingDown = 1, "shutting down";
        /// The same node has connected again.
        Superseded = 2, "replaced by a newer connection of the same node";
        /// The certificate that the session was authenticated with has expired or is not trusted any more.
        CertificateExpired = 3, "certificate expired";
        /// The other side broke the protocol.
        ProtocolError = 4, "protocol error";
    }
}
