//! What is answered without a link, and what becomes of it afterwards.

use super::*;

const EVENTS: &str = "/api/v1/namespaces/shop/events";

fn event(name: &str, reason: &str, count: usize) -> Value {
    json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop"},
        "reason": reason, "count": count, "lastTimestamp": "2026-11-28T00:00:00Z"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_the_time_without_a_link_arrive_in_their_order_and_once() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let post = async |kubelet: &Client, event: &Value| {
        kubelet.write(Method::POST, EVENTS, "application/json", event).await
    };
    post(&kubelet, &event("pulled", "Pulled", 1)).await.expect(201);
    cluster.cut(&hub).await;
    // It happens again: the recorder patches, is told that it is not there, and posts all of it.
    let again = json!({"count": 2});
    let patched =
        kubelet.write(Method::PATCH, &format!("{EVENTS}/pulled"), STRATEGIC, &again).await.expect(404);
    assert_eq!(patched.json()["reason"], "NotFound");
    for sent in [event("killed", "Killing", 1), event("pulled", "Pulled", 2), event("started", "Started", 1)]
    {
        let answer = post(&kubelet, &sent).await.expect(201);
        assert_eq!(answer.json(), sent);
    }
    post(&kubelet, &json!({"kind": "Event"})).await.expect(400);
    // The queue outlives the hub.
    drop(kubelet);
    hub.stop().await;
    let hub = cluster.boot().await;
    assert_eq!(hub.server.readiness().pending_events, 3);
    cluster.restore(&hub).await;
    until("nothing to wait", async || (hub.server.readiness().pending_events == 0).then_some(())).await;
    let all: Vec<Value> = ["killed", "pulled", "started"]
        .map(|name| cluster.api.get(&format!("{EVENTS}/{name}")).unwrap())
        .into();
    let mut seen: Vec<_> = all
        .iter()
        .map(|event| (event["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap(), event))
        .map(|(version, event)| {
            (version, event["reason"].as_str().unwrap(), event["count"].as_u64().unwrap())
        })
        .collect();
    seen.sort_unstable();
    let seen: Vec<_> = seen.into_iter().map(|(_, reason, count)| (reason, count)).collect();
    assert_eq!(seen, [("Killing", 1), ("Pulled", 2), ("Started", 1)]);
    assert_eq!(all[0]["lastTimestamp"], "2026-11-28T00:00:00Z");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_kubelet_has_events_queued() {
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    let web = cluster.client(&hub, &As::Token(token)).await;
    web.get("/api/v1/namespaces/kube-system/configmaps/kube-proxy").await.expect(200);
    cluster.cut(&hub).await;
    web.write(Method::POST, EVENTS, "application/json", &event("x", "X", 1)).await.expect(503);
    hub.stop().await;
}

/// What kubectl asks for.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                     application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_get_at_the_node_prints_what_is_known_without_a_link() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    cluster.cut(&hub).await;
    let table = async |path: &str| kubelet.send(Method::GET, path, &[("accept", TABLE)], Bytes::new()).await;
    let list = table(&format!("{NODE_PODS}&limit=500")).await.expect(200);
    assert_eq!(
        (&list.json()["kind"], names(&list.json())),
        (&json!("PodList"), vec!["web-0".into(), "web-1".into()])
    );
    let node = table("/api/v1/nodes/edge").await.expect(200);
    assert_eq!(node.json()["kind"], "Node");
    // Whoever takes nothing but a Table gets no list for one.
    let only = kubelet.send(Method::GET, NODE_PODS, &[("accept", &TABLE[..39])], Bytes::new()).await;
    only.expect(503);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_that_has_never_asked_what_there_is_finds_it_without_a_link() {
    const KUBECTL: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
        application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    // The same wish, written by somebody else.
    const ANOTHER: &str =
        "application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io, application/json;q=0.5";
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    // Nobody but the hub asks.
    until("the hub to ask", async || (cluster.api.seen("GET", "/apis").len() == 1).then_some(())).await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get("/api/v1/nodes/edge").await.expect(200);
    cluster.cut(&hub).await;
    let check = async |hub: &Hub| {
        let kubelet = cluster.client(hub, &cluster.kubelet()).await;
        for (path, accept) in [
            ("/apis?timeout=32s", KUBECTL),
            ("/apis?timeout=32s", ANOTHER),
            ("/apis/", KUBECTL),
            ("/api?timeout=32s", KUBECTL),
        ] {
            let found =
                kubelet.send(Method::GET, path, &[("accept", accept)], Bytes::new()).await.expect(200);
            let content_type = found.headers["content-type"].to_str().unwrap().to_owned();
            assert!(content_type.ends_with(";v=v2;as=APIGroupDiscoveryList"), "{path}: {content_type}");
            let groups = found.json()["items"].clone();
            let groups: Vec<_> =
                groups.as_array().unwrap().iter().map(|group| group["metadata"]["name"].clone()).collect();
            let expected = if path.starts_with("/apis") { "apps" } else { "" };
            assert!(groups.contains(&json!(expected)), "{path}: {groups:?}");
        }
    };
    check(&hub).await;
    // Who takes another form alone is not given this one.
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    kubelet.send(Method::GET, "/apis", &protobuf, Bytes::new()).await.expect(503);
    hub.stop().await;
    let hub = cluster.boot().await;
    check(&hub).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_an_offline_reboot() {
    let cluster = Cluster::new().await;
    cluster.api.put(
        "/apis/storage.k8s.io/v1/csinodes",
        json!({"kind": "CSINode", "apiVersion": "storage.k8s.io/v1",
        "metadata": {"name": "edge"}, "spec": {"drivers": []}}),
    );
    cluster.api.put(
        LEASES,
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"name": "edge"}, "spec": {"renewTime": "t0"}}),
    );
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for path in [OWN_NODE, NODE_PODS, "/api/v1/services?"] {
        kubelet.get(&format!("{path}&resourceVersion=0")).await.expect(200);
    }
    let csinode = kubelet.get("/apis/storage.k8s.io/v1/csinodes/edge").await.expect(200).json();
    let lease = kubelet.get(&format!("{LEASES}/edge")).await.expect(200).json();
    let renewed =
        kubelet.write(Method::PUT, &format!("{LEASES}/edge"), "application/json", &lease).await.expect(200);
    kubelet.get("/version").await.expect(200);
    let token_path = "/api/v1/namespaces/shop/serviceaccounts/web/token";
    let token_request = |uid: &str| {
        json!({"kind": "TokenRequest", "spec": {"expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": uid}}})
    };
    let token =
        kubelet.write(Method::POST, token_path, "application/json", &token_request("u-1")).await.expect(201);

    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let post =
        async |path: &str, body: &Value| kubelet.write(Method::POST, path, "application/json", body).await;

    let node = kubelet.get("/api/v1/nodes/edge").await.expect(200).json();
    assert_eq!((&node["kind"], &node["metadata"]["name"]), (&json!("Node"), &json!("edge")));
    assert_eq!(post("/api/v1/nodes", &node).await.expect(409).json()["reason"], "AlreadyExists");
    let list = kubelet.get(NODE_PODS).await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // A reboot must not end in pulling an image that is there.
    assert_eq!(list["items"][0]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(kubelet.get("/apis/storage.k8s.io/v1/csinodes/edge").await.expect(200).json(), csinode);
    let put = async |body: &Value| {
        kubelet.write(Method::PUT, "/apis/storage.k8s.io/v1/csinodes/edge", "application/json", body).await
    };
    put(&csinode).await.expect(200);
    let mut changed = csinode.clone();
    changed["spec"]["drivers"] = json!([{"name": "x"}]);
    put(&changed).await.expect(503);

    let lease = kubelet.get(&format!("{LEASES}/edge")).await.expect(200).json();
    assert_eq!(lease["metadata"]["uid"], renewed.json()["metadata"]["uid"]);
    let renewed =
        kubelet.write(Method::PUT, &format!("{LEASES}/edge"), "application/json", &lease).await.expect(200);
    assert_eq!(renewed.json()["metadata"]["resourceVersion"], lease["metadata"]["resourceVersion"]);
    post(LEASES, &lease).await.expect(409);

    let replayed = post(token_path, &token_request("u-1")).await.expect(201);
    assert_eq!(replayed.body, token.body);
    post(token_path, &token_request("u-2")).await.expect(503);
    assert_eq!(kubelet.get("/version").await.expect(200).json()["gitVersion"], "v1.36.3");

    // Everything else fails, fast and honestly.
    for (method, path) in [
        (Method::POST, "/api/v1/namespaces/shop/pods"),
        (Method::DELETE, "/api/v1/namespaces/shop/pods/web-0"),
        (Method::POST, "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
        (Method::GET, "/api/v1/namespaces/shop/configmaps/never-seen"),
        (Method::GET, "/apis/apps/v1"),
    ] {
        let failed = kubelet.write(method, path, "application/json", &json!({})).await.expect(503);
        assert_eq!(failed.json()["reason"], "ServiceUnavailable", "{path}");
        assert!(failed.json()["message"].as_str().unwrap().contains("the edge node is offline"), "{path}");
        assert_eq!(failed.headers.get("retry-after"), None, "{path}");
    }
    // Proven: the view of the node's name is complete and has no such Node.
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_patch_offline_is_seen_by_a_watch_and_replayed() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion={version}")).await;

    cluster.cut(&hub).await;
    // The images' policy changes with the link.
    for _ in 0..2 {
        let (event, pod) = watch.change().await;
        assert_eq!(event, "MODIFIED");
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    }
    let status = "/api/v1/namespaces/shop/pods/web-0/status";
    let patch = |uid: &str| {
        json!({"metadata": {"uid": uid}, "status": {
        "$setElementOrder/conditions": [{"type": "Ready"}], "conditions": [{"type": "Ready", "status": "True"}],
        "phase": "Running", "podIP": "10.85.0.7"}})
    };
    let patched =
        kubelet.write(Method::PATCH, status, STRATEGIC, &patch("uid-web-0")).await.expect(200).json();
    assert_eq!(patched["status"]["podIP"], "10.85.0.7");
    assert_eq!(patched["metadata"]["resourceVersion"], list["items"][0]["metadata"]["resourceVersion"]);
    let (event, pod) = watch.change().await;
    assert_eq!((event.as_str(), &pod["status"]["phase"]), ("MODIFIED", &json!("Running")));
    assert_eq!(pod["kind"], "Pod");
    // A pod that was made anew is not touched.
    let conflict = kubelet.write(Method::PATCH, status, STRATEGIC, &patch("uid-other")).await.expect(409);
    assert_eq!(conflict.json()["reason"], "Conflict");
    let node = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    kubelet.write(Method::PATCH, "/api/v1/nodes/edge/status", STRATEGIC, &node).await.expect(200);

    // Power cut: what was answered is still there.
    drop(watch);
    hub.stop().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let pod = kubelet.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200).json();
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(hub.server.readiness().pending_status_patches, 2);
    assert!(cluster.api.seen("PATCH", status).is_empty());

    cluster.restore(&hub).await;
    until("the replay", async || (hub.server.readiness().pending_status_patches == 0).then_some(())).await;
    let replayed = cluster.api.seen("PATCH", status);
    assert_eq!(replayed.len(), 1);
    assert_eq!(replayed[0].headers["content-type"], STRATEGIC);
    assert_eq!(replayed[0].user.as_deref(), Some("system:node:edge"));
    // The difference, without what helps kubelet to merge.
    let mut difference = patch("uid-web-0");
    difference["status"].as_object_mut().unwrap().remove("$setElementOrder/conditions");
    assert_eq!(serde_json::from_slice::<Value>(&replayed[0].body).unwrap(), difference);
    assert_eq!(cluster.api.get(&format!("{PODS}/web-0")).unwrap()["status"]["podIP"], "10.85.0.7");
    assert_eq!(cluster.api.seen("PATCH", "/api/v1/nodes/edge/status").len(), 1);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_patch_that_fails_holds_up_no_other_and_gives_way_to_a_newer_one() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    cluster.cut(&hub).await;
    let status = |name: &str| format!("{PODS}/{name}/status");
    let patch = async |name: &str, ip: &str| {
        let patch = json!({"metadata": {"uid": format!("uid-{name}")}, "status": {"podIP": ip}});
        kubelet.write(Method::PATCH, &status(name), STRATEGIC, &patch).await
    };
    for name in ["web-0", "web-1"] {
        patch(name, "10.0.0.1").await.expect(200);
    }
    cluster.api.fault(When::path(&status("web-0")).method("PATCH"), Fault::Answer(500));
    cluster.restore(&hub).await;
    let pending = || hub.server.readiness().pending_status_patches;
    until("the other object's replay", async || (pending() == 1).then_some(())).await;
    assert_eq!(cluster.api.get(&format!("{PODS}/web-1")).unwrap()["status"]["podIP"], "10.0.0.1");
    // It waits for its own next try; nobody waits for it.
    let asked = tokio::time::Instant::now();
    patch("web-0", "10.0.0.2").await.expect(500);
    assert!(asked.elapsed().as_secs() < 2, "{:?}", asked.elapsed());
    assert_eq!(pending(), 1, "what fails changes nothing");
    cluster.api.no_faults();
    patch("web-0", "10.0.0.3").await.expect(200);
    assert_eq!(pending(), 0, "the older patch is no longer wanted");
    let sent = cluster.api.seen("PATCH", &status("web-0"));
    let last: Value = serde_json::from_slice(&sent.last().unwrap().body).unwrap();
    assert_eq!(last["status"]["podIP"], "10.0.0.3");
    let view = until("upstream's version", async || {
        let pods = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
        (pods["items"][0]["status"]["podIP"] == "10.0.0.3").then_some(pods)
    })
    .await;
    assert_eq!(names(&view), ["web-0", "web-1"]);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_is_not_remembered() {
    let cluster = Cluster::new().await;
    const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
    for name in ["kept", "gone"] {
        cluster.api.put(
            CLAIMS,
            json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": name}}),
        );
    }
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for name in ["kept", "gone"] {
        kubelet.get(&format!("{CLAIMS}/{name}?timeout=10s")).await.expect(200);
    }
    cluster.api.delete(&format!("{CLAIMS}/gone"));
    kubelet.get(&format!("{CLAIMS}/gone")).await.expect(404);
    cluster.cut(&hub).await;
    let kept = kubelet.get(&format!("{CLAIMS}/kept")).await.expect(200).json();
    assert_eq!(kept["metadata"]["name"], "kept");
    kubelet.get(&format!("{CLAIMS}/gone")).await.expect(503);
    // Nor is it anybody else's.
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.client(&hub, &As::Token(token)).await.get(&format!("{CLAIMS}/kept")).await.expect(401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_views_of_kube_proxy_and_coredns_are_opened_with_their_own_tokens() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let request =
        json!({"kind": "TokenRequest", "spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "u"}}});
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/coredns/token";
    let reply = kubelet.write(Method::POST, path, "application/json", &request).await.expect(201).json();
    let token = reply["status"]["token"].as_str().unwrap().to_owned();
    cluster.api.accept_token(&token, "system:serviceaccount:kube-system:coredns");
    for path in ["/api/v1/namespaces", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
        let seen = until(path, async || cluster.api.seen("GET", path).pop()).await;
        assert_eq!(seen.headers["authorization"], format!("Bearer {token}"));
        assert!(seen.headers["accept"].to_str().unwrap().contains("protobuf"));
    }
    // And the pod is known without a TokenReview, even if it never came before the link went.
    cluster.cut(&hub).await;
    let coredns = cluster.client(&hub, &As::Token(token)).await;
    coredns.get("/api/v1/namespaces/shop/configmaps/x").await.expect(503);
    assert!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").is_empty());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_finds_after_an_offline_reboot_what_it_asks_for_at_its_start_and_what_it_missed() {
    const ACCOUNT: &str = "system:serviceaccount:kube-flannel:flannel";
    const OWN_POD: &str = "/api/v1/namespaces/kube-flannel/pods/kube-flannel-x";
    const NODES: &str = "/api/v1/nodes?resourceVersion=0";
    let cluster = Cluster::new().await;
    cluster.api.put(
        "/api/v1/namespaces/kube-flannel/pods",
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "kube-flannel-x", "uid": "u"},
            "spec": {"nodeName": "edge", "serviceAccountName": "flannel", "containers": [{"name": "a"}]}}),
    );
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    // kubelet mounts the pod's token, and the agent starts: its pod, its node, all nodes.
    let path = "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel/token";
    let request =
        json!({"kind": "TokenRequest", "spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "u"}}});
    let reply = kubelet.write(Method::POST, path, "application/json", &request).await.expect(201).json();
    let token = reply["status"]["token"].as_str().unwrap().to_owned();
    cluster.api.accept_token(&token, ACCOUNT);
    let agent = cluster.client(&hub, &As::Token(token.clone())).await;
    for path in [OWN_POD, "/api/v1/nodes/edge", NODES] {
        agent.get(path).await.expect(200);
    }
    drop(agent);
    hub.stop().await;

    // The hub is started anew and the agent does not come; the cluster goes on.
    let watches = || {
        let seen = cluster.api.seen("GET", "/api/v1/nodes");
        seen.iter().filter(|seen| seen.is_watch() && seen.token.as_deref() == Some(token.as_str())).count()
    };
    let before = watches();
    let hub = cluster.boot().await;
    until("a watch with the agent's own token", async || (watches() > before).then_some(())).await;
    let newer = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "later"}, "spec": {}});
    cluster.api.put("/api/v1/nodes", newer);
    let agent = cluster.client(&hub, &As::Token(token.clone())).await;
    until("the new node", async || {
        names(&agent.get(NODES).await.expect(200).json()).contains(&"later".to_owned()).then_some(())
    })
    .await;
    drop(agent);
    hub.stop().await;

    // Power cut, without the link.
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let agent = cluster.client(&hub, &As::Token(token)).await;
    assert_eq!(agent.get(OWN_POD).await.expect(200).json()["spec"]["nodeName"], "edge");
    agent.get("/api/v1/nodes/edge").await.expect(200);
    assert_eq!(names(&agent.get(NODES).await.expect(200).json()), ["edge", "later"]);
    // What it has not asked for is not given to it although kubelet's view has it.
    agent.get(&format!("{PODS}/web-0")).await.expect(503);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_release_kept_in_protobuf_is_told_when_nothing_better_is_there() {
    const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
    const LIST: &str = "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dpull&resourceVersion=0";
    let cluster = Cluster::new().await;
    cluster.api.put(SECRETS, json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "pull"}}));
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list =
        async |accept: &str| kubelet.send(Method::GET, LIST, &[("accept", accept)], Bytes::new()).await;
    // That release kept it so whatever else kubelet takes.
    list("application/vnd.kubernetes.protobuf").await.expect(200);
    cluster.link.set(Mode::Cut);
    until("offline", async || (hub.server.readiness().link == "offline").then_some(())).await;
    let told = list("application/vnd.kubernetes.protobuf,application/json").await.expect(200);
    assert_eq!(told.headers["content-type"], "application/vnd.kubernetes.protobuf");
    assert!(told.body.windows(4).any(|window| window == b"pull"));
    list("application/json").await.expect(503);
    hub.stop().await;
}

