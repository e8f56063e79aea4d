//! All views of the node, for those who read them: found, opened, looked into. Each is followed by at most one
//! reflector, with a credential of the view's own identity.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use yurt_node::supervise::Tasks;

use super::followers::Followers;
use super::{Start, kept};
use crate::caller::{Identity, Permit};
use crate::clock::{self, Boot};
use crate::link::Link;
use crate::own_node::OwnNode;
use crate::store::{Store, StoreError, StoreStats};
use crate::upstream::Upstream;
use crate::view::catalogue::Catalogue;
use crate::view::overlay::Overlay;
use crate::view::{Lookup, Question, Request, State, StateCounts, Transition, View, ViewError, ViewSpec};
use crate::wire::{Encoding, Resource};

/// Bookmarks come once a minute.
const SILENCE: Duration = Duration::from_secs(180);
/// Twice the life of the tokens whose renewal warms views again.
const WARM_SECONDS: u64 = 7200;

/// All views of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Views {
    pub(super) inner: Arc<Inner>,
}

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Views").field("views", &self.count().0).finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) catalogue: Catalogue,
    pub(super) followers: Followers,
    pub(super) store: Store,
    /// What EndpointSlices show of the node's own pods.
    pub(super) overlay: Overlay,
    pub(super) own_node: OwnNode,
    pub(super) link: Link,
    pub(super) boot: Boot,
    /// The hub's own work for its node.
    pub(super) node: Permit,
    pub(super) pods: Mutex<Option<kept::PodsAt>>,
}

