//! Names to addresses, and TCP connections, for everything that dials out: the hub's upstream pool and the
//! tunnel agent.
//!
//! The binary is linked statically against glibc, whose `getaddrinfo` would load shared objects at run time, so
//! names are resolved by `hickory-resolver` from `/etc/hosts` and `/etc/resolv.conf`. Both are read anew at
//! every lookup: an edge node gets a new name server with every new network, and connections are rare.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// One name server is asked for at most this long, twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The name has no address.
    #[error("cannot resolve {host}: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        reason: String,
    },
    /// None of the addresses answered.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// How the kernel finds out that the other side has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Silence before the first keep-alive segment.
    pub idle: Duration,
    /// Between keep-alive segments.
    pub interval: Duration,
    /// Silence, or data that nobody acknowledges, after which the connection is dead (`TCP_USER_TIMEOUT`).
    pub timeout: Duration,
}

/// The addresses of a name, IPv4 first; an address in text is itself.
///
/// # Errors
///
/// [`NetError::Resolve`] when there is none.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, NetError> {
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse() {
        return Ok(vec![address]);
    }
    let failed = |reason: String| NetError::Resolve { host: host.to_owned(), reason };
    // Without a readable resolv.conf, /etc/hosts still counts.
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::debug!(%error, "no usable /etc/resolv.conf; /etc/hosts alone");
        TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), Vec::new()),
            TokioRuntimeProvider::default(),
        )
    });
    let options = builder.options_mut();
    options.timeout = LOOKUP_TIMEOUT;
    options.attempts = 2;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let resolver = builder.build().map_err(|error| failed(error.to_string()))?;
    let lookup = resolver.lookup_ip(host).await.map_err(|error| failed(error.to_string()))?;
    let mut addresses: Vec<IpAddr> = lookup.iter().collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
}

/// Connects to the first address of `host` that answers within `timeout` (each).
///
/// # Errors
///
/// [`NetError`] with the last failure.
pub async fn connect(
    host: &str,
    port: u16,
    timeout: Duration,
    liveness: Liveness,
) -> Result<TcpStream, NetError> {
    connect_to(host, &resolve(host).await?, port, timeout, liveness).await
}

/// Connects to the first of `addresses` that answers within `timeout` (each); `host` is what errors call them.
///
/// # Errors
///
/// [`NetError`] with the last failure.
pub async fn connect_to(
    host: &str,
    addresses: &[IpAddr],
    port: u16,
    timeout: Duration,
    liveness: Liveness,
) -> Result<TcpStream, NetError> {
    let mut last = NetError::Resolve { host: host.to_owned(), reason: "it has no address".to_owned() };
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        let outcome = match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => configure(&stream, liveness).map(|()| stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match outcome {
            Ok(stream) => return Ok(stream),
            Err(source) => last = NetError::Connect { address, source },
        }
    }
    Err(last)
}

fn configure(stream: &TcpStream, liveness: Liveness) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(liveness.idle).with_interval(liveness.interval);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(liveness.timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_text_needs_no_resolver() {
        assert_eq!(resolve("127.0.0.1").await.unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolve("[::1]").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn localhost_is_found_without_a_name_server() {
        assert!(resolve("localhost").await.unwrap().iter().any(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let second = Duration::from_secs(1);
        let liveness = Liveness { idle: second, interval: second, timeout: second };
        let error = connect("127.0.0.1", port, second, liveness).await.unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}
