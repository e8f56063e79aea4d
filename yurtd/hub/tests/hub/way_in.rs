//! How pods come to the hub: who the holder of its address is told to lead there.

use jiff::Timestamp;

use super::*;

/// 2023-11-14T22:13:20Z
const BEGAN: i64 = 1_700_000_000;

/// A cluster of which the pods run, on a node whose kernel knows tables.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::new().await;
    cluster.way_in = WayIn::Service;
    for (name, ip, host, began) in [
        ("web-0", "10.244.1.5", false, "2023-11-14T22:13:20Z"),
        ("web-1", "10.80.0.7", true, "2023-11-14T22:13:21Z"),
    ] {
        let mut pod = cluster.api.get(&format!("{PODS}/{name}")).unwrap();
        pod["spec"]["hostNetwork"] = host.into();
        pod["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": [{"state": {"running": {"startedAt": began}}}]});
        cluster.api.put(PODS, pod);
    }
    holder_says(&cluster, &json!({}));
    cluster
}

fn holder_says(cluster: &Cluster, told: &Value) {
    std::fs::write(cluster.dir.path().join("address/way-in.json"), told.to_string()).unwrap();
}

/// What the hub wants.
fn wanted(cluster: &Cluster) -> Option<Value> {
    let text = std::fs::read(cluster.dir.path().join("run/way-in.json")).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// Whatever its revision is.
async fn until_wanted(cluster: &Cluster, what: &str, services: &Value, past: &Value, host: bool) -> Value {
    let expected = json!({"version": 1, "services": services, "past": past, "host": host});
    until(what, async || wanted(cluster).filter(|wanted| without_revision(wanted) == expected)).await
}

fn without_revision(wanted: &Value) -> Value {
    let mut wanted = wanted.clone();
    wanted.as_object_mut().unwrap().remove("revision");
    wanted
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// kubelet came when the first pod began, and believes the hub since then, in this boot.
fn came(cluster: &Cluster, since: i64) {
    let moment = |second| Moment { boot_id: Some(boot_id()), second };
    let believed = Believed { ca: node_ca(cluster), since: moment(since) };
    let course = Course { believed: Some(believed), ..moment(BEGAN).into() };
    cluster.came.send_modify(|came| *came = Ok(course));
}

/// The certificate of the node's CA.
fn node_ca(cluster: &Cluster) -> String {
    const END: &str = "-----END CERTIFICATE-----\n";
    let text = std::fs::read_to_string(cluster.dir.path().join("state/ca.pem")).unwrap();
    let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap();
    let end = begin + text[begin..].find(END).unwrap() + END.len();
    text[begin..end].to_owned()
}

async fn kubelet_reads(cluster: &Cluster, hub: &Hub) {
    let kubelet = cluster.client(hub, &cluster.kubelet()).await;
    for path in [OWN_NODE, NODE_PODS, "/api/v1/services?"] {
        kubelet.get(&format!("{path}&resourceVersion=0")).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_led_to_the_hub_but_for_those_from_before_and_their_environment_is_the_clusters() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    until_wanted(&cluster, "nobody before kubelet came", &json!([]), &json!([]), false).await;
    kubelet_reads(&cluster, &hub).await;
    // Whatever runs began before kubelet was told of the CA.
    came(&cluster, BEGAN + 1);
    let both =
        until_wanted(&cluster, "all from before", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), false)
            .await;
    assert_eq!(hub.server.doctor().look(&Ok(Course::default())).host_held_up_by, ["shop/web-1"]);
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    for path in ["/api/v1/services?resourceVersion=0", "/api/v1/services"] {
        let services = kubelet.get(path).await.expect(200).json();
        assert_eq!(services["items"][0]["spec"]["clusterIP"], "10.96.0.1", "{path}");
    }
    // The keeper is about to restart the one on the host's network, so the host is led to the hub, too.
    cluster.came.send_modify(|came| {
        let turn = Turn { second: 7, pods: vec!["shop/web-1".into()] };
        came.as_mut().unwrap().turn = Some(turn);
    });
    // Of a keeper that did not come back, long ago.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(without_revision(&wanted(&cluster).unwrap()), without_revision(&both));
    let second = Timestamp::now().as_second();
    cluster.came.send_modify(|came| came.as_mut().unwrap().turn.as_mut().unwrap().second = second);
    let all =
        until_wanted(&cluster, "its turn", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), true).await;
    assert_eq!(hub.server.readiness().way_in_turn, None, "nobody has done it yet");
    holder_says(&cluster, &json!({ "inPlace": all }));
    until("its turn is in place", async || hub.server.readiness().way_in_turn.filter(|turn| *turn == second))
        .await;
    cluster.came.send_modify(|came| came.as_mut().unwrap().turn = None);
    until_wanted(&cluster, "as before", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), false).await;
    hub.stop().await;
    let left = wanted(&cluster).unwrap();
    assert_eq!(without_revision(&left), without_revision(&both), "what is wanted outlives the hub");

    came(&cluster, BEGAN);
    let hub = cluster.boot().await;
    until_wanted(&cluster, "the host too", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), true).await;
    // Its container begins anew, and the link is no condition.
    let mut pod = cluster.api.get(&format!("{PODS}/web-0")).unwrap();
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = json!("2023-11-14T22:13:21Z");
    cluster.api.put(PODS, pod);
    until_wanted(&cluster, "nobody is excluded", &json!(["10.96.0.1:443"]), &json!([]), true).await;
    hub.stop().await;
}

