//! An API server in this process: objects in memory, list, watch, get, the patches that the plugin uses, and just
//! enough of the controllers and of our keeper that a conversion takes its course.

mod controllers;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) type Key = (String, String, Option<String>, String);

/// How the world around the API server behaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// No node has the image.
    pub(crate) no_image: bool,
    /// These nodes cannot pull the image at the moment.
    pub(crate) unpulled: BTreeSet<String>,
    /// Keepers of these nodes swap a new release back.
    pub(crate) swapping: BTreeSet<String>,
    /// Keepers of these nodes fail.
    pub(crate) failing: BTreeSet<String>,
    /// Keepers of these nodes do nothing.
    pub(crate) asleep: BTreeSet<String>,
    /// `verb resource` pairs that are forbidden.
    pub(crate) denied: BTreeSet<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, Value>,
    pub(crate) behaviour: Behaviour,
    version: u64,
    log: Vec<(u64, &'static str, Key, Value)>,
}

impl State {
    pub(crate) fn put(&mut self, key: Key, mut object: Value) {
        let before = self.objects.get(&key);
        if before.is_some_and(|before| same(before, &object)) {
            return;
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if before.is_none() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        self.log.push((self.version, kind, key.clone(), object.clone()));
        self.objects.insert(key, object);
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Value> {
        let object = self.objects.remove(key)?;
        self.version += 1;
        self.log.push((self.version, "DELETED", key.clone(), object.clone()));
        Some(object)
    }
}

fn same(a: &Value, b: &Value) -> bool {
    let strip = |value: &Value| {
        let mut value = value.clone();
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            metadata.remove("uid");
        }
        value
    };
    strip(a) == strip(b)
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    pub(crate) address: SocketAddr,
}

impl Fake {
    /// A server with these nodes and the Kubernetes version `1.MINOR`.
    pub(crate) async fn start(nodes: &[Value]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            state: Arc::default(),
            changed: watch::channel(()).0,
            address: listener.local_addr().unwrap(),
        };
        for node in nodes {
            let name = node["metadata"]["name"].as_str().unwrap().to_owned();
            fake.state().put(core("nodes", None, &name), node.clone());
        }
        let system = json!({ "metadata": { "name": "kube-system" } });
        fake.state().put(core("namespaces", None, "kube-system"), system);
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes how the world behaves; takes effect at once.
    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut state = self.state();
        change(&mut state.behaviour);
        controllers::run(&mut state);
        drop(state);
        self.changed.send_replace(());
    }

    /// Waits until something is true.
    pub(crate) async fn until(&self, what: impl Fn(&Self) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while !what(self) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect("it never became true");
    }

