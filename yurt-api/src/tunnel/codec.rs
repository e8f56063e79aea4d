//! Frames to bytes and back. Pure; the decoder allocates nothing that a peer merely announces, reads through a
//! bounded cursor and rejects what is left over.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{
    Capabilities, Frame, GoAwayCode, Hello, NodeName, OpenErrorCode, ResetCode, Sender, ServerId, StreamId,
    Target,
};
use super::{HEADER_LEN, MAX_NAME, MAX_PAYLOAD, MAX_TEXT, MAX_WINDOW, PROTOCOL_VERSION};

const MAGIC: [u8; 4] = *b"YURT";

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const OPEN_ACK: u8 = 3;
const OPEN_ERROR: u8 = 4;
const DATA: u8 = 5;
const FIN: u8 = 6;
const RST: u8 = 7;
const WINDOW: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const GOAWAY: u8 = 11;
const BEGIN: u8 = 12;

/// What a HELLO of any version has: magic and version.
const HELLO_PREFIX: usize = MAGIC.len() + 2;
/// The longest HELLO of any version.
const MAX_HELLO: usize = 1024;
const SENDER_AGENT: u8 = 1;
const SENDER_SERVER: u8 = 2;
const SENDER_PEER: u8 = 3;

const TARGET_KUBELET: u8 = 1;
// 2 was an address in version 1.
const TARGET_KUBELET_OF: u8 = 3;
const TARGET_SESSION: u8 = 4;
const TARGET_AGENTS: u8 = 5;

/// What is wrong with received bytes. None of it can be mended: the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A kind of frame that this version does not know.
    #[error("unknown kind of frame {0}")]
    UnknownKind(u8),
    /// The reserved byte is not zero.
    #[error("reserved byte of the frame header is not zero")]
    Reserved,
    /// The length does not fit the kind of frame.
    #[error("frame of kind {kind} with a payload of {length} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length as announced.
        length: usize,
    },
    /// A frame of a stream without a stream, or the other way round.
    #[error("frame of kind {kind} on stream {stream}")]
    Stream {
        /// Its kind.
        kind: u8,
        /// The number in its header.
        stream: u32,
    },
    /// The payload ends too early.
    #[error("payload of a frame of kind {0} ends too early")]
    Truncated(u8),
    /// The payload is longer than what it says.
    #[error("payload of a frame of kind {0} has bytes left over")]
    LeftOver(u8),
    /// A value that the protocol does not allow.
    #[error("invalid {0}")]
    Invalid(&'static str),
    /// A HELLO of another version; what else it says is not known.
    #[error("version {0} of the tunnel protocol, and not {PROTOCOL_VERSION}")]
    Version(u16),
}

/// Takes the first whole frame off `input`; `None` when more bytes are needed. A header that can never become
/// a valid frame is refused before its payload is waited for.
///
/// # Errors
///
/// [`DecodeError`]; `input` is then in no defined state.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    let Some(header) = input.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [kind, reserved, length_high, length_low, id @ ..] = *header;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let id = u32::from_be_bytes(id);
    let (of_stream, lengths) = shape(kind)?;
    if reserved != 0 {
        return Err(DecodeError::Reserved);
    }
    if !lengths.contains(&length) {
        return Err(DecodeError::Length { kind, length });
    }
    if of_stream == (id == 0) {
        return Err(DecodeError::Stream { kind, stream: id });
    }
    if input.len() < HEADER_LEN + length {
        return Ok(None);
    }
    input.advance(HEADER_LEN);
    let payload = input.split_to(length).freeze();
    payload_of(kind, id, payload).map(Some)
}

/// Whether frames of this kind belong to a stream, and how long their payload may be.
fn shape(kind: u8) -> Result<(bool, std::ops::RangeInclusive<usize>), DecodeError> {
    Ok(match kind {
        HELLO => (false, HELLO_PREFIX..=MAX_HELLO),
        BEGIN => (false, 0..=0),
        OPEN => (true, 1..=2 + MAX_NAME),
        OPEN_ACK | FIN => (true, 0..=0),
        OPEN_ERROR => (true, 2..=2 + MAX_TEXT),
        DATA => (true, 1..=MAX_PAYLOAD),
        RST => (true, 1..=1),
        WINDOW => (true, 4..=4),
        PING | PONG => (false, 8..=8),
        GOAWAY => (false, 1..=1),
        _ => return Err(DecodeError::UnknownKind(kind)),
    })
}

