//! The keeper's questions over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use yurt_api::doctor::TunnelSession;
use yurt_api::names;
use yurt_api::status::ConversionStatus;
use yurt_node::api_client::{ApiClient, ApiError, DEADLINE};

use super::super::agents::Agent;
use super::super::containers::Running;
use super::super::{kubeconfig, look};
use super::agents::AgentPod;
use super::objects::{ConfigMap, Lease, Node, Pod};
use super::{Access, Cluster, ClusterError, HubWayIn, OwnNode, Route, health};

/// Where kubelet keeps its Lease.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Between two tries at a server that is busy, at first; then it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The cluster behind a network.
pub(crate) struct ApiCluster {
    node: String,
    namespace: String,
    access: Option<Access>,
    clients: Vec<(Route, ApiClient)>,
    /// What the hub is believed by beside the cluster's CA, PEM.
    hub_ca: Option<String>,
    /// The access is another one than when this was last asked.
    changed: bool,
}

impl ApiCluster {
    pub(crate) fn new(node: &str, namespace: &str) -> Self {
        Self {
            node: node.into(),
            namespace: namespace.into(),
            access: None,
            clients: Vec::new(),
            hub_ca: None,
            changed: false,
        }
    }

    /// A client for a way; the same one until the access changes.
    pub(crate) fn client(&mut self, route: Route) -> Result<ApiClient, ClusterError> {
        if let Some((_, client)) = self.clients.iter().find(|(found, _)| *found == route) {
            return Ok(client.clone());
        }
        let access = self.access.as_ref().ok_or_else(|| ClusterError::Credentials("not read yet".into()))?;
        let client = match route {
            Route::Direct => ApiClient::new(access),
            Route::Hub => {
                let ca = match &self.hub_ca {
                    Some(node_ca) => kubeconfig::bundle(&access.ca, node_ca),
                    None => access.ca.clone(),
                };
                ApiClient::new(&Access { server: look::hub_url(), ca, ..access.clone() })
            }
        };
        let client = client.map_err(|error| ClusterError::Credentials(error.to_string()))?;
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

    /// Asks by a way.
    async fn ask<T>(
        &mut self,
        route: Route,
        question: impl AsyncFn(&ApiClient) -> Result<T, ApiError>,
    ) -> Result<T, ClusterError> {
        let client = self.client(route)?;
        let (question, client) = (&question, &client);
        patiently(route, move || question(client)).await
    }

    fn own_path(&self) -> String {
        format!("/api/v1/nodes/{}", self.node)
    }

    /// The node's own pods, each of which `take` gets as what it wants to know of it.
    async fn pods<P: DeserializeOwned, T: Default>(
        &mut self,
        route: Route,
        take: impl Fn(&mut T, P),
    ) -> Result<T, ClusterError> {
        let own = format!("spec.nodeName={}", self.node);
        self.ask(route, async |client| {
            let mut all = T::default();
            client.list("/api/v1/pods", &own, |pod: P| take(&mut all, pod)).await?;
            Ok(all)
        })
        .await
    }
}

/// Asks a busy server (429, 503, 504) again and again, within the time that one request may take; one that is busy for
/// longer might as well not be there.
pub(super) async fn patiently<T, F>(route: Route, question: impl Fn() -> F) -> Result<T, ClusterError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let deadline = Instant::now() + DEADLINE;
    let mut pause = FIRST_PAUSE;
    let mut last = format!("no answer within {} s", DEADLINE.as_secs());
    loop {
        match tokio::time::timeout_at(deadline, question()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(ApiError::Refused { code, message, retry_after }))
                if matches!(code.as_u16(), 429 | 503 | 504) =>
            {
                last = format!("it was busy for {} s ({message})", DEADLINE.as_secs());
                let wait = retry_after.unwrap_or_default().max(pause);
                tokio::time::sleep_until(deadline.min(Instant::now() + wait)).await;
                pause *= 2;
            }
            Ok(Err(error)) => return Err(ClusterError::of(route, error)),
            Err(_) => return Err(ClusterError::Unreachable { what: route.what(), message: last }),
        }
    }
}

