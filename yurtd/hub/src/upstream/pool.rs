//! The connections: finding one with room for another stream, making new ones, retiring and closing them.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::client_tls::{ClientTls, CredentialKind, Protocol};
use super::servers::{Server, Servers};
use super::silence::{self, Heard};
use super::{RequestBody, Traffic, UpstreamConfig, UpstreamError};
use crate::limits;
use yurt_node::dial::{self, Liveness, NetError};

/// Streams a connection: kube-apiserver's default bound, less the one that asks whether anybody is there.
const STREAMS: usize = 99;
/// Connections for kubelet's forwarded requests: about a thousand streams.
const KUBELET_REQUEST_CONNECTIONS: usize = 10;
/// Connections for views, by credential: as many watches as there may be views.
const VIEW_CONNECTIONS: usize = 21;
/// For a TCP connection when a request waits for it.
const CONNECT: Duration = Duration::from_secs(3);
/// For TLS and HTTP/2 on top of it.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a connection lives on which nobody acknowledges anything. Whether the link is there is known much sooner,
/// and ends no connection: where only the uplink was full, or the cut short, everything on it goes on.
const DEAD_AFTER: Duration = Duration::from_secs(45);
/// The link's probe: see `link`.
pub(super) const PROBE: Liveness =
    Liveness { idle: Duration::from_secs(3), interval: Duration::from_secs(1), timeout: DEAD_AFTER };
/// Any other connection is not probed much while idle.
const OTHER: Liveness =
    Liveness { idle: Duration::from_secs(60), interval: Duration::from_secs(15), timeout: DEAD_AFTER };
/// What any API server answers at once, in whatever way.
const ANYBODY: &str = "/livez";

/// Whose requests a connection takes, and what for. Connections of two keys are never exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolKey {
    pub(super) kind: CredentialKind,
    pub(super) traffic: Traffic,
}

impl PoolKey {
    /// The link's probe is one of these.
    const PROBE: Self = Self { kind: CredentialKind::Node, traffic: Traffic::Requests };

    fn index(self) -> usize {
        2 * self.kind as usize + self.traffic as usize
    }

    fn connections(self) -> usize {
        match (self.traffic, self.kind) {
            (Traffic::Requests, CredentialKind::Node) => KUBELET_REQUEST_CONNECTIONS,
            (Traffic::Requests, CredentialKind::Bearer) => limits::FORWARDED / STREAMS,
            (Traffic::Views, _) => VIEW_CONNECTIONS,
        }
    }

    /// Bytes that a stream may hold for whoever does not read them.
    fn stream_window(self) -> u32 {
        match (self.traffic, self.kind) {
            (Traffic::Requests, CredentialKind::Bearer) => limits::FORWARDED_WINDOW,
            // At 100 ms of round trip 2.5 MB/s.
            _ => 256 << 10,
        }
    }

    /// The same for a connection. Every stream's window fits, with one to spare: nobody who stops reading stops the
    /// others. (hyper's own figures are 2 MiB and 5 MiB: three such readers and nothing moves.) It is also what h2
    /// derives its budget of small DATA frames from, which ends a connection that holds too many of them unread.
    fn connection_window(self) -> u32 {
        (STREAMS as u32 + 1) * self.stream_window()
    }
}

/// One HTTP/2 connection.
pub(super) struct Connection {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<Semaphore>,
    server: Arc<Server>,
    key: PoolKey,
    generation: u64,
    /// The server takes no more requests on it (GOAWAY); those under way go on.
    retired: AtomicBool,
    /// The link was lost since somebody last answered on it: it takes no requests until somebody does.
    doubtful: AtomicBool,
    /// Changes when somebody has.
    proven: watch::Sender<()>,
    /// The probe's, to see what the kernel hears; nothing when the connection has ended.
    socket: Mutex<Option<OwnedFd>>,
    /// Cancelled by us to close it.
    close: CancellationToken,
    /// Cancelled when it has ended, whoever ended it.
    closed: CancellationToken,
}

impl Connection {
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    fn usable(&self) -> bool {
        !self.closed.is_cancelled() && !self.sender.is_closed()
    }

    /// What the kernel has heard on it, if it is the probe's and has not ended.
    pub(super) fn heard(&self) -> Option<Heard> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        silence::heard(socket.as_ref()?.as_fd()).ok()
    }

    /// Whether anything answers a request. What was sent before has arrived, then.
    async fn answers(&self, authority: &Authority) -> bool {
        let uri = Uri::builder().scheme("https").authority(authority.clone()).path_and_query(ANYBODY).build();
        let Ok(uri) = uri else { return false };
        let mut request = Request::new(Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync());
        *request.method_mut() = Method::HEAD;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        self.sender.clone().send_request(request).await.is_ok()
    }
}

/// A place for one request.
pub(super) struct Slot {
    pub(super) sender: http2::SendRequest<RequestBody>,
    pub(super) stream: OwnedSemaphorePermit,
    authority: Authority,
    connection: Arc<Connection>,
}

