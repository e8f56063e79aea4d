//! The hub's listener at its IPv6 address, to which pods come in clusters whose Service `default/kubernetes` has one.
//!
//! It is not in `yurtd.socket`: where the kernel has no IPv6 (`ipv6.disable=1`) systemd cannot open such a socket, and a
//! unit with one that cannot be opened does not start, the other sockets with it. So the hub opens it by itself, as soon
//! as it knows of such an address: at its start, but for a node's very first one. While the hub restarts nobody listens,
//! and a pod's new connection is refused instead of waiting.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
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
    listener: Option<TcpListener>,
    state: watch::Sender<Listening>,
}

impl Ipv6Listener {
    /// Opens it if it is needed, as far as is known now.
    pub(crate) fn open(address: SocketAddr, mut service: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        let needed = is_needed(&service.borrow_and_update());
        let mut opened = Self { address, service, listener: None, state: watch::Sender::default() };
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
        let opened = async {
            // Whoever says it ends with this process.
            if self.listener.is_none() && self.service.wait_for(is_needed).await.is_err() {
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

fn is_needed(service: &BTreeSet<IpAddr>) -> bool {
    service.iter().any(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_open_from_the_start_where_the_service_has_an_ipv6_address_and_says_why_it_is_not() {
        let service = |ip: &str| watch::Sender::new(BTreeSet::from([ip.parse().unwrap()])).subscribe();
        let any: SocketAddr = "[::1]:0".parse().unwrap();
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
