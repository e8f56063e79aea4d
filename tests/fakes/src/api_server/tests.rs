//! Each fault, seen by a plain client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use super::*;
use crate::client::{As, Client};

const PODS: &str = "/api/v1/namespaces/shop/pods";
const SOON: Duration = Duration::from_millis(100);

async fn server() -> (FakeApi, Client) {
    let api = FakeApi::start().await;
    let client = kubelet(&api).await;
    (api, client)
}

async fn kubelet(api: &FakeApi) -> Client {
    Client::connect(api.address, &api.ca, &As::Certificate(api.ca.node(NODE))).await
}

async fn late<T>(future: impl Future<Output = T>) -> bool {
    tokio::time::timeout(SOON, future).await.is_err()
}

#[tokio::test]
async fn objects_are_made_changed_watched_and_deleted() {
    let (api, client) = server().await;
    let pod = json!({"metadata": {"name": "a", "labels": {"app": "x"}}, "spec": {"nodeName": "edge-1"}});
    let made = client.write(Method::POST, PODS, "application/json", &pod).await.expect(201).json();
    assert_eq!((&made["kind"], &made["metadata"]["uid"]), (&json!("Pod"), &json!("uid-a")));
    let mut watch = client.watch(&format!("{PODS}?watch=1&resourceVersion=100&labelSelector=app%3Dx")).await;
    assert_eq!(watch.change().await.0, "ADDED");
    let mut stale = made.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    let path = format!("{PODS}/a");
    client.write(Method::PUT, &path, "application/json", &stale).await.expect(409);
    let patch = json!({"metadata": {"labels": {"app": "y"}}});
    client.write(Method::PATCH, &path, "application/merge-patch+json", &patch).await.expect(200);
    let (event, gone) = watch.change().await;
    assert_eq!((event.as_str(), &gone["metadata"]["resourceVersion"]), ("DELETED", &json!("102")));
    client.write(Method::DELETE, &path, "application/json", &json!({})).await.expect(200);
    client.get(&path).await.expect(404);
    client.get("/api/v1/nonsense").await.expect(404);
    api.put_data("pods", "shop", "a", "x", "1");
    assert_eq!(api.get(&path).unwrap()["metadata"]["uid"], "uid-a-2", "another pod of this name");
}

#[tokio::test]
async fn lists_come_in_pages_and_in_protobuf() {
    let (api, client) = server().await;
    for name in ["a", "b", "c"] {
        api.put_data("pods", "shop", name, "x", "1");
    }
    let first = client.get(&format!("{PODS}?limit=2")).await.expect(200).json();
    let next = first["metadata"]["continue"].as_str().unwrap();
    let rest = client.get(&format!("{PODS}?limit=2&continue={next}")).await.expect(200).json();
    assert_eq!(
        (first["items"].as_array().unwrap().len(), &rest["items"][0]["metadata"]["name"]),
        (2, &json!("c"))
    );
    api.compact();
    client.get(&format!("{PODS}?limit=2&continue={next}")).await.expect(410);
    client.get(&format!("{PODS}?resourceVersion=999")).await.expect(504);
    let headers = [("accept", "application/vnd.kubernetes.protobuf")];
    let list = client.send(Method::GET, "/api/v1/pods", &headers, Bytes::new()).await.expect(200);
    assert!(list.body.starts_with(b"k8s\0\x0a\x0d\x0a\x02v1\x12\x07PodList"), "{list:?}");
    assert_eq!(list.body, api.list("pods", "Pod", "", Encoding::Protobuf));
    api.define(Resource::core("odd"), Kind::custom("Odd"));
    client.send(Method::GET, "/api/v1/odd", &headers, Bytes::new()).await.expect(406);
}

#[tokio::test]
async fn a_watch_list_ends_its_state_with_a_bookmark() {
    let (api, client) = server().await;
    api.put_data("pods", "shop", "a", "x", "1");
    let path = "/api/v1/pods?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = client.watch(path).await;
    assert_eq!(watch.next().await.unwrap()["type"], "ADDED");
    let end = watch.next().await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let version = api.bookmark();
    assert_eq!(watch.next().await.unwrap()["object"]["metadata"]["resourceVersion"], version.to_string());
    assert_eq!(watch.next().await, None, "its time is over");
}

