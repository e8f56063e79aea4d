//! Containers as the API server tells of them: which ones, and how often they were restarted.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::Value;

use crate::kubectl::Kubectl;

/// One container of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub pod_uid: String,
    pub id: String,
    pub restarts: u64,
    pub ready: bool,
    /// Its pod is a DaemonSet's, of the cluster itself: what a conversion restarts once.
    pub agent: bool,
}

/// By `namespace/pod/container`.
pub type Containers = BTreeMap<String, Container>;

/// Every container on a node but those of our own components.
pub fn on_node(kubectl: &Kubectl, node: &str) -> Result<Containers> {
    let selector = format!("spec.nodeName={node}");
    let pods = kubectl.items(["pods", "-A", "--field-selector", selector.as_str()])?;
    Ok(pods.iter().filter(|pod| !is_ours(pod)).flat_map(of_pod).collect())
}

fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kubectl-yurt"
}

fn of_pod(pod: &Value) -> Vec<(String, Container)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &pod["metadata"];
    let owners = meta["ownerReferences"].as_array().cloned().unwrap_or_default();
    let class = text(&pod["spec"]["priorityClassName"]);
    let agent = owners.iter().any(|owner| owner["kind"] == "DaemonSet")
        && (meta["namespace"] == "kube-system" || class.starts_with("system-"));
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    statuses
        .iter()
        .map(|status| {
            let name =
                format!("{}/{}/{}", text(&meta["namespace"]), text(&meta["name"]), text(&status["name"]));
            let container = Container {
                pod_uid: text(&meta["uid"]),
                id: text(&status["containerID"]),
                restarts: status["restartCount"].as_u64().unwrap_or_default(),
                ready: status["ready"].as_bool().unwrap_or_default(),
                agent,
            };
            (name, container)
        })
        .collect()
}

/// In what the containers of `before` are not the same now; what is new does not count.
pub fn changes(before: &Containers, now: &Containers) -> Vec<String> {
    restarted(before, now, 0, true)
}

/// In what the containers of `before` are not what a conversion, or a revert, leaves: those of the cluster's agents
/// restarted once in their pods, all others the same.
pub fn changes_but_agents(before: &Containers, now: &Containers) -> Vec<String> {
    let (agents, business): (Containers, Containers) =
        before.clone().into_iter().partition(|(_, container)| container.agent);
    let mut faults = changes(&business, now);
    faults.extend(restarts_other_than(&agents, now, 1));
    faults
}

/// The pods of the cluster's agents, as `namespace/name`.
pub fn agents(all: &Containers) -> BTreeSet<String> {
    let names = all.iter().filter(|(_, container)| container.agent).map(|(name, _)| name);
    names.filter_map(|name| name.rsplit_once('/')).map(|(pod, _)| pod.to_owned()).collect()
}

/// In what the containers of `before` are not the same pods' containers, restarted `times` times.
pub fn restarts_other_than(before: &Containers, now: &Containers, times: u64) -> Vec<String> {
    restarted(before, now, times, false)
}

fn restarted(before: &Containers, now: &Containers, times: u64, same_id: bool) -> Vec<String> {
    before
        .iter()
        .filter_map(|(name, old)| {
            let Some(new) = now.get(name) else { return Some(format!("{name} is gone")) };
            if new.pod_uid != old.pod_uid {
                return Some(format!("{name} is another pod: {} was {}", new.pod_uid, old.pod_uid));
            }
            if same_id && new.id != old.id {
                return Some(format!("{name} is another container: {} was {}", new.id, old.id));
            }
            let count = new.restarts.saturating_sub(old.restarts);
            (count != times).then(|| format!("{name} was restarted {count} times, not {times}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers(id: &str, restarts: u64) -> Containers {
        let container = Container { pod_uid: "u".into(), id: id.into(), restarts, ready: true, agent: false };
        BTreeMap::from([("default/nginx/nginx".to_owned(), container)])
    }

    #[test]
    fn another_container_or_a_restart_is_a_change() {
        let before = containers("a", 0);
        assert!(changes(&before, &before).is_empty());
        assert_eq!(changes(&before, &containers("b", 1)).len(), 1);
        assert_eq!(changes(&before, &containers("a", 1)).len(), 1);
        assert_eq!(changes(&before, &Containers::new()), ["default/nginx/nginx is gone"]);
    }

    #[test]
    fn a_conversion_restarts_the_agents_once_and_nothing_else() {
        let all = |proxy: (&str, u64), nginx: (&str, u64)| {
            let mut all = containers(nginx.0, nginx.1);
            let agent =
                Container { agent: true, ..containers(proxy.0, proxy.1)["default/nginx/nginx"].clone() };
            all.insert("kube-system/kube-proxy-x/kube-proxy".to_owned(), agent);
            all
        };
        let before = all(("a", 0), ("a", 0));
        assert_eq!(agents(&before).into_iter().collect::<Vec<_>>(), ["kube-system/kube-proxy-x"]);
        assert!(changes_but_agents(&before, &all(("b", 1), ("a", 0))).is_empty());
        for (proxy, nginx) in [(("a", 0), ("a", 0)), (("b", 2), ("a", 0)), (("b", 1), ("b", 1))] {
            assert_eq!(changes_but_agents(&before, &all(proxy, nginx)).len(), 1, "{proxy:?} {nginx:?}");
        }
    }

    #[test]
    fn a_reboot_restarts_each_container_exactly_once() {
        let before = containers("a", 1);
        assert!(restarts_other_than(&before, &containers("b", 2), 1).is_empty());
        assert_eq!(restarts_other_than(&before, &containers("b", 3), 1).len(), 1);
        assert_eq!(restarts_other_than(&before, &containers("a", 1), 1).len(), 1);
    }
}
