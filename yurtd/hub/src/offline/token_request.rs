//! TokenRequests of kubelet: the real replies of the API server are kept and replayed while the link is down.
//!
//! kubelet's token manager lives in memory, so after a reboot without a link every pod with a projected token would
//! hang in mounting it. A reply is replayed to kubelet alone, for the very request it answered (service account,
//! audiences, expiration, bound object with its UID), and only until the JWT's own `exp`. That is later than the
//! reply's `expirationTimestamp`: the API server signs tokens for itself for up to a year and tells kubelet to come
//! back after an hour. Never is a token made up.
//!
//! The store seals the replies: they would otherwise leave the tmpfs that kubelet keeps them in.
//!
//! What is kept is bounded whenever a reply is kept: those that have expired go, those of pods that are gone
//! ([`Replies::purge`]), then those that expire first.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::answer::Answer;
use crate::caller::jwt;
use crate::clock::unix_seconds;
use crate::replica::OF_ONE;
use crate::store::{Bucket, Store, StoreError};
use crate::wire::{WireError, proto};
use yurt_node::token::BearerToken;

/// Replies kept at most.
const MAX_REPLIES: usize = 1024;
/// A reply younger than this is kept whether or not its pod is known: kubelet may have heard of the pod first.
const GRACE: Duration = Duration::from_secs(600);
/// Replies read from the store at a time.
const PAGE: usize = 32;
/// Bound of a reply.
const MAX_REPLY: usize = 64 << 10;

/// Why a TokenRequest or its reply cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// Broken protobuf.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Broken JSON.
    #[error("the TokenRequest is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The object a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BoundObject {
    /// `Pod`
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
    /// Its UID.
    pub(crate) uid: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    audiences: Vec<String>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<BoundObject>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Status {
    token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Document {
    spec: Spec,
    status: Status,
}

/// What is asked for: the key of the reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    /// Namespace of the service account.
    pub(crate) namespace: String,
    /// The service account.
    pub(crate) service_account: String,
    audiences: Vec<String>,
    expiration_seconds: Option<i64>,
    bound_object: Option<BoundObject>,
}

impl Request {
    /// Reads the body of a POST to `serviceaccounts/NAME/token`.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub(crate) fn parse(
        namespace: &str,
        service_account: &str,
        protobuf: bool,
        body: &Bytes,
    ) -> Result<Self, TokenError> {
        let spec = document(protobuf, body)?.spec;
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audiences: spec.audiences,
            expiration_seconds: spec.expiration_seconds,
            bound_object: spec.bound_object_ref,
        })
    }

    /// What kubelet asks for to mount a token of this pod.
    pub(crate) fn of_pod(
        namespace: &str,
        service_account: &str,
        audience: &str,
        expiration_seconds: Option<i64>,
        (name, uid): (&str, &str),
    ) -> Self {
        let bound = BoundObject { kind: "Pod".to_owned(), name: name.to_owned(), uid: uid.to_owned() };
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audiences: if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] },
            expiration_seconds,
            bound_object: Some(bound),
        }
    }

    /// The user that a token for this request stands for.
    pub(crate) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }

    /// Whether the token is for the API server itself, so that the hub may be asked with it.
    pub(crate) fn is_for_api_server(&self) -> bool {
        self.audiences.iter().all(String::is_empty)
    }

    fn key(&self) -> Vec<u8> {
        // Strings and numbers alone: this cannot fail; the digest keeps the key short.
        Sha256::digest(serde_json::to_vec(self).unwrap_or_default()).to_vec()
    }
}

/// Reads the token in a reply.
///
/// # Errors
///
/// [`TokenError`].
pub(crate) fn token_in(protobuf: bool, body: &Bytes) -> Result<BearerToken, TokenError> {
    Ok(BearerToken::new(&document(protobuf, body)?.status.token))
}

