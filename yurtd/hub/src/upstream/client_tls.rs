//! TLS towards the API servers: who they are, who we are, and noticing that kubelet has rotated its certificate.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use yurt_node::stamp::Stamp;

use super::{UpstreamConfig, UpstreamError};

/// Certificate and key may be two files, and be caught between the two.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Which credential a connection carries. They never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CredentialKind {
    /// The node's client certificate.
    Node,
    /// None: requests bring their bearer tokens.
    Bearer,
}

/// HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http2,
    Http1,
}

pub(super) struct ClientTls {
    certificate: PathBuf,
    key: PathBuf,
    roots: Arc<RootCertStore>,
    bearer: Pair,
    node: Mutex<Node>,
}

/// One configuration a protocol; each remembers sessions, so that reconnecting is short.
#[derive(Clone)]
struct Pair {
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

struct Node {
    pair: Pair,
    stamp: Option<Stamp>,
    /// A file that cannot be used is looked at again after this.
    again_at: Option<Instant>,
    /// Counts certificates.
    generation: u64,
}

impl ClientTls {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, UpstreamError> {
        let fault =
            |reason: String| UpstreamError::Request(format!("{}: {reason}", config.ca_file.display()));
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(&config.ca_file).map_err(|error| fault(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| fault(error.to_string()))?;
            roots.add(certificate).map_err(|error| fault(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(fault("it holds no certificate".to_owned()));
        }
        let roots = Arc::new(roots);
        let bearer = pair(&roots, None).map_err(|error| fault(error.to_string()))?;
        let node = Node { pair: bearer.clone(), stamp: None, again_at: None, generation: 0 };
        let tls = Self {
            certificate: config.client_certificate.clone(),
            key: config.client_key.clone(),
            roots,
            bearer,
            node: Mutex::new(node),
        };
        tls.refresh();
        Ok(tls)
    }

    /// The configuration for a new connection and its generation.
    pub(super) fn config(&self, kind: CredentialKind, protocol: Protocol) -> (Arc<ClientConfig>, u64) {
        let (pair, generation) = match kind {
            CredentialKind::Bearer => (self.bearer.clone(), 0),
            CredentialKind::Node => {
                self.refresh();
                let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
                (node.pair.clone(), node.generation)
            }
        };
        match protocol {
            Protocol::Http2 => (pair.http2, generation),
            Protocol::Http1 => (pair.http1, generation),
        }
    }

    /// Loads the node's certificate if its file has changed, and returns its generation. A file that is being
    /// replaced right now keeps the one before.
    pub(super) fn refresh(&self) -> u64 {
        let now = Stamp::of(&self.certificate);
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        let too_early = node.again_at.is_some_and(|at| Instant::now() < at);
        if now.is_none() || now == node.stamp || too_early {
            return node.generation;
        }
        match self.load() {
            Ok(pair) => {
                if node.generation > 0 {
                    tracing::info!(path = %self.certificate.display(), "the node's certificate was rotated");
                }
                *node = Node { pair, stamp: now, again_at: None, generation: node.generation + 1 };
            }
            Err(error) => {
                tracing::warn!(path = %self.certificate.display(), %error, "the node's certificate cannot be used");
                node.again_at = Some(Instant::now() + AGAIN_AFTER);
            }
        }
        node.generation
    }

    fn load(&self) -> io::Result<Pair> {
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.certificate)
            .map_err(io::Error::other)?
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(io::Error::other)?;
        pair(&self.roots, Some((chain, key))).map_err(io::Error::other)
    }
}

type Credential = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(roots: &Arc<RootCertStore>, credential: Option<Credential>) -> Result<Pair, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots));
    let mut config = match credential {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut http2 = config.clone();
    http2.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Pair { http2: Arc::new(http2), http1: Arc::new(config) })
}
