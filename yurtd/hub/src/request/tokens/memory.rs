//! What is known of tokens: whose they are, and which ones the API server has refused. Pure: the time is an input.
//!
//! One refusal says little. An API server that has just started does not know every ServiceAccount and pod yet, and one
//! whose keys are being replaced knows one key and not the other; it says the same of a good token as of one that was
//! revoked ("service account token has been invalidated" is also what it says when it could not look). So, as with a
//! view that is forbidden, a refusal counts without a link if it has lasted: at least twice, [`LASTS`] apart, and nothing
//! else in between. With a link every refusal is passed on.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{TokenRecord, Verdict};
use crate::caller::Identity;
use crate::limits;
use crate::request::AuthError;

/// A known token is reviewed again after this long while the link is up.
const RECHECK: Duration = Duration::from_secs(120);
/// A token that was refused is not asked about again for this long.
const REFUSED: Duration = Duration::from_secs(10);
/// A token that has been refused for so long was revoked.
pub(super) const LASTS: Duration = Duration::from_secs(60);
/// A refusal says nothing about one that comes so much later: an API server may have started both times.
const UNCONNECTED: Duration = Duration::from_secs(600);

pub(super) type Hash = [u8; 32];

struct Known {
    record: TokenRecord,
    /// When the API server last said so in this process' life.
    checked: Option<Instant>,
}

/// A token that was refused, and may be good for all that.
struct Doubt {
    since: Instant,
    last: Instant,
    expires: Option<i64>,
}

#[derive(Default)]
pub(super) struct Memory {
    known: HashMap<Hash, Known>,
    /// Just now, and why.
    refused: HashMap<Hash, (Instant, String)>,
    doubted: HashMap<Hash, Doubt>,
    /// Tokens that were revoked, with their `exp`: without a link they are nobody's, whatever the cluster's keys say.
    revoked: HashMap<Hash, Option<i64>>,
}

/// What has become of a token that was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody would let it in without the API server.
    Passing,
    /// The first: it is to be seen whether that lasts.
    First,
    /// One of several within [`LASTS`].
    Again,
    /// It was revoked. Nothing is news if that was known.
    Revoked {
        /// The user it stood for.
        known: Option<String>,
        news: bool,
        /// Forgotten to make room.
        evicted: Option<Hash>,
    },
}

/// What is new when a token was accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// It is not on the disk, or not so.
    pub(super) news: bool,
    /// Forgotten to make room.
    pub(super) evicted: Option<Hash>,
}

impl Memory {
    /// Takes over what an earlier process has left.
    pub(super) fn found(&mut self, hash: Hash, record: TokenRecord) {
        if record.revoked {
            self.revoked.insert(hash, record.expires);
        } else {
            self.known.insert(hash, Known { record, checked: None });
        }
    }

    /// What is to be done about a token whose time has not ended. `plausible` is whether it may be one of an API server's.
    pub(super) fn verdict(&mut self, hash: &Hash, online: bool, plausible: bool, now: Instant) -> Verdict {
        let known = self.known.get_mut(hash);
        if !online {
            return match known {
                Some(known) => Verdict::Accept(Identity::new(&known.record.user)),
                None if !plausible => Verdict::Refuse(no_token()),
                None if self.revoked.contains_key(hash) => {
                    Verdict::Refuse(AuthError::TokenRefused("that was its last word".to_owned()))
                }
                None => Verdict::Unknown,
            };
        }
        match (known, self.refused.get(hash)) {
            (_, Some((when, reason))) if now.duration_since(*when) < REFUSED => {
                Verdict::Refuse(AuthError::TokenRefused(reason.clone()))
            }
            (Some(known), _) if !self.doubted.contains_key(hash) => {
                let identity = Identity::new(&known.record.user);
                if known.checked.is_some_and(|checked| now.duration_since(checked) < RECHECK) {
                    return Verdict::Accept(identity);
                }
                // One recheck at a time: the next one is due after this one.
                known.checked = Some(now);
                Verdict::AcceptAndRecheck(identity)
            }
            // What cannot be one of the cluster's is not worth the link.
            (None, _) if !plausible => Verdict::Refuse(no_token()),
            _ => Verdict::Review,
        }
    }

