//! Watches, across connections, restarts and lost links.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_hub_resumes_and_lists_nothing() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    drop(kubelet);
    hub.stop().await;
    let lists = || {
        let seen = cluster.api.seen("GET", "/api/v1/pods");
        seen.iter()
            .filter(|seen| !seen.query.contains("watch=") || seen.query.contains("sendInitialEvents"))
            .count()
    };
    let before = lists();
    // What happens while nobody looks.
    cluster.api.put(PODS, json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web-2"}, "spec": {"nodeName": "edge"}}));
    cluster.api.delete(&format!("{PODS}/web-0"));

    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let mut watch = kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion={version}")).await;
    for expected in [("ADDED", "web-2"), ("DELETED", "web-0")] {
        let (event, pod) = watch.change().await;
        assert_eq!((event.as_str(), pod["metadata"]["name"].as_str().unwrap()), expected);
    }
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(names(&list), ["web-1", "web-2"]);
    assert_eq!(lists(), before, "neither the hub nor kubelet has listed");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_http1_streams() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let request = Request::builder()
        .uri("/api/v1/services?watch=1&resourceVersion=0")
        .header("host", "127.0.0.1")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = client::http1(hub.address, &hub.trust, &cluster.kubelet(), request).await;
    assert_eq!(response.status(), 200);
    let mut watch = client::Watch::of(response);
    assert_eq!(watch.change().await.1["metadata"]["name"], "kubernetes");
    cluster.api.put(
        "/api/v1/namespaces/shop/services",
        json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "new"}, "spec": {}}),
    );
    assert_eq!(watch.change().await.1["metadata"]["name"], "new");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_the_link_and_nothing_is_missed() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let path = "/api/v1/configmaps?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    cluster.api.put(
        "/api/v1/namespaces/shop/configmaps",
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}}),
    );
    let mut watch = kubelet.watch(path).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    let end = watch.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    for name in ["b", "c"] {
        cluster.cut(&hub).await;
        cluster.api.put(
            "/api/v1/namespaces/shop/configmaps",
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}}),
        );
        cluster.restore(&hub).await;
        let (event, object) = watch.change().await;
        assert_eq!((event.as_str(), &object["metadata"]["name"]), ("ADDED", &json!(name)));
    }
    cluster.api.delete("/api/v1/namespaces/shop/configmaps/a");
    let (event, object) = watch.change().await;
    assert_eq!((event.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("a")));
    hub.stop().await;
    assert_eq!(watch.next().await, None, "a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_on_one_connection_see_the_same_change() {
    const WATCHES: usize = 1000;
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watches = Vec::with_capacity(WATCHES);
    for _ in 0..WATCHES {
        watches.push(kubelet.watch(&format!("/api/v1/services?watch=1&resourceVersion={version}")).await);
    }
    cluster.api.put(
        "/api/v1/namespaces/shop/services",
        json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "new"}, "spec": {}}),
    );
    for watch in &mut watches {
        let (event, object) = watch.change().await;
        assert_eq!((event.as_str(), &object["metadata"]["name"]), ("ADDED", &json!("new")));
    }
    let upstream = cluster.api.seen("GET", "/api/v1/services");
    let watching = upstream.iter().filter(|seen| seen.query.contains("watch")).count();
    assert_eq!(watching, 1, "one watch upstream, whatever there is here");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_sees_no_pod_go_back_when_the_link_goes() {
    const PODS_OF_NODE: usize = 120;
    let cluster = Cluster::new().await;
    let put = |number: usize, round: usize| {
        cluster.api.put(PODS, json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": format!("big-{number}"), "annotations": {"a": "x".repeat(30_000), "round": round.to_string()}},
            "spec": {"nodeName": "edge", "containers": [{"name": "c", "image": "i:latest", "imagePullPolicy": "Always"}]}}));
    };
    (0..PODS_OF_NODE).for_each(|number| put(number, 1));
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = async || {
        let other = cluster.client(&hub, &cluster.kubelet()).await;
        other.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json()
    };
    list().await;
    // It takes what fits into its window and reads no more, while everything changes and the link goes.
    let mut watch =
        kubelet.watch(&format!("{NODE_PODS}&watch=1&resourceVersion=0&allowWatchBookmarks=true")).await;
    let mut seen = std::collections::HashMap::new();
    let first = watch.next().await.unwrap();
    (0..PODS_OF_NODE).for_each(|number| put(number, 2));
    until("the second round", async || {
        let list = list().await;
        let is_second = |pod: &Value| pod["metadata"]["annotations"]["round"] != "1";
        list["items"].as_array().unwrap().iter().all(is_second).then_some(())
    })
    .await;
    cluster.cut(&hub).await;
    let mut next = Some(first);
    let mut without_pulling = 0;
    while without_pulling < PODS_OF_NODE {
        let event = match next.take() {
            Some(event) => event,
            None => watch.next().await.expect("the watch ended"),
        };
        if event["type"] == "BOOKMARK" {
            continue;
        }
        let (name, version) =
            (&event["object"]["metadata"]["name"], &event["object"]["metadata"]["resourceVersion"]);
        let version: u64 = version.as_str().unwrap().parse().unwrap();
        let before = seen.insert(name.to_string(), version);
        assert_eq!(event["type"] == "ADDED", before.is_none(), "{name}: {} {before:?}", event["type"]);
        assert!(before.is_none_or(|before| before <= version), "{name}: {version} after {before:?}");
        let big = name.as_str().unwrap().starts_with("big-");
        let shown = &event["object"]["spec"]["containers"][0]["imagePullPolicy"];
        without_pulling += usize::from(big && event["type"] == "MODIFIED" && shown == "IfNotPresent");
    }
    // Where the collection stands is said behind events that were made here.
    let newest = list().await["metadata"]["resourceVersion"].clone();
    until("a bookmark", async || {
        let event = watch.next().await.unwrap();
        (event["type"] == "BOOKMARK" && event["object"]["metadata"]["resourceVersion"] == newest)
            .then_some(())
    })
    .await;
    // All pods may come once more, and it reads no more.
    drop(watch);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_watched_is_not_older_than_what_the_client_has_seen() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    let version: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let path = |version: &str| {
        format!(
            "/api/v1/services?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion={version}"
        )
    };
    // Reached while it waits.
    let ahead = (version + 1).to_string();
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "new"}, "spec": {}});
    let ahead_path = path(&ahead);
    let (mut watch, _) = tokio::join!(kubelet.watch(&ahead_path), async {
        cluster.api.put("/api/v1/namespaces/shop/services", service)
    });
    for name in ["kubernetes", "new"] {
        assert_eq!(watch.change().await.1["metadata"]["name"], name);
    }
    let end = watch.next().await.unwrap();
    assert_eq!(
        (&end["type"], &end["object"]["metadata"]["resourceVersion"]),
        (&json!("BOOKMARK"), &json!(ahead))
    );
    // Never reached: no state at all, and an error that client-go knows.
    let mut watch = kubelet.watch(&path("99999")).await;
    let error = watch.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["reason"]), (&json!("ERROR"), &json!("Timeout")));
    assert_eq!(error["object"]["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(watch.next().await, None);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_no_initial_events_is_sent_none() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for version in ["", "0"] {
        let path = format!(
            "/api/v1/services?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion={version}"
        );
        let mut watch = kubelet.watch(&path).await;
        let name = format!("new{version}");
        let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": {}});
        cluster.api.put("/api/v1/namespaces/shop/services", service);
        assert_eq!(watch.change().await.1["metadata"]["name"], name);
    }
    hub.stop().await;
}
