//! The cluster's issuer of ServiceAccount tokens, as the node knows it: its name, its [`Keys`] and for whom the tokens
//! are that the API server takes. It is asked for with the node's own credential (a ClusterRoleBinding of ours lets
//! nodes read it), kept on the disk, and asked for again after an hour or so, after a cut, and when a token names a key
//! that is not known (OpenID Connect Discovery 1.0; Kubernetes: *ServiceAccount token issuer discovery*).
//!
//! It decides two things, and nothing else:
//!
//! - while the link is up, that a token was **forged**: it says that it is the issuer's, and is not. It costs the API
//!   server nothing. A genuine one is reviewed all the same: it may have been revoked.
//! - while the link is down, that a token which nobody has seen here is **good**: genuine, in its time, for the API
//!   server, and bound to a pod that the node has.
//!
//! Whatever is not of this issuer (webhooks, OpenID Connect, legacy tokens) is none of its business, and where the node
//! may not read the keys nothing is.
//!
//! # Time
//!
//! A board without a battery may say 1970. It is certainly not earlier than when the keys were fetched, and not earlier
//! than when a genuine token was made: that is the time by which such a board judges ends. Its own clock counts where it
//! is later, and then what is not valid yet is refused, but for [`LEEWAY`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use yurt_node::link::LinkState;

use super::jwks::{Keys, Signature};
use crate::caller::Identity;
use crate::clock::{self, DAY};
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Store, StoreError};
use crate::upstream::jitter;

/// Key in [`Bucket::Misc`].
const KEY: &[u8] = b"issuer";
const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";
/// What the API server says the keys are; it gives them to nobody who does not take that.
const KEYS_TYPE: &str = "application/jwk-set+json, application/json";
/// Bound of the keys, as JSON.
const MAX_KEYS_BYTES: usize = 64 << 10;
/// Audiences that are remembered.
const MAX_AUDIENCES: usize = 16;

/// The keys are fetched again after about this time. Kubernetes asks its users to publish a key before it signs.
const PERIOD: Duration = Duration::from_secs(3600);
/// And after a cut, if they are older.
const AFTER_A_CUT: Duration = Duration::from_secs(300);
/// Not all nodes at the same moment.
const SPREAD: Duration = Duration::from_secs(10);
/// Whoever comes with keys that nobody knows has them fetched at most this often. For so long a key that is really new
/// is refused, if somebody else has just come with one that was not.
const LEAST: Duration = Duration::from_secs(10);
/// A request waits for them at most so long; then the API server is asked about the token itself.
const ASKED_WITHIN: Duration = Duration::from_secs(3);
/// Keys that were not confirmed for longer refuse nobody while the link is up.
const FRESH: Duration = Duration::from_secs(2 * 3600);
/// Between attempts that fail, doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How far clocks may be apart, in seconds; the API server's own bound.
const LEEWAY: u64 = 60;

/// What is on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    issuer: String,
    keys: Value,
    /// Audiences of tokens that the API server has accepted, or made for itself.
    audiences: Vec<String>,
    /// When the API server last gave them, in seconds since 1970.
    seen: u64,
}

struct Known {
    record: Record,
    keys: Keys,
    /// When the API server last gave them in this process' life.
    confirmed: Option<Instant>,
}

impl Known {
    fn of(record: Record, confirmed: Option<Instant>) -> Result<Self, String> {
        let keys = Keys::parse(&record.keys)?;
        Ok(Self { record, keys, confirmed })
    }

    fn confirmed_within(&self, time: Duration) -> bool {
        self.confirmed.is_some_and(|confirmed| confirmed.elapsed() < time)
    }
}

/// A token's claims, whose signature is nobody's business here (RFC 7519; `pkg/serviceaccount/claims.go`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: Option<u64>,
    nbf: u64,
    iat: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Bound>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audience {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Bound {
    namespace: String,
    serviceaccount: Reference,
    pod: Option<Reference>,
    node: Option<Reference>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
    uid: String,
}

impl Claims {
    fn of(token: &str) -> Option<Self> {
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }
}

/// Whether claims can be read out of it: for fuzzing.
pub(crate) fn claims_of(token: &str) -> bool {
    Claims::of(token).is_some()
}

/// Why a token that nobody has seen is not good without the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotGood {
    /// Its signature is none of the issuer's.
    #[error("it is not signed by the cluster")]
    Forged,
    /// It is for somebody else.
    #[error("it is not for the API server")]
    Audience,
    /// It has ended, or has no end.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYet,
    /// It is of no ServiceAccount, or for no pod: nobody here can know whether it was revoked.
    #[error("it is bound to no pod")]
    Unbound,
    /// It is another node's.
    #[error("it is of a pod that is not on this node")]
    Elsewhere,
    /// The node's pods are not known.
    #[error("which pods this node has is not known")]
    PodsUnknown,
}

