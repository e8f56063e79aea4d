//! The common API server as this crate's tests use it: with our custom resource, and a cache of nodes that does not
//! hear of what the controller itself has patched. A cache that lags is the hard case.

use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use yurt_fakes::api_server::{FakeApi, Fault, Kind, Resource, Seen, When};

use super::context::{Context, follow_nodes};

pub(crate) struct FakeCluster {
    api: FakeApi,
    client: kube::Client,
}

impl Deref for FakeCluster {
    type Target = FakeApi;

    fn deref(&self) -> &FakeApi {
        &self.api
    }
}

impl FakeCluster {
    pub(crate) async fn start() -> Self {
        let api = FakeApi::plain().await;
        let parameters = Resource::new("/apis/autonomy.openyurt.io/v1alpha1", "autonomousnodes");
        api.define(parameters, Kind::custom("AutonomousNodes"));
        let config = kube::Config::new(api.url().parse().unwrap());
        let cluster = Self { client: kube::Client::try_from(config).unwrap(), api };
        cluster.lag();
        cluster
    }

    fn lag(&self) {
        self.fault(When::all().method("PATCH"), Fault::Unseen);
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// A context whose node cache is filled and goes on following.
    pub(crate) async fn context(&self) -> Arc<Context> {
        let (nodes, follow) = follow_nodes(self.client.clone(), CancellationToken::new());
        tokio::spawn(follow);
        nodes.ready().await;
        Arc::new(Context {
            client: self.client.clone(),
            namespace: "kube-system".into(),
            identity: "controller-0".into(),
            nodes,
        })
    }

    /// From now on the server does not know paths that begin with `prefix`, as when a definition is missing.
    pub(crate) fn refuse(&self, prefix: &str) {
        self.no_faults();
        self.lag();
        self.fault(When::under(prefix), Fault::Text(404, "404 page not found\n"));
    }

    /// How often the client has read a path.
    pub(crate) fn reads(&self, path: &str) -> usize {
        self.seen("GET", path).len()
    }

    pub(crate) fn patches(&self, path: &str) -> Vec<Value> {
        self.seen("PATCH", path).iter().map(Seen::json).collect()
    }

    pub(crate) fn created(&self, path: &str) -> Vec<Value> {
        self.seen("POST", path).iter().map(Seen::json).collect()
    }
}
