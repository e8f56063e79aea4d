//! What a test does to the objects past the API, and sees of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::encode::{self, Encoding};
use super::kinds::Kind;
use super::resource::{Key, Resource, Selector, Target};
use super::store::{Backup, Store};
use super::{FakeApi, Written};

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

/// History.
impl FakeApi {
    /// Sends a bookmark to every watch that wants some. Something of another resource has moved the version on.
    pub fn bookmark(&self) -> u64 {
        self.change(Store::bookmark)
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
