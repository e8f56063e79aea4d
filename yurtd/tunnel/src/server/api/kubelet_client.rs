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
//! client certificate ([`ClientCertificate`]), in a handshake of TLS 1.3 and of this connection alone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use yurt_node::certificate::node_of;
use yurt_node::verify::Shown;
use yurt_node::{pki, verify};

use super::authorise::Grant;
use super::client_certificate::ClientCertificate;
use super::status::ApiError;
use super::tunnel::Tunnel;
use crate::server::registry::DialError;

/// How long the TLS handshake may take over a slow link.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How much of kubelet's error text is passed on, and how long it may take.
const ERROR_TEXT: usize = 16 * 1024;
/// See [`ERROR_TEXT`].
const ERROR_TIME: Duration = Duration::from_secs(5);

/// Makes requests to kubelets.
pub(super) struct Kubelets {
    tunnel: Arc<dyn Tunnel>,
    tls: Arc<ClientConfig>,
    certificate: Arc<ClientCertificate>,
}

impl Kubelets {
    /// `certificate` is what kubelets are shown; `cluster_ca` a PEM bundle, or nothing where none is mounted.
    ///
    /// # Errors
    ///
    /// When the bundle cannot be used.
    pub(super) fn new(
        tunnel: Arc<dyn Tunnel>,
        certificate: Arc<ClientCertificate>,
        cluster_ca: Option<&[u8]>,
    ) -> Result<Self, rustls::Error> {
        let provider = pki::provider();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(cluster_ca.unwrap_or_default()) {
            let certificate =
                certificate.map_err(|error| rustls::Error::General(format!("cluster CA: {error}")))?;
            roots.add(certificate)?;
        }
        let algorithms = provider.signature_verification_algorithms;
        let verifier = verify::server_certificate(&provider, move |shown| judge(shown, &roots, algorithms));
        // Every kubelet speaks 1.3, which hides the client's certificate from those who only listen.
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(certificate.clone());
        // A resumed session would go on with the certificate of its beginning.
        tls.resumption = Resumption::disabled();
        Ok(Self { tunnel, tls: Arc::new(tls), certificate })
    }

    /// Sends what `grant` grants to kubelet of `node`, with `headers` of the caller's request. The
    /// response's body ends the kubelet request when it is dropped.
    ///
    /// # Errors
    ///
    /// [`ApiError::Dial`], [`ApiError::Unavailable`] or [`ApiError::Internal`].
    pub(super) async fn send(
        &self,
        grant: &Grant,
        method: http::Method,
        node: &str,
        container: &str,
        headers: http::HeaderMap,
    ) -> Result<Response<KubeletBody>, ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(grant.target().kubelet_uri(container))
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiError::Internal(error.to_string()))?;
        *request.headers_mut() = headers;
        // The caller's own credential is not for kubelet either.
        request.headers_mut().remove(header::AUTHORIZATION);
        let (response, _) = self.ask(node, request).await?;
        Ok(response)
    }

    /// Asks kubelet of `node` for something of its own that is for nobody's eyes. Also gives the certificate that it has
    /// shown.
    ///
    /// # Errors
    ///
    /// [`KubeletError`].
    pub(super) async fn probe(
        &self,
        node: &str,
        path: Probe,
    ) -> Result<(Response<KubeletBody>, Option<CertificateDer<'static>>), KubeletError> {
        let request = Request::get(path.path()).body(Empty::new());
        self.ask(node, request.map_err(|error| KubeletError::Ours(error.to_string()))?).await
    }

    async fn ask(
        &self,
        node: &str,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<(Response<KubeletBody>, Option<CertificateDer<'static>>), KubeletError> {
        let host = HeaderValue::from_str(node).map_err(|error| KubeletError::Ours(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        self.certificate.check(SystemTime::now()).map_err(KubeletError::NoCertificate)?;
        let name = ServerName::try_from(node.to_owned())
            .map_err(|error| KubeletError::Ours(format!("node name {node:?}: {error}")))?;
        let failed =
            |step: &'static str, why: String| KubeletError::Failed { node: node.to_owned(), step, why };
        let stream = self.tunnel.dial(node).await?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(NO_TLS, error.to_string())),
            Err(_) => return Err(failed(NO_TLS, format!("nothing in {HANDSHAKE:?}"))),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed("took no request", error.to_string()))?;
        // Owned by the body: a caller who goes away ends the request at kubelet at once, also while
        // kubelet has nothing to say (`logs -f` of a quiet container).
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to kubelet ended");
            }
        }));
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed("did not answer", error.to_string()))?;
        Ok((response.map(|body| KubeletBody { body, _connection: connection }), shown))
    }
}

