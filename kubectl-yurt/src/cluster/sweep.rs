//! Redirect rules whose tunnel server does not run.
//!
//! A tunnel server takes its table away as it ends. One that crash-loops, was killed, or waits for its image does not, and
//! the API server's connections to what were edge nodes would end at a port where nobody listens. So a pod a host, of the
//! server's own image, removes the table and ends.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    runtime::{conditions::Condition, wait::await_condition},
};
use serde_json::json;
use yurt_api::names;

use crate::{
    cluster::{node, pods, view::View},
    connect::session::Session,
    error::{Error, is_not_found},
};

/// How long such a pod may take to run: its image is there, or will not be.
const DEADLINE: Duration = Duration::from_secs(30);
/// What tells such a pod from our others.
const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
const COMPONENT: &str = "sweep";

/// A host whose redirect rules may have stayed, and how a pod can be run there.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    node: String,
    /// Whether kubelet runs pods there.
    node_is_ready: bool,
    /// Gone if an earlier revert deleted it and was cut off before the hosts were swept.
    set: Option<DaemonSet>,
}

/// The hosts where a tunnel server is meant to run, and does not now: whether it has ended well nobody knows. `was_there`
/// says whether the cluster has a tunnel server, or had one when a revert began that was cut off.
pub fn look(view: &View, was_there: bool) -> Vec<Left> {
    let set = view.daemon_sets.get(names::TUNNEL_SERVER);
    if set.is_none() && !was_there {
        return Vec::new();
    }
    let running = |node: &str| {
        view.pods.values().any(|pod| {
            pods::is_of_daemon_set(pod, names::TUNNEL_SERVER) && pods::node_of(pod) == Some(node) && runs(pod)
        })
    };
    let hosts = view
        .nodes
        .values()
        .filter(|node| node::is_control_plane(node) && node::edge_label(node) == Some("false"));
    hosts
        .map(|node| (node.name_any(), node::is_ready(node)))
        // What kubelet says of a node that is away is old: the server may run, and end with the pod one day.
        .filter(|(name, ready)| !ready || !running(name))
        .map(|(node, node_is_ready)| Left { node, node_is_ready, set: set.cloned() })
        .collect()
}

fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut states =
        statuses.map(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    states.next().unwrap_or(false)
}

