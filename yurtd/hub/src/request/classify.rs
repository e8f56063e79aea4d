//! What a request is: pure, from its head alone.
//!
//! The parsing of paths follows the API server's own request-info rules, so that the hub never believes a request
//! to be about something else than the API server does. Everything that is not certainly a plain list or watch of a
//! whole collection is left to the API server.

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method};

use super::accept::Accept;
use crate::wire::query::{Query, decode};
use crate::wire::{Encoding, Resource};

/// A request, understood.
#[derive(Debug, Clone)]
pub(crate) struct RequestInfo {
    /// What it is about.
    pub(crate) target: Target,
    /// Its decoded query.
    pub(crate) query: Query,
    /// What it accepts.
    pub(crate) accept: Accept,
    /// SPDY or WebSocket: a connection of its own.
    pub(crate) upgrade: bool,
    /// Asks in somebody else's name: only the API server can say whether it may, and as whom.
    pub(crate) impersonates: bool,
    /// A list or watch that a view could answer.
    pub(crate) collection: Option<Collection>,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A resource of the API.
    Resource(ResourceTarget),
    /// Discovery, health, OpenAPI and so on.
    NonResource {
        /// The path.
        path: String,
    },
}

/// The Kubernetes verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET of one object.
    Get,
    /// GET of a collection.
    List,
    /// GET of a collection with `watch`.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one object.
    Delete,
    /// DELETE of a collection.
    DeleteCollection,
    /// The deprecated `/proxy/` and `/watch/` paths, and methods that Kubernetes has no verb for.
    Other,
}

/// A resource request's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceTarget {
    /// The verb.
    pub(crate) verb: Verb,
    /// Group, version and plural.
    pub(crate) resource: Resource,
    /// Namespace, if there is one in the path.
    pub(crate) namespace: Option<String>,
    /// Name, if there is one in the path.
    pub(crate) name: Option<String>,
    /// Subresource (`status`, `log`, `token`), if there is one.
    pub(crate) subresource: Option<String>,
}

/// A list or watch of a whole collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collection {
    /// Group, version and plural.
    pub(crate) resource: Resource,
    /// The namespace; `None` for all of them and for cluster-scoped resources.
    pub(crate) namespace: Option<String>,
    /// As the client wrote it.
    pub(crate) label_selector: String,
    /// As the client wrote it.
    pub(crate) field_selector: String,
    /// Acceptable encodings, best first; never empty.
    pub(crate) encodings: Vec<Encoding>,
    /// List or watch.
    pub(crate) read: Read,
}

/// What is read of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// A list.
    List(Freshness),
    /// A watch.
    Watch(Watch),
}

/// How fresh a list must be (`resourceVersion` and `resourceVersionMatch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// No resourceVersion: the most recent.
    Consistent,
    /// `0`: any.
    Any,
    /// At least as new as this.
    NotOlderThan(u64),
}

/// A watch's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    /// `None` for no resourceVersion or `0`: the current state first.
    pub(crate) since: Option<u64>,
    /// `sendInitialEvents`, if it is said.
    pub(crate) send_initial_events: Option<bool>,
    /// `allowWatchBookmarks`.
    pub(crate) bookmarks: bool,
    /// `timeoutSeconds`.
    pub(crate) timeout_seconds: Option<u64>,
}

impl RequestInfo {
    /// Classifies a request's head.
    pub(crate) fn of(parts: &Parts) -> Self {
        Self::accepting(parts, Accept::from_headers(&parts.headers))
    }

    /// The same request where the API server cannot be asked: a caller that would rather have a Table, as kubectl does,
    /// and would take JSON, gets JSON (kubectl prints that, too).
    pub(crate) fn without_api_server(&self, parts: &Parts) -> Self {
        Self::accepting(parts, self.accept.without_api_server())
    }

    fn accepting(parts: &Parts, accept: Accept) -> Self {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let target = target(&parts.method, parts.uri.path(), &query);
        let impersonates = parts.headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
        let collection = match &target {
            Target::Resource(resource) if !impersonates && parts.method == Method::GET => {
                collection(resource, &query, &accept)
            }
            _ => None,
        };
        let upgrade = wants_upgrade(&parts.headers);
        Self { target, query, accept, upgrade, impersonates, collection }
    }

    /// The resource that the request is about, if it is about one.
    pub(crate) fn resource(&self) -> Option<&ResourceTarget> {
        match &self.target {
            Target::Resource(resource) => Some(resource),
            Target::NonResource { .. } => None,
        }
    }

    /// Whether the request only pretends to write (`dryRun`).
    pub(crate) fn is_dry_run(&self) -> bool {
        self.query.get("dryRun").is_some_and(|value| !value.is_empty())
    }

    /// Whether the answer may take for ever: watches, logs, exec, attach, port-forward, proxy.
    pub(crate) fn is_long_running(&self) -> bool {
        let Some(target) = self.resource() else { return false };
        self.upgrade
            || matches!(target.verb, Verb::Watch | Verb::Other)
            || matches!(
                target.subresource.as_deref(),
                Some("log" | "exec" | "attach" | "portforward" | "proxy")
            )
    }
}

