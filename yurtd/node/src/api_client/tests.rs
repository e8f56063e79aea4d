//! Against a TLS server of a few lines, which wants a client certificate.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use yurt_fakes::pki::TestCa;

use super::*;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct TestServer {
    access: Access,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl TestServer {
    async fn start<F>(answer: fn(Request<Incoming>) -> F) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let ca = TestCa::new("cluster");
        let (server, client) = (ca.server("localhost"), ca.node("edge-1"));
        let mut roots = rustls::RootCertStore::empty();
        let pem = ca.pem.clone();
        roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let provider = crate::pki::provider();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
        let key = rustls_pki_types::pem::PemObject::from_pem_slice(server.key_pem.as_bytes()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    counted.fetch_add(1, Ordering::SeqCst);
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        // As kubelet has it: one file.
        let both = format!("{}{}", client.pem, client.key_pem).into_bytes();
        let access = Access {
            server: format!("https://localhost:{port}"),
            ca: pem.into_bytes(),
            certificate: both.clone(),
            key: both,
        };
        Self { access, connections, _task: AbortOnDropHandle::new(task) }
    }

    fn client(&self) -> ApiClient {
        ApiClient::new(&self.access).unwrap()
    }
}

fn full(code: u16, body: impl Into<Bytes>) -> Answer {
    Response::builder()
        .status(code)
        .header(DATE, "Thu, 01 Jan 2026 00:00:00 GMT")
        .body(Full::new(body.into()).boxed_unsync())
        .unwrap()
}

fn answer_json(code: u16, value: &Value) -> Answer {
    full(code, value.to_string())
}

async fn objects(request: Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (request.method().as_str(), request.uri().path()) {
        ("GET", "/api/v1/nodes/edge-1") => answer_json(200, &json!({"metadata": {"name": "edge-1"}})),
        ("PATCH", "/api/v1/nodes/edge-1") => {
            assert_eq!(request.headers()["content-type"], "application/merge-patch+json");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let code = if body == r#"{"a":1}"# { 200 } else { 400 };
            answer_json(code, &json!({"kind": "Status", "message": "another patch was expected"}))
        }
        ("GET", "/api/v1/pods") => {
            assert!(query.starts_with("fieldSelector=spec.nodeName%3Dedge-1&limit=500&"), "{query}");
            let (metadata, names) = if query.ends_with("&resourceVersion=0") {
                (json!({"resourceVersion": "7", "continue": "a b"}), ["one", "two"])
            } else {
                assert!(query.ends_with("&limit=500&continue=a+b"), "{query}");
                (json!({"resourceVersion": "7"}), ["three", "four"])
            };
            let items = names.map(|name| json!({"metadata": {"name": name, "other": [1]}, "spec": {}}));
            answer_json(200, &json!({"kind": "PodList", "metadata": metadata, "items": items}))
        }
        ("GET", "/busy") => {
            let mut busy = answer_json(429, &json!({"message": "too many requests"}));
            busy.headers_mut().insert(RETRY_AFTER, 3.into());
            busy
        }
        ("GET", "/proxy") => full(502, "<html>Bad Gateway</html>\n"),
        ("GET", "/text") => full(200, "no JSON"),
        ("GET", "/endless") => {
            let endless = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b'x'; 64 << 10]))));
            Response::new(StreamBody::new(endless).boxed_unsync())
        }
        ("GET", "/silent") => std::future::pending().await,
        ("GET", "/version") => full(403, ""),
        _ => answer_json(404, &json!({"kind": "Status", "code": 404, "message": "no such thing"})),
    }
}

#[derive(Debug, Deserialize)]
struct Object {
    metadata: Name,
}

#[derive(Debug, Deserialize)]
struct Name {
    name: String,
}

#[tokio::test]
async fn objects_are_read_patched_and_missed_over_one_connection() {
    let server = TestServer::start(objects).await;
    let client = server.client();
    assert_eq!(client.get::<Object>("/api/v1/nodes/edge-1").await.unwrap().metadata.name, "edge-1");
    assert!(client.find::<Object>("/api/v1/nodes/edge-1").await.unwrap().is_some());
    assert!(client.find::<Object>("/api/v1/nodes/other").await.unwrap().is_none());
    client.merge_patch("/api/v1/nodes/edge-1", &json!({"a": 1})).await.unwrap();
    assert!(client.merge_patch("/api/v1/nodes/edge-1", &json!({"a": 2})).await.is_err());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(client.date().await.unwrap().unwrap(), "Thu, 01 Jan 2026 00:00:00 GMT");
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let server = TestServer::start(objects).await;
    let mut names = Vec::new();
    let each = |pod: Object| names.push(pod.metadata.name);
    let version = server.client().list("/api/v1/pods", "spec.nodeName=edge-1", each).await.unwrap();
    assert_eq!(
        (names, version.as_str()),
        (vec!["one".into(), "two".into(), "three".into(), "four".into()], "7")
    );
}

