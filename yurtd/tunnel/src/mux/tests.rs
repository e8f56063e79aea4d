//! Two sessions over a pipe in memory, and peers that do not keep to the protocol.

mod bounds;
mod hello;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::tunnel::{
    self, Capabilities, Frame, GoAwayCode, Hello, INITIAL_WINDOW, OpenErrorCode, Sender, ServerId, StreamId,
    Target,
};

use super::liveness::Settings as Liveness;
use super::session::{self, Settings};
use super::websocket::{self, Side};
use super::window::START;
use super::{End, HelloError, OpenFailure, OpenRequest, Session, TunnelStream, Violation, pipe};

struct Peer {
    session: Session,
    requests: mpsc::Receiver<OpenRequest>,
    driver: AbortOnDropHandle<End>,
}

impl Peer {
    async fn server(io: DuplexStream, settings: Settings) -> Self {
        Self::run(session::accept(io, server_id(), settings).await.unwrap())
    }

    async fn agent(io: DuplexStream, settings: Settings) -> Self {
        Self::run(session::greet(io, settings).await.unwrap().begin().await.unwrap())
    }

    fn run((session, requests, driver): session::Established<DuplexStream>) -> Self {
        Self { session, requests, driver: AbortOnDropHandle::new(tokio::spawn(driver.run())) }
    }
}

fn server_id() -> ServerId {
    ServerId::new("cp-1").unwrap()
}

async fn pair() -> (Peer, Peer) {
    pair_with(Settings::agent()).await
}

async fn pair_with(agent: Settings) -> (Peer, Peer) {
    let (left, right) = tokio::io::duplex(64 * 1024);
    tokio::join!(Peer::server(left, Settings::server()), Peer::agent(right, agent))
}

/// Opens a stream and answers it at the other end.
async fn open(server: &Peer, agent: &mut Peer) -> (TunnelStream, TunnelStream) {
    let (near, far) = tokio::join!(server.session.open(Target::Kubelet), async {
        agent.requests.recv().await.unwrap().accept().unwrap()
    });
    (near.unwrap(), far)
}

#[tokio::test]
async fn a_stream_dropped_after_shutdown_delivers_everything() {
    let (server, mut agent) = pair().await;
    let (mut near, mut far) = open(&server, &mut agent).await;
    near.write_all(&vec![1; 50_000]).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 50_000);
    // Nobody will read what this end writes.
    while far.write_all(b"x").await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_dropped_without_shutdown_is_reset() {
    let (server, mut agent) = pair().await;
    let (near, mut far) = open(&server, &mut agent).await;
    drop(near);
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(far.write_all(b"x").await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_writer_stops_at_the_window_and_goes_on_when_it_is_read() {
    let (server, mut agent) = pair().await;
    let (mut near, mut far) = open(&server, &mut agent).await;
    let data = vec![9; 1_000_000];
    let window = START as usize;
    let mut written = 0;
    while written < window {
        written += near.write(&data[written..]).await.unwrap();
    }
    assert_eq!(written, window);
    let more = near.write(&data[written..]);
    tokio::pin!(more);
    assert!(futures::poll!(&mut more).is_pending());
    let mut half = vec![0; window];
    far.read_exact(&mut half).await.unwrap();
    assert!(more.await.unwrap() > 0);
}

/// Two connected TCP ends whose kernel holds as little as it can.
async fn narrow_tcp() -> (TcpStream, TcpStream) {
    let narrow = |socket: TcpSocket| {
        socket.set_recv_buffer_size(1).unwrap();
        socket.set_send_buffer_size(1).unwrap();
        socket
    };
    let listener = narrow(TcpSocket::new_v4().unwrap());
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let connecting = narrow(TcpSocket::new_v4().unwrap()).connect(listener.local_addr().unwrap());
    let (connected, accepted) = tokio::try_join!(connecting, listener.accept()).unwrap();
    (connected, accepted.0)
}

#[tokio::test]
async fn credit_comes_back_for_what_tcp_took_and_not_for_what_waits_for_it() {
    let (server, mut agent) = pair().await;
    let (mut near, far) = open(&server, &mut agent).await;
    let (tcp, mut stalled) = narrow_tcp().await;
    let piping = AbortOnDropHandle::new(tokio::spawn(pipe::pipe(tcp, far, pipe::Side::Target)));
    let block = vec![1; 4096];
    let mut written = 0;
    // Nothing more is taken for as long as it takes to carry it: the window is used up.
    while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), near.write(&block)).await {
        written += count.unwrap();
    }
    let kernel = 32 * 1024;
    assert!((START as usize..=START as usize + kernel).contains(&written), "{written}");
    let mut read = vec![0; written];
    stalled.read_exact(&mut read).await.unwrap();
    near.write_all(&block).await.unwrap();
    near.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stalled.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), block.len());
    drop(stalled);
    let _ = piping.await;
}

