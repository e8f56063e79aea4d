//! What a cluster's etcd has: objects and their history under one counter.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::kinds::{Kind, Kinds};
use super::resource::{Key, Resource, Selector, Target};

/// One step of the counter.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    /// Nothing for a bookmark.
    pub(super) object: Option<Changed>,
}

#[derive(Debug, Clone)]
pub(super) struct Changed {
    pub(super) key: Key,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// What was kept at some time.
#[derive(Debug, Clone)]
pub struct Backup {
    version: u64,
    objects: BTreeMap<Key, Value>,
}

/// The objects. Who changes them here goes past the API: nobody is asked, and watchers see it.
#[derive(Debug)]
pub struct Store {
    pub(super) version: u64,
    /// Watches from before this are answered with 410.
    pub(super) oldest: u64,
    pub(super) history: Vec<Change>,
    /// Another history is another server for those who watch.
    pub(super) generation: u64,
    pub(super) kinds: Kinds,
    objects: BTreeMap<Key, Value>,
    /// Uids so far, by name.
    uids: HashMap<String, u32>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 100,
            oldest: 0,
            history: Vec::new(),
            generation: 0,
            kinds: Kinds::default(),
            objects: BTreeMap::new(),
            uids: HashMap::new(),
        }
    }
}

impl Store {
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// All objects, as the API server orders them.
    pub fn objects(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects.iter()
    }

    pub(super) fn list(&self, target: &Target, selector: &Selector) -> Vec<&Value> {
        let covered = self.objects.iter().filter(|(key, object)| target.covers(key) && selector.fits(object));
        covered.map(|(_, object)| object).collect()
    }

    /// Makes or changes an object: with a new version, the uid that it has, or a new one.
    pub fn put(&mut self, key: &Key, object: Value) -> Value {
        let before = self.objects.get(key).cloned();
        let after = self.store(key, object);
        let changed = Changed { key: key.clone(), before, after: Some(after.clone()) };
        self.history.push(Change { version: self.version, object: Some(changed) });
        after
    }

    /// The same, but an object that would stay as it is keeps its version, too.
    pub fn set(&mut self, key: &Key, object: Value) -> Value {
        match self.objects.get(key) {
            Some(before) if self.same(key, before, &object) => before.clone(),
            _ => self.put(key, object),
        }
    }

    fn same(&self, key: &Key, before: &Value, after: &Value) -> bool {
        let mut after = after.clone();
        self.complete(key, &mut after);
        for field in ["resourceVersion", "uid"] {
            after["metadata"][field] = before["metadata"][field].clone();
        }
        *before == after
    }

    /// The same as [`put`](Self::put), but no watch ever hears of it.
    pub(super) fn store(&mut self, key: &Key, mut object: Value) -> Value {
        self.version += 1;
        self.complete(key, &mut object);
        let before = self.objects.get(key).map(|before| before["metadata"]["uid"].clone());
        if !object["metadata"]["uid"].is_null() {
            // As the test wants it.
        } else if let Some(uid) = before {
            object["metadata"]["uid"] = uid;
        } else {
            let count = self.uids.entry(key.name().to_owned()).or_default();
            *count += 1;
            let uid = if *count == 1 {
                format!("uid-{}", key.name())
            } else {
                format!("uid-{}-{count}", key.name())
            };
            object["metadata"]["uid"] = uid.into();
        }
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key.clone(), object.clone());
        object
    }

    /// What every object has.
    fn complete(&self, key: &Key, object: &mut Value) {
        object["metadata"]["name"] = key.name().into();
        if let Some(namespace) = key.namespace() {
            object["metadata"]["namespace"] = namespace.into();
        }
        let kind = self.kinds.of(&key.resource).map(|kind| kind.name.clone());
        if let Some(kind) = kind.filter(|_| object["kind"].is_null()) {
            object["kind"] = kind.into();
        }
        if object["apiVersion"].is_null() {
            object["apiVersion"] = key.resource.api_version().into();
        }
    }

    pub fn remove(&mut self, key: &Key) -> Option<Value> {
        let object = self.objects.remove(key)?;
        self.version += 1;
        let changed = Changed { key: key.clone(), before: Some(object.clone()), after: None };
        self.history.push(Change { version: self.version, object: Some(changed) });
        Some(object)
    }

    /// A kind of its own.
    pub fn define(&mut self, resource: Resource, kind: Kind) {
        self.kinds.define(resource, kind);
    }

    /// Takes it back: its path is unknown.
    pub fn forget(&mut self, resource: &Resource) {
        self.kinds.forget(resource);
    }

    /// Counter of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn bookmark(&mut self) -> u64 {
        // Something of another resource has moved the version on.
        self.version += 10;
        self.history.push(Change { version: self.version, object: None });
        self.version
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
    }

    pub(super) fn backup(&self) -> Backup {
        Backup { version: self.version, objects: self.objects.clone() }
    }

    pub(super) fn restore(&mut self, backup: Backup, bump: u64) {
        self.objects = backup.objects;
        self.version = backup.version + bump;
        self.history.clear();
        self.generation += 1;
        // With a bump everything before is marked compacted (`etcdutl --bump-revision --mark-compacted`).
        self.oldest = if bump > 0 { self.version } else { 0 };
    }

    /// Counts anew from `version`; objects from lower ones.
    pub(super) fn start_over(&mut self, version: u64, other_uids: bool) {
        for (number, (key, object)) in self.objects.iter_mut().enumerate() {
            object["metadata"]["resourceVersion"] = (number + 11).to_string().into();
            if other_uids {
                object["metadata"]["uid"] = format!("other-uid-{number}-{}", key.name()).into();
            }
        }
        let backup = Backup { version, objects: self.objects.clone() };
        self.restore(backup, 0);
    }
}
