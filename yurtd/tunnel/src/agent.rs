//! The tunnel agent: dials out from the node, and connects the server's streams to kubelet and to nothing else.
//!
//! One task a server address: connect, serve until the session ends, wait with jitter, again. Addresses that lead to a
//! server which another one has a session with stand by ([`claims`]), and take over when that ends. The node's
//! identity is kubelet's client certificate, read anew for every connection, so that the one kubelet has just
//! rotated is used. The server is verified against our own CA, whose file may appear later than this service starts.

mod claims;
mod connections;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::SEC_WEBSOCKET_PROTOCOL;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use yurt_api::names;
use yurt_api::tunnel::{GoAwayCode, OpenErrorCode, PATH, SUBPROTOCOL, Target};

use self::claims::{Claim, Claims, Holder};
pub use self::connections::Connections;
use crate::backoff::{Backoff, STABLE, after_superseded, fraction};
use crate::mux::pipe::{self, Side};
use crate::mux::session::{self, Settings};
use crate::mux::{End, HelloError, OpenRequest, socket};
use yurt_node::config::EdgeConfig;
use yurt_node::dial::{self, NetError};
use yurt_node::link::LinkState;
use yurt_node::pki::{self, TlsError};
use yurt_node::random::random;
use yurt_node::supervise::{Ended, Tasks};

/// How long everything up to HELLO may take, at both ends.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long kubelet may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a session may take to answer after the link was lost and is back: TCP may wait that long before
/// it sends again what was lost, and a log that is being followed is worth it.
const PROBE: Duration = Duration::from_secs(8);
/// Agents that get their link back together do not all come at the same moment.
const BACK_ONLINE_JITTER: Duration = Duration::from_millis(500);
/// How long an address stands by before it is tried again: it may lead to another server by now. A few KiB each time.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// How often to look for files that are not there yet.
const FILES_EVERY: Duration = Duration::from_secs(2);

/// What the agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `host:port` of every server.
    pub servers: Vec<String>,
    /// PEM file of the tunnel CA.
    pub ca_file: PathBuf,
    /// PEM file with kubelet's client certificate.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// `host:port` of the node's kubelet.
    pub kubelet: String,
    /// Limits and times of the sessions.
    pub settings: Settings,
    /// What the hub knows about the link: when it is back, nobody waits for a timer.
    pub link: Option<watch::Receiver<LinkState>>,
    /// Where it is told how the sessions fare.
    pub connections: Connections,
}

