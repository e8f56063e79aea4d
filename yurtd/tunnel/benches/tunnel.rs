//! One bulk stream and round trips through the tunnel over WebSocket and TLS on loopback, against a plain TLS
//! connection in the same run: `cargo bench -p yurtd --bench tunnel`.
//!
//! Absolute figures differ from machine to machine; compare within one run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use yurt_api::tunnel::{ServerId, Target};
use yurt_tunnel::mux::session::{self, Settings};
use yurt_tunnel::mux::{End, OpenRequest, Session, TunnelStream, pipe, socket};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const BULK: usize = 1 << 30;
const ROUNDS: usize = 3;
const ECHOES: usize = 5000;
const BLOCK: usize = 64 * 1024;

fn main() -> Result<(), Failure> {
    // `cargo bench` and `cargo test --benches` pass flags that mean nothing here.
    let quick = std::env::args().any(|argument| argument == "--test");
    let bulk = if quick { BULK / 64 } else { BULK };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(bulk))
}

async fn run(bulk: usize) -> Result<(), Failure> {
    let tls = Tls::new()?;
    println!("| way | bulk MiB/s (median of {ROUNDS}) | CPU s/GiB, both ends | round trip p50 | p99 |");
    println!("|---|---|---|---|---|");

    let (near, far) = tls.connection().await?;
    let (down, (near, far)) = median(near, far, bulk).await?;
    report("plain TLS", Some(down), round_trips(near, far).await?);

    let (session, mut requests, _drivers) = tunnel(&tls).await?;
    let (near, far) = open(&session, &mut requests).await?;
    let (down, (near, far)) = median(near, far, bulk).await?;
    report("tunnel, server to agent", Some(down), round_trips(near, far).await?);

    let (near, far) = open(&session, &mut requests).await?;
    let (up, (far, near)) = median(far, near, bulk).await?;
    report("tunnel, agent to server", Some(up), round_trips(far, near).await?);

    let (near, far) = ends(&session, &mut requests).await?;
    let (down, (near, far)) = median(near, far, bulk).await?;
    report("TCP to TCP through the tunnel, down", Some(down), round_trips(near, far).await?);

    let (near, far) = ends(&session, &mut requests).await?;
    let (up, (far, near)) = median(far, near, bulk).await?;
    report("TCP to TCP through the tunnel, up", Some(up), round_trips(far, near).await?);

    // Keystrokes while a copy fills the same session.
    let (bulk_near, mut bulk_far) = open(&session, &mut requests).await?;
    let copy: JoinHandle<()> = tokio::spawn(async move {
        let mut bulk_near = bulk_near;
        let block = vec![7; BLOCK];
        while bulk_near.write_all(&block).await.is_ok() {}
    });
    let drain: JoinHandle<()> = tokio::spawn(async move {
        let mut block = vec![0; BLOCK];
        while bulk_far.read(&mut block).await.is_ok_and(|count| count > 0) {}
    });
    let (near, far) = open(&session, &mut requests).await?;
    report("tunnel, while another stream copies", None, round_trips(near, far).await?);
    copy.abort();
    drain.abort();
    Ok(())
}

/// What moving bytes came to. CPU time says more than the rate when the machine is not idle.
struct Rate {
    mib_per_second: f64,
    cpu_per_gib: f64,
}

fn report(way: &str, rate: Option<Rate>, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    let rate = rate.map_or_else(
        || "– | –".to_owned(),
        |rate| format!("{:.0} | {:.2}", rate.mib_per_second, rate.cpu_per_gib),
    );
    println!("| {way} | {rate} | {:.3} ms | {:.3} ms |", at(50), at(99));
}

/// User and system time of this process, in seconds.
fn cpu() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Fields 14 and 15; the second is a name in parentheses, which may have spaces in it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 / 100.0)
}

