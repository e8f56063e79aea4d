//! Applies autonomy: the parameter of the admission policies, the nodes' conditions, Events.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use yurt_api::names;

use super::autonomy::{self, CONDITION, Change, Verdict};
use super::context::{Context, Unwritten, label_ours, version, within};

/// Keeps parameter and conditions as the nodes' annotations say.
pub(super) struct Nodes {
    context: Arc<Context>,
    recorder: Recorder,
    /// resourceVersion at which a node's condition was written, until the cache has caught up: what the
    /// cache still shows would be written, and told, a second time.
    written: HashMap<String, u128>,
    /// What the parameter was when it was last looked at.
    parameter: Option<BTreeMap<String, String>>,
    /// The API server does not know the parameter's kind, and that has been said.
    kind_unknown: bool,
}

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Nodes have changed; most such changes are heartbeats and concern nobody here.
    Changed,
    /// Everything, the parameter itself too: somebody may have edited it.
    Full,
}

impl Nodes {
    /// Nothing is written yet.
    pub(super) fn new(context: Arc<Context>) -> Self {
        let reporter =
            Reporter { controller: names::CONTROLLER.into(), instance: Some(context.identity.clone()) };
        let recorder = Recorder::new(context.client.clone(), reporter);
        Self { context, recorder, written: HashMap::new(), parameter: None, kind_unknown: false }
    }

    /// One pass; repeated passes write nothing.
    pub(super) async fn reconcile(&mut self, pass: Pass) {
        let nodes = self.context.nodes.all();
        let wanted = autonomy::parameter(nodes.iter().map(Arc::as_ref));
        if pass == Pass::Full || self.parameter.as_ref() != Some(&wanted) {
            match within(self.write_parameter(&wanted)).await {
                Ok(()) => {
                    self.parameter = Some(wanted);
                    self.kind_unknown = false;
                }
                Err(error) => {
                    self.parameter = None;
                    self.unwritten(&error);
                }
            }
        }
        self.written.retain(|name, _| nodes.iter().any(|node| node.metadata.name.as_ref() == Some(name)));
        for node in &nodes {
            if let Err(error) = within(self.condition(node)).await {
                tracing::warn!(node = node.name_any(), %error, "cannot write the node's condition");
            }
        }
    }

    /// The object is ours alone: a key that somebody added would hold on to the pods of a node that
    /// nobody made autonomous.
    async fn write_parameter(&self, wanted: &BTreeMap<String, String>) -> Result<(), kube::Error> {
        let name = names::AUTONOMOUS_NODES;
        let kind = kind();
        let api: Api<DynamicObject> = Api::all_with(self.context.client.clone(), &kind);
        let found = match api.get(name).await {
            Ok(found) => Some(found),
            Err(error) if is_not_found(&error) => None,
            Err(error) => return Err(error),
        };
        let exists = found.is_some();
        let mut object = found.unwrap_or_else(|| DynamicObject::new(name, &kind));
        let labelled = label_ours(&mut object.metadata);
        if exists && labelled && nodes_of(&object).as_ref() == Some(wanted) {
            return Ok(());
        }
        // All of it: there is nothing else in it.
        object.data = json!({"spec": {"nodes": wanted}});
        if exists {
            api.replace(name, &PostParams::default(), &object).await?;
        } else {
            api.create(&PostParams::default(), &object).await?;
        }
        tracing::info!(nodes = wanted.len(), "wrote the autonomous nodes");
        Ok(())
    }

    /// Says why the parameter is not written; that its kind does not exist yet is said once.
    fn unwritten(&mut self, error: &Unwritten) {
        let unknown = matches!(error, Unwritten::Api(error) if is_not_found(error));
        if unknown && self.kind_unknown {
            return;
        }
        self.kind_unknown = unknown;
        if unknown {
            tracing::warn!(
                "the cluster has no {} of {} (yet): no node is autonomous until `kubectl yurt convert` has made it",
                names::AUTONOMOUS_NODES_PLURAL,
                names::AUTONOMY_GROUP
            );
        } else {
            tracing::error!(
                %error,
                "cannot write {}/{}: the policies go on with the autonomous nodes it names",
                names::AUTONOMOUS_NODES_PLURAL, names::AUTONOMOUS_NODES
            );
        }
    }

