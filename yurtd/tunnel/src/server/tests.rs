//! Agent and server over TLS on loopback, with a kubelet that is a plain TCP server.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::tunnel::OpenErrorCode;

use super::listeners::bind;
use super::nodes::Endpoints;
use super::registry::DialError;
use super::*;
use crate::agent::{self, AgentConfig};
use yurt_fakes::pki::{TestCa, TestCertificate};
use yurt_node::link::LinkState;
use yurt_node::supervise::Tasks;

const PATIENCE: Duration = Duration::from_secs(20);

/// Two CAs and a folder for the agent's files.
struct World {
    cluster_ca: TestCa,
    tunnel_ca: TestCa,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            cluster_ca: TestCa::new("cluster"),
            tunnel_ca: TestCa::new("tunnel"),
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::write(world.folder.path().join("ca.crt"), &world.tunnel_ca.pem).unwrap();
        let serving = world.tunnel_ca.server(names::TUNNEL_SERVER_NAME);
        std::fs::write(world.folder.path().join("tls.crt"), serving.pem).unwrap();
        std::fs::write(world.folder.path().join("tls.key"), serving.key_pem).unwrap();
        world
    }

    /// Writes certificate and key into one file, as kubelet does.
    fn write(&self, file: &str, certificate: &TestCertificate) -> PathBuf {
        let path = self.folder.path().join(file);
        std::fs::write(&path, format!("{}{}", certificate.pem, certificate.key_pem)).unwrap();
        path
    }

    fn agent(&self, node: &str, server: SocketAddr, kubelet: SocketAddr) -> AgentConfig {
        let pem = self.write(&format!("{node}.pem"), &self.cluster_ca.node(node));
        AgentConfig {
            servers: vec![server.to_string()],
            ca_file: self.folder.path().join("ca.crt"),
            certificate: pem.clone(),
            key: pem,
            kubelet: kubelet.to_string(),
            settings: Settings::agent(),
            link: None,
        }
    }

    async fn server(&self) -> Server {
        self.server_on("127.0.0.1:0".parse().unwrap()).await
    }

    async fn server_on(&self, address: SocketAddr) -> Server {
        let listener = bind(address, false).unwrap();
        let address = listener.local_addr().unwrap();
        let client_ca = Arc::<ClientCa>::default();
        client_ca.set(&self.cluster_ca.pem).unwrap();
        let certificate = MountedCertificate::in_folder(self.folder.path());
        certificate.reload().unwrap();
        let registry = Registry::new("master-node".into());
        let agents =
            Agents { registry: registry.clone(), certificate, client_ca, settings: Settings::server() };
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let tasks = Tasks::new(stop.clone());
        let connections = Connections::new(tasks.clone(), kill.clone());
        tasks.part("the listener for agents", agents::run(Arc::new(agents), listener, connections.clone()));
        Server { registry, address, stop, kill, tasks, connections }
    }
}

struct Server {
    registry: Arc<Registry>,
    address: SocketAddr,
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: Tasks,
    connections: Connections,
}

impl Server {
    async fn connected(&self, node: &str) {
        eventually("the agent is connected", || {
            self.registry.statuses().iter().any(|status| status.node == node)
        })
        .await;
    }

    /// As `kill -9` would: no word to anybody.
    async fn kill(self) {
        self.stop.cancel();
        self.kill.cancel();
        assert_eq!(self.tasks.finish(PATIENCE).await, 0);
    }
}

fn start(config: AgentConfig) -> (CancellationToken, AbortOnDropHandle<()>) {
    let stop = CancellationToken::new();
    let task = AbortOnDropHandle::new(tokio::spawn(agent::run(config, stop.clone())));
    (stop, task)
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// A kubelet that treats every connection like this.
async fn kubelet<F, R>(handle: F) -> (SocketAddr, AbortOnDropHandle<()>)
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(handle(tcp));
        }
    });
    (address, AbortOnDropHandle::new(task))
}

