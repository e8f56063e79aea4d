//! All views of the node, by whose they are and what they show; how many there may be, and whose make room.
//!
//! Pure memory over a store that it only reads: who fills views, and removes what is stored of those that made room, is
//! the business of `crate::replica`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{ViewId, ViewRecord};
use super::{Question, Stored, View, ViewSpec};
use crate::caller::{Identity, Permit};
use crate::clock;
use crate::limits::{VIEWS, VIEWS_OF_ONE};
use crate::store::{ReadOnlyStore, StoreError, Table};
use crate::wire::Resource;

/// A view that nobody has used for so long may make room for another. Longer than anybody waits for its first list.
const MAKES_ROOM_AFTER: u64 = 60;

type Key = (Identity, ViewSpec);

/// Among whose views room has to be made for another one.
enum Crowd {
    /// This identity has its share.
    Of(Identity),
    /// Everybody but kubelet has what is not kubelet's.
    Others(Identity),
    /// There are too many altogether.
    All,
}

impl Crowd {
    /// Nothing while there is room for one more view of the caller.
    fn of(views: &HashMap<Key, Arc<View>>, permit: &Permit, node: &Identity) -> Option<Self> {
        let identity = permit.identity();
        let own = views.keys().filter(|(owner, _)| owner == identity).count();
        let others = views.keys().filter(|(owner, _)| owner != node).count();
        if identity == node {
            (views.len() >= VIEWS).then_some(Self::All)
        } else if own >= VIEWS_OF_ONE {
            Some(Self::Of(identity.clone()))
        } else if others >= VIEWS - VIEWS_OF_ONE {
            Some(Self::Others(node.clone()))
        } else {
            (views.len() >= VIEWS).then(|| Self::Others(node.clone()))
        }
    }

    /// The view that was used longest ago; nothing if all are in use.
    fn oldest(&self, views: &HashMap<Key, Arc<View>>, now: u64) -> Option<Key> {
        let concerns = |owner: &Identity| match self {
            Self::Of(identity) => owner == identity,
            Self::Others(node) => owner != node,
            Self::All => true,
        };
        views
            .iter()
            .filter(|((owner, _), view)| concerns(owner) && view.idle_at(now) >= MAKES_ROOM_AFTER)
            .max_by_key(|(_, view)| view.idle_at(now))
            .map(|(key, _)| key.clone())
    }
}

/// Where the bytes of an identity's views are counted.
fn counts_of(
    views: &HashMap<Key, Arc<View>>,
    identity: &Identity,
    node: &Identity,
    (kubelet, others): &(Stored, Stored),
) -> Stored {
    if identity == node {
        return kubelet.clone();
    }
    let same = views.values().find(|view| view.identity == *identity);
    same.map_or_else(|| others.of_another(), |view| view.counts.clone())
}

/// All views of the node.
pub(crate) struct Catalogue {
    store: ReadOnlyStore,
    /// Who kubelet is.
    node: Identity,
    views: Mutex<HashMap<Key, Arc<View>>>,
    /// Of kubelet, and of nobody in particular.
    stored: (Stored, Stored),
    next_id: AtomicU32,
}

/// A view that is in the catalogue from now on.
pub(crate) struct Entered {
    pub(crate) view: Arc<View>,
    /// The view that made room for it, which is in the catalogue no more.
    pub(crate) displaced: Option<Arc<View>>,
}

