//! What EndpointSlices show of the node's own pods while their status here is newer than the API server's: the
//! addresses and the readiness that the endpoint-slice controller will write, once it hears of them.
//!
//! [`Book`] is what is known of the pods, and decides endpoint by endpoint. Views take it as local versions of their
//! slices (`table`), like those of pods: so lists, watches and GETs show the same, in the order of the view's log, and a
//! watcher that comes back after the overlay has gone is told so.
//!
//! The rules are the controller's own: `podToEndpoint` and `ShouldPodBeInEndpoints` of `k8s.io/endpointslice`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::Value;

use crate::wire::endpoint_slice::{self, Edit, Endpoint, Slice, Target};
use crate::wire::{Encoding, WireError};

/// One pod of the node, as it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodNow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    addresses: Vec<IpAddr>,
    ready: bool,
    /// It has come to its end, and is no endpoint.
    ended: bool,
}

impl PodNow {
    /// What a pod's status says; the object needs nothing but `metadata` and `status`.
    pub(crate) fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let addresses: Vec<IpAddr> = match status["podIPs"].as_array() {
            Some(addresses) if !addresses.is_empty() => {
                addresses.iter().filter_map(|address| address["ip"].as_str()?.parse().ok()).collect()
            }
            _ => status["podIP"].as_str().and_then(|address| address.parse().ok()).into_iter().collect(),
        };
        let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
            addresses,
            ready: status["conditions"].as_array().is_some_and(|all| all.iter().any(is_ready)),
            ended: matches!(status["phase"].as_str(), Some("Failed" | "Succeeded")),
        }
    }
}

/// The pods whose status here is newer than the API server's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Book {
    /// By uid.
    pods: HashMap<String, PodNow>,
    /// Services, by namespace and name, that publish the addresses of pods that are not ready.
    publishing: HashSet<(String, String)>,
}

impl Book {
    pub(crate) fn new(pods: HashMap<String, PodNow>, publishing: HashSet<(String, String)>) -> Self {
        Self { pods, publishing }
    }

    /// Whether every slice is as the API server sent it.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// A stored EndpointSlice as it is here; `None` when it is as the API server sent it, or cannot be read.
    pub(crate) fn edited(&self, encoding: Encoding, stored: &[u8]) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        self.edit(encoding, stored).unwrap_or_else(|error| {
            tracing::warn!(%error, "an EndpointSlice is shown as the API server sent it");
            None
        })
    }

    fn edit(&self, encoding: Encoding, stored: &[u8]) -> Result<Option<Bytes>, WireError> {
        endpoint_slice::edit(encoding, stored, |slice, endpoint| self.decide(slice, endpoint))
    }

    fn decide(&self, slice: &Slice<'_>, endpoint: &Endpoint<'_>) -> Edit {
        let Some(pod) = self.pod(slice, &endpoint.target) else { return Edit::Keep };
        let of_family = |address: &&IpAddr| match &*slice.address_type {
            "IPv4" => address.is_ipv4(),
            "IPv6" => address.is_ipv6(),
            _ => false,
        };
        if !matches!(&*slice.address_type, "IPv4" | "IPv6") {
            return Edit::Keep;
        }
        let addresses: Vec<String> =
            pod.addresses.iter().filter(of_family).map(ToString::to_string).collect();
        if pod.ended || addresses.is_empty() {
            return Edit::Remove;
        }
        // Deletion is the API server's to say; nothing that happens here changes it.
        let terminating = endpoint.conditions.terminating == Some(true);
        let serving = pod.ready;
        let ready = self.publishes(slice, endpoint) || serving && !terminating;
        Edit::Show { addresses, ready, serving }
    }

    /// The pod by its uid, or by its name where a slice that somebody else manages has no uid.
    fn pod(&self, slice: &Slice<'_>, target: &Target<'_>) -> Option<&PodNow> {
        if target.kind != "Pod" {
            return None;
        }
        if !target.uid.is_empty() {
            return self.pods.get(&*target.uid);
        }
        let namespace = if target.namespace.is_empty() { &slice.namespace } else { &target.namespace };
        self.pods.values().find(|pod| pod.namespace == *namespace && pod.name == target.name)
    }

    /// Whether the endpoint's Service wants it ready whatever its pod says. Where no view has the Service, what the
    /// controller has written tells, if the pod was not ready then.
    fn publishes(&self, slice: &Slice<'_>, endpoint: &Endpoint<'_>) -> bool {
        let before = endpoint.conditions;
        let in_spite = before.serving == Some(false) || before.terminating == Some(true);
        self.publishing.contains(&(slice.namespace.to_string(), slice.service.to_string()))
            || before.ready == Some(true) && in_spite
    }
}

