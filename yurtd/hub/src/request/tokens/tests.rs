//! Tokens that an API server refuses, once and for good.

use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_fakes::api_server::{FakeApi, Fault, When};
use yurt_fakes::issuer::{SigningKey, claims_of_pod};
use yurt_fakes::until;

use super::*;
use crate::clock::Boot;
use crate::upstream::{Upstream, UpstreamConfig};

const KEYS: &str = "/openid/v1/jwks";
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct Rig {
    api: FakeApi,
    key: SigningKey,
    store: Store,
    tokens: Tokens,
    client: NodeClient,
    link: watch::Sender<LinkState>,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    async fn start() -> Self {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let key = SigningKey::new("one");
        api.publish(&[&key]);
        let (store, _) = Store::open_with(dir.path(), 4 << 20).unwrap();
        let stop = CancellationToken::new();
        let upstream = Upstream::start(&UpstreamConfig::of(&api), &Tasks::new(stop.clone())).unwrap().0;
        let (link, client) = (watch::Sender::new(LinkState::Online), NodeClient::new(upstream));
        let tokens = Self::open(&store, &client, &link, &stop).await;
        Self { api, key, store, tokens, client, link, stop, _dir: dir }
    }

    async fn open(
        store: &Store,
        client: &NodeClient,
        link: &watch::Sender<LinkState>,
        stop: &CancellationToken,
    ) -> Tokens {
        let link = Link::new(link.subscribe(), Arc::new(Notify::new()));
        let issuer = Issuer::open(store.clone(), client.clone(), link.clone(), "edge", &Boot::new(""));
        tokio::spawn({
            let (stop, issuer) = (stop.clone(), issuer.clone());
            async move { stop.run_until_cancelled(issuer.run()).await }
        });
        let (tasks, has_pod) = (Tasks::new(stop.clone()), Box::new(|_: &str, _: &str| Some(true)));
        Tokens::open(store.clone(), client.clone(), link, tasks, issuer, has_pod).await
    }

    /// Another process.
    async fn restart(&mut self) {
        self.tokens = Self::open(&self.store, &self.client, &self.link, &self.stop).await;
    }

    async fn knows_the_keys(&self) {
        until("the keys, on the disk", async || self.tokens.issuer().is_kept().then_some(())).await;
    }

    fn token(&self, pod: &str) -> BearerToken {
        BearerToken::new(&self.key.sign(&claims_of_pod("shop", "web", ("web-0", pod), "edge")))
    }

    async fn is_good(&self, token: &BearerToken) -> bool {
        self.tokens.identity_of(token, HERE).await.is_ok()
    }

    async fn is_good_offline(&self, token: &BearerToken) -> bool {
        self.link.send_replace(LinkState::Offline);
        let good = self.is_good(token).await;
        self.link.send_replace(LinkState::Online);
        good
    }

    /// Somebody comes with it until the API server has said no.
    async fn refuse(&self, token: &BearerToken) {
        self.api.refuse_token(token.expose());
        until("refused", async || {
            let refused = self.tokens.identity_of(token, HERE).await;
            matches!(refused, Err(AuthError::TokenRefused(_))).then_some(())
        })
        .await;
    }

    fn is_revoked(&self, token: &BearerToken) -> bool {
        lock(&self.tokens.inner.memory).is_revoked(&hash(token))
    }

    /// Minutes in which nobody comes with it. A connection that does not outlive such a leap costs one of them.
    async fn minutes_until_revoked(&self, token: &BearerToken) {
        for _ in 0..5 {
            later(71).await;
            let begun = Instant::now();
            while !self.is_revoked(token) && begun.elapsed() < Duration::from_secs(2) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if self.is_revoked(token) {
                return;
            }
        }
        panic!("it is not known to be revoked");
    }
}

/// Time passes, and then goes on as it does.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_token_that_was_refused_once_is_good_without_a_link_and_one_that_stays_refused_is_not() {
    let mut rig = Rig::start().await;
    rig.knows_the_keys().await;
    let (new, known) = (rig.token("p-1"), rig.token("p-2"));
    until("good", async || rig.is_good(&known).await.then_some(())).await;
    let refused = [&new, &known];
    // A known one is let in and asked about meanwhile.
    later(121).await;
    for token in refused {
        rig.refuse(token).await;
        assert!(rig.is_good_offline(token).await, "the API server may have just started");
    }
    // Nobody comes with them again: the hub asks by itself.
    for token in refused {
        rig.minutes_until_revoked(token).await;
        assert!(!rig.is_good_offline(token).await);
        until("on the disk", async || {
            let record = rig.store.get(Bucket::Callers, &hash(token)).unwrap()?;
            serde_json::from_slice::<TokenRecord>(&record).unwrap().revoked.then_some(())
        })
        .await;
    }
    assert!(rig.is_good_offline(&rig.token("p-3")).await);
    rig.restart().await;
    for token in refused {
        assert!(!rig.is_good_offline(token).await);
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_before_the_keys_were_known_is_remembered() {
    let mut rig = Rig::start().await;
    rig.knows_the_keys().await;
    until("the keys on the disk", async || rig.store.get(Bucket::Misc, b"issuer").unwrap()).await;
    // Nobody has the keys yet.
    rig.api.fault(When::path(KEYS), Fault::Answer(503));
    rig.store.delete(Bucket::Misc, &[b"issuer".to_vec()]).await.unwrap();
    rig.restart().await;
    assert_eq!(rig.tokens.issuer().figures().0, 0);
    let token = rig.token("p-1");
    rig.refuse(&token).await;
    rig.minutes_until_revoked(&token).await;
    assert_eq!(rig.tokens.issuer().figures().0, 0);
    rig.api.no_faults();
    later(300).await;
    rig.knows_the_keys().await;
    assert!(rig.is_good_offline(&rig.token("p-2")).await);
    assert!(!rig.is_good_offline(&token).await);
    until("on the disk", async || rig.store.get(Bucket::Callers, &hash(&token)).unwrap()).await;
    rig.restart().await;
    assert!(!rig.is_good_offline(&token).await);
}

#[tokio::test]
async fn a_token_that_is_refused_again_and_again_is_written_once() {
    let rig = Rig::start().await;
    rig.knows_the_keys().await;
    until("the keys on the disk", async || rig.store.get(Bucket::Misc, b"issuer").unwrap()).await;
    let (token, before) = (rig.token("p-1"), rig.store.stats().commits);
    rig.refuse(&token).await;
    assert_eq!(rig.store.stats().commits, before, "it is not known what that is worth");
    rig.minutes_until_revoked(&token).await;
    until("on the disk", async || rig.store.get(Bucket::Callers, &hash(&token)).unwrap()).await;
    assert_eq!(rig.store.stats().commits, before + 1);
    for _ in 0..5 {
        let reviews = rig.tokens.reviews();
        later(11).await;
        rig.refuse(&token).await;
        assert!(rig.tokens.reviews() > reviews);
    }
    assert_eq!(rig.store.stats().commits, before + 1);
}
