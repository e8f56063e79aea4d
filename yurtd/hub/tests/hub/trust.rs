//! The node vouches for itself: who believes the hub, by what, under which names.

use super::*;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use yurt_fakes::client::tls_by_name;

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const ACCEPT: [(&str, &str); 1] = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
/// By which pods know the API server, beside the Service's addresses.
const NAMES: [&str; 9] = [
    "127.0.0.1",
    "::1",
    "169.254.2.1",
    "fd6b:7975:7274::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "edge",
];

/// A cluster as kube-controller-manager leaves it, with a pod's token and a Secret with one that does not expire.
async fn cluster() -> (Cluster, As) {
    let cluster = Cluster::new().await;
    let ca = &cluster.ca.pem;
    cluster.api.put(
        MAPS,
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "kube-root-ca.crt"},
            "data": {"ca.crt": ca}}),
    );
    cluster.api.put(
        SECRETS,
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "web-token"},
            "type": "kubernetes.io/service-account-token",
            "data": {"ca.crt": STANDARD.encode(ca), "namespace": STANDARD.encode("shop")}}),
    );
    set_service_addresses(&cluster, &["10.96.0.1", "fd00::1"]);
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web", "exp": 4_000_000_000_i64}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    (cluster, As::Token(token))
}

fn set_service_addresses(cluster: &Cluster, addresses: &[&str]) {
    let mut service = cluster.api.get(SERVICE).unwrap();
    service["spec"]["clusterIP"] = addresses[0].into();
    service["spec"]["clusterIPs"] = json!(addresses);
    cluster.api.put(SERVICE, service);
}

/// The `ca.crt` that kubelet puts into pods: by list and watch, as it does, and by a GET.
async fn ca_crt(kubelet: &Client) -> String {
    let select = "fieldSelector=metadata.name%3Dkube-root-ca.crt";
    let of = |map: &Value| map["data"]["ca.crt"].as_str().unwrap().to_owned();
    let path = format!("{MAPS}?{select}&resourceVersion=0");
    let list = kubelet.send(Method::GET, &path, &ACCEPT, Bytes::new()).await.expect(200).json();
    let listed = of(&list["items"][0]);
    let mut watch = kubelet.watch(&format!("{MAPS}?{select}&watch=1&resourceVersion=0")).await;
    assert_eq!(of(&watch.change().await.1), listed);
    let path = format!("{MAPS}/kube-root-ca.crt");
    let map = kubelet.send(Method::GET, &path, &ACCEPT, Bytes::new()).await.expect(200).json();
    assert_eq!(of(&map), listed);
    listed
}

async fn secret_ca_crt(kubelet: &Client) -> String {
    let of = |secret: &Value| STANDARD.decode(secret["data"]["ca.crt"].as_str().unwrap()).unwrap();
    let path = format!("{SECRETS}?fieldSelector=metadata.name%3Dweb-token&resourceVersion=0");
    let list = kubelet.send(Method::GET, &path, &ACCEPT, Bytes::new()).await.expect(200).json();
    let listed = of(&list["items"][0]);
    let path = format!("{SECRETS}/web-token");
    let secret = kubelet.send(Method::GET, &path, &ACCEPT, Bytes::new()).await.expect(200).json();
    assert_eq!(of(&secret), listed);
    String::from_utf8(listed).unwrap()
}

async fn is_believed(hub: &Hub, name: &str, trust: &Trust) -> bool {
    tls_by_name(hub.address, name, trust, &As::Nobody, "h2").await.is_ok()
}

