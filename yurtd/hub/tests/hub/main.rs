//! The whole hub in one process, between real clients over TLS and a small API server behind a link that can be cut.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod budgets;
mod doctor;
mod forwarding;
mod freshness;
mod identity;
mod offline;
mod overlay;
mod own_node;
mod restart;
mod shared;
mod tokens;
mod trust;
mod watches;
mod way_in;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::agent::{Believed, Course, Moment, Turn};
use yurt_fakes::api_server::{FakeApi, Fault, When, jwt};
use yurt_fakes::client::{self, As, Client};
use yurt_fakes::link::{Mode, Wire};
use yurt_fakes::pki::{TestCa, TestCertificate, Trust};
use yurt_fakes::until;
use yurt_hub::serve::sockets::Sockets;
use yurt_hub::{Came, Places, Server, Surroundings};
use yurt_node::config::{EdgeConfig, WayIn};
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
    /// By which way pods are to come to the hub.
    way_in: WayIn,
    /// API servers beside the one behind the link.
    more_api_servers: Vec<String>,
    /// Where the hub listens for pods over IPv6. Its own address is there once on a machine.
    ipv6: SocketAddr,
    /// When kubelet came to it.
    came: watch::Sender<Came>,
}

/// The hub of one boot.
struct Hub {
    server: Server,
    tasks: Tasks,
    address: SocketAddr,
    health: SocketAddr,
    /// The node's CA.
    trust: Trust,
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
        let (dir, came) = (tempfile::tempdir().unwrap(), watch::Sender::new(Ok(Course::default())));
        for folder in ["run", "address"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let more_api_servers = Vec::new();
        let (way_in, ipv6) = (WayIn::Environment, (Ipv6Addr::LOCALHOST, 0).into());
        Self { ca, api, link, node, dir, way_in, more_api_servers, ipv6, came }
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
            api_servers: [vec![format!("https://{}", self.link.address)], self.more_api_servers.clone()]
                .concat(),
            ca_file: ca.clone(),
            client_ca_file: ca,
            client_certificate: client.clone(),
            client_key: client,
            tunnel_servers: Vec::new(),
            tunnel_ca_file: "/nowhere".into(),
            kubelet_address: "127.0.0.1:10250".into(),
            kubelet_version: "v1.36.3".into(),
            cluster_domain: None,
            way_in: self.way_in,
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
            match Server::start(&config, &state, self.surroundings(), sockets, &tasks).await {
                Ok(server) => {
                    let ca = std::fs::read_to_string(state.join("ca.pem")).unwrap();
                    Some(Hub { server, tasks, address, health, trust: Trust::of_bundle(&ca) })
                }
                Err(_) => {
                    tasks.finish(Duration::from_secs(5)).await;
                    None
                }
            }
        })
        .await;
        assert!(hub.server.readiness().serving_certificate, "from the first moment on");
        hub
    }

    fn surroundings(&self) -> Surroundings {
        let folder = |name| self.dir.path().join(name);
        let places = Places { hub: folder("run"), holder: folder("address") };
        Surroundings { places, came: self.came.subscribe(), ipv6: self.ipv6, tunnel: Arc::new(Vec::new) }
    }

    fn kubelet(&self) -> As {
        As::Certificate(self.node.clone())
    }

    async fn client(&self, hub: &Hub, who: &As) -> Client {
        Client::connect(hub.address, &hub.trust, who).await
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
