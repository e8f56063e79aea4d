//! Who did what through this port: one line of JSON a request, in the form of the API server's own audit events
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>, level `Metadata`), since nothing of it reaches the API
//! server. What the form has no field for is in annotations.
//!
//! ```text
//! request ─▶ Record ─┬─ ResponseStarted, before the first byte of an exec, attach or port-forward is moved
//!                    └─ ResponseComplete, when the last user of the record lets go of it: answer, log, stream
//! ```
//!
//! A thread writes the lines. Whoever begins a stream waits for a place in its queue, so that nothing happens that could
//! not be written down; what ends and finds no place is counted and said.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::authenticate::User;
use super::pods::Place;
use super::status::{ApiError, Body};
use super::target::{GROUP, Target, VERSION};

/// Lines that wait to be written.
const QUEUE: usize = 4096;
/// Names the record in the answer, as the API server does.
const AUDIT_ID: &str = "audit-id";

/// Where records go.
#[derive(Debug)]
pub(in crate::server) struct Trail {
    lines: mpsc::Sender<Vec<u8>>,
    lost: AtomicU64,
}

impl Trail {
    /// Writes to `out` from a thread of its own.
    ///
    /// # Errors
    ///
    /// When there is no such thread.
    pub(in crate::server) fn to(mut out: impl Write + Send + 'static) -> std::io::Result<Arc<Self>> {
        let (lines, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            while let Some(line) = queue.blocking_recv() {
                if let Err(error) = out.write_all(&line).and_then(|()| out.flush()) {
                    tracing::error!(%error, "an audit record cannot be written");
                }
            }
        })?;
        Ok(Arc::new(Self { lines, lost: AtomicU64::new(0) }))
    }

    fn put(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // One line for each doubling: there are many when there is one.
            if lost.is_power_of_two() {
                tracing::error!(lost, "audit records are lost: nobody takes them");
            }
        }
    }
}

/// One request, from its arrival to its end.
#[derive(Debug)]
pub(super) struct Record {
    trail: Arc<Trail>,
    id: String,
    uri: String,
    verb: &'static str,
    source: String,
    agent: Option<String>,
    received: Timestamp,
    began: Instant,
    known: Mutex<Known>,
    /// Bytes from the caller, and to him.
    from_caller: AtomicU64,
    to_caller: AtomicU64,
}

/// What becomes known of it on its way.
#[derive(Debug, Default)]
struct Known {
    user: Option<User>,
    acts_as: Option<User>,
    object: Option<Value>,
    is_of_nobody: bool,
    place: Option<(String, String)>,
    decision: Option<&'static str>,
    code: u16,
    message: Option<String>,
    broke: Option<String>,
}

impl Record {
    /// Of a request from `source`.
    pub(super) fn of<B>(trail: Arc<Trail>, request: &Request<B>, source: std::net::IpAddr) -> Arc<Self> {
        let mut id = [0; 16];
        if SystemRandom::new().fill(&mut id).is_err() {
            tracing::warn!("no randomness: audit records have no identity of their own");
        }
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Arc::new(Self {
            trail,
            id: uuid::Builder::from_random_bytes(id).into_uuid().to_string(),
            uri: request.uri().to_string(),
            // As the API server reads methods.
            verb: match *request.method() {
                Method::POST => "create",
                _ => "get",
            },
            source: source.to_canonical().to_string(),
            agent: agent.map(str::to_owned),
            received: Timestamp::now(),
            began: Instant::now(),
            known: Mutex::default(),
            from_caller: AtomicU64::new(0),
            to_caller: AtomicU64::new(0),
        })
    }

    /// What is asked for. How the server is may be asked by everybody, and kubelet does so every other second: that is not
    /// written down.
    pub(super) fn asks_for(&self, target: &Target) {
        let object = match target {
            Target::Health | Target::Readiness => None,
            Target::Agents(name) => Some(json!({
                "resource": "agents", "apiGroup": GROUP, "apiVersion": VERSION, "name": name
            })),
            Target::Pod(target) => Some(json!({
                "resource": "pods", "apiVersion": "v1", "namespace": target.namespace, "name": target.pod,
                "subresource": target.action.subresource()
            })),
        };
        self.know(|known| {
            known.is_of_nobody = object.is_none();
            known.object = object;
        });
    }

    /// Who asks.
    pub(super) fn comes_from(&self, user: &User) {
        self.know(|known| known.user = Some(user.clone()));
    }

