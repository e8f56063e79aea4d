//! Applies the approval of certificate requests.

use std::collections::HashSet;
use std::sync::Arc;

use futures::Stream;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use yurt_api::names;

use super::approval::{self, Decision, REASON, SIGNER};
use super::context::{Context, within};

type Events = watcher::Result<watcher::Event<CertificateSigningRequest>>;

/// Approves our own requests.
pub(super) struct Requests {
    context: Arc<Context>,
    /// Those for our signer: others' are none of our business.
    store: Store<CertificateSigningRequest>,
    /// UIDs of requests that a person was told about.
    told: HashSet<String>,
}

impl Requests {
    /// The reconciler, and the events that fill its cache.
    pub(super) fn new(context: Arc<Context>) -> (Self, impl Stream<Item = Events> + Send) {
        let (store, writer) = reflector::store();
        let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
        let events = watcher(api, config).default_backoff().reflect(writer);
        (Self { context, store, told: HashSet::new() }, events)
    }

    /// One pass over all requests that nobody has decided about.
    pub(super) async fn reconcile(&mut self) {
        let requests = self.store.state();
        self.told.retain(|uid| requests.iter().any(|request| request.metadata.uid.as_ref() == Some(uid)));
        for request in requests.iter().filter(|request| is_open(request)) {
            match approval::decide(&request.spec, &self.context.namespace) {
                Decision::Leave => {}
                Decision::Approve => match within(self.approve(request)).await {
                    Ok(()) => {
                        tracing::info!(request = request.name_any(), "approved a tunnel server's certificate")
                    }
                    Err(error) => {
                        tracing::warn!(request = request.name_any(), %error, "cannot approve; trying again");
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

    async fn approve(&self, request: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let now = Time(Timestamp::now());
        let mut conditions =
            request.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some(REASON.into()),
            message: Some(format!(
                "approved by {}: the tunnel server as kubelets' client",
                names::CONTROLLER
            )),
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

    const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

    /// What this account asks for.
    fn request(signer: &str, account: &str) -> serde_json::Value {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, names::TUNNEL_SERVER_USER);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                signer_name: signer.into(),
                request: ByteString(pem.into_bytes()),
                username: Some(format!("system:serviceaccount:kube-system:{account}")),
                groups: Some(vec!["system:serviceaccounts:kube-system".into()]),
                usages: Some(vec!["client auth".into()]),
                expiration_seconds: Some(86_400),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        request.metadata.uid = Some(format!("{signer} {account}"));
        serde_json::to_value(request).unwrap()
    }

    async fn filled(context: Arc<Context>) -> Requests {
        let (requests, events) = Requests::new(context);
        let mut events = Box::pin(events);
        while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
        // The reader must outlive its writer's last event, not the writer.
        tokio::spawn(async move { while events.next().await.is_some() {} });
        requests
    }

    #[tokio::test]
    async fn the_tunnel_servers_request_is_approved_and_nobody_elses_is_touched() {
        let cluster = FakeCluster::start().await;
        cluster.put(&format!("{CSRS}/ours"), request(SIGNER, names::TUNNEL_SERVER));
        cluster.put(&format!("{CSRS}/theirs"), request(SIGNER, "default"));
        // A hub of a release before asks for a serving certificate.
        cluster.put(&format!("{CSRS}/hub"), request("kubernetes.io/kubelet-serving", names::TUNNEL_SERVER));
        let mut denied = request(SIGNER, names::TUNNEL_SERVER);
        denied["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
        cluster.put(&format!("{CSRS}/denied"), denied);
        let mut requests = filled(cluster.context().await).await;
        requests.reconcile().await;
        let patches = cluster.patches(&format!("{CSRS}/ours/approval"));
        assert_eq!(patches.len(), 1);
        assert_eq!(patches[0]["status"]["conditions"][0]["type"], "Approved");
        assert_eq!(patches[0]["status"]["conditions"][0]["reason"], "YurtTunnelServerClient");
        assert!(patches[0]["metadata"]["resourceVersion"].is_string());
        assert_eq!(cluster.writes(), 1);
    }
}
