//! `status`: every node's role, conversion, autonomy and tunnel, and whether our components are up. Exit code 1
//! when something is not as it should be.

mod past;
mod table;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::json;
use yurt_api::{
    names,
    node::Kind,
    status::{Agents, ClusterConfig, ConversionState, NodeWayIn},
};

use crate::{
    cluster::{
        autonomy::{self, NodeAutonomy},
        components::{daemon_set_is_ready, deployment_is_ready},
        definition, node, node_agents, pods,
        report::step_text,
    },
    connect::{
        agents::{self, Sessions},
        session::Session,
        tunnel,
    },
    error::Error,
    output::{API_VERSION, Console, Form, Listing, words::version},
};

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    name: String,
    role: &'static str,
    /// State of the conversion; absent on nodes that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    conversion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    ready: bool,
    /// The tunnel session is there; absent when that is not known or does not apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<bool>,
    /// By which way its pods come to the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_in: Option<NodeWayIn>,
    /// Pods that began before kubelet came to the hub and go past it, `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    past_the_hub: Vec<String>,
    /// What became of its infrastructure agents on its way to where it is.
    #[serde(skip_serializing_if = "Agents::is_empty")]
    agents: Agents,
    autonomy: NodeAutonomy,
    kubelet: String,
    /// Where the API server finds kubelet.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubelet_endpoint: Option<String>,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ComponentStatus {
    name: &'static str,
    kind: &'static str,
    ready: i32,
    desired: i32,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    troubles: Vec<String>,
}

/// What was found in the cluster.
struct Found {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    /// All that run, if they may be seen.
    running: Vec<Pod>,
    parameter: Option<DynamicObject>,
    controller: Option<Deployment>,
    keeper: Option<DaemonSet>,
    tunnel_server: Option<DaemonSet>,
    config: Option<ClusterConfig>,
    sessions: Option<Sessions>,
}

/// Runs the command.
///
/// # Errors
///
/// [`Error::Unhealthy`] when something is not as it should be.
pub async fn run(session: &Session, console: Console, form: Form) -> Result<(), Error> {
    let found = look(session, console).await?;
    let nodes: Vec<NodeStatus> = found.nodes.iter().map(|node| node_status(node, &found)).collect();
    let components = component_statuses(&found);
    let converted = found.keeper.is_some() || found.controller.is_some();
    let healthy =
        !converted || (components.iter().all(|component| component.healthy) && nodes.iter().all(is_healthy));
    let listing = Listing {
        document: json!({
            "apiVersion": API_VERSION, "kind": "Status", "converted": converted, "healthy": healthy,
            "components": components, "nodes": nodes,
        }),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        table: |wide| table::print(console, &nodes, &components, converted, wide),
    };
    listing.print(console, form)?;
    if healthy { Ok(()) } else { Err(Error::Unhealthy) }
}

