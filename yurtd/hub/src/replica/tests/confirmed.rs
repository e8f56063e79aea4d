//! The API server's word that a view may be fed, over the end of a process.

use tokio::sync::watch;

use super::derived::*;
use super::*;
use crate::view::record::ViewRecord;

/// Reviews that the API server has answered.
fn reviews(api: &FakeApi) -> usize {
    api.seen("POST", REVIEWS).len()
}

/// What another process is told of a view.
fn record(store: &Store, view: &View) -> ViewRecord {
    store.read(|reader| ViewRecord::decode(reader.get(Table::Views, &view.id.prefix())?.unwrap())).unwrap()
}

/// A hub with three views that are fed, killed; what it leaves.
async fn killed(api: &FakeApi, dir: &Path) -> tempfile::TempDir {
    filled(api);
    let hub = Hub::start(api, dir).await;
    let views = open_three(&hub).await;
    fed(&views).await;
    for view in &views[1..] {
        yurt_fakes::until("the word is kept", async || record(&hub.store, view).confirmation.map(drop)).await;
    }
    hub.remains(dir)
}

/// Changes the words that a hub has left; nothing takes them away.
async fn edit(dir: &Path, edit: impl Fn(&mut serde_json::Value) + Send + 'static) {
    let (store, _) = Store::open_with(dir, 64 << 20).unwrap();
    let edited = store.write(Durability::Durable, move |tx| {
        let mut records = Vec::new();
        tx.scan(Table::Views, &[], None, |key, value| {
            records.push((key.to_vec(), serde_json::from_slice::<serde_json::Value>(value).unwrap()));
            Ok(true)
        })?;
        for (key, mut record) in records {
            if record.get("confirmation").is_some() {
                edit(&mut record["confirmation"]);
                tx.put(Table::Views, &key, &serde_json::to_vec(&record).unwrap())?;
            }
        }
        Ok(())
    });
    edited.await.unwrap();
}

/// Three views that are fed again by the next hub.
async fn fed_again(hub: &Hub) -> Vec<Arc<View>> {
    let views = open_three(hub).await;
    fed(&views).await;
    views
}

#[tokio::test]
async fn a_hub_that_is_started_again_asks_nothing_but_its_watches() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let mut remains = killed(&api, dir.path()).await;
    assert_eq!(reviews(&api), 4);
    let before = api.requests().len();
    for round in 1..=3 {
        let hub = Hub::start(&api, remains.path()).await;
        let views = fed_again(&hub).await;
        let version = put(&api, "plain", json!({"round": round.to_string()}), "10.96.0.7");
        for view in &views {
            caught_up(view, version).await;
        }
        let asked: Vec<_> =
            api.requests()[before..].iter().map(|seen| (seen.path.clone(), seen.is_watch())).collect();
        assert_eq!(asked, vec![("/api/v1/services".to_owned(), true); round]);
        remains = hub.remains(remains.path());
    }
}

/// It is asked for as if there were none, and nothing else goes wrong.
#[tokio::test]
async fn a_word_that_cannot_be_believed_is_asked_for_again() {
    type Edit = fn(&mut serde_json::Value);
    let now = boot().seconds();
    assert!(now > 1, "of this boot");
    let edits: [(&str, Edit); 5] = [
        ("its time is over", |word| word["until"] = boot().seconds().into()),
        ("the hub was away", |word| word["seen"] = boot().seconds().saturating_sub(601).into()),
        ("a clock of another boot's", |word| word["seen"] = (boot().seconds() + 3600).into()),
        ("nobody gives such a word", |word| word["until"] = u64::MAX.into()),
        ("a store of before", |word| *word = serde_json::Value::Null),
    ];
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let mut remains = killed(&api, dir.path()).await;
    for (why, change) in edits {
        edit(remains.path(), change).await;
        let before = reviews(&api);
        let hub = Hub::start(&api, remains.path()).await;
        let views = fed_again(&hub).await;
        assert_eq!(reviews(&api), before + 4, "{why}");
        drop(views);
        remains = hub.remains(remains.path());
    }
    let before = reviews(&api);
    let hub = Hub::start_in(&api, remains.path(), &Boot::new("the-next-one")).await;
    fed_again(&hub).await;
    assert_eq!(reviews(&api), before + 4, "another boot");
}

/// The question costs more than the watch, and the hub may be killed again.
#[tokio::test]
async fn who_watches_goes_on_by_itself_before_anybody_is_asked() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let remains = killed(&api, dir.path()).await;
    edit(remains.path(), |word| *word = serde_json::Value::Null).await;
    let version = put(&api, "plain", json!({"a": "1"}), "10.96.0.7");
    let before = (reviews(&api), asked(&api));
    let hub = Hub::start(&api, remains.path()).await;
    let mut views = Vec::new();
    for (permit, spec) in three() {
        let view = hub.views.open_at(&permit, &spec, version - 1).await.unwrap();
        caught_up(&view, version).await;
        views.push(view);
    }
    let (lists, watches) = before.1;
    assert_eq!((reviews(&api), asked(&api)), (before.0, (lists, watches + 3)));
    // It joins when the watch has gone on for a while.
    fed(&views).await;
    assert_eq!((reviews(&api), asked(&api).0), (before.0 + 4, lists));
}

