//! A full store, a damaged one, and what is stored without anybody asking.

use super::*;
use crate::store::Tx;
use crate::wire::EventType::Modified;

/// A hub whose store has this bound.
async fn small(api: &FakeApi, dir: &Path, bytes: usize) -> Hub {
    let stop = CancellationToken::new();
    let (store, _) = Store::open_with(dir, bytes).unwrap();
    let (upstream, link) = Upstream::start(&UpstreamConfig::of(api), &Tasks::new(stop.clone())).unwrap();
    let views =
        Views::load(&store, &upstream, &link, &node(), &Boot::new(""), &Tasks::new(stop.clone())).unwrap();
    link.settled(Duration::from_secs(5)).await;
    Hub { views, link, store, stop }
}

#[tokio::test]
async fn a_view_that_does_not_fit_any_more_is_forwarded_online_and_as_it_was_offline() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "small");
    let hub = small(&api, dir.path(), 1 << 20).await;
    let (permit, pods) = (node(), pods(Encoding::Json));
    let view = hub.views.open(&permit, &pods).await.unwrap();
    let before = view.list().unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    api.put_data("pods", "n", "big", "x", &"x".repeat(2 << 20));
    assert!(watch.stream.next().await.is_none(), "who watches has to ask again");
    assert!(hub.store.stats().full);
    // Something small is written. That makes no room.
    hub.store.put(crate::store::Bucket::Misc, b"small", b"1").await.unwrap();
    let asked = Instant::now();
    for _ in 0..3 {
        assert!(matches!(hub.views.open(&permit, &pods).await, Err(ViewError::Store(_))), "online it is old");
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for what does not fit");
    assert_eq!(view.list().unwrap().body, before.body, "nothing of it is lost");
    api.cut();
    hub.reaches(LinkState::Offline).await;
    assert_eq!(hub.views.open(&permit, &pods).await.unwrap().list().unwrap().body, before.body);
    // Room again: it goes on where it was.
    api.delete("/api/v1/namespaces/n/pods/big");
    api.compact();
    api.restore();
    hub.reaches(LinkState::Online).await;
    view.poke.notify_one();
    caught_up(&view, api.version()).await;
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
    hub.views.open(&permit, &pods).await.unwrap();
}

#[tokio::test]
async fn the_last_of_the_room_is_kubelets() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for number in 0..6 {
        api.put_data("pods", "n", &format!("p{number}"), "x", &"x".repeat(60_000));
    }
    let hub = small(&api, dir.path(), 4 << 20).await;
    let pods = pods(Encoding::Json);
    // Each has less than the tenth that is everybody's.
    let other = |number: usize| {
        let identity = Identity::new(&format!("system:serviceaccount:n:{number}"));
        Permit::for_test(Caller { identity, credential: Credential::Bearer(BearerToken::new("t")) })
    };
    let mut opened = 0;
    while hub.views.open(&other(opened), &pods).await.is_ok() {
        opened += 1;
    }
    assert!((4..9).contains(&opened), "of four megabytes less than three: {opened}");
    assert!(matches!(hub.views.open(&other(20), &pods).await, Err(ViewError::NotAView)));
    hub.views.open(&other(0), &pods).await.unwrap();
    hub.views.open(&node(), &pods).await.unwrap();
    assert!(!hub.store.stats().full);
}

#[tokio::test]
async fn bookmarks_are_stored_now_and_then_and_unused_views_forgotten() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let bookmark = api.bookmark();
    caught_up(&view, bookmark).await;
    hub.views.save().await.unwrap();
    let remains = hub.remains(dir.path());
    api.cut();
    let hub = Hub::start(&api, remains.path()).await;
    assert_eq!(
        hub.views.find(&node(), &pods(Encoding::Json), Question::Any).unwrap().resource_version(),
        bookmark
    );
    hub.views.forget(60).await.unwrap();
    assert!(hub.views.find(&node(), &pods(Encoding::Json), Question::Any).is_some());
    hub.views.find(&node(), &pods(Encoding::Json), Question::Any).unwrap().used_at(0);
    hub.views.forget(60).await.unwrap();
    assert!(hub.views.find(&node(), &pods(Encoding::Json), Question::Any).is_none());
    let mut left = 0;
    hub.store
        .read(|reader| {
            reader.scan(Table::Views, &[], None, |_, _| {
                left += 1;
                Ok(true)
            })
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_damaged_record_costs_one_list_and_no_process() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    api.put_data("pods", "n", "b", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    watch.is_silent().await;
    let key = view.id.object("n/a");
    hub.store.write(Durability::Soon, move |tx| tx.put(Table::Objects, &key, b"bent")).await.unwrap();
    assert!(matches!(view.list(), Err(StoreError::Damaged(_))));
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    let mut sync = view.sync.subscribe();
    tokio::time::timeout(Duration::from_secs(10), sync.wait_for(|sync| sync.state.is_following()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    let new = api.put_data("pods", "n", "a", "x", "2");
    assert_eq!(watch.object().await, (Modified, "a".into(), new.version));
}

#[tokio::test]
async fn a_view_whose_record_is_damaged_is_removed_at_the_next_start_and_no_other() {
    for on_the_disk in [false, true] {
        damaged_view_is_removed(on_the_disk).await;
    }
}

async fn damaged_view_is_removed(on_the_disk: bool) {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let damaged = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap().id;
    let kept = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap().id;
    // By whoever wrote it, or by the disk.
    let write = move |tx: &mut Tx<'_>| match on_the_disk {
        true => tx.put_raw(Table::Views, &damaged.prefix(), b"bent by the disk"),
        false => tx.put(Table::Views, &damaged.prefix(), b"bent"),
    };
    hub.store.write(Durability::Durable, write).await.unwrap();
    let remains = hub.remains(dir.path());
    let hub = Hub::start(&api, remains.path()).await;
    assert_eq!(hub.views.count(), (1, 1));
    let removed = async {
        loop {
            let (mut left, mut objects) = (Vec::new(), 0);
            hub.store
                .read(|reader| {
                    reader.scan_each(Table::Views, &[], None, |key, _| {
                        left.push(key.to_vec());
                        Ok(true)
                    })?;
                    reader.scan(Table::Objects, &damaged.prefix(), None, |_, _| {
                        objects += 1;
                        Ok(true)
                    })
                })
                .unwrap();
            if left == [kept.prefix()] && objects == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), removed).await.expect("what is stored of it goes");
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
}

#[tokio::test]
async fn the_deletion_of_a_large_object_ends_no_watch() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for name in ["a", "b"] {
        api.put_data("configmaps", "n", name, "x", &"x".repeat(900 << 10));
    }
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &spec("configmaps", "", "", Encoding::Json)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    for name in ["a", "b"] {
        api.delete(&format!("/api/v1/namespaces/n/configmaps/{name}"));
        caught_up(&view, api.version()).await;
        assert_eq!(watch.object().await, (EventType::Deleted, name.into(), api.version()));
    }
}
