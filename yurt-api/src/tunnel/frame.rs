//! What can be said in the tunnel. How it looks on the wire is in [`super::codec`].

use std::fmt;
use std::num::NonZeroU32;

use bytes::Bytes;

use super::MAX_NAME;

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
    /// The agent takes the session that the two HELLO have agreed on. Its second frame, and never again.
    Begin,
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
    /// Which side it is, with what only that side has to say.
    pub sender: Sender,
    /// What the sender can do beyond the version.
    pub capabilities: Capabilities,
    /// Credit that the sender gives every new stream, bytes, at most [`super::MAX_WINDOW`].
    pub initial_window: u32,
    /// Name and version of the software, at most [`super::MAX_TEXT`] bytes; for people, never for decisions.
    pub software: String,
}

/// Who says HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// The agent on an edge node.
    Agent {
        /// How many streams it takes at a time.
        max_streams: u32,
    },
    /// A tunnel server, to an agent.
    Server {
        /// Which one.
        id: ServerId,
    },
    /// A tunnel server, to another one.
    Peer {
        /// Which one.
        id: ServerId,
        /// How many streams it takes at a time; the one that connects takes none.
        max_streams: u32,
    },
}

/// Which tunnel server it is, whatever address leads to it: the name of the Node that it runs on. So it is the same
/// after a restart, no two servers of a cluster have one, and nobody has to be asked for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(String);

impl ServerId {
    /// `None` if it is empty, longer than [`MAX_NAME`] bytes, or not printable ASCII without spaces.
    pub fn new(id: &str) -> Option<Self> {
        let good = (1..=MAX_NAME).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(id.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a node: what its certificate says behind `system:node:`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// `None` for what no Node can be called: longer than [`MAX_NAME`] bytes, or not made of what a DNS name is.
    pub fn new(name: &str) -> Option<Self> {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let good = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known);
        good.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a side can do or say beyond the version, a bit each. A sender may have any, and whoever does not know one does
/// without it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Of a server, to an agent: it has a session of the same node's. An agent that was replaced by another machine need not
    /// wait when it is not said.
    pub const NODE_IS_HERE: Self = Self(1);

    /// Whether all of these are among them.
    pub fn has(self, these: Self) -> bool {
        self.0 & these.0 == these.0
    }

    /// As they travel.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As they travel.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// What a stream is to lead to. An agent connects to its own kubelet, whatever else it is asked for; a server leads
/// another one to nodes that it has a session with itself, so that no stream is handed on twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Of an agent: the node's own kubelet, at the address that the agent's configuration gives.
    Kubelet,
    /// Of a server: that node's kubelet.
    KubeletOf(NodeName),
    /// Of a server: nothing. To accept it says that the server has a session with that node.
    Session(NodeName),
    /// Of a server: what it knows about its agents, a JSON array of [`AgentStatus`](crate::status::AgentStatus).
    Agents,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubelet => f.write_str("kubelet"),
            Self::KubeletOf(node) => write!(f, "kubelet of {node}"),
            Self::Session(node) => write!(f, "the session of {node}"),
            Self::Agents => f.write_str("the list of agents"),
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
    /// Why the agent, or another server in its place, did not connect. Reads well after "the agent".
    OpenErrorCode {
        /// The target refused the connection.
        Refused = 1, "was refused by the target";
        /// The target did not answer in time.
        TimedOut = 2, "got no answer from the target";
        /// The target cannot be reached for another reason.
        Unreachable = 3, "cannot reach the target";
        /// The agent has as many streams open as it takes.
        TooManyStreams = 4, "has too many streams open";
        /// The agent is shutting down.
        GoingAway = 5, "is shutting down";
        /// The server has no session with that node.
        NotHere = 6, "is not connected there";
        /// Whoever was asked leads nobody to such a target.
        NotServed = 7, "does not serve such a target";
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
