//! The port for agents and for other servers: TCP → TLS with a client certificate → WebSocket → HELLO → [`Registry`], or
//! [`Asked`].
//!
//! Everything before a session is bounded: connections that have not said HELLO are few, one address has a share of
//! them ([`HANDSHAKES`]) and [`HANDSHAKE`] of time, and nothing they announce is allocated. The node's name comes from
//! its certificate, and so does that it is no node but a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite;
use yurt_api::tunnel::{Capabilities, GoAwayCode, PATH, PEER_PATH};
use yurt_node::accept::tls::{Deadlines, HandshakeError, handshake};
use yurt_node::accept::{Accepted, Limits, Over, Place, Places, accept};
use yurt_node::certificate::{NodeCertificate, NotANode, node_of};
use yurt_node::pki;

use super::client_ca::ClientCa;
use super::connections::Connections;
use super::peers::{Asked, AskedError, Identity};
use super::registry::Registry;
use crate::agent;
use crate::mux::session::{self, Settings};
use crate::mux::{End, HelloError, Session, socket};
use crate::upgrade;

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
    #[error("another server: {0}")]
    Asked(#[from] AskedError),
    #[error("no session within {HANDSHAKE:?}")]
    Timeout,
}

/// Who has proven to be at the other end.
enum Caller {
    Node(NodeCertificate),
    /// Another server, until its certificate expires.
    Server(SystemTime),
}

/// What the port for agents works with.
pub(super) struct Agents {
    pub(super) registry: Arc<Registry>,
    pub(super) certificate: Arc<dyn ResolvesServerCert>,
    pub(super) client_ca: Arc<ClientCa>,
    pub(super) identity: Arc<Identity>,
    pub(super) asked: Arc<Asked>,
    pub(super) settings: Settings,
}

/// Accepts agents until `sessions` are told to stop.
pub(super) async fn run(agents: Arc<Agents>, listener: TcpListener, sessions: Connections) {
    let stop = sessions.stop().clone();
    accept(listener, Places::new(HANDSHAKES), stop, |accepted| {
        let (agents, all) = (agents.clone(), sessions.clone());
        sessions.start(async move {
            let remote = accepted.peer;
            match agents.serve(accepted, all).await {
                Ok(()) => {}
                Err(AcceptError::Hello { node, source: HelloError::Declined }) => {
                    tracing::debug!(node, %remote, "the agent stands by: its node has a session with this server");
                }
                Err(error) => tracing::info!(%remote, %error, "connection did not become a session"),
            }
        });
    })
    .await;
}

impl Agents {
    async fn serve(&self, accepted: Accepted, connections: Connections) -> Result<(), AcceptError> {
        let Accepted { stream: tcp, peer: remote, at, place } = accepted;
        let by = Deadlines { hello: at + CLIENT_HELLO, handshake: at + HANDSHAKE };
        let authenticated = tokio::time::timeout_at(by.handshake, self.authenticate(tcp, by));
        let (stream, caller) = authenticated.await.map_err(|_| AcceptError::Timeout)??;
        match caller {
            Caller::Node(node) => self.node(stream, node, remote, by, place).await,
            Caller::Server(until) => self.server(stream, until, by, place, connections).await,
        }
    }

    async fn server(
        &self,
        stream: TlsStream<TcpStream>,
        until: SystemTime,
        by: Deadlines,
        place: Place,
        connections: Connections,
    ) -> Result<(), AcceptError> {
        let established = async {
            let stream = upgrade::server(stream, PEER_PATH).await.map_err(Box::new)?;
            Ok(self.asked.accept(stream).await?)
        };
        let established = tokio::time::timeout_at(by.handshake, established).await;
        let (peer, established) = established.map_err(|_| AcceptError::Timeout).flatten()?;
        drop(place);
        let session = established.0.clone();
        tokio::select! {
            ended = self.asked.clone().serve(peer, established, connections) => Ok(ended?),
            () = expired(until, &session) => Ok(()),
        }
    }

    async fn node(
        &self,
        stream: TlsStream<TcpStream>,
        node: NodeCertificate,
        remote: SocketAddr,
        by: Deadlines,
        place: Place,
    ) -> Result<(), AcceptError> {
        let established = async {
            let stream = upgrade::server(stream, PATH).await.map_err(Box::new)?;
            let id = self.registry.server().clone();
            let mut settings = self.settings.clone();
            if self.registry.has(&node.node) {
                settings.capabilities = Capabilities::NODE_IS_HERE;
            }
            session::accept(stream, id, settings)
                .await
                .map_err(|source| AcceptError::Hello { node: node.node.clone(), source })
        };
        let established = tokio::time::timeout_at(by.handshake, established).await;
        let (session, _opens, driver) = established.map_err(|_| AcceptError::Timeout).flatten()?;
        // From now on it is a node's, and nodes are counted by their certificates.
        drop(place);
        let (registration, superseded) = self.registry.register(&node.node, session.clone(), remote);
        tracing::info!(node = node.node, %remote, software = session.peer_software(), "agent connected");
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
            () = expired(node.not_after, &session) => return Ok(()),
        };
        tracing::info!(node = node.node, %remote, reason = %end, "agent disconnected");
        registration.ends(end);
        Ok(())
    }

    /// TLS with the CAs as they are now.
    async fn authenticate(
        &self,
        tcp: TcpStream,
        by: Deadlines,
    ) -> Result<(TlsStream<TcpStream>, Caller), AcceptError> {
        socket::prepare_session(&tcp)?;
        let verifier = self.client_ca.verifier().ok_or(AcceptError::NoCa)?;
        let mut config = ServerConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.identity.or_nodes(verifier))
            .with_cert_resolver(self.certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Resumption would skip the look at the certificate, and agents connect rarely.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let stream = handshake(tcp, Arc::new(config), by).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first().ok_or(NotANode::Malformed)?;
        let caller = match node_of(certificate) {
            Ok(node) => Caller::Node(node),
            Err(not_a_node) => Caller::Server(self.identity.peer(chain).ok_or(not_a_node)?),
        };
        Ok((stream, caller))
    }
}

/// Never comes back: closes the session when the certificate that it began with is over, and its driver then ends.
async fn expired(not_after: SystemTime, session: &Session) {
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
    session.close(GoAwayCode::CertificateExpired);
    std::future::pending().await
}
