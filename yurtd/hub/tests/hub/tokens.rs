//! What the cluster's own keys say of tokens that nobody has seen.

use yurt_fakes::issuer::{SigningKey, claims_of_pod};

use super::*;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const KEYS: &str = "/openid/v1/jwks";
const SHOP: &str = "/api/v1/namespaces/shop/pods?resourceVersion=0";

/// A cluster with published keys, whose pods are of the ServiceAccount `web`.
struct Signed {
    cluster: Cluster,
    key: SigningKey,
    /// UIDs of the pods.
    pods: Vec<String>,
}

impl Signed {
    async fn new() -> Self {
        let (cluster, key) = (Cluster::new().await, SigningKey::new("one"));
        cluster.api.publish(&[&key]);
        let pods = ["web-0", "web-1"].map(|name| {
            let path = format!("{PODS}/{name}");
            let mut pod = cluster.api.get(&path).unwrap();
            pod["spec"]["serviceAccountName"] = json!("web");
            cluster.api.put(&path, pod);
            cluster.api.get(&path).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
        });
        Self { cluster, key, pods: pods.into() }
    }

    /// A hub that knows the keys and the node's pods.
    async fn boot(&self) -> Hub {
        let hub = self.cluster.boot().await;
        let kubelet = self.cluster.client(&hub, &self.cluster.kubelet()).await;
        kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
        until("the keys", async || (metric(&hub, "yurt_hub_token_keys").await > 0).then_some(())).await;
        hub
    }

    fn claims(&self, pod: usize) -> Value {
        claims_of_pod("shop", "web", (&format!("web-{pod}"), &self.pods[pod]), "edge")
    }

    async fn ask(&self, hub: &Hub, token: &str) -> u16 {
        let pod = self.cluster.client(hub, &As::Token(token.to_owned())).await;
        pod.get(SHOP).await.status.as_u16()
    }

    fn reviews(&self) -> usize {
        self.cluster.api.seen("POST", REVIEWS).len()
    }
}

