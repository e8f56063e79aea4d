//! Keys that come while others are learnt from, and processes that come one after the other.

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use yurt_fakes::api_server::FakeApi;
use yurt_fakes::issuer::SigningKey;
use yurt_node::supervise::Tasks;

use super::*;
use crate::request::jwks::tests::vectors;
use crate::upstream::{Upstream, UpstreamConfig};

struct Rig {
    store: Store,
    client: NodeClient,
    link: Link,
    stop: CancellationToken,
    api: FakeApi,
    _dir: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    async fn start() -> Self {
        let (api, dir, stop) =
            (FakeApi::start().await, tempfile::tempdir().unwrap(), CancellationToken::new());
        let (store, _) = Store::open_with(dir.path(), 4 << 20).unwrap();
        let tasks = Tasks::new(stop.clone());
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), &tasks).unwrap();
        Self { store, client: NodeClient::new(upstream), link, stop, api, _dir: dir }
    }

    fn issuer(&self) -> Issuer {
        self.issuer_in("one")
    }

    fn issuer_in(&self, boot: &str) -> Issuer {
        let (store, client, link) = (self.store.clone(), self.client.clone(), self.link.clone());
        Issuer::open(store, client, link, "edge", &Boot::new(boot))
    }
}

fn audiences(issuer: &Issuer) -> Vec<String> {
    let mut audiences = issuer.inner.known.load_full().unwrap().record.audiences.clone();
    audiences.sort();
    audiences
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_learnt_at_the_same_time_is_all_known_and_all_on_the_disk() {
    let rig = Rig::start().await;
    let expected: Vec<String> = (10..10 + MAX_AUDIENCES).map(|number| format!("a{number}")).collect();
    for round in 0..20 {
        let (issuer, (old, _)) = (rig.issuer(), vectors());
        let mut new = old.clone();
        new["keys"].as_array_mut().unwrap().truncate(2);
        // Another issuer each time, of which nothing was learnt.
        let name = format!("https://cluster-{round}");
        issuer.fetched(&name, old).await;
        let mut tasks = tokio::task::JoinSet::new();
        for (number, audience) in expected.iter().enumerate() {
            let (issuer, name, audience, new) = (issuer.clone(), name.clone(), audience.clone(), new.clone());
            tasks.spawn(async move {
                if number == MAX_AUDIENCES / 2 {
                    issuer.fetched(&name, new).await;
                }
                issuer.learn([&*audience]).await;
            });
        }
        tasks.join_all().await;
        for known in [issuer, rig.issuer()] {
            assert_eq!(audiences(&known), expected, "round {round}");
            assert_eq!(known.figures().0, 2, "round {round}: the keys that came last");
        }
    }
}

#[tokio::test]
async fn a_process_that_is_started_again_does_not_ask_for_the_keys_in_the_same_boot() {
    let rig = Rig::start().await;
    rig.api.publish(&[&SigningKey::new("one")]);
    let issuer = rig.issuer_in("one");
    assert_eq!(issuer.begins(), (None, Duration::ZERO));
    let (mut rounds, running) = (issuer.inner.rounds.subscribe(), tokio::spawn(issuer.clone().run()));
    let fetched = timeout(Duration::from_secs(20), rounds.changed()).await;
    fetched.expect("the keys come").unwrap();
    running.abort();
    assert_eq!(rig.api.seen("GET", KEYS).len(), 1);
    let (last, pause) = rig.issuer_in("one").begins();
    assert!(last.is_some_and(|last| last.elapsed() < Duration::from_secs(30)) && pause > PERIOD / 2);
    let (last, pause) = rig.issuer_in("two").begins();
    assert!(last.is_none() && pause <= SPREAD, "somebody may have replaced them while it was off");
}

#[tokio::test]
async fn a_process_that_is_started_again_goes_by_what_was_read_only_if_that_is_on_the_disk() {
    let rig = Rig::start().await;
    LastRead::of(rig.store.clone(), Boot::new("one"), READ).is_now().await;
    assert_eq!(rig.issuer_in("one").begins(), (None, Duration::ZERO));
}
