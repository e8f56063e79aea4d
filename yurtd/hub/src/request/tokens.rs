//! Bearer tokens and the users they stand for.
//!
//! A token is known by its SHA-256, with the user name that the API server gave for it. It is learnt in two ways: by
//! a TokenReview when somebody comes with it, and when the API server's reply to kubelet's TokenRequest passes
//! through the hub. What is known is on the disk, so that a pod whose token was accepted once is accepted after a
//! reboot without a link. So is that a genuine token was refused: it was revoked.
//!
//! What is not known is looked at with the cluster's keys first ([`issuer`](super::issuer)): what was forged is not
//! reviewed, and without a link a genuine token of a pod of the node is good.
//!
//! While the link is up a known token is reviewed again in the background every [`RECHECK`], so a token that was
//! revoked reads at most that long; requests that are forwarded are judged by the API server anyway. While the link
//! is down, what was known last counts, until the token's own `exp`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};
use yurt_node::supervise::Tasks;

use super::AuthError;
use super::issuer::{Issuer, Look, NotGood};
use crate::caller::{Identity, jwt};
use crate::clock::{self, unix_seconds};
use crate::limits::{self, Reviews};
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Store, StoreError};
use yurt_node::token::BearerToken;

/// A known token is reviewed again after this long while the link is up.
const RECHECK: Duration = Duration::from_secs(120);
/// A token that was refused is not asked about again for this long.
const REFUSED: Duration = Duration::from_secs(10);

type Hash = [u8; 32];

/// What is on the disk about a token, under its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenRecord {
    user: String,
    /// The token's `exp`; legacy tokens have none.
    #[serde(default)]
    expires: Option<i64>,
    /// The API server has refused it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    revoked: bool,
}

struct Reviewed {
    record: TokenRecord,
    /// When the API server last said so in this process' life.
    checked: Option<Instant>,
}

#[derive(Default)]
struct Memory {
    known: HashMap<Hash, Reviewed>,
    refused: HashMap<Hash, (Instant, String)>,
    /// Genuine tokens that were refused, with their `exp`: without a link they are nobody's.
    revoked: HashMap<Hash, Option<i64>>,
}

/// Whether the node has the pod of a UID, with a user name; nothing while that is not known.
pub(crate) type HasPod = Box<dyn Fn(&str, &str) -> Option<bool> + Send + Sync>;

/// The tokens that are known.
#[derive(Clone)]
pub(crate) struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Mutex<Memory>,
    reviews: Reviews,
    /// Reviews that were asked for.
    asked: AtomicU64,
    issuer: Issuer,
    has_pod: HasPod,
    store: Store,
    client: NodeClient,
    link: Link,
    tasks: Tasks,
}

/// What is to be done about a token.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accept(Identity),
    /// Accept, and ask the API server whether it still does.
    AcceptAndRecheck(Identity),
    Review,
    /// Nobody has seen it, and nobody can be asked.
    Unknown,
    Refuse(AuthError),
}

impl Tokens {
    /// Reads what is on the disk; tokens that have expired are forgotten.
    pub(crate) async fn open(
        store: Store,
        client: NodeClient,
        link: Link,
        tasks: Tasks,
        issuer: Issuer,
        has_pod: HasPod,
    ) -> Self {
        let now = SystemTime::now();
        let mut memory = Memory::default();
        let mut forget = Vec::new();
        let stored = store
            .scan(Bucket::Callers, b"", None, limits::KNOWN_TOKENS * 2 + limits::REFUSED_TOKENS)
            .unwrap_or_else(|error| {
                tracing::error!(%error, "the known tokens cannot be read");
                Vec::new()
            });
        for (key, value) in stored {
            let record = serde_json::from_slice::<TokenRecord>(&value).ok();
            match (Hash::try_from(key.as_slice()), record) {
                (Ok(hash), Some(record)) if !expired(record.expires, now) && record.revoked => {
                    memory.revoked.insert(hash, record.expires);
                }
                (Ok(hash), Some(record)) if !expired(record.expires, now) => {
                    memory.known.insert(hash, Reviewed { record, checked: None });
                }
                _ => forget.push(key),
            }
        }
        if let Err(error) = store.delete(Bucket::Callers, &forget).await {
            tracing::warn!(%error, "expired tokens could not be forgotten");
        }
        let reviews = Reviews::new();
        let (memory, asked) = (Mutex::new(memory), AtomicU64::new(0));
        let inner = Inner { memory, reviews, asked, issuer, has_pod, store, client, link, tasks };
        Self { inner: Arc::new(inner) }
    }

