use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use yurt_api::names::HUB_POD_IPV6;

use super::*;

const NODE_CA: &str = "-----BEGIN CERTIFICATE-----\nnode\n-----END CERTIFICATE-----\n";
const CLUSTER_CA: &str = "-----BEGIN CERTIFICATE-----\ncluster\n-----END CERTIFICATE-----\n";

fn core(plural: &str) -> Resource {
    Resource::new("", "v1", plural)
}

fn filters(version: &str) -> Filters {
    Filters::new(version, NODE_CA.into(), WayIn::Environment)
}

fn bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

fn value(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn api_service() -> Value {
    json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver"}},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "unknown": {"kept": 1.50},
                 "ports": [{"name": "https", "port": 443, "targetPort": 6443}]},
    })
}

#[test]
fn the_api_servers_service_leads_to_the_hub_and_others_do_not() {
    let other =
        json!({"metadata": {"name": "kubernetes", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.9"}});
    let list = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
                      "items": [other, api_service()]});
    let filtered = value(&Filter::HubAsService.list(bytes(&list)).unwrap());
    assert_eq!(filtered["items"][0], other);
    assert_eq!(filtered["items"][1]["spec"]["clusterIP"], "169.254.2.1");
    assert_eq!(filtered["items"][1]["spec"]["clusterIPs"], json!(["169.254.2.1"]));
    assert_eq!(
        filtered["items"][1]["spec"]["ports"][0],
        json!({"name": "https", "port": 10268, "targetPort": 6443})
    );
    assert_eq!(filtered["items"][1]["spec"]["unknown"], json!({"kept": 1.50}));
    assert_eq!(filtered["metadata"], list["metadata"]);
}

#[test]
fn a_service_whose_first_address_is_ipv6_leads_to_the_ipv6_address_of_the_hub() {
    let hub = HUB_POD_IPV6.to_string();
    let led = |addresses: &[&str]| {
        let mut service = api_service();
        service["spec"]["clusterIP"] = addresses[0].into();
        service["spec"]["clusterIPs"] = addresses.into();
        let filtered = value(&Filter::HubAsService.single(bytes(&service)).unwrap());
        assert_eq!(filtered["spec"]["ports"][0]["port"], 10268);
        (filtered["spec"]["clusterIP"].clone(), filtered["spec"]["clusterIPs"].clone())
    };
    assert_eq!(led(&["fd00:10:96::1"]), (json!(hub), json!([hub])));
    assert_eq!(led(&["fd00:10:96::1", "10.96.0.1"]), (json!(hub), json!([hub])));
    assert_eq!(led(&["10.96.0.1", "fd00:10:96::1"]), (json!("169.254.2.1"), json!(["169.254.2.1"])));
}

#[test]
fn a_watch_event_is_filtered_and_keeps_its_line_end() {
    let event = json!({"type": "MODIFIED", "object": api_service()});
    let filtered = Filter::HubAsService.event(bytes(&event)).unwrap();
    assert!(filtered.ends_with(b"}\n"));
    assert_eq!(value(&filtered)["type"], "MODIFIED");
    assert_eq!(value(&filtered)["object"]["spec"]["clusterIP"], "169.254.2.1");
    let bookmark = Bytes::from_static(
        b"{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Service\",\"metadata\":{\"resourceVersion\":\"9\"}}}\n",
    );
    assert_eq!(Filter::HubAsService.event(bookmark.clone()).unwrap(), bookmark);
}

#[test]
fn what_no_filter_touches_stays_byte_for_byte() {
    let list = Bytes::from_static(
        b"{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":[ {\"metadata\":{\"name\":\"a\"}} ]}\n",
    );
    assert_eq!(Filter::HubAsService.list(list.clone()).unwrap(), list);
    let empty = Bytes::from_static(
        b"{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":null}",
    );
    assert_eq!(Filter::HubAsService.list(empty.clone()).unwrap(), empty);
}

#[test]
fn kube_proxy_finds_the_hub_on_loopback() {
    let kubeconfig = "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: /ca.crt\n    server: https://10.80.0.2:6443\n  name: default\n";
    let map = json!({"metadata": {"name": "kube-proxy", "namespace": "kube-system"},
                     "data": {"config.conf": "server: untouched", "kubeconfig.conf": kubeconfig}});
    let filtered = value(&Filter::ConfigMaps("CA\n".into()).single(bytes(&map)).unwrap());
    let text = filtered["data"]["kubeconfig.conf"].as_str().unwrap();
    assert_eq!(text, kubeconfig.replace("https://10.80.0.2:6443", "https://127.0.0.1:10261"));
    assert_eq!(filtered["data"]["config.conf"], "server: untouched");
}

#[test]
fn pods_believe_the_nodes_ca_beside_the_clusters() {
    let filter = Filter::ConfigMaps(NODE_CA.into());
    let map = |namespace: &str, name: &str| json!({"metadata": {"name": name, "namespace": namespace}, "data": {"ca.crt": CLUSTER_CA, "a": "b"}});
    for namespace in ["default", "kube-system", "shop"] {
        let filtered = filter.single(bytes(&map(namespace, "kube-root-ca.crt"))).unwrap();
        let data = &value(&filtered)["data"];
        assert_eq!(*data, json!({"ca.crt": format!("{CLUSTER_CA}{NODE_CA}"), "a": "b"}));
        assert_eq!(filter.single(filtered.clone()).unwrap(), filtered, "nothing is left to do");
    }
    // A bundle of somebody's that does not end with its line, and one with nothing in it.
    for (bundle, expected) in [
        (CLUSTER_CA.trim_end().to_owned(), format!("{CLUSTER_CA}{NODE_CA}")),
        (format!("{CLUSTER_CA}\n\n"), format!("{CLUSTER_CA}{NODE_CA}")),
        (String::new(), NODE_CA.to_owned()),
    ] {
        let map =
            json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": {"ca.crt": bundle}});
        assert_eq!(value(&filter.single(bytes(&map)).unwrap())["data"]["ca.crt"], expected);
    }
    // Somebody's own ConfigMap, one without certificates.
    for other in [
        map("shop", "my-ca"),
        json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": {"other": "x"}}),
        json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": null}),
    ] {
        assert_eq!(filter.single(bytes(&other)).unwrap(), bytes(&other));
    }
}

#[test]
fn so_do_those_with_a_token_that_does_not_expire() {
    let filter = Filter::TokenSecrets(NODE_CA.into());
    let secret = |kind: &str, ca: &str| {
        json!({"metadata": {"name": "t", "namespace": "shop"}, "type": kind,
            "data": {"ca.crt": ca, "token": "dG9rZW4="}})
    };
    let filtered = filter.single(bytes(&secret(TOKEN_SECRET, &STANDARD.encode(CLUSTER_CA)))).unwrap();
    let data = &value(&filtered)["data"];
    let bundle = STANDARD.decode(data["ca.crt"].as_str().unwrap()).unwrap();
    assert_eq!(String::from_utf8(bundle).unwrap(), format!("{CLUSTER_CA}{NODE_CA}"));
    assert_eq!(data["token"], "dG9rZW4=");
    assert_eq!(filter.single(filtered.clone()).unwrap(), filtered, "nothing is left to do");
    for other in [
        secret("Opaque", &STANDARD.encode(CLUSTER_CA)),
        secret(TOKEN_SECRET, "not base64"),
        json!({"metadata": {"name": "t"}, "type": TOKEN_SECRET}),
    ] {
        assert_eq!(filter.single(bytes(&other)).unwrap(), bytes(&other));
    }
}

#[test]
fn images_are_not_pulled_while_the_link_is_down() {
    let pod = json!({"metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "a", "imagePullPolicy": "Always"}, {"name": "b", "imagePullPolicy": "Never"}],
        "initContainers": [{"name": "i", "imagePullPolicy": "Always"}],
    }});
    let filtered = value(&Filter::PullIfNotPresent.single(bytes(&pod)).unwrap());
    assert_eq!(filtered["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(filtered["spec"]["containers"][1]["imagePullPolicy"], "Never");
    assert_eq!(filtered["spec"]["initContainers"][0]["imagePullPolicy"], "IfNotPresent");
    // `restartPolicy: Always` alone is no reason to write the pod anew.
    let other = bytes(&json!({"spec": {"restartPolicy": "Always", "containers": []}}));
    assert_eq!(Filter::PullIfNotPresent.single(other.clone()).unwrap(), other);
}

#[test]
fn watchers_see_the_filter_come_and_go() {
    let list = bytes(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {"name": "a"}, "spec": {"containers": [{"imagePullPolicy": "Always"}]}},
        {"metadata": {"name": "b"}, "spec": {"containers": [{"imagePullPolicy": "IfNotPresent"}]}},
    ]}));
    for (filtered, policy) in [(true, "IfNotPresent"), (false, "Always")] {
        let events = Filter::PullIfNotPresent.transition(&list, filtered).unwrap();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        let event = value(event);
        assert_eq!(event["type"], "MODIFIED");
        assert_eq!(event["object"]["kind"], "Pod");
        assert_eq!(event["object"]["apiVersion"], "v1");
        assert_eq!(event["object"]["metadata"]["name"], "a");
        assert_eq!(event["object"]["spec"]["containers"][0]["imagePullPolicy"], policy);
    }
}

