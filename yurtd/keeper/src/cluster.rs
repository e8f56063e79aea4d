//! The API server (directly and through the hub) and the hub's health, as the keeper asks them: always with the
//! node's own client certificate, so that the keeper can do nothing that kubelet could not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Empty};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, GetParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Client, Config};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use yurt_api::names;
use yurt_api::status::ConversionStatus;

use super::containers::{self, Running};
use super::look;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a watch of the own Node lasts before it is opened again.
const WATCH_SECONDS: u32 = 290;
/// Where kubelet keeps its Lease.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Why an answer did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// Nobody answers: the link is down, or nothing listens.
    #[error("cannot reach {what}: {message}")]
    Unreachable { what: &'static str, message: String },
    /// Somebody answers, but not what was asked for.
    #[error("{what} refused: {message}")]
    Refused {
        what: &'static str,
        /// HTTP status code; `None` when the answer itself could not be read.
        code: Option<u16>,
        message: String,
    },
    #[error("kubelet's client certificate cannot be used: {0}")]
    Credentials(String),
}

impl ClusterError {
    /// Whether this may pass by itself when the link is back.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the same question may be answered in a moment: nobody was reached, too many ask (429), or the API server
    /// has a fault that passes (5xx: its etcd elects a leader, it starts or stops).
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => code.is_some_and(|code| code == 429 || code >= 500),
            Self::Credentials(_) => false,
        }
    }
}

/// By which way a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the API server that kubelet's own kubeconfig names.
    Direct,
    /// To the hub on this node.
    Hub,
}

impl Route {
    fn what(self) -> &'static str {
        match self {
            Self::Direct => "the API server",
            Self::Hub => "the hub",
        }
    }
}

/// Where the API server is and who the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    /// `https://host:port`
    pub server: String,
    /// CA, PEM.
    pub ca: Vec<u8>,
    /// Client certificate and key, PEM.
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// What the keeper wants to know of its Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnNode {
    pub ready: bool,
    pub kubelet_version: String,
    /// The label that makes it an edge node is there.
    pub edge: bool,
    /// [`names::ANNOTATION_TARGET`]
    pub target: Option<String>,
    /// [`names::ANNOTATION_CONVERSION`]
    pub conversion: Option<String>,
}

impl From<&Node> for OwnNode {
    fn from(node: &Node) -> Self {
        let annotation =
            |name: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        let label = |name: &str| node.metadata.labels.as_ref().and_then(|all| all.get(name));
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Self {
            ready: conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            kubelet_version: status
                .and_then(|status| status.node_info.as_ref())
                .map(|info| info.kubelet_version.clone())
                .unwrap_or_default(),
            edge: label(names::LABEL_EDGE_WORKER)
                .or_else(|| label(names::LABEL_EDGE_WORKER_LEGACY))
                .is_some_and(|value| value == "true"),
            target: annotation(names::ANNOTATION_TARGET),
            conversion: annotation(names::ANNOTATION_CONVERSION),
        }
    }
}

/// Everything that the keeper asks over a connection. Implemented over kube and in memory for the tests that kill
/// the keeper between any two steps.
pub(crate) trait Cluster {
    /// From now on, this API server and these credentials.
    fn set_access(&mut self, access: Access);
    /// The own Node, from the API server itself.
    async fn node(&mut self) -> Result<OwnNode, ClusterError>;
    /// By how many seconds the node's clock differs from the API server's.
    async fn clock_skew(&mut self) -> Result<i64, ClusterError>;
    /// When kubelet last renewed its Lease, from the API server itself.
    async fn lease(&mut self) -> Result<Option<Timestamp>, ClusterError>;
    /// The containers that run on the node.
    async fn containers(&mut self) -> Result<Running, ClusterError>;
    /// Data of a ConfigMap of ours; `None` when it is not there (yet).
    async fn config_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ClusterError>;
    /// Writes the status into the own Node's annotation.
    async fn report(&mut self, status: &ConversionStatus) -> Result<(), ClusterError>;
    /// Whether the hub says that it is ready.
    async fn hub_ready(&mut self) -> Result<(), ClusterError>;
    /// Whether the hub serves the node's own Node and pods.
    async fn hub_serves(&mut self) -> Result<(), ClusterError>;
}