fn payload_of(kind: u8, id: u32, payload: Bytes) -> Result<Frame, DecodeError> {
    let stream = StreamId::new(id);
    let on_stream = || stream.ok_or(DecodeError::Stream { kind, stream: id });
    if kind == DATA {
        return Ok(Frame::Data { stream: on_stream()?, payload });
    }
    let mut cursor = Cursor { kind, rest: &payload };
    let frame = match kind {
        HELLO => Frame::Hello(hello(&mut cursor)?),
        BEGIN => Frame::Begin,
        OPEN => Frame::Open { stream: on_stream()?, target: target(&mut cursor)? },
        OPEN_ACK => Frame::OpenAck { stream: on_stream()? },
        OPEN_ERROR => Frame::OpenError {
            stream: on_stream()?,
            code: OpenErrorCode::from_byte(cursor.u8()?).ok_or(DecodeError::Invalid("open error code"))?,
            message: cursor.text()?,
        },
        FIN => Frame::Fin { stream: on_stream()? },
        RST => Frame::Reset {
            stream: on_stream()?,
            code: ResetCode::from_byte(cursor.u8()?).ok_or(DecodeError::Invalid("reset code"))?,
        },
        WINDOW => Frame::Window {
            stream: on_stream()?,
            increment: NonZeroU32::new(cursor.u32()?)
                .filter(|increment| increment.get() <= MAX_WINDOW)
                .ok_or(DecodeError::Invalid("window increment"))?,
        },
        PING => Frame::Ping(cursor.u64()?),
        PONG => Frame::Pong(cursor.u64()?),
        GOAWAY => {
            Frame::GoAway(GoAwayCode::from_byte(cursor.u8()?).ok_or(DecodeError::Invalid("goaway code"))?)
        }
        _ => return Err(DecodeError::UnknownKind(kind)),
    };
    if cursor.rest.is_empty() { Ok(frame) } else { Err(DecodeError::LeftOver(kind)) }
}

fn hello(cursor: &mut Cursor<'_>) -> Result<Hello, DecodeError> {
    if cursor.array::<4>()? != MAGIC {
        return Err(DecodeError::Invalid("hello: not this protocol"));
    }
    let version = cursor.u16()?;
    if version != PROTOCOL_VERSION {
        return Err(DecodeError::Version(version));
    }
    let sender = cursor.u8()?;
    let capabilities = Capabilities::from_bits(cursor.u32()?);
    let initial_window = cursor.u32()?;
    if initial_window > MAX_WINDOW {
        return Err(DecodeError::Invalid("hello: initial window"));
    }
    let sender = match sender {
        SENDER_AGENT => Sender::Agent { max_streams: cursor.u32()? },
        SENDER_SERVER => Sender::Server { id: server_id(cursor)? },
        SENDER_PEER => {
            let max_streams = cursor.u32()?;
            Sender::Peer { id: server_id(cursor)?, max_streams }
        }
        _ => return Err(DecodeError::Invalid("hello: sender")),
    };
    Ok(Hello { sender, capabilities, initial_window, software: cursor.text()? })
}

fn server_id(cursor: &mut Cursor<'_>) -> Result<ServerId, DecodeError> {
    ServerId::new(&cursor.text()?).ok_or(DecodeError::Invalid("hello: server id"))
}

fn node_name(cursor: &mut Cursor<'_>) -> Result<NodeName, DecodeError> {
    NodeName::new(&cursor.text()?).ok_or(DecodeError::Invalid("node name"))
}

fn target(cursor: &mut Cursor<'_>) -> Result<Target, DecodeError> {
    match cursor.u8()? {
        TARGET_KUBELET => Ok(Target::Kubelet),
        TARGET_KUBELET_OF => Ok(Target::KubeletOf(node_name(cursor)?)),
        TARGET_SESSION => Ok(Target::Session(node_name(cursor)?)),
        TARGET_AGENTS => Ok(Target::Agents),
        _ => Err(DecodeError::Invalid("kind of target")),
    }
}

