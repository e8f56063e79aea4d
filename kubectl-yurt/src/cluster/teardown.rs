//! Deleting every object of ours: workloads first, then, when their pods have gone, what they needed. While the
//! controller ran it would make its Secrets again, and the tunnel server takes its redirect rules away as it ends; where it
//! does not run to its end somebody else [does that](sweep).

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt as _};
use yurt_api::names;

use crate::{
    cluster::{
        node,
        objects::{self, Existing},
        pods, sweep,
        view::{Observer, View},
    },
    connect::{session::Session, tunnel},
    error::Error,
    output::words::count_of,
};

/// How long our pods may take to go.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a teardown has come to.
#[derive(Debug, Default)]
pub struct Done {
    /// What was deleted.
    pub deleted: Vec<Existing>,
    /// What is left for a person to do.
    pub by_hand: Vec<String>,
}

/// Deletes everything. `phase` is told what is being done, in words for a person.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] naming the pods that do not go.
pub async fn run(
    session: &Session,
    observer: &mut Observer,
    mut phase: impl FnMut(&str),
) -> Result<Done, Error> {
    sweep::clear(session).await?;
    observer.complete().await;
    let all = objects::existing(session).await?;
    let left = sweep::look(observer.view(), has_tunnel(session).await?);
    phase(&format!("deleting {}", count_of(all.len(), "object")));
    let mut deleted = Vec::new();
    let workloads = all.iter().filter(|object| object.is_workload());
    for object in workloads {
        if object.delete(session).await? {
            deleted.push(object.clone());
        }
    }
    wait_for_pods(observer, &mut phase).await?;
    let mut by_hand = Vec::new();
    if !left.is_empty() {
        phase("removing redirect rules of tunnel servers that do not run");
        let not_swept = sweep::run(session, &left).await?;
        by_hand.extend(not_swept.iter().map(|(node, why)| sweep::by_hand(node, why)));
        wait_for_pods(observer, &mut phase).await?;
    }
    // Listed again: the controller may have made something until its last moment.
    for object in objects::existing(session).await?.into_iter().filter(|object| !object.is_workload()) {
        if object.delete(session).await? {
            deleted.push(object);
        }
    }
    Ok(Done { deleted, by_hand })
}

/// Whether the cluster has a tunnel. What says so goes after the pods have.
async fn has_tunnel(session: &Session) -> Result<bool, Error> {
    let maps: Api<ConfigMap> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let map = maps.get_opt(names::CONFIG_MAP).await?;
    let config = map.and_then(|map| tunnel::parse_config(&map).ok());
    Ok(config.is_some_and(|config| !config.tunnel_addresses.is_empty()))
}

/// The pods that will have ended soon. Those on a node that is away have ended when it is back; nobody knows when that is.
fn going(view: &View) -> Vec<String> {
    let is_away = |pod: &Pod| {
        pods::node_of(pod).is_some_and(|node| view.nodes.get(node).is_none_or(|node| !node::is_ready(node)))
    };
    view.pods.values().filter(|pod| !is_away(pod)).map(|pod| pod.name_any()).collect()
}

async fn wait_for_pods(observer: &mut Observer, phase: &mut impl FnMut(&str)) -> Result<(), Error> {
    let deadline = tokio::time::sleep_until((Instant::now() + DEADLINE).into());
    tokio::pin!(deadline);
    observer.complete().await;
    loop {
        let names = going(observer.view());
        if names.is_empty() {
            return Ok(());
        }
        phase(&format!("waiting for {} to end", count_of(names.len(), "pod")));
        tokio::select! {
            () = observer.changed() => {}
            () = &mut deadline => {
                return Err(Error::Failed(format!(
                    "timed out waiting for pods to end: {}; run the command again to go on",
                    names.join(", ")
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nobody_waits_for_a_pod_on_a_node_that_is_away() {
        let node = |name: &str, ready: &str| {
            serde_json::from_value(json!({
                "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            }))
            .unwrap()
        };
        let pod = |name: &str, node: &str| {
            serde_json::from_value(json!({
                "metadata": { "name": name }, "spec": { "nodeName": node, "containers": [] },
            }))
            .unwrap()
        };
        let view = View {
            nodes: [node("cp-1", "True"), node("cp-2", "Unknown")].into_iter().collect(),
            pods: [pod("here", "cp-1"), pod("away", "cp-2"), pod("gone", "cp-3")].into_iter().collect(),
            ..View::default()
        };
        assert_eq!(going(&view), ["here"]);
    }
}
