//! The way to a kubelet without the tunnel: as the API server would have gone it, had nobody redirected it.
//!
//! A label alone redirects a node's address. The node may be reachable all the same (a VPN, a trial), and may have no
//! agent: it is being converted, its conversion failed, its hub restarts. Then the connection goes where it was meant to go,
//! by a socket with a mark that the redirect leaves alone.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};

use crate::mux::socket;

/// The mark of our own connections. One bit that nobody else is known to use: kube-proxy has 0x4000 and 0x8000, Cilium
/// 0x0f00 and the upper half, Calico the upper half.
pub(super) const MARK: u32 = 0x2000;
/// A node that can be reached answers in one round trip; its SYN may be lost twice in this time.
const CONNECT: Duration = Duration::from_secs(5);

/// The direct connections that are open.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// By our end. Somebody else's rules may change marks, and our connection then comes back to us.
    ours: Mutex<HashSet<SocketAddr>>,
}

/// A connection to a kubelet.
#[derive(Debug)]
pub(super) struct DirectStream {
    tcp: TcpStream,
    _end: End,
}

/// Our end of a connection, known for as long as this is.
#[derive(Debug)]
struct End {
    direct: Arc<Direct>,
    address: SocketAddr,
}

impl Drop for End {
    fn drop(&mut self) {
        self.direct.ours.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address);
    }
}

impl Direct {
    /// Whether a connection that was accepted is one that was opened here.
    pub(super) fn is_ours(&self, peer: SocketAddr) -> bool {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    /// Connects to a kubelet, in 5 seconds or not at all.
    ///
    /// # Errors
    ///
    /// Nobody answers there, or the kernel gives no such socket (the mark needs `CAP_NET_ADMIN`).
    pub(super) async fn dial(self: &Arc<Self>, destination: SocketAddr) -> io::Result<DirectStream> {
        let from = SocketAddr::new(source_towards(destination)?.ip(), 0);
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        SockRef::from(&socket).set_mark(MARK)?;
        socket.bind(from)?;
        let address = socket.local_addr()?;
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).insert(address);
        let end = End { direct: self.clone(), address };
        let tcp = tokio::time::timeout(CONNECT, socket.connect(destination))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        socket::prepare_end(&tcp)?;
        Ok(DirectStream { tcp, _end: end })
    }
}

impl DirectStream {
    /// Copies both ways until both have ended, or `cut` says why they must.
    ///
    /// # Errors
    ///
    /// The first failure; both connections are closed hard then.
    pub(super) async fn carry(
        mut self,
        mut caller: TcpStream,
        cut: impl Future<Output = io::Error>,
    ) -> io::Result<()> {
        let ended = tokio::select! {
            biased;
            ended = copy_bidirectional(&mut caller, &mut self.tcp) => ended.map(drop),
            error = cut => Err(error),
        };
        if ended.is_err() {
            socket::close_hard(&caller);
            socket::close_hard(&self.tcp);
        }
        ended
    }
}

/// The address from which this host reaches another one. Nothing is sent.
///
/// # Errors
///
/// When no way leads there.
pub(super) fn source_towards(destination: SocketAddr) -> io::Result<SocketAddr> {
    let any: SocketAddr = match destination {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(destination)?;
    socket.local_addr()
}
