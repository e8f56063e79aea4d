//! kube-apiserver in memory: objects of any kind behind list, watch and writes, in JSON and protobuf, over TLS with
//! HTTP/2 or in the clear, for as many callers as there are. It remembers every request, and goes wrong on demand.
//!
//! A request goes `serve → answer (who is it, is there a fault) → read | write → store`, and an event from the store's
//! history to each `watch`. The store is one counter and one history, as etcd is; what Kubernetes does around it
//! (controllers, kubelets) is left to [reactors](FakeApi::react), see [`cluster`](crate::cluster).

mod answer;
mod encode;
mod faults;
mod kinds;
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

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use self::encode::Encoding;
use self::encode::Failure;
use self::faults::Faults;
pub use self::faults::{Fault, Listening, When};
pub use self::kinds::Kind;
pub use self::resource::{Key, Resource};
use self::resource::{Selector, Target};
use self::reviews::People;
pub use self::reviews::{CLIENT, KUBELET_SERVING, jwt};
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

    /// With TLS, for clients with certificates of this CA and known tokens. It signs serving certificates.
    pub async fn with_ca(ca: Arc<TestCa>) -> Self {
        let api = Self::serve(Arc::clone(&ca), true).await;
        api.sign(KUBELET_SERVING, Some(ca));
        api
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

/// Objects, past the API.
impl FakeApi {
    /// Changes objects as the rest of the cluster does.
    pub fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let changed = change(&mut self.state().store);
        self.shared.react();
        changed
    }

    /// Makes or changes an object. `path` is its own, or that of the collection for a name in the metadata.
    pub fn put(&self, path: &str, object: Value) -> Written {
        let target = Target::parse(path).unwrap();
        let name = target.name.as_deref().or(object["metadata"]["name"].as_str());
        let key = target.named(name.unwrap_or_else(|| panic!("no name: {path} {object}")));
        let object = self.change(|store| store.put(&key, object));
        let version = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        Written { version, object }
    }

    /// The simplest object in the core group: a label `app`, and `data`.
    pub fn put_data(&self, plural: &str, namespace: &str, name: &str, app: &str, data: &str) -> Written {
        let key = Resource::core(plural).key(Some(namespace), name);
        self.put(&key.path(), json!({"metadata": {"labels": {"app": app}}, "data": {"k": data}}))
    }

    pub fn delete(&self, path: &str) {
        let deleted = self.change(|store| store.remove(&Key::of(path)));
        assert!(deleted.is_some(), "{path} does not exist");
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().store.get(&Key::of(path)).cloned()
    }

    /// Names of all objects of a resource, whatever their namespace.
    pub fn names(&self, plural: &str) -> Vec<String> {
        let state = self.state();
        let ours = state.store.objects().filter(|(key, _)| key.plural() == plural);
        ours.map(|(key, _)| key.name().to_owned()).collect()
    }

    /// Everything by its path, but for what changes with every write and says nothing.
    pub fn snapshot(&self) -> BTreeMap<String, Value> {
        let state = self.state();
        let all = state.store.objects().map(|(key, object)| {
            let mut object = object.clone();
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.remove("resourceVersion");
            metadata.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
            (key.path(), object)
        });
        all.collect()
    }

    /// The list that the server would send now, of a resource in the core group.
    pub fn list(
        &self,
        plural: &str,
        kind: &str,
        label_selector: &str,
        encoding: impl Into<Encoding>,
    ) -> Bytes {
        let state = self.state();
        let (target, known) = state.target(&format!("/api/v1/{plural}")).unwrap();
        assert_eq!(known.name, kind);
        let items = state.store.list(&target, &Selector::new(label_selector, ""));
        encode::list(encoding.into(), &known, "v1", &state.store.version().to_string(), None, &items)
    }

    /// A kind of its own, such as a custom resource's.
    pub fn define(&self, resource: Resource, kind: Kind) {
        self.change(|store| store.define(resource, kind));
    }

    /// Version of the last change.
    pub fn version(&self) -> u64 {
        self.state().store.version()
    }

    /// Called after every change, with the objects.
    pub fn react(&self, reactor: impl FnMut(&mut Store) + Send + 'static) {
        self.state().reactors.push(Box::new(reactor));
        self.shared.react();
    }

    /// Waits until something is true of the objects or the requests.
    pub async fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let wait = async {
            while !condition(self) {
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        assert!(waited.is_ok(), "not in time: {what}");
    }
}

/// People.
impl FakeApi {
    pub fn accept_token(&self, token: &str, user: &str) {
        self.accept_token_of(token, user, &[]);
    }

    pub fn accept_token_of(&self, token: &str, user: &str, groups: &[&str]) {
        self.state().people.tokens.insert(token.to_owned(), User::new(user, groups));
    }

    /// From now on nobody is this.
    pub fn refuse_token(&self, token: &str) {
        self.state().people.refused_tokens.insert(token.to_owned());
    }

    /// Nobody but administrators may do anything that is not [allowed](Self::allow).
    pub fn allow_nothing(&self) {
        self.state().people.rights.nothing();
    }

    /// `user`, `verb` and `resource` (`pods`, `pods/log`) may end in `*`. The last rule that fits decides.
    pub fn allow(&self, user: &str, verb: &str, resource: &str) {
        self.state().people.rights.rule(user, verb, resource, true);
    }

    /// The opposite. Access reviews hear of it also when an administrator asks, who is never refused anything.
    pub fn forbid(&self, user: &str, verb: &str, resource: &str) {
        self.state().people.rights.rule(user, verb, resource, false);
    }

    /// Takes all rules back.
    pub fn allow_everything(&self) {
        self.state().people.rights = rights::Rights::default();
    }

    /// Approves and signs certificate signing requests for this signer, also those that wait already; or stops to.
    pub fn sign(&self, signer: &str, ca: Option<Arc<TestCa>>) {
        match ca {
            Some(ca) => drop(self.state().people.signers.insert(signer.to_owned(), ca)),
            None => drop(self.state().people.signers.remove(signer)),
        }
        self.shared.react();
    }
}

/// Requests so far.
impl FakeApi {
    pub fn requests(&self) -> Vec<Seen> {
        self.state().requests.clone()
    }

    /// Requests whose method and path are these.
    pub fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let state = self.state();
        state.requests.iter().filter(|seen| seen.method == method && seen.path == path).cloned().collect()
    }

    fn count(&self, fits: impl Fn(&Seen) -> bool) -> usize {
        self.state().requests.iter().filter(|seen| fits(seen)).count()
    }

    /// Requests that are no watches.
    pub fn lists(&self) -> usize {
        self.count(|seen| !seen.is_watch())
    }

    pub fn watches(&self) -> usize {
        self.count(Seen::is_watch)
    }

    /// Requests that are no reads.
    pub fn writes(&self) -> usize {
        self.count(|seen| seen.method != "GET")
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.state().connections
    }
}

