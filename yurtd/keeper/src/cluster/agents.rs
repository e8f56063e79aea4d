//! What of a Pod makes it an infrastructure agent, and how its containers are: these fields, and no others are ever in
//! memory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use yurt_api::agent::{Traits, Volume};
use yurt_api::names;

use super::super::agents::{Agent, Started};

/// kubelet's own default.
const GRACE: u32 = 30;
/// More than this is not waited for one agent; longer ones are for what has to finish business.
const LONGEST_GRACE: u32 = 60;

/// A Pod.
#[derive(Debug, Deserialize)]
pub(super) struct AgentPod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(default)]
    uid: String,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
    deletion_timestamp: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    kind: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    priority_class_name: Option<String>,
    termination_grace_period_seconds: Option<u32>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Debug, Deserialize)]
struct ContainerStatus {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    state: State,
}

#[derive(Debug, Default, Deserialize)]
struct State {
    running: Option<Running>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    started_at: Option<Timestamp>,
}

impl AgentPod {
    /// The pod as an agent, if it is one and stays.
    pub(super) fn agent(self) -> Option<Agent> {
        let owners = self.metadata.owner_references.iter().flatten();
        let controller = owners.filter(|owner| owner.controller).map(|owner| owner.kind.as_str()).next();
        let labels = self.metadata.labels.as_ref();
        let traits = Traits {
            namespace: &self.metadata.namespace,
            controller,
            priority_class: self.spec.priority_class_name.as_deref(),
            part_of: labels.and_then(|labels| labels.get(names::LABEL_PART_OF)).map(String::as_str),
            uses_api: self.spec.volumes.iter().flatten().any(Volume::uses_api),
        };
        if !traits.is_agent() || self.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let statuses = [self.status.container_statuses, self.status.init_container_statuses];
        let containers = statuses.into_iter().flatten().flatten().filter_map(|container| {
            let id = container.container_id?;
            let id = id.split_once("://").map_or(id.as_str(), |(_, id)| id).to_owned();
            Some(Started { id, at: container.state.running?.started_at? })
        });
        let conditions = self.status.conditions.iter().flatten();
        let ready = conditions.filter(|condition| condition.kind == "Ready");
        Some(Agent {
            name: format!("{}/{}", self.metadata.namespace, self.metadata.name),
            uid: self.metadata.uid,
            ready: ready.map(|condition| condition.status == "True").next().unwrap_or_default(),
            grace: self.spec.termination_grace_period_seconds.unwrap_or(GRACE).min(LONGEST_GRACE),
            containers: containers.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kube_proxy() -> Value {
        json!({
            "metadata": {"namespace": "kube-system", "name": "kube-proxy-x", "uid": "u",
                "ownerReferences": [{"kind": "DaemonSet", "name": "kube-proxy", "controller": true}]},
            "spec": {"priorityClassName": "system-node-critical", "volumes": [
                {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
                {"name": "kube-api-access-1", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca.crt"}}]}}]},
            "status": {
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "initContainerStatuses": [
                    {"name": "a", "containerID": "containerd://a", "state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [
                    {"name": "b", "containerID": "containerd://b",
                        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
                    {"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}]},
        })
    }

    fn agent(change: impl FnOnce(&mut Value)) -> Option<Agent> {
        let mut pod = kube_proxy();
        change(&mut pod);
        serde_json::from_value::<AgentPod>(pod).unwrap().agent()
    }

    #[test]
    fn an_agent_is_read_with_the_containers_that_run() {
        let found = agent(|_| ()).unwrap();
        assert_eq!(found.name, "kube-system/kube-proxy-x");
        assert!(found.ready);
        assert_eq!(found.grace, 30);
        let started = Started { id: "b".into(), at: "2026-01-01T00:00:00Z".parse().unwrap() };
        assert_eq!(found.containers, [started]);
        let long = agent(|pod| pod["spec"]["terminationGracePeriodSeconds"] = json!(3600)).unwrap();
        assert_eq!(long.grace, LONGEST_GRACE);
        let fresh = agent(|pod| pod["status"] = json!({})).unwrap();
        assert!(!fresh.ready && fresh.containers.is_empty());
    }

    #[test]
    fn what_uses_the_api_shows_in_its_volumes() {
        let with = |volumes: Value| agent(|pod| pod["spec"]["volumes"] = volumes).is_some();
        let token =
            |token: Value| json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
        assert!(with(token(json!({"path": "token"}))));
        assert!(!with(token(json!({"path": "token", "audience": "vault"}))), "not the API server's");
        assert!(with(json!([{"name": "c", "secret": {"secretName": "agent-kubeconfig"}}])));
        assert!(with(
            json!([{"name": "c", "configMap": {"name": "a", "items": [{"key": "kubeconfig.conf", "path": "x"}]}}])
        ));
        assert!(with(json!([{"name": "kubeconfig", "configMap": {"name": "a"}}])));
        // The host's file leads where it always has, whatever kubelet does.
        assert!(!with(json!([{"name": "kubeconfig", "hostPath": {"path": "/etc/kubernetes/admin.conf"}}])));
        assert!(!with(json!([])) && !with(Value::Null));
    }

    #[test]
    fn what_is_no_agent_or_goes_is_left() {
        assert!(agent(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")).is_none());
        assert!(agent(|pod| pod["metadata"]["ownerReferences"] = Value::Null).is_none());
        let ours = json!({names::LABEL_PART_OF: names::PART_OF});
        assert!(agent(|pod| pod["metadata"]["labels"] = ours).is_none());
    }
}
