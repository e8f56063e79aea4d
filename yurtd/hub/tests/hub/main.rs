//! The whole hub in one process, between real clients over TLS and a small API server behind a link that can be cut.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use yurt_fakes::api_server::{FakeApi, Fault, When, jwt};
use yurt_fakes::client::{self, As, Client};
use yurt_fakes::link::{Mode, Wire};
use yurt_fakes::pki::{TestCa, TestCertificate};
use yurt_fakes::until;
use yurt_hub::Server;
use yurt_hub::serve::sockets::Sockets;
use yurt_node::config::EdgeConfig;
use yurt_node::supervise::Tasks;

const PODS: &str = "/api/v1/namespaces/shop/pods";
const NODE_PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge";
const OWN_NODE: &str = "/api/v1/nodes?fieldSelector=metadata.name%3Dedge";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A cluster with one edge node: all that outlives a reboot of it.
struct Cluster {
    ca: Arc<TestCa>,
    api: FakeApi,
    link: Wire,
    node: TestCertificate,
    dir: TempDir,
}

/// The hub of one boot.
struct Hub {
    server: Server,
    tasks: Tasks,
    address: SocketAddr,
    health: SocketAddr,
}

impl Hub {
    async fn stop(self) {
        assert_eq!(self.tasks.finish(Duration::from_secs(5)).await, 0, "tasks that did not end");
        self.server.save().await;
    }
}

impl Cluster {
    /// One with kube-proxy's configuration, and the token of a pod that may read it, too.
    async fn with_kube_proxy() -> (Self, String) {
        let cluster = Self::new().await;
        cluster.api.put("/api/v1/namespaces/kube-system/configmaps", json!({"kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "kube-proxy"}, "data": {"kubeconfig.conf": "clusters:\n- cluster:\n    server: https://10.80.0.2:6443\n"}}));
        let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
        cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
        (cluster, token)
    }

    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = Arc::new(TestCa::new("kubernetes"));
        let api = FakeApi::with_ca(ca.clone()).await;
        api.forbid("system:serviceaccount:*", "list", "secrets");
        let link = Wire::to(api.address).await;
        let node = ca.node("edge");
        api.put(
            "/api/v1/nodes",
            json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "edge"},
            "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        for name in ["web-0", "web-1"] {
            api.put(PODS, json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
                "spec": {"nodeName": "edge", "containers": [{"name": "web", "image": "web:latest", "imagePullPolicy": "Always"}]},
                "status": {"phase": "Pending"}}));
        }
        api.put(
            "/api/v1/namespaces/default/services",
            json!({"kind": "Service", "apiVersion": "v1",
            "metadata": {"name": "kubernetes"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}),
        );
        Self { ca, api, link, node, dir: tempfile::tempdir().unwrap() }
    }

