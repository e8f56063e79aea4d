//! Connections of the endpoint: TLS, HTTP/1.1 and HTTP/2, limits.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use yurt_node::accept::http::{Buffers, Http, HttpError, Protocol};
use yurt_node::accept::tls::{Deadlines, HandshakeError, handshake};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};
use yurt_node::{pki, verify};

use super::{Api, Peer};
use crate::server::connections::Connections;

/// The node's kubelet asks for `/healthz` here, and several people may sit behind one address: a quarter for each.
const LIMITS: Limits = Limits { total: 1024, per_peer: Some(256), over: Over::Wait };
/// How long a ClientHello may take.
const HELLO: Duration = Duration::from_secs(5);
/// The words of an exec's command are in a request's head.
const HTTP: Http = Http {
    first_head: Duration::from_secs(15),
    idle: Duration::from_secs(15),
    head_bytes: 64 * 1024,
    streams: 128,
    buffers: Buffers::USUAL,
};
/// After how much silence a connection is probed: also one that has left HTTP.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a connection ended badly.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("it broke: {0}")]
    Broken(#[from] std::io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// TLS settings: `certificate` is asked at every handshake. Every caller is asked for a certificate; whose it is, and
/// whether it still counts, is decided at every request (`authenticate`).
///
/// # Errors
///
/// When the crypto provider cannot do TLS.
pub(super) fn tls_config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = pki::provider();
    let verifier = verify::any_client_certificate(&provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Takes connections until `connections` are told to stop.
pub(super) async fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    connections: Connections,
) {
    let stop = connections.stop().clone();
    accept(listener, Places::new(LIMITS), stop, |accepted| {
        let (api, tls, all) = (api.clone(), tls.clone(), connections.clone());
        connections.start(async move {
            let peer = accepted.peer;
            if let Err(error) = connection(api, accepted, tls, all).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    })
    .await;
}

async fn connection(
    api: Arc<Api>,
    accepted: Accepted,
    tls: Arc<ServerConfig>,
    connections: Connections,
) -> Result<(), ConnectionError> {
    let Accepted { stream, peer, at, place: _place } = accepted;
    prepare(&stream)?;
    let deadlines = Deadlines { hello: at + HELLO, handshake: at + HTTP.first_head };
    let stream = handshake(stream, tls, deadlines).await?;
    let session = stream.get_ref().1;
    let protocol = Protocol::of(session);
    let certificates = session.peer_certificates().unwrap_or_default().to_vec();
    let peer = Arc::new(Peer { address: peer, certificates });
    let tasks = connections.tasks().clone();
    let answer = move |request| {
        let (api, peer, connections) = (api.clone(), peer.clone(), connections.clone());
        async move { api.answer(request, &peer, &connections).await }
    };
    Ok(HTTP.serve(stream, protocol, at, &tasks, answer).await?)
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}
