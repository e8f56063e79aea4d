//! Which kind of offline answer a request gets: the rows of the table in `offline.rs`. Pure.
//!
//! Lists and watches of whole collections are not here: views answer them, online and offline.

use http::Method;

use crate::request::RequestInfo;
use crate::request::classify::{ResourceTarget, Target, Verb};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// POST of the node's own Node.
    RegisterNode,
    /// GET of one object.
    Object,
    /// PATCH of the status of the node's own Node, or of a pod.
    PatchStatus,
    /// GET, POST or PUT of the node's own Lease.
    Lease,
    /// A write of another Lease: what passes by may have to be known.
    OthersLease,
    /// PUT or PATCH of a Lease whose holder is known to be here, and has asked to be answered.
    OfflineLease,
    /// POST of a TokenRequest.
    Token,
    /// PUT or PATCH of the node's own CSINode, which is answered if it changes nothing.
    Unchanged,
    /// POST of an Event.
    Event,
    /// PATCH of an Event, which happened again.
    EventAgain,
    /// A list that no view answers.
    List,
    /// Discovery, version, OpenAPI.
    Discovery,
    /// Nothing but an honest failure.
    None,
}

/// Finds the row. `is_node` is whether kubelet asks: its rows are for nobody else.
pub(crate) fn row(info: &RequestInfo, method: &Method, is_node: bool, node_name: &str) -> Row {
    if info.upgrade || info.impersonates || info.is_dry_run() {
        return Row::None;
    }
    match &info.target {
        Target::NonResource { path } if *method == Method::GET && is_discovery(path) => Row::Discovery,
        Target::NonResource { .. } => Row::None,
        Target::Resource(target) => match kubelet_row(target, node_name).filter(|_| is_node) {
            Some(row) => row,
            None if is_others_lease(target) => Row::OthersLease,
            None if *method != Method::GET => Row::None,
            None => match (target.verb, &target.subresource) {
                // Long-running ones (log, proxy) are never remembered; of the others status is the one that is read.
                (Verb::Get, None) => Row::Object,
                (Verb::Get, Some(subresource)) if subresource == "status" => Row::Object,
                // A page behind the first is worth nothing alone, and never asked for again.
                (Verb::List, None) if info.query.get("continue").is_some_and(|token| !token.is_empty()) => {
                    Row::None
                }
                (Verb::List, None) if target.resource.plural != "events" => Row::List,
                _ => Row::None,
            },
        },
    }
}

fn kubelet_row(target: &ResourceTarget, node_name: &str) -> Option<Row> {
    let own = target.name.as_deref() == Some(node_name);
    let is = |group, plural, subresource| target.is(group, plural, subresource);
    match target.verb {
        Verb::Create if is("", "nodes", None) => Some(Row::RegisterNode),
        Verb::Patch if own && is("", "nodes", Some("status")) => Some(Row::PatchStatus),
        Verb::Patch if is("", "pods", Some("status")) => Some(Row::PatchStatus),
        Verb::Create if is("", "serviceaccounts", Some("token")) => Some(Row::Token),
        Verb::Create if is_event(target) => Some(Row::Event),
        Verb::Patch if is_event(target) => Some(Row::EventAgain),
        Verb::Update | Verb::Patch if own && is("storage.k8s.io", "csinodes", None) => Some(Row::Unchanged),
        Verb::Get | Verb::Update
            if own && is("coordination.k8s.io", "leases", None) && in_lease_namespace(target) =>
        {
            Some(Row::Lease)
        }
        Verb::Create if is("coordination.k8s.io", "leases", None) && in_lease_namespace(target) => {
            Some(Row::Lease)
        }
        _ => None,
    }
}

fn is_others_lease(target: &ResourceTarget) -> bool {
    target.is("coordination.k8s.io", "leases", None)
        && target.namespace.is_some()
        && matches!(target.verb, Verb::Create | Verb::Update | Verb::Patch)
}

fn is_event(target: &ResourceTarget) -> bool {
    target.is("", "events", None) || target.is("events.k8s.io", "events", None)
}

fn in_lease_namespace(target: &ResourceTarget) -> bool {
    target.namespace.as_deref() == Some("kube-node-lease")
}

/// What every authenticated user may read (ClusterRole `system:discovery`), but for health.
fn is_discovery(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    let below =
        |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    ["/api", "/apis", "/openapi"].into_iter().any(below)
        || matches!(path, "/version" | "/.well-known/openid-configuration" | "/openid/v1/jwks")
}

