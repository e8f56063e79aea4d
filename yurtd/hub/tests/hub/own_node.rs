//! The node's own Node, when the controller has given it another kubelet port because its address is another node's, too.

use super::*;

const NODE: &str = "/api/v1/nodes/edge";
const STATUS: &str = "/api/v1/nodes/edge/status";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const LABEL: &str = "openyurt.io.node-restriction.kubernetes.io/kubelet-port";

fn port(node: &Value) -> u64 {
    node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap()
}

fn endpoints(port: u16) -> Value {
    json!({"kubeletEndpoint": {"Port": port}})
}

/// Whether a body in protobuf has this port (DaemonEndpoint{Port 1}).
fn has_port(body: &[u8], port: u16) -> bool {
    let number = [0x08, port as u8 | 0x80, (port >> 7) as u8 | 0x80, (port >> 14) as u8];
    let number = if port < 1 << 14 { [0x08, port as u8 | 0x80, (port >> 7) as u8, 0] } else { number };
    let length = if port < 1 << 14 { 3 } else { 4 };
    body.windows(length).any(|window| window == &number[..length])
}

impl Cluster {
    /// Changes the Node as the API server has it.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut node = self.api.get(NODE).unwrap();
        change(&mut node);
        self.api.put(NODE, node);
    }

    fn give(&self, port: &str) {
        self.change(|node| node["metadata"]["labels"] = json!({LABEL: port}));
    }

    async fn published(&self, wanted: u64) {
        until("the port", async || (port(&self.api.get(NODE).unwrap()) == wanted).then_some(())).await;
    }

    async fn with_port() -> (Self, As) {
        let cluster = Self::new().await;
        cluster.change(|node| node["status"]["daemonEndpoints"] = endpoints(10250));
        let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
        cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
        (cluster, As::Token(token))
    }
}

async fn heartbeat(kubelet: &Client, body: Value) -> Value {
    kubelet.write(Method::PATCH, STATUS, STRATEGIC, &body).await.expect(200).json()
}

