//! A live view of the nodes and of our pods and workloads, kept by watches. The commands that wait for something
//! look at the view after each change; nothing polls.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Event, Node, Pod},
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use yurt_api::names;

use crate::{
    cluster::pods::{self, Trouble},
    connect::session::Session,
    error::phrase,
    output::words::human,
};

/// How long pulls of an image may fail before that counts as something that will not pass. kubelet has tried about
/// five times by then (it backs off from 10 s, doubling).
const PULL_PATIENCE: Duration = Duration::from_secs(120);
/// How often the clock is looked at while nothing changes.
const TICK: Duration = Duration::from_secs(1);

/// Objects of one kind by name, replaced as a whole when a watch starts over.
///
/// kube's `reflector::store` does the same behind a lock that is shared by tasks. Here one task owns everything, and wants
/// what that store does not have: to be asked without waiting whether its first list is complete, and an order, so that
/// of two pods in trouble the same one is named each time.
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
    /// Events about pods, where they may be read.
    pub events: Store<Event>,
    /// Since when pulls of a pod's image have been failing.
    pub pulls: BTreeMap<String, Instant>,
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

    /// What keeps a pod from running, and for how long pulls of its image have failed; of a pod that waits for
    /// something else, what the newest Event says.
    pub fn trouble(&self, pod: &Pod, now: Instant) -> Option<Trouble> {
        match pods::trouble(pod) {
            Some(Trouble::Pull(text)) => {
                let since = self.pulls.get(&pod.name_any()).copied().unwrap_or(now);
                let lasted = now.saturating_duration_since(since);
                Some(if lasted >= PULL_PATIENCE {
                    Trouble::Fatal(format!("{text} (for {})", human(lasted)))
                } else {
                    Trouble::Pull(text)
                })
            }
            None if pods::is_pending(pod) => self.event(pod).map(Trouble::Passing),
            other => other,
        }
    }

    /// What the newest Event about a pod says.
    pub fn event(&self, pod: &Pod) -> Option<String> {
        pods::newest_event(self.events.values(), pod).map(|event| pods::event_text(pod, event))
    }

    /// Takes note of the pulls that fail. Between two attempts a pod may look as if nothing had happened, so one that
    /// has failed is forgotten only when the pod runs or has gone.
    fn note_pulls(&mut self, now: Instant) {
        let pods = &self.pods;
        self.pulls.retain(|name, _| pods.get(name).is_some_and(|pod| !pods::is_ready(pod)));
        for pod in pods.values() {
            if matches!(pods::trouble(pod), Some(Trouble::Pull(_))) {
                self.pulls.entry(pod.name_any()).or_insert(now);
            }
        }
    }

    fn change(&mut self, change: Change) {
        self.lost_contact = match change {
            // Events are for a better message: whether they come says nothing about anything else.
            Change::Event(event) => return self.events.change(event),
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
    Event(watcher::Event<Event>),
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
        let of_pods = watcher::Config::default().fields("involvedObject.kind=Pod");
        let events = watcher(Api::namespaced(client(), namespace), of_pods).default_backoff();
        changes.push(events.filter_map(async |event| event.ok().map(Change::Event)).boxed());
        Self { changes, view: View::default() }
    }

    /// The view as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        match self.changes.next().await {
            Some(change) => {
                self.view.change(change);
                self.view.note_pulls(Instant::now());
            }
            // The watches restart for ever; if they ended, whoever waits must meet its deadline.
            None => std::future::pending().await,
        }
    }

    /// Waits for a change, or for a second: the clock decides about deadlines even when nothing changes.
    pub async fn changed_or_tick(&mut self) {
        let _ = tokio::time::timeout(TICK, self.changed()).await;
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

    fn waiting(reason: &str, phase: &str) -> Pod {
        let ready = if phase == "Running" { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "n" },
            "spec": { "nodeName": "edge", "containers": [{ "name": "c", "image": "r/y:1" }] },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready }], "containerStatuses": [{ "name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": { "waiting": { "reason": reason } } }] }
        }))
        .unwrap()
    }

    #[test]
    fn a_pull_becomes_fatal_when_it_has_failed_for_two_minutes() {
        let start = Instant::now();
        let mut view = View::default();
        let mut show = |pod: Pod, at: Instant| {
            view.pods = [pod.clone()].into_iter().collect();
            view.note_pulls(at);
            view.trouble(&pod, at)
        };
        assert!(matches!(show(waiting("ErrImagePull", "Pending"), start), Some(Trouble::Pull(_))));
        let almost = start + PULL_PATIENCE - Duration::from_secs(1);
        assert_eq!(show(waiting("ContainerCreating", "Pending"), almost), None, "the next attempt");
        assert!(matches!(show(waiting("ImagePullBackOff", "Pending"), almost), Some(Trouble::Pull(_))));
        let trouble = show(waiting("ErrImagePull", "Pending"), start + PULL_PATIENCE);
        let Some(Trouble::Fatal(text)) = trouble else { panic!("{trouble:?}") };
        assert!(text.ends_with("(for 2m0s)"), "{text}");
        // A pod that has run since starts anew.
        assert_eq!(show(waiting("", "Running"), start + PULL_PATIENCE), None);
        let again = show(waiting("ErrImagePull", "Pending"), start + PULL_PATIENCE * 2);
        assert!(matches!(again, Some(Trouble::Pull(_))), "{again:?}");
    }

    #[test]
    fn a_pod_that_waits_says_what_its_newest_event_says() {
        let event: Event = serde_json::from_value(json!({
            "metadata": { "name": "e" }, "type": "Warning", "reason": "FailedMount", "message": "no /etc/kubernetes",
            "involvedObject": { "kind": "Pod", "name": "p", "namespace": "n" }
        }))
        .unwrap();
        let view = View { events: [event].into_iter().collect(), ..View::default() };
        let text = "pod p on node edge: FailedMount: no /etc/kubernetes";
        let pod = waiting("ContainerCreating", "Pending");
        assert_eq!(view.trouble(&pod, Instant::now()), Some(Trouble::Passing(text.into())));
        assert_eq!(view.trouble(&waiting("", "Running"), Instant::now()), None, "long ago");
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
