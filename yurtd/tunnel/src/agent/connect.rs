//! From an address to a session: TCP, TLS with the node's certificate, WebSocket, HELLO.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;
use yurt_api::names;
use yurt_api::tunnel::PATH;
use yurt_node::dial::{self, NetError};
use yurt_node::pki::{self, TlsError};

use super::claims::{Claim, Claims, Holder};
use super::{AgentConfig, CONNECT_TIMEOUT, DIAL_TIMEOUT};
use crate::mux::session;
use crate::mux::{HelloError, socket};
use crate::upgrade;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("{0:?} is not host:port")]
    Address(String),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("websocket: {0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("no session within {CONNECT_TIMEOUT:?}")]
    Timeout,
}

/// A session that has begun.
pub(super) type Connection = session::Established<TlsStream<TcpStream>>;

/// What an address has led to.
pub(super) enum Attempt {
    Session(Box<Connection>, Claim),
    /// A server that another address has a session with.
    StandBy(Holder),
}

pub(super) async fn connect(
    config: &AgentConfig,
    server: &str,
    claims: &Claims,
) -> Result<Attempt, ConnectError> {
    let greeting = greet(config, server).await?;
    match claims.claim(greeting.server(), server) {
        Ok(claim) => Ok(Attempt::Session(Box::new(greeting.begin().await?), claim)),
        Err(holder) => {
            greeting.decline().await;
            Ok(Attempt::StandBy(holder))
        }
    }
}

/// Everything up to where it is known which server it is.
async fn greet(
    config: &AgentConfig,
    server: &str,
) -> Result<session::Greeting<TlsStream<TcpStream>>, ConnectError> {
    let tls = pki::client_config(&config.ca_file, &config.certificate, &config.key)?;
    let tcp = dial(server, DIAL_TIMEOUT).await?;
    socket::prepare_session(&tcp).map_err(ConnectError::Tls)?;
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).map_err(std::io::Error::other);
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name.map_err(ConnectError::Tls)?, tcp)
        .await
        .map_err(ConnectError::Tls)?;
    let stream = upgrade::client(stream, PATH).await.map_err(Box::new)?;
    Ok(session::greet(stream, config.settings.clone()).await?)
}

pub(super) async fn dial(address: &str, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let invalid = || ConnectError::Address(address.to_owned());
    let authority: http::uri::Authority = address.parse().map_err(|_| invalid())?;
    let port = authority.port_u16().ok_or_else(invalid)?;
    let liveness = dial::Liveness {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(20),
        timeout: Duration::from_secs(30),
    };
    Ok(dial::connect(authority.host(), port, timeout, liveness).await?)
}

/// A session, if the server has none of this node's.
pub(super) async fn unless_rival(
    config: &AgentConfig,
    server: &str,
    claim: &Claim,
) -> Result<Option<Box<Connection>>, ConnectError> {
    let greeting = greet(config, server).await?;
    if greeting.server() == claim.server() && !greeting.node_is_here() {
        return Ok(Some(Box::new(greeting.begin().await?)));
    }
    greeting.decline().await;
    Ok(None)
}
