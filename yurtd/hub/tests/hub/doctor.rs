//! What the hub says of itself to a person at the node.

use yurt_api::doctor::{Hub as Told, LinkState, Pod, Reboot, ViewState, Way};
use yurt_hub::Came;

use super::*;

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
const TOKEN: &str = "/api/v1/namespaces/shop/serviceaccounts/web/token";
/// When the container of `web-0` began, in seconds since 1970.
const BEGAN: i64 = 1_700_000_000;

/// A cluster whose pod `web-0` needs a ConfigMap, a Secret and a token.
async fn cluster() -> Cluster {
    let cluster = Cluster::new().await;
    let mut pod = cluster.api.get(&format!("{PODS}/web-0")).unwrap();
    pod["metadata"]["uid"] = "u-1".into();
    pod["spec"]["restartPolicy"] = "Always".into();
    pod["spec"]["serviceAccountName"] = "web".into();
    pod["spec"]["volumes"] = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "more", "configMap": {"name": "more", "optional": true}},
        {"name": "key", "secret": {"secretName": "key"}},
        {"name": "api", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}]);
    pod["status"] = json!({"phase": "Running",
        "containerStatuses": [{"state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}}}]});
    cluster.api.put(PODS, pod);
    for (path, kind, name) in [(MAPS, "ConfigMap", "settings"), (SECRETS, "Secret", "key")] {
        cluster
            .api
            .put(path, json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": name}, "data": {}}));
    }
    cluster
}

fn look(hub: &Hub) -> Told {
    hub.server.doctor().look(&Ok(Course::default()))
}

fn pod<'t>(told: &'t Told, name: &str) -> &'t Pod {
    told.pods.as_ref().unwrap().iter().find(|pod| pod.name == name).unwrap()
}

/// What kubelet asks for before it starts any pod.
async fn kubelet_begins(kubelet: &Client) {
    for path in [OWN_NODE, NODE_PODS, "/api/v1/services?"] {
        kubelet.get(&format!("{path}&resourceVersion=0")).await.expect(200);
    }
}

/// And what it asks for to start `web-0`: a list of one ConfigMap, as its watches begin, a GET of the Secret, as where it
/// does not watch, and a token.
async fn kubelet_starts_web(kubelet: &Client) {
    kubelet
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dsettings&resourceVersion=0"))
        .await
        .expect(200);
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    kubelet.send(Method::GET, &format!("{SECRETS}/key"), &accept, Bytes::new()).await.expect(200);
    let request = json!({"kind": "TokenRequest", "spec": {"expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": "u-1"}}});
    kubelet.write(Method::POST, TOKEN, "application/json", &request).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_what_a_reboot_without_a_link_would_bring_back_and_what_not() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let told = look(&hub);
    assert_eq!((&*told.node, told.link.state, told.pods.is_none()), ("edge", LinkState::Online, true));
    assert_eq!(told.not_stored, ["its Node", "its pods", "the list of Services"]);
    assert!(told.certificate.present && told.certificate.ends_in_seconds.unwrap() > 0);
    assert!(told.store.file_bytes > 0 && told.store.limit_bytes > told.store.used_bytes);

    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet_begins(&kubelet).await;
    let told = look(&hub);
    assert_eq!(told.not_stored, [""; 0]);
    let web = pod(&told, "web-0");
    assert_eq!(web.reboot, Reboot::DoesNot);
    assert_eq!(
        web.not_stored,
        ["ConfigMap shop/settings", "Secret shop/key", "the token of ServiceAccount web"]
    );
    assert_eq!((pod(&told, "web-1").reboot, pod(&told, "web-1").way), (Reboot::ComesBack, Way::None));

    kubelet_starts_web(&kubelet).await;
    // What passed by is remembered behind the answer.
    until("web-0 would come back", async || {
        (pod(&look(&hub), "web-0").reboot == Reboot::ComesBack).then_some(())
    })
    .await;
    hub.stop().await;

    // And that is what happens.
    cluster.link.set(Mode::Cut);
    let hub = cluster.boot().await;
    let told = look(&hub);
    assert_eq!(told.not_stored, [""; 0]);
    let web = pod(&told, "web-0");
    assert_eq!((web.reboot, &*web.not_stored), (Reboot::ComesBack, &[][..]));
    assert!(web.token_ends_in_seconds.unwrap() > 0);
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet_begins(&kubelet).await;
    kubelet_starts_web(&kubelet).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_which_pods_talk_past_it() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    kubelet_begins(&cluster.client(&hub, &cluster.kubelet()).await).await;
    let way = |came: Came| {
        let told = hub.server.doctor().look(&came);
        (pod(&told, "web-0").way, told.ways_unknown.is_some())
    };
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let came = |boot_id: &str, second| Ok(Moment { boot_id: Some(boot_id.to_owned()), second }.into());
    assert_eq!(way(came(&boot_id, BEGAN)), (Way::Past, false));
    assert_eq!(way(came(&boot_id, BEGAN - 1)), (Way::Hub, false));
    assert_eq!(way(came("another", BEGAN)), (Way::Hub, false), "the node was booted since");
    assert_eq!(way(Ok(Course::default())), (Way::Unknown, true));
    assert_eq!(way(Err("it is damaged".into())), (Way::Unknown, true));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_for_how_long_the_link_is_down_what_is_old_and_what_waits() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet_begins(&kubelet).await;
    let told = look(&hub);
    let pods = told.views.iter().find(|view| view.path == "/api/v1/pods").unwrap();
    assert_eq!((&*pods.user, &*pods.field_selector), ("system:node:edge", "spec.nodeName=edge"));
    assert_eq!((pods.state, pods.age_seconds, &pods.why), (ViewState::Following, Some(0), &None));
    assert_eq!(told.waiting.status_patches, [""; 0]);

    cluster.cut(&hub).await;
    let patch = json!({"metadata": {"uid": "u-1"}, "status": {"phase": "Running", "podIP": "10.0.0.9"}});
    kubelet.write(Method::PATCH, &format!("{PODS}/web-0/status"), STRATEGIC, &patch).await.expect(200);
    let told = until("a second has passed", async || {
        let told = look(&hub);
        let pods = told.views.iter().find(|view| view.path == "/api/v1/pods").unwrap();
        (told.link.for_seconds >= 1 && pods.age_seconds >= Some(1)).then_some(told.clone())
    })
    .await;
    assert_eq!(told.link.state, LinkState::Offline);
    assert_eq!(told.waiting.status_patches, [format!("{PODS}/web-0")]);
    let pods = told.views.iter().find(|view| view.path == "/api/v1/pods").unwrap();
    assert_eq!((pods.state, pods.why.as_deref()), (ViewState::Behind, Some("the link was lost")));

    cluster.restore(&hub).await;
    until("all is well again", async || {
        let told = look(&hub);
        let following = told.views.iter().all(|view| view.state == ViewState::Following);
        (following && told.waiting.status_patches.is_empty() && told.link.for_seconds < 60).then_some(())
    })
    .await;
    hub.stop().await;
}
