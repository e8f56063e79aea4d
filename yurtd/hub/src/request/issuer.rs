//! The cluster's issuer of ServiceAccount tokens, as the node knows it: its name, its [`Keys`] and for whom the tokens
//! are that the API server takes. It is asked for with the node's own credential (a ClusterRoleBinding of ours lets
//! nodes read it), kept on the disk, and asked for again after an hour or so, over the ends of processes, after a cut,
//! and when a token names a key that is not known (OpenID Connect Discovery 1.0; Kubernetes: *ServiceAccount token
//! issuer discovery*).
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

mod claims;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use yurt_node::link::LinkState;

use super::jwks::{Keys, Signature};
pub(crate) use claims::{NotGood, claims_of};

use crate::caller::Identity;
use crate::clock::{self, Boot, DAY};
use crate::last_read::LastRead;
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::store::{Bucket, Durability, Store, StoreError, Table, Tx, bucket_key};
use crate::upstream::jitter;
use claims::Claims;

/// Key in [`Bucket::Misc`].
const KEY: &[u8] = b"issuer";
/// And when the API server last gave it.
const READ: &[u8] = b"issuer-read";
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
    /// When the API server last gave them, in this boot.
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

/// What the issuer has to do with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has made it.
    Genuine,
    /// That will be known with the keys, or with newer ones.
    NotKnownYet,
    /// Nothing: it is somebody else's, forged, or signed with a key that cannot be used here.
    Foreign,
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
    last_read: LastRead,
    known: ArcSwapOption<Known>,
    /// Held while that is replaced.
    changing: Mutex<()>,
    /// What is on the disk.
    written: ArcSwapOption<Record>,
    demand: Notify,
    /// Counts answers to demands.
    rounds: watch::Sender<u64>,
    /// Counts those with keys.
    fetches: watch::Sender<u64>,
    forged: AtomicU64,
}

