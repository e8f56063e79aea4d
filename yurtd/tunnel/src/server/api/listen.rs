//! Connections: TLS, HTTP/1.1 and HTTP/2, limits, and the end of it all.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Api, Peer};

/// Connections at a time; more wait in the backlog.
const CONNECTIONS: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a request's header may take, and how long a connection may be idle.
const HEADER: Duration = Duration::from_secs(15);
/// Size of a request's header: the words of an exec's command are in it.
const HEADER_BYTES: u32 = 64 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// After how much silence a connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long connections and streams may go on after the stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The two stops of a server, and everything that has to heed them.
#[derive(Clone)]
pub(super) struct Lifetime {
    /// Take nothing new.
    pub stop: CancellationToken,
    /// Let go.
    pub kill: CancellationToken,
    /// Connections and upgraded streams.
    pub tasks: TaskTracker,
}

/// TLS settings: `certificate` is asked at every handshake.
///
/// # Errors
///
/// When the crypto provider cannot do TLS.
pub(super) fn tls_config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AskForCertificate { provider }))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until `stop`, then until everything has ended or [`DRAIN`] is over.
pub(super) async fn serve(api: Arc<Api>, listener: TcpListener, tls: ServerConfig, lifetime: Lifetime) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = lifetime.stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((socket, address, slot)) => {
                let connection =
                    connection(api.clone(), acceptor.clone(), socket, address, lifetime.clone(), slot);
                lifetime.tasks.spawn(connection);
            }
            // Out of file descriptors, mostly: what is open has to end first.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    lifetime.tasks.close();
    if tokio::time::timeout(DRAIN, lifetime.tasks.wait()).await.is_err() {
        tracing::info!(left = lifetime.tasks.len(), "ending the connections that are left");
        lifetime.kill.cancel();
        lifetime.tasks.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (socket, address) = listener.accept().await?;
    socket.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    SockRef::from(&socket).set_tcp_keepalive(&probes)?;
    Ok((socket, address, slot))
}

async fn connection(
    api: Arc<Api>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
    lifetime: Lifetime,
    _slot: OwnedSemaphorePermit,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS session"),
        Err(_) => return tracing::debug!(%address, "no TLS session within {HANDSHAKE:?}"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let peer = Arc::new(Peer { address, certificates });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(HEADER_BYTES as usize)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES);
    let service = service_fn(|request| {
        let (api, peer, lifetime) = (api.clone(), peer.clone(), lifetime.clone());
        async move { Ok::<_, std::convert::Infallible>(api.answer(request, &peer, &lifetime).await) }
    });
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifetime.kill.cancelled() => return,
        () = lifetime.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = lifetime.kill.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, error, "connection ended");
    }
}

/// Asks every caller for a certificate and has him prove that he holds its key. Whose certificate it is,
/// and whether it still counts, is decided at every request (`authenticate`).
#[derive(Debug)]
struct AskForCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