fn document(protobuf: bool, body: &Bytes) -> Result<Document, TokenError> {
    if !protobuf {
        return Ok(serde_json::from_slice(body)?);
    }
    let (_, raw) = proto::open_envelope(body)?;
    let mut document = Document::default();
    for field in proto::fields("TokenRequest", &raw) {
        match field? {
            (2, proto::Value::Bytes(raw)) => document.spec = spec_from_proto(raw)?,
            (3, proto::Value::Bytes(raw)) => {
                for field in proto::fields("TokenRequestStatus", raw) {
                    if let (1, proto::Value::Bytes(token)) = field? {
                        document.status.token = text(token)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(document)
}

/// TokenRequestSpec{audiences 1, boundObjectRef 3, expirationSeconds 4}
fn spec_from_proto(raw: &[u8]) -> Result<Spec, WireError> {
    let mut spec = Spec::default();
    for field in proto::fields("TokenRequestSpec", raw) {
        match field? {
            (1, proto::Value::Bytes(audience)) => spec.audiences.push(text(audience)?),
            (3, proto::Value::Bytes(raw)) => {
                let mut bound = BoundObject::default();
                // BoundObjectReference{kind 1, apiVersion 2, name 3, uid 4}
                for field in proto::fields("BoundObjectReference", raw) {
                    match field? {
                        (1, proto::Value::Bytes(kind)) => bound.kind = text(kind)?,
                        (3, proto::Value::Bytes(name)) => bound.name = text(name)?,
                        (4, proto::Value::Bytes(uid)) => bound.uid = text(uid)?,
                        _ => {}
                    }
                }
                spec.bound_object_ref = Some(bound);
            }
            (4, proto::Value::Number(seconds)) => spec.expiration_seconds = i64::try_from(seconds).ok(),
            _ => {}
        }
    }
    Ok(spec)
}

fn text(raw: &[u8]) -> Result<String, WireError> {
    proto::text("TokenRequest", raw).map(str::to_owned)
}

/// What is stored before the answer itself: a line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    request: Request,
    /// The JWT's `exp`.
    expires: i64,
}

/// The replies that are kept.
pub(crate) struct Replies {
    store: Store,
    index: Mutex<HashMap<Vec<u8>, Kept>>,
}

/// What decides how long a reply is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    /// The JWT's `exp`.
    expires: i64,
    /// UID of the pod it is bound to.
    pod: Option<String>,
    /// When it was kept, or found at the start.
    since: Instant,
}

impl Kept {
    fn of(request: &Request, expires: i64) -> Self {
        let bound = request.bound_object.as_ref().filter(|bound| bound.kind == "Pod");
        Self { expires, pod: bound.map(|bound| bound.uid.clone()), since: Instant::now() }
    }
}

/// Takes out what is not worth keeping: what has expired, then what expires first beyond `limit`; never `newest`.
fn excess(
    index: &mut HashMap<Vec<u8>, Kept>,
    newest: Option<&[u8]>,
    limit: usize,
    now: SystemTime,
) -> Vec<Vec<u8>> {
    let mut gone: Vec<_> =
        index.iter().filter(|(_, kept)| has_expired(kept.expires, now)).map(|(key, _)| key.clone()).collect();
    let over = (index.len() - gone.len()).saturating_sub(limit);
    if over > 0 {
        let mut good: Vec<_> = index
            .iter()
            .filter(|(key, kept)| !has_expired(kept.expires, now) && newest != Some(key))
            .map(|(key, kept)| (kept.expires, key.clone()))
            .collect();
        good.sort();
        gone.extend(good.into_iter().take(over).map(|(_, key)| key));
    }
    gone.iter().for_each(|key| drop(index.remove(key)));
    gone
}

impl Replies {
    /// Opens the replies and forgets those that have expired.
    pub(crate) async fn open(store: Store) -> Self {
        let this = Self { store, index: Mutex::default() };
        if let Err(error) = this.tidy().await {
            tracing::error!(%error, "the stored replies to TokenRequests cannot be tidied up");
        }
        this
    }

    async fn tidy(&self) -> Result<(), StoreError> {
        let mut unreadable = Vec::new();
        self.each(|key, reply| match reply {
            Some((head, _)) => {
                let kept = Kept::of(&head.request, head.expires);
                self.index().insert(key, kept);
            }
            None => unreadable.push(key),
        })?;
        let mut forget = excess(&mut self.index(), None, MAX_REPLIES, SystemTime::now());
        forget.append(&mut unreadable);
        self.delete(&forget).await
    }

    /// Forgets the replies for pods that are not among these, but for the latest ones. The list must be complete and of
    /// now.
    ///
    /// # Errors
    ///
    /// When the store fails; the replies are then forgotten at the next start.
    pub(crate) async fn purge(&self, pods: &HashSet<String>, now: Instant) -> Result<(), StoreError> {
        let gone: Vec<_> = {
            let mut index = self.index();
            let is_gone = |kept: &Kept| {
                now.saturating_duration_since(kept.since) >= GRACE
                    && kept.pod.as_ref().is_some_and(|pod| !pods.contains(pod))
            };
            let gone: Vec<_> =
                index.iter().filter(|(_, kept)| is_gone(kept)).map(|(key, _)| key.clone()).collect();
            gone.iter().for_each(|key| drop(index.remove(key)));
            gone
        };
        self.delete(&gone).await
    }

    async fn delete(&self, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        for keys in keys.chunks(PAGE * 4) {
            self.store.delete(Bucket::Tokens, keys).await?;
        }
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Kept>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a reply of the API server; returns the token in it.
    ///
    /// # Errors
    ///
    /// [`TokenError`]; the reply goes to kubelet all the same.
    pub(crate) async fn store_reply(
        &self,
        request: &Request,
        answer: &Answer,
    ) -> Result<BearerToken, TokenError> {
        let token = token_in(is_protobuf(&answer.content_type), &answer.body)?;
        if let Some(expires) = jwt::claims(token.expose()).and_then(|claims| claims.exp)
            && answer.body.len() <= MAX_REPLY
        {
            let mut value = serde_json::to_vec(&Head { request: request.clone(), expires })?;
            value.push(b'\n');
            value.extend(answer.to_bytes());
            let key = request.key();
            let gone = {
                let mut index = self.index();
                index.insert(key.clone(), Kept::of(request, expires));
                excess(&mut index, Some(&key), MAX_REPLIES, SystemTime::now())
            };
            let stored = self.store.put_durable(Bucket::Tokens, &key, &value).await;
            if stored.is_err() {
                self.index().remove(&key);
            }
            self.delete(&gone).await?;
            stored?;
        }
        Ok(token)
    }

    /// The reply to the same request, if its token is still good.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn recall(&self, request: &Request) -> Result<Option<Answer>, StoreError> {
        let Some(value) = self.store.get(Bucket::Tokens, &request.key())? else {
            // Nobody is to be told that it is there.
            self.index().remove(&request.key());
            return Ok(None);
        };
        let Some((head, answer)) = split(&value) else { return Ok(None) };
        let usable = head.request == *request && !has_expired(head.expires, SystemTime::now());
        Ok(usable.then_some(answer))
    }

    /// How many seconds the reply to this request can still be given.
    pub(crate) fn lasts(&self, request: &Request, now: SystemTime) -> Option<i64> {
        let expires = self.index().get(&request.key()).map(|kept| kept.expires)?;
        let left = expires.saturating_sub(i64::try_from(unix_seconds(now)).unwrap_or(i64::MAX));
        (left > 0).then_some(left)
    }

    /// The good tokens for the API server: of each service account the few that last longest. Its pods each have one,
    /// which ends with the pod.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn tokens(&self) -> Result<Vec<(Request, BearerToken)>, StoreError> {
        let now = SystemTime::now();
        let mut best: HashMap<String, Vec<(i64, Request, Answer)>> = HashMap::new();
        self.each(|_, reply| {
            let Some((head, answer)) = reply else { return };
            if has_expired(head.expires, now) || !head.request.is_for_api_server() {
                return;
            }
            let of_user = best.entry(head.request.user()).or_default();
            of_user.push((head.expires, head.request, answer));
            of_user.sort_by_key(|(expires, ..)| std::cmp::Reverse(*expires));
            of_user.truncate(OF_ONE);
        })?;
        Ok(best
            .into_values()
            .flatten()
            .filter_map(|(_, request, answer)| {
                let token = token_in(is_protobuf(&answer.content_type), &answer.body).ok()?;
                Some((request, token))
            })
            .collect())
    }

    /// Every stored reply, page by page; nothing for one that cannot be read.
    fn each(&self, mut visit: impl FnMut(Vec<u8>, Option<(Head, Answer)>)) -> Result<(), StoreError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.store.scan(Bucket::Tokens, b"", after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            page.into_iter().for_each(|(key, value)| {
                let reply = split(&value);
                visit(key, reply);
            });
        }
    }
}

/// Whether a body of this content type is protobuf.
pub(crate) fn is_protobuf(content_type: &str) -> bool {
    content_type.starts_with("application/vnd.kubernetes.protobuf")
}

fn split(value: &[u8]) -> Option<(Head, Answer)> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let head = serde_json::from_slice(&value[..end]).ok()?;
    Some((head, Answer::from_bytes(&value[end + 1..])?))
}

fn has_expired(expires: i64, now: SystemTime) -> bool {
    u64::try_from(expires).unwrap_or(0) <= unix_seconds(now)
}

#[cfg(test)]
mod tests;
