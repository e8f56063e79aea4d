//! Who is let in, with what, and what the hub proves itself with.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelet_lists_through_tls_with_its_certificate_and_nobody_without() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(list["kind"], "PodList");
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // From the view: the API server is not asked again, but for the reflector's own watch.
    let lists = || {
        let seen = cluster.api.seen("GET", "/api/v1/pods");
        seen.iter().filter(|seen| !seen.query.contains("watch=")).count()
    };
    let asked = lists();
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    assert_eq!(lists(), asked);

    let nobody = cluster.client(&hub, &As::Nobody).await;
    let refused = nobody.get("/api/v1/pods?resourceVersion=0").await.expect(401).json();
    assert_eq!(refused["reason"], "Unauthorized");
    let strangers = [
        cluster.ca.node("other"),
        cluster.ca.client("kubernetes-admin", &["system:masters"]),
        TestCa::new("kubernetes").node("edge"),
    ];
    for stranger in strangers {
        let stranger = cluster.client(&hub, &As::Certificate(stranger)).await;
        stranger.get("/api/v1/pods?resourceVersion=0").await.expect(401);
        stranger.get("/version").await.expect(401);
    }
    // Whoever asks for protobuf gets the refusal in protobuf.
    let headers = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let refused = nobody.send(Method::GET, "/api/v1/pods", &headers, Bytes::new()).await.expect(401);
    assert_eq!(refused.headers["content-type"], "application/vnd.kubernetes.protobuf");
    assert!(refused.body.starts_with(b"k8s\0"));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_reviewed_once_goes_upstream_unchanged_and_is_known_offline() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web", "exp": 4_000_000_000_i64}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &As::Token(token.clone())).await;
    let list = pod.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    pod.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200);
    assert_eq!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 1);
    let forwarded = cluster.api.seen("GET", "/api/v1/namespaces/shop/pods/web-0");
    assert_eq!(forwarded[0].user.as_deref(), Some("system:serviceaccount:shop:web"));
    assert_eq!(forwarded[0].headers["authorization"], format!("Bearer {token}"));
    // What the API server refuses this identity is refused here, in its words.
    let refused = pod.get("/api/v1/namespaces/shop/secrets?resourceVersion=0").await.expect(403);
    assert_eq!(refused.json()["reason"], "Forbidden");

    // What may be a token is asked about, once; what is none is not.
    for unknown in [jwt(&json!({"sub": "x"})), "rubbish".to_owned()] {
        let unknown = cluster.client(&hub, &As::Token(unknown)).await;
        unknown.get("/api/v1/pods?resourceVersion=0").await.expect(401);
        unknown.get("/api/v1/pods?resourceVersion=0").await.expect(401);
        assert_eq!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 2);
    }

    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let list = pod.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // A view of one identity is nobody else's.
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(503);
    let unknown = cluster.client(&hub, &As::Token(jwt(&json!({"sub": "x", "exp": 4_000_000_000_i64})))).await;
    unknown.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(401);
    hub.stop().await;
}

/// A known token is not read again with every request; when it ends is known of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_token_is_refused_from_its_end_on() {
    let cluster = Cluster::new().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web", "exp": now + 8}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    pod.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200);
    let refused = until("its end", async || {
        let answer = pod.get("/api/v1/namespaces/shop/pods/web-0").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 401);
    assert_eq!(cluster.api.seen("POST", "/apis/authentication.k8s.io/v1/tokenreviews").len(), 1);
    hub.stop().await;
}

/// An API server that fails says nothing about the token; a client that hears 401 throws a good one away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_about_which_the_api_server_decides_nothing_is_503_while_the_link_is_up() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web", "exp": 4_000_000_000_i64}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let path = format!("{PODS}?resourceVersion=0");
    let reviews = || When::path("/apis/authentication.k8s.io/v1/tokenreviews");
    for fault in [Fault::Answer(500), Fault::Answer(429), Fault::Answer(403), Fault::HangUp] {
        cluster.api.fault(reviews(), fault.clone());
        let refused = pod.get(&path).await;
        assert_eq!(refused.status, 503, "{fault:?}: {}", String::from_utf8_lossy(&refused.body));
        let message = refused.json()["message"].as_str().unwrap().to_owned();
        assert!(!message.contains("offline"), "{fault:?}: {message}");
        assert_eq!(refused.headers["retry-after"], "1", "{fault:?}");
        cluster.api.no_faults();
    }
    pod.get(&path).await.expect(200);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_of_the_node_is_served_while_the_link_is_down() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    let expired = As::Certificate(cluster.ca.client_until("system:node:edge", &["system:nodes"], 2001));
    let stranger = As::Certificate(cluster.ca.client_until("system:node:other", &["system:nodes"], 2001));
    let late = cluster.client(&hub, &expired).await;
    late.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(401);
    cluster.cut(&hub).await;
    late.get(&format!("{OWN_NODE}&resourceVersion=0")).await.expect(200);
    cluster.client(&hub, &stranger).await.get(OWN_NODE).await.expect(401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_port_says_what_is_missing_and_nothing_else() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(hub.health).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let ready = get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains("\"link\": \"online\""), "{ready}");
    assert!(get("/api/v1/pods").await.starts_with("HTTP/1.1 404"));
    cluster.client(&hub, &As::Nobody).await.get(OWN_NODE).await.expect(401);
    let metrics = get("/metrics").await;
    assert!(metrics.contains("content-type: application/openmetrics-text;"), "{metrics}");
    for line in
        ["yurt_hub_link_up 1", "yurt_hub_ready 1", "yurt_hub_requests_total{source=\"none\",code=\"401\"} 1"]
    {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // Who wants to verify the hub finds here with what, and no key.
    let ca = get("/ca.crt").await;
    assert!(ca.starts_with("HTTP/1.1 200") && !ca.contains("PRIVATE KEY"), "{ca}");
    let (_, pem) = ca.split_once("\r\n\r\n").unwrap();
    assert_eq!(Trust::of_bundle(pem), hub.trust);
    cluster.cut(&hub).await;
    assert!(get("/readyz").await.starts_with("HTTP/1.1 503"), "nothing is known of the node yet");
    hub.stop().await;
}
