//! How servers prove to each other that they are: with the serving certificate that all of them have, in both directions.
//!
//! Whoever has its key can be the server for every agent already, so nothing more has to be kept secret for peers. The
//! certificate is for servers alone by its extended key usage, and is judged as such also where it is a client's: of the
//! tunnel CA, and with the tunnel's one name. See "Servers prove themselves to each other with the certificate that they
//! serve" in `docs/decisions.md`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use yurt_api::names;
use yurt_node::certificate::node_of;
use yurt_node::pki::{self, MountedCertificate, TlsError};

/// What this server shows to its peers, and what it judges theirs by.
#[derive(Debug)]
pub(in crate::server) struct Identity {
    ca_file: PathBuf,
    certificate: Arc<MountedCertificate>,
}

/// Why a certificate is not a server's.
#[derive(Debug, thiserror::Error)]
enum NotAServer {
    #[error(transparent)]
    Ca(#[from] TlsError),
    #[error(transparent)]
    Certificate(#[from] Error),
    #[error("the tunnel has no name")]
    Name,
    #[error("it is a node's")]
    Node,
}

impl Identity {
    /// `ca_file` is a PEM file with the tunnel CA, which may appear later.
    pub(in crate::server) fn new(ca_file: PathBuf, certificate: Arc<MountedCertificate>) -> Arc<Self> {
        Arc::new(Self { ca_file, certificate })
    }

    /// TLS towards a peer.
    ///
    /// # Errors
    ///
    /// [`TlsError`] while there is no CA.
    pub(super) fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let roots = pki::read_roots(&self.ca_file)?;
        let mut config = ClientConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(self.certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Accepts who `nodes` accepts, and servers. A certificate that reads like a node's is for `nodes` alone to judge.
    pub(in crate::server) fn or_nodes(
        self: &Arc<Self>,
        nodes: Arc<dyn ClientCertVerifier>,
    ) -> Arc<dyn ClientCertVerifier> {
        Arc::new(NodesAndServers { nodes, servers: self.clone() })
    }

    /// Whether a certificate, whose key its holder has proven to have, is a server's; until when, if so.
    pub(in crate::server) fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
        let (end_entity, intermediates) = chain.split_first()?;
        self.check(end_entity, intermediates, UnixTime::now()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(end_entity).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), NotAServer> {
        if node_of(end_entity).is_ok() {
            return Err(NotAServer::Node);
        }
        let roots = pki::read_roots(&self.ca_file)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = pki::provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms.all)?;
        let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).map_err(|_| NotAServer::Name)?;
        Ok(verify_server_name(&parsed, &name)?)
    }
}

/// See [`Identity::or_nodes`]. That the key is held is the verifier's of nodes to see, for both.
struct NodesAndServers {
    nodes: Arc<dyn ClientCertVerifier>,
    servers: Arc<Identity>,
}

impl fmt::Debug for NodesAndServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodesAndServers").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for NodesAndServers {
    fn client_auth_mandatory(&self) -> bool {
        self.nodes.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.nodes.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.nodes.verify_client_cert(end_entity, intermediates, now).or_else(|refusal| {
            match self.servers.check(end_entity, intermediates, now) {
                Ok(()) => Ok(ClientCertVerified::assertion()),
                Err(why) => {
                    tracing::trace!(%why, "not a server's certificate either");
                    Err(refusal)
                }
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.nodes.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.nodes.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.nodes.supported_verify_schemes()
    }
}