impl Slot {
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Changes when somebody answers on the connection although the link was lost.
    pub(super) fn proven(&self) -> watch::Receiver<()> {
        self.connection.proven.subscribe()
    }

    /// The connection did not take the request: nobody should try it again.
    pub(super) fn retire(self) {
        self.connection.retired.store(true, Ordering::Relaxed);
    }
}

struct Failure {
    at: Instant,
    reason: String,
}

pub(super) struct Pool {
    servers: Servers,
    tls: ClientTls,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One connection attempt a key at a time, and how the last one failed: whoever waited for it shares that.
    connecting: [tokio::sync::Mutex<Option<Failure>>; 4],
    stop: CancellationToken,
}

/// hyper runs a connection on its executor; this one can end it.
#[derive(Clone)]
struct Closable(CancellationToken);

impl<F> hyper::rt::Executor<F> for Closable
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let close = self.0.clone();
        tokio::spawn(async move {
            let mut future = pin!(future);
            tokio::select! {
                () = close.cancelled() => {}
                _ = &mut future => {}
            }
        });
    }
}

impl Pool {
    pub(super) fn new(config: &UpstreamConfig, stop: CancellationToken) -> Result<Self, UpstreamError> {
        Ok(Self {
            servers: Servers::of(config)?,
            tls: ClientTls::new(config)?,
            connections: Mutex::default(),
            connecting: Default::default(),
            stop,
        })
    }

    pub(super) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// A place on a connection, which may have to be made first.
    pub(super) async fn slot(&self, key: PoolKey) -> Result<Slot, UpstreamError> {
        if let Some(slot) = self.free_slot(key) {
            return Ok(slot);
        }
        let asked = Instant::now();
        let mut last_failure = self.connecting[key.index()].lock().await;
        if let Some(slot) = self.free_slot(key) {
            return Ok(slot);
        }
        if let Some(failure) = &*last_failure
            && failure.at > asked
        {
            return Err(UpstreamError::Unreachable(failure.reason.clone()));
        }
        if self.count(key) >= key.connections() {
            return Err(UpstreamError::Busy(format!(
                "{} requests are under way",
                key.connections() * STREAMS
            )));
        }
        if let Err(error) = self.open_any(key).await {
            *last_failure = Some(Failure { at: Instant::now(), reason: error.to_string() });
            return Err(error.into());
        }
        self.free_slot(key)
            .ok_or_else(|| UpstreamError::Unreachable("the new connection broke at once".to_owned()))
    }

