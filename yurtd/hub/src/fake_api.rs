//! A small API server for tests: a table of objects behind list and watch, in both encodings, over real TLS and
//! HTTP/2. It can forget its history, refuse callers and cut its connections.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::upstream::{RequestBody, UpstreamConfig};
use crate::wire::proto::{self, Writer};
use crate::wire::{Encoding, Event, EventType, FrameDecoder, Status, TypeMeta, frame};

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// One object. Every kind has labels and data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) app: String,
    pub(crate) version: u64,
    pub(crate) data: String,
}

impl Object {
    pub(crate) fn json(&self) -> String {
        let namespace = match &*self.namespace {
            "" => String::new(),
            namespace => format!("\"namespace\":\"{namespace}\","),
        };
        format!(
            "{{\"metadata\":{{\"name\":\"{}\",{namespace}\"uid\":\"{}\",\"resourceVersion\":\"{}\",\"labels\":\
             {{\"app\":\"{}\"}}}},\"data\":{{\"k\":\"{}\"}}}}",
            self.name, self.uid, self.version, self.app, self.data
        )
    }

    pub(crate) fn proto(&self) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            let mut out = Writer::default();
            out.bytes(1, key.as_bytes());
            out.bytes(2, value.as_bytes());
            out.finish()
        };
        let mut meta = Writer::default();
        meta.bytes(1, self.name.as_bytes());
        meta.bytes(2, b"");
        meta.bytes(3, self.namespace.as_bytes());
        meta.bytes(4, b"");
        meta.bytes(5, self.uid.as_bytes());
        meta.bytes(6, self.version.to_string().as_bytes());
        meta.varint(7, 0);
        meta.bytes(11, &entry("app", &self.app));
        let mut out = Writer::default();
        out.bytes(1, &meta.finish());
        out.bytes(2, &entry("k", &self.data));
        out.finish()
    }

    fn body(&self, encoding: Encoding) -> Vec<u8> {
        if encoding.is_protobuf() { self.proto() } else { self.json().into_bytes() }
    }
}

#[derive(Debug, Clone)]
struct Change {
    version: u64,
    plural: String,
    before: Option<Object>,
    after: Option<Object>,
    bookmark: bool,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) query: String,
    pub(crate) certificate: bool,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
struct State {
    version: u64,
    oldest: u64,
    objects: BTreeMap<(String, String, String), Object>,
    changes: Vec<Change>,
    seen: Vec<Seen>,
    refused_tokens: Vec<String>,
    answer: Option<u16>,
    refusing: bool,
    connections: usize,
    page: usize,
}

struct Shared {
    state: Mutex<State>,
    version: watch::Sender<usize>,
    cut: Mutex<CancellationToken>,
}

/// The server. Stops when it is dropped.
pub(crate) struct FakeApi {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    issuer: Issuer<'static, KeyPair>,
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop.cancel();
        self.shared.cut.lock().unwrap().cancel();
    }
}

