//! What passes through, and what kubelet is told differently.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_reads_leads_to_the_hub() {
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    // kubelet asks for protobuf first; the views that are changed for it are JSON.
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let services = kubelet
        .send(Method::GET, "/api/v1/services?resourceVersion=0", &accept, Bytes::new())
        .await
        .expect(200);
    assert_eq!(services.headers["content-type"], "application/json");
    let service = &services.json()["items"][0]["spec"];
    assert_eq!((&service["clusterIP"], &service["ports"][0]["port"]), (&json!("169.254.2.1"), &json!(10268)));
    let path = "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dkube-proxy&resourceVersion=0";
    let maps = kubelet.send(Method::GET, path, &accept, Bytes::new()).await.expect(200).json();
    let kubeconfig = maps["items"][0]["data"]["kubeconfig.conf"].as_str().unwrap();
    assert!(kubeconfig.contains("    server: https://127.0.0.1:10261\n"), "{kubeconfig}");
    // While the link is up images are pulled as their pods say.
    let pods = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(pods["items"][0]["spec"]["containers"][0]["imagePullPolicy"], "Always");
    // Pods see the cluster as it is.
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let services = pod.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    assert_eq!(services["items"][0]["spec"]["clusterIP"], "10.96.0.1");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_gets_and_lists_without_a_view_leads_to_the_hub_too() {
    let (cluster, token) = Cluster::with_kube_proxy().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let accept =
        [("accept", "application/vnd.kubernetes.protobuf,application/json"), ("accept-encoding", "gzip")];
    let map = "/api/v1/namespaces/kube-system/configmaps/kube-proxy";
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let get = async |path: &str| kubelet.send(Method::GET, path, &accept, Bytes::new()).await.expect(200);
    let check = async || {
        let kubeconfig = get(map).await.json()["data"]["kubeconfig.conf"].as_str().unwrap().to_owned();
        assert!(kubeconfig.contains("server: https://127.0.0.1:10261\n"), "{kubeconfig}");
        assert_eq!(get(service).await.json()["spec"]["clusterIP"], "169.254.2.1");
        let services = get("/api/v1/services").await.json();
        assert_eq!(services["items"][0]["spec"]["clusterIP"], "169.254.2.1");
    };
    check().await;
    // Long answers cross the uplink compressed, and kubelet is sent them as they are.
    let ports: Vec<_> = (1..8000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    cluster.api.put(
        "/api/v1/namespaces/shop/services",
        json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "long"}, "spec": {"clusterIP": "10.96.0.9", "ports": ports}}),
    );
    check().await;
    let long = get("/api/v1/services").await;
    assert!(long.headers.get("content-encoding").is_none() && long.body.len() > 128 << 10);
    assert_eq!(get(map).await.headers["audit-id"], "a-1");
    let asked = &cluster.api.seen("GET", map)[0].headers;
    assert_eq!(
        (&asked["accept"], &asked["accept-encoding"]),
        (&"application/json".parse().unwrap(), &"gzip".parse().unwrap())
    );
    // Anything else is asked for as kubelet does.
    kubelet.send(Method::GET, "/api/v1/namespaces/shop/pods/web-0", &accept, Bytes::new()).await.expect(200);
    let asked = &cluster.api.seen("GET", "/api/v1/namespaces/shop/pods/web-0")[0].headers;
    assert_eq!(
        (&asked["accept"], &asked["accept-encoding"]),
        (&accept[0].1.parse().unwrap(), &"gzip".parse().unwrap())
    );
    // Remembered.
    cluster.cut(&hub).await;
    check().await;
    cluster.restore(&hub).await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    assert_eq!(pod.get(service).await.expect(200).json()["spec"]["clusterIP"], "10.96.0.1");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_pass_through_with_the_callers_own_token() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let request = |token: &str| {
        Request::builder()
            .method("POST")
            .uri("/api/v1/namespaces/shop/pods/web-0/exec?command=sh")
            .header("host", "127.0.0.1")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(Bytes::new()))
            .unwrap()
    };
    let mut response = client::http1(hub.address, &hub.trust, &As::Nobody, request(&token)).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async { write.write_all(&sent).await.unwrap() };
    let mut received = vec![0; sent.len()];
    let reading = async { read.read_exact(&mut received).await.unwrap() };
    tokio::join!(writing, reading);
    assert!(received == sent);
    drop(stream);
    let response = client::http1(hub.address, &hub.trust, &As::Nobody, request("rubbish")).await;
    assert_eq!(response.status(), 401);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarding_is_faithful() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    // Consistent reads are the API server's, with its headers.
    let answer = kubelet.get("/api/v1/namespaces/shop/pods/web-0").await.expect(200);
    assert_eq!(answer.headers["audit-id"], "a-1");
    kubelet.get("/api/v1/namespaces/shop/pods/absent").await.expect(404);
    let before = cluster.api.seen("GET", "/api/v1/services").len();
    kubelet.get("/api/v1/services").await.expect(200);
    assert_eq!(cluster.api.seen("GET", "/api/v1/services").len(), before + 1);
    // Impersonation is passed on and never answered from a view.
    let headers = [("accept", "application/json"), ("impersonate-user", "alice")];
    kubelet.send(Method::GET, "/api/v1/services?resourceVersion=0", &headers, Bytes::new()).await.expect(200);
    let seen = cluster.api.seen("GET", "/api/v1/services");
    assert_eq!(seen.last().unwrap().headers["impersonate-user"], "alice");
    // Bodies go up as they are.
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "new"}, "spec": {"x": "y".repeat(500_000)}});
    kubelet.write(Method::POST, PODS, "application/json", &pod).await.expect(201);
    assert_eq!(cluster.api.seen("POST", PODS)[0].body, pod.to_string());
    // A resourceVersion from the future: three seconds of patience, then the cause that client-go looks for.
    kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200);
    let late = kubelet.get("/api/v1/services?resourceVersion=99999").await.expect(504).json();
    assert_eq!(late["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    // A watch ends when it was asked to.
    let start = tokio::time::Instant::now();
    let mut watch = kubelet.watch("/api/v1/services?watch=1&resourceVersion=0&timeoutSeconds=1").await;
    while watch.next().await.is_some() {}
    assert!((1..5).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_watches_without_a_view_leads_to_the_hub_too() {
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    // A parameter that no view knows; a view that the store has no room for is forwarded the same way.
    let accept =
        [("accept", "application/vnd.kubernetes.protobuf,application/json"), ("accept-encoding", "gzip")];
    let path = "/api/v1/services?watch=1&resourceVersion=0&pretty=false";
    let mut watch = client::Watch::of(kubelet.open(Method::GET, path, &accept, Bytes::new()).await);
    let (event, service) = watch.change().await;
    assert_eq!((event.as_str(), &service["spec"]["clusterIP"]), ("ADDED", &json!("169.254.2.1")));
    let other = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "other"},
        "spec": {"clusterIP": "10.96.0.2"}});
    cluster.api.put("/api/v1/namespaces/shop/services", other);
    let (event, service) = watch.change().await;
    assert_eq!((event.as_str(), &service["spec"]["clusterIP"]), ("ADDED", &json!("10.96.0.2")));
    hub.stop().await;
}
