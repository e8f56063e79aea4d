//! All views of the node: finding them, starting their reflectors with the right credential, asking them about
//! single objects, changing objects offline.

mod kept;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::record::{ViewId, ViewRecord};
use super::table::ViewTable;
use super::{Lookup, View, ViewError, ViewSpec, shows};
use crate::caller::{Credential, Identity, Permit};
use crate::link::Link;
use crate::replica::{self, Start};
use crate::store::{Durability, Store, StoreError, Table};
use crate::upstream::Upstream;
use crate::wire::object::object_key;
use crate::wire::{Encoding, Resource};
use yurt_node::link::LinkState;

/// Views a node may have. An edge node has some dozens; more is somebody inventing selectors.
const MAX_VIEWS: usize = if cfg!(test) { 20 } else { 2000 };
/// Views that are kubelet's alone, and that anybody else may have at most.
const SHARE: usize = MAX_VIEWS / 4;
/// A view that nobody has used for so long may make room for another. Longer than anybody waits for its first list.
const MAKES_ROOM_AFTER: u64 = 60;
/// For the first complete list, or for catching up.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// A complete view that cannot catch up within this time is served as it is.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long the state of the link may stay unknown after a start.
const LINK_WITHIN: Duration = Duration::from_secs(2);
/// Twice the life of the tokens whose renewal warms views again.
const WARM_SECONDS: u64 = 7200;
const HOUSEKEEP_EVERY: Duration = Duration::from_secs(60);
/// What has changed in records but not in objects (bookmarks, last use) is stored every so many rounds.
const SAVE_EVERY: u32 = 5;
/// A stored view that nobody has used for so long is forgotten, while online.
const FORGET_AFTER: u64 = 7 * 24 * 3600;
/// The same when the store is full. What kubelet needs is in use all the time (`kept`).
const FORGET_WHEN_FULL: u64 = 3600;

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
            (views.len() >= MAX_VIEWS).then_some(Self::All)
        } else if own >= SHARE {
            Some(Self::Of(identity.clone()))
        } else if others >= MAX_VIEWS - SHARE {
            Some(Self::Others(node.clone()))
        } else {
            (views.len() >= MAX_VIEWS).then(|| Self::Others(node.clone()))
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

/// All views of the node. Cheap to clone.
#[derive(Clone)]
pub struct Views {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Views").field("views", &self.lock().len()).finish_non_exhaustive()
    }
}

type Key = (Identity, ViewSpec);

struct Inner {
    store: Store,
    upstream: Upstream,
    link: Link,
    /// The hub's own work for its node.
    node: Permit,
    pods: Mutex<Option<kept::KnownPods>>,
    stop: CancellationToken,
    views: Mutex<HashMap<Key, Arc<View>>>,
    credentials: Mutex<HashMap<Identity, watch::Sender<Credential>>>,
    next_id: AtomicU32,
}

