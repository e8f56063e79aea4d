//! A small API server: what the hub needs of the real one, in memory, over TLS, in JSON (and, for lists and watches,
//! in protobuf where a test has put the bytes). It keeps count of every request.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;

use super::pki::Ca;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub user: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, Clone)]
struct Event {
    version: u64,
    kind: &'static str,
    collection: String,
    object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By path of the object.
    objects: BTreeMap<String, Value>,
    history: Vec<Event>,
    tokens: HashMap<String, String>,
    requests: Vec<Seen>,
    csrs: HashMap<String, String>,
    /// Paths whose PATCH is answered with 500.
    failing: Vec<String>,
}

/// The server. Clones are the same.
#[derive(Clone)]
pub(crate) struct Api {
    pub address: SocketAddr,
    ca: Arc<Ca>,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
}

impl Api {
    pub(crate) async fn start(ca: Arc<Ca>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = ca.server(&["127.0.0.1"]);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder(roots.into())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut tls = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![pair.der.0.clone()], pair.key_der())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let api = Self { address, ca, state, events: broadcast::Sender::new(1024) };
        tokio::spawn({
            let api = api.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (api, acceptor) = (api.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        let node = stream.get_ref().1.peer_certificates().is_some();
                        let service = service_fn(move |request: Request<Incoming>| {
                            let api = api.clone();
                            async move { Ok::<_, Infallible>(api.handle(request, node).await) }
                        });
                        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                            .serve_connection_with_upgrades(TokioIo::new(stream), service)
                            .await;
                    });
                }
            }
        });
        api
    }

    /// Makes or changes an object. `collection` is its path, `/api/v1/namespaces/x/pods`.
    pub(crate) fn put(&self, collection: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if let Some(rest) = collection
            .strip_prefix("/api/v1/namespaces/")
            .or_else(|| collection.split_once("/namespaces/").map(|(_, rest)| rest))
        {
            object["metadata"]["namespace"] = rest.split('/').next().unwrap().into();
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{name}").into();
        }
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = state.objects.insert(format!("{collection}/{name}"), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.publish(&mut state, kind, collection, object.clone());
        object
    }

    pub(crate) fn delete(&self, collection: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let mut object = state.objects.remove(&format!("{collection}/{name}")).unwrap();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.publish(&mut state, "DELETED", collection, object);
    }

    fn publish(&self, state: &mut State, kind: &'static str, collection: &str, object: Value) {
        let event = Event { version: state.version, kind, collection: collection.to_owned(), object };
        state.history.push(event.clone());
        let _ = self.events.send(event);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub(crate) fn accept_token(&self, token: &str, user: &str) {
        self.state.lock().unwrap().tokens.insert(token.to_owned(), user.to_owned());
    }

    /// From now on every PATCH of these paths fails.
    pub(crate) fn fail_patches(&self, paths: &[&str]) {
        self.state.lock().unwrap().failing = paths.iter().map(|path| (*path).to_owned()).collect();
    }

    /// Requests whose method and path match.
    pub(crate) fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|seen| seen.method == method && seen.path == path).cloned().collect()
    }

    async fn handle(&self, request: Request<Incoming>, node: bool) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if parts.headers.contains_key("upgrade") {
            return self.upgrade(parts, node);
        }
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let user = self.user(&parts.headers, node);
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        self.state.lock().unwrap().requests.push(Seen {
            method: parts.method.to_string(),
            path: path.clone(),
            query: query.clone(),
            user: user.clone(),
            headers: parts.headers.clone(),
            body: body.clone(),
        });
        let Some(user) = user else { return status(401, "Unauthorized") };
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (&parts.method, path.as_str()) {
            (_, "/healthz" | "/livez" | "/readyz") => text("ok"),
            (_, "/version") => reply(200, &json!({"gitVersion": "v1.36.3"})),
            (&Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => self.review(&value),
            (&Method::POST, "/apis/certificates.k8s.io/v1/certificatesigningrequests") => {
                self.create_csr(&value)
            }
            (&Method::GET, path) if path.starts_with("/apis/certificates.k8s.io/") => self.get_csr(path),
            (&Method::POST, path) if path.ends_with("/token") => token_reply(path, &value),
            (&Method::GET, path) if query.contains("watch=") => self.watch(path, &query, &parts.headers),
            (&Method::GET, path) => self.read(path, &query, &user),
            (&Method::PATCH, path) => self.patch(path, &value),
            (&Method::PUT, path) => match self.get(path) {
                Some(found)
                    if found["metadata"]["resourceVersion"] == value["metadata"]["resourceVersion"] =>
                {
                    let (collection, _) = path.rsplit_once('/').unwrap();
                    reply(200, &self.put(collection, value))
                }
                Some(_) => status(409, "Conflict"),
                None => status(404, "NotFound"),
            },
            (&Method::POST, path) => {
                let name = value["metadata"]["name"].as_str().unwrap_or_default();
                if self.get(&format!("{path}/{name}")).is_some() {
                    return status(409, "AlreadyExists");
                }
                reply(201, &self.put(path, value))
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }

    fn user(&self, headers: &HeaderMap, node: bool) -> Option<String> {
        if let Some(token) = headers.get("authorization") {
            assert!(!node, "a bearer token on the node's connection");
            let token = token.to_str().unwrap().strip_prefix("Bearer ").unwrap();
            return self.state.lock().unwrap().tokens.get(token).cloned();
        }
        node.then(|| "system:node:edge".to_owned())
    }

    fn review(&self, review: &Value) -> Response<Body> {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let user = self.state.lock().unwrap().tokens.get(token).cloned();
        let status = match user {
            Some(user) => json!({"authenticated": true, "user": {"username": user}}),
            None => json!({"error": "unknown token"}),
        };
        reply(201, &json!({"kind": "TokenReview", "status": status}))
    }

    fn create_csr(&self, csr: &Value) -> Response<Body> {
        let request = STANDARD.decode(csr["spec"]["request"].as_str().unwrap()).unwrap();
        assert_eq!(csr["spec"]["signerName"], "kubernetes.io/kubelet-serving");
        let certificate = self.ca.issue(&String::from_utf8(request).unwrap());
        let mut state = self.state.lock().unwrap();
        let name = format!("yurt-hub-{}", state.csrs.len());
        state.csrs.insert(name.clone(), certificate);
        reply(201, &json!({"metadata": {"name": name}}))
    }

    fn get_csr(&self, path: &str) -> Response<Body> {
        let name = path.rsplit('/').next().unwrap();
        match self.state.lock().unwrap().csrs.get(name) {
            Some(certificate) => reply(
                200,
                &json!({"metadata": {"name": name}, "status": {
                    "conditions": [{"type": "Approved"}], "certificate": STANDARD.encode(certificate)}}),
            ),
            None => status(404, "NotFound"),
        }
    }

    fn read(&self, path: &str, query: &str, user: &str) -> Response<Body> {
        if let Some(object) = self.get(path) {
            return reply(200, &object);
        }
        if is_object(path) {
            return status(404, "NotFound");
        }
        if path.ends_with("/secrets") && user.starts_with("system:serviceaccount") {
            return status(403, "Forbidden");
        }
        let state = self.state.lock().unwrap();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(at, object)| selects(path, query, at.rsplit_once('/').unwrap().0, object))
            .map(|(_, object)| {
                let mut item = object.clone();
                item.as_object_mut().unwrap().remove("kind");
                item.as_object_mut().unwrap().remove("apiVersion");
                item
            })
            .collect();
        reply(
            200,
            &json!({"kind": list_kind(path), "apiVersion": api_version(path),
                           "metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
        )
    }

    fn watch(&self, path: &str, query: &str, headers: &HeaderMap) -> Response<Body> {
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(&format!("{name}=")))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(headers["accept"].to_str().unwrap().contains("json"), "this fake watches in JSON alone");
        let since: u64 = parameter("resourceVersion").parse().unwrap_or(0);
        let state = self.state.lock().unwrap();
        let live = self.events.subscribe();
        let mut first: Vec<Event> = Vec::new();
        let initial = parameter("sendInitialEvents") == "true";
        if since == 0 || initial {
            for (at, object) in &state.objects {
                let collection = at.rsplit_once('/').unwrap().0.to_owned();
                first.push(Event { version: 0, kind: "ADDED", collection, object: object.clone() });
            }
            if initial {
                let object = json!({"kind": list_kind(path).trim_end_matches("List"), "apiVersion": api_version(path),
                    "metadata": {"resourceVersion": state.version.to_string(),
                                 "annotations": {"k8s.io/initial-events-end": "true"}}});
                first.push(Event { version: 0, kind: "BOOKMARK", collection: path.to_owned(), object });
            }
        } else {
            first.extend(state.history.iter().filter(|event| event.version > since).cloned());
        }
        let seen = state.version;
        drop(state);
        let (path, query) = (path.to_owned(), query.to_owned());
        let live = futures::stream::unfold(live, |mut live| async move {
            live.recv().await.ok().map(|event| (event, live))
        })
        .filter(move |event| std::future::ready(event.version > seen));
        let frames = futures::stream::iter(first).chain(live).filter_map(move |event| {
            let wanted = event.kind == "BOOKMARK" || selects(&path, &query, &event.collection, &event.object);
            let mut object = event.object;
            if object["kind"].is_null() {
                object["kind"] = list_kind(&path).trim_end_matches("List").into();
                object["apiVersion"] = api_version(&path).into();
            }
            let text = format!("{}\n", json!({"type": event.kind, "object": object}));
            std::future::ready(wanted.then(|| Ok::<_, Infallible>(Frame::data(Bytes::from(text)))))
        });
        let mut response = Response::new(Body::new(StreamBody::new(Box::pin(frames))));
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }

    fn patch(&self, path: &str, patch: &Value) -> Response<Body> {
        if self.state.lock().unwrap().failing.iter().any(|failing| failing == path) {
            return status(500, "InternalError");
        }
        let at = path.strip_suffix("/status").unwrap_or(path);
        let Some(mut object) = self.get(at) else { return status(404, "NotFound") };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return status(409, "Conflict");
        }
        json_patch::merge(&mut object, patch);
        let (collection, _) = at.rsplit_once('/').unwrap();
        reply(200, &self.put(collection, object))
    }

    /// `exec`: every byte comes back.
    fn upgrade(&self, mut parts: http::request::Parts, node: bool) -> Response<Body> {
        if self.user(&parts.headers, node).is_none() {
            return status(401, "Unauthorized");
        }
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>().unwrap();
        tokio::spawn(async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let mut response = text("");
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().remove("content-type");
        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", "SPDY/3.1".parse().unwrap());
        response
    }
}

/// A JWT whose signature is worth nothing.
pub(crate) fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(claims))
}