    async fn condition(&mut self, node: &Node) -> Result<(), kube::Error> {
        let name = node.name_any();
        match self.written.get(&name) {
            Some(&written) if version(node) < written => return Ok(()),
            Some(_) => {
                self.written.remove(&name);
            }
            None => {}
        }
        let (condition, told) = match autonomy::change(node) {
            Change::None => return Ok(()),
            Change::Remove => (json!({"type": CONDITION, "$patch": "delete"}), None),
            Change::Set { verdict, turned } => (shown(node, &verdict, turned), Some((verdict, turned))),
        };
        let patch = json!({"status": {"conditions": [condition]}});
        let api: Api<Node> = Api::all(self.context.client.clone());
        let params = PatchParams { field_manager: Some(names::CONTROLLER.into()), ..PatchParams::default() };
        let answer = api.patch_status(&name, &params, &Patch::Strategic(patch)).await?;
        self.written.insert(name.clone(), version(&answer));
        match told {
            Some((verdict, turned)) => {
                tracing::info!(node = name, autonomous = verdict.on, message = verdict.message, "node");
                self.tell(node, &verdict, turned).await;
            }
            None => tracing::info!(node = name, "no edge node any more: condition removed"),
        }
        Ok(())
    }

    /// An Event that is lost is no reason to write the condition again.
    async fn tell(&self, node: &Node, verdict: &Verdict, turned: bool) {
        let (type_, reason) = match (verdict.fault, turned, verdict.on) {
            (true, _, _) => (EventType::Warning, "AutonomyDurationInvalid"),
            (false, true, true) => (EventType::Normal, "AutonomyEnabled"),
            (false, true, false) => (EventType::Normal, "AutonomyDisabled"),
            (false, false, _) => return,
        };
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(verdict.message.clone()),
            action: "Autonomy".into(),
            secondary: None,
        };
        let mut reference = node.object_ref(&());
        // kubectl describe looks for a node's Events under its name.
        reference.uid = Some(node.name_any());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(node = node.name_any(), %error, "cannot write an Event");
        }
    }
}

/// The parameter's kind; its plural saves a discovery.
fn kind() -> ApiResource {
    let kind =
        GroupVersionKind::gvk(names::AUTONOMY_GROUP, names::AUTONOMY_VERSION, names::AUTONOMOUS_NODES_KIND);
    ApiResource::from_gvk_with_plural(&kind, names::AUTONOMOUS_NODES_PLURAL)
}

/// About a resource that it does not know the API server says so in plain text, which has no reason.
fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The nodes that the parameter names; none when it is not as its schema says.
fn nodes_of(object: &DynamicObject) -> Option<BTreeMap<String, String>> {
    match object.data.pointer("/spec/nodes") {
        None => Some(BTreeMap::new()),
        Some(nodes) => serde_json::from_value(nodes.clone()).ok(),
    }
}