/// The book that everybody who writes views looks into. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overlay {
    book: Arc<Mutex<Arc<Book>>>,
}

impl Overlay {
    /// The book as it is now.
    pub(crate) fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it. Whoever writes a slice from now on shows what it says.
    pub(crate) fn set(&self, book: Book) {
        *self.book.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, status: &Value) -> PodNow {
        PodNow::of(&json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": uid}, "status": status}))
    }

    fn running(addresses: &[&str], ready: &str) -> Value {
        let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"phase": "Running", "podIPs": addresses, "conditions": [{"type": "Ready", "status": ready}]})
    }

    fn book(status: &Value) -> Book {
        Book::new(HashMap::from([("u-1".to_owned(), pod("u-1", status))]), HashSet::new())
    }

    fn slice(address_type: &'static str) -> Slice<'static> {
        Slice { namespace: "shop".into(), service: "web".into(), address_type: address_type.into() }
    }

    /// The endpoint of a pod as it was when the link went: ready.
    fn endpoint(uid: &'static str) -> Endpoint<'static> {
        let conditions =
            endpoint_slice::Conditions { ready: Some(true), serving: Some(true), terminating: Some(false) };
        let target =
            Target { kind: "Pod".into(), namespace: "shop".into(), name: "web-0".into(), uid: uid.into() };
        Endpoint { target, addresses: vec!["10.0.0.1".into()], conditions }
    }

    fn show(address: &str, ready: bool, serving: bool) -> Edit {
        Edit::Show { addresses: vec![address.to_owned()], ready, serving }
    }

    #[test]
    fn a_pod_shows_its_own_address_of_the_slices_family() {
        let book = book(&running(&["10.0.0.9", "fd00::9"], "True"));
        assert_eq!(book.decide(&slice("IPv4"), &endpoint("u-1")), show("10.0.0.9", true, true));
        assert_eq!(book.decide(&slice("IPv6"), &endpoint("u-1")), show("fd00::9", true, true));
        assert_eq!(book.decide(&slice("FQDN"), &endpoint("u-1")), Edit::Keep);
    }

    #[test]
    fn pods_of_other_nodes_and_what_is_no_pod_are_left_alone() {
        let book = book(&running(&["10.0.0.9"], "True"));
        assert_eq!(book.decide(&slice("IPv4"), &endpoint("u-2")), Edit::Keep);
        let mut other = endpoint("u-1");
        other.target.kind = "Node".into();
        assert_eq!(book.decide(&slice("IPv4"), &other), Edit::Keep);
        // Made anew under the same name: its uid tells.
        let mut nameless = endpoint("");
        assert_eq!(book.decide(&slice("IPv4"), &nameless), show("10.0.0.9", true, true));
        nameless.target.name = "web-1".into();
        assert_eq!(book.decide(&slice("IPv4"), &nameless), Edit::Keep);
    }

    #[test]
    fn readiness_is_the_pods_and_the_services_word_counts_more() {
        let mut book = book(&running(&["10.0.0.9"], "False"));
        assert_eq!(book.decide(&slice("IPv4"), &endpoint("u-1")), show("10.0.0.9", false, false));
        // The controller has written that it is ready although it does not serve: the Service wants it so.
        let mut published = endpoint("u-1");
        published.conditions.serving = Some(false);
        assert_eq!(book.decide(&slice("IPv4"), &published), show("10.0.0.9", true, false));
        book.publishing.insert(("shop".to_owned(), "web".to_owned()));
        assert_eq!(book.decide(&slice("IPv4"), &endpoint("u-1")), show("10.0.0.9", true, false));
    }

    #[test]
    fn a_pod_that_is_to_go_serves_and_is_not_ready() {
        let book = book(&running(&["10.0.0.9"], "True"));
        let mut terminating = endpoint("u-1");
        terminating.conditions =
            endpoint_slice::Conditions { ready: Some(false), serving: Some(true), terminating: Some(true) };
        assert_eq!(book.decide(&slice("IPv4"), &terminating), show("10.0.0.9", false, true));
    }

    #[test]
    fn a_pod_without_an_address_or_at_its_end_is_no_endpoint() {
        for status in [
            running(&[], "False"),
            running(&["fd00::9"], "True"),
            json!({"phase": "Failed", "podIP": "10.0.0.9"}),
            json!({"phase": "Succeeded", "podIP": "10.0.0.9"}),
        ] {
            assert_eq!(book(&status).decide(&slice("IPv4"), &endpoint("u-1")), Edit::Remove, "{status}");
        }
        let old = json!({"phase": "Running", "podIP": "10.0.0.9"});
        assert_eq!(book(&old).decide(&slice("IPv4"), &endpoint("u-1")), show("10.0.0.9", false, false));
    }
}