/// A leader election as client-go holds it, in JSON: what the annotation is for, and what is honest without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_asks_for_it_is_renewed_offline_and_the_api_servers_word_counts_afterwards() {
    const SHOP: &str = "/apis/coordination.k8s.io/v1/namespaces/shop/leases";
    const JSON: &str = "application/json";
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    let operator = cluster.client(&hub, &As::Token(token)).await;
    let path = |name: &str| format!("{SHOP}/{name}");
    let elect = async |name: &str, annotated: bool| {
        let annotations = if annotated { json!({"openyurt.io/offline-lease": "true"}) } else { json!({}) };
        let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations, "managedFields": [
                {"manager": "operator", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {
                    "f:holderIdentity": {}, "f:leaseDurationSeconds": {}, "f:renewTime": {}}}}]},
            "spec": {"holderIdentity": "web-0_a", "leaseDurationSeconds": 15, "renewTime": "t0"}});
        let created = operator.write(Method::POST, SHOP, JSON, &lease).await.expect(201).json();
        operator.write(Method::PUT, &path(name), JSON, &created).await.expect(200).json()
    };
    let (mut asked, not) = (elect("asked", true).await, elect("not", false).await);
    // What is seen is looked at after the client has its answer.
    until("it is known", async || {
        cluster.link.set(Mode::Cut);
        until("offline", async || (hub.server.readiness().link == "offline").then_some(())).await;
        let answer = operator.write(Method::PUT, &path("asked"), JSON, &asked).await;
        if answer.status == 200 {
            return Some(());
        }
        cluster.restore(&hub).await;
        asked = operator.write(Method::PUT, &path("asked"), JSON, &asked).await.expect(200).json();
        None
    })
    .await;
    operator.write(Method::PUT, &path("not"), JSON, &not).await.expect(503);
    for time in ["t1", "t2", "t3"] {
        asked["spec"]["renewTime"] = json!(time);
        let renewed = operator.write(Method::PUT, &path("asked"), JSON, &asked).await.expect(200).json();
        assert_eq!(renewed, asked);
        assert_eq!(operator.get(&path("asked")).await.expect(200).json(), asked);
    }
    // Others patch it, or apply what they hold.
    let patch = json!({"spec": {"renewTime": "t4"}});
    let merge = "application/merge-patch+json";
    let patched = operator.write(Method::PATCH, &path("asked"), merge, &patch).await.expect(200).json();
    asked["spec"]["renewTime"] = json!("t4");
    assert_eq!(patched, asked);
    asked["spec"]["renewTime"] = json!("t5");
    let configuration = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"name": "asked"}, "spec": asked["spec"]});
    for (manager, status) in [("operator", 200), ("somebody", 503)] {
        let path = format!("{}?fieldManager={manager}&force=true", path("asked"));
        let apply = "application/apply-patch+yaml";
        let applied = operator.write(Method::PATCH, &path, apply, &configuration).await.expect(status);
        assert_eq!(applied.json() == asked, status == 200);
    }
    operator.write(Method::PATCH, &path("not"), merge, &patch).await.expect(503);
    let mut theirs = asked.clone();
    theirs["spec"]["holderIdentity"] = json!("web-1_b");
    let refused = operator.write(Method::PUT, &path("asked"), JSON, &theirs).await.expect(409);
    assert_eq!(refused.json()["reason"], "Conflict");
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.write(Method::PUT, &path("asked"), JSON, &asked).await.expect(503);

    // Nothing is replayed; whoever was elected meanwhile leads.
    let mut elected = cluster.api.get(&path("asked")).unwrap();
    assert_eq!(elected["spec"]["renewTime"], "t0");
    elected["spec"]["holderIdentity"] = json!("cloud-3_c");
    cluster.api.put(&path("asked"), elected);
    cluster.restore(&hub).await;
    operator.write(Method::PUT, &path("asked"), JSON, &asked).await.expect(409);
    let now = operator.get(&path("asked")).await.expect(200).json();
    assert_eq!(now["spec"]["holderIdentity"], "cloud-3_c");
    cluster.cut(&hub).await;
    operator.write(Method::PUT, &path("asked"), JSON, &now).await.expect(503);
    hub.stop().await;
}
