//! The tunnel agent: dials out from the node, and connects the server's streams to kubelet and to nothing else.
//!
//! One task a server address ([`addresses`]): connect, serve until the session ends, wait with jitter, again. Addresses
//! that lead to a server which another one has a session with stand by ([`claims`]), and take over when that ends. The
//! node's identity is kubelet's client certificate, read anew for every connection, so that the one kubelet has just
//! rotated is used. The server is verified against our own CA, whose file may appear later than this service starts.

mod addresses;
mod claims;
mod connect;
mod connections;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use yurt_api::tunnel::{GoAwayCode, OpenErrorCode, Target};

pub use self::addresses::Found;
use self::addresses::{Address, all, given};
use self::claims::{Claim, Claims};
use self::connect::{Attempt, ConnectError, Connection, connect, dial, unless_rival};
pub use self::connections::Connections;
use crate::backoff::{Backoff, STABLE, after_superseded, fraction};
use crate::kept::Kept;
use crate::mux::pipe::{self, Side};
use crate::mux::session::Settings;
use crate::mux::{End, OpenRequest, socket};
use yurt_node::config::EdgeConfig;
use yurt_node::dial::NetError;
use yurt_node::link::LinkState;
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
/// The same of an address that was found: those of control-plane nodes lead to another server hardly ever.
const LOOK_AGAIN_AT_FOUND: Duration = Duration::from_secs(3600);
/// When an agent that was replaced first looks whether the other one is gone; it waits twice as long each time.
const LOOK_FOR_RIVAL: Duration = Duration::from_secs(2);
/// How often to look for files that are not there yet.
const FILES_EVERY: Duration = Duration::from_secs(2);

/// What the agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `host:port` of every server that a person gave.
    pub servers: Vec<String>,
    /// What the cluster says about where servers are.
    pub found: Option<Found>,
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
        let servers = given(&config.tunnel_servers);
        Self {
            connections: Connections::of(&servers),
            servers,
            found: None,
            ca_file: config.tunnel_ca_file.clone(),
            certificate: config.client_certificate.clone(),
            key: config.client_key.clone(),
            kubelet: config.kubelet_address.clone(),
            settings: Settings::agent(),
            link: None,
        }
    }
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
    tasks.part("the sessions to tunnel servers", keep_all(config, tasks.clone()));
    let outcome = tasks.until_stopped().await;
    // How long streams may go on is the role's decision, which drops this future.
    tasks.finish(Duration::MAX).await;
    outcome
}

/// Keeps a session to every server, as the cluster's come and go.
async fn keep_all(config: Arc<AgentConfig>, tasks: Tasks) {
    let claims = Claims::default();
    let mut kept = Kept::default();
    let mut found = config.found.clone();
    loop {
        let wanted = match &mut found {
            Some(found) => all(&config.servers, &found.api_servers.borrow_and_update(), found.port),
            None => all(&config.servers, &[], 0),
        };
        kept.set(&wanted, |address: Address, leave| {
            let span = tracing::info_span!("tunnel", server = address.server);
            let keep = keep_connected(config.clone(), address.clone(), leave, claims.clone(), tasks.clone());
            let keep = keep.instrument(span);
            if address.found {
                config.connections.found(&address.server);
                tasks.passing(keep);
            } else {
                tasks.part("the session to a tunnel server", keep);
            }
        });
        tokio::select! {
            () = tasks.stop().cancelled() => return,
            () = changed(&mut found) => {}
        }
    }
}