impl From<&EdgeConfig> for AgentConfig {
    fn from(config: &EdgeConfig) -> Self {
        Self {
            servers: config.tunnel_servers.clone(),
            ca_file: config.tunnel_ca_file.clone(),
            certificate: config.client_certificate.clone(),
            key: config.client_key.clone(),
            kubelet: config.kubelet_address.clone(),
            settings: Settings::agent(),
            link: None,
            connections: Connections::of(&config.tunnel_servers),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
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

/// Keeps a session to every server until `stop`, then says goodbye.
///
/// # Errors
///
/// [`Ended`] when one of the sessions is not kept any more although nobody asked for that.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<(), Ended> {
    let config = Arc::new(config);
    // Ends with the role, and does not end it by itself.
    let tasks = Tasks::new(stop.child_token());
    let claims = Claims::default();
    for server in config.servers.clone() {
        let span = tracing::info_span!("tunnel", server);
        let keep = keep_connected(config.clone(), server, claims.clone(), tasks.clone());
        tasks.part("the session to a tunnel server", keep.instrument(span));
    }
    let outcome = tasks.until_stopped().await;
    // How long streams may go on is the role's decision, which drops this future.
    tasks.finish(Duration::MAX).await;
    outcome
}

async fn keep_connected(config: Arc<AgentConfig>, server: String, claims: Claims, tasks: Tasks) {
    let stop = tasks.stop().clone();
    let mut backoff = Backoff::default();
    let mut waiting_for_file = false;
    let mut link = config.link.clone();
    loop {
        let attempt = tokio::select! {
            () = stop.cancelled() => return,
            attempt = tokio::time::timeout(CONNECT_TIMEOUT, connect(&config, &server, &claims)) => attempt,
        };
        let since = Instant::now();
        let delay = match attempt.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(Attempt::Session(connection, claim)) => {
                waiting_for_file = false;
                config.connections.connected(&server);
                let why = serve(*connection, &claim, &config, &mut link, &tasks, &stop).await;
                if why == Some(GoAwayCode::Superseded) {
                    config.connections.lost(&server, "TwoMachines", &GoAwayCode::Superseded.to_string());
                    // Meanwhile the server stays claimed: another address would only be quicker to cut the other one off.
                    yield_to_rival(&stop).await;
                    continue;
                }
                config.connections.lost(&server, "SessionEnded", "the session has ended");
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                backoff.after_failure(random())
            }
            Ok(Attempt::StandBy(holder)) => {
                waiting_for_file = false;
                if config.connections.stands_by(&server, &holder.address) {
                    tracing::info!(
                        address = holder.address,
                        "it is the server of another address; standing by"
                    );
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = holder.gave_up.cancelled() => {}
                    () = tokio::time::sleep(LOOK_AGAIN + fraction(LOOK_AGAIN, random())) => continue,
                }
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                backoff.after_failure(random())
            }
            Err(ConnectError::Files(error)) => {
                config.connections.lost(&server, "NoCertificate", &error.to_string());
                // Not the server's fault, and cheap to look again.
                if !waiting_for_file {
                    tracing::warn!(%error, "the tunnel waits for a file that it needs");
                    waiting_for_file = true;
                }
                FILES_EVERY
            }
            Err(error) => {
                config.connections.lost(&server, trouble::code_of(&error), &error.to_string());
                let delay = backoff.after_failure(random());
                tracing::warn!(%error, ?delay, "no tunnel session");
                delay
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
            () = back_online(&mut link) => {
                backoff.reset();
                tokio::time::sleep(fraction(BACK_ONLINE_JITTER, random())).await;
            }
        }
    }
}

/// Somebody else with this node's certificate is connected now. Who of the two is right is for people to say; until then
/// neither may cut the other off every few seconds. Not even a link that is back shortens it.
async fn yield_to_rival(stop: &CancellationToken) {
    let delay = after_superseded(random());
    tracing::warn!(
        ?delay,
        "another connection with this node's certificate has taken the tunnel over; if this machine is a copy of \
         another one, or has one, give one of them a node name and a certificate of its own"
    );
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(delay) => {}
    }
}

/// Resolves when the link is online after it was not; never without a hub.
async fn back_online(link: &mut Option<watch::Receiver<LinkState>>) {
    if let Some(link) = link {
        let was_lost = link.wait_for(|state| *state != LinkState::Online).await.is_ok();
        if was_lost && link.wait_for(|state| *state == LinkState::Online).await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// A session that has begun.
type Connection = session::Established<TlsStream<TcpStream>>;

/// What an address has led to.
enum Attempt {
    Session(Box<Connection>, Claim),
    /// A server that another address has a session with.
    StandBy(Holder),
}

async fn connect(config: &AgentConfig, server: &str, claims: &Claims) -> Result<Attempt, ConnectError> {
    let tls = pki::client_config(&config.ca_file, &config.certificate, &config.key)?;
    let tcp = dial(server, DIAL_TIMEOUT).await?;
    socket::prepare_session(&tcp).map_err(ConnectError::Tls)?;
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).map_err(std::io::Error::other);
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name.map_err(ConnectError::Tls)?, tcp)
        .await
        .map_err(ConnectError::Tls)?;
    let stream = upgrade(stream).await.map_err(Box::new)?;
    let greeting = session::greet(stream, config.settings.clone()).await?;
    match claims.claim(greeting.server(), server) {
        Ok(claim) => Ok(Attempt::Session(Box::new(greeting.begin().await?), claim)),
        Err(holder) => {
            greeting.decline().await;
            Ok(Attempt::StandBy(holder))
        }
    }
}

/// The WebSocket handshake. The server says nothing before our HELLO, so nothing can be left in tungstenite's
/// buffer when the bare stream is taken back.
async fn upgrade(stream: TlsStream<TcpStream>) -> Result<TlsStream<TcpStream>, tungstenite::Error> {
    let mut request = format!("wss://{}{PATH}", names::TUNNEL_SERVER_NAME).into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(SUBPROTOCOL));
    let buffers = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let (stream, _response) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(buffers)).await?;
    Ok(stream.into_inner())
}