    /// As whom he is allowed to.
    pub(super) fn acts_as(&self, user: &User) {
        self.know(|known| known.acts_as = Some(user.clone()));
    }

    /// Where it leads, which he may.
    pub(super) fn leads_to(&self, place: &Place) {
        self.know(|known| known.place = Some((place.node.clone(), place.container.clone())));
    }

    /// He may.
    pub(super) fn is_allowed(&self) {
        self.know(|known| known.decision = Some("allow"));
    }

    /// How it was answered: not at all as it was asked.
    pub(super) fn is_refused(&self, error: &ApiError) {
        self.know(|known| {
            if matches!(error, ApiError::Forbidden { .. } | ApiError::Refused(_)) {
                known.decision = Some("forbid");
            }
            known.code = error.code().as_u16();
            known.message = Some(error.to_string());
        });
    }

    /// A stream begins; returns when that is in the queue.
    pub(super) async fn starts(&self) {
        self.know(|known| known.code = StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let line = self.line("ResponseStarted");
        // The thread ends with the process.
        let _ = self.trail.lines.send(line).await;
    }

    /// The stream broke.
    pub(super) fn broke(&self, error: &std::io::Error) {
        self.know(|known| known.broke = Some(error.to_string()));
    }

    /// Bytes came from the caller.
    pub(super) fn count_from_caller(&self, count: usize) {
        self.from_caller.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Bytes went to the caller.
    pub(super) fn count_to_caller(&self, count: usize) {
        self.to_caller.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Names the record in the answer, and stays with its body until that ends.
    pub(super) fn follow(self: Arc<Self>, mut response: Response<Body>) -> Response<Body> {
        if let Ok(id) = HeaderValue::try_from(&*self.id) {
            response.headers_mut().insert(AUDIT_ID, id);
        }
        let code = response.status().as_u16();
        self.know(|known| known.code = code);
        response.map(|body| {
            body.map_frame(move |frame| {
                self.count_to_caller(frame.data_ref().map_or(0, Bytes::len));
                frame
            })
            .boxed_unsync()
        })
    }

    fn know(&self, learn: impl FnOnce(&mut Known)) {
        learn(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn line(&self, stage: &str) -> Vec<u8> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut annotations = Map::new();
        let mut annotate = |key: &str, value: String| {
            annotations.insert(key.to_owned(), value.into());
        };
        if let Some(decision) = known.decision {
            annotate("authorization.k8s.io/decision", decision.to_owned());
        }
        if let Some((node, container)) = &known.place {
            annotate("tunnel.openyurt.io/node", node.clone());
            annotate("tunnel.openyurt.io/container", container.clone());
        }
        if stage == "ResponseComplete" {
            annotate(
                "tunnel.openyurt.io/bytes-received",
                self.from_caller.load(Ordering::Relaxed).to_string(),
            );
            annotate("tunnel.openyurt.io/bytes-sent", self.to_caller.load(Ordering::Relaxed).to_string());
            annotate("tunnel.openyurt.io/seconds", format!("{:.3}", self.began.elapsed().as_secs_f64()));
        }
        if let Some(broke) = &known.broke {
            annotate("tunnel.openyurt.io/broke", broke.clone());
        }
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
            "auditID": self.id, "stage": stage, "requestURI": self.uri, "verb": self.verb,
            "user": known.user.as_ref().map(user_info).unwrap_or_else(|| json!({})),
            "sourceIPs": [self.source],
            "responseStatus": { "metadata": {}, "code": known.code },
            "requestReceivedTimestamp": micros(self.received), "stageTimestamp": micros(Timestamp::now()),
            "annotations": annotations,
        });
        if let Some(user) = &known.acts_as {
            event["impersonatedUser"] = user_info(user);
        }
        if let Some(object) = &known.object {
            event["objectRef"] = object.clone();
        }
        if let Some(agent) = &self.agent {
            event["userAgent"] = agent.as_str().into();
        }
        if let Some(message) = &known.message {
            event["responseStatus"]["status"] = "Failure".into();
            event["responseStatus"]["message"] = message.as_str().into();
        }
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.known.get_mut().unwrap_or_else(PoisonError::into_inner).is_of_nobody {
            return;
        }
        let line = self.line("ResponseComplete");
        self.trail.put(line);
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if let Some(uid) = &user.uid {
        info["uid"] = uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// As `metav1.MicroTime` is written.
fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}
