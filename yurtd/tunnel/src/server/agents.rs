//! The port for agents: TCP → TLS with a client certificate → WebSocket → HELLO → [`Registry`].
//!
//! Everything before a session is bounded: connections that have not said HELLO are few, one address has a share of
//! them ([`HANDSHAKES`]) and [`HANDSHAKE`] of time, and nothing they announce is allocated. The node's name comes from
//! its certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use yurt_api::tunnel::{GoAwayCode, PATH, SUBPROTOCOL};
use yurt_node::accept::tls::{Deadlines, HandshakeError, handshake};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};
use yurt_node::certificate::{NodeCertificate, NotANode, node_of};
use yurt_node::pki;

use super::client_ca::ClientCa;
use super::connections::Connections;
use super::registry::Registry;
use crate::agent;
use crate::mux::session::{self, Settings};
use crate::mux::{End, HelloError, socket};

/// How long TLS, WebSocket and HELLO may take together: as long as the agent waits. On a link that loses packets five
/// round trips take many seconds, and an agent that is turned away only begins anew.
const HANDSHAKE: Duration = agent::CONNECT_TIMEOUT;
/// How much of that the ClientHello may take: a stranger that says nothing is gone after it.
const CLIENT_HELLO: Duration = Duration::from_secs(5);
/// Connections in their handshake; each costs some tens of KiB. One address can have an eighth: all agents may come
/// through one load balancer or one NAT, and try again when they are turned away.
const HANDSHAKES: Limits = Limits { total: 2048, per_peer: Some(256), over: Over::Drop };

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("the cluster's client CA is not known yet")]
    NoCa,
    #[error("it broke: {0}")]
    Broken(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    #[error(transparent)]
    NotANode(#[from] NotANode),
    #[error("websocket: {0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
    #[error("the agent of node {node:?}: {source}")]
    Hello { node: String, source: HelloError },
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

/// Accepts agents until `sessions` are told to stop.
pub(super) async fn run(agents: Arc<Agents>, listener: TcpListener, sessions: Connections) {
    let stop = sessions.stop().clone();
    accept(listener, Places::new(HANDSHAKES), stop, |accepted| {
        let agents = agents.clone();
        sessions.start(async move {
            let remote = accepted.peer;
            match agents.serve(accepted).await {
                Ok(()) => {}
                Err(AcceptError::Hello { node, source: HelloError::Declined }) => {
                    tracing::debug!(node, %remote, "the agent stands by: it has a session with this server");
                }
                Err(error) => tracing::info!(%remote, %error, "connection did not become a session"),
            }
        });
    })
    .await;
}

impl Agents {
    async fn serve(&self, accepted: Accepted) -> Result<(), AcceptError> {
        let Accepted { stream: tcp, peer: remote, at, place } = accepted;
        let by = Deadlines { hello: at + CLIENT_HELLO, handshake: at + HANDSHAKE };
        let established = async {
            let (stream, node) = self.authenticate(tcp, by).await?;
            let stream = upgrade(stream).await.map_err(Box::new)?;
            let id = self.registry.server().clone();
            match session::accept(stream, id, self.settings.clone()).await {
                Ok((session, _opens, driver)) => Ok((session, driver, node)),
                Err(source) => Err(AcceptError::Hello { node: node.node, source }),
            }
        };
        let (session, driver, node) =
            tokio::time::timeout_at(by.handshake, established).await.map_err(|_| AcceptError::Timeout)??;
        // From now on it is a node's, and nodes are counted by their certificates.
        drop(place);
        let (registration, superseded) = self.registry.register(&node.node, session.clone(), remote);
        tracing::info!(node = node.node, %remote, software = session.peer_software(), "agent connected");
        let expiry = async {
            let left = node.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left).await;
            session.close(GoAwayCode::CertificateExpired);
            std::future::pending::<()>().await;
        };
        let retire = async {
            if let Some(superseded) = superseded {
                superseded.retire().await;
            }
            std::future::pending::<End>().await
        };
        let end = tokio::select! {
            biased;
            end = driver.run() => end,
            end = retire => end,
            () = expiry => return Ok(()),
        };
        tracing::info!(node = node.node, %remote, reason = %end, "agent disconnected");
        registration.ends(end);
        Ok(())
    }

    /// TLS with the CA as it is now.
    async fn authenticate(
        &self,
        tcp: TcpStream,
        by: Deadlines,
    ) -> Result<(TlsStream<TcpStream>, NodeCertificate), AcceptError> {
        socket::prepare_session(&tcp)?;
        let verifier = self.client_ca.verifier().ok_or(AcceptError::NoCa)?;
        let mut config = ServerConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Resumption would skip the look at the certificate, and agents connect rarely.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let stream = handshake(tcp, Arc::new(config), by).await?;
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
