//! A request to a node's kubelet through the tunnel: one stream, one TLS session, one HTTP/1.1 request.
//!
//! **Whose kubelet is it?** The stream leads to the node by construction: the agent at its end proved the
//! node's identity with the node's own certificate (mutual TLS), and dials nothing but that node's kubelet.
//! The certificate that kubelet then shows adds to that where it can: when it chains to the cluster's CA
//! (`serverTLSBootstrap: true`) it has to be this node's. kubeadm's default is a self-signed one, which
//! proves nothing and is therefore accepted here, and on no other path; the API server does the same
//! without `--kubelet-certificate-authority`.
//!
//! **Who are we?** So nothing may be said that is worth stealing by whoever is there: the server proves itself with a
//! client certificate ([`Identity`]), in a handshake of TLS 1.3 and of this connection alone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Empty;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::Agents;
use super::authorise::Permit;
use super::identity::Identity;
use super::status::ApiError;

/// How long the TLS handshake may take over a slow link.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Makes requests to kubelets.
pub(super) struct Kubelets {
    agents: Agents,
    tls: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

impl Kubelets {
    /// `identity` is what kubelets are shown; `cluster_ca` a PEM bundle, or nothing where none is mounted.
    ///
    /// # Errors
    ///
    /// When the bundle cannot be used.
    pub(super) fn new(
        agents: Agents,
        identity: Arc<Identity>,
        cluster_ca: Option<&[u8]>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(cluster_ca.unwrap_or_default()) {
            let certificate =
                certificate.map_err(|error| rustls::Error::General(format!("cluster CA: {error}")))?;
            roots.add(certificate)?;
        }
        let verifier = Arc::new(KubeletVerifier { roots, provider: provider.clone() });
        // Every kubelet speaks 1.3, which hides the client's certificate from those who only listen.
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(identity.clone());
        // A resumed session would go on with the certificate of its beginning.
        tls.resumption = Resumption::disabled();
        Ok(Self { agents, tls: Arc::new(tls), identity })
    }

    /// What kubelets are shown.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The connected agents.
    pub(super) fn agents(&self) -> &Agents {
        &self.agents
    }

    /// Sends what `permit` permits to kubelet of `node`, with `headers` of the caller's request. The
    /// response's body ends the kubelet request when it is dropped.
    ///
    /// # Errors
    ///
    /// [`ApiError::Dial`], [`ApiError::Unavailable`] or [`ApiError::Internal`].
    pub(super) async fn send(
        &self,
        permit: &Permit,
        method: http::Method,
        node: &str,
        container: &str,
        headers: http::HeaderMap,
    ) -> Result<Response<KubeletBody>, ApiError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            ApiError::Unavailable(format!("kubelet of node {node:?} {what} through the tunnel: {error}"))
        };
        let mut request = Request::builder()
            .method(method)
            .uri(permit.target().kubelet_uri(container))
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiError::Internal(error.to_string()))?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(node).map_err(|error| ApiError::Internal(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        // The caller's own credential is not for kubelet either.
        request.headers_mut().remove(header::AUTHORIZATION);

        self.identity.check(SystemTime::now())?;
        let name = ServerName::try_from(node.to_owned())
            .map_err(|error| ApiError::Internal(format!("node name {node:?}: {error}")))?;
        let stream = self.agents.dial(node).await?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed("gave no TLS session", &error)),
            Err(_) => return Err(failed("gave no TLS session", &format_args!("nothing in {HANDSHAKE:?}"))),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed("took no request", &error))?;
        // Owned by the body: a caller who goes away ends the request at kubelet at once, also while
        // kubelet has nothing to say (`logs -f` of a quiet container).
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to kubelet ended");
            }
        }));
        let response =
            sender.send_request(request).await.map_err(|error| failed("did not answer", &error))?;
        Ok(response.map(|body| KubeletBody { body, _connection: connection }))
    }
}

/// kubelet's answer, with the connection it comes over.
pub(super) struct KubeletBody {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl HttpBody for KubeletBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// See the module's page.
#[derive(Debug)]
struct KubeletVerifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for KubeletVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        );
        match chain {
            Ok(()) if is_of_node(end_entity, &server_name.to_str()) => Ok(ServerCertVerified::assertion()),
            Ok(()) => Err(CertificateError::NotValidForName.into()),
            Err(error) => {
                tracing::trace!(%error, "kubelet's certificate is not of the cluster's CA");
                Ok(ServerCertVerified::assertion())
            }
        }
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

/// Every certificate of the signer `kubernetes.io/kubelet-serving` has `CN=system:node:NAME`.
fn is_of_node(certificate: &CertificateDer<'_>, node: &str) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
        parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .and_then(|name| name.strip_prefix("system:node:"))
            == Some(node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::api::testing::{Authority, serving_certificate};

    fn verdict(cluster: &Authority, issuer: &Authority, common_name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(cluster.der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (chain, _key) = serving_certificate(issuer, common_name, &["edge-1".into()]);
        KubeletVerifier { roots, provider }
            .verify_server_cert(
                &chain[0],
                &[],
                &ServerName::try_from("edge-1").unwrap(),
                &[],
                UnixTime::now(),
            )
            .map(|_| ())
    }

    #[test]
    fn the_clusters_certificate_has_to_be_the_nodes_and_a_self_signed_one_is_taken() {
        let cluster = Authority::new("cluster");
        let wrong_name = Err(CertificateError::NotValidForName.into());
        verdict(&cluster, &cluster, "system:node:edge-1").unwrap();
        assert_eq!(verdict(&cluster, &cluster, "system:node:edge-2"), wrong_name);
        assert_eq!(verdict(&cluster, &cluster, "edge-1"), wrong_name);
        verdict(&cluster, &Authority::new("edge-1-ca@1700000000"), "edge-1@1700000000").unwrap();
    }
}