async fn metric(hub: &Hub, name: &str) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(hub.health).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_token_costs_no_review_and_a_genuine_one_is_reviewed() {
    let signed = Signed::new().await;
    let hub = signed.boot().await;
    let asked = signed.cluster.api.seen("GET", KEYS).len();
    for number in 0..30 {
        let mut claims = signed.claims(0);
        claims["jti"] = json!(number);
        let genuine = signed.key.sign(&claims);
        let (rest, _) = genuine.rsplit_once('.').unwrap();
        // Neither a signature that is none, nor one of another key by the same name.
        assert_eq!(signed.ask(&hub, &format!("{rest}.c2ln")).await, 401);
        assert_eq!(signed.ask(&hub, &SigningKey::new("one").sign(&claims)).await, 401);
    }
    // And a key that nobody has heard of has the keys fetched, not each time.
    for number in 0..30 {
        let unknown = SigningKey::new(&format!("unknown-{number}"));
        assert_eq!(signed.ask(&hub, &unknown.sign(&signed.claims(0))).await, 401);
    }
    assert_eq!(signed.reviews(), 0);
    assert!(signed.cluster.api.seen("GET", KEYS).len() <= asked + 1);
    assert_eq!(metric(&hub, "yurt_hub_token_reviews_total").await, 0);
    assert!(metric(&hub, "yurt_hub_forged_tokens_total").await >= 90);

    // A genuine one may have been revoked: that only the API server knows.
    let (good, revoked) = (signed.key.sign(&signed.claims(0)), signed.key.sign(&signed.claims(1)));
    signed.cluster.api.accept_token(&good, "system:serviceaccount:shop:web");
    assert_eq!(signed.ask(&hub, &good).await, 200);
    assert_eq!(signed.ask(&hub, &revoked).await, 401);
    assert_eq!(signed.reviews(), 2);
    // Of what is not the cluster's own nothing is known.
    let mut foreign = signed.claims(0);
    foreign["iss"] = json!("https://accounts.example.com");
    assert_eq!(signed.ask(&hub, &SigningKey::new("one").sign(&foreign)).await, 401);
    assert_eq!(signed.reviews(), 3);
    // An API server that has just started refuses what is good: once is not believed when it cannot be asked.
    signed.cluster.cut(&hub).await;
    assert_eq!(signed.ask(&hub, &revoked).await, 200);
    hub.stop().await;
    let hub = signed.cluster.boot().await;
    assert_eq!(signed.ask(&hub, &revoked).await, 200);
    assert_eq!(signed.ask(&hub, &good).await, 200);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pods_token_is_good_without_a_link_and_reads_what_its_identity_may() {
    let signed = Signed::new().await;
    let hub = signed.boot().await;
    let first = signed.key.sign(&signed.claims(0));
    signed.cluster.api.accept_token(&first, "system:serviceaccount:shop:web");
    assert_eq!(signed.ask(&hub, &first).await, 200);
    let new = signed.key.sign(&signed.claims(1));
    let mut bad = Vec::new();
    for change in [
        |claims: &mut Value| claims["kubernetes.io"]["pod"]["uid"] = json!("deleted"),
        |claims: &mut Value| claims["kubernetes.io"]["node"]["name"] = json!("other"),
        |claims: &mut Value| drop(claims["kubernetes.io"]["pod"].take()),
        |claims: &mut Value| claims["aud"] = json!(["vault"]),
        |claims: &mut Value| claims["exp"] = json!(1_700_000_001),
    ] {
        let mut claims = signed.claims(1);
        change(&mut claims);
        bad.push(signed.key.sign(&claims));
    }
    bad.push(SigningKey::new("one").sign(&signed.claims(1)));
    bad.push(SigningKey::new("two").sign(&signed.claims(1)));
    bad.push(jwt(&signed.claims(1)));
    signed.cluster.cut(&hub).await;
    let check = async |hub: &Hub| {
        assert_eq!(signed.ask(hub, &new).await, 200);
        for token in &bad {
            assert_eq!(signed.ask(hub, token).await, 401);
        }
        // A right that its identity has not used is none.
        let pod = signed.cluster.client(hub, &As::Token(new.clone())).await;
        pod.get("/api/v1/namespaces/shop/configmaps?resourceVersion=0").await.expect(503);
    };
    check(&hub).await;
    hub.stop().await;
    // The keys are on the disk.
    let hub = signed.cluster.boot().await;
    check(&hub).await;
    // And it is no more than that: with the link the API server decides.
    signed.cluster.restore(&hub).await;
    let reviews = signed.reviews();
    assert_eq!(signed.ask(&hub, &new).await, 401);
    assert_eq!(signed.reviews(), reviews + 1);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_without_anybody_noticing() {
    let signed = Signed::new().await;
    let hub = signed.boot().await;
    let next = SigningKey::new("next");
    signed.cluster.api.publish(&[&signed.key, &next]);
    let token = next.sign(&signed.claims(0));
    signed.cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    // Just after they were fetched nobody is believed to have a newer one; then the first who comes has them fetched.
    until("the new key", async || (signed.ask(&hub, &token).await == 200).then_some(())).await;
    assert_eq!(metric(&hub, "yurt_hub_token_keys").await, 2);
    assert_eq!(signed.reviews(), 1);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_node_may_not_read_the_keys_every_token_is_reviewed() {
    let signed = Signed::new().await;
    signed.cluster.api.fault(When::path(KEYS), Fault::Answer(403));
    let hub = signed.cluster.boot().await;
    until("a refusal", async || (!signed.cluster.api.seen("GET", KEYS).is_empty()).then_some(())).await;
    let forged = SigningKey::new("one").sign(&signed.claims(0));
    assert_eq!(signed.ask(&hub, &forged).await, 401);
    assert_eq!(signed.reviews(), 1);
    signed.cluster.cut(&hub).await;
    assert_eq!(signed.ask(&hub, &signed.key.sign(&signed.claims(1))).await, 401, "nobody can tell");
    hub.stop().await;
}