impl Views {
    /// Finds the stored views. Reflectors of what kubelet needs start now, as `node`, others when somebody with a
    /// credential asks; they end with `stop`. A view whose record cannot be read is removed: it costs itself and
    /// nothing else.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn load(
        store: &Store,
        upstream: &Upstream,
        link: &Link,
        node: &Permit,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        let mut views = HashMap::new();
        let mut next_id = 1;
        let mut damaged = Vec::new();
        store.read(|reader| {
            reader.scan(Table::Views, &[], None, |key, value| {
                let id = key.try_into().map(u32::from_be_bytes);
                let id = id.map_err(|_| StoreError::Damaged("a view's number".to_owned()))?;
                next_id = next_id.max(id.saturating_add(1));
                let record = match ViewRecord::decode(value) {
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
                let view = View::new(ViewId(id), identity, record.spec.clone(), store.clone(), Some(&record));
                views.insert(key, Arc::new(view));
                Ok(true)
            })
        })?;
        let inner = Inner {
            store: store.clone(),
            upstream: upstream.for_views(),
            link: link.clone(),
            node: node.clone(),
            pods: Mutex::default(),
            stop: stop.clone(),
            views: Mutex::new(views),
            credentials: Mutex::default(),
            next_id: AtomicU32::new(next_id),
        };
        let views = Self { inner: Arc::new(inner) };
        let housekeeping = views.clone();
        tokio::spawn(async move {
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<View>>> {
        self.inner.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds or starts the view (with the permit's credential when online) and waits for its first complete list, or
    /// until one from before is up to date again. A newer credential of the same identity replaces the reflector's.
    ///
    /// # Errors
    ///
    /// [`ViewError`].
    pub async fn open(&self, permit: &Permit, spec: &ViewSpec) -> Result<Arc<View>, ViewError> {
        self.open_with(permit, spec, Start::Fresh).await
    }

    /// Like [`Self::open`] for a WATCH from resourceVersion `since`: if the view has to be started, its first list
    /// is the state at `since`, so that the client misses nothing and needs no 410.
    ///
    /// # Errors
    ///
    /// [`ViewError`].
    pub async fn open_at(
        &self,
        permit: &Permit,
        spec: &ViewSpec,
        since: u64,
    ) -> Result<Arc<View>, ViewError> {
        self.open_with(permit, spec, Start::At(since)).await
    }

    /// A complete view. Starts nothing, never waits.
    pub fn find(&self, permit: &Permit, spec: &ViewSpec) -> Option<Arc<View>> {
        let view = self.lock().get(&(permit.identity().clone(), spec.clone())).cloned()?;
        view.is_complete().then_some(view)
    }

    /// Whether the API server's last word on this view was a 403.
    pub fn is_refused(&self, permit: &Permit, spec: &ViewSpec) -> bool {
        let views = self.lock();
        views.get(&(permit.identity().clone(), spec.clone())).is_some_and(|view| view.is_refused())
    }

    /// How many views there are, and how many of them are complete.
    pub fn count(&self) -> (usize, usize) {
        let views = self.lock();
        (views.len(), views.values().filter(|view| view.is_complete()).count())
    }

    /// Starts a view ahead of need, and keeps it up to date for two hours although nobody uses it.
    pub fn warm(&self, permit: &Permit, spec: &ViewSpec) {
        if let Some(view) = self.entry(permit, spec) {
            view.keep_warm(WARM_SECONDS);
            self.start(permit, &view, Start::Resume);
        }
    }

    async fn open_with(
        &self,
        permit: &Permit,
        spec: &ViewSpec,
        start: Start,
    ) -> Result<Arc<View>, ViewError> {
        self.inner.link.settled(LINK_WITHIN).await;
        let mut link = self.inner.link.subscribe();
        let offline = *link.borrow_and_update() != LinkState::Online;
        if offline && let found @ Some(_) = self.find(permit, spec) {
            let view = found.ok_or(ViewError::NeverCached)?;
            // It resumes by itself when the link is back.
            self.start(permit, &view, Start::Resume);
            view.touch();
            return Ok(view);
        }
        if offline {
            let refused = self.is_refused(permit, spec);
            return Err(if refused { ViewError::Refused } else { ViewError::NeverCached });
        }
        let view = self.entry(permit, spec).ok_or(ViewError::NotAView)?;
        view.touch();
        let mut status = view.status.subscribe();
        let before = status.borrow_and_update().clone();
        if before.no_view_until.is_some_and(|until| Instant::now() < until) {
            return Err(before.failure.unwrap_or(ViewError::NotAView));
        }
        let attempts = before.attempts;
        self.start(permit, &view, start);
        if !before.live {
            // It may be in a pause after an error.
            view.poke.notify_one();
        }
        let deadline = Instant::now() + OPEN_WITHIN;
        let catch_up = Instant::now() + CATCH_UP_WITHIN;
        loop {
            let now = status.borrow_and_update().clone();
            if now.live {
                return Ok(view);
            }
            match now.failure {
                // An old refusal may be outdated: ask again.
                Some(_) if now.attempts == attempts => view.poke.notify_one(),
                Some(ViewError::NotAView) => return Err(ViewError::NotAView),
                Some(ViewError::Upstream(status))
                    if !now.complete || matches!(status.code.as_u16(), 401 | 403) =>
                {
                    return Err(ViewError::Upstream(status));
                }
                Some(error @ ViewError::Store(_)) if !now.complete => return Err(error),
                _ => {}
            }
            if *link.borrow_and_update() == LinkState::Offline {
                return match (now.complete, now.refused) {
                    (true, _) => Ok(view),
                    (false, true) => Err(ViewError::Refused),
                    (false, false) => Err(ViewError::NeverCached),
                };
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                changed = link.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                () = sleep_until(catch_up), if now.complete => return Ok(view),
                () = sleep_until(deadline) => return Err(ViewError::NeverCached),
            }
        }
    }

    /// The view, known to the map from now on; none if there are too many.
    fn entry(&self, permit: &Permit, spec: &ViewSpec) -> Option<Arc<View>> {
        let mut views = self.lock();
        let key = (permit.identity().clone(), spec.clone());
        if let Some(view) = views.get(&key) {
            return Some(Arc::clone(view));
        }
        if let Some(crowd) = Crowd::of(&views, permit, self.inner.node.identity()) {
            let now = crate::clock::now();
            let Some(victim) = crowd.oldest(&views, now) else {
                tracing::warn!(views = views.len(), identity = %key.0, "too many views; requests are forwarded instead");
                return None;
            };
            if let Some(view) = views.remove(&victim) {
                tracing::info!(view = %view.name(), "unused; it makes room for another view");
                tokio::spawn(self.clone().discard(view));
            }
        }
        let id = ViewId(self.inner.next_id.fetch_add(1, Ordering::Relaxed));
        let view = View::new(id, key.0.clone(), spec.clone(), self.inner.store.clone(), None);
        let view = Arc::new(view);
        views.insert(key, Arc::clone(&view));
        Some(view)
    }

    /// Hands the credential to the reflectors of the identity, and starts this view's if it does not run.
    fn start(&self, permit: &Permit, view: &Arc<View>, start: Start) {
        let credential = {
            let mut credentials = self.inner.credentials.lock().unwrap_or_else(PoisonError::into_inner);
            let sender = credentials
                .entry(permit.identity().clone())
                .or_insert_with(|| watch::channel(permit.credential().clone()).0);
            sender.send_if_modified(|known| {
                let newer = known != permit.credential();
                if newer {
                    *known = permit.credential().clone();
                }
                newer
            });
            sender.subscribe()
        };
        let mut reflector = view.reflector.lock().unwrap_or_else(PoisonError::into_inner);
        if reflector.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let task = replica::Reflector {
            view: Arc::clone(view),
            upstream: self.inner.upstream.clone(),
            link: self.inner.link.subscribe(),
            credential,
            rebuild: false,
            refusals: 0,
            refused_since: None,
        };
        let stop = self.inner.stop.clone();
        *reflector = Some(tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run(start) => {}
            }
        }));
    }

    /// A single object out of any complete view of the identity in one of the `accept`ed encodings, those that follow
    /// upstream first.
    pub fn lookup(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        accept: &[Encoding],
    ) -> Lookup {
        let mut candidates: Vec<_> = self
            .lock()
            .values()
            .filter(|view| shows(view, permit.identity(), resource))
            .filter(|view| view.spec.namespace().is_none_or(|own| Some(own) == namespace))
            .cloned()
            .collect();
        let refused = candidates.iter().any(|view| view.is_refused() && view.spec.covers(namespace, name));
        candidates.retain(|view| view.is_complete());
        let preference = |view: &View| accept.iter().position(|encoding| *encoding == view.spec.encoding());
        candidates.sort_by_key(|view| (!view.is_live(), preference(view).unwrap_or(usize::MAX)));
        for view in candidates {
            match view.get(namespace, name) {
                Ok(Some(body)) if preference(&view).is_some() => {
                    view.touch();
                    return Lookup::Found { encoding: view.spec.encoding(), body };
                }
                Ok(None) if view.spec.covers(namespace, name) => return Lookup::ProvenAbsent,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, view = %view.name(), "an object cannot be read"),
            }
        }
        if refused { Lookup::Refused } else { Lookup::Unknown }
    }

    /// Replaces an object in every JSON view of the identity that has it: stored, sent to watchers at once, the
    /// resourceVersion unchanged. The local version lives until upstream's own version changes, or
    /// [`Self::drop_local`]. Returns in how many views it was found.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub async fn apply_local(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        object: &serde_json::Value,
    ) -> Result<usize, StoreError> {
        // Stored form: without what the view's kind restores.
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        let stored = serde_json::to_vec(&object).map_err(|error| StoreError::Failed(error.to_string()))?;
        let key = object_key(namespace, name);
        self.change_locally(permit, resource, move |table| table.apply_local(&key, &stored)).await
    }