    /// When a known token ends, if it does.
    pub(super) fn ends(&self, hash: &Hash) -> Option<Option<i64>> {
        self.known.get(hash).map(|known| known.record.expires)
    }

    /// The API server knows it.
    pub(super) fn accept(&mut self, hash: Hash, record: TokenRecord, now: Instant) -> Accepted {
        self.refused.remove(&hash);
        self.doubted.remove(&hash);
        let was_revoked = self.revoked.remove(&hash).is_some();
        let known = Known { record: record.clone(), checked: Some(now) };
        let before = self.known.insert(hash, known);
        let news = was_revoked || before.is_none_or(|before| before.record != record);
        let full = self.known.len() > limits::KNOWN_TOKENS;
        let expiry = |known: &Known| known.record.expires;
        Accepted { news, evicted: full.then(|| evict(&mut self.known, &hash, expiry)).flatten() }
    }

    /// The API server does not. `admissible` is whether it may be let in without a link although nobody knows it.
    pub(super) fn refuse(
        &mut self,
        hash: Hash,
        reason: String,
        admissible: bool,
        expires: Option<i64>,
        now: Instant,
    ) -> Refusal {
        self.refused.retain(|_, (when, _)| now.duration_since(*when) < REFUSED);
        if self.refused.len() < limits::REFUSED_TOKENS {
            self.refused.insert(hash, (now, reason));
        }
        if !admissible && !self.known.contains_key(&hash) {
            return Refusal::Passing;
        }
        if !self.revoked.contains_key(&hash) {
            let begun = Doubt { since: now, last: now, expires };
            let before =
                self.doubted.remove(&hash).filter(|doubt| now.duration_since(doubt.last) < UNCONNECTED);
            let first = before.is_none();
            let doubt = before.map_or(begun, |doubt| Doubt { last: now, ..doubt });
            let lasted = now.duration_since(doubt.since) >= LASTS;
            self.doubted.insert(hash, doubt);
            if self.doubted.len() > limits::REFUSED_TOKENS {
                evict(&mut self.doubted, &hash, |doubt| doubt.expires);
            }
            if !lasted {
                return if first { Refusal::First } else { Refusal::Again };
            }
            self.doubted.remove(&hash);
        }
        let known = self.known.remove(&hash).map(|known| known.record.user);
        let news = self.revoked.insert(hash, expires).is_none();
        let full = self.revoked.len() > limits::REFUSED_TOKENS;
        Refusal::Revoked {
            known,
            news,
            evicted: full.then(|| evict(&mut self.revoked, &hash, |expires| *expires)).flatten(),
        }
    }

    /// Whether it is still to be seen what a refusal was worth.
    pub(super) fn is_doubted(&self, hash: &Hash) -> bool {
        self.doubted.contains_key(hash)
    }

    /// It was revoked, and would not be let in anyhow.
    pub(super) fn forget_revoked(&mut self, hash: &Hash) {
        self.revoked.remove(hash);
    }

    /// Whether it was revoked.
    pub(super) fn is_revoked(&self, hash: &Hash) -> bool {
        self.revoked.contains_key(hash)
    }
}

fn no_token() -> AuthError {
    AuthError::TokenRefused("it is no JSON Web Token".to_owned())
}