/// However short the time between: who asks when the link is back must not be saved the question by a restart.
#[tokio::test]
async fn no_word_outlives_the_link() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = fed_again(&hub).await;
    api.cut();
    hub.reaches(LinkState::Offline).await;
    for view in &views[1..] {
        yurt_fakes::until("the word is forgotten", async || {
            record(&hub.store, view).confirmation.is_none().then_some(())
        })
        .await;
    }
    let remains = hub.remains(dir.path());
    drop((views, hub));
    api.forbid("proxy", "*", "services");
    let version = put(&api, "new", json!({}), "10.96.0.9");
    api.restore();
    let hub = Hub::start(&api, remains.path()).await;
    let [(node, part), (proxy, narrow), _] = three();
    caught_up(&hub.views.open(&node, &part).await.unwrap(), version).await;
    let refused = hub.views.open(&proxy, &narrow).await;
    assert!(matches!(&refused, Err(ViewError::Upstream(response)) if response.code == 403), "{refused:?}");
}

/// Nobody has opened the views yet.
#[tokio::test]
async fn a_hub_that_finds_no_link_asks_when_there_is_one_and_so_does_the_next() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let remains = killed(&api, dir.path()).await;
    let before = reviews(&api);
    api.cut();
    let hub = Hub::start(&api, remains.path()).await;
    hub.reaches(LinkState::Offline).await;
    let (proxy, narrow) = &three()[1];
    let view = hub.views.find(proxy, narrow, Question::Any).unwrap();
    yurt_fakes::until("the word is forgotten", async || {
        record(&hub.store, &view).confirmation.is_none().then_some(())
    })
    .await;
    let next = hub.remains(remains.path());
    api.restore();
    hub.reaches(LinkState::Online).await;
    fed_again(&hub).await;
    assert_eq!(reviews(&api), before + 4);
    let hub = Hub::start(&api, next.path()).await;
    fed_again(&hub).await;
    assert_eq!(reviews(&api), before + 8);
}

/// What a hub has left, found by one whose link is said by the test.
fn found(api: &FakeApi, dir: &Path, stop: &CancellationToken) -> (watch::Sender<LinkState>, Hub) {
    let (store, _) = Store::open_with(dir, 64 << 20).unwrap();
    let tasks = Tasks::new(stop.clone());
    let (upstream, _) = Upstream::start(&UpstreamConfig::of(api), &tasks).unwrap();
    let (state, receiver) = watch::channel(LinkState::Unknown);
    let link = Link::new(receiver, Arc::default());
    let silence = Duration::from_secs(180);
    let views = Views::load_with(&store, &upstream, &link, &node(), &boot(), &tasks, silence).unwrap();
    (state, Hub { views, link, store, stop: stop.clone() })
}

/// Nobody is woken between the two.
#[tokio::test]
async fn a_loss_that_is_over_at_once_ends_the_word_on_the_disk_too() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let remains = killed(&api, dir.path()).await;
    let (state, hub) = found(&api, remains.path(), &CancellationToken::new());
    let (proxy, narrow) = &three()[1];
    let view = hub.views.find(proxy, narrow, Question::Any).unwrap();
    assert!(record(&hub.store, &view).confirmation.is_some());
    for now in [LinkState::Online, LinkState::Offline, LinkState::Online] {
        hub.link.history().note(now);
        state.send_replace(now);
    }
    yurt_fakes::until("the word is forgotten", async || {
        record(&hub.store, &view).confirmation.is_none().then_some(())
    })
    .await;
}

/// One that is stopped before it knows whether there is a link has heard nothing.
#[tokio::test]
async fn a_hub_that_knows_of_no_link_was_not_there() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let remains = killed(&api, dir.path()).await;
    edit(remains.path(), |word| word["seen"] = boot().seconds().saturating_sub(300).into()).await;
    let (state, hub) = found(&api, remains.path(), &CancellationToken::new());
    let (proxy, narrow) = &three()[1];
    let view = hub.views.find(proxy, narrow, Question::Any).unwrap();
    let before = record(&hub.store, &view).confirmation;
    hub.views.save().await.unwrap();
    assert_eq!(record(&hub.store, &view).confirmation, before);
    state.send_replace(LinkState::Online);
    hub.views.save().await.unwrap();
    assert_ne!(record(&hub.store, &view).confirmation, before);
}

/// A view that is watched asks for itself when its source ends. What it is answered is newer than the word by which it
/// was fed.
#[tokio::test]
async fn a_refusal_ends_the_word() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let [(node, part), (proxy, narrow), (dns, all)] = three();
    let source = hub.views.open(&dns, &all).await.unwrap();
    let kubelets = hub.views.open(&node, &part).await.unwrap();
    let view = hub.views.open(&proxy, &narrow).await.unwrap();
    fed([&kubelets, &view]).await;
    let _watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    api.forbid("proxy", "*", "services");
    hub.views.inner.followers.end(&source).await;
    let asks = |seen: &api_server::Seen| seen.is_watch() && seen.token.as_deref() == Some("proxy");
    yurt_fakes::until("it asks itself", async || api.requests().iter().any(asks).then_some(())).await;
    let version = put(&api, "new", json!({}), "10.96.0.9");
    caught_up(&kubelets, version).await;
    let mut sync = view.sync.subscribe();
    let refused = sync.wait_for(|sync| sync.state.is_refused());
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap().unwrap();
    assert!(!names_of_any(&view).contains(&"new".to_owned()), "kubelet's was no source for it");
    assert_eq!(record(&hub.store, &view).confirmation, None);
}
