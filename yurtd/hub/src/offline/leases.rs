//! Leases of leader elections, other than the node's own, while the link is down: answered for those whose owner has
//! asked for it with the annotation `openyurt.io/offline-lease: "true"` on the Lease, and for nobody else.
//!
//! An election wants one leader in the whole cluster, and without a link nobody here can know who that is: the cloud may
//! elect another one meanwhile. Whoever sets the annotation says that two are better than none. So
//!
//! - only the identity that wrote the Lease last, through this hub, may renew it: its holder is on this node. Whatever
//!   shows that somebody else holds it, or has changed it, ends that until it is written from here again;
//! - another candidate of that identity (a container that has started again) may have it when the holder has given it
//!   up, or has not renewed it for as long as the Lease lasts;
//! - the resourceVersion stays the API server's last one, and all of this is in memory: when the link is back nothing is
//!   sent. The next renewal is the API server's to decide; if the Lease has changed meanwhile that is a 409, and the client
//!   reads it and finds out who leads.
//!
//! client-go reads the Lease and writes it whole, in JSON or protobuf (`tools/leaderelection`), so what was sent is what is
//! answered. Others patch it, or apply it (`application/apply-patch+yaml`, in JSON as clients send it): that is done to the
//! Lease in the encoding in which it is known ([`patched`]), if it changes the `spec` alone.

mod lease;
mod patched;
mod protobuf;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::answer::Answer;
use super::patch::{PatchError, PatchType};
use crate::caller::Identity;
use lease::Lease;

/// Leases that are known; the one that was heard of longest ago goes first.
const MAX_LEASES: usize = 64;
/// Bound of one. They have some hundred bytes.
pub(crate) const MAX_LEASE: usize = 16 << 10;