/// The real thing.
pub(crate) struct KubeCluster {
    node: String,
    namespace: String,
    access: Option<Access>,
    clients: Vec<(Route, Client)>,
    /// The access is another one than when this was last asked.
    changed: bool,
}

impl KubeCluster {
    pub(crate) fn new(node: &str, namespace: &str) -> Self {
        Self {
            node: node.into(),
            namespace: namespace.into(),
            access: None,
            clients: Vec::new(),
            changed: false,
        }
    }

    /// A client for a way; the same one until the access changes.
    pub(crate) async fn client(&mut self, route: Route) -> Result<Client, ClusterError> {
        if let Some((_, client)) = self.clients.iter().find(|(found, _)| *found == route) {
            return Ok(client.clone());
        }
        let access = self.access.as_ref().ok_or_else(|| ClusterError::Credentials("not read yet".into()))?;
        let client = connect(access, route).await?;
        self.clients.push((route, client.clone()));
        Ok(client)
    }

    /// Whether whoever holds a client must ask for a new one.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Whoever held a client has a new one.
    pub(crate) fn forget_change(&mut self) {
        self.changed = false;
    }

    async fn nodes(&mut self, route: Route) -> Result<Api<Node>, ClusterError> {
        Ok(Api::all(self.client(route).await?))
    }

    async fn pods(&mut self, route: Route) -> Result<Vec<Pod>, ClusterError> {
        let pods: Api<Pod> = Api::all(self.client(route).await?);
        let own = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).match_any();
        Ok(bounded(route, pods.list(&own)).await?.items)
    }
}

/// Runs a request with a limit, and sorts its error.
async fn bounded<T>(
    route: Route,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(sort(route, &error)),
        Err(_) => Err(ClusterError::Unreachable {
            what: route.what(),
            message: format!("no answer within {} s", REQUEST_LIMIT.as_secs()),
        }),
    }
}

fn sort(route: Route, error: &kube::Error) -> ClusterError {
    let what = route.what();
    match error {
        kube::Error::Api(status) => {
            ClusterError::Refused { what, code: Some(status.code), message: status.message.clone() }
        }
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            ClusterError::Refused { what, code: None, message: error.to_string() }
        }
        _ => ClusterError::Unreachable { what, message: chain(error) },
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

async fn connect(access: &Access, route: Route) -> Result<Client, ClusterError> {
    let mut server = match route {
        Route::Direct => access.server.clone(),
        Route::Hub => look::hub_url(),
    };
    let mut tls_server_name = None;
    // A static glibc has no NSS: names are resolved here, and the certificate is checked for the name.
    let uri: http::Uri =
        server.parse().map_err(|_| ClusterError::Credentials(format!("{server:?} is no URL")))?;
    let host = uri.host().unwrap_or_default();
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
        let address = resolve(host).await?;
        tls_server_name = Some(host.to_owned());
        let address = std::net::SocketAddr::new(address, uri.port_u16().unwrap_or(443));
        server = format!("https://{address}");
    }
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let kubeconfig = serde_json::json!({
        "clusters": [{"name": "cluster", "cluster": {
            "server": server,
            "tls-server-name": tls_server_name,
            "certificate-authority-data": base64(&access.ca),
        }}],
        // kubelet keeps both in one file; each goes to its place once.
        "users": [{"name": "node", "user": {
            "client-certificate-data": base64(&sections(&access.certificate, |label| label == "CERTIFICATE")),
            "client-key-data": base64(&sections(&access.key, |label| label.ends_with("PRIVATE KEY"))),
        }}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "node"}}],
        "current-context": "context",
    });
    let unusable = |error: &dyn std::error::Error| ClusterError::Credentials(chain(error));
    let kubeconfig =
        kube::config::Kubeconfig::from_yaml(&kubeconfig.to_string()).map_err(|error| unusable(&error))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(&error))?;
    config.connect_timeout = Some(REQUEST_LIMIT);
    Client::try_from(config).map_err(|error| unusable(&error))
}