async fn echo(mut tcp: TcpStream) {
    let (mut reader, mut writer) = tcp.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

/// Bytes that are not the same everywhere.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// Sends everything, ends its direction, and gives the sum of what comes back.
async fn exchange<S: AsyncRead + AsyncWrite>(stream: S, data: &[u8]) -> io::Result<(usize, Vec<u8>)> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        writer.write_all(data).await?;
        writer.shutdown().await
    };
    let receive = async {
        let mut sum = Sha256::new();
        let (mut length, mut buffer) = (0, vec![0; 50_000]);
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return Ok((length, sum.finalize().to_vec()));
            }
            length += count;
            sum.update(&buffer[..count]);
        }
    };
    Ok(tokio::try_join!(send, receive)?.1)
}

#[tokio::test]
async fn bytes_reach_kubelet_and_come_back_and_each_direction_ends_by_itself() {
    let world = World::new();
    // Answers only when everything has been said, like tar under `kubectl cp`.
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await.unwrap();
        tcp.write_all(format!("got {}", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;

    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "got 5");
    assert!(stream.write_all(b"more").await.is_err());

    let status = &server.registry.statuses()[0];
    assert_eq!((status.node.as_str(), status.server.as_str()), ("edge-1", "master-node"));
    assert!(status.version.starts_with("yurtd/"));
    drop(stream);
    eventually("no stream is left", || server.registry.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_both_ways_arrive_as_they_were_sent() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let data = noise(20_000_000, 1);
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    let (length, sum) = soon("everything is back", exchange(stream, &data)).await.unwrap();
    assert_eq!(length, data.len());
    assert_eq!(sum, Sha256::digest(&data).to_vec());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_at_once_do_not_mix() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let streams: Vec<_> = (0..100u8)
        .map(|number| {
            let registry = server.registry.clone();
            tokio::spawn(async move {
                let data = noise(200_000 + usize::from(number), number);
                let stream = registry.dial("edge-1", Target::Kubelet).await.unwrap();
                let (length, sum) = exchange(stream, &data).await.unwrap();
                assert_eq!(length, data.len());
                assert_eq!(sum, Sha256::digest(&data).to_vec());
            })
        })
        .collect();
    for stream in streams {
        soon("every stream is done", stream).await.unwrap();
    }
    eventually("no stream is left", || server.registry.streams() == 0).await;
}

#[tokio::test]
async fn a_reader_that_stalls_stops_nobody_else() {
    let world = World::new();
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    // The first byte says what the connection is for.
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        if tcp.read_u8().await.unwrap() == b'e' {
            return echo(tcp).await;
        }
        let block = vec![7; 64 * 1024];
        while let Ok(count) = tcp.write(&block).await {
            WRITTEN.fetch_add(count, Ordering::Relaxed);
        }
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;

    // Ten streams that nobody reads, until kubelet itself is held back.
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
        stream.write_all(b"s").await.unwrap();
        stalled.push(stream);
    }
    let mut before = usize::MAX;
    while WRITTEN.load(Ordering::Relaxed) != before || before == 0 {
        before = WRITTEN.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let data = noise(1_000_000, 3);
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"e").await.unwrap();
    let (length, sum) = soon("the other stream is served", exchange(stream, &data)).await.unwrap();
    assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
    assert_eq!(WRITTEN.load(Ordering::Relaxed), before);

    // What waited is still whole.
    let mut block = vec![0; 500_000];
    soon("the stalled stream goes on", stalled[0].read_exact(&mut block)).await.unwrap();
    assert!(block.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn the_newer_connection_of_a_node_replaces_the_older_and_outlives_its_end() {
    let world = World::new();
    let (old_kubelet, _kubelet) =
        kubelet(|mut tcp| async move { tcp.write_all(b"old").await.unwrap() }).await;
    let (new_kubelet, _kubelet2) =
        kubelet(|mut tcp| async move { tcp.write_all(b"new").await.unwrap() }).await;
    let server = world.server().await;
    let (old_stop, old) = start(world.agent("edge-1", server.address, old_kubelet));
    server.connected("edge-1").await;
    let since = server.registry.statuses()[0].remote_address.clone();
    // The old one does not come back by itself while the new one is looked at.
    old_stop.cancel();
    let (_stop, _new) = start(world.agent("edge-1", server.address, new_kubelet));
    eventually("the new one is registered", || {
        server.registry.statuses().first().is_some_and(|status| status.remote_address != since)
    })
    .await;
    soon("the old agent has ended", old).await.unwrap();
    let mut answer = String::new();
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    soon("the new kubelet answers", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "new");
}

#[tokio::test]
async fn two_live_agents_of_one_node_leave_exactly_one_session() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _first = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let session = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    let _second = start(world.agent("edge-1", server.address, address));
    // The old session's streams end with it.
    let (mut reader, _writer) = tokio::io::split(session);
    let mut buffer = [0; 8];
    assert!(soon("the old stream ends", reader.read(&mut buffer)).await.is_err());
    assert_eq!(server.registry.statuses().len(), 1);
    let data = noise(100_000, 9);
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(soon("the new one serves", exchange(stream, &data)).await.unwrap().0, data.len());
}

/// Connects as an agent would; gives the connection after the WebSocket handshake.
async fn knock(
    world: &World,
    server: SocketAddr,
    certificate: &TestCertificate,
    change: impl FnOnce(&mut http::Request<()>),
) -> Result<(), String> {
    let pem = world.write("knock.pem", certificate);
    let tls = yurt_node::pki::client_config(&world.folder.path().join("ca.crt"), &pem, &pem).unwrap();
    let tcp = TcpStream::connect(server).await.unwrap();
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).unwrap();
    let stream =
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let url = format!("wss://{}{}", names::TUNNEL_SERVER_NAME, yurt_api::tunnel::PATH);
    let mut request = url.into_client_request().unwrap();
    let protocol = http::HeaderValue::from_static(yurt_api::tunnel::SUBPROTOCOL);
    request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
    change(&mut request);
    match tokio_tungstenite::client_async(request, stream).await {
        Ok(_) => Ok(()),
        Err(tungstenite::Error::Http(response)) => Err(response.status().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn only_certificates_of_nodes_get_in() {
    let world = World::new();
    let server = world.server().await;
    let knock = |certificate: TestCertificate| {
        let (world, address) = (&world, server.address);
        async move { soon("an answer", knock(world, address, &certificate, |_| {})).await }
    };
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    assert_eq!(knock(world.cluster_ca.node("edge-1")).await, Ok(()));
    // Neither an administrator, nor somebody who only calls himself a node, nor a foreign node.
    assert!(knock(world.cluster_ca.issue("admin", &["system:masters"], &[], client.clone())).await.is_err());
    assert!(knock(world.cluster_ca.issue("system:node:edge-1", &[], &[], client)).await.is_err());
    assert!(knock(TestCa::new("other").node("edge-1")).await.is_err());
    // A serving certificate is no client certificate.
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let serving = world.cluster_ca.issue("system:node:edge-1", &["system:nodes"], &[], serving);
    assert!(knock(serving).await.is_err());
    assert_eq!(server.registry.statuses(), []);
}

#[tokio::test]
async fn requests_that_are_not_an_agents_are_refused() {
    let world = World::new();
    let server = world.server().await;
    let node = world.cluster_ca.node("edge-1");
    let origin = |request: &mut http::Request<()>| {
        request
            .headers_mut()
            .insert(http::header::ORIGIN, http::HeaderValue::from_static("https://example.org"));
    };
    assert_eq!(knock(&world, server.address, &node, origin).await, Err("403 Forbidden".into()));
    let path = |request: &mut http::Request<()>| *request.uri_mut() = "wss://x/other".parse().unwrap();
    assert_eq!(knock(&world, server.address, &node, path).await, Err("404 Not Found".into()));
    let protocol = |request: &mut http::Request<()>| {
        let other = http::HeaderValue::from_static("v4.channel.k8s.io");
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, other);
    };
    assert_eq!(knock(&world, server.address, &node, protocol).await, Err("400 Bad Request".into()));
}

#[tokio::test]
async fn the_agent_connects_to_kubelet_and_to_nothing_else() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let (forbidden, _other) = kubelet(|_| async { panic!("the agent went where it must not") }).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let error = server.registry.dial("edge-1", Target::Address(forbidden)).await.unwrap_err();
    assert!(matches!(error, DialError::Rejected { code: OpenErrorCode::NotAllowed, .. }), "{error}");
    server.registry.dial("edge-1", Target::Address(address)).await.unwrap();
}

#[tokio::test]
async fn a_kubelet_that_is_down_is_an_answer_and_not_a_wait() {
    let world = World::new();
    let (address, kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    kubelet.abort();
    let _ = kubelet.await;
    let error = soon("an answer", server.registry.dial("edge-1", Target::Kubelet)).await.unwrap_err();
    assert!(matches!(error, DialError::Rejected { code: OpenErrorCode::Refused, .. }), "{error}");
    let error = server.registry.dial("edge-2", Target::Kubelet).await.unwrap_err();
    assert!(matches!(error, DialError::NotConnected(_)), "{error}");
}

#[tokio::test]
async fn the_agent_comes_back_when_its_server_was_killed() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let port = server.address;
    let _agent = start(world.agent("edge-1", port, address));
    server.connected("edge-1").await;
    server.kill().await;
    let server = world.server_on(port).await;
    server.connected("edge-1").await;
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(exchange(stream, b"again").await.unwrap().0, 5);
}

#[tokio::test]
async fn a_session_that_still_answers_survives_the_loss_of_the_link() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (link, state) = watch::channel(LinkState::Online);
    let config = AgentConfig { link: Some(state), ..world.agent("edge-1", server.address, address) };
    let _agent = start(config);
    server.connected("edge-1").await;
    let before = server.registry.statuses()[0].remote_address.clone();
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    for state in [LinkState::Offline, LinkState::Online] {
        link.send(state).unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    }
    assert_eq!(server.registry.statuses()[0].remote_address, before);
}

#[tokio::test]
async fn open_streams_end_at_once_when_the_agent_is_killed() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let config = world.agent("edge-1", server.address, address);
    // In a runtime of its own, which can end as abruptly as a process.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(agent::run(config, CancellationToken::new()));
    server.connected("edge-1").await;
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut buffer = [0; 1];
    stream.read_exact(&mut buffer).await.unwrap();

    runtime.shutdown_background();
    let killed = Instant::now();
    assert!(soon("the stream fails", stream.read(&mut buffer)).await.is_err());
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    eventually("the session is gone", || server.registry.statuses().is_empty()).await;
}

