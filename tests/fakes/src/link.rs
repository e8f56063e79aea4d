//! The link between two machines: a TCP relay whose each way can be cut, reset, silent, late or narrow.
//!
//! A real black hole loses packets before there is a connection, too; here new connections are accepted by the kernel,
//! and nothing is heard on them. What was under way when a way went silent arrives when it speaks again, as TCP's own
//! repetitions would have it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Pass,
    /// Connections end, new ones are closed at once.
    Cut,
    /// The same with RST instead of FIN.
    Reset,
    /// Nothing arrives and nothing says so.
    BlackHole,
}

/// Which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// How long and how narrow a way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Added to every byte.
    pub delay: Duration,
    /// Of one connection.
    pub bits_per_second: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    modes: [Mode; 2],
    shapes: [Shape; 2],
    accept_after: Duration,
    refuses: bool,
    /// Connections before this one have ended.
    ended: u64,
    /// Connections before this one are silent for good.
    forgotten: u64,
}

/// The relay. Clones are the same.
#[derive(Clone)]
pub struct Wire {
    /// Where clients connect to.
    pub address: SocketAddr,
    settings: watch::Sender<Settings>,
    bytes: Arc<[AtomicU64; 2]>,
    accepted: Arc<AtomicU64>,
    /// Bytes that clients may still be sent before everything breaks.
    until_break: Arc<AtomicU64>,
}

/// Nothing breaks.
const WHOLE: u64 = u64::MAX;

impl Wire {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Self {
            address,
            settings: watch::Sender::default(),
            bytes: Arc::default(),
            accepted: Arc::default(),
            until_break: Arc::new(AtomicU64::new(WHOLE)),
        };
        let relay = wire.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if relay.settings.borrow().refuses {
                    continue;
                }
                tokio::spawn(relay.clone().connection(stream, target));
            }
        });
        wire
    }

    /// Both ways.
    pub fn set(&self, mode: Mode) {
        self.settings.send_modify(|settings| settings.modes = [mode; 2]);
    }

    /// One way only.
    pub fn set_way(&self, way: Way, mode: Mode) {
        self.settings.send_modify(|settings| settings.modes[way as usize] = mode);
    }

    /// Both ways.
    pub fn shape(&self, shape: Shape) {
        self.settings.send_modify(|settings| settings.shapes = [shape; 2]);
    }

    /// New connections are silent for this long before they are relayed.
    pub fn accept_after(&self, pause: Duration) {
        self.settings.send_modify(|settings| settings.accept_after = pause);
    }

    /// New connections are closed at once, or not any more.
    pub fn refuse(&self, refuses: bool) {
        self.settings.send_modify(|settings| settings.refuses = refuses);
    }

    /// Ends the first connections, so many of all that ever were.
    pub fn end_first(&self, connections: u64) {
        self.settings.send_modify(|settings| settings.ended = connections);
    }

    /// On the connections that there are nothing arrives any more, whatever becomes of others: as when a router has
    /// forgotten them.
    pub fn forget(&self) {
        let accepted = self.accepted.load(Ordering::Relaxed);
        self.settings.send_modify(|settings| settings.forgotten = accepted);
    }

    /// When clients have been sent so many more bytes, all connections that there are then end, in the middle of whatever
    /// it is.
    pub fn break_after(&self, bytes: u64) {
        self.until_break.store(bytes.min(WHOLE - 1), Ordering::Relaxed);
    }

    /// How much of this clients still get before the break, and whether it comes then.
    fn before_break(&self, length: usize) -> (usize, bool) {
        let length = length as u64;
        let taken = self.until_break.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
            WHOLE => None,
            left => Some(left.checked_sub(length).unwrap_or(WHOLE)),
        });
        match taken {
            Ok(left) if left < length => (left as usize, true),
            _ => (length as usize, false),
        }
    }

    /// Connections that clients have made so far.
    pub fn connections(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Bytes that have arrived so far.
    pub fn bytes(&self, way: Way) -> u64 {
        self.bytes[way as usize].load(Ordering::Relaxed)
    }

    async fn connection(self, mut client: TcpStream, target: SocketAddr) {
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        let mut settings = self.settings.subscribe();
        let pause = settings.borrow().accept_after;
        let opened = async {
            tokio::time::sleep(pause).await;
            TcpStream::connect(target).await.ok()
        };
        let opened = tokio::select! {
            biased;
            // First, so that a connection that is there is closed like the other.
            opened = opened => opened,
            mode = ends(&mut settings, number) => return close(&[&client], mode),
        };
        let Some(mut server) = opened else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let mode = {
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            let there = self.relay(from_client, to_server, (Way::ToServer, number));
            let back = self.relay(from_server, to_client, (Way::ToClient, number));
            tokio::select! {
                biased;
                mode = ends(&mut settings, number) => mode,
                _ = async { tokio::join!(there, back) } => Mode::Cut,
            }
        };
        close(&[&client, &server], mode);
    }

    /// One way, until its end, which is passed on.
    async fn relay(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, (way, number): (Way, u64)) {
        let mut settings = self.settings.subscribe();
        let (sender, mut arriving) = mpsc::channel::<(Instant, Bytes)>(1024);
        let reading = async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                if sender.send((Instant::now(), Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return;
                }
            }
        };
        let writing = async {
            while let Some((at, bytes)) = arriving.recv().await {
                let shape = settings.borrow().shapes[way as usize];
                tokio::time::sleep_until(at + shape.delay).await;
                if let Some(rate) = shape.bits_per_second {
                    let bits = bytes.len() as f64 * 8.0;
                    tokio::time::sleep(Duration::from_secs_f64(bits / rate as f64)).await;
                }
                speaks(&mut settings, way, number).await;
                let (length, breaks) = match way {
                    Way::ToClient => self.before_break(bytes.len()),
                    Way::ToServer => (bytes.len(), false),
                };
                if to.write_all(&bytes[..length]).await.is_err() {
                    return;
                }
                if breaks {
                    self.end_first(self.accepted.load(Ordering::Relaxed));
                }
                self.bytes[way as usize].fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            speaks(&mut settings, way, number).await;
            let _ = to.shutdown().await;
        };
        tokio::join!(reading, writing);
    }
}