async fn look(session: &Session, console: Console) -> Result<Found, Error> {
    let client = || session.client.clone();
    let namespace = &session.yurt_namespace;
    let nodes: Api<Node> = Api::all(client());
    let pods: Api<Pod> = Api::namespaced(client(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client(), namespace);
    let sets: Api<DaemonSet> = Api::namespaced(client(), namespace);
    let every = ListParams::default();
    let ours = ListParams::default().labels(&format!("{}={}", names::LABEL_PART_OF, names::PART_OF));
    // Whoever may not list all pods is not told which ones go past the hub.
    let running = async { Ok(pods::unfinished(session).await.unwrap_or_default()) };
    let (running, nodes, pods, parameter, config, controller, keeper, tunnel_server) = tokio::try_join!(
        running,
        nodes.list(&every),
        pods.list(&ours),
        definition::parameter(session),
        maps.get_opt(names::CONFIG_MAP),
        deployments.get_opt(names::CONTROLLER),
        sets.get_opt(names::KEEPER),
        sets.get_opt(names::TUNNEL_SERVER),
    )?;
    let config = config.as_ref().map(tunnel::parse_config).transpose()?;
    let has_tunnel = config.as_ref().is_some_and(|config| !config.tunnel_api_addresses.is_empty());
    let sessions = if has_tunnel {
        match agents::sessions(session).await {
            Ok(sessions) => {
                for (address, why) in &sessions.silent {
                    console.warn(format!("tunnel server {address}: {why}"));
                }
                (sessions.answered > 0).then_some(sessions)
            }
            Err(error) => {
                console.warn(error.plain(&session.server()));
                None
            }
        }
    } else {
        None
    };
    let mut nodes = nodes.items;
    nodes.sort_by_key(|node| (node::is_edge(node), node.name_any()));
    Ok(Found {
        nodes,
        pods: pods.items,
        running,
        parameter,
        controller,
        keeper,
        tunnel_server,
        config,
        sessions,
    })
}

fn node_status(node: &Node, found: &Found) -> NodeStatus {
    let report = node::conversion(node);
    let edge = node::is_edge(node);
    let name = node.name_any();
    let keeper_trouble = found
        .pods
        .iter()
        .filter(|pod| pods::is_of_daemon_set(pod, names::KEEPER) && pods::node_of(pod) == Some(&name))
        .find_map(pods::trouble);
    let state = report.as_ref().map(|report| format!("{:?}", report.state));
    let conversion = match (state, edge) {
        // The target is what matters when the keeper has not seen it yet.
        (Some(state), _) if node::is_reverting(node) && state != "Reverted" => Some("Reverting".to_owned()),
        (Some(state), _) => Some(state),
        (None, true) => Some("Pending".to_owned()),
        (None, false) => None,
    };
    let detail = keeper_trouble.map(|trouble| trouble.text().to_owned()).or_else(|| {
        let report = report.as_ref()?;
        match report.state {
            ConversionState::Converted => node_agents::outcome(&report.agents),
            _ => Some(step_text(report)),
        }
    });
    NodeStatus {
        role: role(node::kind(node)),
        conversion,
        detail,
        version: report.as_ref().map(|report| version(&report.version)),
        // What a keeper of before does not say.
        way_in: report
            .as_ref()
            .filter(|report| report.state == ConversionState::Converted)
            .map(|report| report.way_in.clone().unwrap_or_default()),
        past_the_hub: past::the_hub(node, &found.running),
        agents: report.map(|report| report.agents).unwrap_or_default(),
        ready: node::is_ready(node),
        tunnel: found.sessions.as_ref().filter(|_| edge).map(|found| found.has(&name)),
        autonomy: autonomy::describe(node, found.parameter.as_ref()),
        kubelet: node
            .status
            .as_ref()
            .and_then(|status| status.node_info.as_ref())
            .map(|info| info.kubelet_version.clone())
            .unwrap_or_default(),
        kubelet_endpoint: node::kubelet_endpoint(node),
        name,
    }
}

/// What a node is to us, in the column of that name.
fn role(kind: Kind) -> &'static str {
    match kind {
        Kind::Edge => "edge",
        Kind::Cloud => "cloud",
        Kind::Unlabelled => "<none>",
    }
}

fn is_healthy(node: &NodeStatus) -> bool {
    let converted =
        node.conversion.as_deref().is_none_or(|state| state == "Converted" || state == "Reverted");
    // A node whose link is down has no session: that it is away says `ready` already.
    node.ready && converted && node.tunnel != Some(false)
}