/// What is known of a token without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing that speaks against it.
    Pass,
    /// The issuer has not made it.
    Forged,
    /// Newer keys may know it.
    Ask,
}

/// The issuer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    client: NodeClient,
    link: Link,
    node_name: String,
    known: ArcSwapOption<Known>,
    demand: Notify,
    /// Counts answers to demands.
    rounds: watch::Sender<u64>,
    forged: AtomicU64,
}

impl Issuer {
    /// Reads what is on the disk.
    pub(crate) fn open(store: Store, client: NodeClient, link: Link, node_name: &str) -> Self {
        let stored = store.get(Bucket::Misc, KEY).unwrap_or_else(|error| {
            tracing::error!(%error, "the keys of the cluster's tokens cannot be read");
            None
        });
        let record = stored.and_then(|value| serde_json::from_slice::<Record>(&value).ok());
        let known = record.and_then(|record| Known::of(record, None).ok());
        let inner = Inner {
            store,
            client,
            link,
            node_name: node_name.to_owned(),
            known: ArcSwapOption::from(known.map(Arc::new)),
            demand: Notify::new(),
            rounds: watch::Sender::new(0),
            forged: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How many keys are known, and how many tokens were refused by them.
    pub(crate) fn figures(&self) -> (usize, u64) {
        let keys = self.inner.known.load().as_ref().map_or(0, |known| known.keys.len());
        (keys, self.inner.forged.load(Ordering::Relaxed))
    }

    /// The claims of a token of this issuer's, and what its signature is worth.
    fn judge(&self, token: &str) -> Option<(Arc<Known>, Claims, Signature)> {
        let known = self.inner.known.load_full()?;
        let claims = Claims::of(token)?;
        let ours = !claims.iss.is_empty() && claims.iss == known.record.issuer;
        ours.then(|| known.keys.verify(token)).map(|signature| (known, claims, signature))
    }

    /// What is known of a token while the link is up.
    pub(crate) fn look(&self, token: &str) -> Look {
        let Some((known, _, signature)) = self.judge(token) else { return Look::Pass };
        let enough = match signature {
            Signature::Genuine | Signature::CannotTell => return Look::Pass,
            Signature::Forged => FRESH,
            Signature::UnknownKey => LEAST,
        };
        if known.confirmed_within(enough) {
            self.inner.forged.fetch_add(1, Ordering::Relaxed);
            return Look::Forged;
        }
        Look::Ask
    }

    /// Has the keys fetched for this token, waits for them and looks again.
    pub(crate) async fn ask(&self, token: &str) -> Look {
        let mut rounds = self.inner.rounds.subscribe();
        self.inner.demand.notify_one();
        let _ = timeout(ASKED_WITHIN, rounds.changed()).await;
        self.look(token)
    }

    /// Whether the issuer has made it.
    pub(crate) fn is_genuine(&self, token: &str) -> bool {
        self.judge(token).is_some_and(|(.., signature)| signature == Signature::Genuine)
    }

    /// Whose the token is, if that can be known without the API server. `has_pod` says whether the node has the pod of
    /// this UID, with this user; nothing if that is not known.
    ///
    /// # Errors
    ///
    /// When it is not good, for sure.
    pub(crate) fn admit(
        &self,
        token: &str,
        now: u64,
        has_pod: impl FnOnce(&str, &str) -> Option<bool>,
    ) -> Result<Option<Identity>, NotGood> {
        let Some((known, claims, signature)) = self.judge(token) else { return Ok(None) };
        match signature {
            Signature::Genuine => {}
            Signature::Forged => return Err(NotGood::Forged),
            Signature::UnknownKey | Signature::CannotTell => return Ok(None),
        }
        claims
            .is_good(&known.record, now, &self.inner.node_name, has_pod)
            .map(|user| Some(Identity::new(&user)))
    }

    /// The API server takes tokens for these audiences.
    pub(crate) async fn learn<'a>(&self, audiences: impl IntoIterator<Item = &'a str>) {
        let Some(known) = self.inner.known.load_full() else { return };
        let mut record = known.record.clone();
        for audience in audiences {
            let new = !audience.is_empty() && record.audiences.iter().all(|known| known != audience);
            if new && record.audiences.len() < MAX_AUDIENCES {
                record.audiences.push(audience.to_owned());
            }
        }
        if record.audiences != known.record.audiences {
            self.keep(record, known.confirmed).await;
        }
    }

    /// The same, of a token that the API server has made for itself.
    pub(crate) async fn learn_from(&self, token: &str) {
        if let Some((_, claims, Signature::Genuine)) = self.judge(token) {
            self.learn(claims.aud.all().iter().map(String::as_str)).await;
        }
    }

    /// Takes over what is known now; on the disk, if that says anything new.
    async fn keep(&self, record: Record, confirmed: Option<Instant>) {
        let before = self.inner.known.load_full();
        let known = match Known::of(record, confirmed) {
            Ok(known) => Arc::new(known),
            Err(error) => {
                tracing::warn!(error, "the cluster's keys cannot be used");
                return;
            }
        };
        self.inner.known.store(Some(Arc::clone(&known)));
        let same = |before: &Known| {
            let seen = before.record.seen.abs_diff(known.record.seen);
            seen < DAY && Record { seen: known.record.seen, ..before.record.clone() } == known.record
        };
        if before.is_some_and(|before| same(&before)) {
            return;
        }
        let stored = match serde_json::to_vec(&known.record) {
            Ok(value) => self.inner.store.put_durable(Bucket::Misc, KEY, &value).await,
            Err(error) => Err(StoreError::Failed(error.to_string())),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, "the keys of the cluster's tokens will not be known after a restart");
        }
    }

