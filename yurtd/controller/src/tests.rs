//! The role as a whole against an API server in memory: election, work, handing over.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use yurt_node::supervise::Ended;

use super::elect::elect;
use super::health::Pulse;
use super::term::Settings;
use super::testing::FakeCluster;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/yurt-controller";
const PARAMETER: &str = "/apis/autonomy.openyurt.io/v1alpha1/autonomousnodes/yurt-autonomous-nodes";
const SERVING: &str = "/api/v1/namespaces/kube-system/secrets/yurt-tunnel-server-tls";
/// Long enough for a busy machine, short enough to fail.
const SOON: Duration = Duration::from_secs(30);

fn start(cluster: &FakeCluster, identity: &str) -> (CancellationToken, AbortOnDropHandle<Result<(), Ended>>) {
    let settings = Settings {
        namespace: "kube-system".into(),
        identity: identity.into(),
        config_file: "/nonexistent/config.json".into(),
    };
    let stop = CancellationToken::new();
    let task = elect(cluster.client(), settings, Pulse::new(), stop.clone());
    (stop, AbortOnDropHandle::new(tokio::spawn(task)))
}

fn holder(cluster: &FakeCluster) -> Option<String> {
    Some(cluster.get(LEASE)?["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

fn edge(autonomy: &str) -> serde_json::Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "labels": {"openyurt.io/is-edge-worker": "true"},
            "annotations": {"node.beta.openyurt.io/autonomy": autonomy}
        }
    })
}

#[tokio::test]
async fn one_works_and_hands_over_when_it_stops() {
    let cluster = FakeCluster::start().await;
    cluster.put("/api/v1/nodes/edge-1", edge("true"));
    let (stop_a, a) = start(&cluster, "a");
    until("a is elected", || holder(&cluster).as_deref() == Some("a")).await;
    let (stop_b, b) = start(&cluster, "b");
    until("the parameter is there", || {
        cluster.get(PARAMETER).is_some_and(|object| object["spec"]["nodes"]["edge-1"] == "")
    })
    .await;
    until("the certificate is there", || cluster.get(SERVING).is_some()).await;
    assert_eq!(holder(&cluster).as_deref(), Some("a"));

    // Followed without waiting for the next full pass.
    cluster.put("/api/v1/nodes/edge-1", edge("false"));
    until("the parameter is empty", || {
        cluster.get(PARAMETER).is_some_and(|object| object["spec"]["nodes"] == json!({}))
    })
    .await;

    stop_a.cancel();
    a.await.unwrap().unwrap();
    assert!(matches!(holder(&cluster).as_deref(), Some("" | "b")), "a lets go before it ends");
    until("b is elected", || holder(&cluster).as_deref() == Some("b")).await;
    cluster.delete(PARAMETER);
    until("b works", || cluster.get(PARAMETER).is_some()).await;
    stop_b.cancel();
    b.await.unwrap().unwrap();
    assert_eq!(holder(&cluster).as_deref(), Some(""));
}

#[tokio::test]
async fn a_leader_that_lost_its_lease_stops_working() {
    let cluster = FakeCluster::start().await;
    let (_stop, _a) = start(&cluster, "a");
    until("a works", || cluster.get(PARAMETER).is_some()).await;
    let mut lease = cluster.get(LEASE).unwrap();
    lease["spec"]["holderIdentity"] = "thief".into();
    lease["spec"]["leaseDurationSeconds"] = 3600.into();
    cluster.put(LEASE, lease);
    // It notices at its next look, and has ended its work before the one after that.
    let looks = cluster.reads(LEASE);
    until("a looked twice", || cluster.reads(LEASE) >= looks + 2).await;
    let writes = cluster.writes();
    cluster.put("/api/v1/nodes/edge-1", edge("true"));
    // A leader writes the parameter within milliseconds; two more looks are four seconds.
    let looks = cluster.reads(LEASE);
    until("a looked again", || cluster.reads(LEASE) >= looks + 2).await;
    assert_eq!(cluster.writes(), writes);
    assert_eq!(holder(&cluster).as_deref(), Some("thief"));
}
