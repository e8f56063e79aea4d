//! Where the API server's redirected connections arrive.
//!
//! The kernel still knows where a redirected connection was going (`SO_ORIGINAL_DST`); that tells the node. A
//! connection that was not going to an edge node's kubelet is closed: the port is open to the network, and
//! must lead nowhere by itself. What cannot be served is reset at once, so that kubectl fails and does not hang.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use yurt_api::tunnel::Target;
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};

use super::connections::Connections;
use super::nodes::Endpoints;
use super::registry::{DialError, Registry};
use crate::mux::pipe::{self, Side};
use crate::mux::socket;

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
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it broke: {0}")]
    Broken(io::Error),
}

/// What the redirected connections need.
pub(super) struct Intercept {
    registry: Arc<Registry>,
    endpoints: watch::Receiver<Option<Endpoints>>,
    original: OriginalDestination,
    places: Places,
}

impl Intercept {
    /// Where a connection was going is asked of `original`.
    pub(super) fn new(
        registry: Arc<Registry>,
        endpoints: watch::Receiver<Option<Endpoints>>,
        original: OriginalDestination,
    ) -> Arc<Self> {
        Arc::new(Self { registry, endpoints, original, places: Places::new(CONNECTIONS) })
    }

    /// Serves one of the listeners until `connections` are told to stop.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener, connections: Connections) {
        let (places, stop) = (self.places.clone(), connections.stop().clone());
        accept(listener, places, stop, |accepted| {
            let intercept = self.clone();
            connections.start(async move {
                let Accepted { stream, peer, place, .. } = accepted;
                match intercept.serve(stream).await {
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

    async fn serve(&self, tcp: TcpStream) -> Result<(), InterceptError> {
        let stream = match self.open(&tcp).await {
            Ok(stream) => stream,
            Err(error) => {
                socket::close_hard(&tcp);
                return Err(error);
            }
        };
        pipe::pipe(tcp, stream, Side::Caller).await.map_err(InterceptError::Broken)
    }

    async fn open(&self, tcp: &TcpStream) -> Result<crate::mux::TunnelStream, InterceptError> {
        let destination = (self.original)(tcp).map_err(InterceptError::Unknown)?;
        let node = self.endpoints.borrow().as_ref().and_then(|all| all.node(destination)).cloned();
        let node = node.ok_or(InterceptError::NotRedirected(destination))?;
        socket::prepare_end(tcp).map_err(InterceptError::Broken)?;
        Ok(self.registry.dial(&node, Target::Kubelet).await?)
    }
}
