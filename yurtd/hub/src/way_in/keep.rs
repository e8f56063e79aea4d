//! The hub's part of the way in: says who is to be sent to it, and sees whether that is so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_api::agent::Turn;
use yurt_api::names;
use yurt_node::config::WayIn;
use yurt_node::nft::Family;

use super::document::{DocumentError, Told, Wanted};
use super::excluded::Excluded;
use super::pod::Pod;
use super::{Chosen, Places, Since};
use crate::Came;
use crate::replica::Views;
use crate::serve::ipv6::Listening;
use crate::store::StoreError;
use crate::upstream::Upstream;
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
    /// Whose new connections are sent to the hub, as far as that is known to be in place.
    pub(crate) services: BTreeSet<SocketAddr>,
    /// Somebody is sent to the hub, or may be.
    pub(crate) open: bool,
    /// The keeper's turn of agents that is in place.
    pub(crate) turn: Option<i64>,
    /// Pods on the host's network because of which the host itself keeps to the API server.
    pub(crate) on_host: BTreeSet<String>,
    /// The hub itself connects to the Service's address, so the host has to keep to the API server.
    pub(crate) would_loop: bool,
}

impl State {
    pub(crate) fn new(chosen: Chosen) -> Self {
        // What the hub before this one wanted may be there.
        let open = chosen.way == WayIn::Service;
        Self {
            chosen,
            missing: None,
            services: BTreeSet::new(),
            open,
            turn: None,
            on_host: BTreeSet::new(),
            would_loop: false,
        }
    }
}

/// Keeps the way in.
pub(crate) struct Keeper {
    /// Where kubelet's view of the node's pods is.
    pub(crate) views: Views,
    /// Where pods look for the API server.
    pub(crate) services: watch::Receiver<BTreeSet<SocketAddr>>,
    /// How the listener is to which those of IPv6 are led.
    pub(crate) listening: watch::Receiver<Listening>,
    /// When kubelet came to the hub.
    pub(crate) came: watch::Receiver<Came>,
    /// The node's CA, PEM.
    pub(crate) ca: Arc<str>,
    /// Where the hub itself connects to.
    pub(crate) upstream: Upstream,
    /// This boot.
    pub(crate) boot: Arc<str>,
    /// Where the holder is told.
    pub(crate) places: Places,
    /// How it is.
    pub(crate) state: watch::Sender<State>,
    /// Ends it, and leaves what is wanted.
    pub(crate) stop: CancellationToken,
}

/// What the holder was told.
struct Asked {
    wanted: Wanted,
    /// The turn of agents that this heeds.
    turn: Option<i64>,
    /// Since when it may not be as wanted.
    since: Instant,
}

/// What the holder has made of it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// It is in place.
    followed: bool,
    /// Why who is to be sent to the hub is not.
    missing: Option<String>,
}

impl Asked {
    /// What the holder's word means; `before` is what was missing at the last look.
    fn judge(&mut self, told: Result<Option<Told>, DocumentError>, before: Option<String>) -> Seen {
        let in_place = told.as_ref().ok().and_then(|told| told.as_ref()?.in_place.as_ref());
        // Of this revision: the same may have been in place before, and something else since.
        let followed = in_place == Some(&self.wanted);
        if followed {
            self.since = Instant::now();
        }
        let missing = if followed || self.wanted.services.is_empty() {
            None
        } else {
            match told {
                Ok(Some(Told { error: Some(error), .. })) => Some(error),
                _ if self.since.elapsed() < FOLLOWED_WITHIN => before,
                Ok(_) => Some(format!("{} does not follow", names::UNIT_ADDRESS)),
                Err(error) => Some(format!("what {} says cannot be read: {error}", names::UNIT_ADDRESS)),
            }
        };
        Seen { followed, missing }
    }
}

/// Larger than the last one, and than those of the hub before, as long as the clock does not go back: then it may take one
/// more look to be told from that one's.
fn next_revision(last: u64) -> u64 {
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    now.max(last.saturating_add(1))
}

/// Of which state of which view something follows, of which moments, and whether a turn may still be going on.
type Basis = (Option<(u64, u64)>, Came, bool);