    /// How many reviews were asked for.
    pub(crate) fn reviews(&self) -> u64 {
        self.inner.asked.load(Ordering::Relaxed)
    }

    /// The cluster's issuer.
    pub(crate) fn issuer(&self) -> &Issuer {
        &self.inner.issuer
    }

    /// The user a token stands for, shown by somebody at this address.
    ///
    /// # Errors
    ///
    /// [`AuthError`] when it stands for nobody, or nobody can tell.
    pub(crate) async fn identity_of(&self, token: &BearerToken, from: IpAddr) -> Result<Identity, AuthError> {
        let hash = hash(token);
        match self.verdict(token, &hash) {
            Verdict::Accept(identity) => Ok(identity),
            Verdict::AcceptAndRecheck(identity) => {
                let (this, token) = (self.clone(), token.clone());
                self.inner.tasks.passing(async move {
                    // The outcome is in the memory.
                    let _ = this.review(&token, hash).await;
                });
                Ok(identity)
            }
            Verdict::Refuse(error) => Err(error),
            Verdict::Review => self.review_in_turn(token, hash, from).await,
            Verdict::Unknown => self.admit(token),
        }
    }

    async fn review_in_turn(
        &self,
        token: &BearerToken,
        hash: Hash,
        from: IpAddr,
    ) -> Result<Identity, AuthError> {
        let until = Instant::now() + limits::REVIEWED_WITHIN;
        let issuer = &self.inner.issuer;
        let mut look = issuer.look(token.expose());
        let forged = || AuthError::TokenRefused(NotGood::Forged.to_string());
        // Neither a place nor anybody's time.
        if look == Look::Forged {
            return Err(forged());
        }
        let waiting = self.inner.reviews.enter(from).ok_or(AuthError::Busy)?;
        if look == Look::Ask {
            look = issuer.ask(token.expose()).await;
        }
        if look == Look::Forged {
            return Err(forged());
        }
        let turn = timeout_at(until, waiting.turn()).await.map_err(|_| AuthError::Busy)?;
        let _turn = turn.ok_or_else(|| self.undecided("the hub ends"))?;
        // Somebody else may have asked about the same token meanwhile.
        match self.verdict(token, &hash) {
            Verdict::Accept(identity) | Verdict::AcceptAndRecheck(identity) => Ok(identity),
            Verdict::Refuse(error) => Err(error),
            Verdict::Review if waiting.spend() => match timeout_at(until, self.review(token, hash)).await {
                Ok(reviewed) => reviewed,
                Err(_) => Err(self.undecided("its answer did not come in time")),
            },
            Verdict::Review => Err(AuthError::Busy),
            Verdict::Unknown => self.admit(token),
        }
    }

    /// What can be said without the API server of a token that nobody has seen. It is not known afterwards: when the
    /// link is back the API server decides.
    fn admit(&self, token: &BearerToken) -> Result<Identity, AuthError> {
        let has_pod = |uid: &str, user: &str| (self.inner.has_pod)(uid, user);
        self.inner.issuer.admit(token.expose(), clock::now(), has_pod)?.ok_or(AuthError::TokenUnknown)
    }

    /// Remembers a token that the API server has just issued for `user`.
    pub(crate) async fn learn(&self, token: &BearerToken, user: &str) {
        self.accept(token, hash(token), user).await;
        self.inner.issuer.learn_from(token.expose()).await;
    }