/// The sections of a PEM file whose label is wanted.
fn sections(pem: &[u8], wanted: fn(&str) -> bool) -> Vec<u8> {
    let mut found = String::new();
    let mut inside = false;
    for line in String::from_utf8_lossy(pem).lines() {
        let label =
            |prefix: &str| line.trim_end().strip_prefix(prefix)?.strip_suffix("-----").map(str::to_owned);
        inside |= label("-----BEGIN ").is_some_and(|label| wanted(&label));
        if inside {
            found.push_str(line);
            found.push('\n');
        }
        inside &= label("-----END ").is_none();
    }
    found.into_bytes()
}

async fn resolve(host: &str) -> Result<IpAddr, ClusterError> {
    let failed = |message: String| ClusterError::Unreachable { what: Route::Direct.what(), message };
    let found = yurt_node::dial::resolve(host).await.map_err(|error| failed(error.to_string()))?;
    found.first().copied().ok_or_else(|| failed(format!("{host} has no address")))
}

impl Cluster for KubeCluster {
    fn set_access(&mut self, access: Access) {
        if self.access.as_ref() != Some(&access) {
            self.access = Some(access);
            self.clients.clear();
            self.changed = true;
        }
    }

    async fn node(&mut self) -> Result<OwnNode, ClusterError> {
        let nodes = self.nodes(Route::Direct).await?;
        let node = bounded(Route::Direct, nodes.get(&self.node)).await?;
        Ok(OwnNode::from(&node))
    }

    async fn clock_skew(&mut self) -> Result<i64, ClusterError> {
        let client = self.client(Route::Direct).await?;
        let request = http::Request::get("/version").body(kube::client::Body::empty()).map_err(|error| {
            ClusterError::Refused { what: Route::Direct.what(), code: None, message: error.to_string() }
        })?;
        let response = bounded(Route::Direct, client.send(request)).await?;
        let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        // Without a date there is nothing to compare; certificates will tell.
        Ok(theirs.map_or(0, |theirs| Timestamp::now().as_second() - theirs.timestamp().as_second()))
    }

