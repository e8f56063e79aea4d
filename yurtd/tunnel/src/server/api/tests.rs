//! The endpoint in one process: a caller over real TLS, an API server, a kubelet with a self-signed
//! certificate at the end of a "tunnel" that is a TCP connection.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use yurt_api::status::{AgentStatus, LostAgent};
use yurt_api::tunnel::OpenErrorCode;
use yurt_node::supervise::Tasks;

use super::tunnel::Stream;
use super::*;
use crate::server::registry::DialError;
use yurt_fakes::api_server::{CLIENT, FakeApi};
use yurt_fakes::kubelet::FakeKubelet;
use yurt_fakes::pki::TestCa;

mod diagnosis;

const LOG: &str = "/api/v1/namespaces/shop/pods/till-0/log";
const EXEC: &str = "/api/v1/namespaces/shop/pods/till-0/exec?command=cat&stdin=true&stdout=true";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// Subject of the server's certificate.
const SERVER: &str = "CN=yurt-tunnel-server";
/// Long enough for a busy machine, short enough to fail.
const SOON: Duration = Duration::from_secs(20);

/// Hands out one certificate.
#[derive(Debug)]
struct One(Arc<rustls::sign::CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
}

struct World {
    api_server: FakeApi,
    tunnel: Arc<OneNode>,
    kubelet: FakeKubelet,
    tunnel_ca: TestCa,
    cluster_ca: Arc<TestCa>,
    address: SocketAddr,
    stop: CancellationToken,
    parts: Tasks,
    connections: Connections,
    certificate: Arc<ClientCertificate>,
    redirect: watch::Sender<RedirectStatus>,
    written: Written,
    trail: Arc<Trail>,
}

/// What the audit trail has come to.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Node `edge-1` is connected, and at the end of its way is who listens there; `edge-2` was.
struct OneNode(Mutex<SocketAddr>);

impl Tunnel for OneNode {
    fn dial(&self, node: &str) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> {
        let (node, target) = (node.to_owned(), *self.0.lock().unwrap());
        async move {
            if node != "edge-1" {
                return Err(DialError::NotConnected(node));
            }
            let Ok(stream) = TcpStream::connect(target).await else {
                let message = "connection refused".to_owned();
                return Err(DialError::Rejected { node, code: OpenErrorCode::Refused, message });
            };
            Ok(Box::new(stream) as Box<dyn Stream>)
        }
        .boxed()
    }

    fn agents(&self) -> Vec<AgentStatus> {
        vec![AgentStatus {
            node: "edge-1".into(),
            server: "cp-1".into(),
            version: "0.1.0".into(),
            remote_address: "192.0.2.7:40000".into(),
            connected_since: "2026-11-23T08:00:00Z".into(),
            rtt_micros: Some(41_000),
            streams: 0,
            bytes_sent: 1,
            bytes_received: 2,
            redirected: Vec::new(),
            not_redirected: Vec::new(),
            duplicate: None,
        }]
    }

    fn everywhere(&self) -> BoxFuture<'static, Said> {
        let silent = [("cp-2".to_owned(), "connection refused".to_owned())].into();
        let mut agents = self.agents();
        let elsewhere = AgentStatus { node: "edge-3".into(), server: "cp-3".into(), ..agents[0].clone() };
        agents.push(elsewhere);
        std::future::ready(Said { agents, silent }).boxed()
    }

    fn lost(&self) -> Vec<LostAgent> {
        vec![LostAgent {
            node: "edge-2".into(),
            server: "cp-1".into(),
            remote_address: "192.0.2.8:40000".into(),
            last_seen: "2026-11-28T08:00:00Z".into(),
            reason: "the other side does not answer any more".into(),
        }]
    }

    fn measure(&self, node: &str, _: Duration) -> BoxFuture<'static, Option<Duration>> {
        std::future::ready((node == "edge-1").then_some(Duration::from_millis(4))).boxed()
    }
}