    fn verdict(&self, token: &BearerToken, hash: &Hash) -> Verdict {
        let (now, online) = (SystemTime::now(), self.inner.link.is_online());
        if let Some(known) = lock(&self.inner.memory).known.get_mut(hash) {
            if expired(known.record.expires, now) {
                return Verdict::Refuse(AuthError::TokenExpired);
            }
            let identity = Identity::new(&known.record.user);
            let fresh = known.checked.is_some_and(|checked| checked.elapsed() < RECHECK);
            if fresh || !online {
                return Verdict::Accept(identity);
            }
            // One recheck at a time: the next one is due after this one.
            known.checked = Some(Instant::now());
            return Verdict::AcceptAndRecheck(identity);
        }
        // What is known is not read again: that is most of what deciding costs.
        let expires = jwt::claims(token.expose()).and_then(|claims| claims.exp);
        if expired(expires, now) {
            return Verdict::Refuse(AuthError::TokenExpired);
        }
        let memory = lock(&self.inner.memory);
        match memory.refused.get(hash) {
            Some((when, reason)) if when.elapsed() < REFUSED => {
                Verdict::Refuse(AuthError::TokenRefused(reason.clone()))
            }
            // What cannot be one of the cluster's is not worth the link.
            _ if !jwt::is_plausible(token.expose()) => {
                Verdict::Refuse(AuthError::TokenRefused("it is no JSON Web Token".to_owned()))
            }
            _ if online => Verdict::Review,
            _ if memory.revoked.contains_key(hash) => {
                Verdict::Refuse(AuthError::TokenRefused("that was its last word".to_owned()))
            }
            _ => Verdict::Unknown,
        }
    }

