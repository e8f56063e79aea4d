//! What is read out of objects, and requests over real TLS to an API server in memory.

use std::time::Duration;

use serde_json::{Value, json};
use yurt_api::names;
use yurt_fakes::api_server::{FakeApi, Fault, NODE, When};

use super::api::clock_skew;
use super::objects::Node;
use super::*;

#[test]
fn an_own_node_is_read_from_labels_annotations_and_conditions() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {
            "labels": {"openyurt.io/is-edge-worker": "true"},
            "annotations": {"openyurt.io/conversion-target": "vanilla"},
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    let own = OwnNode::from(node);
    assert!(own.ready && own.edge);
    assert_eq!(own.target.as_deref(), Some("vanilla"));
}

#[test]
fn a_clock_is_compared_with_the_date_of_an_answer() {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    assert_eq!(clock_skew(Some("Thu, 01 Jan 2026 00:00:00 GMT"), now), 600);
    assert_eq!(clock_skew(Some("Thu, 01 Jan 2026 00:10:05 GMT"), now), -5);
    // Without a date there is nothing to compare; certificates will tell.
    assert_eq!(clock_skew(None, now), 0);
    assert_eq!(clock_skew(Some("yesterday"), now), 0);
}

const NODE_PATH: &str = "/api/v1/nodes/edge-1";

fn node_object(target: Option<&str>) -> Value {
    let annotations = target.map(|target| json!({names::ANNOTATION_TARGET: target}));
    json!({
        "metadata": {"name": NODE, "annotations": annotations, "labels": {"openyurt.io/is-edge-worker": "true"}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.36.3"},
        },
    })
}

fn pod(node: &str, name: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": name},
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{
            "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": format!("containerd://{name}"),
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }]},
    })
}

async fn api_server() -> FakeApi {
    let api = FakeApi::start().await;
    api.put(NODE_PATH, node_object(None));
    for (node, name) in [(NODE, "one"), (NODE, "two"), ("other", "three")] {
        api.put(&format!("/api/v1/namespaces/default/pods/{name}"), pod(node, name));
    }
    api.put(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1",
        json!({"metadata": {"name": NODE}, "spec": {"renewTime": "2026-01-01T00:00:00.123456Z"}}),
    );
    api
}

/// kubelet's file has its certificate and its key.
fn access(api: &FakeApi) -> Access {
    let both = std::fs::read(api.client_file()).unwrap();
    Access { server: api.url(), ca: api.ca.pem.clone().into_bytes(), certificate: both.clone(), key: both }
}

fn cluster(access: Access) -> ApiCluster {
    let mut cluster = ApiCluster::new(NODE, "kube-system");
    cluster.set_access(access);
    cluster
}

#[tokio::test]
async fn the_api_server_is_asked_with_kubelets_certificate() {
    let api = api_server().await;
    let mut cluster = cluster(access(&api));
    assert!(cluster.has_changed());
    cluster.forget_change();
    cluster.set_access(access(&api));
    assert!(!cluster.has_changed());
    let node = cluster.node().await.unwrap();
    assert!(node.ready && node.edge);
    assert_eq!(node.kubelet_version, "v1.36.3");
    assert_eq!(cluster.lease().await.unwrap().unwrap().to_string(), "2026-01-01T00:00:00.123456Z");
    let running = cluster.containers().await.unwrap();
    assert_eq!(running.keys().collect::<Vec<_>>(), ["one/app", "two/app"]);
    assert_eq!(running["one/app"].id, "containerd://one");
    assert!(cluster.clock_skew().await.unwrap().abs() < 5);
    assert_eq!(cluster.config_map(names::CONFIG_MAP).await.unwrap(), None);
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{}", names::CONFIG_MAP);
    api.put(&path, json!({"metadata": {"name": names::CONFIG_MAP}, "data": {"a": "b"}}));
    assert_eq!(cluster.config_map(names::CONFIG_MAP).await.unwrap().unwrap()["a"], "b");
    assert!(api.requests().iter().all(|seen| seen.user.as_deref() == Some("system:node:edge-1")));
}