    /// Forgets the local version: upstream's last version is sent to watchers as MODIFIED. Returns in how many views.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub async fn drop_local(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<usize, StoreError> {
        let key = object_key(namespace, name);
        self.change_locally(permit, resource, move |table| table.drop_local(&key)).await
    }

    async fn change_locally(
        &self,
        permit: &Permit,
        resource: &Resource,
        change: impl Fn(&mut ViewTable<'_, '_>) -> Result<bool, StoreError> + Send + 'static,
    ) -> Result<usize, StoreError> {
        let views: Vec<_> = self
            .lock()
            .values()
            .filter(|view| shows(view, permit.identity(), resource) && view.is_complete())
            .filter(|view| view.spec.encoding() == Encoding::Json)
            .cloned()
            .collect();
        let ids: Vec<_> = views.iter().map(|view| view.id).collect();
        // Durable: a status that kubelet was told is stored has to survive a power cut.
        let records = self
            .inner
            .store
            .write(Durability::Durable, move |tx| {
                let mut records = Vec::with_capacity(ids.len());
                for id in &ids {
                    let mut table = ViewTable::load(tx, *id)?;
                    let found = change(&mut table)?;
                    records.push(if found { Some(table.save()?) } else { None });
                }
                Ok(records)
            })
            .await?;
        let mut found = 0;
        for (view, record) in views.iter().zip(records) {
            if let Some(record) = record {
                view.publish(&record);
                found += 1;
            }
        }
        Ok(found)
    }

    /// Ends a view that is in the map no more.
    async fn discard(self, view: Arc<View>) {
        let reflector = view.reflector.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reflector) = reflector {
            reflector.abort();
            // Whatever it was about to write comes before what follows.
            let _ = reflector.await;
        }
        view.status.send_modify(|status| status.live = false);
        if let Err(error) = self.destroy(vec![view.id]).await {
            tracing::warn!(%error, view = %view.name(), "what is stored of a view could not be removed");
        }
    }

    async fn housekeep(&self) {
        let mut rounds = 0_u32;
        loop {
            self.keep();
            tokio::time::sleep(HOUSEKEEP_EVERY).await;
            rounds = rounds.wrapping_add(1);
            if self.inner.store.stats().full
                && self.inner.link.is_online()
                && let Err(error) = self.forget(FORGET_WHEN_FULL).await
            {
                tracing::warn!(%error, "the store is full and unused views could not be removed");
            }
            if !rounds.is_multiple_of(SAVE_EVERY) {
                continue;
            }
            if let Err(error) = self.save().await {
                tracing::warn!(%error, "bookmarks could not be stored");
            }
            if self.inner.link.is_online()
                && let Err(error) = self.forget(FORGET_AFTER).await
            {
                tracing::warn!(%error, "unused views could not be removed");
            }
        }
    }

    /// Stores bookmarks and times of use, in one transaction. Worth it before the process ends.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing has changed.
    pub async fn save(&self) -> Result<(), StoreError> {
        let changes: Vec<_> = self
            .lock()
            .values()
            .filter(|view| view.is_complete())
            .map(|view| (view.id, view.resource_version(), view.used()))
            .collect();
        self.inner
            .store
            .write(Durability::Soon, move |tx| {
                for (id, version, used) in &changes {
                    let Some(value) = tx.get(Table::Views, &id.prefix())? else { continue };
                    let mut record = ViewRecord::decode(value)?;
                    // A use alone is worth a write once an hour.
                    if record.resource_version >= *version && used.saturating_sub(record.used) < 3600 {
                        continue;
                    }
                    record.resource_version = record.resource_version.max(*version);
                    record.used = record.used.max(*used);
                    let value = record.encode()?;
                    tx.put(Table::Views, &id.prefix(), &value)?;
                }
                Ok(())
            })
            .await
    }

    /// Removes views that nobody has used for `seconds`.
    pub(crate) async fn forget(&self, seconds: u64) -> Result<(), StoreError> {
        self.forget_at(seconds, crate::clock::now()).await
    }

    pub(crate) async fn forget_at(&self, seconds: u64, now: u64) -> Result<(), StoreError> {
        self.keep();
        let old: Vec<_> = {
            let mut views = self.lock();
            let old: Vec<_> = views
                .iter()
                .filter(|(_, view)| view.idle_at(now) > seconds && !view.is_running())
                .map(|(key, view)| (key.clone(), view.id))
                .collect();
            old.iter().for_each(|(key, _)| drop(views.remove(key)));
            old.into_iter().map(|(_, id)| id).collect()
        };
        if !old.is_empty() {
            tracing::info!(views = old.len(), "views that nobody uses any more are removed");
        }
        self.destroy(old).await
    }

    /// Removes what is stored of views.
    async fn destroy(&self, views: Vec<ViewId>) -> Result<(), StoreError> {
        if views.is_empty() {
            return Ok(());
        }
        self.inner
            .store
            .write(Durability::Soon, move |tx| views.iter().try_for_each(|id| ViewTable::destroy(tx, *id)))
            .await
    }
}

impl View {
    fn is_running(&self) -> bool {
        let reflector = self.reflector.lock().unwrap_or_else(PoisonError::into_inner);
        reflector.as_ref().is_some_and(|task| !task.is_finished())
    }
}
