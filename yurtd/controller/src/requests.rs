//! Applies the approval of certificate requests.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{Stream, stream};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use yurt_api::names;

use super::approval::{self, CLIENT, Decision, Ours, SERVING};
use super::autonomy::is_edge;
use super::context::{Context, within};

type Events = watcher::Result<watcher::Event<CertificateSigningRequest>>;

/// Approves our own requests.
pub(super) struct Requests {
    context: Arc<Context>,
    /// One a signer: a field selector takes one value, and other signers' requests are none of our business.
    stores: [Store<CertificateSigningRequest>; 2],
    /// UIDs of requests that a person was told about.
    told: HashSet<String>,
}

impl Requests {
    /// The reconciler, and the events that fill its cache.
    pub(super) fn new(context: Arc<Context>) -> (Self, impl Stream<Item = Events> + Send) {
        let follow = |signer: &str| {
            let (store, writer) = reflector::store();
            let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
            let config = watcher::Config::default().fields(&format!("spec.signerName={signer}"));
            (store, watcher(api, config).default_backoff().reflect(writer))
        };
        let ((serving, serving_events), (client, client_events)) = (follow(SERVING), follow(CLIENT));
        let events = stream::select(serving_events, client_events);
        (Self { context, stores: [serving, client], told: HashSet::new() }, events)
    }

    /// One pass over all requests that nobody has decided about.
    pub(super) async fn reconcile(&mut self) {
        let requests: Vec<_> = self.stores.iter().flat_map(Store::state).collect();
        self.told.retain(|uid| requests.iter().any(|request| request.metadata.uid.as_ref() == Some(uid)));
        for request in requests.iter().filter(|request| is_open(request)) {
            let Context { nodes, namespace, .. } = &*self.context;
            let is_edge = |node: &str| nodes.get(node).is_some_and(|node| is_edge(&node));
            match approval::decide(&request.spec, namespace, is_edge) {
                Decision::Leave => {}
                Decision::Approve(ours) => match within(self.approve(request, &ours)).await {
                    Ok(()) => {
                        tracing::info!(request = request.name_any(), %ours, "approved a certificate")
                    }
                    Err(error) => {
                        tracing::warn!(request = request.name_any(), %ours, %error, "cannot approve; trying again");
                    }
                },
                Decision::Suspicious(fault) => {
                    if self.told.insert(request.uid().unwrap_or_default()) {
                        tracing::warn!(
                            request = request.name_any(), user = request.spec.username, %fault,
                            "a certificate request claims to be ours and is not approved"
                        );
                    }
                }
            }
        }
    }