/// Faults.
impl FakeApi {
    /// From now on this becomes of such requests. The first that fits counts.
    pub fn fault(&self, when: When, fault: Fault) {
        self.shared.faults.arm(when, fault, None);
    }

    /// The same, so many times.
    pub fn fault_times(&self, when: When, fault: Fault, times: usize) {
        self.shared.faults.arm(when, fault, Some(times));
    }

    /// Everything is as it should be again.
    pub fn no_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request is answered with this status, or none.
    pub fn answer_with(&self, code: Option<u16>) {
        self.no_faults();
        if let Some(code) = code {
            self.fault(When::all(), Fault::Answer(code));
        }
    }

    pub fn listen(&self, listening: Listening) {
        self.state().listening = listening;
        self.shared.changed.send_replace(());
    }

    /// Ends every connection and takes no more.
    pub fn cut(&self) {
        self.listen(Listening::Refuse);
        self.cut_connections();
    }

    /// Ends every connection.
    pub fn cut_connections(&self) {
        self.shared.cut();
    }

    /// Takes connections again.
    pub fn restore(&self) {
        self.listen(Listening::Serve);
    }

    /// Sends a bookmark to every watch that wants some. Something of another resource has moved the version on.
    pub fn bookmark(&self) -> u64 {
        self.change(Store::bookmark)
    }

    /// The most objects a page, whatever was asked for.
    pub fn page_size(&self, objects: usize) {
        self.state().page = objects;
    }

    /// Forgets history: every watch from before now is answered with 410.
    pub fn compact(&self) {
        self.change(Store::compact);
    }

    /// What etcd would have on the disk.
    pub fn backup(&self) -> Backup {
        self.state().store.backup()
    }

    /// The API server starts with an older state of etcd. Without a bump versions go back (`etcdutl snapshot
    /// restore`), with one the collection's go on and the objects' do not (`--bump-revision --mark-compacted`).
    pub fn restore_from(&self, backup: Backup, bump: u64) {
        self.change(|store| store.restore(backup, bump));
        self.cut_connections();
    }

    /// A backup was restored of which nothing is known: versions start over.
    pub fn restore_backup(&self) {
        self.change(|store| store.start_over(50, false));
        self.cut_connections();
    }

    /// Another cluster is at this address: the same names, other uids, other versions.
    pub fn become_another_cluster(&self) {
        self.change(|store| store.start_over(50, true));
        self.cut_connections();
    }
}
