//! The credentials that each identity has shown, and which of them its reflectors use.
//!
//! Several pods of a node may be one ServiceAccount. Each has a token of its own, which ends with the pod, while the
//! views belong to all of them. So an identity's last few credentials are kept, and when the API server does not
//! accept one any more, the next is tried before anybody who watches hears of it.
//!
//! Of those that are not known to be refused the one that lasts longest is used, of equals the one that was shown
//! last. When all are refused each further attempt takes the one whose refusal is longest ago: an API server that has
//! just started refuses tokens, too, that it accepts a little later.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::{Caller, Credential, Identity, Permit, authorise};
use crate::clock;

/// Credentials of one identity.
pub(crate) const OF_ONE: usize = 8;
/// Identities that have any, before those are forgotten for which nothing runs.
const IDENTITIES: usize = 512;
/// A refused credential that is shown again counts as not refused after so long: whoever let its owner in has asked.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Shown {
    credential: Credential,
    /// `i64::MAX` for what has no end.
    expires: i64,
    /// Its place in the order in which credentials were shown.
    order: u64,
    refused: Option<Instant>,
}

/// What one identity has shown.
#[derive(Debug, Clone, Default)]
struct Purse {
    shown: Vec<Shown>,
    next: u64,
}

impl Purse {
    /// Takes a credential; whether another one is the best now, or the best one is worth another attempt.
    fn show(&mut self, credential: &Credential, at: Instant, now: i64) -> bool {
        let before = self.best(now).map(|best| (best.order, best.refused.is_some()));
        let order = self.next;
        if let Some(known) = self.shown.iter_mut().find(|known| known.credential == *credential) {
            known.refused = known.refused.filter(|refused| at.saturating_duration_since(*refused) < AGAIN);
        } else {
            let expires = credential.expires().unwrap_or(i64::MAX);
            self.shown.push(Shown { credential: credential.clone(), expires, order, refused: None });
            self.next += 1;
        }
        if self.shown.len() > OF_ONE {
            // Never the new one: nothing is known against it yet.
            let others = self.shown.iter().enumerate().filter(|(_, known)| known.order != order);
            if let Some((worst, _)) = others.min_by_key(|(_, known)| known.rank(now)) {
                self.shown.swap_remove(worst);
            }
        }
        let after = self.best(now).map(|best| (best.order, best.refused.is_some()));
        before != after && self.has_live(now)
    }

    fn best(&self, now: i64) -> Option<&Shown> {
        self.shown.iter().max_by_key(|known| known.rank(now))
    }

    /// Whether there is one that nothing is known against.
    fn has_live(&self, now: i64) -> bool {
        self.shown.iter().any(|known| known.is_live(now))
    }

    fn find(&mut self, credential: &Credential) -> Option<&mut Shown> {
        self.shown.iter_mut().find(|known| known.credential == *credential)
    }
}

impl Shown {
    fn is_live(&self, now: i64) -> bool {
        self.refused.is_none() && self.expires > now
    }

    /// The higher the better.
    fn rank(&self, now: i64) -> impl Ord + use<> {
        (self.is_live(now), self.refused.is_none(), std::cmp::Reverse(self.refused), self.expires, self.order)
    }
}

fn now() -> i64 {
    i64::try_from(clock::now()).unwrap_or(i64::MAX)
}

/// The credentials of all identities.
#[derive(Default)]
pub(super) struct Credentials {
    known: Mutex<HashMap<Identity, watch::Sender<Purse>>>,
}

impl Credentials {
    /// Hands the permit's credential to everything that runs for its identity.
    pub(super) fn show(&self, permit: &Permit) -> Live {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= IDENTITIES && !known.contains_key(permit.identity()) {
            known.retain(|_, purse| purse.receiver_count() > 0);
        }
        let purse = known.entry(permit.identity().clone()).or_default();
        purse.send_if_modified(|purse| purse.show(permit.credential(), Instant::now(), now()));
        let changed = purse.subscribe();
        Live { purse: purse.clone(), changed, of_node: permit.is_node() }
    }

