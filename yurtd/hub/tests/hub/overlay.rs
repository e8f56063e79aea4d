//! EndpointSlices while the node's own pods are newer here than at the API server, and pods that only this node can
//! bring back.

use super::*;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const ALL_SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn endpoint(pod: &str, ip: &str, ready: bool) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false},
           "nodeName": "edge", "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": format!("uid-{pod}")}})
}

fn slice(service: &str, endpoints: &[Value]) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
           "metadata": {"name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 80}]})
}

fn status(ip: &str, ready: &str) -> Value {
    json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
           "conditions": [{"type": "Ready", "status": ready}]})
}

/// Addresses and readiness, by slice and endpoint.
fn shown(slice: &Value) -> Vec<(String, bool)> {
    let endpoints = slice["endpoints"].as_array().unwrap();
    let one = |endpoint: &Value| {
        (
            endpoint["addresses"][0].as_str().unwrap().to_owned(),
            endpoint["conditions"]["ready"].as_bool().unwrap(),
        )
    };
    endpoints.iter().map(one).collect()
}

fn is(shown: &[(String, bool)], expected: &[(&str, bool)]) -> bool {
    shown.iter().map(|(ip, ready)| (&**ip, *ready)).eq(expected.iter().copied())
}

/// A cluster whose Service `web` has the node's two pods and one of another node, and the token of its DNS.
async fn cluster() -> (Cluster, As) {
    let cluster = Cluster::new().await;
    for (pod, ip) in [("web-0", "10.0.0.1"), ("web-1", "10.0.0.2")] {
        let path = format!("{PODS}/{pod}");
        let mut object = cluster.api.get(&path).unwrap();
        object["status"] = status(ip, "True");
        object["spec"]["restartPolicy"] = "Always".into();
        cluster.api.put(&path, object);
    }
    let endpoints = [
        endpoint("web-0", "10.0.0.1", true),
        endpoint("web-1", "10.0.0.2", true),
        endpoint("far-0", "10.9.0.1", true),
    ];
    cluster.api.put(SLICES, slice("web", &endpoints));
    cluster.api.put(SLICES, slice("far", &[endpoint("far-0", "10.9.0.1", true)]));
    let token = jwt(&json!({"sub": "system:serviceaccount:kube-system:coredns"}));
    cluster.api.accept_token(&token, "system:serviceaccount:kube-system:coredns");
    (cluster, As::Token(token))
}

async fn patch(kubelet: &Client, pod: &str, status: &Value) -> Value {
    let path = format!("{PODS}/{pod}/status");
    let mut status = status.clone();
    if let Some(ips) = status.get_mut("podIPs").and_then(Value::as_array_mut) {
        ips.insert(0, json!({"$patch": "replace"}));
    }
    let body = json!({"metadata": {"uid": format!("uid-{pod}")}, "status": status});
    kubelet.write(Method::PATCH, &path, STRATEGIC, &body).await.expect(200).json()
}

