//! TLS of the listeners: the serving certificate (`certificate`), and client certificates, which are asked for, proven
//! in the handshake and judged after it (`request::authenticate`).

use std::sync::Arc;

use rustls::{Error, ServerConfig};
use yurt_node::{pki, verify};

use crate::certificate::InstalledCertificate;

/// TLS 1.2 and 1.3, h2 and HTTP/1.1, any client certificate or none.
///
/// # Errors
///
/// When the crypto provider does not support these versions.
pub(crate) fn server_config(certificate: Arc<InstalledCertificate>) -> Result<ServerConfig, Error> {
    let provider = pki::provider();
    let verifier = verify::any_client_certificate(&provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
