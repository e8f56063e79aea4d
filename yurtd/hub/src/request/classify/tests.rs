//! The rules, by the paths and queries that clients send.

use super::*;

fn info(method: &str, uri: &str) -> RequestInfo {
    info_accepting(method, uri, "application/vnd.kubernetes.protobuf,application/json")
}

fn info_accepting(method: &str, uri: &str, accept: &str) -> RequestInfo {
    let request = http::Request::builder().method(method).uri(uri).header("accept", accept).body(()).unwrap();
    RequestInfo::of(&request.into_parts().0)
}

fn resource(method: &str, uri: &str) -> ResourceTarget {
    info(method, uri).resource().unwrap().clone()
}

/// (method, path) → verb, group, plural, namespace, name, subresource
#[test]
fn paths_are_understood_as_the_api_server_understands_them() {
    type Row = (
        &'static str,
        &'static str,
        (Verb, &'static str, &'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>),
    );
    let table: &[Row] = &[
        ("GET", "/api/v1/nodes", (Verb::List, "", "nodes", None, None, None)),
        ("GET", "/api/v1/nodes?watch=true", (Verb::Watch, "", "nodes", None, None, None)),
        ("GET", "/api/v1/nodes?watch=0", (Verb::List, "", "nodes", None, None, None)),
        ("HEAD", "/api/v1/nodes/a", (Verb::Get, "", "nodes", None, Some("a"), None)),
        ("PATCH", "/api/v1/nodes/a/status", (Verb::Patch, "", "nodes", None, Some("a"), Some("status"))),
        ("GET", "/api/v1/namespaces", (Verb::List, "", "namespaces", None, None, None)),
        ("GET", "/api/v1/namespaces/d", (Verb::Get, "", "namespaces", None, Some("d"), None)),
        (
            "PUT",
            "/api/v1/namespaces/d/finalize",
            (Verb::Update, "", "namespaces", None, Some("d"), Some("finalize")),
        ),
        ("GET", "/api/v1/namespaces/d/pods", (Verb::List, "", "pods", Some("d"), None, None)),
        (
            "GET",
            "/api/v1/namespaces/d/pods/p/log",
            (Verb::Get, "", "pods", Some("d"), Some("p"), Some("log")),
        ),
        (
            "POST",
            "/api/v1/namespaces/d/serviceaccounts/s/token",
            (Verb::Create, "", "serviceaccounts", Some("d"), Some("s"), Some("token")),
        ),
        ("DELETE", "/api/v1/namespaces/d/pods", (Verb::DeleteCollection, "", "pods", Some("d"), None, None)),
        ("DELETE", "/api/v1/namespaces/d/pods/p", (Verb::Delete, "", "pods", Some("d"), Some("p"), None)),
        (
            "GET",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge",
            (Verb::Get, "coordination.k8s.io", "leases", Some("kube-node-lease"), Some("edge"), None),
        ),
        (
            "GET",
            "/apis/storage.k8s.io/v1/csinodes/a",
            (Verb::Get, "storage.k8s.io", "csinodes", None, Some("a"), None),
        ),
        ("GET", "/api/v1/watch/nodes", (Verb::Other, "", "nodes", None, None, None)),
        ("GET", "/api/v1/proxy/nodes/a/x", (Verb::Other, "", "nodes", None, Some("a"), None)),
        ("GET", "/api/v1/nodes/", (Verb::List, "", "nodes", None, None, None)),
        ("GET", "/api/v1/no%64es", (Verb::List, "", "nodes", None, None, None)),
    ];
    for (method, uri, (verb, group, plural, namespace, name, subresource)) in table {
        let found = resource(method, uri);
        assert_eq!(found.verb, *verb, "{method} {uri}");
        assert_eq!(found.resource.group, *group, "{method} {uri}");
        assert_eq!(found.resource.plural, *plural, "{method} {uri}");
        assert_eq!(found.namespace.as_deref(), *namespace, "{method} {uri}");
        assert_eq!(found.name.as_deref(), *name, "{method} {uri}");
        assert_eq!(found.subresource.as_deref(), *subresource, "{method} {uri}");
    }
}

#[test]
fn discovery_is_no_resource() {
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/version",
        "/openapi/v3/api/v1/x",
        "/healthz/etcd/x",
    ] {
        assert_eq!(info("GET", path).target, Target::NonResource { path: path.into() });
    }
}