    async fn approve(&self, request: &CertificateSigningRequest, ours: &Ours) -> Result<(), kube::Error> {
        let now = Time(Timestamp::now());
        let mut conditions =
            request.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some(ours.reason().into()),
            message: Some(format!("approved by {}: {ours}", names::CONTROLLER)),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        });
        // With the version that was judged: a request that changed since is judged again.
        let patch = json!({
            "metadata": {"resourceVersion": request.resource_version()},
            "status": {"conditions": conditions},
        });
        let api: Api<CertificateSigningRequest> = Api::all(self.context.client.clone());
        let params = PatchParams { field_manager: Some(names::CONTROLLER.into()), ..PatchParams::default() };
        match api.patch_approval(&request.name_any(), &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            // Somebody decided in the meantime, or it is gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_open(request: &CertificateSigningRequest) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    !conditions.is_some_and(|all| {
        all.iter().any(|condition| matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

    use crate::testing::FakeCluster;

    fn request(names: &[&str]) -> serde_json::Value {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:edge-1");
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                signer_name: SERVING.into(),
                request: ByteString(pem.into_bytes()),
                username: Some("system:node:edge-1".into()),
                groups: Some(vec!["system:nodes".into()]),
                usages: Some(vec!["server auth".into()]),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        request.metadata.uid = Some("uid".into());
        serde_json::to_value(request).unwrap()
    }

    /// What a tunnel server asks for, and somebody else in its name.
    fn client_request(account: &str) -> serde_json::Value {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, names::TUNNEL_SERVER_USER);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = request(&[]);
        request["spec"] = serde_json::to_value(CertificateSigningRequestSpec {
            signer_name: CLIENT.into(),
            request: ByteString(pem.into_bytes()),
            username: Some(format!("system:serviceaccount:kube-system:{account}")),
            groups: Some(vec!["system:serviceaccounts:kube-system".into()]),
            usages: Some(vec!["client auth".into()]),
            expiration_seconds: Some(86_400),
            ..CertificateSigningRequestSpec::default()
        })
        .unwrap();
        request
    }

    async fn filled(context: Arc<Context>) -> Requests {
        let (requests, events) = Requests::new(context);
        let mut events = Box::pin(events);
        for _signer in [SERVING, CLIENT] {
            while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
        }
        // The reader must outlive its writer's last event, not the writer.
        tokio::spawn(async move { while events.next().await.is_some() {} });
        requests
    }

    #[tokio::test]
    async fn the_hubs_request_is_approved_and_kubelets_is_not_touched() {
        const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let cluster = FakeCluster::start().await;
        cluster.put(
            "/api/v1/nodes/edge-1",
            json!({
                "kind": "Node", "apiVersion": "v1",
                "metadata": {"name": "edge-1", "labels": {"openyurt.io/is-edge-worker": "true"}}
            }),
        );
        cluster.put(&format!("{CSRS}/hub"), request(&["127.0.0.1", "169.254.2.1"]));
        cluster.put(&format!("{CSRS}/kubelet"), request(&["10.80.0.7", "edge-1"]));
        let mut denied = request(&["169.254.2.1"]);
        denied["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
        cluster.put(&format!("{CSRS}/denied"), denied);
        let mut requests = filled(cluster.context().await).await;
        requests.reconcile().await;
        let patches = cluster.patches(&format!("{CSRS}/hub/approval"));
        assert_eq!(patches.len(), 1);
        assert_eq!(patches[0]["status"]["conditions"][0]["type"], "Approved");
        assert!(patches[0]["metadata"]["resourceVersion"].is_string());
        assert_eq!(cluster.writes(), 1);
    }

    #[tokio::test]
    async fn the_tunnel_servers_request_is_approved_and_one_in_its_name_is_not() {
        const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let cluster = FakeCluster::start().await;
        cluster.put(&format!("{CSRS}/ours"), client_request(names::TUNNEL_SERVER));
        cluster.put(&format!("{CSRS}/theirs"), client_request("default"));
        let mut requests = filled(cluster.context().await).await;
        requests.reconcile().await;
        let patches = cluster.patches(&format!("{CSRS}/ours/approval"));
        assert_eq!(patches[0]["status"]["conditions"][0]["reason"], "YurtTunnelServerClient");
        assert_eq!(cluster.writes(), 1);
    }

    #[tokio::test]
    async fn a_node_that_is_not_labelled_yet_is_approved_for_when_it_is() {
        const CSR: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests/hub";
        let cluster = FakeCluster::start().await;
        let mut node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "edge-1"}});
        cluster.put("/api/v1/nodes/edge-1", node.clone());
        cluster.put(CSR, request(&["127.0.0.1", "169.254.2.1"]));
        let context = cluster.context().await;
        let mut requests = filled(context.clone()).await;
        requests.reconcile().await;
        assert_eq!(cluster.writes(), 0);
        let mut changes = context.nodes.changes();
        changes.mark_unchanged();
        node["metadata"]["labels"] = json!({"openyurt.io/is-edge-worker": "true"});
        cluster.put("/api/v1/nodes/edge-1", node);
        changes.changed().await.unwrap();
        requests.reconcile().await;
        assert_eq!(cluster.patches(&format!("{CSR}/approval")).len(), 1);
    }
}