/// Reads from the front and never past the end.
struct Cursor<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let length = usize::from(self.u8()?);
        let (head, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated(self.kind))?;
        self.rest = rest;
        std::str::from_utf8(head).map(str::to_owned).map_err(|_| DecodeError::Invalid("text: not UTF-8"))
    }
}

/// Header of a DATA frame, for senders that put the payload behind it themselves. `length` is 1 to
/// [`MAX_PAYLOAD`].
pub fn data_header(stream: StreamId, length: u16) -> [u8; HEADER_LEN] {
    header(DATA, stream.get(), length)
}

fn header(kind: u8, stream: u32, length: u16) -> [u8; HEADER_LEN] {
    let [length_high, length_low] = length.to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [kind, 0, length_high, length_low, a, b, c, d]
}

/// Appends the frame. Texts are cut to [`MAX_TEXT`] bytes at a character's boundary and data to [`MAX_PAYLOAD`],
/// so that whatever is encoded can be decoded.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, HEADER_LEN);
    let (kind, stream) = match frame {
        Frame::Hello(hello) => {
            put_hello(hello, out);
            (HELLO, 0)
        }
        Frame::Begin => (BEGIN, 0),
        Frame::Open { stream, target } => {
            put_target(target, out);
            (OPEN, stream.get())
        }
        Frame::OpenAck { stream } => (OPEN_ACK, stream.get()),
        Frame::OpenError { stream, code, message } => {
            out.put_u8(code.as_byte());
            put_text(message, out);
            (OPEN_ERROR, stream.get())
        }
        Frame::Data { stream, payload } => {
            out.put_slice(payload.get(..MAX_PAYLOAD).unwrap_or(payload));
            (DATA, stream.get())
        }
        Frame::Fin { stream } => (FIN, stream.get()),
        Frame::Reset { stream, code } => {
            out.put_u8(code.as_byte());
            (RST, stream.get())
        }
        Frame::Window { stream, increment } => {
            out.put_u32(increment.get());
            (WINDOW, stream.get())
        }
        Frame::Ping(number) => {
            out.put_u64(*number);
            (PING, 0)
        }
        Frame::Pong(number) => {
            out.put_u64(*number);
            (PONG, 0)
        }
        Frame::GoAway(code) => {
            out.put_u8(code.as_byte());
            (GOAWAY, 0)
        }
    };
    // Every payload above is at most MAX_PAYLOAD, which is less than 2^16.
    let length = (out.len() - start - HEADER_LEN) as u16;
    out[start..start + HEADER_LEN].copy_from_slice(&header(kind, stream, length));
}

fn put_hello(hello: &Hello, out: &mut BytesMut) {
    out.put_slice(&MAGIC);
    out.put_u16(PROTOCOL_VERSION);
    out.put_u8(match hello.sender {
        Sender::Agent { .. } => SENDER_AGENT,
        Sender::Server { .. } => SENDER_SERVER,
        Sender::Peer { .. } => SENDER_PEER,
    });
    out.put_u32(hello.capabilities.bits());
    out.put_u32(hello.initial_window);
    match &hello.sender {
        Sender::Agent { max_streams } => out.put_u32(*max_streams),
        Sender::Server { id } => put_text(id.as_str(), out),
        Sender::Peer { id, max_streams } => {
            out.put_u32(*max_streams);
            put_text(id.as_str(), out);
        }
    }
    put_text(&hello.software, out);
}

fn put_target(target: &Target, out: &mut BytesMut) {
    let (kind, node) = match target {
        Target::Kubelet => (TARGET_KUBELET, None),
        Target::KubeletOf(node) => (TARGET_KUBELET_OF, Some(node)),
        Target::Session(node) => (TARGET_SESSION, Some(node)),
        Target::Agents => (TARGET_AGENTS, None),
    };
    out.put_u8(kind);
    if let Some(node) = node {
        put_text(node.as_str(), out);
    }
}

fn put_text(text: &str, out: &mut BytesMut) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    // At most MAX_TEXT = 255.
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests;
