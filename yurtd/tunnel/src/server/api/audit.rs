//! Who did what through this port: one line of JSON a request, in the form of the API server's own audit events
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>, level `Metadata`), since nothing of it reaches the API
//! server. What the form has no field for is in annotations.
//!
//! ```text
//! request ─▶ Record ─┬─ ResponseStarted, when kubelet has agreed to an exec, attach or port-forward
//!                    └─ ResponseComplete, when the last user of the record lets go of it: answer, log, stream
//! ```
//!
//! A thread writes the lines. Whoever begins a stream waits for a place in its queue before kubelet is asked, so that
//! nothing happens that could not be written down; what ends and finds no place is counted and said.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::authenticate::User;
use super::pods::Place;
use super::status::{ApiError, Body};
use super::target::{GROUP, Target, VERSION};

/// Lines that wait to be written.
pub(super) const QUEUE: usize = 4096;
/// The most of a URI and of a client's name that is written down of somebody whom the cluster does not know, bytes: as many
/// lines as wait are to be small, and a stranger is not to push those of others out of a log that is rotated.
const STRANGERS: usize = 512;
/// Names the record in the answer, as the API server does.
const AUDIT_ID: &str = "audit-id";

/// Where records go.
#[derive(Debug)]
pub(in crate::server) struct Trail {
    lines: mpsc::Sender<Entry>,
    lost: AtomicU64,
}

/// What waits for the thread.
#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Somebody waits until what came before it is written.
    Written(oneshot::Sender<()>),
}

impl Trail {
    /// Writes to `out` from a thread of its own.
    ///
    /// # Errors
    ///
    /// When there is no such thread.
    pub(in crate::server) fn to(mut out: impl Write + Send + 'static) -> std::io::Result<Arc<Self>> {
        let (lines, mut queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            while let Some(entry) = queue.blocking_recv() {
                match entry {
                    Entry::Line(line) => {
                        if let Err(error) = out.write_all(&line).and_then(|()| out.flush()) {
                            tracing::error!(%error, "an audit record cannot be written");
                        }
                    }
                    Entry::Written(told) => {
                        let _ = told.send(());
                    }
                }
            }
        })?;
        Ok(Arc::new(Self { lines, lost: AtomicU64::new(0) }))
    }

    /// Waits until every line that was put before is written; the process ends the thread otherwise. Says whether that was
    /// so within `limit`.
    pub(in crate::server) async fn written(&self, limit: Duration) -> bool {
        let (told, hears) = oneshot::channel();
        let all = async { self.lines.send(Entry::Written(told)).await.is_ok() && hears.await.is_ok() };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }

    /// Lines that nobody has taken yet.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        QUEUE - self.lines.capacity()
    }

    /// Puts a line that nobody waits for.
    pub(super) fn put(&self, line: Vec<u8>) {
        if self.lines.try_send(Entry::Line(line)).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // One line for each doubling: there are many when there is one.
            if lost.is_power_of_two() {
                tracing::error!(lost, "audit records are lost: nobody takes them");
            }
        }
    }
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Reserved(mpsc::OwnedPermit<Entry>);

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
            Target::Diagnosis(name) => Some(json!({
                "resource": "agents", "apiGroup": GROUP, "apiVersion": VERSION, "name": name,
                "subresource": "diagnosis"
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

    /// Waits for a place for the line about the beginning of a stream. Kubelet runs a command as soon as it has agreed, so
    /// this comes before it is asked.
    pub(super) async fn reserve(&self) -> Option<Reserved> {
        // The thread ends with the process.
        self.trail.lines.clone().reserve_owned().await.ok().map(Reserved)
    }

    /// A stream begins.
    pub(super) fn starts(&self, place: Option<Reserved>) {
        self.know(|known| known.code = StatusCode::SWITCHING_PROTOCOLS.as_u16());
        if let Some(Reserved(place)) = place {
            place.send(Entry::Line(self.line("ResponseStarted")));
        }
    }

    /// What was answered broke off: a stream, or a log.
    pub(super) fn broke(&self, error: &dyn std::error::Error) {
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
        let counted = self.clone();
        response.map(|body| {
            body.map_frame(move |frame| {
                counted.count_to_caller(frame.data_ref().map_or(0, Bytes::len));
                frame
            })
            .map_err(move |error| {
                self.broke(&error);
                error
            })
            .boxed_unsync()
        })
    }

    fn know(&self, learn: impl FnOnce(&mut Known)) {
        learn(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn line(&self, stage: &str) -> Vec<u8> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let said = |text: &str| {
            let most = if known.user.is_some() { text.len() } else { text.floor_char_boundary(STRANGERS) };
            text[..most].to_owned()
        };
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
            "auditID": self.id, "stage": stage, "requestURI": said(&self.uri), "verb": self.verb,
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
            event["userAgent"] = said(agent).into();
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
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        if known.is_of_nobody {
            return;
        }
        if known.code == 0 {
            known.broke = Some("the caller left, or was cut off, before there was an answer".to_owned());
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes a line when it is let.
    struct Slow {
        may: Receiver<()>,
        lines: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.may.recv().map_err(std::io::Error::other)?;
            self.lines.send(line.to_vec()).map_err(std::io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_process_can_wait_until_the_last_line_is_written() {
        let ((let_it, may), (lines, written)) = (channel(), channel());
        let trail = Trail::to(Slow { may, lines }).unwrap();
        trail.put(b"one\n".to_vec());
        trail.put(b"two\n".to_vec());
        let_it.send(()).unwrap();
        assert!(!trail.written(Duration::from_millis(20)).await, "the second one is not there");
        let_it.send(()).unwrap();
        assert!(trail.written(Duration::from_secs(20)).await);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [b"one\n", b"two\n"]);
    }

    #[tokio::test]
    async fn a_stranger_has_few_words() {
        let (_let_it, may) = channel();
        let trail = Trail::to(Slow { may, lines: channel().0 }).unwrap();
        let uri = format!("/api/v1/namespaces/shop/pods/till-0/exec?command={}", "x".repeat(60_000));
        let request = Request::get(&uri).header(header::USER_AGENT, "y".repeat(60_000)).body(()).unwrap();
        let record = Record::of(trail, &request, [127, 0, 0, 1].into());
        assert!(record.line("ResponseComplete").len() < 4 * STRANGERS);
        record.comes_from(&User { name: "jane".into(), ..User::default() });
        let line: Value = serde_json::from_slice(&record.line("ResponseComplete")).unwrap();
        assert_eq!(line["requestURI"], uri);
    }

    #[tokio::test]
    async fn who_left_before_there_was_an_answer_is_told_apart() {
        let ((let_it, may), (lines, written)) = (channel(), channel());
        let trail = Trail::to(Slow { may, lines }).unwrap();
        let_it.send(()).unwrap();
        let request = Request::get("/api/v1/namespaces/shop/pods/till-0/exec").body(()).unwrap();
        drop(Record::of(trail.clone(), &request, [127, 0, 0, 1].into()));
        assert!(trail.written(Duration::from_secs(20)).await);
        let record: Value = serde_json::from_slice(&written.recv().unwrap()).unwrap();
        let broke = record["annotations"]["tunnel.openyurt.io/broke"].as_str().unwrap();
        assert!(broke.starts_with("the caller left"), "{record}");
    }
}
