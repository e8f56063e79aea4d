//! Lost links, errors, restarts and restored backups.

use yurt_fakes::link::Wire;
use yurt_fakes::until;

use super::*;
use crate::upstream::tests::{find, lose};
use crate::wire::EventType::{Added, Deleted, Modified};

#[tokio::test]
async fn a_lost_link_costs_no_list_and_no_local_watch() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let pod = api.put_data("pods", "n", "a", "x", "1");
    let other = api.put_data("pods", "n", "z", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Any));
    assert_eq!(watch.object().await, (Added, "a".into(), pod.version));
    assert_eq!(watch.object().await, (Added, "z".into(), other.version));
    let bookmark = api.bookmark();
    caught_up(&view, bookmark).await;
    api.cut();
    hub.reaches(LinkState::Offline).await;
    assert!(!view.is_followed());
    let offline = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    assert_eq!(listed_version(&offline), bookmark);
    let changed = api.put_data("pods", "n", "a", "x", "2");
    api.delete("/api/v1/namespaces/n/pods/z");
    let gone = api.version();
    let new = api.put_data("pods", "n", "b", "x", "1");
    api.restore();
    assert_eq!(watch.object().await, (Modified, "a".into(), changed.version));
    assert_eq!(watch.object().await, (Deleted, "z".into(), gone));
    assert_eq!(watch.object().await, (Added, "b".into(), new.version));
    assert_eq!(api.lists(), 1);
    let resumed = api.requests().into_iter().rfind(|seen| seen.query.contains("watch=true")).unwrap();
    assert!(resumed.query.contains(&format!("resourceVersion={bookmark}&")), "{}", resumed.query);
}

#[tokio::test]
async fn a_watch_that_outlives_a_cut_goes_on_and_is_known_to() {
    for outlives in [true, false] {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("pods", "n", "a", "x", "1");
        let wire = Wire::to(api.address).await;
        let config = UpstreamConfig::over(&wire, &api);
        let hub = Hub::start_as(&config, dir.path(), Duration::from_secs(180)).await;
        let view = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
        until("the watch", async || (api.watches() == 1).then_some(())).await;
        lose(&wire);
        hub.reaches(LinkState::Offline).await;
        until("behind", async || (!view.is_followed()).then_some(())).await;
        let changed = api.put_data("pods", "n", "a", "x", "2");
        if !outlives {
            wire.forget();
        }
        find(&wire);
        hub.reaches(LinkState::Online).await;
        caught_up(&view, changed.version).await;
        until("followed again", async || view.is_followed().then_some(())).await;
        assert_eq!(api.watches(), 1 + usize::from(!outlives));
        assert_eq!(api.seen("GET", "/api/v1/pods").len(), 1 + api.watches());
    }
}

#[tokio::test]
async fn after_410_the_difference_comes_as_events_in_order() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        for name in ["same", "changed", "gone", "again"] {
            api.put_data("pods", "n", name, "x", "1");
        }
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let mut watch = Watch::start(
            &view,
            WatchOptions { bookmarks: true, ..options(Since::Exactly(view.resource_version())) },
        );
        let before = view.resource_version();
        api.cut();
        hub.reaches(LinkState::Offline).await;
        api.delete("/api/v1/namespaces/n/pods/gone");
        api.delete("/api/v1/namespaces/n/pods/again");
        let again = api.put_data("pods", "n", "again", "x", "2");
        let changed = api.put_data("pods", "n", "changed", "x", "2");
        let new = api.put_data("pods", "n", "new", "x", "1");
        api.compact();
        api.restore();
        // A deletion that is only inferred carries the newest version that is certain.
        assert_eq!(watch.object().await, (Deleted, "gone".into(), before));
        assert_eq!(watch.object().await, (Deleted, "again".into(), before));
        assert_eq!(watch.object().await, (Added, "again".into(), again.version));
        assert_eq!(watch.object().await, (Modified, "changed".into(), changed.version));
        assert_eq!(watch.object().await, (Added, "new".into(), new.version));
        caught_up(&view, api.version()).await;
        watch.is_silent().await;
        assert_eq!(api.lists(), 2);
        assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", encoding));
        // Whoever was away in the meantime gets the same, in whatever state it comes back.
        let mut late = Watch::start(&view, options(Since::Exactly(before)));
        let mut seen = Vec::new();
        for _ in 0..5 {
            let (event, name, _) = late.object().await;
            seen.push((event, name));
        }
        let expected =
            [(Deleted, "gone"), (Deleted, "again"), (Added, "again"), (Modified, "changed"), (Added, "new")];
        assert_eq!(seen, expected.map(|(event, name)| (event, name.to_owned())));
    }
}

