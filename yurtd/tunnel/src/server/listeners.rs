//! The listening sockets of the server.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections wait here until they are accepted.
const BACKLOG: i32 = 1024;

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on port {port}: {source}")]
pub(super) struct ListenError {
    port: u16,
    source: io::Error,
}

/// One listener for IPv6 and IPv4, or for IPv4 where there is no IPv6.
pub(super) fn everywhere(port: u16) -> Result<TcpListener, ListenError> {
    bind((Ipv6Addr::UNSPECIFIED, port).into(), false)
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into(), false))
        .map_err(|source| ListenError { port, source })
}

/// A listener for IPv4 and, where there is IPv6, one for it: a socket of its own family knows the original
/// destination of its connections.
pub(super) fn of_each_family(port: u16) -> Result<Vec<TcpListener>, ListenError> {
    let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into(), false);
    let mut listeners = vec![v4.map_err(|source| ListenError { port, source })?];
    match bind((Ipv6Addr::UNSPECIFIED, port).into(), true) {
        Ok(v6) => listeners.push(v6),
        Err(error) => tracing::info!(port, %error, "this port listens on IPv4 alone"),
    }
    Ok(listeners)
}

/// Binds an address, for IPv6 perhaps without the IPv4 addresses that it could stand for.
pub(super) fn bind(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
