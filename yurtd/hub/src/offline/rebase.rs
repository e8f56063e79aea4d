//! After the link is back: what has changed without it goes upstream, one patch an object, the difference between what
//! the API server has by then and what it is here; and the local versions are dropped, so that kubelet sees the API
//! server's and puts right what is still different.
//!
//! Objects do not wait for each other. One whose patches fail comes again after a pause of its own, and after some
//! tries it is given up: kubelet compares and patches again. One that a newer patch is being sent for is left alone: if
//! that succeeds, nothing has to be replayed ([`super::Offline::superseded`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::change::Change;
use super::journal::ObjectKey;
use super::patch::PatchType;
use super::{Offline, strategic};
use crate::caller::Permit;
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::replica::Present;
use crate::store::StoreError;
use yurt_node::link::LinkState;

/// Pause after the first failure of an object, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failures of an object while the link is up; then it is left to kubelet.
const MAX_TRIES: u32 = 8;
/// An object that somebody else is busy with is looked at again after this.
const BUSY_AGAIN: Duration = Duration::from_millis(500);
/// For the objects' views to catch up, before the API server is asked for them, in one round; and for a view to hear of
/// a patch.
const VIEW_WITHIN: Duration = Duration::from_secs(3);
/// For an end that is to be taken back while somebody works on its pod.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum RebaseError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The failures of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trouble {
    failures: u32,
    again_at: Instant,
}

/// What becomes of an object after another failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Again(Trouble),
    GiveUp,
}

fn after_failure(before: Option<Trouble>, now: Instant) -> Next {
    let failures = before.map_or(0, |trouble| trouble.failures) + 1;
    if failures >= MAX_TRIES {
        return Next::GiveUp;
    }
    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1)).min(LONGEST_PAUSE);
    Next::Again(Trouble { failures, again_at: now + pause })
}

/// Replays the journal whenever the link is up and there is something in it. Ends with `stop`.
pub(crate) async fn run(
    offline: Arc<Offline>,
    client: NodeClient,
    link: Link,
    node: Permit,
    stop: CancellationToken,
) {
    offline.take_back_ends(&node, true).await;
    let mut state = link.subscribe();
    let mut pending = offline.journal().subscribe();
    let views_until = Instant::now();
    let mut rebase = Rebase { offline, client, link, node, troubles: HashMap::new(), views_until };
    loop {
        let due = *state.borrow_and_update() == LinkState::Online && pending.borrow_and_update().objects > 0;
        let mut again_at = None;
        if due {
            again_at = tokio::select! {
                () = stop.cancelled() => return,
                again_at = rebase.round() => again_at,
            };
        }
        let again = async {
            match again_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = again => {}
            changed = state.changed() => if changed.is_err() { return },
            changed = pending.changed() => if changed.is_err() { return },
        }
    }
}

struct Rebase {
    offline: Arc<Offline>,
    client: NodeClient,
    link: Link,
    node: Permit,
    troubles: HashMap<ObjectKey, Trouble>,
    /// No longer than this are views waited for in this round.
    views_until: Instant,
}

impl Rebase {
    /// Every object that is due, once. Returns when the next one is.
    async fn round(&mut self) -> Option<Instant> {
        let objects = self.offline.journal().objects();
        self.views_until = Instant::now() + VIEW_WITHIN;
        self.troubles.retain(|object, _| objects.binary_search(object).is_ok());
        let mut next: Option<Instant> = None;
        let mut done = 0;
        for object in objects {
            let trouble = self.troubles.get(&object).copied();
            let again_at = match trouble {
                Some(trouble) if trouble.again_at > Instant::now() => Some(trouble.again_at),
                _ => self.object(&object, trouble).await,
            };
            done += usize::from(again_at.is_none());
            next = [next, again_at].into_iter().flatten().min();
            if !self.link.is_online() {
                // It begins anew when the link is back.
                self.troubles.clear();
                return None;
            }
        }
        if done > 0 {
            tracing::info!(objects = done, "what changed while the link was down has been replayed");
        }
        next
    }