/// Takes out what expires first, but not `keep`. What has no end goes last.
fn evict<V>(all: &mut HashMap<Hash, V>, keep: &Hash, expires: impl Fn(&V) -> Option<i64>) -> Option<Hash> {
    let others = all.iter().filter(|(hash, _)| *hash != keep);
    let first = others.min_by_key(|(_, value)| expires(value).unwrap_or(i64::MAX)).map(|(hash, _)| *hash)?;
    all.remove(&first);
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Hash = [7; 32];
    const USER: &str = "system:serviceaccount:shop:web";

    fn record() -> TokenRecord {
        TokenRecord { user: USER.to_owned(), expires: Some(9), revoked: false }
    }

    fn refuse(memory: &mut Memory, now: Instant) -> Refusal {
        memory.refuse(TOKEN, "no".to_owned(), true, Some(9), now)
    }

    fn offline(memory: &mut Memory, now: Instant) -> Verdict {
        memory.verdict(&TOKEN, false, true, now)
    }

    fn revoked(known: bool, news: bool) -> Refusal {
        Refusal::Revoked { known: known.then(|| USER.to_owned()), news, evicted: None }
    }

    #[test]
    fn a_refusal_counts_without_a_link_when_it_has_lasted() {
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(refuse(&mut memory, at(0)), Refusal::First);
        assert_eq!(offline(&mut memory, at(1)), Verdict::Unknown);
        assert_eq!(refuse(&mut memory, at(59)), Refusal::Again);
        assert_eq!(
            offline(&mut memory, at(60)),
            Verdict::Unknown,
            "a minute has passed, and not between refusals"
        );
        assert_eq!(refuse(&mut memory, at(60)), revoked(false, true));
        assert!(matches!(offline(&mut memory, at(61)), Verdict::Refuse(_)));
        assert_eq!(refuse(&mut memory, at(90)), revoked(false, false), "known already");
        // Accepted again: begun anew.
        assert!(memory.accept(TOKEN, record(), at(100)).news);
        assert_eq!(refuse(&mut memory, at(200)), Refusal::First);
        memory.accept(TOKEN, record(), at(210));
        assert_eq!(refuse(&mut memory, at(300)), Refusal::First);
        // And hours in which nobody has asked.
        assert_eq!(refuse(&mut memory, at(7200)), Refusal::First);
        assert_eq!(refuse(&mut memory, at(7260)), revoked(true, true));
    }

    #[test]
    fn a_known_token_that_is_refused_is_asked_about_with_a_link_and_good_without_until_that_has_lasted() {
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let online = |memory: &mut Memory, seconds| memory.verdict(&TOKEN, true, true, at(seconds));
        let identity = || Identity::new(USER);
        assert!(memory.accept(TOKEN, record(), at(0)).news);
        assert!(!memory.accept(TOKEN, record(), at(0)).news);
        assert_eq!(online(&mut memory, 1), Verdict::Accept(identity()));
        assert_eq!(online(&mut memory, 121), Verdict::AcceptAndRecheck(identity()));
        assert_eq!(online(&mut memory, 122), Verdict::Accept(identity()), "one at a time");
        assert_eq!(refuse(&mut memory, at(122)), Refusal::First);
        assert!(matches!(online(&mut memory, 123), Verdict::Refuse(_)));
        assert_eq!(online(&mut memory, 133), Verdict::Review, "nobody comes in meanwhile");
        assert_eq!(offline(&mut memory, at(133)), Verdict::Accept(identity()));
        assert_eq!(refuse(&mut memory, at(182)), revoked(true, true));
        assert!(matches!(offline(&mut memory, at(183)), Verdict::Refuse(_)));
        assert_eq!(online(&mut memory, 193), Verdict::Review);
    }

    #[test]
    fn what_nobody_would_let_in_is_refused_for_a_moment_and_forgotten() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let later = now + REFUSED;
        assert_eq!(memory.refuse(TOKEN, "no".into(), false, None, now), Refusal::Passing);
        assert!(matches!(memory.verdict(&TOKEN, true, true, now), Verdict::Refuse(_)));
        assert_eq!(memory.verdict(&TOKEN, true, true, later), Verdict::Review);
        assert!(matches!(memory.verdict(&TOKEN, true, false, later), Verdict::Refuse(_)), "no token at all");
        assert!(memory.doubted.is_empty() && memory.revoked.is_empty());
    }

    #[test]
    fn everything_has_a_bound_and_what_ends_first_goes_first() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let hash = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            hash
        };
        let many = limits::REFUSED_TOKENS + 10;
        for time in [now, now + LASTS] {
            for number in 0..many {
                let expires = (number > 0).then_some(number as i64);
                memory.refuse(hash(number), String::new(), true, expires, time);
            }
            assert!(memory.doubted.len() <= limits::REFUSED_TOKENS);
            assert!(memory.refused.len() <= limits::REFUSED_TOKENS);
        }
        assert!(memory.revoked.len() <= limits::REFUSED_TOKENS);
        assert!(memory.is_revoked(&hash(0)) && memory.is_revoked(&hash(many - 11)), "it has no end");
        for number in 0..=limits::KNOWN_TOKENS {
            let record = TokenRecord { expires: Some(number as i64), ..record() };
            let evicted = memory.accept(hash(many + number), record, now).evicted;
            assert_eq!(evicted, (number == limits::KNOWN_TOKENS).then(|| hash(many)));
        }
    }
}