    /// Keeps the keys up to date whenever there is a link.
    pub(crate) async fn run(self) {
        let mut link = self.inner.link.subscribe();
        let mut last: Option<Instant> = None;
        let mut pause = SPREAD.mul_f64(if self.inner.known.load().is_some() { jitter() } else { 0.0 });
        let mut failures = 0;
        while link.wait_for(|state| *state == LinkState::Online).await.is_ok() {
            let due = last.unwrap_or_else(Instant::now) + pause;
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.inner.demand.notified() => if last.is_some_and(|last| last.elapsed() < LEAST) {
                    self.inner.rounds.send_modify(|rounds| *rounds += 1);
                    continue;
                },
                _ = link.wait_for(|state| *state != LinkState::Online) => {
                    if last.is_some_and(|last| last.elapsed() > AFTER_A_CUT) {
                        (last, pause) = (None, SPREAD.mul_f64(jitter()));
                    }
                    continue;
                }
            }
            pause = match self.fetch().await {
                Ok(()) => {
                    failures = 0;
                    PERIOD.mul_f64(0.75 + 0.5 * jitter())
                }
                Err(FetchError::Call(error)) if error.is_transient() => {
                    tracing::debug!(%error, "the keys of the cluster's tokens cannot be fetched");
                    let (first, most) = AGAIN;
                    failures = (failures + 1).min(10);
                    (first * (1 << failures)).min(most).mul_f64(0.5 + 0.5 * jitter())
                }
                Err(error) => {
                    tracing::info!(%error, "the cluster's keys are not to be had: every new token is reviewed");
                    PERIOD
                }
            };
            last = Some(Instant::now());
            self.inner.rounds.send_modify(|rounds| *rounds += 1);
        }
    }

    async fn fetch(&self) -> Result<(), FetchError> {
        let configuration = self.inner.client.get(CONFIGURATION).await?;
        let issuer = configuration["issuer"].as_str().filter(|issuer| !issuer.is_empty());
        let issuer = issuer.ok_or_else(|| FetchError::Malformed("it names no issuer".to_owned()))?;
        let keys = self.inner.client.get_as(KEYS, KEYS_TYPE).await?;
        if issuer.len() + keys.to_string().len() > MAX_KEYS_BYTES {
            return Err(FetchError::Malformed(format!("it has more than {MAX_KEYS_BYTES} bytes")));
        }
        Keys::parse(&keys).map_err(FetchError::Malformed)?;
        let before = self.inner.known.load_full().filter(|known| known.record.issuer == issuer);
        let audiences = before.map(|known| known.record.audiences.clone()).unwrap_or_default();
        let record = Record { issuer: issuer.to_owned(), keys, audiences, seen: clock::now() };
        self.keep(record, Some(Instant::now())).await;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the API server's answer is no key set: {0}")]
    Malformed(String),
}

