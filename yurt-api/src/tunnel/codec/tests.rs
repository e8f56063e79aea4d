use proptest::prelude::*;

use super::*;
use crate::tunnel::MAX_FRAME;

fn stream(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

fn bytes_of(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    encode(frame, &mut out);
    out
}

fn any_stream() -> impl Strategy<Value = StreamId> {
    (1..=u32::MAX).prop_map(stream)
}

fn server(id: &str) -> Sender {
    Sender::Server { id: ServerId::new(id).unwrap() }
}

fn any_sender() -> impl Strategy<Value = Sender> {
    prop_oneof![
        any::<u32>().prop_map(|max_streams| Sender::Agent { max_streams }),
        "[!-~]{1,253}".prop_map(|id| server(&id)),
        ("[!-~]{1,253}", any::<u32>())
            .prop_map(|(id, max_streams)| { Sender::Peer { id: ServerId::new(&id).unwrap(), max_streams } }),
    ]
}

fn any_target() -> impl Strategy<Value = Target> {
    let node = || "[a-z0-9.-]{1,253}".prop_map(|name| NodeName::new(&name).unwrap());
    prop_oneof![
        Just(Target::Kubelet),
        Just(Target::Agents),
        node().prop_map(Target::KubeletOf),
        node().prop_map(Target::Session),
    ]
}

fn any_text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..60).prop_map(|chars| chars.into_iter().collect())
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any_sender(), any::<u32>(), 0..=MAX_WINDOW, any_text()).prop_map(
            |(sender, capabilities, initial_window, software)| {
                let capabilities = Capabilities::from_bits(capabilities);
                Frame::Hello(Hello { sender, capabilities, initial_window, software })
            }
        ),
        Just(Frame::Begin),
        (any_stream(), any_target()).prop_map(|(stream, target)| Frame::Open { stream, target }),
        any_stream().prop_map(|stream| Frame::OpenAck { stream }),
        (any_stream(), 1..=7u8, any_text()).prop_map(|(stream, code, message)| Frame::OpenError {
            stream,
            code: OpenErrorCode::from_byte(code).unwrap(),
            message
        }),
        (any_stream(), proptest::collection::vec(any::<u8>(), 1..=MAX_PAYLOAD))
            .prop_map(|(stream, payload)| Frame::Data { stream, payload: payload.into() }),
        any_stream().prop_map(|stream| Frame::Fin { stream }),
        (any_stream(), 1..=2u8)
            .prop_map(|(stream, code)| Frame::Reset { stream, code: ResetCode::from_byte(code).unwrap() }),
        (any_stream(), 1..=MAX_WINDOW).prop_map(|(stream, increment)| Frame::Window {
            stream,
            increment: NonZeroU32::new(increment).unwrap()
        }),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        (1..=4u8).prop_map(|code| Frame::GoAway(GoAwayCode::from_byte(code).unwrap())),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives_the_way_there_and_back(frame in any_frame()) {
        let mut wire = bytes_of(&frame);
        prop_assert!(wire.len() <= MAX_FRAME);
        prop_assert_eq!(decode(&mut wire), Ok(Some(frame)));
        prop_assert!(wire.is_empty());
    }

    #[test]
    fn a_truncated_frame_waits_for_more(frame in any_frame(), cut in any::<prop::sample::Index>()) {
        let whole = bytes_of(&frame);
        let mut part = BytesMut::from(&whole[..cut.index(whole.len())]);
        let before = part.clone();
        prop_assert_eq!(decode(&mut part), Ok(None));
        prop_assert_eq!(part, before);
    }

    #[test]
    fn frames_come_out_the_same_however_the_bytes_are_cut(
        frames in proptest::collection::vec(any_frame(), 1..8),
        step in 1..5000usize,
    ) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            encode(frame, &mut wire);
        }
        let mut buffer = BytesMut::new();
        let mut decoded = Vec::new();
        for chunk in wire.chunks(step) {
            buffer.extend_from_slice(chunk);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_grow(input in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut input = BytesMut::from(&input[..]);
        loop {
            let before = input.len();
            match decode(&mut input) {
                Ok(Some(frame)) => {
                    prop_assert!(input.len() < before);
                    // What was accepted is what the encoder would have written.
                    prop_assert_eq!(bytes_of(&frame).len(), before - input.len());
                }
                Ok(None) | Err(_) => break,
            }
        }
    }

    #[test]
    fn nearly_valid_bytes_never_panic(frame in any_frame(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut wire = bytes_of(&frame);
        let at = at.index(wire.len());
        wire[at] = byte;
        let _ = decode(&mut wire);
    }
}

/// What other versions of this software will have on the wire: these bytes may never change.
#[test]
fn golden_bytes() {
    let node = || NodeName::new("edge-1").unwrap();
    let cases: [(Frame, &[u8]); 17] = [
        (
            Frame::Hello(Hello {
                sender: Sender::Agent { max_streams: 1024 },
                capabilities: Capabilities::default(),
                initial_window: 8192,
                software: "yurtd/0.1.0".into(),
            }),
            b"\x01\x00\x00\x1f\x00\x00\x00\x00YURT\x00\x02\x01\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x04\x00\
              \x0byurtd/0.1.0",
        ),
        (
            Frame::Hello(Hello {
                sender: server("cp-1"),
                // Of a later build.
                capabilities: Capabilities::from_bits(0x8000_0001),
                initial_window: 8192,
                software: "yurtd/0.1.0".into(),
            }),
            b"\x01\x00\x00\x20\x00\x00\x00\x00YURT\x00\x02\x02\x80\x00\x00\x01\x00\x00\x20\x00\x04cp-1\
              \x0byurtd/0.1.0",
        ),
        (Frame::Begin, b"\x0c\x00\x00\x00\x00\x00\x00\x00"),
        (Frame::Open { stream: stream(1), target: Target::Kubelet }, b"\x02\x00\x00\x01\x00\x00\x00\x01\x01"),
        (
            Frame::Hello(Hello {
                sender: Sender::Peer { id: ServerId::new("cp-1").unwrap(), max_streams: 1024 },
                capabilities: Capabilities::default(),
                initial_window: 8192,
                software: "yurtd/0.1.0".into(),
            }),
            b"\x01\x00\x00\x24\x00\x00\x00\x00YURT\x00\x02\x03\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x04\x00\
              \x04cp-1\x0byurtd/0.1.0",
        ),
        (
            Frame::Open { stream: stream(1), target: Target::KubeletOf(node()) },
            b"\x02\x00\x00\x08\x00\x00\x00\x01\x03\x06edge-1",
        ),
        (
            Frame::Open { stream: stream(1), target: Target::Session(node()) },
            b"\x02\x00\x00\x08\x00\x00\x00\x01\x04\x06edge-1",
        ),
        (Frame::Open { stream: stream(1), target: Target::Agents }, b"\x02\x00\x00\x01\x00\x00\x00\x01\x05"),
        (Frame::OpenAck { stream: stream(1) }, b"\x03\x00\x00\x00\x00\x00\x00\x01"),
        (
            Frame::OpenError { stream: stream(2), code: OpenErrorCode::Refused, message: "no".into() },
            b"\x04\x00\x00\x04\x00\x00\x00\x02\x01\x02no",
        ),
        (
            Frame::Data { stream: stream(0x01020304), payload: Bytes::from_static(b"hello") },
            b"\x05\x00\x00\x05\x01\x02\x03\x04hello",
        ),
        (Frame::Fin { stream: stream(1) }, b"\x06\x00\x00\x00\x00\x00\x00\x01"),
        (
            Frame::Reset { stream: stream(1), code: ResetCode::Failed },
            b"\x07\x00\x00\x01\x00\x00\x00\x01\x02",
        ),
        (
            Frame::Window { stream: stream(1), increment: NonZeroU32::new(32768).unwrap() },
            b"\x08\x00\x00\x04\x00\x00\x00\x01\x00\x00\x80\x00",
        ),
        (Frame::Ping(7), b"\x09\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"),
        (Frame::Pong(7), b"\x0a\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"),
        (Frame::GoAway(GoAwayCode::Superseded), b"\x0b\x00\x00\x01\x00\x00\x00\x00\x02"),
    ];
    for (frame, golden) in cases {
        assert_eq!(bytes_of(&frame), golden, "{frame:?}");
        assert_eq!(decode(&mut BytesMut::from(golden)), Ok(Some(frame)));
    }
}

#[test]
fn a_header_that_can_never_be_valid_is_refused_before_its_payload_arrives() {
    let cases: [(&[u8], DecodeError); 9] = [
        (b"\x00\x00\x00\x00\x00\x00\x00\x00", DecodeError::UnknownKind(0)),
        (b"\x0d\x00\x00\x00\x00\x00\x00\x00", DecodeError::UnknownKind(13)),
        (b"\x09\x01\x00\x08\x00\x00\x00\x00", DecodeError::Reserved),
        (b"\x09\x00\x00\x09\x00\x00\x00\x00", DecodeError::Length { kind: 9, length: 9 }),
        (b"\x05\x00\x3f\xf9\x00\x00\x00\x01", DecodeError::Length { kind: 5, length: 16377 }),
        (b"\x05\x00\xff\xff\x00\x00\x00\x01", DecodeError::Length { kind: 5, length: 65535 }),
        (b"\x05\x00\x00\x00\x00\x00\x00\x01", DecodeError::Length { kind: 5, length: 0 }),
        (b"\x05\x00\x00\x01\x00\x00\x00\x00", DecodeError::Stream { kind: 5, stream: 0 }),
        (b"\x0b\x00\x00\x01\x00\x00\x00\x01", DecodeError::Stream { kind: 11, stream: 1 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(&mut BytesMut::from(bytes)), Err(error), "{bytes:?}");
    }
}

#[test]
fn values_that_the_protocol_does_not_allow_are_refused() {
    let cases: [(&[u8], DecodeError); 12] = [
        (b"\x02\x00\x01\x00\x00\x00\x00\x01", DecodeError::Length { kind: 2, length: 256 }),
        (b"\x02\x00\x00\x03\x00\x00\x00\x01\x03\x01/", DecodeError::Invalid("node name")),
        (b"\x02\x00\x00\x02\x00\x00\x00\x01\x01x", DecodeError::LeftOver(2)),
        (b"\x02\x00\x00\x01\x00\x00\x00\x01\x09", DecodeError::Invalid("kind of target")),
        // An address, which an agent of version 1 could be asked for.
        (b"\x02\x00\x00\x01\x00\x00\x00\x01\x02", DecodeError::Invalid("kind of target")),
        (
            b"\x02\x00\x00\x07\x00\x00\x00\x02\x02\x28\x0a\x7f\x00\x00\x01",
            DecodeError::Invalid("kind of target"),
        ),
        (b"\x04\x00\x00\x03\x00\x00\x00\x01\x01\x05x", DecodeError::Truncated(4)),
        (b"\x04\x00\x00\x03\x00\x00\x00\x01\x01\x00x", DecodeError::LeftOver(4)),
        (b"\x04\x00\x00\x03\x00\x00\x00\x01\x01\x01\xff", DecodeError::Invalid("text: not UTF-8")),
        (b"\x07\x00\x00\x01\x00\x00\x00\x01\x63", DecodeError::Invalid("reset code")),
        (b"\x08\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00", DecodeError::Invalid("window increment")),
        (b"\x08\x00\x00\x04\x00\x00\x00\x01\x40\x00\x00\x01", DecodeError::Invalid("window increment")),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(&mut BytesMut::from(bytes)), Err(error), "{bytes:?}");
    }
}

#[test]
fn a_hello_of_another_version_is_told_by_its_number_whatever_else_it_says() {
    // As version 1 had it: streams, window, software.
    let one = b"\x01\x00\x00\x1a\x00\x00\x00\x00YURT\x00\x01\x00\x00\x04\x00\x00\x01\x00\x00\x0byurtd/0.1.0";
    assert_eq!(decode(&mut BytesMut::from(&one[..])), Err(DecodeError::Version(1)));
    let later = b"\x01\x00\x00\x06\x00\x00\x00\x00YURT\x00\x03";
    let error = decode(&mut BytesMut::from(&later[..])).unwrap_err();
    assert_eq!(error.to_string(), "version 3 of the tunnel protocol, and not 2");
}

#[test]
fn a_hello_that_does_not_say_who_speaks_is_refused() {
    let hello = |rest: &[u8]| {
        let mut wire = BytesMut::from(&header(HELLO, 0, (HELLO_PREFIX + rest.len()) as u16)[..]);
        wire.extend_from_slice(b"YURT\x00\x02");
        wire.extend_from_slice(rest);
        decode(&mut wire)
    };
    let cases: [(&[u8], DecodeError); 5] = [
        (b"\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00", DecodeError::Invalid("hello: sender")),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", DecodeError::Invalid("hello: server id")),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00\x00\x03a\nb\x00", DecodeError::Invalid("hello: server id")),
        (b"\x01\x00\x00\x00\x00\x40\x00\x00\x01", DecodeError::Invalid("hello: initial window")),
        (b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", DecodeError::Truncated(1)),
    ];
    for (rest, error) in cases {
        assert_eq!(hello(rest), Err(error), "{rest:?}");
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let message = "é".repeat(200);
    let mut wire = bytes_of(&Frame::OpenError {
        stream: stream(1),
        code: OpenErrorCode::Refused,
        message: message.clone(),
    });
    let Ok(Some(Frame::OpenError { message: cut, .. })) = decode(&mut wire) else { panic!("no open error") };
    assert_eq!(cut, "é".repeat(127));
}