    /// Names of all objects of a resource.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        let state = self.state();
        state.objects.keys().filter(|key| key.1 == plural).map(|key| key.3.clone()).collect()
    }

    pub(crate) fn node(&self, name: &str) -> Value {
        self.state().objects[&core("nodes", None, name)].clone()
    }

    /// Everything but what changes with every write.
    pub(crate) fn snapshot(&self) -> BTreeMap<Key, Value> {
        let state = self.state();
        let mut all = state.objects.clone();
        for object in all.values_mut() {
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.remove("resourceVersion");
            metadata.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
        }
        all
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decode(value)))
            .collect();
        let path = parts.uri.path().to_owned();
        if query.get("watch").is_some_and(|value| value == "true") {
            return self.watch(&path, &query);
        }
        let mut state = self.state();
        let reply = state.handle(&parts.method, &path, &query, &body, &parts.headers);
        controllers::run(&mut state);
        drop(state);
        self.changed.send_replace(());
        let (status, value) = reply;
        let body = Full::new(Bytes::from(value.to_string())).boxed();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }

    fn watch(&self, path: &str, query: &BTreeMap<String, String>) -> Response<BoxBody<Bytes, Infallible>> {
        let target = parse(path);
        let since: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let (state, changed) = (self.state.clone(), self.changed.subscribe());
        let stream = futures::stream::unfold((since, changed), move |(since, mut changed)| {
            let (state, target, selector) = (state.clone(), target.clone(), selector.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let (version, lines) = events(&state.lock().unwrap(), since, &target, &selector);
                    if !lines.is_empty() {
                        return Some((Ok(Frame::data(Bytes::from(lines))), (version, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        let mut response = Response::new(http_body_util::BodyExt::boxed(StreamBody::new(Box::pin(
            stream.fuse(),
        )
            as SyncStream)));
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }
}

type SyncStream =
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync + 'static>>;

fn events(state: &State, since: u64, target: &Target, selector: &str) -> (u64, String) {
    let mut lines = String::new();
    for (version, kind, key, object) in &state.log {
        if *version > since && target.covers(key) {
            // An object that lost its label leaves a selector's view.
            let kind = if matches(object, selector) { kind } else { "DELETED" };
            lines.push_str(&json!({ "type": kind, "object": object }).to_string());
            lines.push('\n');
        }
    }
    (state.version, lines)
}

#[derive(Debug, Clone)]
struct Target {
    prefix: String,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

impl Target {
    fn covers(&self, key: &Key) -> bool {
        key.0 == self.prefix && key.1 == self.plural && (self.namespace.is_none() || self.namespace == key.2)
    }

    fn key(&self, name: &str) -> Key {
        (self.prefix.clone(), self.plural.clone(), self.namespace.clone(), name.to_owned())
    }
}

/// Where our custom resource is served while its definition exists.
pub(crate) const CUSTOM: &str = "/apis/autonomy.openyurt.io/v1alpha1";

/// The definition of our custom resource.
pub(crate) fn definition() -> Key {
    let name = "autonomousnodes.autonomy.openyurt.io".into();
    ("/apis/apiextensions.k8s.io/v1".into(), "customresourcedefinitions".into(), None, name)
}

/// The policies' parameter.
pub(crate) fn parameter() -> Key {
    (CUSTOM.into(), "autonomousnodes".into(), None, yurt_api::names::AUTONOMOUS_NODES.into())
}

pub(crate) fn core(plural: &str, namespace: Option<&str>, name: &str) -> Key {
    ("/api/v1".into(), plural.into(), namespace.map(str::to_owned), name.into())
}

fn parse(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (prefix, rest) = if parts[0] == "api" { parts.split_at(2) } else { parts.split_at(3) };
    let (namespace, rest) = if rest[0] == "namespaces" && rest.len() > 2 {
        (Some(rest[1].to_owned()), &rest[2..])
    } else {
        (None, rest)
    };
    Target {
        prefix: format!("/{}", prefix.join("/")),
        plural: rest[0].to_owned(),
        namespace,
        name: rest.get(1).map(|name| (*name).to_owned()),
        sub: rest.get(2).map(|name| (*name).to_owned()),
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap());
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Equality selectors are all that is needed.
fn matches(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|part| !part.is_empty()).all(|part| {
        let (key, value) = part.split_once('=').unwrap();
        object["metadata"]["labels"][key] == value
    })
}

fn failure(code: u16, reason: &str, message: &str) -> (StatusCode, Value) {
    let status =
        json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message });
    (StatusCode::from_u16(code).unwrap(), status)
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

impl State {
    fn handle(
        &mut self,
        method: &Method,
        path: &str,
        query: &BTreeMap<String, String>,
        body: &[u8],
        headers: &hyper::HeaderMap,
    ) -> (StatusCode, Value) {
        if path == "/version" {
            return (
                StatusCode::OK,
                json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "" }),
            );
        }
        let target = parse(path);
        let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
        if target.plural == "selfsubjectaccessreviews" {
            let asked = &body["spec"]["resourceAttributes"];
            let pair = format!("{} {}", asked["verb"].as_str().unwrap(), asked["resource"].as_str().unwrap());
            let mut answer = body.clone();
            answer["status"] = json!({ "allowed": !self.behaviour.denied.contains(&pair) });
            return (StatusCode::CREATED, answer);
        }
        if target.prefix == CUSTOM && !self.objects.contains_key(&definition()) {
            return failure(404, "", "404 page not found");
        }
        let dry = query.get("dryRun").is_some_and(|value| value == "All");
        match (method, &target.name) {
            (&Method::GET, None) => {
                let selector = query.get("labelSelector").cloned().unwrap_or_default();
                let items: Vec<&Value> = self
                    .objects
                    .iter()
                    .filter(|(key, object)| target.covers(key) && matches(object, &selector))
                    .map(|(_, object)| object)
                    .collect();
                let metadata = json!({ "resourceVersion": self.version.to_string() });
                (
                    StatusCode::OK,
                    json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
                )
            }
            (&Method::POST, None) => {
                let key = target.key(body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&key) {
                    return failure(409, "AlreadyExists", "already exists");
                }
                self.put(key.clone(), body);
                (StatusCode::CREATED, self.objects[&key].clone())
            }
            (_, Some(name)) => {
                let key = target.key(name);
                let Some(live) = self.objects.get(&key).cloned().or_else(|| applied(headers, &target)) else {
                    return failure(404, "NotFound", &format!("{} {name:?} not found", target.plural));
                };
                match *method {
                    Method::GET if self.objects.contains_key(&key) => (StatusCode::OK, live),
                    Method::GET => failure(404, "NotFound", "not found"),
                    Method::PUT => {
                        if body["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"] {
                            return failure(409, "Conflict", "the object has been modified");
                        }
                        self.put(key.clone(), body);
                        (StatusCode::OK, self.objects[&key].clone())
                    }
                    Method::DELETE => {
                        self.remove(&key);
                        (StatusCode::OK, json!({ "kind": "Status", "status": "Success" }))
                    }
                    Method::PATCH => {
                        let mut next = live;
                        if target.sub.as_deref() == Some("status") {
                            let gone = body["status"]["conditions"][0]["type"].clone();
                            let conditions = next["status"]["conditions"].as_array_mut().unwrap();
                            conditions.retain(|condition| condition["type"] != gone);
                        } else {
                            merge(&mut next, &body);
                        }
                        if !dry {
                            self.put(key, next.clone());
                        }
                        (StatusCode::OK, next)
                    }
                    _ => failure(405, "MethodNotAllowed", "no"),
                }
            }
            _ => failure(405, "MethodNotAllowed", "no"),
        }
    }
}

/// Server-side apply makes what does not exist.
fn applied(headers: &hyper::HeaderMap, target: &Target) -> Option<Value> {
    let content = headers.get("content-type")?.to_str().ok()?;
    let metadata = json!({ "name": target.name, "generation": 1 });
    content.starts_with("application/apply-patch").then(|| json!({ "metadata": metadata }))
}