#[test]
fn kubelets_pod_watch_is_a_collection() {
    let uri = "/api/v1/pods?allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dedge&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeout=7m1s&timeoutSeconds=421&watch=true";
    let collection = info("GET", uri).collection.unwrap();
    assert_eq!(collection.field_selector, "spec.nodeName=edge");
    assert_eq!(
        collection.read,
        Read::Watch(Watch {
            since: None,
            send_initial_events: Some(true),
            bookmarks: true,
            timeout_seconds: Some(421)
        })
    );
}

fn read(uri: &str) -> Option<Read> {
    info("GET", uri).collection.map(|collection| collection.read)
}

#[test]
fn the_resource_version_says_how_fresh_a_list_must_be() {
    assert_eq!(read("/api/v1/services"), Some(Read::List(Freshness::Consistent)));
    assert_eq!(read("/api/v1/services?limit=500&resourceVersion=0"), Some(Read::List(Freshness::Any)));
    assert_eq!(read("/api/v1/services?resourceVersion=17"), Some(Read::List(Freshness::NotOlderThan(17))));
    assert_eq!(
        read("/api/v1/services?limit=5&resourceVersion=17&resourceVersionMatch=NotOlderThan"),
        Some(Read::List(Freshness::NotOlderThan(17)))
    );
    // Exact, and pages of an exact list, are the API server's.
    assert_eq!(read("/api/v1/services?limit=5&resourceVersion=17"), None);
    assert_eq!(read("/api/v1/services?resourceVersion=17&resourceVersionMatch=Exact"), None);
    assert_eq!(read("/api/v1/services?limit=5&continue=abc"), None);
    assert_eq!(read("/api/v1/services?resourceVersion=abc"), None);
}

#[test]
fn what_a_view_cannot_answer_is_left_to_the_api_server() {
    assert_eq!(read("/api/v1/events"), None);
    assert_eq!(read("/apis/events.k8s.io/v1/events?watch=1"), None);
    assert_eq!(read("/apis/certificates.k8s.io/v1/certificatesigningrequests?watch=1"), None);
    assert_eq!(read("/api/v1/pods?pretty=true"), None);
    assert_eq!(read("/api/v1/pods?shardSelector=x"), None);
    assert_eq!(read("/api/v1/pods?watch=1&sendInitialEvents=true"), None);
    assert_eq!(read("/api/v1/namespaces/d/pods/p"), None);
    let table = info_accepting(
        "GET",
        "/api/v1/pods?resourceVersion=0",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    );
    assert_eq!(table.collection, None);
}

#[test]
fn custom_resources_are_read_as_json() {
    let custom = info("GET", "/apis/example.com/v1/widgets?resourceVersion=0").collection.unwrap();
    assert_eq!(custom.encodings, [Encoding::Json]);
    let builtin =
        info("GET", "/apis/discovery.k8s.io/v1/endpointslices?resourceVersion=0").collection.unwrap();
    assert_eq!(builtin.encodings, [Encoding::Protobuf, Encoding::Json]);
}

#[test]
fn an_escaped_name_that_would_be_another_path_is_for_the_api_server() {
    for path in ["/api/v1/namespaces/a%3Fwatch=1/pods", "/api/v1/namespaces/../pods", "/apis/a%23b/v1/pods"] {
        assert_eq!(info("GET", &format!("{path}?resourceVersion=0")).collection, None, "{path}");
    }
}

#[test]
fn impersonation_never_reads_a_view() {
    let request = http::Request::builder()
        .uri("/api/v1/secrets?resourceVersion=0")
        .header("Impersonate-User", "admin")
        .body(())
        .unwrap();
    let info = RequestInfo::of(&request.into_parts().0);
    assert!(info.impersonates);
    assert_eq!(info.collection, None);
}

#[test]
fn upgrades_need_both_headers() {
    let info = |connection: &str| {
        let request = http::Request::builder()
            .method("POST")
            .uri("/api/v1/namespaces/d/pods/p/exec?command=sh")
            .header("Connection", connection)
            .header("Upgrade", "SPDY/3.1")
            .body(())
            .unwrap();
        RequestInfo::of(&request.into_parts().0)
    };
    assert!(info("keep-alive, Upgrade").upgrade);
    assert!(!info("keep-alive").upgrade);
    assert!(info("keep-alive").is_long_running());
}

#[test]
fn dry_run_is_seen() {
    assert!(info("POST", "/api/v1/namespaces/d/pods?dryRun=All").is_dry_run());
    assert!(!info("POST", "/api/v1/namespaces/d/pods").is_dry_run());
}
