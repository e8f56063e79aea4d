//! The sessions to the peers: one each, kept for as long as the cluster names the peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use yurt_api::names;
use yurt_api::tunnel::{PEER_PATH, ServerId};
use yurt_node::pki::TlsError;
use yurt_node::random::random;

use super::{Found, Peer, Peers};
use crate::backoff::{Backoff, STABLE};
use crate::kept::Kept;
use crate::mux::session::{self, Established, Settings};
use crate::mux::{End, HelloError, socket};
use crate::server::connections::Connections;
use crate::upgrade;

/// How long one address may take to answer: a server beside this one.
const DIAL: Duration = Duration::from_secs(3);
/// How long everything up to BEGIN may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest pause. A peer that was rolled out is back within seconds, and there are few who come to it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("cannot connect to {0}: {1}")]
    Net(SocketAddr, std::io::Error),
    #[error("it has no address")]
    NoAddress,
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("websocket: {0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("it is the server of node {0:?}")]
    Another(ServerId),
    #[error("no session within {CONNECT:?}")]
    Timeout,
}

impl Peers {
    /// Keeps a session to each server in `found` but this one, until `connections` are cut: who stops still leads streams to
    /// peers.
    pub(in crate::server) async fn run(
        self: Arc<Self>,
        mut found: watch::Receiver<Found>,
        connections: Connections,
    ) {
        let mut kept = Kept::default();
        loop {
            let mut wanted = found.borrow_and_update().clone();
            wanted.remove(&self.id);
            let news = |id: &ServerId| Peer::Lost(format!("no session with {id} yet"));
            {
                let mut known = self.lock();
                known.retain(|id, _| wanted.contains_key(id));
                for id in wanted.keys() {
                    known.entry(id.clone()).or_insert_with(|| news(id));
                }
            }
            kept.set(&wanted.into_iter().collect(), |(id, addresses), stop| {
                let span = tracing::info_span!("peer", %id);
                connections.start(self.clone().keep(id, addresses, stop).instrument(span));
            });
            tokio::select! {
                () = connections.kill().cancelled() => return,
                changed = found.changed() => if changed.is_err() {
                    // Nobody follows the cluster any more: the server stops.
                    connections.kill().cancelled().await;
                    return;
                },
            }
        }
    }

    async fn keep(self: Arc<Self>, id: ServerId, addresses: Vec<SocketAddr>, stop: CancellationToken) {
        let mut backoff = Backoff::up_to(LONGEST_PAUSE);
        let mut told = String::new();
        loop {
            let attempt = tokio::select! {
                () = stop.cancelled() => return,
                attempt = tokio::time::timeout(CONNECT, self.connect(&id, &addresses)) => attempt,
            };
            let since = Instant::now();
            match attempt.unwrap_or(Err(ConnectError::Timeout)) {
                Ok((session, _requests, driver)) => {
                    tracing::info!(software = session.peer_software(), "session with another server");
                    self.set(&id, Peer::Connected(session));
                    let end = tokio::select! {
                        end = driver.run() => end,
                        () = stop.cancelled() => End::Abandoned,
                    };
                    tracing::info!(reason = %end, "session with another server ended");
                    self.set(&id, Peer::Lost(end.to_string()));
                    told.clear();
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    // One that is away for hours is said once.
                    if error != told {
                        tracing::warn!(error, "no session with another server");
                    }
                    self.set(&id, Peer::Lost(error.clone()));
                    told = error;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.after_failure(random())) => {}
            }
        }
    }

    /// Not of one that the cluster does not name any more.
    fn set(&self, id: &ServerId, peer: Peer) {
        if let Some(known) = self.lock().get_mut(id) {
            *known = peer;
        }
    }

    async fn connect(
        &self,
        id: &ServerId,
        addresses: &[SocketAddr],
    ) -> Result<Established<TlsStream<TcpStream>>, ConnectError> {
        let tls = self.identity.client_config()?;
        let tcp = dial(addresses).await?;
        socket::prepare_session(&tcp).map_err(ConnectError::Tls)?;
        let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).map_err(std::io::Error::other);
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(name.map_err(ConnectError::Tls)?, tcp)
            .await
            .map_err(ConnectError::Tls)?;
        let stream = upgrade::client(stream, PEER_PATH).await.map_err(Box::new)?;
        let greeting = session::greet_peer(stream, self.id.clone(), Settings::peer()).await?;
        if greeting.server() == id {
            return Ok(greeting.begin().await?);
        }
        let another = greeting.server().clone();
        greeting.decline().await;
        Err(ConnectError::Another(another))
    }
}

/// The first address that answers.
async fn dial(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut last = ConnectError::NoAddress;
    for address in addresses {
        let connected = tokio::time::timeout(DIAL, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = ConnectError::Net(*address, error),
        }
    }
    Err(last)
}
