//! What a hub that is started again costs of the uplink, while everybody on its node comes back to it.

use std::collections::BTreeMap;

use yurt_fakes::issuer::{ISSUER, SigningKey};
use yurt_fakes::link::Way;

use super::shared::{ACCEPT, DNS, PARTS, PROXY, SERVICES};
use super::*;

const WATCHED: [&str; 3] = ["/api/v1/nodes", "/api/v1/pods", SERVICES];

/// kubelet, kube-proxy and CoreDNS come to the hub, and read what they read.
async fn come(cluster: &Cluster, hub: &Hub, tokens: &[As]) {
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let mut clients = vec![cluster.client(hub, &cluster.kubelet()).await];
    for token in tokens {
        clients.push(cluster.client(hub, token).await);
    }
    for path in [NODE_PODS, OWN_NODE] {
        clients[0].get(&format!("{path}&resourceVersion=0")).await.expect(200);
    }
    for (client, query) in clients.iter().zip(PARTS) {
        let path = format!("{SERVICES}?resourceVersion=0&{query}");
        client.send(Method::GET, &path, &[("accept", ACCEPT)], Bytes::new()).await.expect(200);
    }
    let told = hub.server.doctor();
    until("everybody is fed", async || {
        let views = told.look(&Ok(Course::default())).views;
        (views.iter().filter(|view| view.path == SERVICES && view.of.is_some()).count() == PARTS.len())
            .then_some(())
    })
    .await;
}

/// No list, no review of a right, no connection for bearer tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_started_again_resumes_its_watches_and_asks_for_no_right() {
    let mut cluster = Cluster::new().await;
    cluster.way_in = WayIn::Service;
    std::fs::write(cluster.dir.path().join("address/way-in.json"), "{}").unwrap();
    let web = json!({"metadata": {"name": "web-service"}, "spec": {"clusterIP": "10.96.0.9"}});
    cluster.api.put("/api/v1/namespaces/shop/services", web);
    let key = SigningKey::new("one");
    cluster.api.publish(&[&key]);
    let tokens = [PROXY, DNS].map(|user| {
        let token = key.sign(&json!({"sub": user, "iss": ISSUER}));
        cluster.api.accept_token(&token, user);
        As::Token(token)
    });
    let hub = cluster.boot().await;
    come(&cluster, &hub, &tokens).await;
    hub.stop().await;
    for _ in 0..2 {
        let (before, connections) = (cluster.api.requests().len(), cluster.link.connections());
        let bytes = cluster.link.bytes(Way::ToServer) + cluster.link.bytes(Way::ToClient);
        let hub = cluster.boot().await;
        come(&cluster, &hub, &tokens).await;
        let asked = cluster.api.requests().split_off(before);
        let cost = cluster.link.bytes(Way::ToServer) + cluster.link.bytes(Way::ToClient) - bytes;
        let mut watches = BTreeMap::new();
        for seen in &asked {
            assert!(!seen.path.ends_with("subjectaccessreviews"), "{seen:?}");
            let is_watched = WATCHED.contains(&&*seen.path);
            assert_eq!(seen.is_watch(), is_watched, "{} {}?{}", seen.method, seen.path, seen.query);
            *watches.entry(seen.path.clone()).or_insert(0) += usize::from(is_watched);
        }
        assert_eq!(WATCHED.map(|path| watches[path]), [1; 3]);
        assert_eq!(cluster.link.connections() - connections, 2, "kubelet's: its requests and its views");
        assert!(cost < 16 << 10, "{cost} bytes");
        hub.stop().await;
    }
}