#[tokio::test]
async fn the_agent_waits_for_the_ca_that_appears_later() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let late = world.folder.path().join("late-ca.crt");
    let config = AgentConfig { ca_file: late.clone(), ..world.agent("edge-1", server.address, address) };
    let _agent = start(config);
    tokio::task::yield_now().await;
    assert_eq!(server.registry.statuses(), []);
    std::fs::write(late, &world.tunnel_ca.pem).unwrap();
    server.connected("edge-1").await;
}

#[tokio::test]
async fn the_agent_does_not_talk_to_a_server_of_another_ca() {
    let world = World::new();
    let server = world.server().await;
    let foreign = world.folder.path().join("foreign.crt");
    std::fs::write(&foreign, TestCa::new("tunnel").pem).unwrap();
    let pem = world.write("node.pem", &world.cluster_ca.node("edge-1"));
    let tls = yurt_node::pki::client_config(&foreign, &pem, &pem).unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).unwrap();
    let error = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn the_agent_says_goodbye_when_it_stops() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (stop, agent) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stop.cancel();
    soon("the agent ends", agent).await.unwrap();
    let error = soon("the stream ends", stream.read_u8()).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    eventually("the session is gone", || server.registry.statuses().is_empty()).await;
}

// ── Redirected connections ──────────────────────────────────────────────────────────────────────────────────────