#[tokio::test]
async fn an_agent_that_rejects_gives_its_reason() {
    let (server, mut agent) = pair().await;
    let (opened, ()) = tokio::join!(server.session.open(Target::Kubelet), async {
        let request = agent.requests.recv().await.unwrap();
        assert_eq!(request.target(), &Target::Kubelet);
        request.reject(OpenErrorCode::Refused, "nobody at home".into());
    });
    let rejected = OpenFailure::Rejected { code: OpenErrorCode::Refused, message: "nobody at home".into() };
    assert_eq!(opened.unwrap_err(), rejected);
    // Dropped without an answer.
    let (opened, ()) =
        tokio::join!(server.session.open(Target::Kubelet), async { drop(agent.requests.recv().await) });
    assert!(matches!(opened, Err(OpenFailure::Rejected { code: OpenErrorCode::Unreachable, .. })));
    assert_eq!(server.session.figures().streams, 0);
}

#[tokio::test]
async fn one_stream_more_than_the_agent_takes_is_refused() {
    let (server, mut agent) = pair_with(Settings { max_streams: 3, ..Settings::agent() }).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open(&server, &mut agent).await);
    }
    assert_eq!(server.session.open(Target::Kubelet).await.unwrap_err(), OpenFailure::TooManyStreams);
    streams.pop();
    while agent.session.figures().streams > 2 || server.session.figures().streams > 2 {
        tokio::task::yield_now().await;
    }
    open(&server, &mut agent).await;
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    let (left, right) = tokio::io::duplex(64 * 1024);
    let impatient = Settings { open_timeout: Duration::from_millis(50), ..Settings::server() };
    let (server, mut agent) =
        tokio::join!(Peer::server(left, impatient), Peer::agent(right, Settings::agent()));
    let opened = server.session.open(Target::Kubelet);
    let (opened, request) = tokio::join!(opened, agent.requests.recv());
    assert_eq!(opened.unwrap_err(), OpenFailure::NoAnswer);
    // Its late answer reaches nobody and hurts nobody.
    let mut stream = request.unwrap().accept().unwrap();
    assert!(stream.read_u8().await.is_err());
    open(&server, &mut agent).await;
}

#[tokio::test]
async fn going_away_lets_streams_finish() {
    let (server, mut agent) = pair().await;
    let (mut near, mut far) = open(&server, &mut agent).await;
    server.session.go_away(GoAwayCode::ShuttingDown);
    agent.session.leaving().await;
    assert_eq!(server.session.open(Target::Kubelet).await.unwrap_err(), OpenFailure::SessionEnded);
    near.write_all(b"last").await.unwrap();
    near.shutdown().await.unwrap();
    let mut all = String::new();
    far.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "last");
    server.session.close(GoAwayCode::ShuttingDown);
    assert_eq!(agent.driver.await.unwrap(), End::GoAway(GoAwayCode::ShuttingDown));
}

