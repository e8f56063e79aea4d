//! Accepting connections: the one loop behind every listener.
//!
//! ```text
//! listener → a place (all, and of this peer) → tls: ClientHello, handshake → http: head of the first request → …
//! ```
//!
//! A connection costs memory before anybody knows who is at its other end. So it has a place from the moment it is
//! accepted ([`Limits`]), one peer can have only a share of them, and every step until the first request has a
//! deadline ([`tls`], [`http`]): who says nothing loses the place to the next one. What a place stands for is the
//! listener's choice: it keeps it for the connection's life, or only for the handshake.

pub mod http;
pub mod tls;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause after `accept` failed: file descriptors or memory have run out, and what is open has to end first.
const PAUSE: Duration = Duration::from_millis(100);
/// Who has one IPv6 address has a network of at least this size.
const IPV6_NETWORK: u128 = !(u128::MAX >> 56);
/// Refused connections are reported at most this often.
const REPORT: Duration = Duration::from_secs(10);

/// How many connections may have a place, and what becomes of the others.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All together.
    pub total: usize,
    /// Of one peer ([`Places::new`], [`Places::of_addresses`]); `None` where all come from one address anyway.
    pub per_peer: Option<usize>,
    /// What becomes of a connection beyond `total`. One beyond `per_peer` would hold up those behind it and is
    /// never waited for.
    pub over: Over,
}

/// What becomes of a connection that there is no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// It waits in the kernel's backlog.
    Wait,
    /// It is closed.
    Drop,
    /// It is reset, so that its other end sees a failure and not an end.
    Reset,
}

/// The places of one or several listeners.
#[derive(Debug, Clone)]
pub struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    /// Whose share an address counts for.
    peer: fn(IpAddr) -> IpAddr,
    all: Arc<Semaphore>,
    peers: Mutex<HashMap<IpAddr, usize>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    unreported: usize,
    reported: Option<Instant>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    _all: OwnedSemaphorePermit,
    share: Option<(Arc<Inner>, IpAddr)>,
}

/// A connection with its place.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub peer: SocketAddr,
    /// When it was accepted: deadlines count from here.
    pub at: Instant,
    /// Its place.
    pub place: Place,
}

/// Accepts connections until `stop`, and hands each to `serve`, which starts a task and returns.
pub async fn accept(
    listener: TcpListener,
    places: Places,
    stop: CancellationToken,
    mut serve: impl FnMut(Accepted),
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = places.next(&listener) => accepted,
        };
        serve(accepted);
    }
}

impl Places {
    /// All of them free. A peer is an IPv4 address or an IPv6 /56.
    pub fn new(limits: Limits) -> Self {
        Self::of(limits, network)
    }

    /// All of them free. A peer is an address, of IPv6 too: for listeners to which one node's pods come, which are all of
    /// one network.
    pub fn of_addresses(limits: Limits) -> Self {
        Self::of(limits, |address| address.to_canonical())
    }

    fn of(limits: Limits, peer: fn(IpAddr) -> IpAddr) -> Self {
        Self(Arc::new(Inner {
            limits,
            peer,
            all: Arc::new(Semaphore::new(limits.total)),
            peers: Mutex::default(),
            refusals: Mutex::default(),
        }))
    }

