//! What is read out of objects, and requests over real TLS to an API server of a few lines.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::names;
use yurt_fakes::pki::TestCa;

use super::objects::Node;
use super::*;

fn pod(uid: &str, id: &str, started: &str) -> serde_json::Value {
    serde_json::json!({
        "metadata": {"uid": uid},
        "status": {"containerStatuses": [{
            "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": id, "state": {"running": {"startedAt": started}},
        }]},
    })
}

#[test]
fn an_own_node_is_read_from_labels_annotations_and_conditions() {
    let node: Node = serde_json::from_value(serde_json::json!({
        "metadata": {
            "labels": {"openyurt.io/is-edge-worker": "true"},
            "annotations": {"openyurt.io/conversion-target": "vanilla"},
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    let own = OwnNode::from(node);
    assert!(own.ready && own.edge);
    assert_eq!(own.target.as_deref(), Some("vanilla"));
}

/// An API server that knows one node, takes its client certificate alone, and keeps what was written to it.
struct ApiServer {
    access: Access,
    written: Arc<Mutex<Vec<(String, serde_json::Value)>>>,
    /// Further versions of the node, for a watch.
    versions: mpsc::UnboundedSender<serde_json::Value>,
    _task: AbortOnDropHandle<()>,
}

type Answer = http::Response<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Infallible>>;

fn node_object(version: &str, target: Option<&str>) -> serde_json::Value {
    let annotations = target.map(|target| serde_json::json!({names::ANNOTATION_TARGET: target}));
    serde_json::json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "edge-node", "resourceVersion": version, "annotations": annotations,
            "labels": {"openyurt.io/is-edge-worker": "true"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {
            "kubeletVersion": "v1.36.3", "architecture": "", "bootID": "", "containerRuntimeVersion": "",
            "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
            "systemUUID": ""}},
    })
}

impl ApiServer {
    async fn start() -> Self {
        let ca = TestCa::new("cluster");
        let (server, client) = (ca.server("127.0.0.1"), ca.node("edge-node"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
        let key = PrivateKeyDer::from_pem_slice(server.key_pem.as_bytes()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();

        let written = Arc::<Mutex<Vec<_>>>::default();
        let (versions, received) = mpsc::unbounded_channel();
        let received = Arc::new(Mutex::new(Some(received)));
        let served = written.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, written, received) = (acceptor.clone(), served.clone(), received.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    // kubelet's file has its certificate and its key, of which one certificate is sent.
                    assert_eq!(stream.get_ref().1.peer_certificates().unwrap().len(), 1);
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, written.clone(), received.clone())
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let both = format!("{}{}", client.pem, client.key_pem).into_bytes();
        let access = Access {
            server: format!("https://127.0.0.1:{port}"),
            ca: ca.pem.into_bytes(),
            certificate: both.clone(),
            key: both,
        };
        Self { access, written, versions, _task: AbortOnDropHandle::new(task) }
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    written: Arc<Mutex<Vec<(String, serde_json::Value)>>>,
    versions: Arc<Mutex<Option<mpsc::UnboundedReceiver<serde_json::Value>>>>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let json = |code: u16, value: serde_json::Value| {
        http::Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .header("date", "Thu, 01 Jan 2026 00:00:00 GMT")
            .body(Full::from(value.to_string()).boxed_unsync())
            .unwrap()
    };
    if request.method() == http::Method::PATCH {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        written.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap()));
        return Ok(json(200, node_object("2", None)));
    }
    if query.contains("watch=true") {
        let versions = versions.lock().unwrap().take();
        let events = futures::stream::unfold(versions, |versions| async move {
            let mut versions = versions?;
            let object = versions.recv().await?;
            let line = format!("{}\n", serde_json::json!({"type": "MODIFIED", "object": object}));
            Some((Ok(hyper::body::Frame::data(bytes::Bytes::from(line))), Some(versions)))
        });
        return Ok(http::Response::new(http_body_util::StreamBody::new(events).boxed_unsync()));
    }
    Ok(match path.as_str() {
        "/version" => json(200, serde_json::json!({})),
        "/api/v1/nodes/edge-node" => json(200, node_object("1", None)),
        "/api/v1/nodes"
            if query.contains("metadata.name%3Dedge-node") && query.contains("resourceVersion=0") =>
        {
            json(
                200,
                serde_json::json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"},
                "items": [node_object("1", None)]}),
            )
        }
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-node" => json(
            200,
            serde_json::json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "edge-node"}, "spec": {"renewTime": "2026-01-01T00:00:00.123456Z"}}),
        ),
        "/api/v1/pods" if query.contains("spec.nodeName%3Dedge-node") => json(
            200,
            serde_json::json!({"apiVersion": "v1", "kind": "PodList", "metadata": {},
                "items": [pod("uid", "containerd://1", "2026-01-01T00:00:00Z")]}),
        ),
        busy if busy.starts_with("/api/v1/nodes/busy-") => {
            let code: u16 = busy.rsplit('-').next().unwrap().parse().unwrap();
            json(
                code,
                serde_json::json!({"kind": "Status", "code": code, "message": "etcdserver: leader changed"}),
            )
        }
        _ => json(
            404,
            serde_json::json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no such thing"}),
        ),
    })
}

