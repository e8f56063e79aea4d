//! The nodes' infrastructure agents ([`yurt_api::agent`]), which their keepers restart, and how that is told. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::ResourceExt as _;
use yurt_api::{
    agent::{Traits, is_kubeconfig},
    names,
    status::Agents,
};

use crate::cluster::pods;

/// How many pods are named.
const NAMED: usize = 10;

/// True if the pod is an agent.
pub fn is_agent(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let owners = pod.owner_references().iter();
    let traits = Traits {
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
        controller: owners
            .filter(|owner| owner.controller == Some(true))
            .map(|owner| owner.kind.as_str())
            .next(),
        priority_class: spec.and_then(|spec| spec.priority_class_name.as_deref()),
        part_of: pod.labels().get(names::LABEL_PART_OF).map(String::as_str),
        uses_api: has_token(pod) || volumes(pod).any(has_kubeconfig),
    };
    traits.is_agent()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// True if the pod has a ServiceAccount's token that is for the API server.
pub fn has_token(pod: &Pod) -> bool {
    let sources = volumes(pod).filter_map(|volume| volume.projected.as_ref()?.sources.as_ref()).flatten();
    sources.filter_map(|source| source.service_account_token.as_ref()).any(|token| token.audience.is_none())
}

fn has_kubeconfig(volume: &Volume) -> bool {
    let map = volume.config_map.as_ref().map(|map| (Some(map.name.as_str()), map.items.as_ref()));
    let secret = volume.secret.as_ref().map(|secret| (secret.secret_name.as_deref(), secret.items.as_ref()));
    let mut objects = map.into_iter().chain(secret).peekable();
    (objects.peek().is_some() && is_kubeconfig(&volume.name))
        || objects.any(|(name, items)| {
            name.is_some_and(is_kubeconfig)
                || items.into_iter().flatten().any(|item| is_kubeconfig(&item.key))
        })
}

/// The agents on these nodes, as `namespace/name`.
pub fn on_nodes(pods: &[Pod], nodes: &BTreeSet<String>) -> Vec<String> {
    let here = |pod: &&Pod| pods::node_of(pod).is_some_and(|node| nodes.contains(node));
    let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let agents = pods.iter().filter(here).filter(stays).filter(|pod| is_agent(pod));
    let names: BTreeSet<String> = agents.map(name).collect();
    names.into_iter().collect()
}

/// `namespace/name`
pub fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// `kube-system/a, kube-system/b, and 3 more`
pub fn listed(names: &[String]) -> String {
    let mut listed: Vec<String> = names.iter().take(NAMED).cloned().collect();
    if names.len() > NAMED {
        listed.push(format!("and {} more", names.len() - NAMED));
    }
    listed.join(", ")
}

/// What is going to be done with them; nothing if there are none.
pub fn intent(names: &[String], keep: bool) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let what = if keep {
        "infrastructure agents left as they are, on their way to the API server, until somebody restarts them"
    } else {
        "infrastructure agents restarted once"
    };
    Some(format!("{what}: {}", listed(names)))
}

/// What was done with them; nothing if there is nothing to tell.
pub fn outcome(agents: &Agents) -> Option<String> {
    let part =
        |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}", listed(names)));
    let parts: Vec<String> = part("agents restarted", &agents.restarted)
        .into_iter()
        .chain(part("agents kept", &agents.kept))
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What was not done, a line each.
pub fn failures(agents: &Agents) -> Vec<String> {
    let lines = agents.failed.iter().map(|failure| {
        let message = &failure.message;
        if failure.pod.is_empty() {
            format!("the node's infrastructure agents were not restarted: {message}")
        } else {
            format!("agent {} did not come back, or was not restarted; do it yourself if it does not run: {message}", failure.pod)
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use yurt_api::status::AgentFailure;

    use super::*;

    fn kube_proxy(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "kube-proxy-x", "namespace": "kube-system", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "kube-proxy", "uid": "", "controller": true } ] },
            "spec": { "nodeName": "edge", "containers": [], "priorityClassName": "system-node-critical", "volumes": [
                { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } } ] }
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn agents_are_daemon_sets_pods_of_the_cluster_that_use_the_api() {
        assert!(is_agent(&kube_proxy(|_| ())));
        assert!(is_agent(&kube_proxy(|pod| pod["metadata"]["namespace"] = json!("kube-flannel"))));
        let kubeconfig = json!([{ "name": "c", "configMap": { "name": "agent-kubeconfig" } }]);
        assert!(is_agent(&kube_proxy(|pod| pod["spec"]["volumes"] = kubeconfig)));
        let host = json!([{ "name": "kubeconfig", "hostPath": { "path": "/etc/kubernetes/admin.conf" } }]);
        for change in [json!([]), host] {
            assert!(!is_agent(&kube_proxy(|pod| pod["spec"]["volumes"] = change)));
        }
        assert!(!is_agent(&kube_proxy(|pod| pod["metadata"]["ownerReferences"][0]["kind"] = json!("Node"))));
        assert!(!is_agent(&kube_proxy(|pod| {
            pod["metadata"]["namespace"] = json!("shop");
            pod["spec"]["priorityClassName"] = json!("gold");
        })));
    }

    #[test]
    fn only_those_on_the_nodes_are_named() {
        let pods = [
            kube_proxy(|_| ()),
            kube_proxy(|pod| pod["spec"]["nodeName"] = json!("cloud")),
            kube_proxy(|pod| {
                pod["metadata"]["name"] = json!("leaving");
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }),
        ];
        let named = on_nodes(&pods, &["edge".to_owned()].into());
        assert_eq!(named, ["kube-system/kube-proxy-x"]);
        assert_eq!(
            intent(&named, false).unwrap(),
            "infrastructure agents restarted once: kube-system/kube-proxy-x"
        );
        assert!(intent(&named, true).unwrap().contains("left as they are"));
        assert_eq!(intent(&[], false), None);
        let many: Vec<String> = (0..13).map(|number| format!("a/{number}")).collect();
        assert!(listed(&many).ends_with("a/9, and 3 more"));
    }

    #[test]
    fn what_was_done_and_what_was_not_is_told_apart() {
        assert_eq!(outcome(&Agents::default()), None);
        let agents = Agents {
            restarted: vec!["a/b".into(), "a/c".into()],
            failed: vec![
                AgentFailure { pod: "a/d".into(), message: "why".into() },
                AgentFailure { pod: String::new(), message: "why".into() },
            ],
            kept: vec!["a/e".into()],
        };
        assert_eq!(outcome(&agents).unwrap(), "agents restarted: a/b, a/c; agents kept: a/e");
        let failures = failures(&agents);
        assert!(
            failures[0].starts_with("agent a/d did not come back, or was not restarted")
                && failures[0].ends_with(": why")
        );
        assert_eq!(failures[1], "the node's infrastructure agents were not restarted: why");
    }
}
