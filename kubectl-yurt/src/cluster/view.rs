//! A live view of the nodes and of our pods and workloads, kept by watches. The commands that wait for something
//! look at the view after each change; nothing polls.

use std::collections::BTreeMap;

use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Node, Pod},
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use yurt_api::names;

use crate::{cluster::pods, error::phrase, resolve::session::Session};

/// Objects of one kind by name, replaced as a whole when a watch starts over.
#[derive(Debug, Clone)]
pub struct Store<K> {
    items: BTreeMap<String, K>,
    relisted: Option<BTreeMap<String, K>>,
    complete: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), relisted: None, complete: false }
    }
}

impl<K: Resource> Store<K> {
    fn change(&mut self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.relisted = Some(BTreeMap::new()),
            watcher::Event::InitApply(object) => {
                self.relisted.get_or_insert_default().insert(object.name_any(), object);
            }
            watcher::Event::InitDone => {
                self.items = self.relisted.take().unwrap_or_default();
                self.complete = true;
            }
            watcher::Event::Apply(object) => {
                self.items.insert(object.name_any(), object);
            }
            watcher::Event::Delete(object) => {
                self.items.remove(&object.name_any());
            }
        }
    }

    /// The object of this name.
    pub fn get(&self, name: &str) -> Option<&K> {
        self.items.get(name)
    }

    /// All objects, by name.
    pub fn values(&self) -> impl Iterator<Item = &K> {
        self.items.values()
    }
}

#[cfg(test)]
impl<K: Resource> FromIterator<K> for Store<K> {
    fn from_iter<I: IntoIterator<Item = K>>(objects: I) -> Self {
        let items = objects.into_iter().map(|object| (object.name_any(), object)).collect();
        Self { items, relisted: None, complete: true }
    }
}

/// What the watches have shown so far.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Every node.
    pub nodes: Store<Node>,
    /// Our pods.
    pub pods: Store<Pod>,
    /// Our Deployments.
    pub deployments: Store<Deployment>,
    /// Our DaemonSets.
    pub daemon_sets: Store<DaemonSet>,
    /// Why the API server cannot be reached at the moment.
    pub lost_contact: Option<String>,
}

impl View {
    /// True once each watch has shown everything once.
    pub fn is_complete(&self) -> bool {
        self.nodes.complete && self.pods.complete && self.deployments.complete && self.daemon_sets.complete
    }

    /// The keeper's pod on a node; of several, the one that stays.
    pub fn keeper(&self, node: &str) -> Option<&Pod> {
        let on_node =
            |pod: &&Pod| pods::is_of_daemon_set(pod, names::KEEPER) && pods::node_of(pod) == Some(node);
        self.pods.values().filter(on_node).min_by_key(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    fn change(&mut self, change: Change) {
        self.lost_contact = match change {
            Change::Node(event) => {
                self.nodes.change(event);
                None
            }
            Change::Pod(event) => {
                self.pods.change(event);
                None
            }
            Change::Deployment(event) => {
                self.deployments.change(event);
                None
            }
            Change::DaemonSet(event) => {
                self.daemon_sets.change(event);
                None
            }
            Change::Lost(why) => Some(why),
        };
    }
}

enum Change {
    Node(watcher::Event<Node>),
    Pod(watcher::Event<Pod>),
    Deployment(watcher::Event<Deployment>),
    DaemonSet(watcher::Event<DaemonSet>),
    Lost(String),
}

/// Keeps a [`View`] up to date while it is asked for the next change.
pub struct Observer {
    changes: SelectAll<BoxStream<'static, Change>>,
    view: View,
}

impl Observer {
    /// Starts the watches.
    pub fn new(session: &Session) -> Self {
        let client = || session.client.clone();
        let namespace = &session.yurt_namespace;
        let ours = format!("{}={}", names::LABEL_PART_OF, names::PART_OF);
        let server = session.server();
        let mut changes = SelectAll::new();
        changes.push(follow(Api::all(client()), "", &server, Change::Node));
        changes.push(follow(Api::namespaced(client(), namespace), &ours, &server, Change::Pod));
        changes.push(follow(Api::namespaced(client(), namespace), &ours, &server, Change::Deployment));
        changes.push(follow(Api::namespaced(client(), namespace), &ours, &server, Change::DaemonSet));
        Self { changes, view: View::default() }
    }

    /// The view as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        match self.changes.next().await {
            Some(change) => self.view.change(change),
            // The watches restart for ever; if they ended, whoever waits must meet its deadline.
            None => std::future::pending().await,
        }
    }

    /// Waits until each watch has shown everything once.
    pub async fn complete(&mut self) {
        while !self.view.is_complete() {
            self.changed().await;
        }
    }
}

fn follow<K>(
    api: Api<K>,
    labels: &str,
    server: &str,
    wrap: fn(watcher::Event<K>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().labels(labels);
    let server = server.to_owned();
    watcher(api, config)
        .default_backoff()
        .map(move |event| match event {
            Ok(event) => wrap(event),
            Err(error) => Change::Lost(describe(&error, &server)),
        })
        .boxed()
}

fn describe(error: &watcher::Error, server: &str) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => phrase(error, server),
        other => crate::error::chain(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
    }

    #[test]
    fn a_relist_replaces_everything_at_once() {
        let mut store = Store::default();
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(node("a")),
            watcher::Event::InitApply(node("b")),
            watcher::Event::InitDone,
            watcher::Event::Init,
            watcher::Event::InitApply(node("b")),
        ] {
            store.change(event);
        }
        assert!(store.get("a").is_some(), "not before the list is complete");
        store.change(watcher::Event::InitDone);
        assert!(store.get("a").is_none());
        store.change(watcher::Event::Delete(node("b")));
        assert_eq!(store.values().count(), 0);
    }

    #[test]
    fn of_two_keepers_on_a_node_the_one_that_stays_counts() {
        let pod = |name: &str, deleted: bool| -> Pod {
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": { "name": name, "deletionTimestamp": time, "ownerReferences": [
                    { "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "yurtd", "uid": "" } ] },
                "spec": { "nodeName": "edge", "containers": [] }
            }))
            .unwrap()
        };
        let view = View { pods: [pod("a", true), pod("b", false)].into_iter().collect(), ..View::default() };
        assert_eq!(view.keeper("edge").map(|pod| pod.name_any()), Some("b".into()));
        assert!(view.keeper("other").is_none());
    }
}