/// Resolves when the cluster names other servers.
async fn changed(found: &mut Option<Found>) {
    if let Some(found) = found
        && found.api_servers.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Keeps a session to the server behind an address. One that is to `leave`, as the cluster does not name it any more, is
/// left when it has no session, so that streams go on while an API server only restarts.
async fn keep_connected(
    config: Arc<AgentConfig>,
    address: Address,
    leave: CancellationToken,
    claims: Claims,
    tasks: Tasks,
) {
    let stop = tasks.stop().clone();
    let Address { server, found } = address;
    tokio::select! {
        () = stop.cancelled() => {}
        () = attempts(&config, &server, found, &leave, &claims, &tasks) => {
            tracing::info!("the cluster does not name this server any more");
            config.connections.gone(&server);
        }
    }
}

/// Connects again and again; comes back when it is to leave and has no session.
async fn attempts(
    config: &Arc<AgentConfig>,
    server: &str,
    found: bool,
    leave: &CancellationToken,
    claims: &Claims,
    tasks: &Tasks,
) {
    let stop = tasks.stop();
    // Perhaps nothing leads there from this node.
    let mut backoff = if found { Backoff::up_to(LOOK_AGAIN) } else { Backoff::default() };
    let mut led_there = false;
    let mut waiting_for_file = false;
    let mut link = config.link.clone();
    while !leave.is_cancelled() {
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, connect(config, server, claims)).await;
        let since = Instant::now();
        if matches!(attempt, Ok(Ok(_))) && !std::mem::replace(&mut led_there, true) {
            backoff = Backoff::default();
        }
        let delay = match attempt.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(Attempt::Session(connection, claim)) => {
                waiting_for_file = false;
                let mut connection = Some(connection);
                let mut why = None;
                while let Some(session) = connection.take() {
                    config.connections.connected(server);
                    why = serve(*session, &claim, config, &mut link, tasks, stop).await;
                    if why == Some(GoAwayCode::Superseded) {
                        config.connections.lost(server, "TwoMachines", &GoAwayCode::Superseded.to_string());
                        // Meanwhile the server stays claimed: another address would only be quicker to cut the other one off.
                        connection = yield_to_rival(config, server, &claim).await;
                    }
                }
                if why == Some(GoAwayCode::Superseded) {
                    continue;
                }
                config.connections.lost(server, "SessionEnded", "the session has ended");
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                backoff.after_failure(random())
            }
            Ok(Attempt::StandBy(holder)) => {
                waiting_for_file = false;
                if config.connections.stands_by(server, &holder.address) {
                    tracing::info!(
                        address = holder.address,
                        "it is the server of another address; standing by"
                    );
                }
                let look_again = if found { LOOK_AGAIN_AT_FOUND } else { LOOK_AGAIN };
                tokio::select! {
                    () = leave.cancelled() => return,
                    () = holder.gave_up.cancelled() => {}
                    () = tokio::time::sleep(look_again + fraction(look_again, random())) => continue,
                }
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                backoff.after_failure(random())
            }
            Err(ConnectError::Files(error)) => {
                config.connections.lost(server, "NoCertificate", &error.to_string());
                // Not the server's fault, and cheap to look again.
                if !waiting_for_file {
                    tracing::warn!(%error, "the tunnel waits for a file that it needs");
                    waiting_for_file = true;
                }
                FILES_EVERY
            }
            Err(error) => {
                config.connections.lost(server, trouble::code_of(&error), &error.to_string());
                let delay = backoff.after_failure(random());
                if found {
                    tracing::info!(%error, ?delay, "no tunnel session with a server that was found");
                } else {
                    tracing::warn!(%error, ?delay, "no tunnel session");
                }
                delay
            }
        };
        tokio::select! {
            () = leave.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
            () = back_online(&mut link) => {
                backoff.reset();
                tokio::time::sleep(fraction(BACK_ONLINE_JITTER, random())).await;
            }
        }
    }
}

/// Somebody else with this node's certificate is connected now. Who of the two is right is for people to say; until then
/// neither may cut the other off every few seconds. Not even a link that is back shortens it, but that the server has no
/// session of the other's any more does: then there is one at once.
async fn yield_to_rival(config: &AgentConfig, server: &str, claim: &Claim) -> Option<Box<Connection>> {
    let delay = after_superseded(random());
    tracing::warn!(
        ?delay,
        "another connection with this node's certificate has taken the tunnel over; if this machine is a copy of \
         another one, or has one, give one of them a node name and a certificate of its own"
    );
    let until = Instant::now() + delay;
    let mut pause = LOOK_FOR_RIVAL;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        tokio::time::sleep(left.min(pause / 2 + fraction(pause / 2, random()))).await;
        if Instant::now() >= until {
            return None;
        }
        match tokio::time::timeout(CONNECT_TIMEOUT, unless_rival(config, server, claim)).await {
            Ok(Ok(Some(connection))) => {
                tracing::info!("the other connection is gone");
                return Some(connection);
            }
            Ok(Ok(None)) => tracing::debug!("the other connection is still there"),
            Ok(Err(error)) => {
                tracing::debug!(%error, "whether the other connection is still there is not known")
            }
            Err(_) => tracing::debug!("whether the other connection is still there is not known"),
        }
        pause *= 2;
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
    let connected = match request.target() {
        Target::Kubelet => connect_kubelet(&config.kubelet).await,
        // What one server asks of another. An agent leads to nobody else's kubelet.
        Target::KubeletOf(_) | Target::Session(_) | Target::Agents => {
            Err((OpenErrorCode::NotServed, String::new()))
        }
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
            tracing::warn!(target = %request.target(), %code, message, "stream refused");
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