impl Catalogue {
    /// Finds the stored views, and those whose record cannot be read.
    pub(crate) fn load(store: ReadOnlyStore, node: &Identity) -> Result<(Self, Vec<ViewId>), StoreError> {
        let mut views = HashMap::new();
        let stored = <(Stored, Stored)>::default();
        let mut next_id = 1;
        let mut damaged = Vec::new();
        store.read(|reader| {
            reader.scan_each(Table::Views, &[], None, |key, value| {
                let id = key.try_into().map(u32::from_be_bytes);
                let id = id.map_err(|_| StoreError::Damaged("a view's number".to_owned()))?;
                next_id = next_id.max(id.saturating_add(1));
                let record = match value.and_then(ViewRecord::decode) {
                    Ok(record) => record,
                    Err(StoreError::Damaged(reason)) => {
                        tracing::error!(view = id, reason, "a stored view is damaged and is removed");
                        damaged.push(ViewId(id));
                        return Ok(true);
                    }
                    Err(error) => return Err(error),
                };
                let identity = Identity::new(&record.identity);
                let key = (identity.clone(), record.spec.clone());
                let counts = counts_of(&views, &identity, node, &stored);
                let view = View::new(
                    ViewId(id),
                    identity,
                    record.spec.clone(),
                    store.clone(),
                    counts,
                    Some(&record),
                );
                views.insert(key, Arc::new(view));
                Ok(true)
            })
        })?;
        let (views, next_id) = (Mutex::new(views), AtomicU32::new(next_id));
        let catalogue = Self { store, node: node.clone(), views, stored, next_id };
        Ok((catalogue, damaged))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A view that may answer `question`.
    pub(crate) fn find(&self, permit: &Permit, spec: &ViewSpec, question: Question) -> Option<Arc<View>> {
        let view = self.lock().get(&(permit.identity().clone(), spec.clone())).cloned()?;
        view.may_answer(question).then_some(view)
    }

    /// Whether the API server's last word on this view was a 403.
    pub(crate) fn is_refused(&self, permit: &Permit, spec: &ViewSpec) -> bool {
        let views = self.lock();
        views.get(&(permit.identity().clone(), spec.clone())).is_some_and(|view| view.is_refused())
    }

    /// How many views there are, and how many of them have something to tell.
    pub(crate) fn count(&self) -> (usize, usize) {
        let views = self.lock();
        (views.len(), views.values().filter(|view| view.may_answer(Question::Any)).count())
    }

    /// Every view, for those who keep them.
    pub(crate) fn all(&self) -> Vec<Arc<View>> {
        self.lock().values().cloned().collect()
    }

    /// The views of an identity.
    pub(crate) fn of(&self, identity: &Identity) -> Vec<Arc<View>> {
        self.lock().values().filter(|view| view.identity == *identity).cloned().collect()
    }

    /// The views of an identity that show this resource.
    pub(crate) fn showing(&self, permit: &Permit, resource: &Resource) -> Vec<Arc<View>> {
        let shows =
            |view: &&Arc<View>| view.identity == *permit.identity() && view.spec.resource() == resource;
        self.lock().values().filter(shows).cloned().collect()
    }

    /// The view, in the catalogue from now on; none if there are too many.
    pub(crate) fn enter(&self, permit: &Permit, spec: &ViewSpec) -> Option<Entered> {
        let mut views = self.lock();
        let key = (permit.identity().clone(), spec.clone());
        if let Some(view) = views.get(&key) {
            return Some(Entered { view: Arc::clone(view), displaced: None });
        }
        let mut displaced = None;
        if let Some(crowd) = Crowd::of(&views, permit, &self.node) {
            let Some(victim) = crowd.oldest(&views, clock::steady()) else {
                tracing::warn!(views = views.len(), identity = %key.0, "too many views; requests are forwarded instead");
                return None;
            };
            displaced = views.remove(&victim);
        }
        let id = ViewId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let counts = counts_of(&views, &key.0, &self.node, &self.stored);
        let view = Arc::new(View::new(id, key.0.clone(), spec.clone(), self.store.clone(), counts, None));
        views.insert(key, Arc::clone(&view));
        Some(Entered { view, displaced })
    }

    /// Takes out the views that nobody has used for `seconds`, but not those that are `followed`.
    pub(crate) fn take_unused(
        &self,
        seconds: u64,
        now: u64,
        followed: impl Fn(&View) -> bool,
    ) -> Vec<Arc<View>> {
        let unused = |view: &View| view.idle_at(now) > seconds && !followed(view);
        self.lock().extract_if(|_, view| unused(view)).map(|(_, view)| view).collect()
    }
}