    /// An identity with the best credential that it has shown.
    pub(super) fn permit_of(&self, identity: &Identity) -> Option<Permit> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let credential = known.get(identity)?.borrow().best(now())?.credential.clone();
        Some(authorise(Caller { identity: identity.clone(), credential }))
    }
}

/// The credentials of one identity, as a reflector uses them.
#[derive(Debug)]
pub(super) struct Live {
    purse: watch::Sender<Purse>,
    changed: watch::Receiver<Purse>,
    of_node: bool,
}

impl Live {
    /// Whether they are the node's: kubelet's views.
    pub(super) fn is_node(&self) -> bool {
        self.of_node
    }

    /// The one to use now. [`Self::changed`] tells of a better one from here on.
    pub(super) fn best(&mut self) -> Credential {
        // Whoever follows anything has shown one.
        self.changed.borrow_and_update().best(now()).map_or(Credential::Node, |best| best.credential.clone())
    }

    /// Until there is another one to be tried.
    pub(super) async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The API server has not accepted this one. Whether there is another one that it may accept.
    pub(super) fn refused(&self, credential: &Credential) -> bool {
        let mut another = false;
        self.purse.send_if_modified(|purse| {
            if let Some(known) = purse.find(credential) {
                known.refused = Some(Instant::now());
            }
            another = purse.has_live(now());
            // The others find out by themselves, or never use it.
            false
        });
        another
    }

    /// The API server has accepted this one.
    pub(super) fn accepted(&self, credential: &Credential) {
        self.purse.send_if_modified(|purse| {
            // Those that wait because all were refused need not wait any longer.
            purse.find(credential).is_some_and(|known| known.refused.take().is_some())
        });
    }
}

#[cfg(test)]
mod tests {
    use yurt_node::token::BearerToken;

    use super::*;
    use crate::caller::jwt;

    fn token(name: &str, expires: i64) -> Credential {
        let claims = serde_json::json!({"sub": name, "exp": expires});
        Credential::Bearer(BearerToken::new(&jwt::for_test(&claims)))
    }

    fn best(purse: &Purse) -> Credential {
        purse.best(0).unwrap().credential.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_longest_is_used_and_what_was_refused_last_of_all() {
        let start = Instant::now();
        let mut purse = Purse::default();
        assert!(purse.show(&token("a", 10), start, 0));
        assert!(purse.show(&token("b", 20), start, 0));
        assert!(!purse.show(&token("c", 15), start, 0), "there is a better one");
        assert_eq!(best(&purse), token("b", 20));
        assert!(purse.show(&token("d", 20), start, 0), "as good and newer");
        assert_eq!(purse.best(18).unwrap().credential, token("d", 20));
        for (number, refused) in ["d", "b", "c"].into_iter().enumerate() {
            let expires = if refused == "c" { 15 } else { 20 };
            assert!(purse.has_live(0));
            let at = start + Duration::from_secs(number as u64);
            purse.find(&token(refused, expires)).unwrap().refused = Some(at);
        }
        assert_eq!(best(&purse), token("a", 10));
        assert!(!purse.has_live(11), "it has ended");
        purse.find(&token("a", 10)).unwrap().refused = Some(start + Duration::from_secs(9));
        assert_eq!(best(&purse), token("d", 20), "the first that was refused is tried first");
        // Shown again at once it is still refused, later it is worth another attempt.
        assert!(!purse.show(&token("c", 15), start + Duration::from_secs(3), 0));
        assert!(purse.show(&token("c", 15), start + Duration::from_secs(12), 0));
        assert_eq!(best(&purse), token("c", 15));
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_has_a_bounded_number_and_never_loses_the_newest() {
        let mut purse = Purse::default();
        for number in 0..20_i64 {
            purse.show(&token(&number.to_string(), 100 - number), Instant::now(), 0);
            assert!(purse.shown.len() <= OF_ONE);
            assert!(purse.find(&token(&number.to_string(), 100 - number)).is_some());
        }
        assert_eq!(best(&purse), token("0", 100));
    }
}
