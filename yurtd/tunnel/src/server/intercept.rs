//! Where the API server's redirected connections arrive.
//!
//! The kernel still knows where a redirected connection was going (`SO_ORIGINAL_DST`); that tells the node. A
//! connection that was not going to an edge node's kubelet is closed: the port is open to the network, and
//! must lead nowhere by itself. What cannot be served is reset at once, so that kubectl fails and does not hang.
//!
//! A node without a session, here and with every [peer](super::peers), may be reachable as it was before it was an edge
//! node: it is [dialled](super::direct), unless another node is at its address, too, or the port is one that the controller
//! has given: then who answers there may be anybody.
//!
//! The API server keeps a connection to an address for as long as it has something to ask there, whosever the address is
//! by then. So a connection lasts no longer than the word on its address: the next one goes to the new owner.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};

use super::connections::Connections;
use super::direct::{Direct, DirectStream};
use super::nodes::{Endpoint, Endpoints};
use super::registry::DialError;
use super::ways::Ways;
use crate::mux::pipe::{Side, pipe_until};
use crate::mux::{TunnelStream, socket};

/// Connections open at a time. They come from the API server, which is one address.
const CONNECTIONS: Limits = Limits { total: 16 * 1024, per_peer: None, over: Over::Reset };

/// Where a connection was going before it was redirected.
type OriginalDestination = fn(&TcpStream) -> io::Result<SocketAddr>;

/// Asks the kernel's connection tracking.
pub(super) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    address?.as_socket().ok_or_else(|| io::Error::other("the original destination is not an IP address"))
}

/// Why a connection leads nowhere.
#[derive(Debug, thiserror::Error)]
enum InterceptError {
    #[error("cannot tell where it was going: {0}")]
    Unknown(io::Error),
    #[error("{0} is not the kubelet of an edge node")]
    NotRedirected(SocketAddr),
    #[error("it is a connection of ours: somebody takes away the mark by which the redirect knows them")]
    Ours,
    #[error(transparent)]
    Dial(DialError),
    #[error("{node} has no tunnel, and does not answer at {destination} either: {error}")]
    Direct { node: Arc<str>, destination: SocketAddr, error: io::Error },
    #[error("{0} has no tunnel, and who answers at {1} may be another node")]
    NotDirect(Arc<str>, SocketAddr),
    #[error("{0} is not the address of {1} any more")]
    Moved(SocketAddr, Arc<str>),
    #[error("it broke: {0}")]
    Broken(io::Error),
}

/// A way to a kubelet.
enum Way {
    Tunnel(TunnelStream),
    Direct(DirectStream),
}

/// What the redirected connections need.
pub(super) struct Intercept {
    ways: Ways,
    endpoints: watch::Receiver<Option<Endpoints>>,
    original: OriginalDestination,
    direct: Arc<Direct>,
    places: Places,
}

impl Intercept {
    /// Where a connection was going is asked of `original`.
    pub(super) fn new(
        ways: Ways,
        endpoints: watch::Receiver<Option<Endpoints>>,
        original: OriginalDestination,
    ) -> Arc<Self> {
        Arc::new(Self { ways, endpoints, original, direct: Arc::default(), places: Places::new(CONNECTIONS) })
    }

    /// Serves one of the listeners until `connections` are told to stop.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener, connections: Connections) {
        let (places, stop) = (self.places.clone(), connections.stop().clone());
        accept(listener, places, stop, |accepted| {
            let intercept = self.clone();
            connections.start(async move {
                let Accepted { stream, peer, place, .. } = accepted;
                match intercept.serve(stream, peer).await {
                    Ok(()) => {}
                    // Ends that every log and every port-forward comes to.
                    Err(InterceptError::Broken(error)) => tracing::debug!(%peer, %error, "connection broke"),
                    Err(error) => tracing::info!(%peer, %error, "connection reset"),
                }
                drop(place);
            });
        })
        .await;
    }

    async fn serve(&self, tcp: TcpStream, peer: SocketAddr) -> Result<(), InterceptError> {
        let opened = async {
            let (destination, endpoint) = self.endpoint_of(&tcp, peer)?;
            socket::prepare_end(&tcp).map_err(InterceptError::Broken)?;
            let node = endpoint.node.clone();
            tokio::select! {
                way = self.open(destination, &endpoint) => Ok((way?, destination, node)),
                () = self.moved(destination, &node, false) => Err(InterceptError::Moved(destination, node)),
            }
        };
        let (way, destination, node) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                socket::close_hard(&tcp);
                return Err(error);
            }
        };
        let mut moved = false;
        let is_direct = matches!(way, Way::Direct(_));
        let cut = async {
            self.moved(destination, &node, is_direct).await;
            moved = true;
            io::ErrorKind::ConnectionReset.into()
        };
        let ended = match way {
            Way::Tunnel(stream) => pipe_until(tcp, stream, Side::Caller, cut).await,
            Way::Direct(stream) => stream.carry(tcp, cut).await,
        };
        if moved {
            Err(InterceptError::Moved(destination, node))
        } else {
            ended.map_err(InterceptError::Broken)
        }
    }

    /// Where the connection was going, and whose address that is.
    fn endpoint_of(
        &self,
        tcp: &TcpStream,
        peer: SocketAddr,
    ) -> Result<(SocketAddr, Endpoint), InterceptError> {
        if self.direct.is_ours(peer) {
            return Err(InterceptError::Ours);
        }
        let destination = (self.original)(tcp).map_err(InterceptError::Unknown)?;
        let endpoint = self.endpoints.borrow().as_ref().and_then(|all| all.endpoint(destination)).cloned();
        endpoint.map(|endpoint| (destination, endpoint)).ok_or(InterceptError::NotRedirected(destination))
    }

    async fn open(&self, destination: SocketAddr, endpoint: &Endpoint) -> Result<Way, InterceptError> {
        let Endpoint { node, direct } = endpoint;
        match self.ways.dial(node).await {
            Ok(stream) => Ok(Way::Tunnel(stream)),
            Err(DialError::NotConnected(_)) if !direct => {
                Err(InterceptError::NotDirect(node.clone(), destination))
            }
            Err(DialError::NotConnected(_)) => self
                .direct
                .dial(destination)
                .await
                .map(Way::Direct)
                .map_err(|error| InterceptError::Direct { node: node.clone(), destination, error }),
            Err(error) => Err(InterceptError::Dial(error)),
        }
    }

    /// Comes back when the address is not the node's any more, or not its alone if the connection is a direct one.
    async fn moved(&self, destination: SocketAddr, node: &Arc<str>, is_direct: bool) {
        let mut endpoints = self.endpoints.clone();
        let is_its = |endpoint: &Endpoint| endpoint.node == *node && (endpoint.direct || !is_direct);
        let elsewhere = |all: &Option<Endpoints>| {
            all.as_ref().is_some_and(|all| !all.endpoint(destination).is_some_and(is_its))
        };
        if endpoints.wait_for(elsewhere).await.is_err() {
            // Nobody follows the nodes any more: the server stops, and lets streams end by themselves.
            std::future::pending().await
        }
    }
}