impl ResourceTarget {
    /// Whether this is `group/plural[/subresource]`, whatever the version.
    pub(crate) fn is(&self, group: &str, plural: &str, subresource: Option<&str>) -> bool {
        self.resource.group == group
            && self.resource.plural == plural
            && self.subresource.as_deref() == subresource
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

fn target(method: &Method, path: &str, query: &Query) -> Target {
    resource_target(method, path, query)
        .map_or_else(|| Target::NonResource { path: path.to_owned() }, Target::Resource)
}

fn resource_target(method: &Method, path: &str, query: &Query) -> Option<ResourceTarget> {
    let decoded = decode(path, false);
    let trimmed = decoded.trim_matches('/');
    let mut parts: Vec<&str> = trimmed.split('/').collect();
    if parts.len() < 3 {
        return None;
    }
    let group = match parts.remove(0) {
        "api" => String::new(),
        "apis" if parts.len() >= 3 => parts.remove(0).to_owned(),
        _ => return None,
    };
    let version = parts.remove(0).to_owned();
    let by_path = matches!(parts.first(), Some(&"proxy" | &"watch"));
    if by_path {
        parts.remove(0);
    }
    let mut namespace = None;
    if parts.first() == Some(&"namespaces") && parts.len() > 1 {
        namespace = Some(parts[1].to_owned());
        if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
            parts.drain(..2);
        }
    }
    let plural = (*parts.first()?).to_owned();
    let name = parts.get(1).map(|name| (*name).to_owned());
    let subresource = if by_path { None } else { parts.get(2).map(|name| (*name).to_owned()) };
    let verb = match (method, &name) {
        _ if by_path => Verb::Other,
        (&Method::GET | &Method::HEAD, Some(_)) => Verb::Get,
        (&Method::GET | &Method::HEAD, None) if query.flag("watch") => Verb::Watch,
        (&Method::GET | &Method::HEAD, None) => Verb::List,
        (&Method::POST, _) => Verb::Create,
        (&Method::PUT, _) => Verb::Update,
        (&Method::PATCH, _) => Verb::Patch,
        (&Method::DELETE, Some(_)) => Verb::Delete,
        (&Method::DELETE, None) => Verb::DeleteCollection,
        _ => Verb::Other,
    };
    // `namespaces/x` is about the Namespace x; the API server sets both, views of namespaces have none.
    if plural == "namespaces" && group.is_empty() {
        namespace = None;
    }
    Some(ResourceTarget { verb, resource: Resource { group, version, plural }, namespace, name, subresource })
}

/// Query parameters that a view understands; with any other the API server answers.
const VIEW_PARAMETERS: [&str; 10] = [
    "labelSelector",
    "fieldSelector",
    "watch",
    "allowWatchBookmarks",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "timeout",
    "limit",
];

fn collection(target: &ResourceTarget, query: &Query, accept: &Accept) -> Option<Collection> {
    let watch = match target.verb {
        Verb::List => false,
        Verb::Watch => true,
        _ => return None,
    };
    // Events are written, not read, on a node; a view of them would carry every event of the cluster to it. kubelet
    // watches each of its CSRs once.
    let passing = matches!(target.resource.plural.as_str(), "events" | "certificatesigningrequests");
    // Of these the upstream path is made again. What no API has a name like is the API server's to refuse.
    let Resource { group, version, plural } = &target.resource;
    let plain = (group.is_empty() || is_name(group)) && is_name(version) && is_name(plural);
    if !plain || !target.namespace.as_deref().is_none_or(is_name) {
        return None;
    }
    if passing || query.keys().any(|key| !VIEW_PARAMETERS.contains(&key)) {
        return None;
    }
    let encodings = encodings_for(&target.resource, accept);
    if encodings.is_empty() {
        return None;
    }
    let version = match query.get("resourceVersion").unwrap_or_default() {
        "" => None,
        text => Some(text.parse::<u64>().ok()?),
    };
    let matching = query.get("resourceVersionMatch").unwrap_or_default();
    let read = if watch {
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        match (query.get("sendInitialEvents"), matching) {
            (None, "") | (Some(_), "NotOlderThan") => {}
            // The API server says what is wrong with it.
            _ => return None,
        }
        Read::Watch(Watch {
            since: version.filter(|version| *version != 0),
            send_initial_events,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: query.get("timeoutSeconds").and_then(|value| value.parse().ok()),
        })
    } else {
        let limit = query.get("limit").is_some_and(|limit| !limit.is_empty() && limit != "0");
        Read::List(match (version, matching) {
            // A view always answers in one page, which the API server may do too, when it need not be exact.
            (None, "") => Freshness::Consistent,
            (Some(0), "" | "NotOlderThan") => Freshness::Any,
            (Some(version), "NotOlderThan") => Freshness::NotOlderThan(version),
            (Some(version), "") if !limit => Freshness::NotOlderThan(version),
            _ => return None,
        })
    };
    Some(Collection {
        resource: target.resource.clone(),
        namespace: target.namespace.clone(),
        label_selector: query.get("labelSelector").unwrap_or_default().to_owned(),
        field_selector: query.get("fieldSelector").unwrap_or_default().to_owned(),
        encodings,
        read,
    })
}

/// What can name a group, a version, a resource or a namespace, and means the same in a path.
fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// Custom resources have no protobuf encoding: those who would take JSON get JSON.
fn encodings_for(resource: &Resource, accept: &Accept) -> Vec<Encoding> {
    let mut encodings = accept.view_encodings();
    if !is_builtin(&resource.group) && encodings.contains(&Encoding::Json) {
        encodings.retain(|encoding| *encoding != Encoding::Protobuf);
    }
    encodings
}

/// The groups whose types are compiled into the API server.
fn is_builtin(group: &str) -> bool {
    matches!(
        group,
        "" | "admissionregistration.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
            | "apps"
            | "authentication.k8s.io"
            | "authorization.k8s.io"
            | "autoscaling"
            | "batch"
            | "certificates.k8s.io"
            | "coordination.k8s.io"
            | "discovery.k8s.io"
            | "events.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "internal.apiserver.k8s.io"
            | "networking.k8s.io"
            | "node.k8s.io"
            | "policy"
            | "rbac.authorization.k8s.io"
            | "resource.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
            | "storagemigration.k8s.io"
    )
}

#[cfg(test)]
mod tests;