/// Removes what the hosts have left; per host where that did not succeed what a person can do.
///
/// # Errors
///
/// The server's answer.
pub async fn run(session: &Session, left: &[Left]) -> Result<BTreeMap<String, String>, Error> {
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let mut not_swept = BTreeMap::new();
    let mut waits = Vec::new();
    for host in left {
        if !host.node_is_ready {
            not_swept.insert(host.node.clone(), "the node is not ready".to_owned());
            continue;
        }
        let Some(set) = &host.set else {
            not_swept.insert(host.node.clone(), "an earlier revert was cut off".to_owned());
            continue;
        };
        match api.create(&PostParams::default(), &pod_for(&host.node, set)?).await {
            Ok(pod) => waits.push((host.node.clone(), pod.name_any())),
            Err(error) => {
                not_swept.insert(host.node.clone(), crate::error::phrase(&error, &session.server()));
            }
        }
    }
    let ended = waits.into_iter().map(|(node, name)| {
        let api = api.clone();
        async move {
            let ended =
                tokio::time::timeout(DEADLINE, await_condition(api.clone(), &name, has_ended())).await;
            let why = match ended {
                Ok(Ok(Some(pod))) if phase(&pod) == Some("Succeeded") => None,
                Ok(Ok(_)) => Some("the pod that was to remove it failed".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no pod ran there within {} s", DEADLINE.as_secs())),
            };
            (node, why)
        }
    });
    for (node, why) in futures::future::join_all(ended).await {
        if let Some(why) = why {
            not_swept.insert(node, why);
        }
    }
    clear(session).await?;
    Ok(not_swept)
}

/// Deletes such pods, those of a plugin that was killed, too.
///
/// # Errors
///
/// The server's answer.
pub async fn clear(session: &Session) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let ours = format!("{}={},{LABEL_COMPONENT}={COMPONENT}", names::LABEL_PART_OF, names::PART_OF);
    for pod in api.list(&ListParams::default().labels(&ours)).await?.items {
        match api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What a person does on a host himself.
pub fn by_hand(node: &str, why: &str) -> String {
    format!(
        "redirect rules may be left on {node} ({why}); `nft delete table inet {}` there removes them",
        names::NFT_TABLE
    )
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn has_ended() -> impl Condition<Pod> {
    |pod: Option<&Pod>| pod.is_none_or(|pod| matches!(phase(pod), Some("Succeeded" | "Failed")))
}

/// The server's pod with another command, on this host.
fn pod_for(node: &str, set: &DaemonSet) -> Result<Pod, Error> {
    let template = set.spec.template.spec.as_ref();
    let container = template.and_then(|spec| spec.containers.first());
    let image = container.and_then(|container| container.image.as_deref()).unwrap_or_default();
    let pull_policy = container.and_then(|container| container.image_pull_policy.as_deref());
    let secrets = template.and_then(|spec| spec.image_pull_secrets.clone());
    let document = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "yurt-sweep-",
            "labels": { (names::LABEL_PART_OF): names::PART_OF, (LABEL_COMPONENT): COMPONENT },
        },
        "spec": {
            "nodeName": node,
            "hostNetwork": true,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE.as_secs(),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "priorityClassName": "system-node-critical",
            "tolerations": [{ "operator": "Exists" }],
            "imagePullSecrets": secrets,
            "containers": [{
                "name": "sweep", "image": image, "imagePullPolicy": pull_policy,
                "command": ["/yurtd-cloud"], "args": ["remove-redirect"],
                "securityContext": {
                    "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
            }],
        },
    });
    serde_json::from_value(document).map_err(|error| Error::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn view(node_ready: &str, state: Value) -> View {
        let node = json!({
            "metadata": { "name": "cp-1", "labels": {
                "node-role.kubernetes.io/control-plane": "", (names::LABEL_EDGE_WORKER): "false" } },
            "status": { "conditions": [{ "type": "Ready", "status": node_ready }] },
        });
        let set = json!({
            "metadata": { "name": names::TUNNEL_SERVER },
            "spec": { "selector": {}, "template": { "spec": {
                "imagePullSecrets": [{ "name": "mirror" }],
                "containers": [{ "name": "tunnel-server", "image": "mirror/yurtd:v1", "imagePullPolicy": "Never" }],
            } } },
        });
        let pod = json!({
            "metadata": { "name": "server-1", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": names::TUNNEL_SERVER, "uid": "1" }] },
            "spec": { "nodeName": "cp-1", "containers": [] },
            "status": { "containerStatuses": [{ "name": "tunnel-server", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": state }] },
        });
        View {
            nodes: [serde_json::from_value(node).unwrap()].into_iter().collect(),
            daemon_sets: [serde_json::from_value(set).unwrap()].into_iter().collect(),
            pods: [serde_json::from_value(pod).unwrap()].into_iter().collect(),
            ..View::default()
        }
    }

    #[test]
    fn a_host_is_swept_whose_server_does_not_run() {
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        assert_eq!(look(&view("True", json!({ "running": {} })), true), []);
        let left = look(&view("True", waiting), true);
        assert_eq!((left.len(), &*left[0].node, left[0].node_is_ready), (1, "cp-1", true));
        // What was running when it was last heard of.
        let left = look(&view("Unknown", json!({ "running": {} })), true);
        assert_eq!((left.len(), left[0].node_is_ready), (1, false));
        assert_eq!(look(&View::default(), true), []);
    }

    #[test]
    fn what_a_revert_that_was_cut_off_has_left_is_not_forgotten() {
        let again = View {
            daemon_sets: std::iter::empty().collect(),
            pods: std::iter::empty().collect(),
            ..view("True", json!({}))
        };
        let left = look(&again, true);
        assert_eq!((left.len(), &*left[0].node, &left[0].set), (1, "cp-1", &None));
        // Without a tunnel nobody redirected anything.
        assert_eq!(look(&again, false), []);
    }

    #[test]
    fn the_pod_is_the_servers_with_another_command() {
        let view = view("True", json!({ "waiting": {} }));
        let set = view.daemon_sets.get(names::TUNNEL_SERVER).unwrap();
        let pod = serde_json::to_value(pod_for("cp-1", set).unwrap()).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["image"], "mirror/yurtd:v1");
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Never");
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{ "name": "mirror" }]));
        assert_eq!(pod["spec"]["containers"][0]["args"], json!(["remove-redirect"]));
        assert_eq!((&pod["spec"]["nodeName"], &pod["spec"]["hostNetwork"]), (&json!("cp-1"), &json!(true)));
    }
}