    async fn lease(&mut self) -> Result<Option<Timestamp>, ClusterError> {
        let leases: Api<Lease> = Api::namespaced(self.client(Route::Direct).await?, LEASE_NAMESPACE);
        let lease = bounded(Route::Direct, leases.get_opt(&self.node)).await?;
        Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.renew_time).map(|time| time.0))
    }

    async fn containers(&mut self) -> Result<Running, ClusterError> {
        Ok(containers::running(&self.pods(Route::Direct).await?))
    }

    async fn config_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ClusterError> {
        let client = self.client(Route::Direct).await?;
        let maps: Api<ConfigMap> = Api::namespaced(client, &self.namespace);
        let found = bounded(Route::Direct, maps.get_opt(name)).await?;
        Ok(found.and_then(|map| map.data))
    }

    async fn report(&mut self, status: &ConversionStatus) -> Result<(), ClusterError> {
        let nodes = self.nodes(Route::Direct).await?;
        let text = serde_json::to_string(status).map_err(|error| ClusterError::Refused {
            what: Route::Direct.what(),
            code: None,
            message: error.to_string(),
        })?;
        let patch = serde_json::json!({"metadata": {"annotations": {names::ANNOTATION_CONVERSION: text}}});
        bounded(
            Route::Direct,
            nodes.patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(&patch)),
        )
        .await?;
        Ok(())
    }

    async fn hub_ready(&mut self) -> Result<(), ClusterError> {
        let failed = |message: String| ClusterError::Unreachable { what: Route::Hub.what(), message };
        let ask = async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", names::HUB_HEALTH_PORT))
                .await
                .map_err(|error| failed(error.to_string()))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                    .await
                    .map_err(|error| failed(error.to_string()))?;
            let request = http::Request::get("/readyz")
                .header(http::header::HOST, "127.0.0.1")
                .body(Empty::<bytes::Bytes>::new())
                .map_err(|error| failed(error.to_string()))?;
            let exchange = async {
                let response =
                    sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
                let status = response.status();
                let body = http_body_util::Limited::new(response.into_body(), 64 * 1024);
                let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
                if status.is_success() {
                    Ok(())
                } else {
                    let message = format!("{status} {}", String::from_utf8_lossy(&body).trim());
                    Err(ClusterError::Refused {
                        what: Route::Hub.what(),
                        code: Some(status.as_u16()),
                        message,
                    })
                }
            };
            // The connection lives as long as the exchange and not longer: no task is left behind.
            tokio::select! {
                outcome = exchange => outcome,
                ended = connection => Err(failed(match ended {
                    Ok(()) => "it closed the connection".to_owned(),
                    Err(error) => error.to_string(),
                })),
            }
        };
        tokio::time::timeout(REQUEST_LIMIT, ask).await.unwrap_or_else(|_| Err(failed("no answer".into())))
    }

    async fn hub_serves(&mut self) -> Result<(), ClusterError> {
        let nodes = self.nodes(Route::Hub).await?;
        let any = GetParams { resource_version: Some("0".into()) };
        bounded(Route::Hub, nodes.get_with(&self.node, &any)).await?;
        self.pods(Route::Hub).await?;
        Ok(())
    }
}

/// Follows the own Node in a task of its own until dropped.
pub(crate) struct Follower {
    task: JoinHandle<()>,
    /// Which way it goes first.
    pub route: Route,
    pub seen: watch::Receiver<Option<OwnNode>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Follows the Node by the first of these ways that works; through the hub it costs no uplink.
    pub(crate) fn start(node: &str, route: Route, ways: Vec<(Route, Client)>) -> Self {
        let (sender, seen) = watch::channel(None);
        let node = node.to_owned();
        let task = tokio::spawn(async move {
            let mut pause = Duration::from_secs(1);
            loop {
                for (route, client) in &ways {
                    match follow(client.clone(), &node, &sender).await {
                        Ok(()) => {
                            pause = Duration::from_secs(1);
                            break;
                        }
                        Err(error) => {
                            let error = sort(*route, &error);
                            tracing::debug!(%error, "the watch of the own node ended");
                        }
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(15));
            }
        });
        Self { task, route, seen }
    }
}

/// One list and one watch of the own Node; `Ok` when the watch came to its regular end.
async fn follow(
    client: Client,
    node: &str,
    sender: &watch::Sender<Option<OwnNode>>,
) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client);
    let field = format!("metadata.name={node}");
    let publish = |node: &Node| {
        let seen = Some(OwnNode::from(node));
        sender.send_if_modified(|last| {
            let changed = *last != seen;
            if changed {
                last.clone_from(&seen);
            }
            changed
        });
    };
    let list = nodes.list(&ListParams::default().fields(&field).match_any()).await?;
    for node in &list.items {
        publish(node);
    }
    let version = list.metadata.resource_version.unwrap_or_default();
    let params = WatchParams::default().fields(&field).timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(nodes.watch(&params, &version).await?);
    let limit = Duration::from_secs(u64::from(WATCH_SECONDS) + 10);
    // A link that was lost without a word ends a watch no other way.
    while let Ok(event) = tokio::time::timeout(limit, events.try_next()).await {
        let Some(event) = event? else { break };
        match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => publish(&node),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