const NO_TLS: &str = "gave no TLS session";

/// What kubelet is asked for to see how it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Probe {
    /// Whether it is well.
    Health,
    /// Some hundred KiB.
    Metrics,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Health => "/healthz",
            Self::Metrics => "/metrics",
        }
    }
}

/// Why kubelet has not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum KubeletError {
    /// There is no way to it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// There is nothing to prove ourselves with.
    #[error("{0}")]
    NoCertificate(ApiError),
    /// It did not do what it should.
    #[error("kubelet of node {node:?} {step} through the tunnel: {why}")]
    Failed {
        /// The node.
        node: String,
        /// What.
        step: &'static str,
        /// Why.
        why: String,
    },
    /// A fault on this side.
    #[error("{0}")]
    Ours(String),
}

impl From<KubeletError> for ApiError {
    fn from(error: KubeletError) -> Self {
        match error {
            KubeletError::Dial(error) => Self::Dial(error),
            KubeletError::NoCertificate(error) => error,
            KubeletError::Failed { .. } => Self::Unavailable(error.to_string()),
            KubeletError::Ours(message) => Self::Internal(message),
        }
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

/// kubelet's errors are plain text; the caller wants a Status.
pub(super) async fn error_of(answer: Response<KubeletBody>) -> ApiError {
    let code = answer.status();
    let text = tokio::time::timeout(ERROR_TIME, Limited::new(answer.into_body(), ERROR_TEXT).collect()).await;
    let text = match text {
        Ok(Ok(text)) => String::from_utf8_lossy(&text.to_bytes()).trim().to_owned(),
        _ => String::new(),
    };
    let message = if text.is_empty() { format!("kubelet answered {code}") } else { text };
    if code.is_client_error() || code.is_server_error() {
        // kubelet knows the tunnel server, not the caller: its 401 and 403 are about our own rights.
        if matches!(code, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return ApiError::Internal(format!("kubelet answered {code} to the tunnel server: {message}"));
        }
        return ApiError::Kubelet { code, message };
    }
    ApiError::Internal(format!("unexpected answer of kubelet ({code}): {message}"))
}

/// Whether the certificate may be this kubelet's; see the module's page.
fn judge(
    shown: &Shown<'_>,
    roots: &RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<(), rustls::Error> {
    let parsed = ParsedCertificate::try_from(shown.end_entity)?;
    let chain = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        roots,
        shown.intermediates,
        shown.now,
        algorithms.all,
    );
    match chain {
        // The signer `kubernetes.io/kubelet-serving` issues nothing else than a node's user and group.
        Ok(()) if node_of(shown.end_entity).is_ok_and(|it| it.node == shown.name.to_str()) => Ok(()),
        Ok(()) => Err(CertificateError::NotValidForName.into()),
        Err(error) => {
            tracing::trace!(%error, "kubelet's certificate is not of the cluster's CA");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;
    use rustls_pki_types::UnixTime;
    use yurt_fakes::pki::TestCa;

    use super::*;

    fn verdict(cluster: &TestCa, issuer: &TestCa, user: &str, groups: &[&str]) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(cluster.pem.as_bytes()).unwrap()).unwrap();
        let certificate = issuer.issue(user, groups, &["edge-1"], ExtendedKeyUsagePurpose::ServerAuth);
        let shown = Shown {
            end_entity: &certificate.der,
            intermediates: &[],
            name: &ServerName::try_from("edge-1").unwrap(),
            now: UnixTime::now(),
        };
        judge(&shown, &roots, pki::provider().signature_verification_algorithms)
    }

    #[test]
    fn the_clusters_certificate_has_to_be_the_nodes_and_a_self_signed_one_is_taken() {
        let cluster = TestCa::new("cluster");
        let nodes: &[&str] = &["system:nodes"];
        let wrong_name = Err(CertificateError::NotValidForName.into());
        verdict(&cluster, &cluster, "system:node:edge-1", nodes).unwrap();
        assert_eq!(verdict(&cluster, &cluster, "system:node:edge-2", nodes), wrong_name);
        assert_eq!(verdict(&cluster, &cluster, "system:node:edge-1", &[]), wrong_name);
        assert_eq!(verdict(&cluster, &cluster, "edge-1", nodes), wrong_name);
        verdict(&cluster, &TestCa::new("edge-1-ca@1700000000"), "edge-1@1700000000", &[]).unwrap();
    }
}