/// Moves `bulk` bytes from `near` to `far` some times.
async fn median<A, B>(mut near: A, mut far: B, bulk: usize) -> Result<(Rate, (A, B)), Failure>
where
    A: AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + Unpin + Send + 'static,
{
    let mut rates = Vec::new();
    let cpu_before = cpu()?;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let writer = tokio::spawn(async move {
            let block = vec![7; BLOCK];
            for _ in 0..bulk / BLOCK {
                near.write_all(&block).await?;
            }
            near.flush().await?;
            Ok::<_, std::io::Error>(near)
        });
        let reader = tokio::spawn(async move {
            let mut block = vec![0; BLOCK];
            let mut left = bulk;
            while left > 0 {
                let want = left.min(BLOCK);
                let count = far.read(&mut block[..want]).await?;
                if count == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                left -= count;
            }
            Ok::<_, std::io::Error>(far)
        });
        near = writer.await??;
        far = reader.await??;
        rates.push(bulk as f64 / 1024.0 / 1024.0 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let gib = (bulk * ROUNDS) as f64 / (1 << 30) as f64;
    let rate = Rate { mib_per_second: rates[ROUNDS / 2], cpu_per_gib: (cpu()? - cpu_before) / gib };
    Ok((rate, (near, far)))
}

async fn round_trips<A, B>(mut near: A, mut far: B) -> Result<Vec<Duration>, Failure>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        while far.read_exact(&mut buffer).await.is_ok() {
            if far.write_all(&buffer).await.is_err() || far.flush().await.is_err() {
                break;
            }
        }
    });
    let mut times = Vec::with_capacity(ECHOES);
    let mut buffer = [7; 64];
    for _ in 0..ECHOES {
        let started = Instant::now();
        near.write_all(&buffer).await?;
        near.flush().await?;
        near.read_exact(&mut buffer).await?;
        times.push(started.elapsed());
    }
    echo.abort();
    Ok(times)
}

struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    listener: TcpListener,
}

impl Tls {
    fn new() -> Result<Self, Failure> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["localhost".to_owned()])?;
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &ca_key))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let versions = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            acceptor: Arc::new(server).into(),
            connector: Arc::new(client).into(),
            listener: TcpListener::from_std(listener)?,
        })
    }

    async fn connection(
        &self,
    ) -> Result<(server::TlsStream<TcpStream>, client::TlsStream<TcpStream>), Failure> {
        let (client, accepted) =
            tokio::try_join!(TcpStream::connect(self.listener.local_addr()?), self.listener.accept())?;
        let server = accepted.0;
        socket::prepare_session(&client)?;
        socket::prepare_session(&server)?;
        let name = ServerName::try_from("localhost")?;
        let (server, client) =
            tokio::try_join!(self.acceptor.accept(server), self.connector.connect(name, client))?;
        Ok((server, client))
    }
}

type Requests = tokio::sync::mpsc::Receiver<OpenRequest>;

async fn tunnel(tls: &Tls) -> Result<(Session, Requests, [JoinHandle<End>; 2]), Failure> {
    let (server, client) = tls.connection().await?;
    let id = ServerId::new("bench").ok_or("no server id")?;
    let (server, agent) = tokio::join!(session::accept(server, id, Settings::server()), async {
        session::greet(client, Settings::agent()).await?.begin().await
    });
    let (session, _, server_driver) = server?;
    let (_, requests, agent_driver) = agent?;
    Ok((session, requests, [tokio::spawn(server_driver.run()), tokio::spawn(agent_driver.run())]))
}

async fn open(session: &Session, requests: &mut Requests) -> Result<(TunnelStream, TunnelStream), Failure> {
    let accept = async { requests.recv().await.and_then(OpenRequest::accept).ok_or("the agent is gone") };
    let (near, far) = tokio::join!(session.open(Target::Kubelet), accept);
    Ok((near?, far?))
}

/// Two TCP connections with the tunnel between them.
async fn ends(session: &Session, requests: &mut Requests) -> Result<(TcpStream, TcpStream), Failure> {
    let (near, far) = open(session, requests).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut outer = Vec::new();
    for stream in [near, far] {
        let (connected, accepted) = tokio::try_join!(TcpStream::connect(address), listener.accept())?;
        socket::prepare_end(&connected)?;
        socket::prepare_end(&accepted.0)?;
        tokio::spawn(pipe::pipe(accepted.0, stream, pipe::Side::Caller));
        outer.push(connected);
    }
    let (Some(far), Some(near)) = (outer.pop(), outer.pop()) else { return Err("no connections".into()) };
    Ok((near, far))
}
