//! The walk along the way to a node: each hop that leads nowhere is named, and nothing behind it is tried.

use std::collections::BTreeMap;

use yurt_api::diagnosis::{Diagnosis, Verdict};

use super::*;

fn path(node: &str) -> String {
    format!("/apis/tunnel.openyurt.io/v1alpha1/agents/{node}/diagnosis")
}

/// How each hop is, by its name; with the code where it is not well.
async fn walk(world: &World, node: &str) -> BTreeMap<String, (Verdict, Option<String>)> {
    let mut sender = world.connect(None).await;
    let response = sender.send_request(with_token(get(&path(node)), "joes-token")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let found: Diagnosis = serde_json::from_value(document(response).await).unwrap();
    assert_eq!((&*found.node, &*found.server), (node, "cp-1"));
    found.checks.into_iter().map(|check| (check.check, (check.verdict, check.code))).collect()
}

fn failed(code: &str) -> (Verdict, Option<String>) {
    (Verdict::Failed, Some(code.to_owned()))
}

#[tokio::test]
async fn a_way_that_is_whole_is_said_to_be_hop_by_hop() {
    let world = World::new().await;
    let found = walk(&world, "edge-1").await;
    for check in ["session", "round-trip", "kubelet", "kubelet-certificate", "clock", "throughput"] {
        assert_eq!(found[check], (Verdict::Passed, None), "{check}");
    }
    let asked: Vec<_> = world.kubelet_requests().into_iter().map(|(request, _)| request).collect();
    assert_eq!(asked, ["GET /healthz", "GET /metrics"]);
}

#[tokio::test]
async fn the_first_hop_that_leads_nowhere_is_named_and_nothing_behind_it_is_tried() {
    let world = World::new().await;
    let gone = walk(&world, "edge-2").await;
    assert_eq!(gone["session"], failed("NotConnected"));
    for check in ["round-trip", "kubelet", "kubelet-certificate", "clock", "throughput"] {
        assert_eq!(gone[check].0, Verdict::Skipped, "{check}");
    }
    assert!(world.kubelet_requests().is_empty());
    // A port that was free a moment ago, so that nothing listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    *world.tunnel.0.lock().unwrap() = closed;
    let stopped = walk(&world, "edge-1").await;
    assert_eq!((&stopped["session"].0, &stopped["kubelet"]), (&Verdict::Passed, &failed("KubeletRefuses")));
    assert_eq!(stopped["clock"].0, Verdict::Skipped);
}

#[tokio::test]
async fn a_session_with_another_server_is_one() {
    let found = walk(&World::new().await, "edge-3").await;
    assert_eq!(found["session"], (Verdict::Passed, None));
    assert_eq!(found["round-trip"].0, Verdict::Skipped);
}

#[tokio::test]
async fn kubelets_own_troubles_and_its_clock_are_told_apart() {
    let world = World::new().await;
    *world.kubelet.state.refusal.lock().unwrap() = Some((403, "Forbidden"));
    assert_eq!(walk(&world, "edge-1").await["kubelet"], failed("KubeletForbids"));
    *world.kubelet.state.refusal.lock().unwrap() = Some((500, "[-]syncloop failed"));
    assert_eq!(walk(&world, "edge-1").await["kubelet"], failed("KubeletUnhealthy"));
    *world.kubelet.state.date.lock().unwrap() = Some("Thu, 01 Jan 1970 00:00:07 GMT");
    let found = walk(&world, "edge-1").await;
    assert_eq!((&found["kubelet"].0, &found["clock"]), (&Verdict::Passed, &failed("ClockOff")));
}

#[tokio::test]
async fn who_may_see_agents_may_not_walk_to_them_for_that() {
    let world = World::new().await;
    world.api_server.accept_token_of("marys-token", "mary", &["shop"]);
    world.api_server.allow("mary", "get", "agents");
    let mut sender = world.connect(None).await;
    let response = sender.send_request(with_token(get(&path("edge-1")), "marys-token")).await.unwrap();
    let status = status(response).await;
    assert_eq!(status["code"], 403);
    assert!(status["message"].as_str().unwrap().contains("agents/diagnosis"), "{status}");
    assert!(world.kubelet_requests().is_empty());
}
