//! The hub's part of the way in: says who is to be sent to it, and sees whether that is so.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_api::agent::{Moment, Turn};
use yurt_api::names;
use yurt_node::config::WayIn;

use super::document::{Told, Wanted};
use super::excluded::Excluded;
use super::pod::Pod;
use super::{Chosen, Places, Since};
use crate::Came;
use crate::replica::Views;
use crate::store::StoreError;
use crate::view::{Question, View};

/// Between two looks at the pods, at what kubelet's keeper wrote and at the holder's answer.
const LOOK: Duration = Duration::from_secs(1);
/// The holder looks every second. Until then what it did before is what there is.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The way of this process.
    pub(crate) chosen: Chosen,
    /// Why who is to be sent to the hub is not.
    pub(crate) missing: Option<String>,
    /// Somebody is sent to the hub.
    pub(crate) open: bool,
    /// The keeper's turn of agents that is in place.
    pub(crate) turn: Option<i64>,
    /// Pods on the host's network because of which the host itself keeps to the API server.
    pub(crate) on_host: BTreeSet<String>,
}

impl State {
    pub(crate) fn new(chosen: Chosen) -> Self {
        Self { chosen, missing: None, open: false, turn: None, on_host: BTreeSet::new() }
    }
}

/// Keeps the way in.
pub(crate) struct Keeper {
    /// Where kubelet's view of the node's pods is.
    pub(crate) views: Views,
    /// Where pods look for the API server.
    pub(crate) services: watch::Receiver<BTreeSet<SocketAddr>>,
    /// When kubelet came to the hub.
    pub(crate) came: watch::Receiver<Came>,
    /// Since when the node's CA is there.
    pub(crate) ca: Moment,
    /// This boot.
    pub(crate) boot: Arc<str>,
    /// Where the holder is told.
    pub(crate) places: Places,
    /// How it is.
    pub(crate) state: watch::Sender<State>,
    /// Ends it, and leaves what is wanted.
    pub(crate) stop: CancellationToken,
}

/// Of which state of which view something follows, and of which moments.
type Basis = (Option<(u64, u64)>, Came);

impl Keeper {
    /// Runs until stopped.
    pub(crate) async fn run(mut self) {
        let mut known: Option<(Basis, Option<Excluded>)> = None;
        let mut wanted: Option<(Wanted, Instant)> = None;
        loop {
            let now = self.wanted(&mut known);
            if let Some(now) = now
                && wanted.as_ref().is_none_or(|(before, _)| *before != now)
            {
                match now.write(&self.places.wanted()) {
                    Ok(()) => wanted = Some((now, Instant::now())),
                    Err(error) => {
                        self.show(|state| {
                            state.missing = Some(format!("it cannot be said who is wanted: {error}"))
                        });
                        wanted = None;
                    }
                }
            }
            if let Some((wanted, since)) = &wanted {
                self.look(wanted, *since);
            }
            let changed = async {
                let (services, came) = (self.services.changed(), self.came.changed());
                let closed = tokio::select! {
                    changed = services => changed.is_err(),
                    changed = came => changed.is_err(),
                };
                if closed {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                () = changed => {}
            }
        }
    }

    /// Who is to be sent to the hub; nothing while that is not known, which leaves it as it is.
    fn wanted(&mut self, known: &mut Option<(Basis, Option<Excluded>)>) -> Option<Wanted> {
        if self.state.borrow().chosen.way == WayIn::Environment {
            return Some(Wanted::nothing());
        }
        let came = self.came.borrow_and_update().clone();
        let services: BTreeSet<SocketAddrV4> = self
            .services
            .borrow_and_update()
            .iter()
            .filter_map(|service| match service {
                SocketAddr::V4(service) => Some(*service),
                SocketAddr::V6(_) => None,
            })
            .collect();
        let course = came.as_ref().ok();
        let since = Since {
            came: course.and_then(|course| course.came.as_ref()),
            ca: Some(&self.ca),
            boot: Some(&*self.boot).filter(|boot| !boot.is_empty()),
        };
        if since.came.is_none() && came.is_ok() {
            // kubelet does not work through the hub yet.
            return Some(Wanted::nothing());
        }
        if services.is_empty() {
            return None;
        }
        let view = self.views.pods_view().filter(|view| view.may_answer(Question::AsLastKnown));
        let basis =
            (view.as_ref().map(|view| (u64::from(view.id.0), view.progress.borrow().sequence)), came.clone());
        if known.as_ref().is_none_or(|(before, _)| *before != basis) {
            let excluded = match view {
                Some(view) => match excluded(&view, &since, course.and_then(|course| course.turn.as_ref())) {
                    Ok(excluded) => excluded,
                    Err(error) => {
                        tracing::warn!(%error, "the node's pods cannot be read");
                        return None;
                    }
                },
                None => since.all_began_since().then(Excluded::default),
            };
            *known = Some((basis, excluded));
        }
        let excluded = known.as_ref()?.1.as_ref()?;
        self.show(|state| state.on_host.clone_from(&excluded.on_host));
        if !excluded.unplaced.is_empty() {
            return Some(Wanted::nothing());
        }
        Some(Wanted::new(services, excluded.past.clone(), excluded.on_host.is_empty()))
    }

    /// Whether what is wanted since then is in place.
    fn look(&self, wanted: &Wanted, since: Instant) {
        let told = Told::read(&self.places.told());
        let told_in_place = told.as_ref().ok().and_then(|told| told.as_ref()?.in_place.clone());
        let missing = if wanted.services.is_empty() {
            None
        } else {
            match told {
                Ok(Some(Told { error: Some(error), .. })) => Some(error),
                Ok(Some(told)) if told.in_place.as_ref() == Some(wanted) => None,
                _ if since.elapsed() < FOLLOWED_WITHIN => self.state.borrow().missing.clone(),
                Ok(_) => Some(format!("{} does not follow", names::UNIT_ADDRESS)),
                Err(error) => Some(format!("what {} says cannot be read: {error}", names::UNIT_ADDRESS)),
            }
        };
        // What is known to be there; what was wanted before may be there until then.
        let followed = told_in_place.as_ref() == Some(wanted);
        let turn = self.came.borrow().as_ref().ok().and_then(|course| Some(course.turn.as_ref()?.second));
        self.show(|state| {
            state.missing = missing;
            if followed {
                state.open = !wanted.services.is_empty();
            }
            state.turn = turn.filter(|_| followed && state.open);
        });
    }

    fn show(&self, change: impl FnOnce(&mut State)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            if state.missing != before.missing
                && let Some(missing) = &state.missing
            {
                tracing::error!(missing, "pods are not led to the hub");
            }
            *state != before
        });
    }
}

/// Nothing when a pod cannot be understood: who knows what it is.
fn excluded(view: &View, since: &Since<'_>, turn: Option<&Turn>) -> Result<Option<Excluded>, StoreError> {
    let mut excluded = Excluded::default();
    let mut whole = true;
    view.for_each(|body| {
        match serde_json::from_slice::<Pod>(body) {
            Ok(pod) => whole &= excluded.add(&pod, since, turn).is_some(),
            Err(error) => {
                tracing::warn!(%error, "a stored pod cannot be understood");
                whole = false;
            }
        }
        Ok(())
    })?;
    Ok(whole.then_some(excluded))
}
