//! kube-apiserver in memory: objects of any kind behind list, watch and writes, in JSON and protobuf, over TLS with
//! HTTP/2 or in the clear, for as many callers as there are. It remembers every request, and goes wrong on demand.
//!
//! A request goes `serve → answer (who is it, is there a fault) → read | write → store`, and an event from the store's
//! history to each `watch`. The store is one counter and one history, as etcd is; what Kubernetes does around it
//! (controllers, kubelets) is left to [reactors](FakeApi::react), see [`cluster`](crate::cluster).

mod answer;
mod controls;
mod discovery;
mod encode;
mod faults;
mod kinds;
mod objects;
mod patch;
mod read;
mod resource;
mod reviews;
mod rights;
mod serve;
mod store;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::encode::Encoding;
use self::encode::Failure;
use self::faults::Faults;
pub use self::faults::{Fault, Listening, When};
pub use self::kinds::Kind;
use self::resource::Target;
pub use self::resource::{Key, Resource};
use self::reviews::People;
pub use self::reviews::{CLIENT, jwt};
use self::rights::User;
pub use self::store::{Backup, Store};
use crate::pki::TestCa;

/// The node whose certificate [`FakeApi::client_file`] has.
pub const NODE: &str = "edge-1";

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    /// Nobody, when it was refused.
    pub user: Option<String>,
    /// Whether its connection has a client certificate.
    pub certificate: bool,
    /// Its bearer token.
    pub token: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    /// Its body, or null.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn is_watch(&self) -> bool {
        self.query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"))
    }
}

/// What was put, and the version that it has got.
#[derive(Debug, Clone)]
pub struct Written {
    pub version: u64,
    pub object: Value,
}

impl Written {
    /// As an item of a list: without kind and version.
    pub fn json(&self) -> String {
        encode::untyped(&self.object)
    }
}

type Reactor = Box<dyn FnMut(&mut Store) + Send>;

struct State {
    store: Store,
    people: People,
    requests: Vec<Seen>,
    page: usize,
    listening: Listening,
    connections: usize,
    reactors: Vec<Reactor>,
}

impl State {
    /// What a path is about, if there is such a thing.
    fn target(&self, path: &str) -> Result<(Target, Kind), Failure> {
        let known = Target::parse(path).and_then(|target| {
            let kind = self.store.kinds.of(&target.resource)?.clone();
            Some((target, kind))
        });
        known.ok_or_else(|| Failure::new(404, "the server could not find the requested resource"))
    }

    fn authorise(&self, user: &User, verb: &str, target: &Target) -> Result<(), Failure> {
        let resource = match &target.sub {
            Some(sub) => format!("{}/{sub}", target.resource.plural),
            None => target.resource.plural.clone(),
        };
        let admin = user.groups.iter().any(|group| group == "system:masters");
        if admin || self.people.rights.allows(&user.name, verb, &resource) {
            return Ok(());
        }
        let message = format!("User {:?} cannot {verb} resource {resource:?}", user.name);
        Err(Failure::new(403, &message))
    }
}

struct Shared {
    state: Mutex<State>,
    faults: Faults,
    changed: tokio::sync::watch::Sender<()>,
    cut: Mutex<CancellationToken>,
}

impl Shared {
    /// Lets the world around answer to a change, and tells everybody.
    fn react(&self) {
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        state.people.sign(&mut state.store);
        for reactor in &mut state.reactors {
            reactor(&mut state.store);
        }
        drop(guard);
        self.changed.send_replace(());
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

/// Ends the server with its last handle.
struct Running {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.shared.cut();
    }
}

/// The server. Clones are the same; it stops with the last of them.
#[derive(Clone)]
pub struct FakeApi {
    pub address: SocketAddr,
    /// Signs its certificate, and clients'.
    pub ca: Arc<TestCa>,
    shared: Arc<Shared>,
    files: Arc<tempfile::TempDir>,
    tls: bool,
    _running: Arc<Running>,
}

/// Starting, and what is on the disk.
impl FakeApi {
    /// With TLS and a CA of its own. Whoever has a token is somebody.
    pub async fn start() -> Self {
        let api = Self::with_ca(Arc::new(TestCa::new("kubernetes"))).await;
        api.state().people.any_token = true;
        api
    }

    /// With TLS, for clients with certificates of this CA and known tokens.
    pub async fn with_ca(ca: Arc<TestCa>) -> Self {
        Self::serve(ca, true).await
    }

    /// Without TLS, for clients that are tested for something else. Whoever comes without a token is an administrator.
    pub async fn plain() -> Self {
        let api = Self::serve(Arc::new(TestCa::new("kubernetes")), false).await;
        api.state().people.anonymous = Some(User::new("system:admin", &["system:masters"]));
        api
    }

    async fn serve(ca: Arc<TestCa>, tls: bool) -> Self {
        let state = State {
            store: Store::default(),
            people: People::default(),
            requests: Vec::new(),
            page: usize::MAX,
            listening: Listening::Serve,
            connections: 0,
            reactors: Vec::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            faults: Faults::default(),
            changed: tokio::sync::watch::Sender::default(),
            cut: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let address = serve::start(&shared, &ca, tls, stop.clone()).await;
        let files = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(files.path().join("ca.crt"), &ca.pem).unwrap();
        let running = Arc::new(Running { shared: Arc::clone(&shared), stop });
        let api = Self { address, ca, shared, files, tls, _running: running };
        api.rotate_client_certificate();
        api
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// The CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.files.path().join("ca.crt")
    }

    /// Certificate and key of the node [`NODE`].
    pub fn client_file(&self) -> PathBuf {
        self.files.path().join("client.pem")
    }

    /// Writes a new client certificate for the node, as kubelet does.
    pub fn rotate_client_certificate(&self) {
        let temporary = self.files.path().join("client.new");
        std::fs::write(&temporary, self.ca.node(NODE).file()).unwrap();
        std::fs::rename(temporary, self.client_file()).unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}
