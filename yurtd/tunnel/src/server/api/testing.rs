//! What the tests of this module need of the world: certificates, an API server, a kubelet.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyPair,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::AbortOnDropHandle;

use super::status::Body;

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate authority.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    certificate: rcgen::Certificate,
}

impl Authority {
    pub(crate) fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { params, key, certificate }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// Signs a request as the signer of client certificates does.
    pub(crate) fn issue(&self, request: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&Issuer::from_params(&self.params, &self.key)).unwrap().pem()
    }

    fn sign(&self, mut params: CertificateParams, common_name: &str, organizations: &[&str]) -> Chain {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        // Short of rcgen's default of the year 4096, so that a test can be after it.
        params.not_after = rcgen::date_time_ymd(2900, 1, 1);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

pub(crate) fn client_certificate(authority: &Authority, user: &str, groups: &[&str]) -> Chain {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    authority.sign(params, user, groups)
}

pub(crate) fn serving_certificate(authority: &Authority, common_name: &str, names: &[String]) -> Chain {
    let mut params = CertificateParams::new(names.to_vec()).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    authority.sign(params, common_name, &[])
}

/// An API server that knows tokens, rules and pods.
pub(crate) struct FakeApiServer {
    pub(crate) client: kube::Client,
    pub(crate) state: Arc<ApiState>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
pub(crate) struct ApiState {
    /// Token → user.
    pub(crate) tokens: Mutex<BTreeMap<String, String>>,
    /// `user verb resource/subresource` that are allowed.
    pub(crate) rules: Mutex<Vec<String>>,
    /// Names of existing pods and the Pod.
    pub(crate) pods: Mutex<BTreeMap<String, Value>>,
    /// The client CA's bundle.
    pub(crate) client_ca: Mutex<String>,
    /// How many TokenReviews there were.
    pub(crate) reviews: Mutex<u32>,
    /// Approves and signs certificate signing requests, when it is there.
    pub(crate) signer: Mutex<Option<Arc<Authority>>>,
    /// The requests, by their names.
    pub(crate) csrs: Mutex<BTreeMap<String, Value>>,
}

impl FakeApiServer {
    pub(crate) async fn start() -> Self {
        let state = Arc::<ApiState>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let state = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { Ok::<_, Infallible>(state.answer(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        Self { client, state, _task: AbortOnDropHandle::new(task) }
    }
}

impl ApiState {
    /// A request as it stands: issued as soon as there is a signer.
    fn csr(&self, name: &str) -> Option<Value> {
        let mut csr = self.csrs.lock().unwrap().get(name)?.clone();
        if let Some(signer) = &*self.signer.lock().unwrap() {
            let pem = STANDARD.decode(csr["spec"]["request"].as_str().unwrap()).unwrap();
            let certificate = signer.issue(std::str::from_utf8(&pem).unwrap());
            csr["status"] = json!({
                "conditions": [{"type": "Approved", "status": "True"}],
                "certificate": STANDARD.encode(certificate)
            });
        }
        Some(csr)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().unwrap_or_default().contains("watch=true");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        if path.ends_with("/tokenreviews") {
            *self.reviews.lock().unwrap() += 1;
            let token = document["spec"]["token"].as_str().unwrap().to_owned();
            let user = self.tokens.lock().unwrap().get(&token).cloned();
            let status = match user {
                Some(user) => json!({"authenticated": true, "user": {"username": user, "groups": ["shop"]}}),
                None => json!({"authenticated": false}),
            };
            return reply(200, &with_status(document, status));
        }
        if path.ends_with("/subjectaccessreviews") {
            let asked = &document["spec"]["resourceAttributes"];
            let part = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
            let rule = format!(
                "{} {} {}/{}",
                document["spec"]["user"].as_str().unwrap(),
                part("verb"),
                part("resource"),
                part("subresource")
            );
            let allowed = self.rules.lock().unwrap().contains(&rule);
            return reply(200, &with_status(document, json!({"allowed": allowed})));
        }
        if path.ends_with("/configmaps") {
            if watch {
                // An open watch with nothing to say would need a streaming body; ending it is allowed too.
                return reply(200, &json!({}));
            }
            let bundle = self.client_ca.lock().unwrap().clone();
            return reply(
                200,
                &json!({
                    "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                    "items": [{
                        "metadata": {
                            "name": "extension-apiserver-authentication", "namespace": "kube-system",
                            "resourceVersion": "1"
                        },
                        "data": {"client-ca-file": bundle}
                    }]
                }),
            );
        }
        if path.contains("/certificatesigningrequests") {
            if method == Method::POST {
                let mut csrs = self.csrs.lock().unwrap();
                let prefix = document["metadata"]["generateName"].as_str().unwrap();
                let name = format!("{prefix}{}", csrs.len());
                let mut document = document.clone();
                document["metadata"]["name"] = name.as_str().into();
                csrs.insert(name, document.clone());
                return reply(201, &document);
            }
            return reply(200, &self.csr(path.rsplit('/').next().unwrap()).unwrap());
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        match self.pods.lock().unwrap().get(name) {
            Some(pod) => reply(200, pod),
            None => reply(
                404,
                &json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                    "reason": "NotFound", "message": format!("pods {name:?} not found")
                }),
            ),
        }
    }
}

fn with_status(mut document: Value, status: Value) -> Value {
    document["status"] = status;
    document
}

fn reply(code: u16, document: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(document.to_string().into()))
        .unwrap()
}

/// A kubelet with a self-signed certificate, as kubeadm has it.
pub(crate) struct FakeKubelet {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) state: Arc<KubeletState>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
pub(crate) struct KubeletState {
    /// `METHOD path?query` of every request, and the user of the client's certificate.
    pub(crate) requests: Mutex<Vec<(String, String)>>,
    /// WebSocket subprotocols that the container runtime knows.
    pub(crate) subprotocols: Mutex<Vec<&'static str>>,
    /// Lines of the log; the log ends when the sender is dropped.
    pub(crate) log: Mutex<Option<mpsc::Receiver<&'static str>>>,
    /// Told when the body of a log was given up.
    pub(crate) log_ended: Arc<tokio::sync::Notify>,
    /// The next answer, instead of all this.
    pub(crate) refusal: Mutex<Option<(u16, &'static str)>>,
}

impl FakeKubelet {
    /// Lets in whom `clients` has issued a certificate, and nobody else.
    pub(crate) async fn start(clients: &Authority) -> Self {
        let authority = Authority::new("edge-1-ca@1700000000");
        let (chain, key) = serving_certificate(&authority, "edge-1@1700000000", &["edge-1".into()]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(clients.der()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<KubeletState>::default();
        let served = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (state, acceptor) = (served.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let user = user(&stream.get_ref().1.peer_certificates().unwrap()[0]);
                    let service = service_fn(move |request| {
                        let (state, user) = (state.clone(), user.clone());
                        async move { Ok::<_, Infallible>(state.answer(request, user)) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Self { address, state, _task: AbortOnDropHandle::new(task) }
    }
}

fn user(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    parsed.subject().to_string()
}

/// Notifies when it is dropped.
struct Ended(Arc<tokio::sync::Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl KubeletState {
    fn answer(&self, mut request: Request<Incoming>, user: String) -> Response<Body> {
        // What a compromised node could take away and use.
        assert!(request.headers().get(header::AUTHORIZATION).is_none());
        self.requests.lock().unwrap().push((format!("{} {}", request.method(), request.uri()), user));
        let text = |code: u16, text: &'static str| {
            let mut response = Response::new(super::full(text));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        };
        if let Some((code, message)) = self.refusal.lock().unwrap().take() {
            return text(code, message);
        }
        if request.uri().path().starts_with("/containerLogs/") {
            assert_eq!(request.method(), Method::GET);
            let lines = self.log.lock().unwrap().take().unwrap();
            let ended = Ended(self.log_ended.clone());
            let frames = tokio_stream::wrappers::ReceiverStream::new(lines).map(move |line| {
                let _held = &ended;
                Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(line.as_bytes())))
            });
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            response.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
            return response;
        }
        let headers = request.headers();
        let known = self.subprotocols.lock().unwrap().clone();
        let offered =
            headers.get(header::SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap().to_owned());
        let offered = offered.unwrap_or_default();
        // As containerd's: an offer with anything unknown in it is refused as a whole.
        if !offered.split(", ").all(|offer| known.contains(&offer)) {
            return text(403, "unknown subprotocol");
        }
        let accept = derive_accept_key(headers[header::SEC_WEBSOCKET_KEY].as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            // Echoes bytes: the tunnel server decodes no WebSocket frame either.
            let stream = TokioIo::new(upgrade.await.unwrap());
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        Response::builder()
            .status(101)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .header(header::SEC_WEBSOCKET_PROTOCOL, offered)
            .body(super::full(Bytes::new()))
            .unwrap()
    }
}