#[tokio::test]
async fn a_no_says_who_it_is_from_and_when_to_ask_again() {
    let server = TestServer::start(objects).await;
    let client = server.client();
    let busy = client.get::<Value>("/busy").await.unwrap_err();
    assert_eq!(
        busy,
        ApiError::Refused {
            code: StatusCode::TOO_MANY_REQUESTS,
            message: "too many requests".into(),
            retry_after: Some(Duration::from_secs(3)),
        }
    );
    let proxy = client.get::<Value>("/proxy").await.unwrap_err();
    assert_eq!(proxy.to_string(), "<html>Bad Gateway</html> (502 Bad Gateway)");
}

#[tokio::test]
async fn what_is_not_json_or_does_not_end_cannot_be_read() {
    let server = TestServer::start(objects).await;
    for path in ["/text", "/endless"] {
        let error = server.client().get::<Value>(path).await.unwrap_err();
        assert!(matches!(error, ApiError::Unreadable(_)), "{path}: {error}");
    }
    let error = server.client().list("/text", "a=b", |_: Value| {}).await.unwrap_err();
    assert!(matches!(error, ApiError::Unreadable(_)), "{error}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let server = TestServer::start(objects).await;
    let client = server.client();
    client.date().await.unwrap();
    assert!(client.find::<Value>("/none").await.unwrap().is_none());
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let error = client.get::<Value>("/silent").await.unwrap_err();
    assert_eq!(error.to_string(), "cannot be reached: no answer within 10 s");
    assert_eq!(before.elapsed().as_secs(), DEADLINE.as_secs());
}

#[tokio::test]
async fn a_server_that_is_gone_or_another_one_is_not_reached() {
    let server = TestServer::start(objects).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Access { server: format!("https://{free}"), ..server.access.clone() };
    let other_ca = Access { ca: TestCa::new("other").pem.into_bytes(), ..server.access.clone() };
    for (access, why) in [(gone, "refused"), (other_ca, "UnknownIssuer")] {
        let error = ApiClient::new(&access).unwrap().get::<Value>("/version").await.unwrap_err();
        assert!(matches!(&error, ApiError::Unreachable(text) if text.contains(why)), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced() {
    let server = TestServer::start(|_| async {
        let mut last = answer_json(200, &json!({}));
        last.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
        last
    })
    .await;
    let client = server.client();
    for _ in 0..3 {
        client.get::<Value>("/").await.unwrap();
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn credentials_that_are_none_are_an_error_before_anybody_is_asked() {
    let server = TestServer::start(objects).await;
    let refused = |access: Access| ApiClient::new(&access).unwrap_err().to_string();
    let (key, ca) = (b"no key".to_vec(), b"no CA".to_vec());
    assert!(refused(Access { key, ..server.access.clone() }).contains("private key"));
    assert!(refused(Access { ca, ..server.access.clone() }).contains("CA certificate"));
    for address in ["http://localhost:80", "localhost", "https://", ""] {
        assert!(refused(Access { server: address.into(), ..server.access.clone() }).contains("https://"));
    }
    let other = TestCa::new("cluster").node("edge-1").key_pem.into_bytes();
    assert!(ApiClient::new(&Access { key: other, ..server.access.clone() }).is_err());
}

async fn events(request: Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    if !query.contains("watch=true&fieldSelector=metadata.name%3Dedge-1&resourceVersion=7&timeoutSeconds=290")
    {
        return answer_json(400, &json!({"message": query}));
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for line in [
            json!({"type": "ADDED", "object": {"metadata": {"name": "edge-1"}}}),
            json!({"type": "BOOKMARK", "object": {"metadata": {}}}),
            json!({"type": "DELETED", "object": {"metadata": {"name": "edge-1"}}}),
            json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}),
        ] {
            let text = format!("{line}\n");
            let (first, second) = text.split_at(11);
            sender.send(first.to_owned()).unwrap();
            tokio::task::yield_now().await;
            sender.send(second.to_owned()).unwrap();
        }
        // The link is lost without a word.
        sender.closed().await;
    });
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let text: String = receiver.recv().await?;
        Some((Ok(Frame::data(Bytes::from(text))), receiver))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn a_watch_says_what_happens_until_it_is_silent() {
    let server = TestServer::start(events).await;
    let client = server.client();
    let lasting = Duration::from_secs(290);
    let watch = client.watch::<Object>("/api/v1/nodes", "metadata.name=edge-1", "7", lasting).await;
    let mut watch = watch.unwrap();
    let long = Duration::from_secs(20);
    assert!(matches!(watch.next(long).await, Ok(Some(Event::Is(node))) if node.metadata.name == "edge-1"));
    assert!(matches!(watch.next(long).await, Ok(Some(Event::Bookmark))));
    assert!(matches!(watch.next(long).await, Ok(Some(Event::Gone(_)))));
    assert!(matches!(watch.next(long).await, Err(ApiError::Refused { code: StatusCode::GONE, .. })));
    assert!(matches!(watch.next(Duration::from_millis(20)).await, Ok(None)));
    let refused = client.watch::<Object>("/api/v1/nodes", "a=b", "7", lasting).await;
    assert!(matches!(refused, Err(ApiError::Refused { code: StatusCode::BAD_REQUEST, .. })));
}
