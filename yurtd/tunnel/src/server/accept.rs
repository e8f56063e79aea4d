//! The port for agents: TCP → TLS with a client certificate → WebSocket → HELLO → [`Registry`].
//!
//! Everything before a session is bounded: connections that have not said HELLO are few, have
//! [`HANDSHAKE`] of time, and nothing they announce is allocated. The node's name comes from its certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;
use yurt_api::tunnel::{GoAwayCode, PATH, SUBPROTOCOL};
use yurt_node::supervise::Tasks;

use super::Registry;
use super::api::client_ca::ClientCa;
use crate::agent;
use crate::mux::session::{self, HelloError, Role, Settings};
use crate::mux::socket;
use yurt_node::certificate::{NodeCertificate, NotANode, node_of};
use yurt_node::pki;

/// How long TLS, WebSocket and HELLO may take together: as long as the agent waits. On a link that loses packets five
/// round trips take many seconds, and an agent that is turned away only begins anew.
const HANDSHAKE: Duration = agent::CONNECT_TIMEOUT;
/// How many connections may be in their handshake. Each costs some tens of KiB, and strangers that say nothing hold
/// theirs for all of [`HANDSHAKE`].
const HANDSHAKES: usize = 2048;
/// How long to wait after `accept` failed (the process has no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("the cluster's client CA is not known yet")]
    NoCa,
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    #[error(transparent)]
    NotANode(#[from] NotANode),
    #[error("websocket: {0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("no session within {HANDSHAKE:?}")]
    Timeout,
}

/// What the port for agents works with.
pub(super) struct Agents {
    pub(super) registry: Arc<Registry>,
    pub(super) certificate: Arc<dyn ResolvesServerCert>,
    pub(super) client_ca: Arc<ClientCa>,
    pub(super) settings: Settings,
}

/// Accepts agents until `stop`; their sessions go on until `kill`.
pub(super) async fn run(
    agents: Arc<Agents>,
    listener: TcpListener,
    tasks: Tasks,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "too many connections in their handshake; one is dropped");
            continue;
        };
        let (agents, kill) = (agents.clone(), kill.clone());
        tasks.passing(async move {
            tokio::select! {
                () = kill.cancelled() => {}
                outcome = agents.serve(tcp, remote, permit) => if let Err(error) = outcome {
                    tracing::info!(%remote, %error, "connection is not an agent's");
                },
            }
        });
    }
}

impl Agents {
    async fn serve(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        handshake: OwnedSemaphorePermit,
    ) -> Result<(), AcceptError> {
        let established = async {
            let (stream, node) = self.authenticate(tcp).await?;
            let stream = upgrade(stream).await.map_err(Box::new)?;
            let (session, _opens, driver) =
                session::establish(stream, Role::Server, self.settings.clone()).await?;
            Ok::<_, AcceptError>((session, driver, node))
        };
        let (session, driver, node) =
            tokio::time::timeout(HANDSHAKE, established).await.map_err(|_| AcceptError::Timeout)??;
        drop(handshake);
        let registration = self.registry.register(&node.node, session.clone(), remote);
        tracing::info!(node = node.node, %remote, software = session.peer_software(), "agent connected");
        let expiry = async {
            let left = node.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left).await;
            session.close(GoAwayCode::CertificateExpired);
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            biased;
            end = driver.run() => end,
            () = expiry => return Ok(()),
        };
        drop(registration);
        tracing::info!(node = node.node, %remote, reason = %end, "agent disconnected");
        Ok(())
    }

    /// TLS with the CA as it is now.
    async fn authenticate(
        &self,
        tcp: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, NodeCertificate), AcceptError> {
        socket::prepare_session(&tcp).map_err(AcceptError::Tls)?;
        let verifier = self.client_ca.verifier().ok_or(AcceptError::NoCa)?;
        let mut config = ServerConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Resumption would skip the look at the certificate, and agents connect rarely.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.map_err(AcceptError::Tls)?;
        let node = match stream.get_ref().1.peer_certificates() {
            Some([certificate, ..]) => node_of(certificate)?,
            _ => return Err(NotANode::Malformed.into()),
        };
        Ok((stream, node))
    }
}

/// The WebSocket handshake. An agent waits for its answer before it sends anything, and tungstenite refuses one that
/// does not, so nothing can be left in its buffer when the bare stream is taken back.
async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Result<S, tungstenite::Error> {
    let buffers = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let stream = tokio_tungstenite::accept_hdr_async_with_config(stream, Check, Some(buffers)).await?;
    Ok(stream.into_inner())
}

/// Looks at an agent's HTTP request.
struct Check;

impl Callback for Check {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let refuse = |status: StatusCode, text: &str| {
            let mut refusal = ErrorResponse::new(Some(text.to_owned()));
            *refusal.status_mut() = status;
            refusal
        };
        if request.uri().path() != PATH {
            return Err(refuse(StatusCode::NOT_FOUND, "no such path"));
        }
        if request.headers().contains_key(ORIGIN) {
            return Err(refuse(StatusCode::FORBIDDEN, "browsers have no business here"));
        }
        let ours = |value: &http::HeaderValue| value.as_bytes() == SUBPROTOCOL.as_bytes();
        if !request.headers().get(SEC_WEBSOCKET_PROTOCOL).is_some_and(ours) {
            return Err(refuse(StatusCode::BAD_REQUEST, "this server speaks tunnel.openyurt.io"));
        }
        let protocol = http::HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        Ok(response)
    }
}