impl World {
    /// The audit records of requests that the endpoint could understand, once there are so many.
    async fn records(&self, count: usize) -> Vec<Value> {
        tokio::time::timeout(SOON, async {
            loop {
                let text = String::from_utf8(self.written.0.lock().unwrap().clone()).unwrap();
                let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
                // Until the client CA is read certificates are refused.
                let all: Vec<_> = all.filter(|record| record["responseStatus"]["code"] != 503).collect();
                if all.len() >= count {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("there are no such records")
    }

    /// With a client certificate for kubelets.
    async fn new() -> Self {
        let world = Self::without_signer().await;
        world.api_server.sign(CLIENT, Some(world.cluster_ca.clone()));
        let waited = tokio::time::timeout(SOON, async {
            while world.certificate.check(std::time::SystemTime::now()).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("there is no client certificate");
        world
    }

    /// Nobody issues certificates yet.
    async fn without_signer() -> Self {
        let (tunnel_ca, cluster_ca) = (TestCa::new("tunnel"), Arc::new(TestCa::new("cluster")));
        let api_server = FakeApi::plain().await;
        let kubelet = FakeKubelet::start(&cluster_ca).await;
        let config = kube::Config::new(api_server.url().parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        api_server.put(
            "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication",
            json!({"data": {"client-ca-file": cluster_ca.pem}}),
        );
        api_server.accept_token_of("joes-token", "joe", &["shop"]);
        api_server.allow_nothing();
        for rule in [
            "jane get pods/log",
            "jane create pods/exec",
            "jane get pods/exec",
            "joe get pods/log",
            "joe list agents",
            "joe get agents",
            "joe get agents/diagnosis",
        ] {
            let [user, verb, resource] = *rule.split(' ').collect::<Vec<_>>() else { panic!("{rule}") };
            api_server.allow(user, verb, resource);
        }
        for (name, node) in [("till-0", "edge-1"), ("away-0", "edge-2"), ("new-0", "")] {
            let pod = json!({
                "kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"nodeName": node, "containers": [{"name": "app"}]}
            });
            api_server.put("/api/v1/namespaces/shop/pods", pod);
        }

        let tunnel = Arc::new(OneNode(Mutex::new(kubelet.address)));
        let written = Written::default();
        let trail = Trail::to(written.clone()).unwrap();
        let (admission, rules) = ConnectAdmission::new(false);
        let (redirect, _) = watch::channel(crate::server::nft::waiting("cp-1"));
        let client_ca = Arc::<ClientCa>::default();
        let client_certificate = Arc::<ClientCertificate>::default();
        let api = Api::new(ApiOptions {
            client: client.clone(),
            tunnel: tunnel.clone(),
            client_ca: client_ca.clone(),
            certificate: client_certificate.clone(),
            serving: MountedCertificate::in_folder(std::path::Path::new("/nowhere")),
            node_name: "cp-1".into(),
            cluster_ca: Some(cluster_ca.pem.clone().into_bytes()),
            redirect: redirect.subscribe(),
            trail: trail.clone(),
            admission,
        })
        .unwrap();

        let (chain, key) = tunnel_ca.serving("server", &["localhost"]).chain_and_key();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let certificate = Arc::new(One(Arc::new(rustls::sign::CertifiedKey::new(chain, key))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let parts = Tasks::new(stop.clone());
        let connections = Connections::new(Tasks::new(stop.clone()), CancellationToken::new());
        parts.part("the listener for the plugin", api.serve(listener, certificate, connections.clone()));
        parts.part("the admission rules", rules.follow(client.clone(), stop.clone()));
        parts.part("the client CA", client_ca.follow(client.clone(), stop.clone()));
        let certificate = client_certificate;
        parts.part("the client certificate", certificate.clone().follow(client, stop.clone()));
        Self {
            api_server,
            tunnel,
            kubelet,
            tunnel_ca,
            cluster_ca,
            address,
            stop,
            parts,
            connections,
            certificate,
            redirect,
            written,
            trail,
        }
    }

    /// A connection with a client certificate of `authority`, or without any.
    async fn connect(&self, certificate: Option<(&TestCa, &str)>) -> SendRequest<Empty<Bytes>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.tunnel_ca.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            Some((authority, user)) => {
                let (chain, key) = authority.client(user, &["shop"]).chain_and_key();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// As jane, whose client certificate the cluster issued. The endpoint reads the client CA when it
    /// starts; until then it answers 503 to certificates.
    async fn jane(&self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let mut sender = self.connect(Some((&self.cluster_ca, "jane"))).await;
            let response = sender.send_request(request.clone()).await.unwrap();
            if response.status() != StatusCode::SERVICE_UNAVAILABLE
                || request.uri().path().contains("away")
                || tokio::time::Instant::now() > deadline
            {
                // The connection lives as long as its response.
                tokio::spawn(async move { sender.ready().await });
                return response;
            }
            tokio::task::yield_now().await;
        }
    }

    fn kubelet_requests(&self) -> Vec<(String, String)> {
        self.kubelet.state.requests.lock().unwrap().clone()
    }
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).header("host", "localhost").body(Empty::new()).unwrap()
}

fn with_token(mut request: Request<Empty<Bytes>>, token: &str) -> Request<Empty<Bytes>> {
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn websocket(uri: &str, protocols: &str) -> Request<Empty<Bytes>> {
    Request::get(uri)
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocols)
        .body(Empty::new())
        .unwrap()
}

async fn document(response: Response<Incoming>) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

async fn status(response: Response<Incoming>) -> Value {
    let code = response.status().as_u16();
    let status = document(response).await;
    assert_eq!(status["code"], code);
    status
}

#[tokio::test]
async fn a_followed_log_arrives_line_by_line_and_ends_at_kubelet_when_the_caller_goes() {
    let world = World::new().await;
    let (lines, log) = mpsc::channel(1);
    *world.kubelet.state.log.lock().unwrap() = Some(log);
    lines.send("first\n").await.unwrap();
    let mut sender = world.connect(None).await;
    let request = with_token(get(&format!("{LOG}?follow=true&tailLines=5")), "joes-token");
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain");
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "first\n");
    // The first line was read before the second existed.
    lines.send("second\n").await.unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "second\n");

    let ended = world.kubelet.state.log_ended.clone();
    drop((response, sender));
    // The log is quiet: nothing that kubelet writes could tell it that the caller has gone.
    tokio::time::timeout(SOON, ended.notified()).await.expect("kubelet still follows the log");
    assert_eq!(
        world.kubelet_requests(),
        [("GET /containerLogs/shop/till-0/app?follow=true&tailLines=5".to_owned(), SERVER.to_owned())]
    );
}

#[tokio::test]
async fn a_caller_who_goes_while_kubelet_has_said_nothing_ends_the_request_too() {
    let world = World::new().await;
    let (lines, log) = mpsc::channel(1);
    *world.kubelet.state.log.lock().unwrap() = Some(log);
    let mut sender = world.connect(None).await;
    let request = with_token(get(&format!("{LOG}?follow=true")), "joes-token");
    let mut pending = Box::pin(sender.send_request(request));
    // Send it and see it at kubelet before going away.
    tokio::time::timeout(SOON, async {
        while world.kubelet_requests().is_empty() {
            assert!(futures::poll!(&mut pending).is_pending() || !world.kubelet_requests().is_empty());
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(pending);
    drop(sender);
    let ended = world.kubelet.state.log_ended.clone();
    tokio::time::timeout(SOON, ended.notified()).await.expect("kubelet still follows the log");
    drop(lines);
}

#[tokio::test]
async fn an_exec_becomes_a_stream_of_bytes_with_a_half_close() {
    let world = World::new().await;
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v5.channel.k8s.io"];
    let response = world.jane(websocket(EXEC, "v5.channel.k8s.io")).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut received = Vec::new();
    let (written, read) = tokio::time::timeout(SOON, async {
        tokio::join!(
            async {
                write.write_all(&sent).await?;
                // The end of our direction is not the end of the other.
                write.shutdown().await
            },
            read.read_to_end(&mut received)
        )
    })
    .await
    .unwrap();
    written.unwrap();
    read.unwrap();
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    assert_eq!(
        world.kubelet_requests(),
        [("GET /exec/shop/till-0/app?input=1&output=1&command=cat".to_owned(), SERVER.to_owned())]
    );
}

#[tokio::test]
async fn v4_alone_is_offered_to_a_kubelet_that_refuses_v5() {
    let world = World::new().await;
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v4.channel.k8s.io"];
    let response = world.jane(websocket(EXEC, "v5.channel.k8s.io, v4.channel.k8s.io")).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    assert_eq!(world.kubelet_requests().len(), 2);

    let status = status(world.jane(websocket(EXEC, "v5.channel.k8s.io")).await).await;
    assert_eq!(status["code"], 500);
    assert!(status["message"].as_str().unwrap().contains("unknown subprotocol"), "{status}");
}

#[tokio::test]
async fn without_the_right_nothing_reaches_kubelet() {
    let world = World::new().await;
    let mut sender = world.connect(None).await;
    let request = with_token(websocket(EXEC, "v5.channel.k8s.io"), "joes-token");
    let status = status(sender.send_request(request).await.unwrap()).await;
    assert_eq!(status["code"], 403);
    assert_eq!(
        status["message"],
        r#"pods "till-0" is forbidden: User "joe" cannot create resource "pods/exec" in API group "" in the namespace "shop""#
    );
    assert!(world.kubelet_requests().is_empty());
}

#[tokio::test]
async fn get_alone_is_not_enough_for_a_websocket() {
    let world = World::new().await;
    world.api_server.allow("joe", "get", "pods/exec");
    let mut sender = world.connect(None).await;
    let request = with_token(websocket(EXEC, "v5.channel.k8s.io"), "joes-token");
    assert_eq!(status(sender.send_request(request).await.unwrap()).await["code"], 403);
    assert!(world.kubelet_requests().is_empty());
}

#[tokio::test]
async fn nobody_in_particular_is_unauthorized() {
    let world = World::new().await;
    let stranger = TestCa::new("another cluster");
    let unknown = with_token(get(LOG), "unknown");
    let (jane, _) = (world.jane(get("/apis/tunnel.openyurt.io/v1alpha1/agents")).await, ());
    assert_eq!(jane.status(), 403, "the client CA is in use");
    for (certificate, request) in [(None, get(LOG)), (None, unknown), (Some((&stranger, "jane")), get(LOG))] {
        let mut sender = world.connect(certificate).await;
        let status = status(sender.send_request(request).await.unwrap()).await;
        assert_eq!((&status["code"], &status["reason"]), (&json!(401), &json!("Unauthorized")));
    }
    assert!(world.kubelet_requests().is_empty());
}

#[tokio::test]
async fn a_token_is_reviewed_once_in_a_while() {
    let world = World::new().await;
    for _ in 0..3 {
        let mut sender = world.connect(None).await;
        let request = with_token(get("/apis/tunnel.openyurt.io/v1alpha1/agents"), "joes-token");
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let list: AgentStatusList =
            serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((list.kind.as_str(), list.items[0].node.as_str()), ("AgentStatusList", "edge-1"));
    }
    assert_eq!(world.api_server.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 1);
    let mut sender = world.connect(None).await;
    let one = with_token(get("/apis/tunnel.openyurt.io/v1alpha1/agents/edge-2"), "joes-token");
    let status = status(sender.send_request(one).await.unwrap()).await;
    assert_eq!(status["message"], "agents.tunnel.openyurt.io \"edge-2\" not found");
}

#[tokio::test]
async fn who_may_impersonate_acts_as_somebody_else_and_nobody_else_does() {
    let world = World::new().await;
    let as_jane = async |uri: &str| {
        let mut request = with_token(get(uri), "joes-token");
        request.headers_mut().insert("impersonate-user", "jane".parse().unwrap());
        world.connect(None).await.send_request(request).await.unwrap()
    };
    let refused = status(as_jane(LOG).await).await;
    assert_eq!(
        refused["message"],
        r#"users "jane" is forbidden: User "joe" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
    world.api_server.allow("joe", "impersonate", "users");
    *world.kubelet.state.refusal.lock().unwrap() = Some((400, "it has arrived"));
    assert_eq!(status(as_jane(LOG).await).await["code"], 400);
    // Jane may not, whoever is behind her.
    let refused = status(as_jane("/apis/tunnel.openyurt.io/v1alpha1/agents").await).await;
    assert!(refused["message"].as_str().unwrap().contains(r#"User "jane" cannot list"#), "{refused}");

    let records = world.records(3).await;
    let of =
        |pointer: &str| records.iter().map(|record| record.pointer(pointer).cloned()).collect::<Vec<_>>();
    assert_eq!(of("/user/username"), vec![Some(json!("joe")); 3]);
    assert_eq!(of("/impersonatedUser/username"), [None, Some(json!("jane")), Some(json!("jane"))]);
    assert_eq!(of("/responseStatus/code"), [403, 400, 403].map(|code| Some(json!(code))));
}

#[tokio::test]
async fn what_only_the_api_server_can_admit_is_refused() {
    let world = World::new().await;
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v5.channel.k8s.io"];
    assert_eq!(world.jane(websocket(EXEC, "v5.channel.k8s.io")).await.status(), 101);
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-shells"},
        "spec": {"matchConstraints": {"resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"]}]}}
    });
    world.api_server.put(policies, policy);
    // One that nothing binds decides nothing.
    let asked = async || world.jane(websocket(EXEC, "v5.channel.k8s.io")).await;
    assert_eq!(asked().await.status(), 101);
    world.api_server.put(
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "no-shells"}, "spec": {"policyName": "no-shells"}
        }),
    );
    let refused = tokio::time::timeout(SOON, async {
        loop {
            let answer = asked().await;
            if answer.status() != 101 {
                return status(answer).await;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!((&refused["code"], &refused["reason"]), (&json!(403), &json!("Forbidden")));
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with(r#"ValidatingAdmissionPolicy "no-shells" decides"#), "{message}");
    assert!(message.contains("--allow-connect-admission-bypass"), "{message}");
    // Logs are no connections.
    *world.kubelet.state.refusal.lock().unwrap() = Some((400, "it has arrived"));
    assert_eq!(status(world.jane(get(LOG)).await).await["code"], 400);
}

#[tokio::test]
async fn who_did_what_is_written_down_when_it_begins_and_when_it_ends() {
    let world = World::new().await;
    world.connect(None).await.send_request(get("/readyz")).await.unwrap();
    let (lines, log) = mpsc::channel(1);
    *world.kubelet.state.log.lock().unwrap() = Some(log);
    lines.send("first\n").await.unwrap();
    drop(lines);
    let answer = world.jane(get(LOG)).await;
    let id = answer.headers()["audit-id"].to_str().unwrap().to_owned();
    answer.into_body().collect().await.unwrap();
    let records = world.records(1).await;
    let record = records.last().unwrap();
    assert_eq!((&record["auditID"], &record["stage"]), (&json!(id), &json!("ResponseComplete")));
    assert_eq!((&record["kind"], &record["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!(record["user"], json!({"username": "jane", "groups": ["shop", "system:authenticated"]}));
    assert_eq!(
        record["objectRef"],
        json!({"resource": "pods", "apiVersion": "v1", "namespace": "shop", "name": "till-0", "subresource": "log"})
    );
    assert_eq!((&record["requestURI"], &record["sourceIPs"]), (&json!(LOG), &json!(["127.0.0.1"])));
    let annotations = &record["annotations"];
    assert_eq!(annotations["tunnel.openyurt.io/node"], "edge-1");
    assert_eq!(annotations["tunnel.openyurt.io/bytes-sent"], "6");
    assert_eq!(annotations["authorization.k8s.io/decision"], "allow");

    // A shell: its beginning is there while it goes on.
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v5.channel.k8s.io"];
    let response = world.jane(websocket(EXEC, "v5.channel.k8s.io")).await;
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let begun = world.records(records.len() + 1).await.pop().unwrap();
    assert_eq!((&begun["stage"], &begun["responseStatus"]["code"]), (&json!("ResponseStarted"), &json!(101)));
    assert!(begun["requestURI"].as_str().unwrap().contains("command=cat"), "{begun}");
    stream.write_all(b"0123456789").await.unwrap();
    let mut echo = [0; 10];
    stream.read_exact(&mut echo).await.unwrap();
    drop(stream);
    let ended = world.records(records.len() + 2).await.pop().unwrap();
    assert_eq!((&ended["stage"], &ended["auditID"]), (&json!("ResponseComplete"), &begun["auditID"]));
    assert_eq!(ended["annotations"]["tunnel.openyurt.io/bytes-received"], "10");
}

#[tokio::test]
async fn a_log_that_breaks_off_is_not_written_down_as_one_that_has_ended() {
    let world = World::new().await;
    let (lines, log) = mpsc::channel(1);
    *world.kubelet.state.log.lock().unwrap() = Some(log);
    lines.send("first\n").await.unwrap();
    let mut answer = world.jane(get(LOG)).await;
    answer.body_mut().frame().await.unwrap().unwrap();
    lines.send("").await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
    let record = world.records(1).await.pop().unwrap();
    assert_eq!(record["responseStatus"]["code"], 200);
    assert!(record["annotations"]["tunnel.openyurt.io/broke"].is_string(), "{record}");
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "who writes the records is to wait for it")]
async fn kubelet_is_not_asked_before_there_is_a_place_for_the_record() {
    let world = World::new().await;
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v5.channel.k8s.io"];
    let written = world.written.0.lock().unwrap();
    // Whoever writes has taken one, and takes no other: not when the queue is full already, which would make a place in it.
    world.trail.put(b"{}\n".to_vec());
    while world.trail.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    (0..2 * audit::QUEUE).for_each(|_| world.trail.put(b"{}\n".to_vec()));
    let mut asked = Box::pin(world.jane(websocket(EXEC, "v5.channel.k8s.io")));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut asked).await.is_err());
    assert!(world.kubelet_requests().is_empty());
    drop(written);
    assert_eq!(asked.await.status(), 101);
}

#[tokio::test]
async fn a_pod_that_is_missing_unscheduled_or_out_of_reach_is_told_apart() {
    let world = World::new().await;
    let log = |pod: &str| get(&format!("/api/v1/namespaces/shop/pods/{pod}/log"));
    let missing = status(world.jane(log("gone-0")).await).await;
    assert_eq!((&missing["code"], &missing["message"]), (&json!(404), &json!("pods \"gone-0\" not found")));
    assert_eq!(world.jane(log("new-0")).await.status(), 204);
    // Certificates count by now, so that this 503 is about the node.
    let away = status(world.jane(log("away-0")).await).await;
    assert_eq!(away["code"], 503);
    assert!(away["message"].as_str().unwrap().contains("\"edge-2\" is not connected"), "{away}");
    let wrong = status(world.jane(get(&format!("{LOG}?container=other"))).await).await;
    assert_eq!(wrong["message"], "container other is not valid for pod till-0");
}

#[tokio::test]
async fn kubelets_own_errors_come_back_as_a_status() {
    let world = World::new().await;
    *world.kubelet.state.refusal.lock().unwrap() =
        Some((400, "container \"app\" in pod \"till-0\" is waiting to start: ContainerCreating"));
    let refused = status(world.jane(get(LOG)).await).await;
    assert_eq!((&refused["code"], &refused["reason"]), (&json!(400), &json!("BadRequest")));
    assert!(refused["message"].as_str().unwrap().contains("waiting to start"));
    // kubelet's "forbidden" is about the tunnel server, and must not look like the caller's.
    *world.kubelet.state.refusal.lock().unwrap() = Some((403, "Forbidden (user=tunnel-server)"));
    assert_eq!(status(world.jane(get(LOG)).await).await["code"], 500);
}

#[tokio::test]
async fn a_stop_ends_streams_that_do_not_end_by_themselves() {
    let world = World::new().await;
    *world.kubelet.state.subprotocols.lock().unwrap() = vec!["v5.channel.k8s.io"];
    let response = world.jane(websocket(EXEC, "v5.channel.k8s.io")).await;
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    world.stop.cancel();
    // It goes on for the time being.
    stream.write_all(b"still here").await.unwrap();
    let mut echo = [0; 10];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"still here");
    assert_eq!(world.connections.drain(Duration::from_millis(100)).await, 1);
    assert_eq!(world.parts.finish(SOON).await, 0);
    // The end may come as an end of file or as a broken connection.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the stream is open");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn health_needs_no_name() {
    let world = World::new().await;
    let mut sender = world.connect(None).await;
    assert_eq!(sender.send_request(get("/healthz")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn ready_is_who_redirects_and_everybody_may_ask_how_that_stands() {
    let world = World::new().await;
    let ask = async |uri: &str| {
        let request = with_token(get(uri), "joes-token");
        world.connect(None).await.send_request(request).await.unwrap()
    };
    let agents = "/apis/tunnel.openyurt.io/v1alpha1/agents";
    let waiting = status(ask("/readyz").await).await;
    assert_eq!(waiting["code"], 503);
    assert!(waiting["message"].as_str().unwrap().contains("the cluster's nodes are not known yet"));
    assert_eq!(ask("/livez").await.status(), 200);

    crate::server::nft::say(&world.redirect, RedirectState::InPlace, "", 3);
    assert_eq!(ask("/readyz").await.status(), 200);
    let list = document(ask(agents).await).await;
    assert_eq!((&list["redirect"]["state"], &list["redirect"]["kubelets"]), (&json!("inPlace"), &json!(3)));
    assert_eq!(list["silent"], json!({"cp-2": "connection refused"}));

    crate::server::nft::say(&world.redirect, RedirectState::Failing, "Operation not permitted", 0);
    assert_eq!(ask("/readyz").await.status(), 503);
    let list = document(ask(agents).await).await;
    assert_eq!(list["redirect"]["message"], "Operation not permitted");
    assert_eq!(ask("/livez").await.status(), 200);
}

#[tokio::test]
async fn without_its_certificate_the_server_says_what_is_missing_and_serves_the_rest() {
    let world = World::without_signer().await;
    let ask = |uri: &str| {
        let (request, world) = (with_token(get(uri), "joes-token"), &world);
        async move { world.connect(None).await.send_request(request).await.unwrap() }
    };
    tokio::time::timeout(SOON, async {
        while world.api_server.names("certificatesigningrequests").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let missing = status(ask(LOG).await).await;
    assert_eq!((&missing["code"], &missing["reason"]), (&json!(503), &json!("ServiceUnavailable")));
    assert!(
        missing["message"].as_str().unwrap().contains("no client certificate for kubelets yet"),
        "{missing}"
    );
    assert_eq!(ask("/healthz").await.status(), 200);
    assert_eq!(ask("/apis/tunnel.openyurt.io/v1alpha1/agents").await.status(), 200);
    assert!(world.kubelet_requests().is_empty());

    let csr = world.api_server.get(&format!("{CSRS}/yurt-tunnel-server-0")).unwrap();
    assert_eq!(csr["spec"]["signerName"], "kubernetes.io/kube-apiserver-client");
    assert_eq!(csr["metadata"]["labels"]["app.kubernetes.io/part-of"], "kubectl-yurt");
    *world.kubelet.state.refusal.lock().unwrap() = Some((400, "it has arrived"));
    world.api_server.sign(CLIENT, Some(world.cluster_ca.clone()));
    tokio::time::timeout(SOON, async {
        while status(ask(LOG).await).await["code"] != 400 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the certificate is not taken into use");
}
