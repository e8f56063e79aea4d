//! The hub's listener at its IPv6 address, to which pods come in clusters whose Service `default/kubernetes` has one.
//!
//! It is not in `yurtd.socket`: where the kernel has no IPv6 (`ipv6.disable=1`) systemd cannot open such a socket, and a
//! unit with one that cannot be opened does not start, the other sockets with it. So the hub opens it by itself, as soon
//! as it knows of such an address: at its start, but for a node's very first one. While the hub restarts nobody listens,
//! and a pod's new connection is refused instead of waiting.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::listener::{self, Admission};
use super::{Hub, sockets};

/// How soon it is tried again: somebody else may have the port for now.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Listening {
    /// The Service has no such address, as far as is known.
    #[default]
    Unneeded,
    /// It listens here.
    At(SocketAddr),
    /// Why it does not.
    Not(String),
}

/// The listener that there is or will be.
pub(crate) struct Ipv6Listener {
    address: SocketAddr,
    /// The addresses of the Service.
    service: watch::Receiver<BTreeSet<IpAddr>>,
    /// Whether the node has IPv6.
    ipv6: bool,
    listener: Option<TcpListener>,
    state: watch::Sender<Listening>,
}

impl Ipv6Listener {
    /// Opens it if it is needed, as far as is known now.
    pub(crate) fn open(address: SocketAddr, service: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        Self::open_on(has_ipv6(), address, service)
    }

    fn open_on(ipv6: bool, address: SocketAddr, mut service: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        let needed = is_needed(&service.borrow_and_update(), ipv6);
        let mut opened = Self { address, service, ipv6, listener: None, state: watch::Sender::default() };
        if needed {
            opened.bind();
        }
        opened
    }

    /// How it is.
    pub(crate) fn state(&self) -> watch::Receiver<Listening> {
        self.state.subscribe()
    }

    fn bind(&mut self) {
        let bound = sockets::bind(self.address)
            .and_then(TcpListener::from_std)
            .and_then(|listener| Ok((listener.local_addr()?, listener)));
        let state = match bound {
            Ok((at, listener)) => {
                tracing::info!(%at, "pods come here over IPv6");
                self.listener = Some(listener);
                Listening::At(at)
            }
            Err(error) => Listening::Not(format!("cannot listen on {}: {error}", self.address)),
        };
        self.state.send_if_modified(|before| {
            let changed = *before != state;
            if changed && let Listening::Not(error) = &state {
                tracing::error!(error, "trying again");
            }
            *before = state;
            changed
        });
    }

    /// Opens it when it is needed, and serves until the hub stops.
    pub(crate) async fn run(mut self, hub: Arc<Hub>, tls: Arc<ServerConfig>, admission: Admission) {
        let ipv6 = self.ipv6;
        let opened = async {
            // Whoever says it ends with this process.
            if self.listener.is_none()
                && self.service.wait_for(|service| is_needed(service, ipv6)).await.is_err()
            {
                std::future::pending::<()>().await;
            }
            loop {
                if let Some(listener) = self.listener.take() {
                    return listener;
                }
                self.bind();
                if self.listener.is_none() {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        };
        let listener = tokio::select! {
            () = hub.stop.cancelled() => return,
            listener = opened => listener,
        };
        listener::serve(hub, listener, tls, admission).await;
    }
}

/// The addresses of the Service to which somebody on this node can connect.
pub(crate) fn reachable(service: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    reachable_on(has_ipv6(), service)
}

/// Where the node has no IPv6 nobody comes by it if there is another way. One that has no other is told of.
fn reachable_on(ipv6: bool, mut service: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    if !ipv6 && service.iter().any(IpAddr::is_ipv4) {
        service.retain(IpAddr::is_ipv4);
    }
    service
}

fn is_needed(service: &BTreeSet<IpAddr>, ipv6: bool) -> bool {
    reachable_on(ipv6, service.clone()).iter().any(IpAddr::is_ipv6)
}

/// Whether the kernel knows IPv6 (`ipv6.disable=1`), and has it on `lo` (`net.ipv6.conf.all.disable_ipv6=1`).
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_open_from_the_start_where_the_service_has_an_ipv6_address_and_says_why_it_is_not() {
        let service = |ip: &str| watch::Sender::new(BTreeSet::from([ip.parse().unwrap()])).subscribe();
        let any: SocketAddr = "[::1]:0".parse().unwrap();
        let both = watch::Sender::new(["10.96.0.1", "fd00:10:96::1"].map(|ip| ip.parse().unwrap()).into());
        for (ipv6, is_open) in [(false, false), (true, true)] {
            let opened = Ipv6Listener::open_on(ipv6, any, both.subscribe());
            assert_eq!(*opened.state().borrow() != Listening::Unneeded, is_open, "the node has IPv6: {ipv6}");
        }
        let only = Ipv6Listener::open_on(false, any, service("fd00:10:96::1"));
        assert_ne!(*only.state().borrow(), Listening::Unneeded, "there is no other way");
        drop(only);
        let none = Ipv6Listener::open(any, service("10.96.0.1"));
        assert_eq!(*none.state().borrow(), Listening::Unneeded);
        let open = Ipv6Listener::open(any, service("fd00:10:96::1"));
        let Listening::At(at) = open.state().borrow().clone() else { panic!("it is not open") };
        let mut second = Ipv6Listener::open(at, service("fd00:10:96::1"));
        let said = second.state().borrow().clone();
        assert!(matches!(said, Listening::Not(why) if why.contains(&at.to_string())));
        drop(open);
        second.bind();
        assert_eq!(*second.state().borrow(), Listening::At(at), "whoever had it has ended");
    }
}