impl Issuer {
    /// Reads what is on the disk.
    pub(crate) fn open(store: Store, client: NodeClient, link: Link, node_name: &str, boot: &Boot) -> Self {
        let stored = store.get(Bucket::Misc, KEY).unwrap_or_else(|error| {
            tracing::error!(%error, "the keys of the cluster's tokens cannot be read");
            None
        });
        let record = stored.and_then(|value| serde_json::from_slice::<Record>(&value).ok());
        let last_read = LastRead::of(store.clone(), boot.clone(), READ);
        let confirmed = last_read.age().and_then(|age| Instant::now().checked_sub(age));
        let known = record.and_then(|record| Known::of(record, confirmed).ok());
        let inner = Inner {
            store,
            client,
            link,
            node_name: node_name.to_owned(),
            last_read,
            written: ArcSwapOption::from(known.as_ref().map(|known| Arc::new(known.record.clone()))),
            known: ArcSwapOption::from(known.map(Arc::new)),
            changing: Mutex::default(),
            demand: Notify::new(),
            rounds: watch::Sender::new(0),
            fetches: watch::Sender::new(0),
            forged: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How many keys are known, and how many tokens were refused by them.
    pub(crate) fn figures(&self) -> (usize, u64) {
        let keys = self.inner.known.load().as_ref().map_or(0, |known| known.keys.len());
        (keys, self.inner.forged.load(Ordering::Relaxed))
    }

    /// Whether the next process knows what this one does, and since when.
    #[cfg(test)]
    pub(crate) fn is_kept(&self) -> bool {
        self.is_written() && self.inner.last_read.age().is_some()
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

    /// Whether it is one of those that [`Self::admit`] may let in, now or once newer keys are known.
    pub(crate) fn standing(&self, token: &str) -> Standing {
        let is_pods = || Claims::of(token).is_some_and(|claims| claims.is_pods());
        match self.judge(token) {
            Some((.., Signature::Genuine)) => Standing::Genuine,
            Some((.., Signature::UnknownKey)) if is_pods() => Standing::NotKnownYet,
            None if self.inner.known.load().is_none() && is_pods() => Standing::NotKnownYet,
            _ => Standing::Foreign,
        }
    }

    /// Waits until the keys have come once more.
    pub(crate) async fn fetched_again(&self) {
        // The sender is ours: this does not fail.
        let _ = self.inner.fetches.subscribe().changed().await;
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
        let audiences: Vec<&str> = audiences.into_iter().filter(|audience| !audience.is_empty()).collect();
        self.change(|known| {
            let known = known?;
            let mut record = known.record.clone();
            for audience in audiences {
                let new = record.audiences.iter().all(|known| known != audience);
                if new && record.audiences.len() < MAX_AUDIENCES {
                    record.audiences.push(audience.to_owned());
                }
            }
            (record.audiences != known.record.audiences).then_some((record, known.confirmed))
        })
        .await;
    }

    /// The same, of a token that the API server has made for itself.
    pub(crate) async fn learn_from(&self, token: &str) {
        if let Some((_, claims, Signature::Genuine)) = self.judge(token) {
            self.learn(claims.aud.all().iter().map(String::as_str)).await;
        }
    }

    /// Changes what is known; on the disk, if that says anything new. One after the other: what was fetched meanwhile must
    /// not be lost to somebody who has learnt an audience, nor the other way round.
    async fn change(&self, change: impl FnOnce(Option<&Known>) -> Option<(Record, Option<Instant>)>) {
        {
            let _one_at_a_time = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let known = self.inner.known.load_full();
            let Some((record, confirmed)) = change(known.as_deref()) else { return };
            match Known::of(record, confirmed) {
                Ok(known) => self.inner.known.store(Some(Arc::new(known))),
                Err(error) => {
                    tracing::warn!(error, "the cluster's keys cannot be used");
                    return;
                }
            }
        }
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "the keys of the cluster's tokens will not be known after a restart");
        }
    }

    /// Whether what is known is on the disk.
    fn is_written(&self) -> bool {
        let (known, written) = (self.inner.known.load_full(), self.inner.written.load());
        known.is_some_and(|known| known.record.is_almost(written.as_deref()))
    }

    /// Writes what is known when it is this one's turn, which is the newest whoever comes first.
    async fn write(&self) -> Result<(), StoreError> {
        if self.inner.known.load().is_none() || self.is_written() {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        let (store, to_write) = (self.inner.store.clone(), Arc::clone(&inner));
        let write = move |tx: &mut Tx<'_>| {
            let Some(known) = to_write.known.load_full() else { return Ok(None) };
            let value =
                serde_json::to_vec(&known.record).map_err(|error| StoreError::Failed(error.to_string()))?;
            let key = bucket_key(Bucket::Misc, KEY);
            let sealed = tx.sealer().seal(&key, &value)?;
            tx.put(Table::Buckets, &key, &sealed)?;
            Ok(Some(known))
        };
        let then = move |written: &mut Option<Arc<Known>>| {
            inner.written.store(written.as_ref().map(|known| Arc::new(known.record.clone())));
        };
        store.write_then(Durability::Durable, write, then).await.map(drop)
    }

    /// When the keys were last fetched, and how long after that, or from now on, they are fetched next.
    fn begins(&self) -> (Option<Instant>, Duration) {
        match self.inner.known.load().as_ref().map(|known| known.confirmed) {
            None => (None, Duration::ZERO),
            Some(None) => (None, SPREAD.mul_f64(jitter())),
            // A process that is started again goes on where the one before was.
            Some(last) => (last, PERIOD.mul_f64(0.75 + 0.5 * jitter())),
        }
    }

    /// Keeps the keys up to date whenever there is a link.
    pub(crate) async fn run(self) {
        let mut link = self.inner.link.subscribe();
        let (mut last, mut pause) = self.begins();
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
            // Not when it ended: keys count as old by when they came, and whoever asks then has to have them fetched.
            last = Some(Instant::now());
            pause = match self.fetch().await {
                Ok(()) => {
                    failures = 0;
                    self.inner.fetches.send_modify(|fetches| *fetches += 1);
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
        self.fetched(issuer, keys).await;
        if self.is_written() {
            self.inner.last_read.is_now().await;
        }
        Ok(())
    }

    /// The API server has just given these.
    async fn fetched(&self, issuer: &str, keys: Value) {
        self.change(|known| {
            let same = known.filter(|known| known.record.issuer == issuer);
            let audiences = same.map(|known| known.record.audiences.clone()).unwrap_or_default();
            let record = Record { issuer: issuer.to_owned(), keys, audiences, seen: clock::now() };
            Some((record, Some(Instant::now())))
        })
        .await;
    }
}

impl Record {
    /// Whether it says nothing that is not written already, but for the time of this day.
    fn is_almost(&self, written: Option<&Self>) -> bool {
        written.is_some_and(|written| {
            let same = Self { seen: self.seen, ..written.clone() } == *self;
            same && written.seen.abs_diff(self.seen) < DAY
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the API server's answer is no key set: {0}")]
    Malformed(String),
}

#[cfg(test)]
mod tests;
