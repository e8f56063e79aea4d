//! What is to be done with a request, as a value: a pure function of its head, of whether kubelet asks, and of what is
//! known meanwhile. [`pipeline`](super::pipeline) carries a plan out, and when one does not lead to an answer it knows
//! more and asks for the next. Facts are only added, so a request has few plans:
//!
//! ```text
//! Upgrade
//! View ──── none, or it cannot be used ───▶ Forward ──── nobody answers ───▶ Local
//! (a watch; a list that need not be exact)            └── there is no link ──▲
//! ```

use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method};
use std::borrow::Cow;

use crate::filter::{Filter, Filters};
use crate::limits;
use crate::offline::Row;
use crate::offline::journal::ObjectKey;
use crate::request::RequestInfo;
use crate::request::accept::Accept;
use crate::request::classify::{Collection, Freshness, Read, Verb};
use crate::wire::Encoding;

/// A request's head, and what it is understood to be.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The head.
    pub(crate) parts: Parts,
    /// What it says.
    pub(crate) info: RequestInfo,
    /// What it is without the API server.
    pub(crate) row: Row,
}

/// What is known beyond the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// The API server can be reached.
    pub(crate) online: bool,
    /// There is no view of what is asked for, or it cannot be used.
    pub(crate) no_view: bool,
    /// The API server was asked, and nobody answered.
    pub(crate) unanswered: bool,
}

/// One way to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan<'a> {
    /// Bytes both ways, on a connection to the API server that is the request's own.
    Upgrade,
    /// The view of this collection answers.
    View(&'a Collection),
    /// The API server answers.
    Forward(Forward),
    /// What is known here answers.
    Local(Option<Change>),
}

/// How the API server is asked, and what is done with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// What is changed of the answer.
    pub(crate) change: Option<Change>,
    /// The object, of whose older patches none must be replayed meanwhile.
    pub(crate) claim: Option<ObjectKey>,
    /// Whether it may be asked twice.
    pub(crate) twice: bool,
    /// What is kept of the answer.
    pub(crate) observe: Observe,
}

/// What kubelet is told differently of an answer, which it is asked for in JSON, then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The change.
    pub(crate) filter: Filter,
    /// Where the objects are.
    pub(crate) of: Shape,
}

/// What an answer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One object.
    Object,
    /// A list of them.
    List,
    /// Watch events.
    Watch,
}

/// Whether an answer is kept for the time without a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observe {
    /// Not at all.
    Nothing,
    /// If no view knows it that is followed when it comes.
    UnlessFollowed,
    /// In any case.
    Always,
}

/// The way to go with these facts.
pub(crate) fn plan<'a>(asked: &'a Asked, is_kubelet: bool, filters: &Filters, facts: Facts) -> Plan<'a> {
    if asked.info.upgrade {
        return Plan::Upgrade;
    }
    let is_view = |collection: &&Collection| !facts.no_view && is_for_views(collection, facts.online);
    if let Some(collection) = asked.info.collection.as_ref().filter(is_view) {
        return Plan::View(collection);
    }
    let change = change(asked, is_kubelet, filters);
    if !facts.online || facts.unanswered {
        return Plan::Local(change);
    }
    Plan::Forward(Forward {
        change,
        claim: if asked.row == Row::PatchStatus { object(&asked.info) } else { None },
        twice: matches!(asked.parts.method, Method::GET | Method::HEAD),
        observe: match asked.row {
            Row::Object | Row::List => Observe::UnlessFollowed,
            Row::Lease | Row::OthersLease | Row::OfflineLease | Row::Token | Row::Discovery => {
                Observe::Always
            }
            Row::RegisterNode
            | Row::PatchStatus
            | Row::Unchanged
            | Row::Event
            | Row::EventAgain
            | Row::None => Observe::Nothing,
        },
    })
}

/// Whether a view may be what is asked for. An exact list is the API server's; without a link a list is what is known
/// of it last, in whichever place.
fn is_for_views(collection: &Collection, online: bool) -> bool {
    let selectors = collection.label_selector.len() + collection.field_selector.len();
    let needs_view = match &collection.read {
        Read::List(freshness) => *freshness != Freshness::Consistent && online,
        Read::Watch(_) => true,
    };
    needs_view && selectors <= limits::SELECTOR
}

/// What is changed for kubelet of what no view answers; nothing when it would not take JSON.
fn change(asked: &Asked, is_kubelet: bool, filters: &Filters) -> Option<Change> {
    let target = asked.info.resource()?;
    let of = match target.verb {
        Verb::Get => Shape::Object,
        Verb::List => Shape::List,
        Verb::Watch => Shape::Watch,
        _ => return None,
    };
    let may_be = is_kubelet
        && asked.parts.method == Method::GET
        && target.subresource.is_none()
        && !asked.info.impersonates
        && asked.info.accept.view_encodings().contains(&Encoding::Json);
    let (namespace, name) = (target.namespace.as_deref(), target.name.as_deref());
    let filter = if may_be { filters.for_forwarded(&target.resource, namespace, name) } else { None };
    filter.map(|filter| Change { filter, of })
}