fn token_reply(path: &str, request: &Value) -> Response<Body> {
    let parts: Vec<_> = path.split('/').collect();
    let user = format!("system:serviceaccount:{}:{}", parts[4], parts[6]);
    let bound = &request["spec"]["boundObjectRef"]["uid"];
    let token = jwt(&json!({"sub": user, "exp": 4_000_000_000_i64, "pod": bound}));
    let mut reply_body = request.clone();
    reply_body["status"] = json!({"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"});
    reply(201, &reply_body)
}

/// `/api/v1/namespaces/x/pods/y` is one, `/api/v1/namespaces/x/pods` is none.
fn is_object(path: &str) -> bool {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3.min(parts.len())..] };
    match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest.len() == 2,
        rest => rest.len() == 2,
    }
}

fn selects(path: &str, query: &str, collection: &str, object: &Value) -> bool {
    let plural = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let group = |path: &str| {
        path.split("/namespaces/")
            .next()
            .unwrap()
            .trim_end_matches(&plural(path))
            .trim_end_matches('/')
            .to_owned()
    };
    let named = query.contains("metadata.name%3D") || query.contains("metadata.name=");
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let right_name = !named
        || query
            .replace("%3D", "=")
            .split('&')
            .any(|pair| pair == format!("fieldSelector=metadata.name={name}"));
    let right_place = if path.contains("/namespaces/") {
        path == collection
    } else {
        plural(path) == plural(collection) && group(path) == group(collection)
    };
    right_place && right_name
}

fn list_kind(path: &str) -> &'static str {
    match path.rsplit('/').next().unwrap() {
        "pods" => "PodList",
        "nodes" => "NodeList",
        "services" => "ServiceList",
        "configmaps" => "ConfigMapList",
        "secrets" => "SecretList",
        "endpointslices" => "EndpointSliceList",
        "namespaces" => "NamespaceList",
        "widgets" => "WidgetList",
        _ => "ThingList",
    }
}

fn api_version(path: &str) -> String {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    if parts[0] == "api" { parts[1].to_owned() } else { format!("{}/{}", parts[1], parts[2]) }
}

fn reply(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(format!("{value}\n")))));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response.headers_mut().insert("audit-id", "a-1".parse().unwrap());
    response
}

fn text(text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from_static(text.as_bytes()))));
    response.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    response
}

fn status(code: u16, reason: &str) -> Response<Body> {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}),
    )
}
