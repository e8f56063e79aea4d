//! What several components of a node read crosses its uplink once.

use super::*;

pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";
pub(super) const PROXY: &str = "system:serviceaccount:kube-system:kube-proxy";
pub(super) const DNS: &str = "system:serviceaccount:kube-system:coredns";

/// As kubelet, kube-proxy and CoreDNS ask for Services.
pub(super) const PARTS: [&str; 3] = [
    "fieldSelector=spec.clusterIP%21%3DNone",
    "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone",
    "",
];

async fn list(client: &Client, query: &str) -> client::Answer {
    let path = format!("{SERVICES}?resourceVersion=0&{query}");
    client.send(Method::GET, &path, &[("accept", ACCEPT)], Bytes::new()).await
}

fn has(answer: &client::Answer, name: &str) -> bool {
    answer.body.windows(name.len()).any(|window| window == name.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_listed_and_watched_once_for_kubelet_kube_proxy_and_coredns() {
    let mut cluster = Cluster::new().await;
    cluster.way_in = WayIn::Service;
    std::fs::write(cluster.dir.path().join("address/way-in.json"), "{}").unwrap();
    let services = "/api/v1/namespaces/shop/services";
    for (name, address) in [("headless-one", "None"), ("web-service", "10.96.0.9")] {
        cluster.api.put(services, json!({"metadata": {"name": name}, "spec": {"clusterIP": address}}));
    }
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let mut clients = vec![cluster.client(&hub, &cluster.kubelet()).await];
    for user in [PROXY, DNS] {
        let token = jwt(&json!({"sub": user}));
        cluster.api.accept_token(&token, user);
        clients.push(cluster.client(&hub, &As::Token(token)).await);
    }
    for (client, query) in clients.iter().zip(PARTS) {
        let listed = list(client, query).await.expect(200);
        assert_eq!(listed.headers["content-type"], "application/vnd.kubernetes.protobuf");
        assert_eq!((has(&listed, "web-service"), has(&listed, "headless-one")), (true, query.is_empty()));
    }
    cluster.api.put(services, json!({"metadata": {"name": "late-one"}, "spec": {"clusterIP": "10.96.0.10"}}));
    for (client, query) in clients.iter().zip(PARTS) {
        until("everybody has the new one", async || {
            has(&list(client, query).await, "late-one").then_some(())
        })
        .await;
    }
    let seen = cluster.api.seen("GET", SERVICES);
    let watches = seen.iter().filter(|seen| seen.is_watch()).count();
    assert_eq!((seen.len() - watches, watches), (1, 1));
    // A person sees whose it is.
    let told = hub.server.doctor().look(&Ok(Course::default()));
    let of = |user: &str, fields: &str| {
        let mut views = told.views.iter().filter(|view| view.path == SERVICES);
        views.find(|view| view.user == user && view.field_selector == fields).unwrap().of.clone()
    };
    let source = Some("system:node:edge".to_owned());
    assert_eq!(of(PROXY, "spec.clusterIP!=None"), source);
    assert_eq!(of(DNS, ""), source);
    assert_eq!(of("system:node:edge", "spec.clusterIP!=None"), source);
    assert_eq!(of("system:node:edge", ""), None);
    assert!(!told.not_stored.contains(&"the list of Services".to_owned()));
    // Without a link after a restart they have what they had.
    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    until("offline", async || (hub.server.readiness().link == "offline").then_some(())).await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    assert!(has(&list(&kubelet, PARTS[0]).await.expect(200), "late-one"));
    hub.stop().await;
}
