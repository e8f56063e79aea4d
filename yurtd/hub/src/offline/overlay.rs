//! Which pods' status is newer here than at the API server, for the EndpointSlices of this node.
//!
//! A pod is one while the journal has a change of it, and for [`HOLD`] afterwards: between its replay and the moment at
//! which the endpoint-slice controller has written its slice the slice has the address from before, which may lead
//! nowhere. During that time the pod is shown as the API server has it by then, if it has heard more of it; a slice that
//! says the same is shown as it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Offline;
use crate::caller::Permit;
use crate::replica::Publishing;
use crate::view::Lookup;
use crate::view::overlay::{Book, PodNow};
use crate::wire::{Encoding, Resource};

/// For the endpoint-slice controller to hear of a replayed status. It batches changes of a Service within seconds.
const HOLD: Duration = Duration::from_secs(30);

/// Keeps the views' EndpointSlices up to date with the journal. Ends with `stop`.
pub(crate) async fn run(offline: Arc<Offline>, node: Permit, stop: CancellationToken) {
    let mut journal = offline.journal().subscribe();
    let mut pods = Pods::default();
    let mut publishing = Publishing::default();
    let mut shown = None;
    loop {
        journal.mark_unchanged();
        let views = offline.views();
        let mut progress = views.progress(&node, &Resource::new("", "v1", "pods"));
        pods.update(offline.pending_pods(&node), Instant::now(), |pod| offline.known_pod(&node, pod));
        let now = pods.now();
        let services =
            if now.is_empty() { HashSet::new() } else { views.publishing(&mut publishing).clone() };
        let book = Book::new(now, services);
        // Also the first one, when it is empty: an earlier process may have left something.
        if shown.as_ref() != Some(&book) {
            views.show(book.clone()).await;
            shown = Some(book);
        }
        let next = pods.next_end();
        let ends = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            if next.is_none() || progress.is_empty() {
                return std::future::pending().await;
            }
            let _ = select_all(progress.iter_mut().map(|progress| progress.changed().boxed())).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = journal.changed() => if changed.is_err() { return },
            () = ends => {}
            () = heard => {}
        }
    }
}

impl Offline {
    /// The pods in the journal, as they are here.
    fn pending_pods(&self, node: &Permit) -> HashMap<String, PodNow> {
        let mut pods = HashMap::new();
        for object in self.journal().objects().into_iter().filter(|object| object.plural == "pods") {
            let change = match self.journal().change(&object) {
                Ok(Some(change)) => change,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, path = object.path(), "a change in the journal cannot be read");
                    continue;
                }
            };
            let Some(pod) = self.stored_pod(node, object.namespace.as_deref(), &object.name) else {
                continue;
            };
            // What has come from the API server since does not yet know of the change.
            let pod = PodNow::of(&change.over(&pod));
            if pod.uid == change.uid() {
                pods.insert(pod.uid.clone(), pod);
            }
        }
        pods
    }

    /// The pod as its view has it, and its resourceVersion.
    fn known_pod(&self, node: &Permit, pod: &PodNow) -> Option<(u64, PodNow)> {
        let stored = self.stored_pod(node, Some(&pod.namespace), &pod.name)?;
        let version = stored["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let stored = PodNow::of(&stored);
        (stored.uid == pod.uid).then_some((version, stored))
    }

    fn stored_pod(&self, node: &Permit, namespace: Option<&str>, name: &str) -> Option<Value> {
        let pods = Resource::new("", "v1", "pods");
        match self.views().lookup(node, &pods, namespace, name, &[Encoding::Json]) {
            Lookup::Found { body, .. } => serde_json::from_slice(&body).ok(),
            _ => None,
        }
    }
}

/// A pod whose change has left the journal.
#[derive(Debug)]
struct Held {
    pod: PodNow,
    /// Of its view's version then: a newer one knows more.
    version: u64,
    until: Instant,
}

/// The pods to show.
#[derive(Debug, Default)]
struct Pods {
    pending: HashMap<String, PodNow>,
    held: HashMap<String, Held>,
}

impl Pods {
    /// `pending`: what the journal has now; `known`: a pod as its view has it, with its resourceVersion.
    fn update(
        &mut self,
        pending: HashMap<String, PodNow>,
        now: Instant,
        known: impl Fn(&PodNow) -> Option<(u64, PodNow)>,
    ) {
        for (uid, pod) in self.pending.drain() {
            let version = known(&pod).map_or(0, |(version, _)| version);
            self.held.insert(uid, Held { pod, version, until: now + HOLD });
        }
        self.held.retain(|uid, held| held.until > now && !pending.contains_key(uid));
        for held in self.held.values_mut() {
            if let Some((version, pod)) = known(&held.pod).filter(|(version, _)| *version > held.version) {
                (held.version, held.pod) = (version, pod);
            }
        }
        self.pending = pending;
    }

    fn now(&self) -> HashMap<String, PodNow> {
        let held = self.held.iter().map(|(uid, held)| (uid, &held.pod));
        held.chain(&self.pending).map(|(uid, pod)| (uid.clone(), pod.clone())).collect()
    }

    /// When the next pod is shown no more.
    fn next_end(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ip: &str) -> PodNow {
        PodNow::of(&json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": "u-1"},
                           "status": {"podIP": ip}}))
    }

    fn pending(ip: &str) -> HashMap<String, PodNow> {
        HashMap::from([("u-1".to_owned(), pod(ip))])
    }

    #[test]
    fn a_pod_is_held_after_its_replay_and_not_for_ever() {
        let (mut pods, start) = (Pods::default(), Instant::now());
        let upstream = |version: u64, ip: &'static str| move |_: &PodNow| Some((version, pod(ip)));
        pods.update(pending("10.0.0.9"), start, upstream(5, "10.0.0.1"));
        assert_eq!((pods.now(), pods.next_end()), (pending("10.0.0.9"), None));
        // Replayed. What the view has is not newer than it was.
        pods.update(HashMap::new(), start, upstream(5, "10.0.0.1"));
        assert_eq!((pods.now(), pods.next_end()), (pending("10.0.0.9"), Some(start + HOLD)));
        // kubelet has gone on telling the API server.
        pods.update(HashMap::new(), start + HOLD / 2, upstream(7, "10.0.0.10"));
        assert_eq!(pods.now(), pending("10.0.0.10"));
        pods.update(HashMap::new(), start + HOLD, upstream(7, "10.0.0.10"));
        assert_eq!((pods.now(), pods.next_end()), (HashMap::new(), None));
    }

    #[test]
    fn a_pod_that_changes_again_without_a_link_is_as_it_is_here() {
        let (mut pods, start) = (Pods::default(), Instant::now());
        let nothing = |_: &PodNow| None;
        pods.update(pending("10.0.0.9"), start, nothing);
        pods.update(HashMap::new(), start, nothing);
        pods.update(pending("10.0.0.11"), start, nothing);
        assert_eq!((pods.now(), pods.next_end()), (pending("10.0.0.11"), None));
    }
}
