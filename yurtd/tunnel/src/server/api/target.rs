//! What a request asks for: Kubernetes API paths in, kubelet paths out. Pure.
//!
//! The paths and option names are those of the API server (`PodLogOptions`, `PodExecOptions`,
//! `PodAttachOptions`, `PodPortForwardOptions`), the renames on the way to kubelet those of the API
//! server's pod registry: `stdin` becomes `input`, `stdout` `output`, `stderr` `error`, `ports`
//! `port`, and the container moves from the query into the path.

use std::fmt::Write as _;

use http::Method;

use super::status::ApiError;

/// API group of the endpoint's own resources.
pub(super) const GROUP: &str = "tunnel.openyurt.io";
/// Version of the endpoint's own resources.
pub(super) const VERSION: &str = "v1alpha1";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Whether the endpoint serves at all.
    Health,
    /// Whether the redirect is in place.
    Readiness,
    /// The connected agents; all, or the one of a node.
    Agents(Option<String>),
    /// A walk along the way to a node.
    Diagnosis(String),
    /// A subresource of a pod.
    Pod(PodTarget),
}

/// A subresource of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodTarget {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container, where the caller named one.
    pub container: Option<String>,
    /// Which subresource, with its options in kubelet's words.
    pub action: Action,
}

/// A pod's subresource with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// `log`
    Log(Vec<(&'static str, String)>),
    /// `exec`
    Exec(Vec<(&'static str, String)>),
    /// `attach`
    Attach(Vec<(&'static str, String)>),
    /// `portforward`
    PortForward(Vec<(&'static str, String)>),
}

impl Action {
    /// Name of the subresource, as RBAC rules write it.
    pub(super) fn subresource(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// Whether the connection leaves HTTP for a protocol of its own.
    pub(super) fn is_upgrade(&self) -> bool {
        !matches!(self, Self::Log(_))
    }

    /// Whether the request concerns one container.
    pub(super) fn needs_container(&self) -> bool {
        !matches!(self, Self::PortForward(_))
    }
}

impl Target {
    /// Reads method, path and query.
    ///
    /// # Errors
    ///
    /// [`ApiError`] as the API server would answer.
    pub(super) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Self, ApiError> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments.as_slice() {
            ["healthz" | "livez"] => only(method, &[Method::GET]).map(|()| Self::Health),
            ["readyz"] => only(method, &[Method::GET]).map(|()| Self::Readiness),
            ["apis", group, version, "agents"] if *group == GROUP && *version == VERSION => {
                only(method, &[Method::GET])?;
                Ok(Self::Agents(None))
            }
            ["apis", group, version, "agents", node] if *group == GROUP && *version == VERSION => {
                only(method, &[Method::GET])?;
                Ok(Self::Agents(Some(name(node)?)))
            }
            ["apis", group, version, "agents", node, "diagnosis"]
                if *group == GROUP && *version == VERSION =>
            {
                only(method, &[Method::GET])?;
                Ok(Self::Diagnosis(name(node)?))
            }
            ["api", "v1", "namespaces", namespace, "pods", pod, subresource] => {
                let query = Query::parse(query.unwrap_or_default());
                let action = match *subresource {
                    "log" => {
                        only(method, &[Method::GET])?;
                        Action::Log(log_options(&query)?)
                    }
                    "exec" => {
                        only(method, &[Method::GET, Method::POST])?;
                        let mut options = stream_options(&query);
                        options.extend(query.all("command").map(|word| ("command", word.to_owned())));
                        Action::Exec(options)
                    }
                    "attach" => {
                        only(method, &[Method::GET, Method::POST])?;
                        Action::Attach(stream_options(&query))
                    }
                    "portforward" => {
                        only(method, &[Method::GET, Method::POST])?;
                        Action::PortForward(port_options(&query)?)
                    }
                    _ => return Err(ApiError::NoSuchPath),
                };
                let container = match query.first("container") {
                    None | Some("") => None,
                    Some(container) => Some(self::container(container)?),
                };
                Ok(Self::Pod(PodTarget { namespace: name(namespace)?, pod: name(pod)?, container, action }))
            }
            _ => Err(ApiError::NoSuchPath),
        }
    }
}

impl PodTarget {
    /// Path and query for kubelet. `container` is not used for a port-forward.
    pub(super) fn kubelet_uri(&self, container: &str) -> String {
        let Self { namespace, pod, .. } = self;
        let (mut uri, options) = match &self.action {
            Action::Log(options) => (format!("/containerLogs/{namespace}/{pod}/{container}"), options),
            Action::Exec(options) => (format!("/exec/{namespace}/{pod}/{container}"), options),
            Action::Attach(options) => (format!("/attach/{namespace}/{pod}/{container}"), options),
            Action::PortForward(options) => (format!("/portForward/{namespace}/{pod}"), options),
        };
        if !options.is_empty() {
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(options).finish();
            // Writing into a string cannot fail.
            let _ = write!(uri, "?{query}");
        }
        uri
    }
}

/// Decoded query parameters in the order of the request.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn first<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// A boolean as apimachinery converts it: present means true, unless it says `false` or `0`.
    fn flag(&self, key: &str) -> bool {
        self.first(key).is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    fn integer(&self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.first(key) {
            None | Some("") => Ok(None),
            Some(value) => value
                .parse()
                .map(Some)
                .map_err(|_| ApiError::BadRequest(format!("{key}: {value:?} is not a whole number"))),
        }
    }
}

fn only(method: &Method, allowed: &[Method]) -> Result<(), ApiError> {
    if allowed.contains(method) { Ok(()) } else { Err(ApiError::MethodNotAllowed) }
}

/// A DNS-1123 subdomain, the form of namespace, pod and node names. Whatever else is in the path
/// cannot name an object, and never reaches kubelet's path.
fn name(segment: &str) -> Result<String, ApiError> {
    let plain = segment.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let edges = ends(segment.bytes().next()) && ends(segment.bytes().last());
    if plain && edges && segment.len() <= 253 { Ok(segment.to_owned()) } else { Err(ApiError::NoSuchPath) }
}

/// A DNS-1123 label, the form of container names.
fn container(value: &str) -> Result<String, ApiError> {
    match name(value) {
        Ok(value) if value.len() <= 63 && !value.contains('.') => Ok(value),
        _ => Err(ApiError::BadRequest(format!("{value:?} is not a container name"))),
    }
}

fn log_options(query: &Query) -> Result<Vec<(&'static str, String)>, ApiError> {
    let mut options = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            options.push((flag, "true".to_owned()));
        }
    }
    for number in ["sinceSeconds", "tailLines", "limitBytes"] {
        if let Some(value) = query.integer(number)? {
            options.push((number, value.to_string()));
        }
    }
    if let Some(value) = query.first("sinceTime").filter(|value| !value.is_empty()) {
        let time: jiff::Timestamp = value
            .parse()
            .map_err(|_| ApiError::BadRequest(format!("sinceTime: {value:?} is not an RFC 3339 time")))?;
        options.push(("sinceTime", time.to_string()));
    }
    match query.first("stream").unwrap_or_default() {
        // Absent and `All` are the same; kubelets that do not know the option must not see it.
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => options.push(("stream", stream.to_owned())),
        other => {
            return Err(ApiError::BadRequest(format!("stream: {other:?} is none of All, Stdout, Stderr")));
        }
    }
    Ok(options)
}

fn stream_options(query: &Query) -> Vec<(&'static str, String)> {
    [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
        .into_iter()
        .filter(|(ours, _)| query.flag(ours))
        .map(|(_, kubelets)| (kubelets, "1".to_owned()))
        .collect()
}

fn port_options(query: &Query) -> Result<Vec<(&'static str, String)>, ApiError> {
    let mut ports = Vec::new();
    for port in query.all("ports").flat_map(|ports| ports.split(',')).filter(|port| !port.is_empty()) {
        match port.parse::<u16>() {
            Ok(number) if number > 0 => ports.push(number.to_string()),
            _ => return Err(ApiError::BadRequest(format!("ports: {port:?} is not a port"))),
        }
    }
    Ok(if ports.is_empty() { Vec::new() } else { vec![("port", ports.join(","))] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(method: Method, uri: &str) -> PodTarget {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        match Target::parse(&method, path, Some(query)).unwrap() {
            Target::Pod(target) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_log_request_keeps_every_option() {
        let target = pod(
            Method::GET,
            "/api/v1/namespaces/shop/pods/till-0/log?container=app&follow=true&previous=false&timestamps=1\
             &sinceSeconds=5&tailLines=10&limitBytes=1024&pretty=true&insecureSkipTLSVerifyBackend=true",
        );
        assert_eq!(target.container.as_deref(), Some("app"));
        assert_eq!(
            target.kubelet_uri("app"),
            "/containerLogs/shop/till-0/app?follow=true&timestamps=true&sinceSeconds=5&tailLines=10&limitBytes=1024"
        );
    }

    #[test]
    fn a_time_with_an_offset_becomes_utc() {
        let target =
            pod(Method::GET, "/api/v1/namespaces/a/pods/b/log?sinceTime=2026-11-23T10%3A00%3A00%2B02%3A00");
        assert_eq!(target.kubelet_uri("c"), "/containerLogs/a/b/c?sinceTime=2026-11-23T08%3A00%3A00Z");
    }

    #[test]
    fn exec_renames_the_streams_and_keeps_the_words_of_the_command_in_order() {
        let target = pod(
            Method::POST,
            "/api/v1/namespaces/a/pods/b/exec?command=sh&command=-c&command=echo+%26+x%3Dy&stdin=true&stdout=1\
             &stderr=False&tty=&container=c",
        );
        assert_eq!(
            target.kubelet_uri("c"),
            "/exec/a/b/c?input=1&output=1&tty=1&command=sh&command=-c&command=echo+%26+x%3Dy"
        );
    }

    #[test]
    fn a_port_forward_has_no_container_and_one_list_of_ports() {
        let target = pod(Method::GET, "/api/v1/namespaces/a/pods/b/portforward?ports=80&ports=443,8080");
        assert_eq!(target.kubelet_uri(""), "/portForward/a/b?port=80%2C443%2C8080");
        assert_eq!(
            pod(Method::POST, "/api/v1/namespaces/a/pods/b/portforward").kubelet_uri(""),
            "/portForward/a/b"
        );
    }

    #[test]
    fn what_cannot_name_an_object_is_not_found() {
        for path in [
            "/api/v1/namespaces/a/pods/..%2f..%2frun/log",
            "/api/v1/namespaces/a/pods/../log",
            "/api/v1/namespaces//pods/b/log",
            "/api/v1/namespaces/a/pods/-b/log",
            "/api/v1/namespaces/a/pods/b/eviction",
            "/api/v1/namespaces/a/pods/b",
            "/apis/tunnel.openyurt.io/v1/agents",
            "/metrics",
            "/",
        ] {
            assert!(matches!(Target::parse(&Method::GET, path, None), Err(ApiError::NoSuchPath)), "{path}");
        }
    }

    #[test]
    fn a_container_cannot_leave_its_path_segment() {
        let outcome =
            Target::parse(&Method::GET, "/api/v1/namespaces/a/pods/b/exec", Some("container=c%2F..%2Frun"));
        assert!(matches!(outcome, Err(ApiError::BadRequest(_))));
    }

    #[test]
    fn options_that_are_not_numbers_ports_or_times_are_refused() {
        for query in ["tailLines=x", "sinceTime=yesterday", "limitBytes=1e3", "stream=both"] {
            let outcome = Target::parse(&Method::GET, "/api/v1/namespaces/a/pods/b/log", Some(query));
            assert!(matches!(outcome, Err(ApiError::BadRequest(_))), "{query}");
        }
        for query in ["ports=0", "ports=65536", "ports=http"] {
            let outcome = Target::parse(&Method::GET, "/api/v1/namespaces/a/pods/b/portforward", Some(query));
            assert!(matches!(outcome, Err(ApiError::BadRequest(_))), "{query}");
        }
    }

    #[test]
    fn methods_are_those_of_the_api_server() {
        let log = "/api/v1/namespaces/a/pods/b/log";
        assert!(matches!(Target::parse(&Method::POST, log, None), Err(ApiError::MethodNotAllowed)));
        let exec = "/api/v1/namespaces/a/pods/b/exec";
        assert!(matches!(Target::parse(&Method::PUT, exec, None), Err(ApiError::MethodNotAllowed)));
    }

    #[test]
    fn agents_are_listed_or_asked_for_one_by_one() {
        let base = "/apis/tunnel.openyurt.io/v1alpha1/agents";
        assert_eq!(Target::parse(&Method::GET, base, None).unwrap(), Target::Agents(None));
        assert_eq!(
            Target::parse(&Method::GET, &format!("{base}/edge-1"), None).unwrap(),
            Target::Agents(Some("edge-1".into()))
        );
    }
}