/// By how many seconds a clock differs from the `Date` of an answer.
pub(super) fn clock_skew(date: Option<&str>, now: Timestamp) -> i64 {
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    // Without a date there is nothing to compare; certificates will tell.
    theirs.map_or(0, |theirs| now.as_second() - theirs.timestamp().as_second())
}

impl Cluster for ApiCluster {
    fn set_access(&mut self, access: Access) {
        if self.access.as_ref() != Some(&access) {
            self.access = Some(access);
            self.clients.clear();
            self.changed = true;
        }
    }

    async fn node(&mut self) -> Result<OwnNode, ClusterError> {
        let path = self.own_path();
        let node: Node = self.ask(Route::Direct, async |client| client.get(&path).await).await?;
        Ok(node.into())
    }

    async fn clock_skew(&mut self) -> Result<i64, ClusterError> {
        let date = self.ask(Route::Direct, async |client| client.date().await).await?;
        Ok(clock_skew(date.as_deref(), Timestamp::now()))
    }

    async fn lease(&mut self) -> Result<Option<Timestamp>, ClusterError> {
        let path = format!("{LEASES}/{}", self.node);
        let lease: Option<Lease> = self.ask(Route::Direct, async |client| client.find(&path).await).await?;
        Ok(lease.and_then(Lease::renewed))
    }

    async fn containers(&mut self) -> Result<Running, ClusterError> {
        self.pods(Route::Direct, |running, pod: Pod| pod.add_to(running)).await
    }

    async fn agents(&mut self, route: Route) -> Result<Vec<Agent>, ClusterError> {
        self.pods(route, |agents: &mut Vec<Agent>, pod: AgentPod| agents.extend(pod.agent())).await
    }

    async fn config_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, String>>, ClusterError> {
        let path = format!("/api/v1/namespaces/{}/configmaps/{name}", self.namespace);
        let found: Option<ConfigMap> =
            self.ask(Route::Direct, async |client| client.find(&path).await).await?;
        Ok(found.and_then(|map| map.data))
    }

    async fn report(&mut self, status: &ConversionStatus) -> Result<(), ClusterError> {
        let text = serde_json::to_string(status).map_err(|error| ClusterError::Unreadable {
            what: "the conversion's state",
            message: error.to_string(),
        })?;
        let patch = serde_json::json!({"metadata": {"annotations": {names::ANNOTATION_CONVERSION: text}}});
        let path = self.own_path();
        self.ask(Route::Direct, async |client| client.merge_patch(&path, &patch).await).await
    }

    async fn hub_ready(&mut self) -> Result<(), ClusterError> {
        health::is_ready(Route::Hub.what()).await
    }

    async fn hub_way_in(&mut self) -> Result<HubWayIn, ClusterError> {
        health::way_in(Route::Hub.what()).await
    }

    async fn hub_tunnel(&mut self) -> Result<Vec<TunnelSession>, ClusterError> {
        health::tunnel(Route::Hub.what()).await
    }

    async fn hub_ca(&mut self) -> Result<Option<String>, ClusterError> {
        health::node_ca(Route::Hub.what()).await
    }

    fn believe_hub(&mut self, node_ca: Option<&str>) {
        if self.hub_ca.as_deref() != node_ca {
            self.hub_ca = node_ca.map(str::to_owned);
            self.clients.retain(|(route, _)| *route != Route::Hub);
            self.changed = true;
        }
    }

    async fn hub_serves(&mut self) -> Result<(), ClusterError> {
        let any = format!("{}?resourceVersion=0", self.own_path());
        self.ask(Route::Hub, async |client| client.get::<Node>(&any).await).await?;
        self.pods(Route::Hub, |running: &mut Running, pod: Pod| pod.add_to(running)).await?;
        Ok(())
    }
}