impl FakeApi {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "fake CA");
        let certificate = ca.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        let issuer = Issuer::new(ca, key);

        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![server.der().clone()],
                PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { version: 100, page: usize::MAX, ..State::default() }),
            version: watch::channel(0).0,
            cut: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared), stop.clone()));
        let api = Self { shared, address, dir, stop, issuer };
        api.rotate_client_certificate();
        api
    }

    /// Writes a new client certificate for the node, as kubelet does.
    pub(crate) fn rotate_client_certificate(&self) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:node:edge-1");
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let text = certificate.pem() + &key.serialize_pem();
        let temporary = self.dir.path().join("client.new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.client_file()).unwrap();
    }

    fn client_file(&self) -> PathBuf {
        self.dir.path().join("client.pem")
    }

    pub(crate) fn config(&self) -> UpstreamConfig {
        UpstreamConfig {
            servers: vec![format!("https://{}", self.address)],
            ca_file: self.dir.path().join("ca.crt"),
            client_certificate: self.client_file(),
            client_key: self.client_file(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn change(&self, change: Change) {
        let mut state = self.state();
        state.changes.push(change);
        let count = state.changes.len();
        drop(state);
        self.shared.version.send_replace(count);
    }

    /// Creates or changes an object and returns it. `app` is its label.
    pub(crate) fn put(&self, plural: &str, namespace: &str, name: &str, app: &str, data: &str) -> Object {
        let mut state = self.state();
        state.version += 1;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let before = state.objects.get(&key).cloned();
        let uid =
            before.as_ref().map_or_else(|| format!("uid-{}", state.version), |before| before.uid.clone());
        let after = Object {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
            app: app.to_owned(),
            version: state.version,
            data: data.to_owned(),
        };
        state.objects.insert(key, after.clone());
        let version = state.version;
        drop(state);
        self.change(Change {
            version,
            plural: plural.to_owned(),
            before,
            after: Some(after.clone()),
            bookmark: false,
        });
        after
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let before = state.objects.remove(&key);
        drop(state);
        assert!(before.is_some(), "{key:?} does not exist");
        self.change(Change { version, plural: plural.to_owned(), before, after: None, bookmark: false });
    }

    /// Sends a bookmark to every watch. Something of another resource has moved the version on.
    pub(crate) fn bookmark(&self) -> u64 {
        let version = {
            let mut state = self.state();
            state.version += 10;
            state.version
        };
        self.change(Change { version, plural: String::new(), before: None, after: None, bookmark: true });
        version
    }

    pub(crate) fn version(&self) -> u64 {
        self.state().version
    }

    /// Forgets history: every watch from before now is answered with 410.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
    }

    /// A backup was restored: versions start over.
    pub(crate) fn restore_backup(&self) {
        let mut state = self.state();
        state.version = 50;
        state.oldest = 0;
        state.changes.clear();
        let mut version = 10;
        for object in state.objects.values_mut() {
            version += 1;
            object.version = version;
        }
        drop(state);
        self.shared.version.send_replace(0);
    }

    pub(crate) fn page_size(&self, objects: usize) {
        self.state().page = objects;
    }

    pub(crate) fn refuse_token(&self, token: &str) {
        self.state().refused_tokens.push(token.to_owned());
    }

    /// Every request is answered with this status.
    pub(crate) fn answer_with(&self, code: Option<u16>) {
        self.state().answer = code;
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    pub(crate) fn lists(&self) -> usize {
        self.seen().iter().filter(|seen| !seen.query.contains("watch=true")).count()
    }

    pub(crate) fn watches(&self) -> usize {
        self.seen().iter().filter(|seen| seen.query.contains("watch=true")).count()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state().connections
    }

    /// Ends every connection and takes no more.
    pub(crate) fn cut(&self) {
        self.state().refusing = true;
        self.cut_connections();
    }

    /// Ends every connection.
    pub(crate) fn cut_connections(&self) {
        let mut cut = self.shared.cut.lock().unwrap();
        cut.cancel();
        *cut = CancellationToken::new();
    }

    /// Takes connections again.
    pub(crate) fn restore(&self) {
        self.state().refusing = false;
    }

    /// The list that the server would send now.
    pub(crate) fn list(&self, plural: &str, kind: &str, selector: &str, encoding: Encoding) -> Bytes {
        let state = self.state();
        let objects: Vec<_> = selected(&state, plural, None, selector).cloned().collect();
        encode_list(&objects, kind, state.version, None, encoding)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let tcp = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        if shared.state.lock().unwrap().refusing {
            continue;
        }
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        let cut = shared.cut.lock().unwrap().clone();
        tokio::spawn(async move {
            shared.state.lock().unwrap().connections += 1;
            tokio::select! {
                () = cut.cancelled() => {}
                () = serve(tcp, tls, Arc::clone(&shared)) => {}
            }
            shared.state.lock().unwrap().connections -= 1;
        });
    }
}

async fn serve(tcp: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = tls.accept(tcp).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().is_some();
    let cut = shared.cut.lock().unwrap().clone();
    let service = service_fn(move |request| {
        let (shared, cut) = (Arc::clone(&shared), cut.clone());
        async move { Ok::<_, Infallible>(answer(&shared, &cut, certificate, request)) }
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

fn full(code: u16, encoding: Encoding, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert(CONTENT_TYPE, encoding.content_type().parse().unwrap());
    response
}

fn refusal(code: u16, reason: &str, encoding: Encoding) -> Response<Body> {
    let mut response = full(code, encoding, Status::new(code, reason, "no").encode(encoding));
    response.headers_mut().insert("audit-id", "fake".parse().unwrap());
    response
}

fn answer(
    shared: &Arc<Shared>,
    cut: &CancellationToken,
    certificate: bool,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path() == "/upgrade" {
        return upgrade(request);
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let header = |name| request.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let accept = header(ACCEPT).unwrap_or_default();
    let encoding = if accept.contains("protobuf") { Encoding::Protobuf } else { Encoding::Json };
    let token = header(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let mut state = shared.state.lock().unwrap();
    let path = request.uri().path().to_owned();
    state.seen.push(Seen { query: query.clone(), certificate, token: token.clone() });
    if token.as_ref().is_none_or(|token| state.refused_tokens.contains(token)) && !certificate {
        return refusal(401, "Unauthorized", encoding);
    }
    if let Some(code) = state.answer {
        return refusal(code, "InternalError", encoding);
    }
    let parts: Vec<_> = path.trim_start_matches("/api/v1/").split('/').collect();
    let (namespace, plural) = match parts[..] {
        ["namespaces", namespace, plural] => (Some(namespace.to_owned()), plural.to_owned()),
        [plural] => (None, plural.to_owned()),
        _ => return refusal(404, "NotFound", encoding),
    };
    let kind = match &*plural {
        "pods" => "Pod",
        "nodes" => "Node",
        "secrets" => "Secret",
        "configmaps" => "ConfigMap",
        "numberless" => "Numberless",
        "jsonly" if encoding.is_protobuf() => return refusal(406, "NotAcceptable", Encoding::Json),
        "jsonly" => "JsonOnly",
        _ => return refusal(404, "NotFound", encoding),
    };
    let parameter = |name: &str| parameter(&query, name);
    let selector = parameter("labelSelector").or(parameter("fieldSelector")).unwrap_or_default();
    let version: u64 = parameter("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    if parameter("watch").is_some() {
        if version < state.oldest {
            return refusal(410, "Expired", encoding);
        }
        let start = state.changes.iter().position(|change| change.version > version);
        let start = start.unwrap_or(state.changes.len());
        drop(state);
        let (sender, receiver) = mpsc::channel(16);
        let watcher = Watcher { plural, namespace, selector, kind, encoding, at: start };
        tokio::spawn(watcher.run(Arc::clone(shared), cut.clone(), sender));
        let stream = futures::StreamExt::map(ReceiverStream::new(receiver), |frame| Ok(Frame::data(frame)));
        let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, encoding.watch_content_type().parse().unwrap());
        return response;
    }
    if parameter("resourceVersionMatch").as_deref() == Some("Exact") && version != state.version {
        return refusal(410, "Expired", encoding);
    }
    let all: Vec<_> = selected(&state, &plural, namespace.as_deref(), &selector).cloned().collect();
    let from: usize = parameter("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
    let to = from.saturating_add(state.page).min(all.len());
    let next = (to < all.len()).then(|| to.to_string());
    if plural == "numberless" {
        let text =
            r#"{"kind":"NumberlessList","apiVersion":"v1","metadata":{"resourceVersion":""},"items":[]}"#;
        return full(200, Encoding::Json, text.into());
    }
    full(200, encoding, encode_list(&all[from..to], kind, state.version, next, encoding))
}

fn upgrade(request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", "echo".parse().unwrap());
    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
    response
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.replace("%3D", "=").replace("%2C", ","))
}

fn matches(object: &Object, namespace: Option<&str>, selector: &str) -> bool {
    namespace.is_none_or(|namespace| namespace == object.namespace)
        && match selector.split_once('=') {
            Some(("app", app)) => object.app == app,
            Some(("metadata.name", name)) => object.name == name,
            Some(("spec.nodeName", _)) => true,
            Some(other) => panic!("{other:?}"),
            None => true,
        }
}

fn selected<'s>(
    state: &'s State,
    plural: &str,
    namespace: Option<&str>,
    selector: &str,
) -> impl Iterator<Item = &'s Object> {
    let mut objects: Vec<_> = state
        .objects
        .iter()
        .filter(|((of, ..), object)| of == plural && matches(object, namespace, selector))
        .map(|(_, object)| object)
        .collect();
    objects.sort_by_key(|object| {
        crate::wire::object::object_key(
            (!object.namespace.is_empty()).then_some(&*object.namespace),
            &object.name,
        )
    });
    objects.into_iter()
}

fn encode_list(
    objects: &[Object],
    kind: &str,
    version: u64,
    next: Option<String>,
    encoding: Encoding,
) -> Bytes {
    if encoding.is_protobuf() {
        let mut meta = Writer::default();
        meta.bytes(1, b"");
        meta.bytes(2, version.to_string().as_bytes());
        meta.bytes(3, next.unwrap_or_default().as_bytes());
        let mut raw = Writer::default();
        raw.bytes(1, &meta.finish());
        objects.iter().for_each(|object| raw.bytes(2, &object.proto()));
        proto::envelope(&TypeMeta::new("v1", &format!("{kind}List")), &raw.finish())
    } else {
        let next = next.map(|next| format!(",\"continue\":\"{next}\"")).unwrap_or_default();
        let items: Vec<_> = objects.iter().map(Object::json).collect();
        format!(
            "{{\"kind\":\"{kind}List\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{version}\"{next}}},\
             \"items\":[{}]}}\n",
            items.join(",")
        )
        .into()
    }
}

struct Watcher {
    plural: String,
    namespace: Option<String>,
    selector: String,
    kind: &'static str,
    encoding: Encoding,
    at: usize,
}

impl Watcher {
    async fn run(mut self, shared: Arc<Shared>, cut: CancellationToken, frames: mpsc::Sender<Bytes>) {
        let mut version = shared.version.subscribe();
        loop {
            let next = shared.state.lock().unwrap().changes.get(self.at).cloned();
            let Some(change) = next else {
                tokio::select! {
                    () = cut.cancelled() => return,
                    () = frames.closed() => return,
                    changed = version.changed() => if changed.is_err() { return },
                }
                continue;
            };
            self.at += 1;
            if let Some(frame) = self.frame(&change)
                && frames.send(frame).await.is_err()
            {
                return;
            }
        }
    }

    fn frame(&self, change: &Change) -> Option<Bytes> {
        let kind = TypeMeta::new("v1", self.kind);
        if change.bookmark {
            return Some(frame::encode_bookmark(self.encoding, &kind, change.version, false));
        }
        if change.plural != self.plural {
            return None;
        }
        let fits = |object: &&Object| matches(object, self.namespace.as_deref(), &self.selector);
        let before = change.before.as_ref().filter(fits);
        let (event_type, object) = match (before, change.after.as_ref().filter(fits)) {
            (None, Some(object)) => (EventType::Added, object.clone()),
            (Some(_), Some(object)) => (EventType::Modified, object.clone()),
            (Some(object), None) => {
                (EventType::Deleted, Object { version: change.version, ..object.clone() })
            }
            (None, None) => return None,
        };
        Some(frame::encode_event(self.encoding, event_type, &kind, &object.body(self.encoding)))
    }
}

/// An empty request body.
pub(crate) fn no_body() -> RequestBody {
    http_body_util::Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Reads frames of a local watch, one event at a time.
pub(crate) fn decode(encoding: Encoding, frame: &Bytes) -> Event {
    let mut decoder = FrameDecoder::new(encoding);
    decoder.push(frame);
    let event = frame::decode_event(encoding, &decoder.next_frame().unwrap().unwrap()).unwrap();
    assert!(decoder.is_clean(), "more than one frame an item");
    event
}