impl Row {
    /// Whether the hub must have the whole request to answer it without the API server.
    pub(crate) fn needs_body(self) -> bool {
        matches!(
            self,
            Self::PatchStatus
                | Self::Lease
                | Self::OfflineLease
                | Self::Token
                | Self::Unchanged
                | Self::Event
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: &str, uri: &str, is_node: bool) -> Row {
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        let parts = request.into_parts().0;
        row(&RequestInfo::of(&parts), &parts.method, is_node, "edge")
    }

    #[test]
    fn the_rows_of_kubelet() {
        const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let lease = &format!("{LEASES}/edge");
        let table = [
            ("POST", "/api/v1/nodes", Row::RegisterNode),
            ("GET", "/api/v1/nodes/edge", Row::Object),
            ("PATCH", "/api/v1/nodes/edge/status", Row::PatchStatus),
            ("PATCH", "/api/v1/nodes/other/status", Row::None),
            ("PATCH", "/api/v1/nodes/edge", Row::None),
            ("PATCH", "/api/v1/namespaces/d/pods/p/status", Row::PatchStatus),
            ("PATCH", "/api/v1/namespaces/d/pods/p/status?dryRun=All", Row::None),
            ("POST", "/api/v1/namespaces/d/serviceaccounts/s/token", Row::Token),
            ("GET", "/apis/storage.k8s.io/v1/csinodes/edge", Row::Object),
            ("PUT", "/apis/storage.k8s.io/v1/csinodes/edge", Row::Unchanged),
            ("GET", lease, Row::Lease),
            ("PUT", lease, Row::Lease),
            ("POST", LEASES, Row::Lease),
            ("POST", "/api/v1/namespaces/d/pods", Row::None),
            ("DELETE", "/api/v1/namespaces/d/pods/p", Row::None),
            ("POST", "/api/v1/namespaces/d/pods/p/eviction", Row::None),
            ("POST", "/api/v1/namespaces/d/events", Row::Event),
            ("POST", "/apis/events.k8s.io/v1/namespaces/d/events", Row::Event),
            ("PATCH", "/api/v1/namespaces/d/events/e", Row::EventAgain),
            ("DELETE", "/api/v1/namespaces/d/events/e", Row::None),
            ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", Row::None),
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Row::None),
            ("GET", "/api/v1/namespaces/d/persistentvolumeclaims/c", Row::Object),
            ("GET", "/api/v1/namespaces/d/pods/p/log", Row::None),
            ("GET", "/api/v1/namespaces/d/events", Row::None),
            ("GET", "/api/v1/persistentvolumes", Row::List),
            ("GET", "/api/v1/persistentvolumes?limit=500&continue=", Row::List),
            ("GET", "/api/v1/persistentvolumes?limit=500&continue=abc", Row::None),
        ];
        for (method, uri, expected) in table {
            assert_eq!(find(method, uri, true), expected, "{method} {uri}");
        }
    }

    #[test]
    fn nobody_but_kubelet_writes_or_gets_tokens() {
        for (method, uri) in [
            ("POST", "/api/v1/nodes"),
            ("PATCH", "/api/v1/nodes/edge/status"),
            ("PATCH", "/api/v1/namespaces/d/pods/p/status"),
            ("POST", "/api/v1/namespaces/d/serviceaccounts/s/token"),
            ("POST", "/api/v1/namespaces/d/events"),
        ] {
            assert_eq!(find(method, uri, false), Row::None, "{method} {uri}");
        }
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let lease = format!("{leases}/edge");
        for (method, uri, row) in [
            ("PUT", &*lease, Row::OthersLease),
            ("PATCH", &lease, Row::OthersLease),
            ("POST", leases, Row::OthersLease),
            ("GET", &lease, Row::Object),
            ("DELETE", &lease, Row::None),
        ] {
            assert_eq!(find(method, uri, false), row, "{method} {uri}");
        }
        assert_eq!(find("GET", "/api/v1/namespaces/d/configmaps/c", false), Row::Object);
    }

    #[test]
    fn discovery_is_what_everybody_may_read() {
        for path in [
            "/api",
            "/apis",
            "/apis/",
            "/api/v1",
            "/apis/apps/v1",
            "/version",
            "/openapi/v3",
            "/openapi/v2",
            "/openid/v1/jwks",
        ] {
            assert_eq!(find("GET", path, false), Row::Discovery, "{path}");
        }
        for path in ["/healthz", "/livez", "/metrics", "/", "/apisx", "/debug/pprof/heap"] {
            assert_eq!(find("GET", path, true), Row::None, "{path}");
        }
        assert_eq!(find("POST", "/version", true), Row::None);
    }
}