fn object(info: &RequestInfo) -> Option<ObjectKey> {
    let target = info.resource()?;
    Some(ObjectKey {
        plural: target.resource.plural.clone(),
        namespace: target.namespace.clone(),
        name: target.name.clone().unwrap_or_default(),
    })
}

impl Asked {
    /// The request as the API server is asked. What the hub is to change it has to read: it asks for JSON, which
    /// crosses the uplink compressed all the same.
    pub(crate) fn for_change(&self, change: Option<&Change>) -> Cow<'_, Self> {
        if change.is_none() {
            return Cow::Borrowed(self);
        }
        let mut asked = self.clone();
        asked.parts.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        asked.parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        asked.info.accept = Accept::from_headers(&asked.parts.headers);
        Cow::Owned(asked)
    }
}

#[cfg(test)]
mod tests {
    use yurt_node::config::WayIn;

    use super::*;
    use crate::offline::row::row;

    const ONLINE: Facts = Facts { online: true, no_view: false, unanswered: false };
    const NO_VIEW: Facts = Facts { no_view: true, ..ONLINE };
    const UNANSWERED: Facts = Facts { unanswered: true, ..NO_VIEW };
    const OFFLINE: Facts = Facts { online: false, no_view: false, unanswered: false };

    const PODS: &str = "/api/v1/namespaces/shop/pods";
    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge";