impl Keeper {
    /// Runs until stopped.
    pub(crate) async fn run(mut self) {
        let mut known: Option<(Basis, Option<Excluded>)> = None;
        let mut asked: Option<Asked> = None;
        loop {
            if let Some((wanted, turn)) = self.wanted(&mut known) {
                match &mut asked {
                    // Who is wanted is as it was before that turn.
                    Some(asked) if asked.wanted.says(&wanted) => asked.turn = turn,
                    _ => {
                        let revision = asked.as_ref().map_or(0, |asked| asked.wanted.revision);
                        let wanted = wanted.revised(next_revision(revision));
                        asked = self.ask(&wanted).then(|| Asked { wanted, turn, since: Instant::now() });
                    }
                }
            }
            if let Some(asked) = &mut asked {
                self.look(asked);
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

    /// Tells the holder; whether that could be done.
    fn ask(&self, wanted: &Wanted) -> bool {
        let outcome = wanted.write(&self.places.wanted());
        if let Err(error) = &outcome {
            self.show(|state| state.missing = Some(format!("it cannot be said who is wanted: {error}")));
        }
        outcome.is_ok()
    }

    /// Who is to be sent to the hub, and the turn of agents that this heeds; nothing while that is not known, which leaves
    /// it as it is.
    fn wanted(&mut self, known: &mut Option<(Basis, Option<Excluded>)>) -> Option<(Wanted, Option<i64>)> {
        let listening = self.listening.borrow().clone();
        // Whether somebody listens there or not.
        let nothing = || Wanted::nothing().with_ipv6(listening != Listening::Unneeded);
        if self.state.borrow().chosen.way == WayIn::Environment {
            return Some((nothing(), None));
        }
        let came = self.came.borrow_and_update().clone();
        let services = self.services.borrow_and_update().clone();
        let course = came.as_ref().ok();
        let boot = Some(&*self.boot).filter(|boot| !boot.is_empty());
        let since = Since::of(course, &self.ca, boot);
        if since.came.is_none() && came.is_ok() {
            // kubelet does not work through the hub yet, or shows pods another CA than the hub's.
            return Some((nothing(), None));
        }
        if services.is_empty() {
            return None;
        }
        let listens = matches!(listening, Listening::At(_));
        let services: BTreeSet<SocketAddr> =
            services.into_iter().filter(|service| service.is_ipv4() || listens).collect();
        if services.is_empty() {
            return Some((nothing(), None));
        }
        let view = self.views.pods_view().filter(|view| view.may_answer(Question::AsLastKnown));
        let now = jiff::Timestamp::now().as_second();
        let turn = course.and_then(|course| course.turn.as_ref()).filter(|turn| turn.may_last(now));
        let state = view.as_ref().map(|view| (u64::from(view.id.0), view.progress.borrow().sequence));
        let basis = (state, came.clone(), turn.is_some());
        if known.as_ref().is_none_or(|(before, _)| *before != basis) {
            let excluded = match view {
                Some(view) => match excluded(&view, &since, turn) {
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
        let own = self.upstream.addresses();
        let would_loop = services.iter().any(|service| own.contains(service));
        self.show(|state| {
            state.on_host.clone_from(&excluded.on_host);
            state.would_loop = would_loop;
        });
        let turn = turn.map(|turn| turn.second);
        if !excluded.unplaced.is_empty() {
            return Some((nothing(), turn));
        }
        let host = excluded.on_host.is_empty() && !would_loop;
        let past = excluded.past.iter().copied().filter(|past| is_of_one(*past, &services)).collect();
        Some((Wanted::new(services, past, host).with_ipv6(nothing().ipv6), turn))
    }

    /// Whether what is wanted is in place.
    fn look(&self, asked: &mut Asked) {
        let told = Told::read(&self.places.told());
        let before = self.state.borrow().missing.clone();
        let seen = asked.judge(told, before);
        if !seen.followed && asked.since.elapsed() >= FOLLOWED_WITHIN {
            // Somebody may have taken away what was said.
            if !matches!(Wanted::read(&self.places.wanted()), Ok(Some(said)) if said == asked.wanted)
                && !self.ask(&asked.wanted)
            {
                return;
            }
        }
        self.show(|state| {
            state.missing = seen.missing;
            if seen.followed {
                state.open = !asked.wanted.services.is_empty();
                state.services.clone_from(&asked.wanted.services);
            }
            state.turn = asked.turn.filter(|_| seen.followed && state.open);
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

/// Whether connections from there can go to one of these: they are of one family.
fn is_of_one(address: IpAddr, services: &BTreeSet<SocketAddr>) -> bool {
    services.iter().any(|service| Family::of(service.ip()) == Family::of(address))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(revision: u64, services: &[&str]) -> Wanted {
        let services = services.iter().map(|service| service.parse().unwrap()).collect();
        Wanted::new(services, BTreeSet::new(), true).revised(revision)
    }

    fn asked(wanted: Wanted) -> Asked {
        Asked { wanted, turn: None, since: Instant::now() }
    }

    const SERVICE: &[&str] = &["10.96.0.1:443"];

    fn told(in_place: Wanted) -> Result<Option<Told>, DocumentError> {
        Ok(Some(Told { in_place: Some(in_place), ..Told::default() }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_in_place_before_something_else_is_not_taken_for_what_is_wanted_now() {
        let mut asked = asked(wanted(3, SERVICE));
        assert!(!asked.judge(told(wanted(1, SERVICE)), None).followed);
        assert!(!asked.judge(told(wanted(2, &[])), None).followed);
        assert_eq!(asked.judge(told(wanted(3, SERVICE)), None), Seen { followed: true, missing: None });
        assert!(next_revision(3) > 3 && next_revision(u64::MAX - 1) == u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_in_which_the_holder_is_not_heard_is_no_reason_not_to_be_ready() {
        let unreadable = || Err(DocumentError::Disk(std::io::Error::other("too many open files")));
        let mut asked = asked(wanted(1, SERVICE));
        tokio::time::advance(2 * FOLLOWED_WITHIN).await;
        assert!(asked.judge(told(wanted(1, SERVICE)), None).followed);
        for said in [Ok(None), Ok(Some(Told::default())), unreadable()] {
            assert_eq!(asked.judge(said, None), Seen { followed: false, missing: None });
        }
        tokio::time::advance(FOLLOWED_WITHIN).await;
        for said in [Ok(None), Ok(Some(Told::default())), unreadable()] {
            assert!(asked.judge(said, None).missing.is_some());
        }
        let failed = Told { error: Some("why".into()), ..Told::default() };
        assert_eq!(asked.judge(Ok(Some(failed)), None).missing.as_deref(), Some("why"));
    }

    #[test]
    fn until_it_is_known_what_is_in_place_somebody_may_be_led_to_the_hub() {
        let open = |way| State::new(Chosen { way, why: None }).open;
        assert!(open(WayIn::Service) && !open(WayIn::Environment));
    }
}