fn ready(time: &str) -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_was_given_is_published_and_nobody_on_the_node_sees_it() {
    let (cluster, web) = Cluster::with_port().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let pod = cluster.client(&hub, &web).await;
    let list = kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = kubelet.watch(&format!("{OWN_NODE}&watch=1&resourceVersion={version}")).await;
    pod.get("/api/v1/nodes?resourceVersion=0").await.expect(200);

    // Within seconds, and without a word of kubelet's.
    cluster.give("40000");
    cluster.published(40_000).await;
    for what in ["the label", "the status"] {
        let (_, node) = watch.change().await;
        assert_eq!((port(&node), &node["metadata"]["labels"][LABEL]), (10250, &json!("40000")), "{what}");
    }

    // What kubelet says next carries it, and it is answered as it asks.
    let answer = heartbeat(&kubelet, ready("1")).await;
    assert_eq!((port(&answer), port(&cluster.api.get(NODE).unwrap())), (10250, 40_000));
    let sent = cluster.api.seen("PATCH", STATUS).last().unwrap().json();
    assert_eq!(sent["status"]["daemonEndpoints"], endpoints(40_000));
    assert_eq!(sent["status"]["conditions"], ready("1")["status"]["conditions"]);
    // So it comes back, whoever changed it.
    cluster.change(|node| node["status"]["daemonEndpoints"] = endpoints(10250));
    heartbeat(&kubelet, ready("2")).await;
    assert_eq!(port(&cluster.api.get(NODE).unwrap()), 40_000);
    // A kubelet that has just started says all of it.
    let mut all = ready("3");
    all["status"]["daemonEndpoints"] = endpoints(10250);
    heartbeat(&kubelet, all.clone()).await;
    assert_eq!(port(&cluster.api.get(NODE).unwrap()), 40_000);
    let merge = "application/merge-patch+json";
    kubelet.write(Method::PATCH, STATUS, merge, &all).await.expect(200);
    let steps = json!([{"op": "replace", "path": "/status/daemonEndpoints", "value": endpoints(10250)}]);
    let json_patch = "application/json-patch+json";
    assert_eq!(
        port(&kubelet.write(Method::PATCH, STATUS, json_patch, &steps).await.expect(200).json()),
        10250
    );
    let mut node = kubelet.get(NODE).await.expect(200).json();
    node["status"]["phase"] = "x".into();
    let answer = kubelet.write(Method::PUT, STATUS, "application/json", &node).await.expect(200).json();
    assert_eq!((port(&answer), &answer["status"]["phase"]), (10250, &json!("x")));
    // A pod that writes what it has read changes nothing of it, and one that says something else is not made to.
    pod.write(Method::PUT, STATUS, "application/json", &answer).await.expect(200);
    assert_eq!(port(&cluster.api.get(NODE).unwrap()), 40_000);
    pod.write(Method::PATCH, STATUS, STRATEGIC, &ready("4")).await.expect(200);
    assert_eq!(cluster.api.seen("PATCH", STATUS).last().unwrap().json(), ready("4"));

    // Everybody on the node sees kubelet's own, however they ask.
    let binary = async |client: &Client, path: &str| {
        client.send(Method::GET, path, &[("accept", PROTOBUF)], Bytes::new()).await.expect(200).body
    };
    for client in [&kubelet, &pod] {
        for path in [NODE, STATUS, &format!("{NODE}?resourceVersion=0")] {
            assert_eq!(port(&client.get(path).await.expect(200).json()), 10250, "{path}");
            let body = binary(client, path).await;
            assert!(has_port(&body, 10250) && !has_port(&body, 40_000), "{path}");
        }
        for path in [OWN_NODE, &format!("{OWN_NODE}&resourceVersion=0")] {
            let list = client.get(path).await.expect(200).json();
            assert_eq!((names(&list), port(&list["items"][0])), (vec!["edge".to_owned()], 10250), "{path}");
            let list = binary(client, path).await;
            assert!(has_port(&list, 10250) && !has_port(&list, 40_000), "{path}");
        }
    }
    until("the pod's view", async || {
        let list = pod.get("/api/v1/nodes?resourceVersion=0").await.expect(200).json();
        assert_eq!(port(&list["items"][0]), 10250);
        let body = binary(&pod, "/api/v1/nodes?resourceVersion=0").await;
        (has_port(&body, 10250) && !has_port(&body, 40_000)).then_some(())
    })
    .await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_outlives_a_cut_and_a_restart_and_goes_when_the_controller_takes_it() {
    let (cluster, _) = Cluster::with_port().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    cluster.give("40000");
    cluster.published(40_000).await;
    until("the view", async || {
        let list = kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200).json();
        assert_eq!(port(&list["items"][0]), 10250);
        (list["items"][0]["metadata"]["resourceVersion"]
            == cluster.api.get(NODE).unwrap()["metadata"]["resourceVersion"])
            .then_some(())
    })
    .await;
    hub.stop().await;

    // A boot without a link, in which kubelet says everything anew.
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    assert_eq!(port(&kubelet.get(NODE).await.expect(200).json()), 10250);
    let mut all = ready("offline");
    all["status"]["daemonEndpoints"] = endpoints(10250);
    assert_eq!(port(&heartbeat(&kubelet, all).await), 10250);
    cluster.restore(&hub).await;
    until("the replay", async || {
        let node = cluster.api.get(NODE).unwrap();
        assert_eq!(port(&node), 40_000);
        (node["status"]["conditions"][0]["lastHeartbeatTime"] == "offline").then_some(())
    })
    .await;

    // Taken back: kubelet sees that its status has a port that is not its own, and what it says is what is sent.
    let list = kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = kubelet.watch(&format!("{OWN_NODE}&watch=1&resourceVersion={version}")).await;
    cluster.change(|node| node["metadata"]["labels"] = json!({}));
    until("its status", async || (port(&watch.change().await.1) == 40_000).then_some(())).await;
    assert_eq!(port(&kubelet.get(NODE).await.expect(200).json()), 40_000);
    let own = json!({"status": {"daemonEndpoints": endpoints(10250)}});
    heartbeat(&kubelet, own.clone()).await;
    assert_eq!(port(&cluster.api.get(NODE).unwrap()), 10250);
    assert_eq!(cluster.api.seen("PATCH", STATUS).last().unwrap().json(), own);
    hub.stop().await;
}

/// A view that cannot be used is no reason for kubelet to see another port: its watch is forwarded then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_without_a_view_shows_kubelets_own_port_too() {
    let (cluster, web) = Cluster::with_port().await;
    cluster.give("40000");
    cluster.change(|node| node["status"]["daemonEndpoints"] = endpoints(40_000));
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &web).await;
    // A parameter that no view answers.
    let path = format!("{OWN_NODE}&watch=1&pretty=1");
    let mut watch = pod.watch(&path).await;
    assert_eq!(port(&watch.change().await.1), 10250);
    let headers = [("accept", PROTOBUF)];
    let mut binary = pod.open(Method::GET, &path, &headers, Bytes::new()).await.into_body();
    let frame = until("a frame", async || {
        use http_body_util::BodyExt;
        binary.frame().await.and_then(|frame| frame.unwrap().into_data().ok())
    })
    .await;
    assert!(has_port(&frame, 10250) && !has_port(&frame, 40_000));
    hub.stop().await;
}