/// Why a renewal is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// 503: who holds it is not known to be here.
    #[error("{0}")]
    NotHere(&'static str),
    /// 409: it has changed, or somebody else on the node holds it.
    #[error("{0}")]
    Conflict(&'static str),
    /// 409, 400 or 422: the patch.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// How a Lease is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal<'r> {
    /// PUT: the whole Lease.
    Whole {
        /// In which encoding.
        content_type: &'r str,
    },
    /// PATCH.
    Patch(PatchType),
    /// PATCH with an applied configuration.
    Apply {
        /// `fieldManager`
        manager: &'r str,
        /// Whether it takes what others have applied.
        force: bool,
    },
}

/// Namespace and name.
type Key = (String, String);

struct Known {
    lease: Lease,
    answer: Answer,
    /// Who has written it, through this hub, as the last that is known of it.
    writer: Option<Identity>,
    /// When it was last seen to change.
    changed: Instant,
    /// When it was last heard of.
    heard: Instant,
}

/// The Leases of leader elections that asked to be answered.
#[derive(Default)]
pub(crate) struct OfflineLeases {
    known: Mutex<HashMap<Key, Known>>,
}

impl OfflineLeases {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        // Whole after every statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a renewal by this identity could be answered: then its body has to be known.
    pub(crate) fn may_renew(&self, identity: &Identity, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().get(&key).is_some_and(|known| known.writer.as_ref() == Some(identity))
    }

    /// The API server answered this identity with the Lease: it was read, or (`wrote`) written.
    pub(crate) fn seen(&self, identity: &Identity, wrote: bool, answer: Answer) {
        let Some(lease) = Lease::of(&answer.content_type, &answer.body) else { return };
        let (key, now) = (lease.key(), Instant::now());
        let mut known = self.lock();
        if !lease.opted {
            known.remove(&key);
            return;
        }
        let before = known.remove(&key).filter(|before| before.lease.uid == lease.uid);
        let before = match before {
            // Answers may overtake each other.
            Some(before) if before.lease.version > lease.version => {
                known.insert(key, Known { heard: now, ..before });
                return;
            }
            before => before,
        };
        let same = before.as_ref().filter(|before| before.lease.version == lease.version);
        let changed = same.map_or(now, |before| before.changed);
        // Reading it changes nothing, unless it shows that somebody else has it.
        let still = before.filter(|before| before.lease.holder == lease.holder && !lease.holder.is_empty());
        let writer = if wrote { Some(identity.clone()) } else { still.and_then(|before| before.writer) };
        known.insert(key, Known { lease, answer, writer, changed, heard: now });
        if known.len() > MAX_LEASES {
            let oldest = known.iter().min_by_key(|(_, known)| known.heard).map(|(key, _)| key.clone());
            oldest.map(|key| known.remove(&key));
        }
    }

    /// Who wrote it was told that it is gone, or is not as he believes, or not his to read any more.
    pub(crate) fn forget(&self, identity: &Identity, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut known = self.lock();
        if known.get(&key).is_some_and(|known| known.writer.as_ref() == Some(identity)) {
            known.remove(&key);
        }
    }

    /// The Lease, for a GET of the identity whose it is.
    pub(crate) fn get(&self, identity: &Identity, namespace: &str, name: &str) -> Option<Answer> {
        let known = self.lock();
        let known = known.get(&(namespace.to_owned(), name.to_owned()))?;
        (known.writer.as_ref() == Some(identity)).then(|| known.answer.clone())
    }

    /// A renewal without the API server, answered in an encoding that is `accepted`.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]; then nothing has changed.
    pub(crate) fn renew(
        &self,
        identity: &Identity,
        (namespace, name): (&str, &str),
        renewal: Renewal<'_>,
        body: &Bytes,
        accepted: impl FnOnce(&str) -> bool,
    ) -> Result<Answer, LeaseError> {
        const ELSEWHERE: LeaseError =
            LeaseError::NotHere("it is not known to be held on this node, with this annotation");
        let mut known = self.lock();
        let known = known.get_mut(&(namespace.to_owned(), name.to_owned())).ok_or(ELSEWHERE)?;
        if known.writer.as_ref() != Some(identity) {
            return Err(ELSEWHERE);
        }
        let answer = match renewal {
            Renewal::Whole { content_type } => Answer::new(StatusCode::OK, content_type, body.clone()),
            Renewal::Patch(patch) => patched::patched(&known.answer, patch, body)?,
            Renewal::Apply { manager, force } => patched::applied(&known.answer, manager, force, body)?,
        };
        if !accepted(&answer.content_type) {
            return Err(LeaseError::NotHere("the client does not take the encoding in which it is known"));
        }
        let sent = Lease::of(&answer.content_type, &answer.body)
            .ok_or(LeaseError::NotHere("what was sent is no Lease with uid and resourceVersion"))?;
        if !sent.opted || sent.key() != known.lease.key() || sent.uid != known.lease.uid {
            return Err(ELSEWHERE);
        }
        if sent.version != known.lease.version {
            return Err(LeaseError::Conflict("it has been modified; read it again"));
        }
        let (before, expired) = (&known.lease.holder, known.changed.elapsed() >= known.lease.lasts);
        if sent.holder != *before && !before.is_empty() && !sent.holder.is_empty() && !expired {
            return Err(LeaseError::Conflict("somebody else on this node holds it"));
        }
        (known.changed, known.heard) = (Instant::now(), Instant::now());
        known.lease = sent;
        known.answer = answer.clone();
        Ok(answer)
    }
}

/// What holds of any Lease: its holder may write it once more as it is, and nobody else's version.
pub(crate) fn fuzz(content_type: &str, body: &Bytes) {
    let Some(lease) = Lease::of(content_type, body) else { return };
    let (leases, me) = (OfflineLeases::default(), Identity::new("me"));
    leases.seen(&me, true, Answer::new(StatusCode::OK, content_type, body.clone()));
    let key = (&*lease.namespace, &*lease.name);
    assert_eq!(leases.may_renew(&me, key.0, key.1), lease.opted);
    let whole = Renewal::Whole { content_type };
    let renewed = leases.renew(&me, key, whole, body, |_| true);
    assert_eq!(renewed.is_ok(), lease.opted);
    for renewal in [Renewal::Patch(PatchType::Merge), Renewal::Apply { manager: "me", force: true }] {
        let _ = leases.renew(&me, key, renewal, body, |_| true);
        let spec =
            Bytes::from_static(br#"{"kind":"Lease","spec":{"renewTime":"2026-01-01T00:00:15.000001Z"}}"#);
        if let Ok(renewed) = leases.renew(&me, key, renewal, &spec, |_| true) {
            assert!(Lease::of(&renewed.content_type, &renewed.body).is_some_and(|renewed| renewed == lease));
        }
    }
    assert!(leases.renew(&Identity::new("other"), key, whole, body, |_| true).is_err());
}

#[cfg(test)]
mod tests;
