//! What is fresh enough to be told: of several things that are known the newest, and nothing that is not known.

use super::*;

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

fn map(name: &str, data: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": data}})
}

/// A cluster, and the token of a pod.
async fn with_pod() -> (Cluster, As) {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    (cluster, As::Token(token))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_nobody_follows_does_not_speak_for_the_present() {
    let (cluster, pod) = with_pod().await;
    cluster.api.put(MAPS, map("old", "1"));
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    client.get(&format!("{MAPS}?resourceVersion=0")).await.expect(200);
    hub.stop().await;
    // After a restart of the hub nobody lists or watches: the view is there and stands still.
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let client = cluster.client(&hub, &pod).await;
    cluster.api.put(MAPS, map("new", "1"));
    cluster.api.put(MAPS, map("old", "2"));
    client.get(&format!("{MAPS}/new")).await.expect(200);
    client.get(&format!("{MAPS}/old")).await.expect(200);
    client.get(MAPS).await.expect(200);
    cluster.cut(&hub).await;
    // What was told is written down behind the answers, the last one last.
    until("the list is remembered", async || {
        (names(&client.get(MAPS).await.expect(200).json()) == ["new", "old"]).then_some(())
    })
    .await;
    let check = async |client: &Client| {
        let new = client.get(&format!("{MAPS}/new")).await.expect(200).json();
        assert_eq!(new["metadata"]["name"], "new", "it exists, and the hub itself has told so");
        let old = client.get(&format!("{MAPS}/old")).await.expect(200).json();
        assert_eq!(old["data"]["a"], "2", "not what the view has");
        for query in ["", "?resourceVersion=0"] {
            assert_eq!(
                names(&client.get(&format!("{MAPS}{query}")).await.expect(200).json()),
                ["new", "old"]
            );
        }
        // Nobody knows.
        client.get(&format!("{MAPS}/other")).await.expect(503);
    };
    check(&client).await;
    hub.stop().await;
    let hub = cluster.boot().await;
    check(&cluster.client(&hub, &pod).await).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_was_followed_until_the_link_went_proves_absence() {
    let (cluster, pod) = with_pod().await;
    cluster.api.put(MAPS, map("there", "1"));
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    client.get(&format!("{MAPS}?resourceVersion=0")).await.expect(200);
    cluster.cut(&hub).await;
    client.get(&format!("{MAPS}/there")).await.expect(200);
    client.get(&format!("{MAPS}/absent")).await.expect(404);
    hub.stop().await;
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    client.get(&format!("{MAPS}/absent")).await.expect(404);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn just_after_its_start_the_hub_waits_for_the_link() {
    let (cluster, pod) = with_pod().await;
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    client.get(&format!("{PODS}?resourceVersion=0")).await.expect(200);
    client.get(&format!("{PODS}/web-0")).await.expect(200);
    hub.stop().await;
    cluster
        .api
        .put(PODS, json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "new"}, "spec": {}}));
    cluster.api.delete(&format!("{PODS}/web-0"));
    // A long way: some round trips until it is known that there is a link.
    cluster.link.accept_after(Duration::from_millis(500));
    let hub = cluster.boot().await;
    assert_eq!(hub.server.readiness().link, "unknown", "too late to test anything");
    let client = cluster.client(&hub, &pod).await;
    let stranger = jwt(&json!({"sub": "system:serviceaccount:shop:stranger"}));
    cluster.api.accept_token(&stranger, "system:serviceaccount:shop:stranger");
    let unknown = cluster.client(&hub, &As::Token(stranger)).await;
    let gone = format!("{PODS}/web-0");
    let made = map("made", "1");
    let (list, gone, made, seen) = tokio::join!(
        client.get(PODS),
        client.get(&gone),
        client.write(Method::POST, MAPS, "application/json", &made),
        unknown.get(PODS),
    );
    assert_eq!(names(&list.expect(200).json()), ["new", "web-1"]);
    gone.expect(404);
    made.expect(201);
    seen.expect(200);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_list_and_not_watch_lists_and_is_refused_watches() {
    let (cluster, pod) = with_pod().await;
    cluster.api.forbid("system:serviceaccount:shop:web", "watch", "configmaps");
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    let list = format!("{MAPS}?resourceVersion=0");
    let asked = tokio::time::Instant::now();
    for _ in 0..10 {
        client.get(&list).await.expect(200);
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let headers = [("accept", "application/json")];
    until("a watch is refused as the API server does it", async || {
        let watch = client
            .open(Method::GET, &format!("{MAPS}?watch=1&resourceVersion=0"), &headers, Bytes::new())
            .await;
        (watch.status() == 403).then_some(())
    })
    .await;
    cluster.api.put(MAPS, map("new", "1"));
    until("lists are forwarded", async || {
        (names(&client.get(&list).await.expect(200).json()) == ["new"]).then_some(())
    })
    .await;
    let watches = || cluster.api.seen("GET", MAPS).iter().filter(|seen| seen.is_watch()).count();
    let before = watches();
    client.get(&list).await.expect(200);
    assert_eq!(watches(), before, "the hub has stopped trying");
    // And what was forwarded last is known.
    cluster.cut(&hub).await;
    until("the list is remembered", async || {
        (names(&client.get(&list).await.expect(200).json()) == ["new"]).then_some(())
    })
    .await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_watch_and_not_list_watches() {
    let (cluster, pod) = with_pod().await;
    cluster.api.forbid("system:serviceaccount:shop:web", "list", "configmaps");
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    for _ in 0..2 {
        let mut watch = client.watch(&format!("{MAPS}?watch=1&resourceVersion=0")).await;
        cluster.api.put(MAPS, map("new", "1"));
        assert_eq!(watch.change().await.1["metadata"]["name"], "new");
    }
    client.get(&format!("{MAPS}?resourceVersion=0")).await.expect(403);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_of_another_cluster_is_told_to_nobody() {
    for readable in [true, false] {
        let cluster = Cluster::new().await;
        if readable {
            let namespace =
                json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "kube-system"}});
            cluster.api.put("/api/v1/namespaces/kube-system", namespace);
        } else {
            cluster.api.forbid("system:node:edge", "get", "namespaces");
        }
        let hub = cluster.boot().await;
        let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
        let pods = format!("{NODE_PODS}&resourceVersion=0");
        assert_eq!(names(&kubelet.get(&pods).await.expect(200).json()), ["web-0", "web-1"]);
        // The Service alone is made anew: the cluster is the same.
        let service = "/api/v1/namespaces/default/services/kubernetes";
        let made_anew = cluster.api.get(service).unwrap();
        cluster.api.delete(service);
        cluster.api.put(service, json!({"kind": "Service", "apiVersion": "v1", "spec": made_anew["spec"]}));
        hub.stop().await;
        let hub = cluster.boot().await;
        let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
        cluster.link.set(Mode::Cut);
        until("offline", async || (hub.server.readiness().link == "offline").then_some(())).await;
        assert_eq!(names(&kubelet.get(&pods).await.expect(200).json()), ["web-0", "web-1"]);
        // The control plane is built anew.
        cluster.api.become_another_cluster();
        cluster.api.delete(&format!("{PODS}/web-0"));
        cluster.link.set(Mode::Pass);
        let ended =
            tokio::time::timeout(Duration::from_secs(10), hub.tasks.ended()).await.expect("the process ends");
        assert!(ended.to_string().contains("another cluster"), "{ended}");
        hub.stop().await;
        let hub = cluster.boot().await;
        let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
        assert_eq!(names(&kubelet.get(&pods).await.expect(200).json()), ["web-1"]);
        hub.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_lost_a_right_is_not_told_what_he_once_read() {
    const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
    let (cluster, pod) = with_pod().await;
    for name in ["one", "two"] {
        cluster.api.put(SECRETS, json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}}));
    }
    cluster.api.put(MAPS, map("other", "1"));
    let hub = cluster.boot().await;
    let client = cluster.client(&hub, &pod).await;
    let paths = [format!("{SECRETS}/one"), format!("{SECRETS}/two"), format!("{MAPS}/other")];
    for path in &paths {
        client.get(path).await.expect(200);
    }
    cluster.cut(&hub).await;
    for path in &paths {
        until("it is remembered", async || (client.get(path).await.status == 200).then_some(())).await;
    }
    cluster.restore(&hub).await;
    cluster.api.forbid("system:serviceaccount:shop:web", "get", "secrets");
    client.get(&paths[0]).await.expect(403);
    cluster.cut(&hub).await;
    until("it is forgotten", async || (client.get(&paths[0]).await.status == 503).then_some(())).await;
    client.get(&paths[1]).await.expect(503);
    client.get(&paths[2]).await.expect(200);
    hub.stop().await;
}