impl Views {
    /// Finds the stored views. Reflectors of what kubelet needs start now, as `node`, others when somebody with a
    /// credential asks; they end with the role. A view whose record cannot be read is removed: it costs itself and
    /// nothing else.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn load(
        store: &Store,
        upstream: &Upstream,
        link: &Link,
        node: &Permit,
        boot: &Boot,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        Self::load_with(store, upstream, link, node, boot, tasks, SILENCE)
    }

    /// [`Self::load`] with a bound of one's own for silent watches.
    pub(super) fn load_with(
        store: &Store,
        upstream: &Upstream,
        link: &Link,
        node: &Permit,
        boot: &Boot,
        tasks: &Tasks,
        silence: Duration,
    ) -> Result<Self, StoreError> {
        let stop = tasks.stop().clone();
        let (catalogue, damaged) = Catalogue::load(store.read_only(), node.identity())?;
        let (overlay, own_node) = (Overlay::default(), OwnNode::of(node));
        let inner = Arc::new_cyclic(|inner| Inner {
            catalogue,
            followers: Followers::new(
                store.clone(),
                (overlay.clone(), own_node.clone()),
                upstream,
                link,
                stop.clone(),
                silence,
                inner.clone(),
            ),
            store: store.clone(),
            overlay,
            own_node,
            link: link.clone(),
            boot: boot.clone(),
            node: node.clone(),
            pods: Mutex::default(),
        });
        let views = Self { inner };
        let housekeeping = views.clone();
        let online = views.clone();
        let stopped = stop.clone();
        tasks.part("what views are worth when the link comes or goes", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = online.outdate() => {}
                () = online.doubt_rights() => {}
            }
        });
        tasks.part("the views' housekeeping", async move {
            if let Err(error) = housekeeping.destroy(damaged).await {
                tracing::warn!(%error, "damaged views could not be removed");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = housekeeping.housekeep() => {}
            }
            if let Err(error) = housekeeping.save().await {
                tracing::warn!(%error, "the last bookmarks could not be stored");
            }
        });
        Ok(views)
    }

    /// What is known of the node's own Node.
    pub(crate) fn own_node(&self) -> &OwnNode {
        &self.inner.own_node
    }

    /// Finds or starts the view (with the permit's credential when online) and waits for its first complete list, or
    /// until one from before is up to date again. The reflector may use the credential from now on.
    ///
    /// # Errors
    ///
    /// [`ViewError`].
    pub(crate) async fn open(&self, permit: &Permit, spec: &ViewSpec) -> Result<Arc<View>, ViewError> {
        self.open_with(permit, spec, Start::Fresh, Request::List).await
    }

    /// Like [`Self::open`] for a WATCH that begins with the state.
    ///
    /// # Errors
    ///
    /// [`ViewError`].
    pub(crate) async fn open_watch(&self, permit: &Permit, spec: &ViewSpec) -> Result<Arc<View>, ViewError> {
        self.open_with(permit, spec, Start::Fresh, Request::Watch).await
    }

    /// Like [`Self::open`] for a WATCH from resourceVersion `since`: if the view has to be started, its first list
    /// is the state at `since`, so that the client misses nothing and needs no 410.
    ///
    /// # Errors
    ///
    /// [`ViewError`].
    pub(crate) async fn open_at(
        &self,
        permit: &Permit,
        spec: &ViewSpec,
        since: u64,
    ) -> Result<Arc<View>, ViewError> {
        self.open_with(permit, spec, Start::At(since), Request::Watch).await
    }

    /// A view that may answer `question`. Starts nothing, never waits.
    pub(crate) fn find(&self, permit: &Permit, spec: &ViewSpec, question: Question) -> Option<Arc<View>> {
        self.inner.catalogue.find(permit, spec, question)
    }

    /// Has the view followed when the link is back.
    pub(crate) fn resume(&self, permit: &Permit, view: &Arc<View>) {
        self.inner.followers.start(permit, view, Start::Resume);
    }

    /// Whether the API server's last word on this view was a 403.
    pub(crate) fn is_refused(&self, permit: &Permit, spec: &ViewSpec) -> bool {
        self.inner.catalogue.is_refused(permit, spec)
    }

    /// How many views there are, and how many of them have something to tell.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.inner.catalogue.count()
    }

    /// Every view, for people.
    pub(crate) fn all(&self) -> Vec<Arc<View>> {
        self.inner.catalogue.all()
    }

    /// Figures of the store.
    pub(crate) fn store_stats(&self) -> StoreStats {
        self.inner.store.stats()
    }

    /// How many views are in which state.
    pub(crate) fn states(&self) -> StateCounts {
        let now = clock::now();
        self.inner
            .catalogue
            .all()
            .iter()
            .fold(StateCounts::default(), |counts, view| counts.with(view.state(), now))
    }

    /// How many views are fed from others.
    pub(crate) fn fed(&self) -> usize {
        self.inner.catalogue.all().iter().filter(|view| view.source().is_some()).count()
    }

    /// A single object out of the views of the identity in one of the `accept`ed encodings, as the best of them knows
    /// it. No use of a view.
    pub(crate) fn lookup(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        accept: &[Encoding],
    ) -> Lookup {
        self.inner.catalogue.lookup(permit, resource, namespace, name, accept)
    }

    /// The identity was told something of the resource with this resourceVersion: views that are not followed and have
    /// not come so far are not the newest any more. That is on the disk when this returns, if it says anything new.
    pub(crate) async fn heard(&self, permit: &Permit, resource: &Resource, version: u64) {
        // Once is enough to know it; the exact version is not worth a write.
        let newly_passed = |view: &Arc<View>| {
            let before = view.turn(Transition::Heard(version));
            let passed =
                |state| matches!(state, State::Behind { heard, .. } if heard > view.resource_version());
            !passed(before) && passed(view.state())
        };
        let mut views = self.inner.catalogue.showing(permit, resource);
        views.retain(newly_passed);
        if let Err(error) = self.keep_states(&views).await {
            tracing::warn!(%error, "what a view is worth could not be stored");
        }
    }

    /// Whether [`Self::heard`] has anything to do for this resource.
    pub(crate) fn stands_still(&self, permit: &Permit, resource: &Resource) -> bool {
        let views = self.inner.catalogue.showing(permit, resource);
        views.iter().any(|view| matches!(view.state(), State::Behind { .. }))
    }

    /// Whether a view of the identity that is followed has this object, or would have it: then nothing else has to
    /// remember it.
    pub(crate) fn follows(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        accept: &[Encoding],
    ) -> bool {
        // Most of what is asked for as one object is in none: that is known without a look into the store.
        let mut views = self.inner.catalogue.showing(permit, resource).into_iter();
        views.any(|view| view.is_followed())
            && matches!(
                self.lookup(permit, resource, namespace, name, accept),
                Lookup::Found { view, .. } if view.is_followed()
            )
    }

    /// Starts a view ahead of need, and keeps it up to date for two hours although nobody uses it.
    pub(crate) fn warm(&self, permit: &Permit, spec: &ViewSpec) {
        if let Some(view) = self.enter(permit, spec) {
            view.keep_warm(WARM_SECONDS);
            self.inner.followers.start(permit, &view, Start::Resume);
        }
    }

    /// Whether the store has room for another list of this identity.
    fn may_store_more(&self, identity: &Identity) -> bool {
        identity == self.inner.node.identity() || self.inner.store.has_room_for_others()
    }

    /// The view, in the catalogue from now on; none if there are too many, or what is left of the store is kubelet's. One that
    /// makes room for it is removed.
    pub(super) fn enter(&self, permit: &Permit, spec: &ViewSpec) -> Option<Arc<View>> {
        let is_new = || self.inner.catalogue.find(permit, spec, Question::Any).is_none();
        if !self.may_store_more(permit.identity()) && is_new() {
            return None;
        }
        let entered = self.inner.catalogue.enter(permit, spec)?;
        if let Some(view) = entered.displaced {
            tracing::info!(view = %view.name(), "unused; it makes room for another view");
            tokio::spawn(self.clone().discard(view));
        }
        Some(entered.view)
    }
}