#[test]
fn the_pull_policy_stays_online_and_on_old_kubelets() {
    let pods = core("pods");
    assert_eq!(filters("v1.36.3").for_kubelet(&pods, true), Some(Filter::PullIfNotPresent));
    assert_eq!(filters("v1.36.3").for_kubelet(&pods, false), None);
    for version in ["v1.30.9", "", "v2.0.0"] {
        assert_eq!(filters(version).for_kubelet(&pods, true), None, "{version}");
    }
    let other = Resource::new("apps", "v1", "services");
    assert_eq!(filters("v1.36.3").for_kubelet(&other, true), None);
}

#[test]
fn only_what_may_hold_the_object_is_filtered_on_its_way() {
    let filters = filters("v1.36.3");
    let table = [
        ("services", None, None, true),
        ("services", Some("default"), None, true),
        ("services", Some("default"), Some("kubernetes"), true),
        ("services", Some("default"), Some("web"), false),
        ("services", Some("shop"), None, false),
        ("configmaps", None, None, true),
        ("configmaps", Some("kube-system"), Some("kube-proxy"), true),
        ("configmaps", Some("shop"), Some("kube-proxy"), false),
        ("configmaps", Some("shop"), Some("kube-root-ca.crt"), true),
        ("configmaps", Some("shop"), Some("other"), false),
        ("configmaps", Some("shop"), None, true),
        ("pods", None, None, false),
        ("secrets", None, None, true),
        ("secrets", Some("shop"), Some("any"), true),
    ];
    for (plural, namespace, name, expected) in table {
        let filter = filters.for_forwarded(&core(plural), namespace, name);
        assert_eq!(filter.is_some(), expected, "{plural} {namespace:?} {name:?}");
    }
}

#[test]
fn only_the_views_that_need_it_are_json() {
    assert!(json_for_kubelet(&core("pods"), None, "spec.nodeName=edge"));
    assert!(json_for_kubelet(&core("configmaps"), Some("kube-system"), "metadata.name=kube-proxy"));
    assert!(!json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=kube-proxy"));
    assert!(json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=kube-root-ca.crt"));
    assert!(!json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=other"));
    assert!(json_for_kubelet(&core("secrets"), Some("shop"), "metadata.name=any"));
    assert!(!json_for_kubelet(&core("endpoints"), None, ""));
    let services =
        |way| Filters::new("v1.36.3", NODE_CA.into(), way).json_for_kubelet(&core("services"), None, "");
    assert!(services(WayIn::Environment) && !services(WayIn::Service));
    assert!(filters("v1.36.3").json_for_kubelet(&core("pods"), None, ""));
}

#[test]
fn rubbish_is_an_error() {
    assert!(Filter::HubAsService.list(Bytes::from_static(b"k8s\0")).is_err());
    assert!(Filter::HubAsService.event(Bytes::from_static(b"{}")).is_err());
}
