//! One server, and TLS connections to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{Access, AccessError, ApiError, DEADLINE, chain};
use crate::dial::{self, Liveness};
use crate::pki;

/// A watch says nothing for minutes; its link may be gone without a word.
const LIVENESS: Liveness = Liveness {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(90),
};
/// Of what was read and not yet taken, and of the head of an answer.
const MAX_BUFFER: usize = 32 << 10;
/// Remembered sessions make a new connection short; there is one server.
const SESSIONS: usize = 2;

/// Where it is, by which name its certificate must know it, and with what we prove who we are.
pub(super) struct Server {
    host: String,
    port: u16,
    authority: HeaderValue,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Server {
    pub(super) fn new(access: &Access) -> Result<Self, AccessError> {
        let no_server = || AccessError::Server(access.server.clone());
        let uri: http::Uri = access.server.parse().map_err(|_| no_server())?;
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(no_server()) };
        let port = uri.port_u16().unwrap_or(443);
        let bare = host.trim_matches(['[', ']']).to_owned();
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: HeaderValue::try_from(format!("{host}:{port}")).map_err(|_| no_server())?,
            name: ServerName::try_from(bare).map_err(|_| no_server())?,
            tls: TlsConnector::from(Arc::new(tls(access)?)),
        })
    }

    /// A request of JSON or nothing.
    pub(super) fn request(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("yurtd/", env!("CARGO_PKG_VERSION")));
        let body = match body {
            Some((content_type, body)) => {
                request = request.header(CONTENT_TYPE, content_type);
                body
            }
            None => Bytes::new(),
        };
        request
            .body(Full::new(body))
            .map_err(|error| ApiError::Unreadable(format!("{path:?} is no path: {error}")))
    }

    pub(super) async fn connect(&self) -> Result<Connection, ApiError> {
        let lost = |error: &(dyn std::error::Error + 'static)| ApiError::Unreachable(chain(error));
        let socket =
            dial::connect(&self.host, self.port, DEADLINE, LIVENESS).await.map_err(|error| lost(&error))?;
        let stream = self.tls.connect(self.name.clone(), socket).await.map_err(|error| lost(&error))?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| lost(&error))?;
        // How it ends is seen by whoever waits for an answer.
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(error = chain(&error), "the connection to the API server ended");
            }
        });
        Ok(Connection { sender, _driver: AbortOnDropHandle::new(driver) })
    }
}

/// A connection, closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Sends a request; one that never left comes back with the error.
    pub(super) async fn try_send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, (Option<Request<Full<Bytes>>>, hyper::Error)> {
        if let Err(error) = self.sender.ready().await {
            return Err((Some(request), error));
        }
        self.sender.try_send_request(request).await.map_err(|mut error| {
            let unsent = error.take_message();
            (unsent, error.into_error())
        })
    }
}

fn tls(access: &Access) -> Result<ClientConfig, AccessError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&access.ca, "CA certificate")? {
        roots.add(certificate)?;
    }
    let key = PrivateKeyDer::from_pem_slice(&access.key)
        .map_err(|error| AccessError::Pem { what: "private key", reason: error.to_string() })?;
    let mut config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&access.certificate, "client certificate")?, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| AccessError::Pem { what, reason: error.to_string() })?;
    if found.is_empty() { Err(AccessError::Pem { what, reason: "there is none".into() }) } else { Ok(found) }
}
