//! Agent and server over TLS on loopback, with a kubelet that is a plain TCP server.

mod handshake;
mod peers;
mod redirected;
mod sessions;
mod streams;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::FutureExt;
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
use yurt_api::tunnel::{OpenErrorCode, ServerId, Target};

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
            found: None,
            connections: agent::Connections::default(),
        }
    }

    async fn server(&self) -> Server {
        self.server_on("127.0.0.1:0".parse().unwrap()).await
    }

    async fn server_on(&self, address: SocketAddr) -> Server {
        self.server_of("master-node", address).await
    }

    /// One of several, by its node.
    async fn server_of(&self, name: &str, address: SocketAddr) -> Server {
        let listener = bind(address, false).unwrap();
        let address = listener.local_addr().unwrap();
        let client_ca = Arc::<ClientCa>::default();
        client_ca.set(&self.cluster_ca.pem).unwrap();
        let certificate = MountedCertificate::in_folder(self.folder.path());
        certificate.reload().unwrap();
        let id = ServerId::new(name).unwrap();
        let registry = Registry::new(id.clone());
        let identity = Identity::new(self.folder.path().join("ca.crt"), certificate.clone());
        let (peers, asked) = (Peers::new(id, identity.clone()), Asked::new(registry.clone()));
        let agents = Agents {
            registry: registry.clone(),
            certificate,
            client_ca,
            identity,
            asked: asked.clone(),
            settings: Settings::server(),
        };
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let tasks = Tasks::new(stop.clone());
        let connections = Connections::new(tasks.clone(), kill.clone());
        tasks.part("the listener for agents", agents::run(Arc::new(agents), listener, connections.clone()));
        let (found, servers) = watch::channel(Found::new());
        tasks.part("the sessions with other servers", peers.clone().run(servers, connections.clone()));
        let ways = Ways::new(registry.clone(), peers.clone());
        Server { registry, address, stop, kill, tasks, connections, peers, asked, ways, found }
    }
}

struct Server {
    registry: Arc<Registry>,
    address: SocketAddr,
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: Tasks,
    connections: Connections,
    peers: Arc<Peers>,
    asked: Arc<Asked>,
    ways: Ways,
    found: watch::Sender<Found>,
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
    let task = AbortOnDropHandle::new(tokio::spawn(agent::run(config, stop.clone()).map(drop)));
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