    async fn next(&self, listener: &TcpListener) -> Accepted {
        loop {
            let reserved = match self.0.limits.over {
                Over::Wait => self.0.all.clone().acquire_owned().await.ok(),
                Over::Drop | Over::Reset => None,
            };
            match listener.accept().await {
                Ok((stream, peer)) => match self.place(reserved, peer.ip()) {
                    Some(place) => return Accepted { stream, peer, at: Instant::now(), place },
                    None => self.refuse(&stream, peer),
                },
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// A place for a connection that was accepted with one of another kind; `None` when there is none.
    pub fn enter(&self, peer: IpAddr) -> Option<Place> {
        self.place(None, peer)
    }

    fn place(&self, reserved: Option<OwnedSemaphorePermit>, peer: IpAddr) -> Option<Place> {
        let all = reserved.or_else(|| self.0.all.clone().try_acquire_owned().ok())?;
        let share = match self.0.limits.per_peer {
            Some(limit) => {
                let peer = (self.0.peer)(peer);
                let mut peers = locked(&self.0.peers);
                let taken = peers.entry(peer).or_default();
                if *taken >= limit {
                    return None;
                }
                *taken += 1;
                Some((self.0.clone(), peer))
            }
            None => None,
        };
        Some(Place { _all: all, share })
    }

    /// A flood must not become a flood of lines in the log.
    fn refuse(&self, stream: &TcpStream, peer: SocketAddr) {
        if self.0.limits.over == Over::Reset {
            // Nothing is left to do when this fails: the connection is closed anyway.
            let _ = stream.set_zero_linger();
        }
        let mut refusals = locked(&self.0.refusals);
        refusals.unreported += 1;
        if refusals.reported.is_none_or(|reported| reported.elapsed() >= REPORT) {
            let port = stream.local_addr().map(|local| local.port()).unwrap_or_default();
            let refused = refusals.unreported;
            tracing::warn!(port, %peer, refused, "too many connections; the last of those refused came from here");
            *refusals = Refusals { unreported: 0, reported: Some(Instant::now()) };
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((places, peer)) = &self.share else { return };
        let mut peers = locked(&places.peers);
        if let Some(taken) = peers.get_mut(peer) {
            *taken -= 1;
            if *taken == 0 {
                peers.remove(peer);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose share an address counts for: an IPv4 address is its own, an IPv6 address one of a network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
    }
}

/// accept(2): what went wrong with a connection that nobody has seen yet says nothing about the next one.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;
    use tokio::sync::mpsc;

    use super::*;

    /// Long enough for a busy machine, short enough to fail.
    const SOON: Duration = Duration::from_secs(20);

    /// Whom a listener with these limits let in.
    async fn listen(limits: Limits) -> (SocketAddr, mpsc::UnboundedReceiver<Accepted>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = mpsc::unbounded_channel();
        tokio::spawn(accept(listener, Places::new(limits), CancellationToken::new(), move |connection| {
            let _ = sender.send(connection);
        }));
        (address, accepted)
    }

    async fn connect(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn next(accepted: &mut mpsc::UnboundedReceiver<Accepted>) -> Accepted {
        tokio::time::timeout(SOON, accepted.recv()).await.expect("nobody was let in").unwrap()
    }

    #[tokio::test]
    async fn one_peer_cannot_take_all_places() {
        let limits = Limits { total: 3, per_peer: Some(2), over: Over::Wait };
        let (address, mut accepted) = listen(limits).await;
        let _two = (connect("127.0.0.1:0", address).await, connect("127.0.0.1:0", address).await);
        let (first, _second) = (next(&mut accepted).await, next(&mut accepted).await);
        let mut refused = connect("127.0.0.1:0", address).await;
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
        let _other = connect("127.0.0.2:0", address).await;
        assert_eq!(next(&mut accepted).await.peer.ip().to_string(), "127.0.0.2");
        // Its own places come back to it.
        drop(first);
        let _again = connect("127.0.0.1:0", address).await;
        assert_eq!(next(&mut accepted).await.peer.ip().to_string(), "127.0.0.1");
    }

    #[tokio::test]
    async fn who_waits_is_let_in_when_a_place_is_free() {
        let (address, mut accepted) = listen(Limits { total: 1, per_peer: None, over: Over::Wait }).await;
        let _clients = (connect("127.0.0.1:0", address).await, connect("127.0.0.1:0", address).await);
        let first = next(&mut accepted).await;
        assert!(accepted.try_recv().is_err());
        drop(first);
        next(&mut accepted).await;
    }

    #[tokio::test]
    async fn who_is_not_waited_for_sees_an_end_or_a_failure() {
        let (address, mut accepted) = listen(Limits { total: 1, per_peer: None, over: Over::Drop }).await;
        let _client = connect("127.0.0.1:0", address).await;
        let _first = next(&mut accepted).await;
        assert_eq!(connect("127.0.0.1:0", address).await.read(&mut [0]).await.unwrap(), 0);

        let (address, mut accepted) = listen(Limits { total: 1, per_peer: None, over: Over::Reset }).await;
        let _client = connect("127.0.0.1:0", address).await;
        let _first = next(&mut accepted).await;
        let failure = connect("127.0.0.1:0", address).await.read(&mut [0]).await.unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_share_is_of_an_ipv4_address_or_of_an_ipv6_network() {
        let network = |address: &str| network(address.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:22ff:3::4"), "2001:db8:1:2200::");
    }

    #[tokio::test]
    async fn pods_of_one_node_have_a_share_each_in_ipv6_too() {
        let limits = Limits { total: 4, per_peer: Some(1), over: Over::Drop };
        let [a, b] = ["fd00:10:244:1::5", "fd00:10:244:1::6"].map(|ip| ip.parse().unwrap());
        let strangers = Places::new(limits);
        let _place = strangers.enter(a).unwrap();
        assert!(strangers.enter(b).is_none());
        let pods = Places::of_addresses(limits);
        let _places = (pods.enter(a).unwrap(), pods.enter(b).unwrap());
        assert!(pods.enter(a).is_none());
    }

    #[test]
    fn only_want_of_something_pauses() {
        assert!(is_of_the_connection(&io::Error::from_raw_os_error(103)));
        assert!(!is_of_the_connection(&io::Error::from_raw_os_error(24)));
    }
}