#[tokio::test]
async fn people_are_known_asked_about_and_refused() {
    let ca = Arc::new(TestCa::new("kubernetes"));
    let api = FakeApi::with_ca(Arc::clone(&ca)).await;
    api.accept_token_of("t", "joe", &["shop"]);
    let joe = Client::connect(api.address, &ca, &As::Token("t".into())).await;
    joe.get(PODS).await.expect(200);
    api.forbid("joe", "*", "pods");
    api.allow("joe", "list", "pods");
    joe.get(PODS).await.expect(200);
    assert_eq!(joe.get(&format!("{PODS}?watch=1")).await.expect(403).json()["reason"], "Forbidden");
    let review = json!({"spec": {"user": "joe", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let node = Client::connect(api.address, &ca, &As::Certificate(ca.node("a"))).await;
    let answer = node.write(Method::POST, path, "application/json", &review).await.expect(201).json();
    assert_eq!(answer["status"]["allowed"], false);
    let review = json!({"spec": {"token": "t"}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = node.write(Method::POST, path, "application/json", &review).await.expect(201).json();
    assert_eq!(answer["status"]["user"], json!({"username": "joe", "groups": ["shop"]}));
    api.refuse_token("t");
    joe.get(PODS).await.expect(401);
    assert_eq!(api.seen("GET", PODS).last().unwrap().user, None);
}

#[tokio::test]
async fn answers_are_refused_as_often_as_wanted() {
    let (api, client) = server().await;
    api.fault_times(When::path(PODS).watching(false), Fault::Answer(429), 2);
    for code in [429, 429, 200] {
        client.get(PODS).await.expect(code);
    }
    api.fault(When::under("/apis/apps"), Fault::Text(404, "404 page not found\n"));
    let unknown = client.get("/apis/apps/v1/deployments").await.expect(404);
    assert_eq!(unknown.body, "404 page not found\n");
    api.answer_with(Some(403));
    assert_eq!(client.get(PODS).await.expect(403).json()["kind"], "Status");
    api.answer_with(None);
    client.get("/apis/apps/v1/deployments").await.expect(200);
}

#[tokio::test]
async fn a_stalled_request_is_answered_when_the_fault_is_gone_and_others_at_once() {
    let (api, client) = server().await;
    api.fault(When::path(PODS), Fault::Stall);
    let mut stalled = Box::pin(client.get(PODS));
    assert!(late(&mut stalled).await);
    client.get("/api/v1/nodes").await.expect(200);
    api.no_faults();
    stalled.await.expect(200);
}

#[tokio::test]
async fn bodies_are_slow_connections_hang_up_and_the_server_listens_or_not() {
    let (api, client) = server().await;
    api.fault(When::all(), Fault::Slow(20, Duration::from_millis(20)));
    let asked = Instant::now();
    let list = client.get(PODS).await.expect(200);
    assert!(asked.elapsed() >= Duration::from_millis(20) * (list.body.len() as u32 / 20));
    api.no_faults();
    api.fault_times(When::all(), Fault::HangUp, 1);
    assert!(client.try_open(Method::GET, PODS, &[], Bytes::new()).await.is_err());

    let client = kubelet(&api).await;
    let open = client.open(Method::GET, &format!("{PODS}?watch=1"), &[], Bytes::new()).await;
    api.cut();
    assert!(open.into_body().collect().await.is_err(), "no clean end");
    assert!(crate::client::tls(api.address, &api.ca, &As::Nobody, "h2").await.is_err());
    api.listen(Listening::Hold);
    let mut held = Box::pin(kubelet(&api));
    assert!(late(&mut held).await, "no TLS");
    api.restore();
    held.await.get(PODS).await.expect(200);
}

#[tokio::test]
async fn a_watch_is_silent_or_never_hears_of_what_was_written() {
    let (api, client) = server().await;
    let mut watch = client.watch(&format!("{PODS}?watch=1&resourceVersion=100")).await;
    api.fault(When::watches(), Fault::Silent);
    api.put_data("pods", "shop", "a", "x", "1");
    assert!(late(watch.next()).await);
    api.no_faults();
    assert_eq!(watch.change().await.1["metadata"]["name"], "a");
    api.fault(When::all().method("POST"), Fault::Unseen);
    let pod = json!({"metadata": {"name": "b"}});
    client.write(Method::POST, PODS, "application/json", &pod).await.expect(201);
    client.get(&format!("{PODS}/b")).await.expect(200);
    assert!(late(watch.next()).await);
    api.no_faults();
    api.fault(When::watches(), Fault::Error(410));
    let mut watch = client.watch(&format!("{PODS}?watch=1&resourceVersion=100")).await;
    let error = watch.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["reason"]), (&json!("ERROR"), &json!("Expired")));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn history_is_forgotten_restored_or_that_of_another_cluster() {
    let (api, client) = server().await;
    let name = "a";
    let old = api.put_data("pods", "shop", name, "x", "old");
    let backup = api.backup();
    let new = api.put_data("pods", "shop", name, "x", "new");
    assert_eq!(old.object["metadata"]["uid"], new.object["metadata"]["uid"]);
    api.compact();
    client.get(&format!("{PODS}?watch=1&resourceVersion={}", new.version)).await.expect(410);

    // With a bump the collection's version goes on and the object's goes back.
    api.restore_from(backup.clone(), 1_000_000);
    let client = kubelet(&api).await;
    let list = client.get(PODS).await.expect(200).json();
    assert_eq!(list["metadata"]["resourceVersion"], (old.version + 1_000_000).to_string());
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], old.version.to_string());
    assert_eq!(list["items"][0]["data"]["k"], "old");
    client.get(&format!("{PODS}?watch=1&resourceVersion={}", new.version)).await.expect(410);

    // Without one a watch from the future is accepted, and hears nothing.
    api.restore_from(backup, 0);
    let client = kubelet(&api).await;
    let mut watch = client.watch(&format!("{PODS}?watch=1&resourceVersion=500")).await;
    api.put_data("pods", "shop", name, "x", "newer");
    assert!(late(watch.next()).await);

    api.become_another_cluster();
    let client = kubelet(&api).await;
    let list = client.get(PODS).await.expect(200).json();
    assert_ne!(list["items"][0]["metadata"]["uid"], old.object["metadata"]["uid"]);
    assert_eq!(list["metadata"]["resourceVersion"], "50");
}