/// The condition as it is to be. The transition time stays where the status does.
fn shown(node: &Node, verdict: &Verdict, turned: bool) -> serde_json::Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let known = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|condition| condition.type_ == CONDITION));
    let mut condition = json!({
        "type": CONDITION,
        "status": if verdict.on { "True" } else { "False" },
        "reason": verdict.reason,
        "message": verdict.message,
        "lastHeartbeatTime": now,
    });
    if turned || !known {
        condition["lastTransitionTime"] = now.into();
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeCluster;

    fn edge(name: &str, annotations: serde_json::Value) -> serde_json::Value {
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": name, "uid": format!("uid-{name}"),
                "labels": {"openyurt.io/is-edge-worker": "true"}, "annotations": annotations
            },
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        })
    }

    const PARAMETER: &str = "/apis/autonomy.openyurt.io/v1alpha1/autonomousnodes/yurt-autonomous-nodes";

    #[tokio::test]
    async fn parameter_condition_and_event_follow_the_annotation_and_are_written_once() {
        let cluster = FakeCluster::start().await;
        cluster
            .put("/api/v1/nodes/edge-1", edge("edge-1", json!({"node.beta.openyurt.io/autonomy": "true"})));
        let context = cluster.context().await;
        let mut nodes = Nodes::new(context.clone());
        nodes.reconcile(Pass::Full).await;
        let parameter = cluster.get(PARAMETER).unwrap();
        assert_eq!(parameter["spec"]["nodes"], json!({"edge-1": ""}));
        assert_eq!(parameter["metadata"]["labels"]["app.kubernetes.io/part-of"], "kubectl-yurt");
        let patches = cluster.patches("/api/v1/nodes/edge-1/status");
        assert_eq!(patches.len(), 1);
        let condition = &patches[0]["status"]["conditions"][0];
        assert_eq!((&condition["type"], &condition["status"]), (&json!("Autonomy"), &json!("True")));
        assert!(condition["lastTransitionTime"].is_string());
        let events = cluster.created("/apis/events.k8s.io/v1/namespaces/default/events");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["reason"], "AutonomyEnabled");

        // The cache has not seen our own write: nothing is written a second time.
        let writes = cluster.writes();
        nodes.reconcile(Pass::Full).await;
        assert_eq!(cluster.writes(), writes);
    }

    #[tokio::test]
    async fn a_parameter_that_somebody_changed_is_put_right() {
        let cluster = FakeCluster::start().await;
        cluster
            .put("/api/v1/nodes/edge-1", edge("edge-1", json!({"node.beta.openyurt.io/autonomy": "true"})));
        cluster.put(
            PARAMETER,
            json!({
                "kind": "AutonomousNodes", "apiVersion": "autonomy.openyurt.io/v1alpha1",
                "metadata": {"name": "yurt-autonomous-nodes"},
                "spec": {"nodes": {"edge-9": "", "edge-1": ""}}
            }),
        );
        let mut nodes = Nodes::new(cluster.context().await);
        nodes.reconcile(Pass::Full).await;
        let parameter = cluster.get(PARAMETER).unwrap();
        assert_eq!(parameter["spec"]["nodes"], json!({"edge-1": ""}));
        assert_eq!(parameter["kind"], "AutonomousNodes");
        cluster.delete(PARAMETER);
        nodes.reconcile(Pass::Full).await;
        assert_eq!(cluster.get(PARAMETER).unwrap()["spec"]["nodes"], json!({"edge-1": ""}));
    }

    #[tokio::test]
    async fn what_convert_made_is_left_alone_while_no_node_is_autonomous() {
        let cluster = FakeCluster::start().await;
        cluster.put(
            PARAMETER,
            json!({
                "kind": "AutonomousNodes", "apiVersion": "autonomy.openyurt.io/v1alpha1",
                "metadata": {"labels": {"app.kubernetes.io/part-of": "kubectl-yurt"}}
            }),
        );
        Nodes::new(cluster.context().await).reconcile(Pass::Full).await;
        assert_eq!(cluster.writes(), 0);
    }

    #[tokio::test]
    async fn the_parameter_is_written_when_its_kind_is_there() {
        let cluster = FakeCluster::start().await;
        cluster
            .put("/api/v1/nodes/edge-1", edge("edge-1", json!({"node.beta.openyurt.io/autonomy": "true"})));
        cluster.refuse("/apis/autonomy.openyurt.io");
        let mut nodes = Nodes::new(cluster.context().await);
        nodes.reconcile(Pass::Full).await;
        nodes.reconcile(Pass::Full).await;
        assert!(nodes.kind_unknown && nodes.parameter.is_none());
        cluster.refuse("/nothing");
        // Without waiting for a full pass.
        nodes.reconcile(Pass::Changed).await;
        assert_eq!(cluster.get(PARAMETER).unwrap()["spec"]["nodes"], json!({"edge-1": ""}));
        assert!(!nodes.kind_unknown);
    }

    #[tokio::test]
    async fn the_condition_goes_with_the_edge_label() {
        let cluster = FakeCluster::start().await;
        let mut node = edge("edge-1", json!({}));
        node["metadata"]["labels"] = json!({});
        node["status"]["conditions"] = json!([{"type": "Autonomy", "status": "True"}]);
        cluster.put("/api/v1/nodes/edge-1", node);
        Nodes::new(cluster.context().await).reconcile(Pass::Full).await;
        let patches = cluster.patches("/api/v1/nodes/edge-1/status");
        assert_eq!(patches, [json!({"status": {"conditions": [{"type": "Autonomy", "$patch": "delete"}]}})]);
    }
}