async fn web(client: &Client) -> Vec<(String, bool)> {
    let list = client.get(&format!("{ALL_SLICES}?resourceVersion=0")).await.expect(200).json();
    let items = list["items"].as_array().unwrap();
    let far = items.iter().find(|item| item["metadata"]["name"] == "far-x").unwrap();
    assert!(is(&shown(far), &[("10.9.0.1", true)]), "{far}");
    shown(items.iter().find(|item| item["metadata"]["name"] == "web-x").unwrap())
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

const BEFORE: [(&str, bool); 3] = [("10.0.0.1", true), ("10.0.0.2", true), ("10.9.0.1", true)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_offline_reboot_slices_show_the_nodes_own_pods_in_both_encodings() {
    let (cluster, dns) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let coredns = cluster.client(&hub, &dns).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    assert!(is(&web(&coredns).await, &BEFORE));
    let protobuf = async |client: &Client, path: &str| {
        client.send(Method::GET, path, &[("accept", PROTOBUF)], Bytes::new()).await.expect(200).body
    };
    let list = protobuf(&coredns, &format!("{ALL_SLICES}?resourceVersion=0")).await;
    assert!(holds(&list, "10.0.0.1") && holds(&list, "10.9.0.1"));

    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let coredns = cluster.client(&hub, &dns).await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    // kube-proxy may be there before kubelet has said anything.
    assert!(is(&web(&coredns).await, &BEFORE));
    let list = coredns.get(&format!("{ALL_SLICES}?resourceVersion=0")).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{ALL_SLICES}?watch=1&allowWatchBookmarks=true&resourceVersion={version}");
    let mut watch = coredns.watch(&path).await;
    let headers = [("accept", PROTOBUF)];
    let mut binary = coredns.open(Method::GET, &path, &headers, Bytes::new()).await.into_body();

    // The statuses come one by one.
    patch(&kubelet, "web-0", &status("10.0.0.11", "False")).await;
    let (event, object) = watch.change().await;
    assert_eq!((&*event, &object["metadata"]["name"]), ("MODIFIED", &json!("web-x")));
    assert!(is(&shown(&object), &[("10.0.0.11", false), ("10.0.0.2", true), ("10.9.0.1", true)]), "{object}");
    // The event has the object's version from long ago; where the collection stands is said behind it.
    let mark = watch.next().await.unwrap();
    assert_eq!(
        (&mark["type"], &mark["object"]["metadata"]["resourceVersion"]),
        (&json!("BOOKMARK"), &json!(version))
    );
    let frame = until("a frame", async || {
        use http_body_util::BodyExt;
        binary.frame().await.and_then(|frame| frame.unwrap().into_data().ok())
    })
    .await;
    assert!(holds(&frame, "MODIFIED") && holds(&frame, "10.0.0.11") && !holds(&frame, "10.0.0.1\x12"));
    patch(&kubelet, "web-0", &status("10.0.0.11", "True")).await;
    patch(&kubelet, "web-1", &status("10.0.0.12", "True")).await;
    const NOW: [(&str, bool); 3] = [("10.0.0.11", true), ("10.0.0.12", true), ("10.9.0.1", true)];
    until("both", async || is(&shown(&watch.change().await.1), &NOW).then_some(())).await;
    // Each view hears of it by itself.
    until("every view to show both", async || {
        let one = coredns.get(&format!("{SLICES}/web-x")).await.expect(200).json();
        let list = protobuf(&coredns, &format!("{ALL_SLICES}?resourceVersion=0")).await;
        let all = ["10.0.0.11", "10.0.0.12", "10.9.0.1"].iter().all(|address| holds(&list, address));
        (is(&web(&coredns).await, &NOW) && is(&shown(&one), &NOW) && all).then_some(())
    })
    .await;

    // The hub starts again: what it shows does not depend on its memory.
    drop((watch, binary));
    hub.stop().await;
    let hub = cluster.boot().await;
    let coredns = cluster.client(&hub, &dns).await;
    assert!(is(&web(&coredns).await, &NOW));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_address_is_not_shown_again_while_upstream_catches_up() {
    let (cluster, dns) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let coredns = cluster.client(&hub, &dns).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    assert!(is(&web(&coredns).await, &BEFORE));
    let list = coredns.get(&format!("{ALL_SLICES}?resourceVersion=0")).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = coredns.watch(&format!("{ALL_SLICES}?watch=1&resourceVersion={version}")).await;
    cluster.cut(&hub).await;
    patch(&kubelet, "web-0", &status("10.0.0.11", "True")).await;
    const NOW: [(&str, bool); 3] = [("10.0.0.11", true), ("10.0.0.2", true), ("10.9.0.1", true)];
    until("the new address", async || is(&shown(&watch.change().await.1), &NOW).then_some(())).await;

    // Meanwhile the cluster has given the node's pods up.
    let unheard = [
        endpoint("web-0", "10.0.0.1", false),
        endpoint("web-1", "10.0.0.2", true),
        endpoint("far-0", "10.9.0.2", true),
    ];
    cluster.api.put(SLICES, slice("web", &unheard));
    cluster.restore(&hub).await;
    until("the replay", async || (hub.server.readiness().pending_status_patches == 0).then_some(())).await;
    assert_eq!(cluster.api.get(&format!("{PODS}/web-0")).unwrap()["status"]["podIP"], "10.0.0.11");
    // Upstream's slice is not there yet: the pod's own address stays, and the rest is upstream's.
    const MEANWHILE: [(&str, bool); 3] = [("10.0.0.11", true), ("10.0.0.2", true), ("10.9.0.2", true)];
    let seen = shown(&watch.change().await.1);
    assert!(is(&seen, &MEANWHILE), "{seen:?}");
    assert!(is(&web_of(&coredns, "10.9.0.1").await, &MEANWHILE));

    let caught_up = [
        endpoint("web-0", "10.0.0.11", true),
        endpoint("web-1", "10.0.0.2", true),
        endpoint("far-0", "10.9.0.3", true),
    ];
    cluster.api.put(SLICES, slice("web", &caught_up));
    let mut seen = Vec::new();
    until("upstream's slice", async || {
        let (_, object) = watch.change().await;
        seen.push(shown(&object));
        (object["endpoints"][2]["addresses"][0] == "10.9.0.3").then_some(())
    })
    .await;
    assert!(seen.iter().all(|seen| seen[0] == ("10.0.0.11".to_owned(), true)), "{seen:?}");
    hub.stop().await;
}

async fn web_of(client: &Client, far: &str) -> Vec<(String, bool)> {
    let list = client.get(&format!("{ALL_SLICES}?resourceVersion=0")).await.expect(200).json();
    let items = list["items"].as_array().unwrap();
    assert!(items.iter().any(|item| item["endpoints"][0]["addresses"][0] == far), "{list}");
    shown(items.iter().find(|item| item["metadata"]["name"] == "web-x").unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_kubelet_ended_without_a_link_is_there_for_the_next_kubelet() {
    let (cluster, dns) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let coredns = cluster.client(&hub, &dns).await;
    web(&coredns).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let watch = kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion={version}")).await;
    let upstream = cluster.api.get(&format!("{PODS}/web-0")).unwrap();
    cluster.cut(&hub).await;
    let failed = json!({"phase": "Failed", "reason": "Terminated", "conditions": [{"type": "Ready", "status": "False"}]});
    for pod in ["web-0", "web-1"] {
        patch(&kubelet, pod, &failed).await;
    }
    let phases = async |client: &Client| {
        let list = client.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
        let items = list["items"].as_array().unwrap();
        items.iter().map(|pod| pod["status"]["phase"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Final for the kubelet that says so: it watches.
    assert_eq!(phases(&kubelet).await, ["Failed", "Failed"]);
    until("no endpoint", async || is(&web(&coredns).await, &[("10.9.0.1", true)]).then_some(())).await;
    // That kubelet is gone; the next one is another process.
    drop((watch, kubelet));
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    until("the old one's watch to end", async || {
        (phases(&kubelet).await == ["Running", "Running"]).then_some(())
    })
    .await;
    let pod = kubelet.get(&format!("{PODS}/web-0")).await.expect(200).json();
    assert_eq!(pod["status"], upstream["status"]);
    assert_eq!(hub.server.readiness().pending_status_patches, 0);
    // Nor does the cluster ever hear that it had ended.
    patch(&kubelet, "web-0", &status("10.0.0.11", "True")).await;
    cluster.restore(&hub).await;
    until("the replay", async || (hub.server.readiness().pending_status_patches == 0).then_some(())).await;
    let sent = cluster.api.seen("PATCH", &format!("{PODS}/web-0/status"));
    assert_eq!(sent.len(), 1);
    assert!(!holds(&sent[0].body, "Failed"));
    assert!(cluster.api.seen("PATCH", &format!("{PODS}/web-1/status")).is_empty());
    assert_eq!(cluster.api.get(&format!("{PODS}/web-0")).unwrap()["status"]["podIP"], "10.0.0.11");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_of_a_status_are_one_patch_also_after_a_restart() {
    let (cluster, _) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    cluster.cut(&hub).await;
    for number in 1..=70 {
        let ready = if number % 2 == 0 { "True" } else { "False" };
        patch(&kubelet, "web-0", &status(&format!("10.0.1.{number}"), ready)).await;
    }
    drop(kubelet);
    hub.stop().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    patch(&kubelet, "web-0", &status("10.0.1.71", "True")).await;
    // The API server does not know yet what the node may do.
    let path = format!("{PODS}/web-0/status");
    cluster.api.fault_times(When::path(&path).method("PATCH"), Fault::Answer(403), 1);
    cluster.restore(&hub).await;
    until("the replay", async || (hub.server.readiness().pending_status_patches == 0).then_some(())).await;
    let sent = cluster.api.seen("PATCH", &path);
    assert_eq!(sent.len(), 2, "refused once, and once with everything");
    let body: Value = serde_json::from_slice(&sent[1].body).unwrap();
    assert_eq!(body["status"]["podIP"], "10.0.1.71");
    let pod = cluster.api.get(&format!("{PODS}/web-0")).unwrap();
    assert_eq!(pod["status"], status("10.0.1.71", "True"));
    hub.stop().await;
}
