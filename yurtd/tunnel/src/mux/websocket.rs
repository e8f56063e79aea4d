//! WebSocket framing (RFC 6455) for one purpose: a stream of bytes in binary messages.
//!
//! The handshake is tungstenite's. Its message layer is not used: it copies every message twice, moves the rest of
//! its buffer after every partial write, and hides when bytes reach the socket, which the scheduler must
//! know. Here a batch is framed and masked where it lies, and received payload is cut out of the read buffer
//! without a copy. Message boundaries mean nothing, so that nothing needs to be gathered.

use bytes::{Buf, Bytes, BytesMut};

/// Room that a header may need in front of the payload: 2 bytes, a length of 8, a mask of 4.
pub(crate) const MAX_HEADER: usize = 14;
/// Bytes of the longest control frame's payload.
const MAX_CONTROL: u64 = 125;

const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Which side of the WebSocket this is; a client masks what it sends, a server does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// A reserved bit is set.
    #[error("websocket frame with a reserved bit")]
    Reserved,
    /// A text message or an opcode that does not exist.
    #[error("websocket frame with opcode {0:#x}")]
    Opcode(u8),
    /// A continuation of nothing, or a new message inside another one.
    #[error("websocket message out of order")]
    OutOfOrder,
    /// Masked where it must not be, or the other way round.
    #[error("websocket frame with the wrong masking")]
    Masking,
    /// A control frame that is too long or in pieces.
    #[error("websocket control frame too long or in pieces")]
    Control,
    /// A length that does not fit 63 bits.
    #[error("websocket frame with an impossible length")]
    Length,
}

/// What has been received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Some payload.
    Data(BytesMut),
    /// Answer with a pong of the same payload.
    Ping(Bytes),
    /// The peer closes the connection.
    Close,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Decoder {
    side: Side,
    /// Payload still to come of the current data frame.
    remaining: u64,
    mask: [u8; 4],
    /// How far into the mask the next byte of payload is.
    mask_at: usize,
    in_message: bool,
    closed: bool,
}

impl Decoder {
    /// The decoder of this side.
    pub(crate) fn new(side: Side) -> Self {
        Self { side, remaining: 0, mask: [0; 4], mask_at: 0, in_message: false, closed: false }
    }

    /// Takes the next event off `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`WebSocketError`]; the connection cannot be used any further.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, WebSocketError> {
        loop {
            if self.closed || input.is_empty() {
                return Ok(None);
            }
            if self.remaining > 0 {
                let count = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
                let mut payload = input.split_to(count);
                self.remaining -= count as u64;
                if self.side == Side::Server {
                    apply_mask(&mut payload, self.mask, self.mask_at);
                    self.mask_at = (self.mask_at + count) % 4;
                }
                return Ok(Some(Event::Data(payload)));
            }
            let Some(header) = Header::parse(input)? else { return Ok(None) };
            if (header.mask.is_some()) != (self.side == Side::Server) {
                return Err(WebSocketError::Masking);
            }
            if header.opcode >= CLOSE {
                match self.control(&header, input)? {
                    Control::Incomplete => return Ok(None),
                    Control::Nothing => continue,
                    Control::Event(event) => return Ok(Some(event)),
                }
            }
            match (header.opcode, self.in_message) {
                (BINARY, false) | (CONTINUATION, true) => {}
                (BINARY, true) | (CONTINUATION, false) => return Err(WebSocketError::OutOfOrder),
                (other, _) => return Err(WebSocketError::Opcode(other)),
            }
            self.in_message = !header.last;
            self.remaining = header.payload;
            self.mask = header.mask.unwrap_or_default();
            self.mask_at = 0;
            input.advance(header.length);
        }
    }

    fn control(&mut self, header: &Header, input: &mut BytesMut) -> Result<Control, WebSocketError> {
        if header.payload > MAX_CONTROL || !header.last {
            return Err(WebSocketError::Control);
        }
        let payload = header.payload as usize;
        if input.len() < header.length + payload {
            return Ok(Control::Incomplete);
        }
        input.advance(header.length);
        let mut payload = input.split_to(payload);
        apply_mask(&mut payload, header.mask.unwrap_or_default(), 0);
        match header.opcode {
            CLOSE => {
                self.closed = true;
                Ok(Control::Event(Event::Close))
            }
            // A copy, so that it does not hold on to the read buffer.
            PING => Ok(Control::Event(Event::Ping(Bytes::copy_from_slice(&payload)))),
            PONG => Ok(Control::Nothing),
            other => Err(WebSocketError::Opcode(other)),
        }
    }
}

