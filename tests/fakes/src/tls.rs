//! Both sides of TLS, with nothing taken from the process.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki::{TestCa, TestCertificate, Trust};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(trust: &Trust) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for ca in &trust.0 {
        roots.add(ca.clone()).unwrap();
    }
    roots
}

/// Clients show a certificate of `clients`; without one they are let in when `anonymous`.
pub fn acceptor(
    certificate: &TestCertificate,
    clients: &TestCa,
    anonymous: bool,
    alpn: &[&str],
) -> TlsAcceptor {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&clients.into())), provider());
    let verifier = if anonymous { verifier.allow_unauthenticated() } else { verifier };
    let (chain, key) = certificate.chain_and_key();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

pub(crate) fn connector(trust: &Trust, certificate: Option<&TestCertificate>, alpn: &str) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(trust));
    let mut config = match certificate {
        Some(certificate) => {
            let (chain, key) = certificate.chain_and_key();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.into()];
    TlsConnector::from(Arc::new(config))
}