    async fn review(&self, token: &BearerToken, hash: Hash) -> Result<Identity, AuthError> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token.expose()},
        });
        self.inner.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.inner.client.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        let status = match answer {
            Ok(mut answer) => answer["status"].take(),
            // Nothing was decided about the token: it is neither good nor bad. That the node itself was refused says
            // nothing of it, either; an API server that has just started does so.
            Err(error) => {
                if matches!(&error, CallError::Refused { .. }) && !error.is_transient() {
                    tracing::warn!(%error, "the API server does not let the node review tokens");
                } else {
                    tracing::debug!(%error, "a token could not be reviewed");
                }
                return Err(self.undecided(&error.to_string()));
            }
        };
        match status["user"]["username"].as_str() {
            Some(user) if status["authenticated"] == true && !user.is_empty() => {
                self.accept(token, hash, user).await;
                if user.starts_with("system:serviceaccount:") {
                    let audiences = status["audiences"].as_array().into_iter().flatten();
                    self.inner.issuer.learn(audiences.filter_map(|audience| audience.as_str())).await;
                }
                Ok(Identity::new(user))
            }
            _ => {
                let reason = status["error"].as_str().unwrap_or("it is not authenticated");
                let reason: String = reason.chars().take(limits::REFUSAL_CHARS).collect();
                self.refuse(token, hash, reason.clone()).await;
                Err(AuthError::TokenRefused(reason))
            }
        }
    }

    /// Why nobody can tell whose a token is: the link may have gone meanwhile.
    fn undecided(&self, reason: &str) -> AuthError {
        if self.inner.link.is_online() {
            AuthError::NotReviewed(reason.chars().take(limits::REFUSAL_CHARS).collect())
        } else {
            AuthError::TokenUnknown
        }
    }

    async fn accept(&self, token: &BearerToken, hash: Hash, user: &str) {
        let expires = jwt::claims(token.expose()).and_then(|claims| claims.exp);
        let record = TokenRecord { user: user.to_owned(), expires, revoked: false };
        let (new, evicted) = {
            let mut memory = lock(&self.inner.memory);
            let known = Reviewed { record: record.clone(), checked: Some(Instant::now()) };
            let new = memory.known.insert(hash, known).is_none_or(|before| before.record != record);
            memory.refused.remove(&hash);
            let new = memory.revoked.remove(&hash).is_some() || new;
            let evicted = if memory.known.len() > limits::KNOWN_TOKENS { memory.evict(&hash) } else { None };
            (new, evicted)
        };
        if let Some(evicted) = evicted {
            self.forget(evicted).await;
        }
        if new {
            let stored = self.write(&hash, &record).await;
            if let Err(error) = stored {
                tracing::warn!(%error, user, "a token will not be known after a restart without a link");
            }
        }
    }

    async fn refuse(&self, token: &BearerToken, hash: Hash, reason: String) {
        // Without a link the cluster's keys would let it in again.
        let claims = jwt::claims(token.expose()).filter(|_| self.inner.issuer.is_genuine(token.expose()));
        let (known, new, evicted) = {
            let mut memory = lock(&self.inner.memory);
            memory.refused.retain(|_, (when, _)| when.elapsed() < REFUSED);
            if memory.refused.len() < limits::REFUSED_TOKENS {
                memory.refused.insert(hash, (Instant::now(), reason));
            }
            let (mut new, mut evicted) = (false, None);
            if let Some(claims) = &claims {
                new = memory.revoked.insert(hash, claims.exp).is_none();
                if memory.revoked.len() > limits::REFUSED_TOKENS {
                    evicted = memory.evict_revoked(&hash);
                }
            }
            (memory.known.remove(&hash), new, evicted)
        };
        if let Some(known) = &known {
            tracing::info!(user = known.record.user, "the API server no longer accepts a token");
        }
        if let Some(evicted) = evicted {
            self.forget(evicted).await;
        }
        let Some(claims) = claims else {
            if known.is_some() {
                self.forget(hash).await;
            }
            return;
        };
        // Whoever comes again and again with it is no reason to write that again.
        if !new && known.is_none() {
            return;
        }
        let record = TokenRecord { user: claims.sub.unwrap_or_default(), expires: claims.exp, revoked: true };
        if let Err(error) = self.write(&hash, &record).await {
            tracing::warn!(%error, "that a token was refused will not be known after a restart without a link");
        }
    }

    async fn write(&self, hash: &Hash, record: &TokenRecord) -> Result<(), StoreError> {
        let value = serde_json::to_vec(record).map_err(|error| StoreError::Failed(error.to_string()))?;
        self.inner.store.put_durable(Bucket::Callers, hash, &value).await
    }

    async fn forget(&self, hash: Hash) {
        if let Err(error) = self.inner.store.delete(Bucket::Callers, &[hash.to_vec()]).await {
            tracing::warn!(%error, "a token could not be forgotten");
        }
    }
}

impl Memory {
    /// Takes out the token that expires first, but not `keep`. Tokens without an end go last.
    fn evict(&mut self, keep: &Hash) -> Option<Hash> {
        let first = self
            .known
            .iter()
            .filter(|(hash, _)| *hash != keep)
            .min_by_key(|(_, known)| known.record.expires.unwrap_or(i64::MAX))
            .map(|(hash, _)| *hash)?;
        self.known.remove(&first);
        Some(first)
    }

    /// The same among those that were revoked.
    fn evict_revoked(&mut self, keep: &Hash) -> Option<Hash> {
        let others = self.revoked.iter().filter(|(hash, _)| *hash != keep);
        let first = others.min_by_key(|(_, expires)| expires.unwrap_or(i64::MAX)).map(|(hash, _)| *hash)?;
        self.revoked.remove(&first);
        Some(first)
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    // The maps are whole after every statement, so a panic elsewhere has not torn them.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash(token: &BearerToken) -> Hash {
    Sha256::digest(token.expose().as_bytes()).into()
}

fn expired(expires: Option<i64>, now: SystemTime) -> bool {
    expires.is_some_and(|expires| u64::try_from(expires).unwrap_or(0) <= unix_seconds(now))
}