fn component_statuses(found: &Found) -> Vec<ComponentStatus> {
    let troubles = |of: &dyn Fn(&Pod) -> bool| -> Vec<String> {
        let matching = found.pods.iter().filter(|pod| of(pod));
        matching.filter_map(pods::trouble).map(|trouble| trouble.text().to_owned()).collect()
    };
    let set = |name: &'static str, set: &DaemonSet, needs_nodes: bool| {
        let status = set.status.clone().unwrap_or_default();
        let troubles = troubles(&|pod| pods::is_of_daemon_set(pod, name));
        let idle = !needs_nodes && status.desired_number_scheduled == 0;
        ComponentStatus {
            name,
            kind: "DaemonSet",
            ready: status.number_ready,
            desired: status.desired_number_scheduled,
            healthy: idle || daemon_set_is_ready(set),
            image: pods::template_image(&set.spec.template).map(str::to_owned),
            troubles,
        }
    };
    let mut all = Vec::new();
    if let Some(deployment) = &found.controller {
        let status = deployment.status.clone().unwrap_or_default();
        all.push(ComponentStatus {
            name: names::CONTROLLER,
            kind: "Deployment",
            ready: status.ready_replicas.unwrap_or(0),
            desired: deployment.spec.replicas.unwrap_or(1),
            healthy: deployment_is_ready(deployment),
            image: pods::template_image(&deployment.spec.template).map(str::to_owned),
            troubles: troubles(&|pod| pods::is_of_deployment(pod, names::CONTROLLER)),
        });
    }
    all.extend(found.tunnel_server.as_ref().map(|tunnel| set(names::TUNNEL_SERVER, tunnel, true)));
    all.extend(found.keeper.as_ref().map(|keeper| set(names::KEEPER, keeper, false)));
    // What should be there and is not.
    let partly = !all.is_empty();
    let with_tunnel = found.config.as_ref().is_some_and(|config| !config.tunnel_addresses.is_empty());
    for (name, kind, expected) in [
        (names::CONTROLLER, "Deployment", true),
        (names::TUNNEL_SERVER, "DaemonSet", with_tunnel),
        (names::KEEPER, "DaemonSet", true),
    ] {
        if partly && expected && !all.iter().any(|component| component.name == name) {
            all.push(ComponentStatus {
                name,
                kind,
                ready: 0,
                desired: 0,
                healthy: false,
                image: None,
                troubles: vec!["it does not exist: `kubectl yurt convert` makes it again".into()],
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sessions: Option<&[&str]>) -> Found {
        let agent = |node: &&str| {
            let status = serde_json::from_value(json!({
                "node": node, "server": "s", "version": "0.1.0", "remoteAddress": "r",
                "connectedSince": "2026-01-01T00:00:00Z", "rttMicros": 1, "streams": 0, "bytesSent": 0,
                "bytesReceived": 0
            }))
            .unwrap();
            (((*node).to_owned(), "s".to_owned()), status)
        };
        Found {
            nodes: Vec::new(),
            pods: Vec::new(),
            parameter: None,
            controller: None,
            keeper: None,
            running: Vec::new(),
            tunnel_server: None,
            config: None,
            sessions: sessions.map(|nodes| Sessions {
                agents: nodes.iter().map(agent).collect(),
                answered: 1,
                ..Sessions::default()
            }),
        }
    }

    fn node(label: Option<&str>, state: Option<&str>, target: Option<&str>) -> Node {
        let mut metadata = json!({ "name": "edge", "labels": {}, "annotations": {} });
        if let Some(label) = label {
            metadata["labels"][names::LABEL_EDGE_WORKER] = json!(label);
        }
        if let Some(state) = state {
            let report = json!({ "state": state, "version": "0.1.0", "time": "2026-01-01T00:00:00Z" });
            metadata["annotations"][names::ANNOTATION_CONVERSION] = json!(report.to_string());
        }
        if let Some(target) = target {
            metadata["annotations"][names::ANNOTATION_TARGET] = json!(target);
        }
        serde_json::from_value(json!({
            "metadata": metadata, "status": { "conditions": [{ "type": "Ready", "status": "True" }] }
        }))
        .unwrap()
    }

    #[test]
    fn an_edge_node_is_healthy_when_converted_ready_and_connected() {
        let converted = node(Some("true"), Some("Converted"), None);
        let status = node_status(&converted, &found(Some(&["edge"])));
        assert_eq!(status.conversion.as_deref(), Some("Converted"));
        assert_eq!(status.version.as_deref(), Some("v0.1.0"));
        assert!(is_healthy(&status));
        assert!(!is_healthy(&node_status(&converted, &found(Some(&[])))));
        assert!(is_healthy(&node_status(&converted, &found(None))), "unknown is not unhealthy");
    }

    #[test]
    fn a_label_without_report_is_pending_and_a_target_shows() {
        let pending = node_status(&node(Some("true"), None, None), &found(None));
        assert_eq!(pending.conversion.as_deref(), Some("Pending"));
        assert!(!is_healthy(&pending));
        let turning = node(Some("true"), Some("Converted"), Some(names::TARGET_VANILLA));
        assert_eq!(node_status(&turning, &found(None)).conversion.as_deref(), Some("Reverting"));
        let cloud = node_status(&node(Some("false"), None, None), &found(Some(&[])));
        assert_eq!((cloud.conversion.as_deref(), cloud.tunnel), (None, None));
    }

    #[test]
    fn a_component_that_should_be_there_is_missed() {
        let mut found = found(None);
        assert!(component_statuses(&found).is_empty());
        found.controller = Some(Deployment::default());
        let missed: Vec<&str> = component_statuses(&found)
            .into_iter()
            .filter(|component| component.desired == 0 && !component.healthy)
            .map(|component| component.name)
            .collect();
        assert_eq!(missed, [names::KEEPER]);
    }
}