#[tokio::test]
async fn a_report_is_an_annotation_and_nothing_else() {
    let api = api_server().await;
    let status = ConversionStatus {
        state: yurt_api::status::ConversionState::Converted,
        step: None,
        step_index: 0,
        steps: 7,
        message: String::new(),
        version: "0.1.0".into(),
        time: "2026-01-01T00:00:00Z".into(),
        agents: yurt_api::status::Agents::default(),
        since: None,
        way_in: None,
        tunnel: Vec::new(),
    };
    cluster(access(&api)).report(&status).await.unwrap();
    let patch = api.seen("PATCH", NODE_PATH).pop().unwrap().json();
    let text = patch["metadata"]["annotations"][names::ANNOTATION_CONVERSION].as_str().unwrap();
    assert_eq!(serde_json::from_str::<ConversionStatus>(text).unwrap(), status);
    assert_eq!(patch.as_object().unwrap().len(), 1, "{patch}");
    let node = api.get(NODE_PATH).unwrap();
    assert_eq!(node["metadata"]["annotations"][names::ANNOTATION_CONVERSION], text);
}

#[tokio::test]
async fn a_change_of_the_own_node_is_seen_also_after_a_cut() {
    let api = api_server().await;
    let client = cluster(access(&api)).client(Route::Direct).unwrap();
    let mut follower = Follower::start(NODE, Route::Direct, vec![(Route::Direct, client)]);
    let first = follower.seen.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(first.target, None);
    for target in [names::TARGET_VANILLA, "edge"] {
        api.put(NODE_PATH, node_object(Some(target)));
        let changed =
            |seen: &Option<OwnNode>| seen.as_ref().is_some_and(|node| node.target.as_deref() == Some(target));
        follower.seen.wait_for(changed).await.unwrap();
        api.cut_connections();
    }
}

#[tokio::test]
async fn a_hub_that_does_not_answer_is_gone_around() {
    let (hub, api) = (api_server().await, api_server().await);
    let [hub_client, client] =
        [&hub, &api].map(|server| cluster(access(server)).client(Route::Direct).unwrap());
    hub.cut();
    let ways = vec![(Route::Hub, hub_client), (Route::Direct, client)];
    let mut follower = Follower::start(NODE, Route::Hub, ways);
    follower.seen.wait_for(Option::is_some).await.unwrap();
    assert_eq!(follower.route, Route::Hub);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_and_one_that_says_no_is_not() {
    let api = api_server().await;
    let mut other = ApiCluster::new("other-node", "kube-system");
    other.set_access(access(&api));
    let refused = other.node().await.unwrap_err();
    assert!(!refused.is_unreachable() && refused.to_string().contains("not found"), "{refused}");
    assert!(!refused.is_transient() && matches!(refused, ClusterError::Refused { code: 404, .. }));

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lost =
        cluster(Access { server: format!("https://{free}"), ..access(&api) }).node().await.unwrap_err();
    assert!(lost.is_unreachable() && lost.to_string().contains("refused"), "{lost}");
    assert!(lost.is_transient());
}

#[tokio::test]
async fn a_busy_api_server_is_asked_again_and_told_from_one_that_says_no() {
    let api = api_server().await;
    let mut cluster = cluster(access(&api));
    for code in [429, 503, 504] {
        api.fault_times(When::path(NODE_PATH), Fault::Answer(code), 2);
    }
    assert!(cluster.node().await.unwrap().ready);
    assert_eq!(api.seen("GET", NODE_PATH).len(), 7);
    for code in [500, 502] {
        api.answer_with(Some(code));
        let error = cluster.node().await.unwrap_err();
        assert!(error.is_transient() && !error.is_unreachable(), "{error}");
        assert!(matches!(error, ClusterError::Refused { code: found, .. } if found == code), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_stays_busy_is_as_good_as_unreachable() {
    let api = api_server().await;
    let mut cluster = cluster(access(&api));
    cluster.node().await.unwrap();
    api.answer_with(Some(503));
    let before = tokio::time::Instant::now();
    let error = cluster.node().await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("busy"), "{error}");
    assert!(before.elapsed() >= Duration::from_secs(10));
}

#[tokio::test]
async fn credentials_that_are_none_are_an_error_of_their_own() {
    let api = api_server().await;
    let error = cluster(Access { key: b"no key".to_vec(), ..access(&api) }).node().await.unwrap_err();
    assert!(matches!(error, ClusterError::Credentials(_)), "{error}");
}
