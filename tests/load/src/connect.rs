//! An HTTP/2 connection to the server that is tried.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// As large as client-go's: a list of some megabytes must not wait for windows.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A server, and how its certificate is verified.
pub(crate) struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Target {
    /// Reads the CA's certificates.
    pub(crate) fn new(address: SocketAddr, name: &str, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(ca).with_context(|| format!("cannot read {}", ca.display()))?
        {
            roots.add(certificate?).with_context(|| format!("{} has a bad certificate", ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.to_owned()).context("the name is no server's")?;
        Ok(Self { address, name, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), stream).await.context("TLS failed")?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2 failed")?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