/// One whose Service has an IPv6 address, and pods of both families.
async fn ipv6_cluster() -> Cluster {
    let cluster = cluster().await;
    let services = "/api/v1/namespaces/default/services";
    let mut service = cluster.api.get(&format!("{services}/kubernetes")).unwrap();
    service["spec"]["clusterIP"] = IPV6_SERVICE.into();
    service["spec"]["clusterIPs"] = json!([IPV6_SERVICE]);
    cluster.api.put(services, service);
    let mut pod = cluster.api.get(&format!("{PODS}/web-0")).unwrap();
    pod["status"]["podIPs"] = json!([{"ip": "fd00:10:244:1::5"}, {"ip": "10.244.1.5"}]);
    cluster.api.put(PODS, pod);
    cluster
}

const IPV6_SERVICE: &str = "fd00:10:96::1";

/// Whatever its revision is.
async fn until_wanted_with_ipv6(cluster: &Cluster, what: &str, services: &Value, past: &Value) -> Value {
    let host = services.as_array().is_some_and(|services| !services.is_empty());
    let expected = json!({"version": 1, "services": services, "past": past, "host": host, "ipv6": true});
    until(what, async || wanted(cluster).filter(|wanted| without_revision(wanted) == expected)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_with_ipv6_pods_are_led_to_a_listener_of_the_hubs_own() {
    let cluster = ipv6_cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let nobody = json!([]);
    until_wanted_with_ipv6(&cluster, "the address is wanted before anybody is led there", &nobody, &nobody)
        .await;
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    let services = json!(["[fd00:10:96::1]:443"]);
    let old = json!(["fd00:10:244:1::5"]);
    let all = until_wanted_with_ipv6(&cluster, "pods of this family", &services, &old).await;
    holder_says(&cluster, &json!({ "inPlace": all }));
    until("it is ready", async || hub.server.readiness().ready.then_some(())).await;
    let led = until("it is in place", async || {
        Some(hub.server.readiness().way_in_services).filter(|led| !led.is_empty())
    });
    assert_eq!(led.await, ["[fd00:10:96::1]:443"]);
    assert_eq!(hub.server.doctor().look(&Ok(Course::default())).way_in_services, ["[fd00:10:96::1]:443"]);
    hub.stop().await;

    // Without a link it is known where to listen, out of the certificate.
    cluster.link.set(Mode::Cut);
    std::fs::remove_file(cluster.dir.path().join("run/way-in.json")).unwrap();
    let hub = cluster.boot().await;
    until_wanted_with_ipv6(&cluster, "pods of this family, offline", &services, &old).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_told_and_nobody_is_led_there() {
    let mut cluster = ipv6_cluster().await;
    let taken = TcpListener::bind("[::1]:0").unwrap();
    cluster.ipv6 = taken.local_addr().unwrap();
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    let nobody = json!([]);
    until_wanted_with_ipv6(&cluster, "the address alone", &nobody, &nobody).await;
    let missing = until("it is told", async || hub.server.readiness().way_in_missing).await;
    assert!(missing.contains(&cluster.ipv6.to_string()), "{missing}");
    assert!(!hub.server.readiness().ready);
    assert_eq!(hub.server.doctor().look(&Ok(Course::default())).way_in_missing, Some(missing));
    drop(taken);
    until_wanted_with_ipv6(
        &cluster,
        "it is free",
        &json!(["[fd00:10:96::1]:443"]),
        &json!(["fd00:10:244:1::5"]),
    )
    .await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_ipv6_cannot_be_led_pods_are_led_by_their_environment_to_the_ipv6_address() {
    let cluster = ipv6_cluster().await;
    holder_says(&cluster, &json!({"unableIpv6": "no NAT for IPv6"}));
    // The very first start: nobody knows the Service's addresses.
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let readiness = hub.server.readiness();
    assert_eq!(readiness.way_in, "environment");
    assert_eq!(readiness.way_in_why.as_deref(), Some("not at an IPv6 address: no NAT for IPv6"));
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let services = kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    assert_eq!(services["items"][0]["spec"]["clusterIP"], "fd6b:7975:7274::1");
    let nobody = json!([]);
    until_wanted_with_ipv6(&cluster, "the address alone", &nobody, &nobody).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_is_ready_when_the_holder_has_done_it_and_says_what_is_missing() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    let wanted =
        until_wanted(&cluster, "a table", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), true).await;
    until("the silence is heard", async || hub.server.readiness().way_in_missing).await;
    assert!(!hub.server.readiness().ready);
    holder_says(&cluster, &json!({"error": "no nf_tables"}));
    until("the error is told", async || {
        hub.server.readiness().way_in_missing.filter(|missing| missing == "no nf_tables")
    })
    .await;
    holder_says(&cluster, &json!({ "inPlace": wanted }));
    until("it is ready", async || hub.server.readiness().ready.then_some(())).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tables_pods_are_led_by_their_environment() {
    let cluster = cluster().await;
    holder_says(&cluster, &json!({"unable": "the kernel knows no nf_tables"}));
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    let readiness = hub.server.readiness();
    assert_eq!(readiness.way_in, "environment");
    assert_eq!(readiness.way_in_why.as_deref(), Some("the kernel knows no nf_tables"));
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let services = kubelet.get("/api/v1/services?resourceVersion=0").await.expect(200).json();
    assert_eq!(services["items"][0]["spec"]["clusterIP"], "169.254.2.1");
    until_wanted(&cluster, "nobody", &json!([]), &json!([]), false).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_without_a_link_everybody_is_led_to_the_hub() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    hub.stop().await;
    cluster.link.set(Mode::Cut);
    let another = Moment { boot_id: Some("another".into()), second: BEGAN };
    let believed = Believed { ca: node_ca(&cluster), since: another.clone() };
    cluster.came.send_modify(|came| *came = Ok(Course { believed: Some(believed), ..another.into() }));
    let hub = cluster.boot().await;
    until_wanted(&cluster, "everybody", &json!(["10.96.0.1:443"]), &json!([]), true).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubelet_starts_before_it_is_told_of_a_new_ca_is_not_led_to_the_hub() {
    let cluster = cluster().await;
    // Both begin when the hub has its CA.
    for name in ["web-0", "web-1"] {
        let mut pod = cluster.api.get(&format!("{PODS}/{name}")).unwrap();
        pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
            json!("2100-01-01T00:00:00Z");
        cluster.api.put(PODS, pod);
    }
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    let another =
        Believed { ca: cluster.ca.pem.clone(), since: Moment { boot_id: Some(boot_id()), second: BEGAN } };
    for believed in [None, Some(another)] {
        came(&cluster, BEGAN);
        until_wanted(&cluster, "all", &json!(["10.96.0.1:443"]), &json!([]), true).await;
        cluster.came.send_modify(|came| came.as_mut().unwrap().believed = believed);
        until_wanted(&cluster, "nobody", &json!([]), &json!([]), false).await;
    }
    let course = cluster.came.borrow().clone();
    assert!(hub.server.doctor().look(&course).ways_unknown.unwrap().contains("not told yet of the CA"));
    // 2100-01-01, when kubelet had ended.
    came(&cluster, 4_102_444_800);
    until_wanted(&cluster, "all from before", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), false).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_whose_api_server_is_at_the_services_address_is_not_led_to_itself() {
    let mut cluster = cluster().await;
    cluster.more_api_servers = vec!["https://10.96.0.1".into()];
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN - 1);
    let course = cluster.came.borrow().clone();
    until_wanted(&cluster, "pods alone", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), false).await;
    let told = hub.server.doctor().look(&course);
    assert!(told.host_would_loop && told.host_held_up_by.is_empty(), "{:?}", told.host_held_up_by);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_holder_was_told_is_told_again_when_somebody_took_it_away() {
    let cluster = cluster().await;
    let hub = cluster.boot().await;
    until("online", async || (hub.server.readiness().link == "online").then_some(())).await;
    assert!(hub.server.readiness().way_in_open, "of the hub before this one, for all that is known");
    let nothing = until_wanted(&cluster, "nobody", &json!([]), &json!([]), false).await;
    holder_says(&cluster, &json!({ "inPlace": nothing }));
    until("nobody is led there", async || (!hub.server.readiness().way_in_open).then_some(())).await;
    kubelet_reads(&cluster, &hub).await;
    came(&cluster, BEGAN);
    until_wanted(&cluster, "a table", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), true).await;
    std::fs::remove_file(cluster.dir.path().join("run/way-in.json")).unwrap();
    until_wanted(&cluster, "it, again", &json!(["10.96.0.1:443"]), &json!(["10.244.1.5"]), true).await;
    hub.stop().await;
}
