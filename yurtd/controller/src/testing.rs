//! An API server in memory for the controller's tests: objects by path, lists, watches, and a record of
//! what was written.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::context::{Context, follow_nodes};

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) struct FakeCluster {
    client: kube::Client,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    changed: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// Version, path, type of event, object.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Method, path, body of every write of the client.
    writes: Vec<(Method, String, Value)>,
    /// Paths of its reads.
    reads: Vec<String>,
    /// Paths that begin with this do not exist.
    refused: Option<String>,
}

impl FakeCluster {
    pub(crate) async fn start() -> Self {
        let state = Arc::<State>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let state = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { Ok::<_, Infallible>(answer(state, request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        Self { client: kube::Client::try_from(config).unwrap(), state, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// A context whose node cache is filled and goes on following.
    pub(crate) async fn context(&self) -> Arc<Context> {
        let (nodes, follow) = follow_nodes(self.client.clone(), CancellationToken::new());
        tokio::spawn(follow);
        nodes.ready().await;
        Arc::new(Context {
            client: self.client.clone(),
            namespace: "kube-system".into(),
            identity: "controller-0".into(),
            nodes,
        })
    }

    /// Somebody else writes an object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.put(path, object);
    }

    /// Somebody else deletes an object.
    pub(crate) fn delete(&self, path: &str) {
        let mut inner = self.state.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        let object = inner.objects.remove(path).unwrap();
        inner.log.push((version, path.to_owned(), "DELETED", object));
        let length = inner.log.len();
        drop(inner);
        self.state.changed.send_replace(length);
    }

    /// From now on the server does not know paths that begin with `prefix`, as when a definition is missing.
    pub(crate) fn refuse(&self, prefix: &str) {
        self.state.inner.lock().unwrap().refused = Some(prefix.to_owned());
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.inner.lock().unwrap().objects.get(path).cloned()
    }

    /// How many writes the client has made.
    pub(crate) fn writes(&self) -> usize {
        self.state.inner.lock().unwrap().writes.len()
    }

    /// How often the client has read a path.
    pub(crate) fn reads(&self, path: &str) -> usize {
        self.state.inner.lock().unwrap().reads.iter().filter(|read| *read == path).count()
    }

    pub(crate) fn patches(&self, path: &str) -> Vec<Value> {
        self.written(&Method::PATCH, path)
    }

    pub(crate) fn created(&self, path: &str) -> Vec<Value> {
        self.written(&Method::POST, path)
    }

    fn written(&self, method: &Method, path: &str) -> Vec<Value> {
        let inner = self.state.inner.lock().unwrap();
        let ours = inner.writes.iter().filter(|(by, at, _)| by == method && at == path);
        ours.map(|(_, _, body)| body.clone()).collect()
    }
}

impl State {
    fn put(&self, path: &str, mut object: Value) -> Value {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["name"] = path.rsplit('/').next().unwrap().into();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = inner.objects.insert(path.to_owned(), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        inner.log.push((version, path.to_owned(), kind, object.clone()));
        let length = inner.log.len();
        drop(inner);
        self.changed.send_replace(length);
        object
    }
}

fn reply(code: u16, document: &Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(document.to_string())).boxed_unsync())
        .unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason
    });
    reply(code, &status)
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query: BTreeMap<String, String> =
        form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let body = body.collect().await.unwrap().to_bytes();
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    if head.method == Method::GET {
        state.inner.lock().unwrap().reads.push(path.clone());
    } else {
        state.inner.lock().unwrap().writes.push((head.method.clone(), path.clone(), document.clone()));
    }
    if state.inner.lock().unwrap().refused.as_deref().is_some_and(|prefix| path.starts_with(prefix)) {
        let text = Full::new(Bytes::from_static(b"404 page not found\n")).boxed_unsync();
        return Response::builder().status(404).body(text).unwrap();
    }
    match head.method {
        Method::GET if query.get("watch").is_some_and(|watch| watch == "true") => {
            let since = query["resourceVersion"].parse().unwrap();
            watching(state, path, since, query.get("fieldSelector").cloned())
        }
        Method::GET => {
            let inner = state.inner.lock().unwrap();
            if let Some(object) = inner.objects.get(&path) {
                return reply(200, object);
            }
            let plural = path.rsplit('/').next().unwrap();
            if !matches!(plural, "nodes" | "certificatesigningrequests") {
                return failure(404, "NotFound");
            }
            let selector = query.get("fieldSelector");
            let items: Vec<_> = inner
                .objects
                .iter()
                .filter(|(at, object)| is_in(at, &path) && is_selected(object, selector))
                .map(|(_, object)| object)
                .collect();
            reply(
                200,
                &json!({
                    "kind": "List", "apiVersion": "v1",
                    "metadata": {"resourceVersion": inner.version.to_string()}, "items": items
                }),
            )
        }
        Method::POST => {
            let Some(name) = document["metadata"]["name"].as_str() else { return failure(422, "Invalid") };
            let at = format!("{path}/{name}");
            if state.inner.lock().unwrap().objects.contains_key(&at) {
                return failure(409, "AlreadyExists");
            }
            reply(201, &state.put(&at, document))
        }
        Method::PUT => {
            let found = state.inner.lock().unwrap().objects.get(&path).cloned();
            let Some(found) = found else { return failure(404, "NotFound") };
            let ours = &document["metadata"]["resourceVersion"];
            if !ours.is_null() && *ours != found["metadata"]["resourceVersion"] {
                return failure(409, "Conflict");
            }
            reply(200, &state.put(&path, document))
        }
        // Subresources: recorded and acknowledged with a newer version, which no watcher sees. A cache that
        // lags is the hard case.
        Method::PATCH => {
            let mut inner = state.inner.lock().unwrap();
            let parent = path.rsplit_once('/').unwrap().0;
            let Some(mut object) = inner.objects.get(parent).cloned() else {
                return failure(404, "NotFound");
            };
            inner.version += 1;
            object["metadata"]["resourceVersion"] = inner.version.to_string().into();
            reply(200, &object)
        }
        _ => failure(405, "MethodNotAllowed"),
    }
}

fn is_in(path: &str, collection: &str) -> bool {
    path.strip_prefix(collection)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|name| !name.contains('/'))
}

/// One `field.path=value`, or everything.
fn is_selected(object: &Value, selector: Option<&String>) -> bool {
    let Some((field, value)) = selector.and_then(|selector| selector.split_once('=')) else { return true };
    object.pointer(&format!("/{}", field.replace('.', "/"))).is_some_and(|found| found == value)
}

fn watching(state: Arc<State>, collection: String, since: u64, selector: Option<String>) -> Response<Body> {
    let changed = state.changed.subscribe();
    let events = stream::unfold((state, changed, 0), move |(state, mut changed, mut next)| {
        let (collection, selector) = (collection.clone(), selector.clone());
        async move {
            loop {
                changed.mark_unchanged();
                let entry = state.inner.lock().unwrap().log.get(next).cloned();
                match entry {
                    Some((version, path, kind, object)) => {
                        next += 1;
                        if version > since
                            && is_in(&path, &collection)
                            && is_selected(&object, selector.as_ref())
                        {
                            let line = format!("{}\n", json!({"type": kind, "object": object}));
                            return Some((Ok(Frame::data(Bytes::from(line))), (state, changed, next)));
                        }
                    }
                    None => changed.changed().await.ok()?,
                }
            }
        }
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(StreamBody::new(events).boxed_unsync())
        .unwrap()
}
