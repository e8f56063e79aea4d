//! What would fail later is refused now, with every reason at once.

use std::net::SocketAddr;

use rustix::io::Errno;
use tokio::time::Instant;

use crate::cluster::{Cluster, OwnNode};
use crate::engine::{Engine, KeeperError};
use crate::look::Facts;
use crate::systemd::Systemd;

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// Refuses what would fail later. Touches nothing.
    pub(crate) async fn preflight(&mut self, facts: &Facts) -> Result<OwnNode, KeeperError> {
        let mut faults = Vec::new();
        for address in &self.settings.ports {
            if let Err(error) = probe(*address) {
                faults.push(format!("port {} cannot be used: {error}", address.port()));
            }
        }
        let free = self.host.free_bytes("/opt")?;
        if free < self.settings.free_bytes {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            faults.push(format!(
                "{} MiB are free in /opt, {} MiB are needed",
                mib(free),
                mib(self.settings.free_bytes)
            ));
        }
        let node = self.ready_node().await?;
        let skew = self.cluster.clock_skew().await?;
        if skew.abs() > self.settings.clock_skew {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            faults.push(format!("the clock is {} s {way} the API server's", skew.abs()));
        }
        if !node.ready {
            faults.push("the node is not Ready".into());
        }
        self.edge_config(facts, &node.kubelet_version).await?;
        if faults.is_empty() { Ok(node) } else { Err(KeeperError::Refused(faults.join("; "))) }
    }

    /// The own Node; one that has just joined gets some time to become Ready.
    async fn ready_node(&mut self) -> Result<OwnNode, KeeperError> {
        let deadline = Instant::now() + self.settings.kubelet_limit;
        loop {
            match self.cluster.node().await {
                Ok(node) if node.ready || Instant::now() >= deadline => return Ok(node),
                // Without a link there is nothing to wait for here: nothing has been begun.
                Err(error)
                    if error.is_unreachable() || !error.is_transient() || Instant::now() >= deadline =>
                {
                    return Err(error.into());
                }
                Ok(_) | Err(_) => tokio::time::sleep(self.settings.poll).await,
            }
        }
    }
}

/// Whether a port can be had; it is given back at once. Bound, never listened on. A node without IPv6 has nobody who could
/// have it there.
fn probe(address: SocketAddr) -> std::io::Result<()> {
    let domain = socket2::Domain::for_address(address);
    let socket = match socket2::Socket::new(domain, socket2::Type::STREAM, None) {
        Err(error) if address.is_ipv6() && is_without_ipv6(&error) => return Ok(()),
        socket => socket?,
    };
    // Connections of the past in TIME_WAIT are no obstacle, a listener is.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 is asked for by itself.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// `ipv6.disable=1`, or a kernel without it.
fn is_without_ipv6(error: &std::io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw_os_error) == Some(Errno::AFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_ipv6_has_the_port_for_nobody() {
        assert!(is_without_ipv6(&std::io::Error::from_raw_os_error(Errno::AFNOSUPPORT.raw_os_error())));
        assert!(!is_without_ipv6(&std::io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error())));
    }

    #[test]
    fn a_port_that_somebody_listens_on_cannot_be_had() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let taken = std::net::TcpListener::bind(local).unwrap();
            let address = taken.local_addr().unwrap();
            assert!(probe(address).is_err());
            drop(taken);
            assert!(probe(address).is_ok());
        }
    }
}