fn cluster(access: Access) -> ApiCluster {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut cluster = ApiCluster::new("edge-node", "kube-system");
    cluster.set_access(access);
    cluster
}

#[tokio::test]
async fn the_api_server_is_asked_with_kubelets_certificate() {
    let server = ApiServer::start().await;
    let mut cluster = cluster(server.access.clone());
    assert!(cluster.has_changed());
    cluster.forget_change();
    cluster.set_access(server.access.clone());
    assert!(!cluster.has_changed());
    let node = cluster.node().await.unwrap();
    assert!(node.ready && node.edge);
    assert_eq!(node.kubelet_version, "v1.36.3");
    assert_eq!(cluster.lease().await.unwrap().unwrap().to_string(), "2026-01-01T00:00:00.123456Z");
    assert_eq!(cluster.containers().await.unwrap()["uid/app"].id, "containerd://1");
    assert!(cluster.clock_skew().await.unwrap() > 0, "the server's clock stands still");
    assert_eq!(cluster.config_map(names::CONFIG_MAP).await.unwrap(), None);

    let status = ConversionStatus {
        state: yurt_api::status::ConversionState::Converted,
        step: None,
        step_index: 0,
        steps: 7,
        message: String::new(),
        version: "0.1.0".into(),
        time: "2026-01-01T00:00:00Z".into(),
    };
    cluster.report(&status).await.unwrap();
    let (path, patch) = server.written.lock().unwrap().pop().unwrap();
    assert_eq!(path, "/api/v1/nodes/edge-node");
    let text = patch["metadata"]["annotations"][names::ANNOTATION_CONVERSION].as_str().unwrap();
    assert_eq!(serde_json::from_str::<ConversionStatus>(text).unwrap(), status);
    assert_eq!(patch.as_object().unwrap().len(), 1, "nothing but annotations: {patch}");
}

#[tokio::test]
async fn a_change_of_the_own_node_is_seen() {
    let server = ApiServer::start().await;
    let mut cluster = cluster(server.access.clone());
    let client = cluster.client(Route::Direct).unwrap();
    let mut follower = Follower::start("edge-node", Route::Direct, vec![(Route::Direct, client)]);
    let first = follower.seen.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(first.target, None);
    server.versions.send(node_object("2", Some(names::TARGET_VANILLA))).unwrap();
    let changed = |seen: &Option<OwnNode>| seen.as_ref().is_some_and(|node| node.target.is_some());
    let second = follower.seen.wait_for(changed).await.unwrap().clone().unwrap();
    assert_eq!(second.target.as_deref(), Some(names::TARGET_VANILLA));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_and_one_that_says_no_is_not() {
    let server = ApiServer::start().await;
    let mut access = server.access.clone();
    let mut other = ApiCluster::new("other-node", "kube-system");
    other.set_access(access.clone());
    let refused = other.node().await.unwrap_err();
    assert!(!refused.is_unreachable() && refused.to_string().contains("no such thing"), "{refused}");
    assert!(!refused.is_transient() && matches!(refused, ClusterError::Refused { code: 404, .. }));

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    access.server = format!("https://{free}");
    let lost = cluster(access).node().await.unwrap_err();
    assert!(lost.is_unreachable() && lost.to_string().contains("refused"), "{lost}");
    assert!(lost.is_transient());
}

#[tokio::test]
async fn a_busy_api_server_is_told_from_one_that_says_no() {
    let server = ApiServer::start().await;
    // After 429, 503 and 504 it is asked again, until the limit.
    for (node, code) in [("busy-500", 500), ("busy-502", 502)] {
        let mut cluster = ApiCluster::new(node, "kube-system");
        cluster.set_access(server.access.clone());
        let error = cluster.node().await.unwrap_err();
        assert!(error.is_transient() && !error.is_unreachable(), "{error}");
        assert!(matches!(error, ClusterError::Refused { code: found, .. } if found == code), "{error:?}");
    }
}

#[tokio::test]
async fn credentials_that_are_none_are_an_error_of_their_own() {
    let server = ApiServer::start().await;
    let access = Access { key: b"no key".to_vec(), ..server.access.clone() };
    let error = cluster(access).node().await.unwrap_err();
    assert!(matches!(error, ClusterError::Credentials(_)), "{error}");
}