enum Control {
    Incomplete,
    Nothing,
    Event(Event),
}

struct Header {
    last: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    payload: u64,
    /// Of the header itself.
    length: usize,
}

impl Header {
    fn parse(input: &[u8]) -> Result<Option<Self>, WebSocketError> {
        let Some((&[first, second], rest)) = input.split_first_chunk::<2>() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(WebSocketError::Reserved);
        }
        let (payload, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        if payload > i64::MAX as u64 {
            return Err(WebSocketError::Length);
        }
        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            }
        };
        Ok(Some(Self {
            last: first & FIN != 0,
            opcode: first & 0x0f,
            mask,
            payload,
            length: input.len() - rest.len(),
        }))
    }
}

/// Turns `batch`, whose first [`MAX_HEADER`] bytes are free, into one binary message. The client's `mask` is random.
pub(crate) fn frame(side: Side, mask: [u8; 4], batch: &mut BytesMut) {
    let payload = batch.len() - MAX_HEADER;
    seal(side, BINARY, mask, payload, batch);
}

/// Appends a whole control frame to `out`, which must be empty.
fn control_frame(side: Side, opcode: u8, mask: [u8; 4], payload: &[u8], out: &mut BytesMut) {
    out.clear();
    out.resize(MAX_HEADER, 0);
    out.extend_from_slice(payload);
    seal(side, opcode, mask, payload.len(), out);
}

/// Fills `out` with an answer to a ping.
pub(crate) fn pong_frame(side: Side, mask: [u8; 4], payload: &[u8], out: &mut BytesMut) {
    control_frame(side, PONG, mask, payload, out);
}

/// Fills `out` with a close frame of status 1000.
pub(crate) fn close_frame(side: Side, mask: [u8; 4], out: &mut BytesMut) {
    control_frame(side, CLOSE, mask, &1000u16.to_be_bytes(), out);
}

