//! The reflectors that run, one a view, and the credentials that they use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Start;
use super::credentials::Credentials;
use super::reflector::derived::Feeding;
use super::reflector::{Reflector, Refusals};
use super::sources::is_shared;
use super::views::Inner;
use crate::caller::{Identity, Permit};
use crate::limits::LARGE_PAGES;
use crate::link::Link;
use crate::own_node::OwnNode;
use crate::store::Store;
use crate::upstream::Upstream;
use crate::view::overlay::Overlay;
use crate::view::record::ViewId;
use crate::view::selector::Selector;
use crate::view::{Transition, View, Why};

/// A reflector that was started.
struct Task {
    handle: JoinHandle<()>,
    /// Cancelled when it has ended, however.
    ended: CancellationToken,
}

impl Task {
    fn runs(&self) -> bool {
        !self.ended.is_cancelled()
    }
}

/// Owns the reflectors' tasks, which end with `stop`.
pub(super) struct Followers {
    store: Store,
    overlay: Overlay,
    own_node: OwnNode,
    upstream: Upstream,
    link: Link,
    stop: CancellationToken,
    silence: Duration,
    /// All views, which a view may be fed from.
    views: Weak<Inner>,
    credentials: Credentials,
    tasks: Mutex<HashMap<ViewId, Task>>,
    /// Large pages that may be in memory at a time: kubelet's, and the others'.
    large: [Arc<Semaphore>; 2],
}

impl Followers {
    pub(super) fn new(
        store: Store,
        (overlay, own_node): (Overlay, OwnNode),
        upstream: &Upstream,
        link: &Link,
        stop: CancellationToken,
        silence: Duration,
        views: Weak<Inner>,
    ) -> Self {
        Self {
            store,
            overlay,
            own_node,
            upstream: upstream.for_views(),
            link: link.clone(),
            stop,
            silence,
            views,
            credentials: Credentials::default(),
            tasks: Mutex::default(),
            large: [(); 2].map(|()| Arc::new(Semaphore::new(LARGE_PAGES))),
        }
    }

    /// The places of large pages.
    #[cfg(test)]
    pub(super) fn large_places(&self, of_kubelet: bool) -> Arc<Semaphore> {
        Arc::clone(&self.large[usize::from(!of_kubelet)])
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ViewId, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the credential to the reflectors of the identity, and starts this view's if it does not run. Never that of a
    /// view that has [ended](Self::end) for good: it would write a record that is nobody's.
    pub(super) fn start(&self, permit: &Permit, view: &Arc<View>, start: Start) {
        let credentials = self.credentials.show(permit);
        let mut tasks = self.lock();
        if view.is_gone() || tasks.get(&view.id).is_some_and(Task::runs) {
            return;
        }
        let reflector = Reflector {
            view: Arc::clone(view),
            store: self.store.clone(),
            overlay: self.overlay.clone(),
            own_node: self.own_node.clone(),
            upstream: self.upstream.clone(),
            link: self.link.subscribe(),
            credentials,
            used: permit.credential().clone(),
            large: self.large[usize::from(!permit.is_node())].clone(),
            rebuild: false,
            refusals: Refusals::default(),
            silence: self.silence,
            no_bookmarks: false,
            feeding: Feeding::new(
                self.views.clone(),
                is_shared(&view.spec).then(|| Selector::of(&view.spec)).flatten(),
            ),
        };
        let (stop, ended) = (self.stop.clone(), CancellationToken::new());
        let end = ended.clone().drop_guard();
        let handle = tokio::spawn(async move {
            let _end = end;
            tokio::select! {
                // Connections end with it, too: that says nothing of a view.
                biased;
                () = stop.cancelled() => {}
                () = reflector.run(start) => {}
            }
        });
        tasks.insert(view.id, Task { handle, ended });
    }

    /// Hands the credential to the reflectors of the identity, those that will start too.
    pub(super) fn show(&self, permit: &Permit) {
        drop(self.credentials.show(permit));
    }

    /// An identity with the best credential that it has shown.
    pub(super) fn permit_of(&self, identity: &Identity) -> Option<Permit> {
        self.credentials.permit_of(identity)
    }

    /// Whether the view's reflector runs.
    pub(super) fn is_running(&self, view: ViewId) -> bool {
        self.end_of(view).is_some()
    }

    /// What is cancelled when the view's reflector ends; nothing if none runs.
    pub(super) fn end_of(&self, view: ViewId) -> Option<CancellationToken> {
        self.lock().get(&view).filter(|task| task.runs()).map(|task| task.ended.clone())
    }

    /// Ends the reflector of a view that is in the catalogue no more: whatever it was about to write comes before what
    /// follows.
    pub(super) async fn end(&self, view: &View) {
        let task = {
            let mut tasks = self.lock();
            view.set_gone();
            tasks.remove(&view.id)
        };
        if let Some(task) = task {
            task.handle.abort();
            let _ = task.handle.await;
        }
        view.turn(Transition::Lost(Why::Unfollowed));
    }

    /// Forgets tasks that have ended by themselves.
    pub(super) fn prune(&self) {
        self.lock().retain(|_, task| task.runs());
    }
}