const KUBELET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 100)), 10250);

async fn intercept(server: &Server, original: fn(&TcpStream) -> io::Result<SocketAddr>) -> SocketAddr {
    let (_, endpoints) = watch::channel(Some(Endpoints::from([(KUBELET, "edge-1")])));
    let intercept = Intercept::new(server.registry.clone(), endpoints, original);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = intercept.run(listener, server.connections.clone());
    server.tasks.part("the listener for redirected connections", serve);
    address
}

#[tokio::test]
async fn a_redirected_connection_reaches_the_node_it_was_meant_for() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let data = noise(3_000_000, 5);
    let tcp = TcpStream::connect(entry).await.unwrap();
    let (length, sum) = soon("everything is back", exchange(tcp, &data)).await.unwrap();
    assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_is_reset() {
    let world = World::new();
    let server = world.server().await;
    let cases: [fn(&TcpStream) -> io::Result<SocketAddr>; 3] = [
        // No agent is connected.
        |_| Ok(KUBELET),
        // Somebody who found the port.
        |tcp| tcp.local_addr(),
        |_| Err(io::ErrorKind::NotFound.into()),
    ];
    for original in cases {
        let entry = intercept(&server, original).await;
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_redirected_connection_is_reset_when_the_agent_dies() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (stop, agent) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    tcp.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'x');
    stop.cancel();
    soon("the agent ends", agent).await.unwrap();
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A kubelet that says one byte, then `stalls` or reads until its connection ends, and counts the ends.
async fn quiet_kubelet(stalls: bool) -> (SocketAddr, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let (address, task) = kubelet(move |mut tcp| {
        let ended = count.clone();
        async move {
            tcp.write_all(b"x").await.unwrap();
            if stalls {
                // Nothing is read; only the loss of the connection ends it.
                let _ = tcp.ready(tokio::io::Interest::ERROR).await;
            } else {
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    (address, ended, task)
}

/// Closes as a process does that is killed with data unread.
fn reset(tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn a_followed_log_ends_at_kubelet_when_its_caller_goes() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(false).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let go: [fn(TcpStream); 2] = [drop, reset];
    for (number, go) in go.into_iter().enumerate() {
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        assert_eq!(soon("the first line", tcp.read_u8()).await.unwrap(), b'x');
        go(tcp);
        eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) == number + 1).await;
        eventually("no stream is left", || server.registry.streams() == 0).await;
    }
}

#[tokio::test]
async fn a_caller_who_is_cut_off_ends_a_stream_that_is_full() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(true).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');
    // `kubectl cp` to a container that reads nothing: until nothing more can be sent.
    let block = vec![7; 64 * 1024];
    let stuck = Duration::from_millis(300);
    while tokio::time::timeout(stuck, tcp.write_all(&block)).await.is_ok() {}
    reset(tcp);
    eventually("no stream is left", || server.registry.streams() == 0).await;
    eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_caller_who_said_everything_and_is_cut_off_ends_the_stream() {
    let world = World::new();
    // Reads everything, and goes on for ever: an exec of `sleep` with its input closed.
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        tcp.read_to_end(&mut Vec::new()).await.unwrap();
        tcp.write_all(b"x").await.unwrap();
        let _ = tcp.ready(tokio::io::Interest::ERROR).await;
        ENDED.fetch_add(1, Ordering::Relaxed);
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    tcp.write_all(b"input").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(soon("the answer", tcp.read_u8()).await.unwrap(), b'x');
    reset(tcp);
    eventually("no stream is left", || server.registry.streams() == 0).await;
    eventually("kubelet's connection ends", || ENDED.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn an_agent_that_connects_anew_ends_open_streams_at_both_ends() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(false).await;
    let server = world.server().await;
    let (_stop, _old) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');

    // As after a change of the node's address: the server has not noticed that the old session is dead.
    let (_stop, _new) = start(world.agent("edge-1", server.address, address));
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) >= 1).await;
    eventually("the node can be reached again", || !server.registry.statuses().is_empty()).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');
}