/// Writes the header right in front of the payload and drops what is left of the room for it.
fn seal(side: Side, opcode: u8, mask: [u8; 4], payload: usize, batch: &mut BytesMut) {
    let mut header = [0; MAX_HEADER];
    header[0] = FIN | opcode;
    let mut length = 2;
    header[1] = match payload {
        0..126 => payload as u8,
        126..0x1_0000 => {
            header[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
            length += 2;
            126
        }
        _ => {
            header[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
            length += 8;
            127
        }
    };
    if side == Side::Client {
        header[1] |= MASKED;
        header[length..length + 4].copy_from_slice(&mask);
        length += 4;
        apply_mask(&mut batch[MAX_HEADER..], mask, 0);
    }
    batch[MAX_HEADER - length..MAX_HEADER].copy_from_slice(&header[..length]);
    batch.advance(MAX_HEADER - length);
}

/// XORs `bytes` with the mask, of which `at` bytes have been used already.
fn apply_mask(bytes: &mut [u8], mut mask: [u8; 4], at: usize) {
    if mask == [0; 4] {
        return;
    }
    mask.rotate_left(at % 4);
    let wide = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn message(side: Side, payload: &[u8]) -> BytesMut {
        let mut batch = BytesMut::zeroed(MAX_HEADER);
        batch.extend_from_slice(payload);
        frame(side, MASK, &mut batch);
        batch
    }

    fn other(side: Side) -> Side {
        if side == Side::Client { Side::Server } else { Side::Client }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn payload_survives_whatever_way_the_bytes_are_cut(
            client in any::<bool>(),
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..70_000), 1..4),
            step in 1..9000usize,
        ) {
            let side = if client { Side::Client } else { Side::Server };
            let wire: Vec<u8> = messages.iter().flat_map(|payload| message(side, payload)).collect();
            let mut decoder = Decoder::new(other(side));
            let mut input = BytesMut::new();
            let mut received = Vec::new();
            for chunk in wire.chunks(step) {
                input.extend_from_slice(chunk);
                while let Some(event) = decoder.decode(&mut input).unwrap() {
                    let Event::Data(payload) = event else { panic!("{event:?}") };
                    received.extend_from_slice(&payload);
                }
            }
            prop_assert_eq!(received, messages.concat());
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..300), server in any::<bool>()) {
            let mut decoder = Decoder::new(if server { Side::Server } else { Side::Client });
            let mut input = BytesMut::from(&input[..]);
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        }
    }

    #[test]
    fn the_example_of_rfc_6455_section_5_7() {
        // A masked "Hello", as binary.
        let wire = message(Side::Client, b"Hello");
        assert_eq!(&wire[..], b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let mut decoder = Decoder::new(Side::Server);
        assert_eq!(decoder.decode(&mut wire.clone()), Ok(Some(Event::Data(BytesMut::from(&b"Hello"[..])))));
        // Unmasked, in two fragments with a ping between them.
        let mut wire = BytesMut::from(&b"\x02\x03Hel\x89\x05Hello\x80\x02lo"[..]);
        let mut decoder = Decoder::new(Side::Client);
        assert_eq!(decoder.decode(&mut wire), Ok(Some(Event::Data(BytesMut::from(&b"Hel"[..])))));
        assert_eq!(decoder.decode(&mut wire), Ok(Some(Event::Ping(Bytes::from_static(b"Hello")))));
        assert_eq!(decoder.decode(&mut wire), Ok(Some(Event::Data(BytesMut::from(&b"lo"[..])))));
        assert_eq!(decoder.decode(&mut wire), Ok(None));
    }

    #[test]
    fn lengths_of_every_form() {
        for length in [0, 1, 125, 126, 65535, 65536] {
            let wire = message(Side::Server, &vec![7; length]);
            let expected = length
                + if length < 126 {
                    2
                } else if length < 65536 {
                    4
                } else {
                    10
                };
            assert_eq!(wire.len(), expected);
        }
    }

    #[test]
    fn what_the_rfc_forbids_is_refused() {
        let cases: [(&[u8], WebSocketError); 9] = [
            (b"\xc2\x00", WebSocketError::Reserved),
            (b"\x81\x00", WebSocketError::Opcode(1)),
            (b"\x83\x00", WebSocketError::Opcode(3)),
            (b"\x8b\x00", WebSocketError::Opcode(11)),
            (b"\x80\x00", WebSocketError::OutOfOrder),
            (b"\x82\x80\x00\x00\x00\x00", WebSocketError::Masking),
            (b"\x89\x7e\x00\x7e", WebSocketError::Control),
            (b"\x09\x00", WebSocketError::Control),
            (b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", WebSocketError::Length),
        ];
        for (bytes, error) in cases {
            assert_eq!(
                Decoder::new(Side::Client).decode(&mut BytesMut::from(bytes)),
                Err(error),
                "{bytes:?}"
            );
        }
        let unmasked = &b"\x82\x01x"[..];
        assert_eq!(
            Decoder::new(Side::Server).decode(&mut BytesMut::from(unmasked)),
            Err(WebSocketError::Masking)
        );
    }

    #[test]
    fn a_close_ends_everything() {
        let mut wire = BytesMut::new();
        close_frame(Side::Client, MASK, &mut wire);
        wire.extend_from_slice(b"junk");
        let mut decoder = Decoder::new(Side::Server);
        assert_eq!(decoder.decode(&mut wire), Ok(Some(Event::Close)));
        assert_eq!(decoder.decode(&mut wire), Ok(None));
    }

    #[test]
    fn a_pong_has_the_payload_of_its_ping() {
        let mut wire = BytesMut::new();
        pong_frame(Side::Server, MASK, b"abc", &mut wire);
        assert_eq!(&wire[..], b"\x8a\x03abc");
        assert_eq!(Decoder::new(Side::Client).decode(&mut wire), Ok(None));
        assert!(wire.is_empty());
    }
}