impl Claims {
    /// The user that a genuine token stands for.
    fn is_good(
        &self,
        known: &Record,
        now: u64,
        node_name: &str,
        has_pod: impl FnOnce(&str, &str) -> Option<bool>,
    ) -> Result<String, NotGood> {
        // Without any other word the API server's audience is the issuer's name (`--api-audiences`).
        let is_ours = |audience: &String| match &*known.audiences {
            [] => *audience == known.issuer,
            audiences => audiences.contains(audience),
        };
        if !self.aud.all().iter().any(is_ours) {
            return Err(NotGood::Audience);
        }
        let made = self.nbf.max(self.iat);
        let time = if now >= known.seen {
            if made > now.saturating_add(LEEWAY) {
                return Err(NotGood::NotYet);
            }
            now
        } else {
            known.seen.max(made)
        };
        if self.exp.is_none_or(|exp| exp <= time) {
            return Err(NotGood::Expired);
        }
        let Some(Bound { namespace, serviceaccount, pod: Some(pod), node }) = &self.kubernetes else {
            return Err(NotGood::Unbound);
        };
        let user = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if self.sub != user || namespace.is_empty() || serviceaccount.name.is_empty() || pod.uid.is_empty() {
            return Err(NotGood::Unbound);
        }
        if node.as_ref().is_some_and(|node| node.name != node_name) {
            return Err(NotGood::Elsewhere);
        }
        match has_pod(&pod.uid, &user) {
            Some(true) => Ok(user),
            Some(false) => Err(NotGood::Elsewhere),
            None => Err(NotGood::PodsUnknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::jwks::tests::vectors;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
    /// When the token of the vectors was made.
    const MADE: u64 = 2_000_000_000;

    fn known(audiences: &[&str], seen: u64) -> Record {
        let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
        Record { issuer: ISSUER.to_owned(), keys: json!({}), audiences, seen }
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Claims {
        let (_, tokens) = vectors();
        let payload = URL_SAFE_NO_PAD.decode(tokens[3].1.split('.').nth(1).unwrap()).unwrap();
        let mut claims: Value = serde_json::from_slice(&payload).unwrap();
        change(&mut claims);
        serde_json::from_value(claims).unwrap()
    }

    type Change = fn(&mut Value);

    fn here(uid: &str, user: &str) -> Option<bool> {
        Some(uid == "p-1" && user == "system:serviceaccount:shop:web")
    }

    #[test]
    fn a_pods_token_is_good_on_its_node_in_its_time_for_the_api_server() {
        let now = MADE + 60;
        let verdict = |change: Change| claims(change).is_good(&known(&[], MADE), now, "edge", here);
        let user = || Ok("system:serviceaccount:shop:web".to_owned());
        assert_eq!(verdict(|_| {}), user());
        assert_eq!(verdict(|claims| claims["aud"] = json!(ISSUER)), user());
        assert_eq!(verdict(|claims| drop(claims["kubernetes.io"]["node"].take())), user());
        let table: [(Change, NotGood); 13] = [
            (|claims| claims["aud"] = json!(["vault"]), NotGood::Audience),
            (|claims| claims["aud"] = json!([]), NotGood::Audience),
            (|claims| drop(claims.as_object_mut().unwrap().remove("aud")), NotGood::Audience),
            (|claims| claims["exp"] = json!(MADE + 60), NotGood::Expired),
            (|claims| claims["exp"] = json!(null), NotGood::Expired),
            (|claims| claims["nbf"] = json!(MADE + 121), NotGood::NotYet),
            (|claims| claims["iat"] = json!(MADE + 121), NotGood::NotYet),
            (|claims| drop(claims["kubernetes.io"]["pod"].take()), NotGood::Unbound),
            (|claims| drop(claims["kubernetes.io"].take()), NotGood::Unbound),
            (|claims| claims["sub"] = json!("system:serviceaccount:shop:admin"), NotGood::Unbound),
            (|claims| claims["kubernetes.io"]["node"]["name"] = json!("other"), NotGood::Elsewhere),
            (|claims| claims["kubernetes.io"]["pod"]["uid"] = json!("p-2"), NotGood::Elsewhere),
            (|claims| claims["kubernetes.io"]["pod"]["uid"] = json!(""), NotGood::Unbound),
        ];
        for (number, (change, expected)) in table.into_iter().enumerate() {
            assert_eq!(verdict(change), Err(expected), "{number}");
        }
        let unknown = claims(|_| {}).is_good(&known(&[], MADE), now, "edge", |_, _| None);
        assert_eq!(unknown, Err(NotGood::PodsUnknown));
        // What the API server was seen to take counts before what it takes by default.
        let learnt = known(&["api"], MADE);
        assert_eq!(claims(|_| {}).is_good(&learnt, now, "edge", here), Err(NotGood::Audience));
        assert_eq!(claims(|claims| claims["aud"] = json!("api")).is_good(&learnt, now, "edge", here), user());
    }

    #[test]
    fn a_board_without_a_clock_knows_that_it_is_not_earlier_than_what_it_has_seen() {
        let at = |now, seen| claims(|_| {}).is_good(&known(&[], seen), now, "edge", here);
        assert!(at(0, MADE - 1000).is_ok(), "the token itself shows that its time has come");
        assert_eq!(at(0, MADE + 4000), Err(NotGood::Expired), "the keys were fetched after its end");
        assert_eq!(at(MADE + 4000, MADE), Err(NotGood::Expired));
        assert_eq!(at(MADE - 100, MADE - 1000), Err(NotGood::NotYet), "a clock that may be right");
        assert!(at(MADE - 30, MADE - 1000).is_ok(), "and is a little behind");
    }
}
