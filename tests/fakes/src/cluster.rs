//! An API server and the world around it: what Deployments, DaemonSets and the keepers on [`node`](crate::node)s make
//! of the objects, after every write and until nothing changes.

mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use yurt_api::names;

use crate::api_server::{FakeApi, Key, Kind, Resource, Store};
use crate::node;

/// How the world around the API server behaves.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// No node has the image.
    pub no_image: bool,
    /// These nodes cannot pull the image at the moment.
    pub unpulled: BTreeSet<String>,
    /// Keepers of these nodes swap a new release back.
    pub swapping: BTreeSet<String>,
    /// Keepers of these nodes fail.
    pub failing: BTreeSet<String>,
    /// Keepers of these nodes do nothing.
    pub asleep: BTreeSet<String>,
    /// `verb resource` pairs that are forbidden.
    pub denied: BTreeSet<String>,
}

/// A whole cluster. Clones are the same.
#[derive(Clone)]
pub struct FakeCluster {
    pub api: FakeApi,
    pub address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
}

/// Where the policies' parameter is, while its definition exists.
pub fn parameter() -> String {
    custom().key(None, names::AUTONOMOUS_NODES).path()
}

/// Our custom resource.
fn custom() -> Resource {
    Resource::new("/apis/autonomy.openyurt.io/v1alpha1", "autonomousnodes")
}

impl FakeCluster {
    /// One with these nodes.
    pub async fn start(nodes: &[Value]) -> Self {
        let api = FakeApi::plain().await;
        for node in nodes {
            api.put("/api/v1/nodes", node.clone());
        }
        api.put("/api/v1/namespaces/kube-system", json!({}));
        let behaviour = Arc::<Mutex<Behaviour>>::default();
        let world = Arc::clone(&behaviour);
        api.react(move |store| run(store, &world.lock().unwrap()));
        Self { address: api.address, api, behaviour }
    }

    /// Changes how the world behaves; takes effect at once.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut behaviour = self.behaviour.lock().unwrap();
        change(&mut behaviour);
        let denied = behaviour.denied.clone();
        drop(behaviour);
        self.api.allow_everything();
        for (verb, resource) in denied.iter().filter_map(|pair| pair.split_once(' ')) {
            self.api.forbid("*", verb, resource);
        }
        self.api.change(|_| ());
    }

    /// Waits until something is true.
    pub async fn until(&self, what: impl Fn(&Self) -> bool) {
        self.api.until("the cluster's state", |_| what(self)).await;
    }

    /// Names of all objects of a resource.
    pub fn names(&self, plural: &str) -> Vec<String> {
        self.api.names(plural)
    }

    pub fn node(&self, name: &str) -> Value {
        self.api.get(&node::key(name).path()).unwrap()
    }

    /// Changes an object that is there.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let key = Key::of(path);
        self.api.change(|store| {
            let mut object = store.get(&key).unwrap().clone();
            change(&mut object);
            store.put(&key, object);
        });
    }

    /// Everything but what changes with every write.
    pub fn snapshot(&self) -> BTreeMap<String, Value> {
        self.api.snapshot()
    }
}

fn run(store: &mut Store, behaviour: &Behaviour) {
    loop {
        let before = store.version();
        definitions(store);
        workloads::run(store, behaviour);
        node::keepers(store, behaviour);
        if store.version() == before {
            return;
        }
    }
}

/// A definition is established; without it there are no objects of its kind.
fn definitions(store: &mut Store) {
    let name = "autonomousnodes.autonomy.openyurt.io";
    let key = Resource::new("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions").key(None, name);
    let custom = custom();
    if let Some(mut definition) = store.get(&key).cloned() {
        definition["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
        store.set(&key, definition);
        store.define(custom, Kind::custom("AutonomousNodes"));
    } else {
        let all = store.objects().filter(|(key, _)| key.resource == custom);
        let all: Vec<_> = all.map(|(key, _)| key.clone()).collect();
        all.iter().for_each(|key| drop(store.remove(key)));
        store.forget(&custom);
    }
}
