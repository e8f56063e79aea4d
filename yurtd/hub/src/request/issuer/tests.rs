//! Keys that come while others are learnt from.

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use yurt_fakes::api_server::FakeApi;
use yurt_node::supervise::Tasks;

use super::*;
use crate::request::jwks::tests::vectors;
use crate::upstream::{Upstream, UpstreamConfig};

struct Rig {
    store: Store,
    client: NodeClient,
    link: Link,
    stop: CancellationToken,
    _api: FakeApi,
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
        Self { store, client: NodeClient::new(upstream), link, stop, _api: api, _dir: dir }
    }

    fn issuer(&self) -> Issuer {
        Issuer::open(self.store.clone(), self.client.clone(), self.link.clone(), "edge")
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
