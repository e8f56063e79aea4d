//! Single objects, local versions, Secrets.

use super::*;
use crate::wire::EventType::{Deleted, Modified};

#[tokio::test]
async fn an_empty_view_of_one_name_proves_its_absence_and_nothing_else() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let resource = Resource::new("", "v1", "configmaps");
    let lookup = |permit: &Permit, name: &str| hub.views.lookup(permit, &resource, None, name, &ENCODINGS);
    let all = spec("configmaps", "", "metadata.name=x", Encoding::Json);
    assert!(matches!(lookup(&node(), "x"), Lookup::Unknown));
    hub.views.open(&node(), &all).await.unwrap();
    assert!(matches!(lookup(&node(), "x"), Lookup::ProvenAbsent { .. }));
    assert!(matches!(lookup(&node(), "y"), Lookup::Unknown));
    assert!(matches!(lookup(&service_account("t"), "x"), Lookup::Unknown));
}

#[tokio::test]
async fn an_object_is_found_as_a_get_answers_it() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let pod = api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let resource = Resource::new("", "v1", "pods");
    let found = hub.views.lookup(&node(), &resource, Some("n"), "a", &ENCODINGS);
    let Lookup::Found { encoding, body, .. } = found else { panic!("{found:?}") };
    assert_eq!(encoding, Encoding::Json);
    let expected = pod.json().replacen('{', "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",", 1) + "\n";
    assert_eq!(body, expected);
    // In an encoding nobody asked for it is there, but cannot be given, and nothing is proven.
    let found = hub.views.lookup(&node(), &resource, Some("n"), "a", &[Encoding::Protobuf]);
    assert!(matches!(found, Lookup::Unknown), "{found:?}");
}

#[tokio::test]
async fn a_local_change_is_seen_at_once_and_gives_way_to_upstream() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let pod = api.put_data("pods", "n", "a", "x", "old");
    let hub = Hub::start(&api, dir.path()).await;
    let resource = Resource::new("", "v1", "pods");
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    let local: serde_json::Value = serde_json::from_str(&pod.json().replace("old", "local")).unwrap();
    assert_eq!(hub.views.apply_local(&node(), &resource, Some("n"), "b", &local).await.unwrap(), 0);
    assert_eq!(hub.views.apply_local(&node(), &resource, Some("n"), "a", &local).await.unwrap(), 1);
    let has = |bytes: &Bytes, text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let frame = watch.stream.next().await.unwrap();
    assert!(has(&frame, "local"));
    assert!(
        matches!(decode(Encoding::Json, &frame), Event::Object { event_type: Modified, item, .. } if item.meta.resource_version == pod.version)
    );
    assert!(has(&view.list().unwrap().body, "local"));
    assert_eq!(listed_version(&view), api.version());
    // A watcher that comes with the newest version hears of it, also after a crash.
    let remains = hub.remains(dir.path());
    let mut late = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    assert!(has(&late.stream.next().await.unwrap(), "local"));
    // Dropped: upstream's version again.
    assert_eq!(hub.views.drop_local(&node(), &resource, Some("n"), "a").await.unwrap(), 1);
    assert!(has(&watch.stream.next().await.unwrap(), "old"));
    assert_eq!(hub.views.drop_local(&node(), &resource, Some("n"), "a").await.unwrap(), 0);

    let hub = Hub::start(&api, remains.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    assert!(has(&view.list().unwrap().body, "local"));
    // Upstream moves on: its word counts.
    let newer = api.put_data("pods", "n", "a", "x", "newer");
    caught_up(&view, newer.version).await;
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
}

#[tokio::test]
async fn secrets_are_unreadable_on_the_disk_and_readable_in_the_view() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("secrets", "n", "s", "x", "the-password");
        api.put_data("secrets", "n", "gone", "x", "the-password");
        let hub = Hub::start(&api, dir.path()).await;
        let secrets = spec("secrets", "", "", encoding);
        let view = hub.views.open(&node(), &secrets).await.unwrap();
        let before = view.resource_version();
        assert_eq!(view.list().unwrap().body, api.list("secrets", "Secret", "", encoding));
        api.put_data("secrets", "n", "s", "x", "the-password-2");
        api.delete("/api/v1/namespaces/n/secrets/gone");
        caught_up(&view, api.version()).await;
        let mut watch = Watch::start(&view, options(Since::Exactly(before)));
        assert_eq!(watch.object().await.0, Modified);
        assert_eq!(watch.object().await.0, Deleted);
        let file = std::fs::read(dir.path().join("store/data.mdb")).unwrap();
        assert!(!file.windows(12).any(|window| window == b"the-password"));
    }
}
