//! Where a watch begins and how it ends.

use super::*;
use crate::wire::EventType::{Added, Deleted, Modified};

#[tokio::test]
async fn a_watch_from_before_the_view_is_expired() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let outcome = view.watch(options(Since::Exactly(view.resource_version() - 1)));
    assert!(matches!(outcome, Err(WatchError::Expired)));
}

#[tokio::test]
async fn a_watch_that_starts_a_view_misses_nothing_and_needs_no_410() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let listed = api.version();
    let view = hub.views.open_at(&node(), &pods(Encoding::Json), listed).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(listed)));
    let new = api.put_data("pods", "n", "b", "x", "1");
    assert_eq!(watch.object().await, (Added, "b".into(), new.version));
    assert!(api.requests()[0].query.contains("resourceVersionMatch=Exact"));
}

#[tokio::test]
async fn a_watch_ahead_of_the_view_is_not_sent_what_it_has() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    // A client that has listed upstream itself, past the next change.
    let ahead = view.resource_version() + 1;
    let mut watch = Watch::start(&view, options(Since::Exactly(ahead)));
    let known = api.put_data("pods", "n", "b", "x", "1");
    assert_eq!(known.version, ahead);
    let unknown = api.put_data("pods", "n", "c", "x", "1");
    assert_eq!(watch.object().await, (Added, "c".into(), unknown.version));
}

#[tokio::test]
async fn a_watch_list_is_ended_by_its_bookmark() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        // More than one batch.
        let data = "x".repeat(10_000);
        for number in 0..60 {
            api.put_data("pods", "n", &format!("pod-{number:02}"), "x", &data);
        }
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let with_end = WatchOptions { send_initial_events: true, bookmarks: true, ..options(Since::Any) };
        let mut watch = Watch::start(&view, with_end);
        for number in 0..60 {
            let (event, name, _) = watch.object().await;
            assert_eq!((event, name), (Added, format!("pod-{number:02}")));
        }
        let end = watch.stream.next().await.unwrap();
        assert!(
            end.windows(26).any(|window| window == b"k8s.io/initial-events-end\x12"
                || window == b"k8s.io/initial-events-end\"")
        );
        assert_eq!(decode(encoding, &end), Event::Bookmark { resource_version: api.version() });
        let new = api.put_data("pods", "n", "new", "x", "1");
        assert_eq!(watch.object().await, (Added, "new".into(), new.version));
    }
}

#[tokio::test]
async fn a_watch_list_of_nothing_ends_too() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let one = spec("configmaps", "", "metadata.name=x", Encoding::Protobuf);
    let view = hub.views.open(&node(), &one).await.unwrap();
    let mut watch = Watch::start(
        &view,
        WatchOptions { send_initial_events: true, bookmarks: true, ..options(Since::Any) },
    );
    assert_eq!(watch.next().await, Event::Bookmark { resource_version: api.version() });
}

#[tokio::test]
async fn forgotten_deletions_end_old_watches_with_410() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let first = view.resource_version();
    let mut slow = Watch::start(&view, options(Since::Exactly(first)));
    // More than is kept in memory for it.
    let data = "x".repeat(2000);
    for number in 0..600 {
        api.put_data("pods", "n", &format!("p{number}"), "x", &data);
        api.delete(&format!("/api/v1/namespaces/n/pods/p{number}"));
    }
    caught_up(&view, api.version()).await;
    assert!(matches!(view.watch(options(Since::Exactly(first))), Err(WatchError::Expired)));
    let mut expired = false;
    while let Some(frame) = slow.stream.next().await {
        expired = matches!(decode(Encoding::Json, &frame), Event::Error(status) if status.code == 410);
    }
    assert!(expired);
    assert!(view.watch(options(Since::Exactly(api.version()))).is_ok());
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark_before() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    let ends_at = Instant::now() + Duration::from_millis(2200);
    let mut watch = Watch::start(&view, WatchOptions { bookmarks: true, ends_at, ..options(Since::Any) });
    let mut silent = Watch::start(&view, WatchOptions { ends_at, ..options(Since::Any) });
    // One behind the state, one before the end.
    assert_eq!(watch.next().await, Event::Bookmark { resource_version: api.version() });
    assert_eq!(watch.next().await, Event::Bookmark { resource_version: api.version() });
    assert!(watch.stream.next().await.is_none());
    assert!(silent.stream.next().await.is_none());
    assert!(Instant::now() >= ends_at);
}

#[tokio::test]
async fn who_watches_sees_every_version_of_an_object_across_a_cut() {
    for (encoding, initial_events) in
        ENCODINGS.into_iter().flat_map(|encoding| [(encoding, false), (encoding, true)])
    {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let first = api.put_data("pods", "n", "a", "x", "0");
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let since = if initial_events { Since::Any } else { Since::Exactly(first.version) };
        let mut watch = Watch::start(
            &view,
            WatchOptions { send_initial_events: initial_events, bookmarks: initial_events, ..options(since) },
        );
        if initial_events {
            assert_eq!(watch.object().await, (Added, "a".into(), first.version));
            assert_eq!(watch.next().await, Event::Bookmark { resource_version: first.version });
        }
        watch.is_silent().await;
        let put = |number: usize| api.put_data("pods", "n", "a", "x", &number.to_string()).version;
        let mut versions: Vec<u64> = (1..=25).map(put).collect();
        caught_up(&view, versions[24]).await;
        api.cut();
        hub.reaches(LinkState::Offline).await;
        versions.extend((26..=50).map(put));
        api.restore();
        for version in versions {
            assert_eq!(watch.object().await, (Modified, "a".into(), version), "{encoding:?}");
        }
    }
}

#[tokio::test]
async fn what_comes_and_goes_at_once_is_seen_to_come_and_go() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
        watch.is_silent().await;
        let mut expected = Vec::new();
        for name in ["a", "b", "a"] {
            expected.push((Added, name.to_owned(), api.put_data("pods", "n", name, "x", "1").version));
            api.delete(&format!("/api/v1/namespaces/n/pods/{name}"));
            expected.push((Deleted, name.to_owned(), api.version()));
        }
        for event in expected {
            assert_eq!(watch.object().await, event);
        }
    }
}
