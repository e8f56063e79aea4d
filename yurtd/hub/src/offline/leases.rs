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
//! answered. A patch is applied if it changes the `spec` alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use yurt_api::names::ANNOTATION_OFFLINE_LEASE;

use super::answer::Answer;
use super::patch::{self, PatchError, PatchType};
use super::token_request::is_protobuf;
use crate::caller::Identity;
use crate::wire::{WireError, parse_resource_version, proto};

/// Leases that are known; the one that was heard of longest ago goes first.
const MAX_LEASES: usize = 64;
/// Bound of one. They have some hundred bytes.
pub(crate) const MAX_LEASE: usize = 16 << 10;

const KIND: &str = "Lease";

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

/// What decides about a Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lease {
    namespace: String,
    name: String,
    uid: String,
    version: u64,
    opted: bool,
    /// Empty when nobody holds it.
    holder: String,
    lasts: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
}

impl Lease {
    /// Reads a Lease; `None` when it is none.
    fn of(content_type: &str, body: &Bytes) -> Option<Self> {
        if body.len() > MAX_LEASE {
            return None;
        }
        let lease = if is_protobuf(content_type) {
            Self::of_protobuf(body).ok()?
        } else {
            let Document { kind, metadata, spec } = serde_json::from_slice(body).ok()?;
            if kind != KIND {
                return None;
            }
            Self {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                version: parse_resource_version(&metadata.resource_version).unwrap_or(0),
                opted: metadata.annotations.is_some_and(|annotations| {
                    annotations.get(ANNOTATION_OFFLINE_LEASE).is_some_and(|value| value == "true")
                }),
                holder: spec.holder_identity.unwrap_or_default(),
                lasts: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0)),
            }
        };
        let whole = !lease.name.is_empty() && !lease.uid.is_empty() && lease.version != 0;
        whole.then_some(lease)
    }

    /// Lease{metadata 1, spec 2}, ObjectMeta{name 1, namespace 3, uid 5, resourceVersion 6, annotations 12},
    /// LeaseSpec{holderIdentity 1, leaseDurationSeconds 2}
    fn of_protobuf(body: &Bytes) -> Result<Self, WireError> {
        let (kind, raw) = proto::open_envelope(body)?;
        if kind.kind != KIND {
            return Err(WireError::malformed(KIND, "it is something else"));
        }
        let meta = proto::object_meta(&raw)?;
        let mut lease = Self {
            namespace: meta.namespace,
            name: meta.name,
            uid: meta.uid,
            version: meta.resource_version,
            ..Self::default()
        };
        for field in proto::fields(KIND, &raw) {
            match field? {
                (1, proto::Value::Bytes(raw)) => lease.opted |= is_opted(raw)?,
                (2, proto::Value::Bytes(raw)) => {
                    for field in proto::fields(KIND, raw) {
                        match field? {
                            (1, proto::Value::Bytes(holder)) => {
                                lease.holder = proto::text(KIND, holder)?.to_owned()
                            }
                            (2, proto::Value::Number(seconds)) => lease.lasts = Duration::from_secs(seconds),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(lease)
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Whether the metadata have the annotation.
fn is_opted(metadata: &[u8]) -> Result<bool, WireError> {
    let mut opted = false;
    for field in proto::fields(KIND, metadata) {
        let (12, proto::Value::Bytes(entry)) = field? else { continue };
        let (mut key, mut value) = (&b""[..], &b""[..]);
        for field in proto::fields(KIND, entry) {
            match field? {
                (1, proto::Value::Bytes(raw)) => key = raw,
                (2, proto::Value::Bytes(raw)) => value = raw,
                _ => {}
            }
        }
        if key == ANNOTATION_OFFLINE_LEASE.as_bytes() {
            opted = value == b"true";
        }
    }
    Ok(opted)
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

    /// A renewal without the API server: PUT of a whole Lease, or a patch of one.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]; then nothing has changed.
    pub(crate) fn renew(
        &self,
        identity: &Identity,
        (namespace, name): (&str, &str),
        content_type: &str,
        body: &Bytes,
    ) -> Result<Answer, LeaseError> {
        const ELSEWHERE: LeaseError =
            LeaseError::NotHere("it is not known to be held on this node, with this annotation");
        let mut known = self.lock();
        let known = known.get_mut(&(namespace.to_owned(), name.to_owned())).ok_or(ELSEWHERE)?;
        if known.writer.as_ref() != Some(identity) {
            return Err(ELSEWHERE);
        }
        let answer = match PatchType::from_content_type(content_type) {
            None => Answer::new(StatusCode::OK, content_type, body.clone()),
            Some(patch) => patched(&known.answer, patch, body)?,
        };
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
    let renewed = leases.renew(&me, key, content_type, body);
    assert_eq!(renewed.is_ok(), lease.opted);
    let _ = leases.renew(&me, key, "application/merge-patch+json", body);
    assert!(leases.renew(&Identity::new("other"), key, content_type, body).is_err());
}

/// The Lease with another `spec`.
fn patched(known: &Answer, patch: PatchType, body: &Bytes) -> Result<Answer, LeaseError> {
    if is_protobuf(&known.content_type) {
        return Err(LeaseError::NotHere("it is known in protobuf, to which no patch applies"));
    }
    let lease: Value = serde_json::from_slice(&known.body).map_err(PatchError::Json)?;
    let changed = patch::apply_as_merge(&lease, patch, body)?;
    let beside_spec = |mut lease: Value| {
        lease.as_object_mut().and_then(|lease| lease.remove("spec"));
        lease
    };
    if beside_spec(changed.clone()) != beside_spec(lease) {
        return Err(LeaseError::NotHere("only its spec can be patched"));
    }
    Ok(Answer::new(StatusCode::OK, &known.content_type, Bytes::from(changed.to_string())))
}

#[cfg(test)]
mod tests;