    fn asked(method: &str, uri: &str, is_kubelet: bool, headers: &[(&str, &str)]) -> Asked {
        let mut request = http::Request::builder().method(method).uri(uri);
        if headers.iter().all(|(name, _)| *name != "accept") {
            request = request.header("accept", "application/vnd.kubernetes.protobuf,application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let info = RequestInfo::of(&parts);
        let row = row(&info, &parts.method, is_kubelet, "edge");
        Asked { parts, info, row }
    }

    /// A plan in a few words.
    fn told(asked: &Asked, is_kubelet: bool, facts: Facts) -> String {
        let changed = |change: &Option<Change>| match change {
            Some(change) => format!(" changed {:?}", change.of),
            None => String::new(),
        };
        match plan(asked, is_kubelet, &Filters::new("v1.36.3", "CA".into(), WayIn::Environment), facts) {
            Plan::Upgrade => "upgrade".into(),
            Plan::View(_) => "view".into(),
            Plan::Local(change) => format!("local{}", changed(&change)),
            Plan::Forward(Forward { change, claim, twice, observe }) => {
                let claim = claim.map(|object| format!(" claim {}", object.status_path()));
                format!(
                    "forward{}{}{}{}",
                    changed(&change),
                    claim.unwrap_or_default(),
                    if twice { " twice" } else { "" },
                    match observe {
                        Observe::Nothing => "",
                        Observe::UnlessFollowed => " observe unless followed",
                        Observe::Always => " observe",
                    }
                )
            }
        }
    }

    #[test]
    fn what_kubelet_asks_for() {
        let any = |path: &str| format!("{path}?resourceVersion=0");
        let long = format!("{PODS}?resourceVersion=0&labelSelector=app%3D{}", "x".repeat(limits::SELECTOR));
        let table: &[(&str, &str, Facts, &str)] = &[
            // A view, then what there is without one.
            ("GET", &any(PODS), ONLINE, "view"),
            ("GET", &any(PODS), NO_VIEW, "forward twice observe unless followed"),
            ("GET", &any(PODS), UNANSWERED, "local"),
            ("GET", &any(PODS), OFFLINE, "local"),
            ("GET", &long, ONLINE, "forward twice observe unless followed"),
            ("GET", &format!("{PODS}?resourceVersion=7"), ONLINE, "view"),
            // An exact list.
            ("GET", PODS, ONLINE, "forward twice observe unless followed"),
            ("GET", PODS, OFFLINE, "local"),
            // A watch is a view's with a link and without.
            ("GET", &format!("{PODS}?watch=1"), ONLINE, "view"),
            ("GET", &format!("{PODS}?watch=1"), OFFLINE, "view"),
            ("GET", &format!("{PODS}?watch=1"), NO_VIEW, "forward twice"),
            ("GET", &format!("{PODS}?watch=1"), Facts { no_view: true, ..OFFLINE }, "local"),
            // One object, changed where kubelet is told something else.
            ("GET", "/api/v1/namespaces/shop/pods/web-0", ONLINE, "forward twice observe unless followed"),
            ("GET", "/api/v1/namespaces/shop/pods/web-0/log", ONLINE, "forward twice"),
            (
                "GET",
                "/api/v1/namespaces/default/services/kubernetes",
                ONLINE,
                "forward changed Object twice observe unless followed",
            ),
            ("GET", "/api/v1/namespaces/default/services/kubernetes", OFFLINE, "local changed Object"),
            ("GET", "/api/v1/namespaces/default/services/kubernetes", UNANSWERED, "local changed Object"),
            ("HEAD", "/api/v1/namespaces/default/services/kubernetes", ONLINE, "forward twice"),
            ("GET", "/api/v1/services", ONLINE, "forward changed List twice observe unless followed"),
            ("GET", "/api/v1/services?watch=1&pretty=1", ONLINE, "forward changed Watch twice"),
            // Writes are sent once, but for what the connection says; whoever replays makes way.
            (
                "PATCH",
                "/api/v1/namespaces/shop/pods/web-0/status",
                ONLINE,
                "forward claim /api/v1/namespaces/shop/pods/web-0/status",
            ),
            ("PATCH", "/api/v1/namespaces/shop/pods/web-0/status", UNANSWERED, "local"),
            ("PATCH", "/api/v1/nodes/edge/status", ONLINE, "forward claim /api/v1/nodes/edge/status"),
            ("POST", PODS, ONLINE, "forward"),
            ("POST", PODS, OFFLINE, "local"),
            ("DELETE", "/api/v1/namespaces/shop/pods/web-0", ONLINE, "forward"),
            ("PUT", LEASE, ONLINE, "forward observe"),
            ("POST", "/api/v1/namespaces/shop/serviceaccounts/web/token", ONLINE, "forward observe"),
            ("POST", "/api/v1/namespaces/shop/events", ONLINE, "forward"),
            ("POST", "/api/v1/namespaces/shop/events", OFFLINE, "local"),
            ("GET", "/apis", ONLINE, "forward twice observe"),
            ("GET", "/healthz", ONLINE, "forward twice"),
        ];
        for (method, uri, facts, expected) in table {
            assert_eq!(
                told(&asked(method, uri, true, &[]), true, *facts),
                *expected,
                "{method} {uri} {facts:?}"
            );
        }
    }

    #[test]
    fn nobody_else_is_told_anything_differently_or_waits_for_a_replay() {
        for (method, uri, expected) in [
            (
                "GET",
                "/api/v1/namespaces/default/services/kubernetes",
                "forward twice observe unless followed",
            ),
            ("PATCH", "/api/v1/namespaces/shop/pods/web-0/status", "forward"),
            ("PUT", LEASE, "forward observe"),
            ("GET", "/api/v1/services?resourceVersion=0", "view"),
        ] {
            assert_eq!(told(&asked(method, uri, false, &[]), false, ONLINE), expected, "{method} {uri}");
        }
    }

    #[test]
    fn what_the_head_says_decides() {
        let service = "/api/v1/namespaces/default/services/kubernetes";
        let list = "/api/v1/services?resourceVersion=0";
        for (uri, headers, expected) in [
            (
                service,
                &[("accept", "application/vnd.kubernetes.protobuf")][..],
                "forward twice observe unless followed",
            ),
            (service, &[("impersonate-user", "alice")], "forward twice"),
            (list, &[("impersonate-user", "alice")], "forward twice"),
            (list, &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], "upgrade"),
            (
                list,
                &[("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")],
                "forward twice observe unless followed",
            ),
        ] {
            assert_eq!(told(&asked("GET", uri, true, headers), true, ONLINE), expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn whatever_is_learnt_on_the_way_the_last_plan_is_an_answer_from_here() {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            for uri in [PODS, &format!("{PODS}?watch=1"), "/api/v1/nodes/edge/status", LEASE, "/version"] {
                for is_kubelet in [false, true] {
                    let asked = asked(method, uri, is_kubelet, &[]);
                    for online in [false, true] {
                        let facts = Facts { online, ..UNANSWERED };
                        let last = told(&asked, is_kubelet, facts);
                        assert!(last.starts_with("local"), "{method} {uri}: {last}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_changed_is_asked_for_in_json_and_the_rest_as_it_was() {
        let service = asked("GET", "/api/v1/namespaces/default/services/kubernetes", true, &[]);
        let change = change(&service, true, &Filters::new("v1.36.3", "CA".into(), WayIn::Environment));
        let changed = service.for_change(change.as_ref());
        assert_eq!(changed.parts.headers[ACCEPT], "application/json");
        assert_eq!(changed.parts.headers[ACCEPT_ENCODING], "gzip");
        assert_eq!(changed.info.accept.view_encodings(), [Encoding::Json]);
        assert_eq!(changed.info.target, service.info.target);
        assert!(matches!(service.for_change(None), Cow::Borrowed(_)));
    }
}
