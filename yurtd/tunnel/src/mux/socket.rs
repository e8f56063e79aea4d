//! TCP options of the tunnel's connections.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Unsent bytes that the kernel may hold. Whatever it holds cannot be overtaken by a more urgent frame:
/// without this bound, priority between streams does nothing.
const NOT_SENT_LOW_WATER: u32 = 32 * 1024;

/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Prepares a connection between agent and server.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_session(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Prepares a connection at either end of the tunnel: to kubelet, or from the API server.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_end(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Makes closing the connection a reset, so that its other end sees a failure and not a tidy end of data.
pub fn close_hard(stream: &TcpStream) {
    // Nothing is left to do when this fails: the connection is closed anyway.
    let _ = stream.set_zero_linger();
}