async fn dial(address: &str, timeout: Duration) -> Result<TcpStream, ConnectError> {
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

/// Serves a session until it ends, or until the server asks to use another one; what is open then goes on by itself. Says
/// why the server asked.
async fn serve(
    (session, mut requests, driver): Connection,
    claim: &Claim,
    config: &Arc<AgentConfig>,
    link: &mut Option<watch::Receiver<LinkState>>,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Option<GoAwayCode> {
    tracing::info!(peer = session.peer_software(), id = %claim.server(), "tunnel session established");
    let streams = {
        let (tasks, config) = (tasks.clone(), config.clone());
        async move {
            while let Some(request) = requests.recv().await {
                tasks.passing(answer(request, config.clone()).in_current_span());
            }
        }
    };
    let life = {
        let (session, stop) = (session.clone(), stop.clone());
        async move {
            let goodbye = async {
                stop.cancelled().await;
                session.close(GoAwayCode::ShuttingDown);
                std::future::pending::<()>().await;
            };
            let end = tokio::select! {
                biased;
                end = driver.run() => end,
                () = goodbye => End::Abandoned,
                () = streams => End::Abandoned,
            };
            tracing::info!(reason = %end, "tunnel session ended");
        }
    };
    tasks.passing(life.in_current_span());
    loop {
        tokio::select! {
            why = session.leaving() => return why,
            () = back_online(link) => {}
        }
        if !session.answers(PROBE).await {
            tracing::info!("the session did not survive the loss of the link");
            session.close(GoAwayCode::ShuttingDown);
            return None;
        }
    }
}

async fn answer(request: OpenRequest, config: Arc<AgentConfig>) {
    let target = request.target();
    let connected = match target {
        Target::Kubelet => connect_kubelet(&config.kubelet).await,
    };
    match connected {
        Ok(tcp) => {
            if let Some(stream) = request.accept()
                && let Err(error) = pipe::pipe(tcp, stream, Side::Target).await
            {
                tracing::debug!(%error, "stream broke");
            }
        }
        Err((code, message)) => {
            tracing::warn!(%target, message, "stream refused");
            request.reject(code, message);
        }
    }
}

async fn connect_kubelet(kubelet: &str) -> Result<TcpStream, (OpenErrorCode, String)> {
    let tcp = dial(kubelet, DIAL_TIMEOUT).await.map_err(|error| (code_of(&error), error.to_string()))?;
    socket::prepare_end(&tcp).map_err(|error| (OpenErrorCode::Unreachable, error.to_string()))?;
    Ok(tcp)
}

fn code_of(error: &ConnectError) -> OpenErrorCode {
    let ConnectError::Net(NetError::Connect { source, .. }) = error else {
        return OpenErrorCode::Unreachable;
    };
    match source.kind() {
        std::io::ErrorKind::ConnectionRefused => OpenErrorCode::Refused,
        std::io::ErrorKind::TimedOut => OpenErrorCode::TimedOut,
        _ => OpenErrorCode::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_return_of_a_lost_link_counts() {
        let (sender, receiver) = watch::channel(LinkState::Online);
        let mut link = Some(receiver);
        let waiting = back_online(&mut link);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        sender.send(LinkState::Offline).unwrap();
        assert!(futures::poll!(&mut waiting).is_pending());
        sender.send(LinkState::Online).unwrap();
        assert!(futures::poll!(&mut waiting).is_ready());
        assert!(futures::poll!(std::pin::pin!(back_online(&mut None))).is_pending());
    }
}
