//! Single objects, local versions, Secrets.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::replica::Publishing;
use crate::view::overlay::{Book, PodNow};
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

#[tokio::test]
async fn slices_show_the_nodes_pods_until_the_book_says_nothing_of_them() {
    const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices";
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let put = |name: &str, ip: &str| {
        let target = json!({"kind": "Pod", "namespace": "n", "name": "a", "uid": "u-1"});
        api.put(
            SLICES,
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                   "metadata": {"name": name}, "endpoints": [{"addresses": [ip], "targetRef": target}]}),
        );
    };
    put("one", "10.0.0.1");
    let hub = Hub::start(&api, dir.path()).await;
    let slices = |encoding| {
        ViewSpec::new(Resource::new("discovery.k8s.io", "v1", "endpointslices"), None, "", "", encoding)
    };
    let shows = |view: &View, ip: &str| {
        let body = view.list().unwrap().body;
        body.windows(ip.len()).filter(|window| *window == ip.as_bytes()).count()
    };
    let first = hub.views.open(&node(), &slices(Encoding::Protobuf)).await.unwrap();
    let pod =
        json!({"metadata": {"namespace": "n", "name": "a", "uid": "u-1"}, "status": {"podIP": "10.7.7.7"}});
    let pods = HashMap::from([("u-1".to_owned(), PodNow::of(&pod))]);
    hub.views.show(Book::new(pods, HashSet::new())).await;
    assert_eq!((shows(&first, "10.7.7.7"), shows(&first, "10.0.0.1")), (1, 0));
    // A view that is listed afterwards, and a slice that comes afterwards, are shown like it from the first moment.
    let late = hub.views.open(&service_account("t"), &slices(Encoding::Json)).await.unwrap();
    assert_eq!((shows(&late, "10.7.7.7"), shows(&late, "10.0.0.1")), (1, 0));
    let mut watch = Watch::start(&late, options(Since::Exactly(late.resource_version())));
    let mut next = async || {
        let frame = watch.stream.next().await.unwrap();
        let Event::Object { event_type, item, .. } = decode(Encoding::Json, &frame) else {
            panic!("{frame:?}")
        };
        (event_type, String::from_utf8(item.body.to_vec()).unwrap())
    };
    assert!(
        next().await.1.contains("10.7.7.7"),
        "what was shown is shown again to one who comes with a version"
    );
    put("two", "10.0.0.2");
    let (event_type, body) = next().await;
    assert!(event_type == EventType::Added && body.contains("10.7.7.7"), "{body}");

    // The process ends, and the next one knows of no such pod.
    let remains = hub.remains(dir.path());
    let hub = Hub::start(&api, remains.path()).await;
    let views = [
        hub.views.open(&node(), &slices(Encoding::Protobuf)).await.unwrap(),
        hub.views.open(&service_account("t"), &slices(Encoding::Json)).await.unwrap(),
    ];
    assert!(views.iter().all(|view| shows(view, "10.7.7.7") == 2), "until it has looked");
    hub.views.show(Book::default()).await;
    for view in views {
        let shown = ["10.7.7.7", "10.0.0.1", "10.0.0.2"].map(|ip| shows(&view, ip));
        assert_eq!(shown, [0, 1, 1]);
    }
}

#[tokio::test]
async fn services_that_publish_what_is_not_ready_are_known_from_any_view() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for (name, publishes) in [("open", true), ("shy", false)] {
        let spec = json!({"clusterIP": "None", "publishNotReadyAddresses": publishes});
        let service =
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec});
        api.put("/api/v1/namespaces/n/services", service);
    }
    let hub = Hub::start(&api, dir.path()).await;
    let mut known = Publishing::default();
    assert!(hub.views.publishing(&mut known).is_empty());
    hub.views.open(&service_account("t"), &spec("services", "", "", Encoding::Json)).await.unwrap();
    assert_eq!(*hub.views.publishing(&mut known), HashSet::from([("n".to_owned(), "open".to_owned())]));
}

#[tokio::test]
async fn a_right_that_nobody_has_asked_about_for_long_is_not_believed_without_the_api_server() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("secrets", "n", "s", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let secrets = spec("secrets", "", "", Encoding::Json);
    let resource = Resource::new("", "v1", "secrets");
    for (permit, why, told) in [
        (service_account("t"), Why::Unfollowed, false),
        (service_account("t"), Why::Disconnected, true),
        (node(), Why::Unfollowed, true),
    ] {
        let view = hub.views.open(&permit, &secrets).await.unwrap();
        let state = State::Behind { since: now() - 9 * 24 * 3600, why, heard: 0 };
        view.sync.send_modify(|sync| sync.state = state);
        assert_eq!(hub.views.find(&permit, &secrets, Question::AsLastKnown).is_some(), told, "{why:?}");
        let found = hub.views.lookup(&permit, &resource, Some("n"), "s", &ENCODINGS);
        assert_eq!(matches!(found, Lookup::Found { .. }), told, "{found:?}");
        let absent = hub.views.lookup(&permit, &resource, Some("n"), "absent", &ENCODINGS);
        assert_eq!(matches!(absent, Lookup::ProvenAbsent { .. }), told, "{absent:?}");
        view.sync.send_modify(|sync| sync.state = State::Following { seen: now() });
    }
}