    /// One object; returns when it is due again.
    async fn object(&mut self, object: &ObjectKey, trouble: Option<Trouble>) -> Option<Instant> {
        let Some(_claim) = self.offline.journal().try_claim(object) else {
            return Some(Instant::now() + BUSY_AGAIN);
        };
        let path = object.status_path();
        let error = match self.replay(object).await {
            Ok(()) => {
                self.troubles.remove(object);
                return None;
            }
            Err(error) => error,
        };
        // A link that went down says nothing about the object.
        if !self.link.is_online() {
            return None;
        }
        match after_failure(trouble, Instant::now()) {
            Next::Again(trouble) => {
                tracing::warn!(path, %error, "a changed status could not be replayed; trying again");
                self.troubles.insert(object.clone(), trouble);
                Some(trouble.again_at)
            }
            Next::GiveUp => {
                tracing::warn!(path, %error, "a changed status cannot be replayed; kubelet will patch anew");
                self.troubles.remove(object);
                match self.offline.settle(&self.node, object).await {
                    Ok(()) => None,
                    Err(error) => {
                        tracing::warn!(path, %error, "and cannot be forgotten");
                        Some(Instant::now() + LONGEST_PAUSE)
                    }
                }
            }
        }
    }

    async fn replay(&self, object: &ObjectKey) -> Result<(), RebaseError> {
        if let Some(change) = self.offline.journal().change(object)? {
            match self.send(object, &change).await {
                Ok(()) => {}
                // Deleted, made anew, or changed so that this no longer fits: the API server's version counts.
                Err(error) if is_final(&error) => {
                    let path = object.status_path();
                    tracing::info!(path, %error, "a change from the time without a link is no longer wanted");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.offline.settle(&self.node, object).await?;
        Ok(())
    }

    /// Sends the difference, if there is one, and waits for its view to hear of it: kubelet and the EndpointSlices would
    /// else be shown once more what was before.
    async fn send(&self, object: &ObjectKey, change: &Change) -> Result<(), CallError> {
        let Some(present) = self.present(object, change).await? else { return Ok(()) };
        let schema = if object.plural == "nodes" { &strategic::NODE } else { &strategic::POD };
        let Some(patch) = change.patch(&present, schema) else { return Ok(()) };
        let content_type = PatchType::StrategicMerge.content_type();
        let mut body = patch.to_string().into();
        if object.plural == "nodes"
            && let Some(sent) = self.offline.views().own_node().sent_as(content_type, &body, true)
        {
            body = sent;
        }
        let patched = self.client.patch(&object.status_path(), content_type, body).await?;
        let version =
            patched["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok());
        if let Some(version) = version {
            let deadline = Instant::now() + VIEW_WITHIN;
            self.offline.views().reaches(&self.node, &object.resource(), version, deadline).await;
        }
        Ok(())
    }

    /// The object as the API server has it: out of a view that follows, or asked for. `None` if it is gone.
    async fn present(&self, object: &ObjectKey, change: &Change) -> Result<Option<Value>, CallError> {
        let views = self.offline.views();
        let namespace = object.namespace.as_deref();
        let present =
            views.present(&self.node, &object.resource(), namespace, &object.name, self.views_until).await;
        match present {
            Present::Has(body) => {
                if let Ok(present) = serde_json::from_slice(&body) {
                    return Ok(Some(present));
                }
            }
            Present::Lacks => return Ok(None),
            Present::Unknown => {}
        }
        let gone = views.live_pods().is_some_and(|pods| !pods.uids.contains(change.uid()));
        if object.plural == "pods" && gone {
            return Ok(None);
        }
        self.client.get(&object.path()).await.map(Some)
    }
}

/// Whether asking again would change nothing. 401 and 403 say nothing about the object: an API server that has just
/// started does not know the node's rights yet.
fn is_final(error: &CallError) -> bool {
    let rights =
        matches!(error, CallError::Refused { code: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. });
    !rights && !error.is_transient()
}

impl Offline {
    /// Drops an object's local version and its change. The caller has claimed the object: nothing comes in between.
    pub(super) async fn settle(&self, node: &Permit, object: &ObjectKey) -> Result<(), StoreError> {
        let namespace = object.namespace.as_deref();
        self.views().drop_local(node, &object.resource(), namespace, &object.name).await?;
        self.journal().forget(object).await
    }

    /// A newer patch of a claimed object has succeeded upstream: the older ones are no longer wanted.
    pub(crate) async fn superseded(&self, node: &Permit, object: &ObjectKey) {
        if let Err(error) = self.settle(node, object).await {
            tracing::warn!(%error, path = object.status_path(), "an older change could not be dropped");
        }
    }

    /// Pods that kubelet has brought to an end without a link, although they are always to be started again, are again
    /// what the API server has of them: nobody else could bring them back. For when the kubelet that did is no more.
    pub(crate) async fn take_back_ends(&self, node: &Permit, of_an_earlier_boot: bool) {
        for object in self.journal().ended(of_an_earlier_boot) {
            let path = object.path();
            let claim = tokio::time::timeout(CLAIM_WITHIN, self.journal().claim(&object)).await;
            // Whoever had it may have replayed it.
            if claim.is_err() || !self.journal().ended(of_an_earlier_boot).contains(&object) {
                tracing::warn!(path, "a pod's end from the time without a link is not taken back");
                continue;
            }
            match self.settle(node, &object).await {
                Ok(()) => tracing::info!(path, "a pod that ended without a link is started again"),
                Err(error) => tracing::warn!(%error, path, "a pod's end cannot be taken back"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Boot;
    use crate::offline::Row;
    use crate::replica::Views;
    use crate::request::RequestInfo;
    use crate::store::Store;
    use crate::upstream::{Upstream, UpstreamConfig};
    use crate::view::ViewSpec;
    use crate::wire::{Encoding, Resource};
    use yurt_fakes::api_server::FakeApi;
    use yurt_node::supervise::Tasks;

    #[test]
    fn an_object_that_fails_comes_again_later_and_later_and_is_given_up() {
        let now = Instant::now();
        let mut trouble = None;
        let mut pauses = Vec::new();
        while let Next::Again(next) = after_failure(trouble, now) {
            pauses.push((next.again_at - now).as_secs());
            trouble = Some(next);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
    }

    /// kubelet's word on the pod, without a link.
    async fn patch(offline: &Offline, node: &Permit, phase: &str) {
        let request = http::Request::patch("/api/v1/namespaces/n/pods/p/status")
            .header("content-type", "application/merge-patch+json")
            .body(());
        let parts = request.unwrap().into_parts().0;
        let body = Bytes::from(format!("{{\"status\":{{\"phase\":{phase:?}}}}}"));
        let info = RequestInfo::of(&parts);
        offline.answer(node, &info, Row::PatchStatus, &parts, Some(&body)).await.unwrap();
    }

    #[tokio::test]
    async fn an_end_from_an_earlier_boot_is_taken_back_before_anybody_hears_of_it() {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let pod = "/api/v1/namespaces/n/pods/p";
        api.put(
            pod,
            serde_json::json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
                "spec": {"containers": [], "restartPolicy": "Always"}, "status": {"phase": "Running"}}),
        );
        let stop = CancellationToken::new();
        let (store, _) = Store::open_with(dir.path(), 16 << 20).unwrap();
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), &Tasks::new(stop.clone())).unwrap();
        let node = Permit::of_node("system:node:edge");
        let views =
            Views::load(&store, &upstream, &link, &node, &Boot::new(""), &Tasks::new(stop.clone())).unwrap();
        let pods = ViewSpec::new(Resource::new("", "v1", "pods"), None, "", "", Encoding::Json);
        let view = views.open(&node, &pods).await.unwrap();
        let boot = async |boot| Offline::open(store.clone(), views.clone(), "edge", "v1.36.3", boot).await;
        let shows = |phase: &str| {
            let body = view.list().unwrap().body;
            String::from_utf8_lossy(&body).contains(phase)
        };
        patch(&boot("b-1").await, &node, "Failed").await;
        // The hub alone has started again: kubelet goes on, and what it says is final.
        let same = boot("b-1").await;
        same.take_back_ends(&node, true).await;
        assert!(same.journal().objects().len() == 1 && shows("Failed"));
        // The node has. There is a link, and nothing is left to be told.
        let offline = Arc::new(boot("b-2").await);
        let replay = run(offline.clone(), NodeClient::new(upstream), link, node, stop.clone());
        let replay = tokio::spawn(replay);
        let mut pending = offline.journal().subscribe();
        let settled = pending.wait_for(|pending| pending.objects == 0);
        tokio::time::timeout(Duration::from_secs(5), settled).await.expect("in time").unwrap();
        assert!(shows("Running") && !shows("Failed"));
        stop.cancel();
        replay.await.unwrap();
        assert_eq!(api.writes(), 0);
    }

    #[tokio::test]
    async fn what_the_journal_has_lost_is_not_shown_for_ever() {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        for name in ["p", "q"] {
            api.put(
                &format!("/api/v1/namespaces/n/pods/{name}"),
                serde_json::json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
                    "spec": {"containers": []}, "status": {"phase": "Pending"}}),
            );
        }
        let stop = CancellationToken::new();
        let (store, _) = Store::open_with(dir.path(), 16 << 20).unwrap();
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), &Tasks::new(stop.clone())).unwrap();
        let node = Permit::of_node("system:node:edge");
        let views =
            Views::load(&store, &upstream, &link, &node, &Boot::new(""), &Tasks::new(stop.clone())).unwrap();
        let pods = ViewSpec::new(Resource::new("", "v1", "pods"), None, "", "", Encoding::Json);
        let view = views.open(&node, &pods).await.unwrap();
        let boot = async || Offline::open(store.clone(), views.clone(), "edge", "v1.36.3", "b-1").await;
        let shows = |phase: &str| String::from_utf8_lossy(&view.list().unwrap().body).matches(phase).count();
        patch(&boot().await, &node, "Running").await;
        let mut other = serde_json::json!({"metadata": {"name": "q", "namespace": "n"}});
        other["status"] = serde_json::json!({"phase": "Running"});
        views.apply_local(&node, pods.resource(), Some("n"), "q", &other).await.unwrap();
        assert_eq!(shows("Running"), 2);
        // Nothing is known of the change of one of them.
        let offline = boot().await;
        assert_eq!((shows("Running"), shows("Pending")), (1, 1));
        assert_eq!(offline.journal().objects().len(), 1);
        stop.cancel();
    }

    #[tokio::test]
    async fn an_offline_patch_and_the_replay_never_meet() {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("pods", "n", "p", "x", "1");
        let stop = CancellationToken::new();
        let (store, _) = Store::open_with(dir.path(), 16 << 20).unwrap();
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), &Tasks::new(stop.clone())).unwrap();
        let node = Permit::of_node("system:node:edge");
        let views =
            Views::load(&store, &upstream, &link, &node, &Boot::new(""), &Tasks::new(stop.clone())).unwrap();
        let pods = ViewSpec::new(Resource::new("", "v1", "pods"), None, "", "", Encoding::Json);
        views.open(&node, &pods).await.unwrap();
        let offline = Arc::new(Offline::open(store, views, "edge", "v1.36.3", "b-1").await);
        let object = ObjectKey { plural: "pods".into(), namespace: Some("n".into()), name: "p".into() };

        let claim = offline.journal().claim(&object).await;
        let patching = tokio::spawn({
            let (offline, node) = (offline.clone(), node.clone());
            async move { patch(&offline, &node, "Running").await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!patching.is_finished() && !offline.journal().has(&object), "not while it is replayed");
        drop(claim);
        patching.await.unwrap();
        assert!(offline.journal().has(&object));

        // And not the other way round: journal and local version belong together.
        let client = NodeClient::new(upstream);
        let (troubles, views_until) = (HashMap::new(), Instant::now());
        let mut rebase = Rebase { offline: offline.clone(), client, link, node, troubles, views_until };
        let claim = offline.journal().claim(&object).await;
        assert!(rebase.object(&object, None).await.is_some(), "it comes again");
        assert!(offline.journal().has(&object) && rebase.troubles.is_empty());
        drop(claim);
        stop.cancel();
    }
}