/// Waits until connections are to end.
async fn ends(settings: &mut watch::Receiver<Settings>, number: u64) -> Mode {
    let ending = |settings: &Settings| {
        let ended = (number < settings.ended).then_some(Mode::Cut);
        settings.modes.into_iter().chain(ended).find(|mode| matches!(mode, Mode::Cut | Mode::Reset))
    };
    let found = settings.wait_for(|settings| ending(settings).is_some()).await;
    found.ok().and_then(|settings| ending(&settings)).unwrap_or(Mode::Cut)
}

/// Waits until this way is no black hole.
async fn speaks(settings: &mut watch::Receiver<Settings>, way: Way, number: u64) {
    let speaking = settings
        .wait_for(|settings| settings.modes[way as usize] != Mode::BlackHole && number >= settings.forgotten);
    let _ = speaking.await;
}

/// What is dropped next is closed in this way.
fn close(streams: &[&TcpStream], mode: Mode) {
    if mode == Mode::Reset {
        for stream in streams {
            let _ = stream.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    /// Two ends of one connection through a wire.
    async fn ends() -> (Wire, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire::to(listener.local_addr().unwrap()).await;
        let client = TcpStream::connect(wire.address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (wire, client, server)
    }

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        tokio::time::timeout(SOON, to.read_exact(&mut [0])).await.is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn each_way_is_silent_by_itself_and_nothing_is_lost() {
        let (wire, mut client, mut server) = ends().await;
        assert!(arrives(&mut client, &mut server).await);
        wire.set_way(Way::ToServer, Mode::BlackHole);
        assert!(!arrives(&mut client, &mut server).await);
        assert!(arrives(&mut server, &mut client).await);
        wire.set(Mode::Pass);
        server.read_exact(&mut [0]).await.unwrap();
        assert_eq!((wire.bytes(Way::ToServer), wire.bytes(Way::ToClient)), (2, 1));
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "an end is passed on");
        assert!(arrives(&mut server, &mut client).await, "and is not the other way's");
    }

    #[tokio::test]
    async fn a_cut_ends_and_a_reset_breaks_what_is_open() {
        let (wire, mut client, _server) = ends().await;
        wire.set(Mode::Cut);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let mut refused = TcpStream::connect(wire.address).await.unwrap();
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
        let (wire, mut client, mut server) = ends().await;
        wire.set(Mode::Reset);
        for end in [&mut client, &mut server] {
            let error = end.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn what_is_forgotten_is_silent_and_what_is_new_is_not() {
        let (wire, mut client, mut server) = ends().await;
        wire.forget();
        assert!(!arrives(&mut client, &mut server).await);
        wire.end_first(1);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        wire.refuse(true);
        let mut refused = TcpStream::connect(wire.address).await.unwrap();
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_answer_breaks_in_the_middle_and_the_next_connection_does_not() {
        let (wire, mut client, mut server) = ends().await;
        wire.break_after(3);
        server.write_all(b"answer").await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ans");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire { until_break: wire.until_break, ..Wire::to(listener.local_addr().unwrap()).await };
        let mut client = TcpStream::connect(wire.address).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert!(arrives(&mut server, &mut client).await);
    }

    #[tokio::test]
    async fn a_long_and_narrow_way_takes_its_time() {
        let (wire, mut client, mut server) = ends().await;
        wire.shape(Shape { delay: SOON * 2, bits_per_second: Some(80_000) });
        let sent = Instant::now();
        assert!(!arrives(&mut client, &mut server).await);
        client.write_all(&[0; 2000]).await.unwrap();
        server.read_exact(&mut [0; 2001]).await.unwrap();
        // Two kilobytes at ten a second.
        assert!(sent.elapsed() >= SOON * 4, "{:?}", sent.elapsed());
        wire.accept_after(SOON * 2);
        let mut late = TcpStream::connect(wire.address).await.unwrap();
        wire.set(Mode::Cut);
        assert_eq!(late.read(&mut [0]).await.unwrap(), 0);
    }
}
