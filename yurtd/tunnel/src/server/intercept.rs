//! Where the API server's redirected connections arrive.
//!
//! The kernel still knows where a redirected connection was going (`SO_ORIGINAL_DST`); that tells the node. A
//! connection that was not going to an edge node's kubelet is closed: the port is open to the network, and
//! must lead nowhere by itself. What cannot be served is reset at once, so that kubectl fails and does not hang.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use yurt_api::tunnel::Target;

use super::nodes::Endpoints;
use super::{DialError, Registry};
use crate::mux::pipe::{self, Side};
use crate::mux::socket;

/// How many connections may be open.
const CONNECTIONS: usize = 16 * 1024;
/// How long to wait after `accept` failed (the process has no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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

/// Takes what the redirected connections need.
pub(super) struct Intercept {
    pub(super) registry: Arc<Registry>,
    pub(super) endpoints: watch::Receiver<Option<Endpoints>>,
    pub(super) original: OriginalDestination,
}

impl Intercept {
    /// Serves `listener` until `stop`; what is open goes on until `kill`.
    pub(super) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        tasks: TaskTracker,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "too many connections; one is reset");
                socket::close_hard(&tcp);
                continue;
            };
            let (intercept, kill) = (self.clone(), kill.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = kill.cancelled() => {}
                    outcome = intercept.serve(tcp) => match outcome {
                        Ok(()) => {}
                        // Ends that every log and every port-forward comes to.
                        Err(InterceptError::Broken(error)) => tracing::debug!(%peer, %error, "connection broke"),
                        Err(error) => tracing::info!(%peer, %error, "connection reset"),
                    },
                }
                drop(place);
            });
        }
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