    /// Boots the node's hub.
    async fn boot(&self) -> Hub {
        let file = |name: &str, text: &str| {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = file("ca.crt", &self.ca.pem);
        let client = file("kubelet.pem", &self.node.file());
        let config = EdgeConfig {
            node_name: "edge".into(),
            api_servers: vec![format!("https://{}", self.link.address)],
            ca_file: ca.clone(),
            client_ca_file: ca,
            client_certificate: client.clone(),
            client_key: client,
            tunnel_servers: Vec::new(),
            tunnel_ca_file: "/nowhere".into(),
            kubelet_address: "127.0.0.1:10250".into(),
            kubelet_version: "v1.36.3".into(),
        };
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), listener)
        };
        let state = self.dir.path().join("state");
        // The hub before this one may still be closing its store.
        let hub = until("the hub", async || {
            let ((address, hub), (health, probes)) = (listen(), listen());
            let sockets = Sockets { hub: vec![hub], health: Some(probes) };
            let tasks = Tasks::new(CancellationToken::new());
            match Server::start(&config, &state, sockets, &tasks).await {
                Ok(server) => Some(Hub { server, tasks, address, health }),
                Err(_) => {
                    tasks.finish(Duration::from_secs(5)).await;
                    None
                }
            }
        })
        .await;
        until("a serving certificate", async || hub.server.readiness().serving_certificate.then_some(()))
            .await;
        hub
    }

    fn kubelet(&self) -> As {
        As::Certificate(self.node.clone())
    }

    async fn client(&self, hub: &Hub, who: &As) -> Client {
        Client::connect(hub.address, &self.ca, who).await
    }

    /// Cuts the link and waits until the hub knows.
    async fn cut(&self, hub: &Hub) {
        self.link.set(Mode::Cut);
        until("offline", async || (hub.server.readiness().link == "offline").then_some(())).await;
    }

    async fn restore(&self, hub: &Hub) {
        self.link.set(Mode::Pass);
        until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelet_lists_through_tls_with_its_certificate_and_nobody_without() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(list["kind"], "PodList");
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // From the view: the API server is not asked again, but for the reflector's own watch.
    let lists = || {
        let seen = cluster.api.seen("GET", "/api/v1/pods");
        seen.iter().filter(|seen| !seen.query.contains("watch=")).count()
    };
    let asked = lists();
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    assert_eq!(lists(), asked);

    let nobody = cluster.client(&hub, &As::Nobody).await;
    let refused = nobody.get("/api/v1/pods?resourceVersion=0").await.expect(401).json();
    assert_eq!(refused["reason"], "Unauthorized");
    let strangers = [
        cluster.ca.node("other"),
        cluster.ca.client("kubernetes-admin", &["system:masters"]),
        TestCa::new("kubernetes").node("edge"),
    ];
    for stranger in strangers {
        let stranger = cluster.client(&hub, &As::Certificate(stranger)).await;
        stranger.get("/api/v1/pods?resourceVersion=0").await.expect(401);
        stranger.get("/version").await.expect(401);
    }
    // Whoever asks for protobuf gets the refusal in protobuf.
    let headers = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let refused = nobody.send(Method::GET, "/api/v1/pods", &headers, Bytes::new()).await.expect(401);
    assert_eq!(refused.headers["content-type"], "application/vnd.kubernetes.protobuf");
    assert!(refused.body.starts_with(b"k8s\0"));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_reviewed_once_goes_upstream_unchanged_and_is_known_offline() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web", "exp": 4_000_000_000_i64}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &As::Token(token.clone())).await;
    let list = pod.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    pod.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200);
    assert_eq!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 1);
    let forwarded = cluster.api.seen("GET", "/api/v1/namespaces/shop/pods/web-0");
    assert_eq!(forwarded[0].user.as_deref(), Some("system:serviceaccount:shop:web"));
    assert_eq!(forwarded[0].headers["authorization"], format!("Bearer {token}"));
    // What the API server refuses this identity is refused here, in its words.
    let refused = pod.get("/api/v1/namespaces/shop/secrets?resourceVersion=0").await.expect(403);
    assert_eq!(refused.json()["reason"], "Forbidden");

    let unknown = cluster.client(&hub, &As::Token("rubbish".into())).await;
    unknown.get("/api/v1/pods?resourceVersion=0").await.expect(401);
    unknown.get("/api/v1/pods?resourceVersion=0").await.expect(401);
    assert_eq!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 2);

    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let list = pod.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // A view of one identity is nobody else's.
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(503);
    let unknown = cluster.client(&hub, &As::Token(jwt(&json!({"sub": "x", "exp": 4_000_000_000_i64})))).await;
    unknown.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_an_offline_reboot() {
    let cluster = Cluster::new().await;
    cluster.api.put(
        "/apis/storage.k8s.io/v1/csinodes",
        json!({"kind": "CSINode", "apiVersion": "storage.k8s.io/v1",
        "metadata": {"name": "edge"}, "spec": {"drivers": []}}),
    );
    cluster.api.put(
        LEASES,
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"name": "edge"}, "spec": {"renewTime": "t0"}}),
    );
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for path in [OWN_NODE, NODE_PODS, "/api/v1/services?"] {
        kubelet.get(&format!("{path}&resourceVersion=0")).await.expect(200);
    }
    let csinode = kubelet.get("/apis/storage.k8s.io/v1/csinodes/edge").await.expect(200).json();
    let lease = kubelet.get(&format!("{LEASES}/edge")).await.expect(200).json();
    let renewed =
        kubelet.write(Method::PUT, &format!("{LEASES}/edge"), "application/json", &lease).await.expect(200);
    kubelet.get("/version").await.expect(200);
    let token_path = "/api/v1/namespaces/shop/serviceaccounts/web/token";
    let token_request = |uid: &str| {
        json!({"kind": "TokenRequest", "spec": {"expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": uid}}})
    };
    let token =
        kubelet.write(Method::POST, token_path, "application/json", &token_request("u-1")).await.expect(201);

    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let post =
        async |path: &str, body: &Value| kubelet.write(Method::POST, path, "application/json", body).await;

    let node = kubelet.get("/api/v1/nodes/edge").await.expect(200).json();
    assert_eq!((&node["kind"], &node["metadata"]["name"]), (&json!("Node"), &json!("edge")));
    assert_eq!(post("/api/v1/nodes", &node).await.expect(409).json()["reason"], "AlreadyExists");
    let list = kubelet.get(NODE_PODS).await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // A reboot must not end in pulling an image that is there.
    assert_eq!(list["items"][0]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(kubelet.get("/apis/storage.k8s.io/v1/csinodes/edge").await.expect(200).json(), csinode);
    let put = async |body: &Value| {
        kubelet.write(Method::PUT, "/apis/storage.k8s.io/v1/csinodes/edge", "application/json", body).await
    };
    put(&csinode).await.expect(200);
    let mut changed = csinode.clone();
    changed["spec"]["drivers"] = json!([{"name": "x"}]);
    put(&changed).await.expect(503);

    let lease = kubelet.get(&format!("{LEASES}/edge")).await.expect(200).json();
    assert_eq!(lease["metadata"]["uid"], renewed.json()["metadata"]["uid"]);
    let renewed =
        kubelet.write(Method::PUT, &format!("{LEASES}/edge"), "application/json", &lease).await.expect(200);
    assert_eq!(renewed.json()["metadata"]["resourceVersion"], lease["metadata"]["resourceVersion"]);
    post(LEASES, &lease).await.expect(409);

    let replayed = post(token_path, &token_request("u-1")).await.expect(201);
    assert_eq!(replayed.body, token.body);
    post(token_path, &token_request("u-2")).await.expect(503);
    assert_eq!(kubelet.get("/version").await.expect(200).json()["gitVersion"], "v1.36.3");

    // Everything else fails, fast and honestly.
    for (method, path) in [
        (Method::POST, "/api/v1/namespaces/shop/pods"),
        (Method::DELETE, "/api/v1/namespaces/shop/pods/web-0"),
        (Method::POST, "/api/v1/namespaces/shop/events"),
        (Method::POST, "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
        (Method::GET, "/api/v1/namespaces/shop/configmaps/never-seen"),
        (Method::GET, "/apis/apps/v1"),
    ] {
        let failed = kubelet.write(method, path, "application/json", &json!({})).await.expect(503);
        assert_eq!(failed.json()["reason"], "ServiceUnavailable", "{path}");
        assert!(failed.json()["message"].as_str().unwrap().contains("the edge node is offline"), "{path}");
        assert_eq!(failed.headers.get("retry-after"), None, "{path}");
    }
    // Proven: the view of the node's name is complete and has no such Node.
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_patch_offline_is_seen_by_a_watch_and_replayed() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion={version}")).await;

    cluster.cut(&hub).await;
    // The images' policy changes with the link.
    for _ in 0..2 {
        let (event, pod) = watch.change().await;
        assert_eq!(event, "MODIFIED");
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    }
    let status = "/api/v1/namespaces/shop/pods/web-0/status";
    let patch = |uid: &str| {
        json!({"metadata": {"uid": uid}, "status": {
        "$setElementOrder/conditions": [{"type": "Ready"}], "conditions": [{"type": "Ready", "status": "True"}],
        "phase": "Running", "podIP": "10.85.0.7"}})
    };
    let patched =
        kubelet.write(Method::PATCH, status, STRATEGIC, &patch("uid-web-0")).await.expect(200).json();
    assert_eq!(patched["status"]["podIP"], "10.85.0.7");
    assert_eq!(patched["metadata"]["resourceVersion"], list["items"][0]["metadata"]["resourceVersion"]);
    let (event, pod) = watch.change().await;
    assert_eq!((event.as_str(), &pod["status"]["phase"]), ("MODIFIED", &json!("Running")));
    assert_eq!(pod["kind"], "Pod");
    // A pod that was made anew is not touched.
    let conflict = kubelet.write(Method::PATCH, status, STRATEGIC, &patch("uid-other")).await.expect(409);
    assert_eq!(conflict.json()["reason"], "Conflict");
    let node = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    kubelet.write(Method::PATCH, "/api/v1/nodes/edge/status", STRATEGIC, &node).await.expect(200);

    // Power cut: what was answered is still there.
    drop(watch);
    hub.stop().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let pod = kubelet.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200).json();
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(hub.server.readiness().pending_status_patches, 2);
    assert!(cluster.api.seen("PATCH", status).is_empty());

    cluster.restore(&hub).await;
    until("the replay", async || (hub.server.readiness().pending_status_patches == 0).then_some(())).await;
    let replayed = cluster.api.seen("PATCH", status);
    assert_eq!(replayed.len(), 1);
    assert_eq!(replayed[0].headers["content-type"], STRATEGIC);
    assert_eq!(replayed[0].user.as_deref(), Some("system:node:edge"));
    assert_eq!(serde_json::from_slice::<Value>(&replayed[0].body).unwrap(), patch("uid-web-0"));
    assert_eq!(cluster.api.get(&format!("{PODS}/web-0")).unwrap()["status"]["podIP"], "10.85.0.7");
    assert_eq!(cluster.api.seen("PATCH", "/api/v1/nodes/edge/status").len(), 1);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_patch_that_fails_holds_up_no_other_and_gives_way_to_a_newer_one() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    cluster.cut(&hub).await;
    let status = |name: &str| format!("{PODS}/{name}/status");
    let patch = async |name: &str, ip: &str| {
        let patch = json!({"metadata": {"uid": format!("uid-{name}")}, "status": {"podIP": ip}});
        kubelet.write(Method::PATCH, &status(name), STRATEGIC, &patch).await
    };
    for name in ["web-0", "web-1"] {
        patch(name, "10.0.0.1").await.expect(200);
    }
    cluster.api.fault(When::path(&status("web-0")).method("PATCH"), Fault::Answer(500));
    cluster.restore(&hub).await;
    let pending = || hub.server.readiness().pending_status_patches;
    until("the other object's replay", async || (pending() == 1).then_some(())).await;
    assert_eq!(cluster.api.get(&format!("{PODS}/web-1")).unwrap()["status"]["podIP"], "10.0.0.1");
    // It waits for its own next try; nobody waits for it.
    let asked = tokio::time::Instant::now();
    patch("web-0", "10.0.0.2").await.expect(500);
    assert!(asked.elapsed().as_secs() < 2, "{:?}", asked.elapsed());
    assert_eq!(pending(), 1, "what fails changes nothing");
    cluster.api.no_faults();
    patch("web-0", "10.0.0.3").await.expect(200);
    assert_eq!(pending(), 0, "the older patch is no longer wanted");
    let sent = cluster.api.seen("PATCH", &status("web-0"));
    let last: Value = serde_json::from_slice(&sent.last().unwrap().body).unwrap();
    assert_eq!(last["status"]["podIP"], "10.0.0.3");
    let view = until("upstream's version", async || {
        let pods = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
        (pods["items"][0]["status"]["podIP"] == "10.0.0.3").then_some(pods)
    })
    .await;
    assert_eq!(names(&view), ["web-0", "web-1"]);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_gets_and_lists_without_a_view_leads_to_the_hub_too() {
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let accept =
        [("accept", "application/vnd.kubernetes.protobuf,application/json"), ("accept-encoding", "gzip")];
    let map = "/api/v1/namespaces/kube-system/configmaps/kube-proxy";
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let get = async |path: &str| kubelet.send(Method::GET, path, &accept, Bytes::new()).await.expect(200);
    let check = async || {
        let kubeconfig = get(map).await.json()["data"]["kubeconfig.conf"].as_str().unwrap().to_owned();
        assert!(kubeconfig.contains("server: https://127.0.0.1:10261\n"), "{kubeconfig}");
        assert_eq!(get(service).await.json()["spec"]["clusterIP"], "169.254.2.1");
        let services = get("/api/v1/services").await.json();
        assert_eq!(services["items"][0]["spec"]["clusterIP"], "169.254.2.1");
    };
    check().await;
    assert_eq!(get(map).await.headers["audit-id"], "a-1");
    let asked = &cluster.api.seen("GET", map)[0].headers;
    assert_eq!(
        (&asked["accept"], &asked["accept-encoding"]),
        (&"application/json".parse().unwrap(), &"identity".parse().unwrap())
    );
    // Anything else is asked for as kubelet does.
    kubelet.send(Method::GET, "/api/v1/namespaces/shop/pods/web-0", &accept, Bytes::new()).await.expect(200);
    let asked = &cluster.api.seen("GET", "/api/v1/namespaces/shop/pods/web-0")[0].headers;
    assert_eq!(
        (&asked["accept"], &asked["accept-encoding"]),
        (&accept[0].1.parse().unwrap(), &"gzip".parse().unwrap())
    );
    // Remembered.
    cluster.cut(&hub).await;
    check().await;
    cluster.restore(&hub).await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    assert_eq!(pod.get(service).await.expect(200).json()["spec"]["clusterIP"], "10.96.0.1");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_of_the_node_is_served_while_the_link_is_down() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    let expired = As::Certificate(cluster.ca.client_until("system:node:edge", &["system:nodes"], 2001));
    let stranger = As::Certificate(cluster.ca.client_until("system:node:other", &["system:nodes"], 2001));
    let late = cluster.client(&hub, &expired).await;
    late.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(401);
    cluster.cut(&hub).await;
    late.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    cluster.client(&hub, &stranger).await.get(OWN_NODE).await.expect(401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_is_not_remembered() {
    let cluster = Cluster::new().await;
    const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
    for name in ["kept", "gone"] {
        cluster.api.put(
            CLAIMS,
            json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": name}}),
        );
    }
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for name in ["kept", "gone"] {
        kubelet.get(&format!("{CLAIMS}/{name}?timeout=10s")).await.expect(200);
    }
    cluster.api.delete(&format!("{CLAIMS}/gone"));
    kubelet.get(&format!("{CLAIMS}/gone")).await.expect(404);
    cluster.cut(&hub).await;
    let kept = kubelet.get(&format!("{CLAIMS}/kept")).await.expect(200).json();
    assert_eq!(kept["metadata"]["name"], "kept");
    kubelet.get(&format!("{CLAIMS}/gone")).await.expect(503);
    // Nor is it anybody else's.
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.client(&hub, &As::Token(token)).await.get(&format!("{CLAIMS}/kept")).await.expect(401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_hub_resumes_and_lists_nothing() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    drop(kubelet);
    hub.stop().await;
    let lists = || {
        let seen = cluster.api.seen("GET", "/api/v1/pods");
        seen.iter()
            .filter(|seen| !seen.query.contains("watch=") || seen.query.contains("sendInitialEvents"))
            .count()
    };
    let before = lists();
    // What happens while nobody looks.
    cluster.api.put(PODS, json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web-2"}, "spec": {"nodeName": "edge"}}));
    cluster.api.delete(&format!("{PODS}/web-0"));

    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let mut watch = kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion={version}")).await;
    for expected in [("ADDED", "web-2"), ("DELETED", "web-0")] {
        let (event, pod) = watch.change().await;
        assert_eq!((event.as_str(), pod["metadata"]["name"].as_str().unwrap()), expected);
    }
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(names(&list), ["web-1", "web-2"]);
    assert_eq!(lists(), before, "neither the hub nor kubelet has listed");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_http1_streams() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let request = Request::builder()
        .uri("/api/v1/services?watch=1&resourceVersion=0")
        .header("host", "127.0.0.1")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = client::http1(hub.address, &cluster.ca, &cluster.kubelet(), request).await;
    assert_eq!(response.status(), 200);
    let mut watch = client::Watch::of(response);
    assert_eq!(watch.change().await.1["metadata"]["name"], "kubernetes");
    cluster.api.put(
        "/api/v1/namespaces/shop/services",
        json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "new"}, "spec": {}}),
    );
    assert_eq!(watch.change().await.1["metadata"]["name"], "new");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_the_link_and_nothing_is_missed() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let path = "/api/v1/configmaps?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    cluster.api.put(
        "/api/v1/namespaces/shop/configmaps",
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}}),
    );
    let mut watch = kubelet.watch(path).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    let end = watch.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    for name in ["b", "c"] {
        cluster.cut(&hub).await;
        cluster.api.put(
            "/api/v1/namespaces/shop/configmaps",
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}}),
        );
        cluster.restore(&hub).await;
        let (event, object) = watch.change().await;
        assert_eq!((event.as_str(), &object["metadata"]["name"]), ("ADDED", &json!(name)));
    }
    cluster.api.delete("/api/v1/namespaces/shop/configmaps/a");
    let (event, object) = watch.change().await;
    assert_eq!((event.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("a")));
    hub.stop().await;
    assert_eq!(watch.next().await, None, "a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_reads_leads_to_the_hub() {
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    // kubelet asks for protobuf first; the views that are changed for it are JSON.
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let services = kubelet
        .send(Method::GET, "/api/v1/services?resourceVersion=0", &accept, Bytes::new())
        .await
        .expect(200);
    assert_eq!(services.headers["content-type"], "application/json");
    let service = &services.json()["items"][0]["spec"];
    assert_eq!((&service["clusterIP"], &service["ports"][0]["port"]), (&json!("169.254.2.1"), &json!(10268)));
    let path = "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dkube-proxy&resourceVersion=0";
    let maps = kubelet.send(Method::GET, path, &accept, Bytes::new()).await.expect(200).json();
    let kubeconfig = maps["items"][0]["data"]["kubeconfig.conf"].as_str().unwrap();
    assert!(kubeconfig.contains("    server: https://127.0.0.1:10261\n"), "{kubeconfig}");
    // While the link is up images are pulled as their pods say.
    let pods = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(pods["items"][0]["spec"]["containers"][0]["imagePullPolicy"], "Always");
    // Pods see the cluster as it is.
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let services = pod.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    assert_eq!(services["items"][0]["spec"]["clusterIP"], "10.96.0.1");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_on_one_connection_see_the_same_change() {
    const WATCHES: usize = 1000;
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watches = Vec::with_capacity(WATCHES);
    for _ in 0..WATCHES {
        watches.push(kubelet.watch(&format!("/api/v1/services?watch=1&resourceVersion={version}")).await);
    }
    cluster.api.put(
        "/api/v1/namespaces/shop/services",
        json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "new"}, "spec": {}}),
    );
    for watch in &mut watches {
        let (event, object) = watch.change().await;
        assert_eq!((event.as_str(), &object["metadata"]["name"]), ("ADDED", &json!("new")));
    }
    let upstream = cluster.api.seen("GET", "/api/v1/services");
    let watching = upstream.iter().filter(|seen| seen.query.contains("watch")).count();
    assert_eq!(watching, 1, "one watch upstream, whatever there is here");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_pass_through_with_the_callers_own_token() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let request = |token: &str| {
        Request::builder()
            .method("POST")
            .uri("/api/v1/namespaces/shop/pods/web-0/exec?command=sh")
            .header("host", "127.0.0.1")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(Bytes::new()))
            .unwrap()
    };
    let mut response = client::http1(hub.address, &cluster.ca, &As::Nobody, request(&token)).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async { write.write_all(&sent).await.unwrap() };
    let mut received = vec![0; sent.len()];
    let reading = async { read.read_exact(&mut received).await.unwrap() };
    tokio::join!(writing, reading);
    assert!(received == sent);
    drop(stream);
    let response = client::http1(hub.address, &cluster.ca, &As::Nobody, request("rubbish")).await;
    assert_eq!(response.status(), 401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarding_is_faithful() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    // Consistent reads are the API server's, with its headers.
    let answer = kubelet.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200);
    assert_eq!(answer.headers["audit-id"], "a-1");
    kubelet.get("/api/v1/namespaces/shop/pods/absent").await.expect(404);
    let before = cluster.api.seen("GET", "/api/v1/services").len();
    kubelet.get("/api/v1/services").await.expect(200);
    assert_eq!(cluster.api.seen("GET", "/api/v1/services").len(), before + 1);
    // Impersonation is passed on and never answered from a view.
    let headers = [("accept", "application/json"), ("impersonate-user", "alice")];
    kubelet.send(Method::GET, "/api/v1/services?resourceVersion=0", &headers, Bytes::new()).await.expect(200);
    let seen = cluster.api.seen("GET", "/api/v1/services");
    assert_eq!(seen.last().unwrap().headers["impersonate-user"], "alice");
    // Bodies go up as they are.
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "new"}, "spec": {"x": "y".repeat(500_000)}});
    kubelet.write(Method::POST, PODS, "application/json", &pod).await.expect(201);
    assert_eq!(cluster.api.seen("POST", PODS)[0].body, pod.to_string());
    // A resourceVersion from the future: three seconds of patience, then the cause that client-go looks for.
    kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200);
    let late = kubelet.get("/api/v1/services?resourceVersion=99999").await.expect(504).json();
    assert_eq!(late["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    // A watch ends when it was asked to.
    let start = tokio::time::Instant::now();
    let mut watch = kubelet.watch("/api/v1/services?watch=1&resourceVersion=0&timeoutSeconds=1").await;
    while watch.next().await.is_some() {}
    assert!((1..5).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_views_of_kube_proxy_and_coredns_are_opened_with_their_own_tokens() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let request =
        json!({"kind": "TokenRequest", "spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "u"}}});
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/coredns/token";
    let reply = kubelet.write(Method::POST, path, "application/json", &request).await.expect(201).json();
    let token = reply["status"]["token"].as_str().unwrap().to_owned();
    cluster.api.accept_token(&token, "system:serviceaccount:kube-system:coredns");
    for path in ["/api/v1/namespaces", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
        let seen = until(path, async || cluster.api.seen("GET", path).pop()).await;
        assert_eq!(seen.headers["authorization"], format!("Bearer {token}"));
        assert!(seen.headers["accept"].to_str().unwrap().contains("protobuf"));
    }
    // And the pod is known without a TokenReview, even if it never came before the link went.
    cluster.cut(&hub).await;
    let coredns = cluster.client(&hub, &As::Token(token)).await;
    coredns.get("/api/v1/namespaces/shop/configmaps/x").await.expect(503);
    assert!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").is_empty());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_port_says_what_is_missing_and_nothing_else() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(hub.health).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let ready = get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains("\"link\": \"online\""), "{ready}");
    assert!(get("/api/v1/pods").await.starts_with("HTTP/1.1 404"));
    cluster.cut(&hub).await;
    assert!(get("/readyz").await.starts_with("HTTP/1.1 503"), "nothing is known of the node yet");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_serving_certificate_is_kept_and_used_again() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    hub.stop().await;
    let file = cluster.dir.path().join("state/serving.pem");
    let first = std::fs::read(&file).unwrap();
    let hub = cluster.boot().await;
    assert_eq!(std::fs::read(&file).unwrap(), first);
    assert_eq!(cluster.api.seen("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests").len(), 1);
    hub.stop().await;
    // A damaged file costs a new certificate, not the hub.
    std::fs::write(&file, &first[..100]).unwrap();
    let hub = cluster.boot().await;
    assert_ne!(std::fs::read(&file).unwrap(), first);
    assert!(Path::new(&file).exists());
    hub.stop().await;
}