    /// Connects to the preferred server, or else to the next that answers.
    async fn open_any(&self, key: PoolKey) -> Result<(), OpenError> {
        let mut last = OpenError::Failed("no API server is configured".to_owned());
        for server in self.servers.in_turn() {
            match self.open(&server, key, CONNECT, OTHER).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Opens the link's probe to one server.
    pub(super) async fn open_probe(
        &self,
        server: &Arc<Server>,
        patience: Duration,
    ) -> Result<Arc<Connection>, OpenError> {
        self.open(server, PoolKey::PROBE, patience, PROBE).await
    }

    async fn open(
        &self,
        server: &Arc<Server>,
        key: PoolKey,
        patience: Duration,
        liveness: Liveness,
    ) -> Result<Arc<Connection>, OpenError> {
        let (stream, generation) = self.dial(server, key.kind, Protocol::Http2, patience, liveness).await?;
        let socket =
            if liveness == PROBE { stream.get_ref().0.as_fd().try_clone_to_owned().ok() } else { None };
        let close = self.stop.child_token();
        let mut builder = http2::Builder::new(Closable(close.clone()));
        builder
            .timer(TokioTimer::new())
            // A server that hangs behind a kernel that does not.
            .keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(key.stream_window())
            .initial_connection_window_size(key.connection_window())
            .max_send_buf_size(64 << 10);
        let handshake = tokio::time::timeout(HANDSHAKE, builder.handshake(TokioIo::new(stream)));
        let (sender, driver) = handshake
            .await
            .map_err(|_| OpenError::TimedOut)?
            .map_err(|error| OpenError::Failed(super::chain(&error)))?;
        let closed = CancellationToken::new();
        let ended = closed.clone();
        let connection = Arc::new(Connection {
            sender,
            streams: Arc::new(Semaphore::new(STREAMS)),
            server: Arc::clone(server),
            key,
            generation,
            retired: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            proven: watch::Sender::default(),
            socket: Mutex::new(socket),
            close: close.clone(),
            closed,
        });
        let watched = Arc::downgrade(&connection);
        tokio::spawn(async move {
            let outcome = tokio::select! {
                () = close.cancelled() => Ok(()),
                outcome = driver => outcome,
            };
            if let Err(error) = outcome {
                tracing::debug!(error = super::chain(&error), "a connection to the API server ended");
            }
            close.cancel();
            if let Some(connection) = watched.upgrade() {
                // The socket is closed with the last descriptor.
                connection.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            ended.cancel();
        });
        self.servers.answered(server);
        let mut connections = self.lock();
        if liveness == PROBE {
            // What is asked first is used: an API server ends connections that are not, and the link's would be one.
            connections.insert(0, Arc::clone(&connection));
        } else {
            connections.push(Arc::clone(&connection));
        }
        drop(connections);
        Ok(connection)
    }

    /// A connection for one upgrade.
    pub(super) async fn connect_http1(
        &self,
        kind: CredentialKind,
    ) -> Result<(http1::SendRequest<RequestBody>, Authority), UpstreamError> {
        let server = self.servers.first()?;
        let (stream, _) = self.dial(&server, kind, Protocol::Http1, CONNECT, OTHER).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| UpstreamError::Unreachable(super::chain(&error)))?;
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                outcome = driver.with_upgrades() => if let Err(error) = outcome {
                    tracing::debug!(error = super::chain(&error), "a connection for an upgrade ended");
                }
            }
        });
        Ok((sender, server.authority.clone()))
    }

    async fn dial(
        &self,
        server: &Server,
        kind: CredentialKind,
        protocol: Protocol,
        patience: Duration,
        liveness: Liveness,
    ) -> Result<(TlsStream<TcpStream>, u64), OpenError> {
        let addresses = server.resolve(patience).await?;
        let tcp = dial::connect_to(&server.host, &addresses, server.port, patience, liveness).await?;
        let (config, generation) = self.tls.config(kind, protocol);
        let handshake = TlsConnector::from(config).connect(server.name.clone(), tcp);
        match tokio::time::timeout(HANDSHAKE.max(patience * 2), handshake).await {
            Ok(Ok(stream)) => Ok((stream, generation)),
            Ok(Err(error)) => Err(OpenError::Failed(format!("{}: {error}", server.authority))),
            Err(_) => Err(OpenError::TimedOut),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_slot(&self, key: PoolKey) -> Option<Slot> {
        // Looks at a file: not under the lock that everybody's requests need.
        let current = if key.kind == CredentialKind::Node { self.tls.refresh() } else { 0 };
        let mut connections = self.lock();
        connections.retain(|connection| connection.usable());
        connections
            .iter()
            .filter(|connection| connection.key == key && connection.generation == current)
            .filter(|connection| !connection.retired.load(Ordering::Relaxed))
            .filter(|connection| !connection.doubtful.load(Ordering::Relaxed))
            .find_map(|connection| {
                let stream = Arc::clone(&connection.streams).try_acquire_owned().ok()?;
                let authority = connection.server.authority.clone();
                let connection = Arc::clone(connection);
                Some(Slot { sender: connection.sender.clone(), stream, authority, connection })
            })
    }

    fn count(&self, key: PoolKey) -> usize {
        let takes = |connection: &&Arc<Connection>| {
            connection.key == key && !connection.doubtful.load(Ordering::Relaxed)
        };
        self.lock().iter().filter(takes).count()
    }

    /// Closes what nobody uses of the connections with a certificate from before the rotation.
    pub(super) fn retire(&self) {
        let current = self.tls.refresh();
        for connection in self.lock().iter() {
            let idle = connection.streams.available_permits() == STREAMS;
            if connection.key.kind == CredentialKind::Node && connection.generation != current && idle {
                connection.close.cancel();
            }
        }
    }

    /// The link is lost: nothing is sent on any connection until somebody answers on it. Those on which nobody has
    /// since it was lost before are closed, so that there are never more than twice as many as otherwise.
    pub(super) fn doubt_all(&self) {
        for connection in self.lock().iter() {
            if connection.doubtful.swap(true, Ordering::Relaxed) {
                connection.close.cancel();
            }
        }
    }

    /// The probe was silent, and another connection came about: the same for all but that one.
    pub(super) fn doubt_others(&self, than: &Arc<Connection>) {
        for connection in self.lock().iter().filter(|connection| !Arc::ptr_eq(connection, than)) {
            connection.doubtful.store(true, Ordering::Relaxed);
        }
    }

    /// The link is there: whoever does not answer on a doubtful connection within `grace` has gone, and what waits
    /// there fails, to be asked again.
    pub(super) fn check(&self, grace: Duration) {
        let connections = self.lock();
        let doubtful = connections.iter().filter(|one| one.doubtful.load(Ordering::Relaxed));
        for connection in doubtful.cloned() {
            let authority = connection.server.authority.clone();
            tokio::spawn(async move {
                let answers = tokio::time::timeout(grace, connection.answers(&authority));
                if answers.await.unwrap_or(false) {
                    connection.doubtful.store(false, Ordering::Relaxed);
                    connection.proven.send_replace(());
                } else {
                    tracing::debug!(?grace, "nobody answers on a connection from before the link was lost");
                    connection.close.cancel();
                }
            });
        }
    }
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the API server does not answer")]
    TimedOut,
    #[error("{0}")]
    Failed(String),
}

impl From<NetError> for OpenError {
    fn from(error: NetError) -> Self {
        match &error {
            NetError::Connect { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => {
                Self::TimedOut
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<OpenError> for UpstreamError {
    fn from(error: OpenError) -> Self {
        Self::Unreachable(error.to_string())
    }
}