#[tokio::test]
async fn a_killed_process_resumes_local_watches_offline_with_their_deletions() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("pods", "n", "a", "x", "1");
        api.put_data("pods", "n", "b", "x", "1");
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let before = view.resource_version();
        api.delete("/api/v1/namespaces/n/pods/a");
        let gone = api.version();
        let changed = api.put_data("pods", "n", "b", "x", "2");
        let new = api.put_data("pods", "n", "c", "x", "1");
        caught_up(&view, new.version).await;
        let remains = hub.remains(dir.path());
        api.cut();
        let hub = Hub::start(&api, remains.path()).await;
        let view = hub.views.open_at(&node(), &pods(encoding), before).await.unwrap();
        let mut watch = Watch::start(&view, options(Since::Exactly(before)));
        assert_eq!(watch.object().await, (Deleted, "a".into(), gone));
        assert_eq!(watch.object().await, (Modified, "b".into(), changed.version));
        assert_eq!(watch.object().await, (Added, "c".into(), new.version));
        watch.is_silent().await;
        let mut late = Watch::start(&view, options(Since::Exactly(changed.version)));
        assert_eq!(late.object().await, (Added, "c".into(), new.version));
        // Back online: upstream is resumed where the store was, without a list.
        let lists = api.lists();
        api.restore();
        let newest = api.put_data("pods", "n", "d", "x", "1");
        assert_eq!(watch.object().await, (Added, "d".into(), newest.version));
        assert_eq!(api.lists(), lists);
    }
}

#[tokio::test]
async fn offline_only_what_was_cached_is_answered() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    api.cut();
    hub.reaches(LinkState::Offline).await;
    let asked = Instant::now();
    hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let never = hub.views.open(&node(), &pods(Encoding::Protobuf)).await;
    assert!(matches!(never, Err(ViewError::NeverCached)), "{never:?}");
    assert!(asked.elapsed() < Duration::from_millis(50), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn an_error_of_the_server_reaches_the_opener_or_nobody() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    api.answer_with(Some(500));
    let failed = hub.views.open(&node(), &pods(Encoding::Json)).await;
    assert!(matches!(&failed, Err(ViewError::Upstream(response)) if response.code == 500), "{failed:?}");
    api.answer_with(None);
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Any));
    api.answer_with(Some(503));
    api.cut_connections();
    api.answer_with(None);
    let pod = api.put_data("pods", "n", "a", "x", "1");
    assert_eq!(watch.object().await, (Added, "a".into(), pod.version));
    assert!(hub.link.is_online());
}

#[tokio::test]
async fn a_restored_backup_ends_watches_and_is_listed_anew() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for name in ["a", "b"] {
        api.put_data("pods", "n", name, "x", "1");
    }
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    api.cut();
    hub.reaches(LinkState::Offline).await;
    api.restore_backup();
    // A server that has compacted its history since.
    api.answer_with(Some(410));
    api.restore();
    let mut sync = view.sync.subscribe();
    tokio::time::timeout(Duration::from_secs(10), sync.wait_for(|state| state.failure.is_some()))
        .await
        .unwrap()
        .unwrap();
    api.answer_with(None);
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    assert!(watch.stream.next().await.is_none());
    assert_eq!(view.resource_version(), api.version());
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
}