/// Every name, and these addresses of the Service, as soon as they are known.
async fn assert_believed(hub: &Hub, trust: &Trust, service: &[&str]) {
    for name in service {
        until(&format!("a certificate for {name}"), async || {
            is_believed(hub, name, trust).await.then_some(())
        })
        .await;
    }
    for name in NAMES {
        assert!(is_believed(hub, name, trust).await, "{name}");
    }
    for other in ["10.96.0.99", "kubernetes.default.svc.example.com"] {
        assert!(!is_believed(hub, other, trust).await, "{other}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_believes_its_ca_crt_reaches_the_hub_by_every_name_of_the_api_server() {
    let (cluster, pod) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let bundle = ca_crt(&kubelet).await;
    assert!(bundle.starts_with(&cluster.ca.pem), "the cluster's first: {bundle}");
    assert_eq!(secret_ca_crt(&kubelet).await, bundle);
    let trust = Trust::of_bundle(&bundle);
    assert_believed(&hub, &trust, &["10.96.0.1", "fd00::1"]).await;
    // The node's CA is believed by who was given it, and by nobody else.
    assert!(!is_believed(&hub, "127.0.0.1", &Trust::from(&*cluster.ca)).await);
    let stream = tls_by_name(hub.address, "kubernetes.default.svc", &trust, &pod, "h2").await.unwrap();
    let client = Client::over(stream, &pod).await;
    client.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200);
    // Who reads the ConfigMap itself sees it as it is; and so it is kept.
    let map = client.get(&format!("{MAPS}/kube-root-ca.crt")).await.expect(200).json();
    assert_eq!(map["data"]["ca.crt"], cluster.ca.pem);
    assert_eq!(cluster.api.seen("POST", CSRS).len(), 0, "nobody is asked to sign");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_without_a_link_changes_nothing_in_whom_pods_believe() {
    let (cluster, pod) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let (bundle, secret) = (ca_crt(&kubelet).await, secret_ca_crt(&kubelet).await);
    let trust = Trust::of_bundle(&bundle);
    assert_believed(&hub, &trust, &["10.96.0.1"]).await;
    let client = cluster.client(&hub, &pod).await;
    client.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await.expect(200);
    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    // From the first handshake on.
    assert!(is_believed(&hub, "10.96.0.1", &trust).await);
    assert_believed(&hub, &trust, &["10.96.0.1", "fd00::1"]).await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    assert_eq!((ca_crt(&kubelet).await, secret_ca_crt(&kubelet).await), (bundle, secret));
    let stream = tls_by_name(hub.address, "10.96.0.1", &trust, &pod, "h2").await.unwrap();
    let list = Client::over(stream, &pod).await.get("/api/v1/namespaces/shop/pods?resourceVersion=0").await;
    assert_eq!(names(&list.expect(200).json()), ["web-0", "web-1"]);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_without_a_link_has_a_certificate_too_and_gets_the_addresses_later() {
    let (cluster, _) = cluster().await;
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    assert!(is_believed(&hub, "kubernetes.default.svc", &hub.trust).await);
    assert!(!is_believed(&hub, "10.96.0.1", &hub.trust).await);
    cluster.restore(&hub).await;
    assert_believed(&hub, &hub.trust, &["10.96.0.1", "fd00::1"]).await;
    // The cluster gets another range for its Services: no restart, the same CA.
    cluster.cut(&hub).await;
    set_service_addresses(&cluster, &["10.97.0.1"]);
    cluster.restore(&hub).await;
    assert_believed(&hub, &hub.trust, &["10.97.0.1"]).await;
    assert!(!is_believed(&hub, "10.96.0.1", &hub.trust).await);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_ca_costs_a_new_one_that_kubelet_and_pods_are_told_of() {
    let (cluster, _) = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let before = ca_crt(&kubelet).await;
    let old = hub.trust.clone();
    hub.stop().await;
    let file = cluster.dir.path().join("state/ca.pem");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    assert_ne!(hub.trust, old);
    assert!(!is_believed(&hub, "127.0.0.1", &old).await);
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let after = ca_crt(&kubelet).await;
    assert_ne!(after, before);
    assert!(after.starts_with(&cluster.ca.pem));
    assert!(is_believed(&hub, "kubernetes.default.svc", &Trust::of_bundle(&after)).await);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_since_before_an_upgrade_believes_the_hub_as_before() {
    let (cluster, _) = cluster().await;
    let names = ["127.0.0.1", "169.254.2.1", "edge"];
    let former = cluster.ca.serving("system:node:edge", &names);
    let state = cluster.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let file = format!("{}{}", former.key_pem, former.pem);
    std::fs::write(state.join("serving.pem"), &file).unwrap();
    let hub = cluster.boot().await;
    // kubelet, kube-proxy and pods know nothing but the cluster's CA yet, and come to an address.
    let of_before = Trust::from(&*cluster.ca);
    for address in ["127.0.0.1", "169.254.2.1"] {
        assert!(is_believed(&hub, address, &of_before).await, "{address}");
    }
    // Those who know both are believers in any case.
    let kubelet = Client::connect(hub.address, &of_before, &cluster.kubelet()).await;
    let trust = Trust::of_bundle(&ca_crt(&kubelet).await);
    for name in ["127.0.0.1", "169.254.2.1", "edge", "kubernetes.default.svc"] {
        assert!(is_believed(&hub, name, &trust).await, "{name}");
    }
    assert_eq!(std::fs::read_to_string(state.join("serving.pem")).unwrap(), file, "for a swap back");
    hub.stop().await;
}
