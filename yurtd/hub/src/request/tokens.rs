//! Bearer tokens and the users they stand for.
//!
//! A token is known by its SHA-256, with the user name that the API server gave for it. It is learnt in two ways: by
//! a TokenReview when somebody comes with it, and when the API server's reply to kubelet's TokenRequest passes
//! through the hub. What is known is on the disk, so that a pod whose token was accepted once is accepted after a
//! reboot without a link. So is that a genuine token was revoked: a refusal that has lasted ([`memory`]). Whoever comes
//! with it may come once, so the hub itself asks again when it is time.
//!
//! What is not known is looked at with the cluster's keys first ([`issuer`](super::issuer)): what was forged is not
//! reviewed, and without a link a genuine token of a pod of the node is good.
//!
//! While the link is up a known token is reviewed again in the background every [`RECHECK`], so a token that was
//! revoked reads at most that long; requests that are forwarded are judged by the API server anyway. While the link
//! is down, what was known last counts, until the token's own `exp`.

mod memory;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use yurt_node::link::LinkState;
use yurt_node::supervise::Tasks;

use super::AuthError;
use super::issuer::{Issuer, Look, NotGood, Standing};
use crate::caller::{Identity, jwt};
use crate::clock::{self, unix_seconds};
use crate::limits::{self, Reviews};
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Store, StoreError};
use crate::upstream::jitter;
use memory::{Hash, Memory, Refusal};
use yurt_node::token::BearerToken;

/// Of many that were refused at the same moment not all are asked about at the same moment.
const SPREAD: Duration = Duration::from_secs(10);
/// How often the hub asks by itself about a token that was refused, while the API server decides nothing.
const LOOKS: usize = 10;
/// How often the keys are asked for until it does not matter any more whether they know a token that was revoked.
const ROUNDS: usize = 3;

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
    /// Tokens that the hub itself asks about again.
    doubts: Arc<Semaphore>,
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
                (Ok(hash), Some(record)) if !expired(record.expires, now) => memory.found(hash, record),
                _ => forget.push(key),
            }
        }
        if let Err(error) = store.delete(Bucket::Callers, &forget).await {
            tracing::warn!(%error, "expired tokens could not be forgotten");
        }
        let reviews = Reviews::new();
        let (memory, asked) = (Mutex::new(memory), AtomicU64::new(0));
        let doubts = Arc::new(Semaphore::new(limits::DOUBTED_TOKENS));
        let inner = Inner { memory, reviews, doubts, asked, issuer, has_pod, store, client, link, tasks };
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
        // What is known is not read again: that is most of what deciding costs.
        let known = lock(&self.inner.memory).ends(hash);
        let (expires, plausible) = match known {
            Some(expires) => (expires, true),
            None => {
                let expires = jwt::claims(token.expose()).and_then(|claims| claims.exp);
                (expires, jwt::is_plausible(token.expose()))
            }
        };
        if expired(expires, SystemTime::now()) {
            return Verdict::Refuse(AuthError::TokenExpired);
        }
        let online = self.inner.link.is_online();
        lock(&self.inner.memory).verdict(hash, online, plausible, Instant::now())
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
        let accepted = lock(&self.inner.memory).accept(hash, record.clone(), Instant::now());
        if let Some(evicted) = accepted.evicted {
            self.forget(evicted).await;
        }
        if accepted.news {
            let stored = self.write(&hash, &record).await;
            if let Err(error) = stored {
                tracing::warn!(%error, user, "a token will not be known after a restart without a link");
            }
        }
    }

    async fn refuse(&self, token: &BearerToken, hash: Hash, reason: String) {
        // Without a link the cluster's keys would let it in again.
        let admissible = self.inner.issuer.standing(token.expose()) != Standing::Foreign;
        let expires = jwt::claims(token.expose()).and_then(|claims| claims.exp);
        let refusal = lock(&self.inner.memory).refuse(hash, reason, admissible, expires, Instant::now());
        match refusal {
            Refusal::Passing | Refusal::Again => {}
            Refusal::First => self.look_again(token, hash),
            Refusal::Revoked { known, news, evicted } => {
                if let Some(evicted) = evicted {
                    self.forget(evicted).await;
                }
                if let Some(user) = &known {
                    tracing::info!(user, "the API server no longer accepts a token");
                    // That it was revoked takes the place of what was known of it.
                    if !matches!(self.inner.issuer.standing(token.expose()), Standing::Genuine) {
                        self.forget(hash).await;
                    }
                }
                // Whoever comes again and again with it is no reason to write that again.
                if news || known.is_some() {
                    self.keep_revoked(token, hash).await;
                }
            }
        }
    }

    /// Has the token of a first refusal reviewed again when it is time, whether anybody comes with it or not.
    fn look_again(&self, token: &BearerToken, hash: Hash) {
        let Ok(place) = Arc::clone(&self.inner.doubts).try_acquire_owned() else { return };
        let (this, token) = (self.clone(), token.clone());
        let stop = self.inner.tasks.stop().clone();
        self.inner.tasks.passing(async move {
            let _place = place;
            tokio::select! {
                () = stop.cancelled() => {}
                () = this.settle(&token, hash) => {}
            }
        });
    }

    async fn settle(&self, token: &BearerToken, hash: Hash) {
        let mut link = self.inner.link.subscribe();
        for _ in 0..LOOKS {
            tokio::time::sleep(memory::LASTS + SPREAD.mul_f64(jitter())).await;
            if link.wait_for(|state| *state == LinkState::Online).await.is_err()
                || !lock(&self.inner.memory).is_doubted(&hash)
            {
                return;
            }
            // The outcome is in the memory.
            let _ = self.review(token, hash).await;
        }
    }

    /// Writes that a token was revoked, if the cluster's keys would let it in; that may not be known yet.
    async fn keep_revoked(&self, token: &BearerToken, hash: Hash) {
        match self.inner.issuer.standing(token.expose()) {
            Standing::Genuine => self.write_revoked(token, hash).await,
            Standing::Foreign => lock(&self.inner.memory).forget_revoked(&hash),
            Standing::NotKnownYet => {
                let Ok(place) = Arc::clone(&self.inner.doubts).try_acquire_owned() else { return };
                let (this, token) = (self.clone(), token.clone());
                let stop = self.inner.tasks.stop().clone();
                self.inner.tasks.passing(async move {
                    let _place = place;
                    for _ in 0..ROUNDS {
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = this.inner.issuer.fetched_again() => {}
                        }
                        let standing = this.inner.issuer.standing(token.expose());
                        let still = lock(&this.inner.memory).is_revoked(&hash);
                        match standing {
                            _ if !still => return,
                            Standing::Genuine => return this.write_revoked(&token, hash).await,
                            Standing::Foreign => return lock(&this.inner.memory).forget_revoked(&hash),
                            Standing::NotKnownYet => {}
                        }
                    }
                });
            }
        }
    }

    async fn write_revoked(&self, token: &BearerToken, hash: Hash) {
        let claims = jwt::claims(token.expose()).unwrap_or_default();
        let record = TokenRecord { user: claims.sub.unwrap_or_default(), expires: claims.exp, revoked: true };
        if let Err(error) = self.write(&hash, &record).await {
            tracing::warn!(%error, "that a token was revoked will not be known after a restart without a link");
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

#[cfg(test)]
mod tests;
