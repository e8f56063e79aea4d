//! The listening sockets: systemd's (`yurtd.socket`), told apart by their local addresses, or our own where systemd
//! gave none.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};
use yurt_api::names::{HUB_HEALTH_PORT, HUB_POD_ADDRESS, HUB_POD_PORT, HUB_PORT};

/// As in `yurtd.socket`: connections wait here while the hub restarts.
const BACKLOG: i32 = 1024;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The hub: TLS.
    Hub,
    /// Health: plain HTTP.
    Health,
}

/// All listeners.
#[derive(Debug)]
pub struct Sockets {
    /// TLS listeners: loopback and the pods' address.
    pub hub: Vec<TcpListener>,
    /// The health listener.
    pub health: Option<TcpListener>,
}

/// Why there are no listeners.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// systemd's file descriptors cannot be used.
    #[error("the sockets that systemd passed cannot be used: {0}")]
    Passed(std::io::Error),
    /// systemd passed a socket that is none of ours.
    #[error("systemd passed a socket on {0}, which is none of the hub's")]
    Unknown(SocketAddr),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The hub's addresses and what each is for.
pub fn addresses() -> [(SocketAddr, Purpose); 3] {
    let loopback = |port| SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let pods: Ipv4Addr = HUB_POD_ADDRESS.parse().unwrap_or(Ipv4Addr::LOCALHOST);
    [
        (loopback(HUB_PORT), Purpose::Hub),
        (SocketAddr::V4(SocketAddrV4::new(pods, HUB_POD_PORT)), Purpose::Hub),
        (loopback(HUB_HEALTH_PORT), Purpose::Health),
    ]
}

/// Takes over systemd's sockets and binds those that it did not pass.
///
/// # Errors
///
/// [`SocketError`].
pub fn open() -> Result<Sockets, SocketError> {
    let mut sockets = Sockets { hub: Vec::new(), health: None };
    let mut missing = addresses().to_vec();
    for listener in passed()? {
        let address = listener.local_addr().map_err(SocketError::Passed)?;
        let at = missing.iter().position(|(expected, _)| *expected == address);
        let (_, purpose) = missing.swap_remove(at.ok_or(SocketError::Unknown(address))?);
        sockets.add(listener, purpose);
    }
    for (address, purpose) in missing {
        sockets.add(bind(address).map_err(|source| SocketError::Bind { address, source })?, purpose);
    }
    Ok(sockets)
}

impl Sockets {
    fn add(&mut self, listener: TcpListener, purpose: Purpose) {
        match purpose {
            Purpose::Hub => self.hub.push(listener),
            Purpose::Health => self.health = Some(listener),
        }
    }
}

/// The one place where a bare file descriptor becomes a socket.
#[allow(unsafe_code, reason = "systemd hands over file descriptors by number")]
fn passed() -> Result<Vec<TcpListener>, SocketError> {
    use std::os::fd::FromRawFd;

    let descriptors = sd_notify::listen_fds().map_err(SocketError::Passed)?;
    descriptors
        .map(|descriptor| {
            // SAFETY: systemd opened the descriptor for this process (LISTEN_PID is checked), nothing else in it has
            // taken it, and this function is called once, at start.
            let listener = unsafe { TcpListener::from_raw_fd(descriptor) };
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .collect::<Result<_, std::io::Error>>()
        .map_err(SocketError::Passed)
}

/// A listener at an address that the node may not have yet.
///
/// # Errors
///
/// When somebody else listens there, or the kernel does not know the family.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // The pods' address may not be on `lo` yet.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use yurt_api::names::HUB_POD_IPV6;

    use super::*;

    #[test]
    fn a_listener_can_be_bound_before_its_address_is_there() {
        let listener = bind("169.254.2.1:0".parse().unwrap()).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip().to_string(), "169.254.2.1");
        let listener = bind((HUB_POD_IPV6, 0).into()).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), HUB_POD_IPV6);
        assert!(bind(listener.local_addr().unwrap()).is_err(), "it is taken");
    }

    #[test]
    fn the_addresses_are_those_of_the_socket_unit() {
        let addresses = addresses().map(|(address, purpose)| (address.to_string(), purpose));
        assert_eq!(
            addresses,
            [
                ("127.0.0.1:10261".to_owned(), Purpose::Hub),
                ("169.254.2.1:10268".to_owned(), Purpose::Hub),
                ("127.0.0.1:10267".to_owned(), Purpose::Health),
            ]
        );
    }
}