#[tokio::test]
async fn the_end_of_a_session_never_looks_like_the_end_of_data() {
    let (server, mut agent) = pair().await;
    let (mut near, mut far) = open(&server, &mut agent).await;
    // More than fits anywhere, and the end of data behind it.
    let writing = tokio::spawn(async move {
        let outcome = near.write_all(&vec![1; 4_000_000]).await;
        near.shutdown().await.unwrap();
        outcome
    });
    let mut some = vec![0; 100_000];
    far.read_exact(&mut some).await.unwrap();
    server.session.close(GoAwayCode::ShuttingDown);
    assert!(writing.await.unwrap().is_err());
    let error = loop {
        match far.read(&mut some).await {
            Ok(0) => panic!("half of the data was taken for all of it"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn dropping_the_driver_ends_every_stream() {
    let (server, mut agent) = pair().await;
    let (mut near, _far) = open(&server, &mut agent).await;
    drop(server.driver);
    assert!(near.read_u8().await.is_err());
    server.session.closed().await;
    assert_eq!(agent.driver.await.unwrap(), End::ClosedByPeer);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_dead_after_three_questions() {
    let (left, mut right) = tokio::io::duplex(64 * 1024);
    let mut settings = Settings::server();
    settings.liveness =
        Liveness { silence: Duration::from_millis(100), answer: Duration::from_millis(30), misses: 3 };
    let started = Instant::now();
    let (server, ()) = tokio::join!(Peer::server(left, settings), async {
        right.write_all(&message(&[hello(), Frame::Begin])).await.unwrap();
    });
    assert_eq!(server.driver.await.unwrap(), End::Dead);
    assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
    // HELLO, the measurement at the start, three questions; and no goodbye to a dead peer.
    let mut heard = Vec::new();
    right.read_to_end(&mut heard).await.unwrap();
    let pings = heard.windows(8).filter(|window| *window == [9, 0, 0, 8, 0, 0, 0, 0]).count();
    assert_eq!(pings, 4);
}

// ── Peers that do not keep to the protocol ──────────────────────────────────────────────────────────────────────

fn hello() -> Frame {
    Frame::Hello(Hello {
        sender: Sender::Agent { max_streams: 4 },
        capabilities: Capabilities::default(),
        initial_window: INITIAL_WINDOW,
        software: "liar".into(),
    })
}

/// Frames in one message, as an agent would send them.
fn message(frames: &[Frame]) -> BytesMut {
    let mut batch = BytesMut::zeroed(websocket::MAX_HEADER);
    for frame in frames {
        tunnel::encode(frame, &mut batch);
    }
    websocket::frame(Side::Client, [1, 2, 3, 4], &mut batch);
    batch
}

fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

fn data(stream: u32, length: usize) -> Frame {
    Frame::Data { stream: id(stream), payload: Bytes::from(vec![0; length]) }
}

/// A server and the bare connection of its agent, after HELLO.
async fn server_and_liar() -> (Peer, DuplexStream) {
    let (left, mut right) = tokio::io::duplex(1024 * 1024);
    let (server, ()) = tokio::join!(Peer::server(left, Settings::server()), async {
        right.write_all(&message(&[hello(), Frame::Begin])).await.unwrap();
    });
    (server, right)
}

async fn end_after(frames: &[Frame]) -> End {
    let (server, mut liar) = server_and_liar().await;
    // Stream 1 is there.
    let session = server.session.clone();
    let opened = tokio::spawn(async move { session.open(Target::Kubelet).await });
    while server.session.figures().streams == 0 {
        tokio::task::yield_now().await;
    }
    liar.write_all(&message(&[Frame::OpenAck { stream: id(1) }])).await.unwrap();
    let stream = opened.await.unwrap().unwrap();
    liar.write_all(&message(frames)).await.unwrap();
    let end = server.driver.await.unwrap();
    drop(stream);
    end
}

#[tokio::test]
async fn more_data_than_credit_ends_the_session() {
    let flood: Vec<Frame> = (0..5).map(|_| data(1, 16_000)).collect();
    assert_eq!(end_after(&flood).await, End::Violation(Violation::Overrun(id(1))));
}

#[tokio::test]
async fn frames_out_of_order_end_the_session() {
    let violation = |violation| End::Violation(violation);
    assert_eq!(end_after(&[data(2, 1)]).await, violation(Violation::Stream("DATA", id(2))));
    assert_eq!(
        end_after(&[Frame::Fin { stream: id(1) }, data(1, 1)]).await,
        violation(Violation::Stream("DATA", id(1)))
    );
    assert_eq!(
        end_after(&[Frame::Fin { stream: id(1) }, Frame::Fin { stream: id(1) }]).await,
        violation(Violation::Stream("FIN", id(1)))
    );
    assert_eq!(
        end_after(&[Frame::OpenAck { stream: id(1) }]).await,
        violation(Violation::Stream("OPEN_ACK", id(1)))
    );
    assert_eq!(end_after(&[hello()]).await, violation(Violation::Unexpected("HELLO")));
    assert_eq!(
        end_after(&[Frame::Open { stream: id(2), target: Target::Kubelet }]).await,
        violation(Violation::Unexpected("OPEN"))
    );
    assert_eq!(end_after(&[Frame::Begin]).await, violation(Violation::Unexpected("BEGIN")));
    let window = Frame::Window { stream: id(1), increment: NonZeroU32::new(1 << 30).unwrap() };
    assert_eq!(end_after(&[window]).await, violation(Violation::Credit(id(1))));
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_session_with_a_word_to_the_peer() {
    let (server, mut liar) = server_and_liar().await;
    let mut batch = BytesMut::zeroed(websocket::MAX_HEADER);
    batch.extend_from_slice(&[99; 100]);
    websocket::frame(Side::Client, [1, 2, 3, 4], &mut batch);
    liar.write_all(&batch).await.unwrap();
    let end = server.driver.await.unwrap();
    assert_eq!(end, End::Violation(Violation::Frame(tunnel::DecodeError::UnknownKind(99))));
    let mut heard = Vec::new();
    liar.read_to_end(&mut heard).await.unwrap();
    let goodbye = [11, 0, 0, 1, 0, 0, 0, 0, GoAwayCode::ProtocolError.as_byte()];
    assert!(heard.windows(goodbye.len()).any(|window| window == goodbye), "{heard:?}");
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_once() {
    let (server, mut liar) = server_and_liar().await;
    let flood: Vec<Frame> = (0..50_000).map(Frame::Ping).collect();
    for pings in flood.chunks(1000) {
        liar.write_all(&message(pings)).await.unwrap();
    }
    liar.shutdown().await.unwrap();
    assert_eq!(server.driver.await.unwrap(), End::ClosedByPeer);
    let mut heard = Vec::new();
    liar.read_to_end(&mut heard).await.unwrap();
    // Far less than 50,000 frames of 16 bytes.
    assert!(heard.len() < 200_000, "{}", heard.len());
}

#[tokio::test]
async fn a_proxys_ping_is_answered() {
    let (server, mut liar) = server_and_liar().await;
    liar.write_all(&[0x89, 0x83, 0, 0, 0, 0, b'a', b'b', b'c']).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(5).any(|window| window == b"\x8a\x03abc") {
        let mut buffer = [0; 256];
        let count = liar.read(&mut buffer).await.unwrap();
        assert!(count > 0);
        heard.extend_from_slice(&buffer[..count]);
    }
    drop(server);
}