#[tokio::test]
async fn a_backup_restored_with_a_bumped_revision_is_shown_as_it_is() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let old = api.put_data("pods", "n", "changed", "x", "old");
    api.put_data("pods", "n", "gone", "x", "1");
    let backup = api.backup();
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let changed = api.put_data("pods", "n", "changed", "x", "new");
    api.delete("/api/v1/namespaces/n/pods/gone");
    caught_up(&view, api.version()).await;
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    // The watch that is resumed is answered with 410; the list has a newer version, its objects have older ones.
    api.restore_from(backup, 1_000_000);
    caught_up(&view, api.version()).await;
    assert!(old.version < changed.version);
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    assert!(watch.stream.next().await.is_none());
}

#[tokio::test]
async fn a_watch_from_a_version_that_etcd_has_lost_is_not_silent_for_ever() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let backup = api.backup();
    let hub = Hub::start_with(&api, dir.path(), Duration::from_secs(2)).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    for number in 0..20 {
        api.put_data("pods", "n", &format!("lost-{number}"), "x", "1");
    }
    let bookmark = api.bookmark();
    caught_up(&view, bookmark).await;
    let mut watch = Watch::start(&view, options(Since::Exactly(bookmark)));
    // The watch is resumed, and accepted. What happens from now on has lower versions.
    api.restore_from(backup, 0);
    api.put_data("pods", "n", "new", "x", "1");
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
    assert_eq!(view.resource_version(), api.version());
    assert!(matches!(view.watch(options(Since::Exactly(bookmark))), Err(WatchError::Expired)));
    // From here on it follows as before, and silence alone is listed once.
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    let next = api.put_data("pods", "n", "next", "x", "1");
    assert_eq!(watch.object().await, (Added, "next".into(), next.version));
}

#[tokio::test]
async fn a_server_without_bookmarks_is_not_listed_again_and_again() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start_with(&api, dir.path(), Duration::from_millis(300)).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let asked = async |lists, watches| {
        let asked = async || ((api.lists(), api.watches()) == (lists, watches)).then_some(());
        until("a list after the silence", asked).await;
    };
    asked(2, 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((api.lists(), api.watches()), (2, 2));
    // There are some after all.
    caught_up(&view, api.bookmark()).await;
    asked(3, 3).await;
}

#[tokio::test]
async fn a_link_that_falls_while_somebody_waits_gives_nobody_a_right_that_has_expired() {
    let (permit, pods) = (service_account("t"), pods(Encoding::Json));
    for (since, told) in [(now(), true), (1, false)] {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("pods", "n", "a", "x", "1");
        let hub = Hub::start(&api, dir.path()).await;
        hub.views.open(&permit, &pods).await.unwrap();
        let remains = hub.remains(dir.path());
        drop(hub);
        let hub = Hub::start(&api, remains.path()).await;
        hub.reaches(LinkState::Online).await;
        let view = hub.views.find(&permit, &pods, Question::Any).unwrap();
        view.sync.send_modify(|sync| sync.state = State::Behind { since, why: Why::Unfollowed, heard: 0 });
        api.fault(When::path("/api/v1/pods"), Fault::Stall);
        let asked = api.requests().len();
        let opened = tokio::spawn({
            let (views, permit, pods) = (hub.views.clone(), permit.clone(), pods.clone());
            async move { views.open(&permit, &pods).await }
        });
        let waits = || api.requests()[asked..].iter().any(|seen| seen.path == "/api/v1/pods");
        until("somebody waits", async || waits().then_some(())).await;
        api.cut();
        let opened = tokio::time::timeout(Duration::from_secs(10), opened).await.unwrap().unwrap();
        assert_eq!(opened.is_ok(), told, "{opened:?}");
        assert!(told || matches!(opened, Err(ViewError::NeverCached)));
    }
}
