//! Lists and watches of a view that follows upstream.

use super::*;
use crate::wire::EventType::{Added, Deleted, Modified};

#[tokio::test]
async fn a_local_list_is_byte_for_byte_the_upstream_list() {
    for encoding in ENCODINGS {
        for page in [usize::MAX, 7] {
            let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
            api.page_size(page);
            for number in 0..50 {
                api.put_data("pods", ["a", "a-b", "b"][number % 3], &format!("pod-{number}"), "x", "data");
            }
            let hub = Hub::start(&api, dir.path()).await;
            let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
            let list = view.list().unwrap();
            assert_eq!(list.body, api.list("pods", "Pod", "", encoding));
            assert_eq!(listed_version(&view), api.version());
            assert_eq!(list.content_type, encoding.content_type());
            // And from the disk, by a process that finds it there, offline.
            let remains = hub.remains(dir.path());
            api.cut();
            let hub = Hub::start(&api, remains.path()).await;
            let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
            assert_eq!(view.list().unwrap().body, list.body);
        }
    }
}

#[tokio::test]
async fn events_flow_and_the_list_follows() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        api.put_data("pods", "n", "old", "x", "1");
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &pods(encoding)).await.unwrap();
        let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
        let new = api.put_data("pods", "n", "new", "x", "1");
        assert_eq!(watch.object().await, (Added, "new".into(), new.version));
        let old = api.put_data("pods", "n", "old", "x", "2");
        assert_eq!(watch.object().await, (Modified, "old".into(), old.version));
        api.delete("/api/v1/namespaces/n/pods/new");
        assert_eq!(watch.object().await, (Deleted, "new".into(), api.version()));
        let bookmark = api.bookmark();
        caught_up(&view, bookmark).await;
        assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", encoding));
        assert_eq!((api.lists(), api.watches()), (1, 1));
    }
}

#[tokio::test]
async fn any_number_of_clients_cost_one_list_and_one_watch() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let (permit, pods) = (node(), pods(Encoding::Json));
    let opened = futures::future::join_all((0..20).map(|_| hub.views.open(&permit, &pods))).await;
    let view = opened[0].as_ref().unwrap();
    let mut watches: Vec<_> = (0..200).map(|_| Watch::start(view, options(Since::Any))).collect();
    let pod = api.put_data("pods", "n", "p", "x", "1");
    for watch in &mut watches {
        assert_eq!(watch.object().await, (Added, "p".into(), pod.version));
    }
    assert_eq!((api.lists(), api.watches()), (1, 1));
}

#[tokio::test]
async fn two_selectors_never_collide_and_transitions_are_events() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "p", "one", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let one = hub.views.open(&node(), &spec("pods", "app=one", "", Encoding::Json)).await.unwrap();
    let two = hub.views.open(&node(), &spec("pods", "app=two", "", Encoding::Json)).await.unwrap();
    assert_eq!(one.list().unwrap().body, api.list("pods", "Pod", "app=one", Encoding::Json));
    assert_eq!(two.list().unwrap().body, api.list("pods", "Pod", "app=two", Encoding::Json));
    let mut in_one = Watch::start(&one, options(Since::Exactly(one.resource_version())));
    let mut in_two = Watch::start(&two, options(Since::Exactly(two.resource_version())));
    let moved = api.put_data("pods", "n", "p", "two", "1");
    assert_eq!(in_one.object().await, (Deleted, "p".into(), moved.version));
    assert_eq!(in_two.object().await, (Added, "p".into(), moved.version));
}

#[tokio::test]
async fn identities_do_not_share_views() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    assert!(hub.views.find(&node(), &pods(Encoding::Json), Question::Any).is_some());
    assert!(hub.views.find(&service_account("t"), &pods(Encoding::Json), Question::Any).is_none());
    hub.views.open(&service_account("t"), &pods(Encoding::Json)).await.unwrap();
    let seen = api.requests();
    let lists: Vec<_> = seen.iter().filter(|seen| !seen.query.contains("watch")).collect();
    assert_eq!((lists[0].certificate, lists[1].token.as_deref()), (true, Some("t")));
}

#[tokio::test]
async fn a_collection_without_versions_is_no_view() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let core = api_server::Resource::core;
    let odd = Kind { name: "Odd".into(), numberless: true, ..Kind::default() };
    api.define(core("numberless"), odd);
    api.define(core("jsonly"), Kind::custom("JsonOnly"));
    let numberless = spec("numberless", "", "", Encoding::Json);
    for _ in 0..3 {
        assert!(matches!(hub.views.open(&node(), &numberless).await, Err(ViewError::NotAView)));
    }
    assert_eq!(api.lists(), 1, "it is asked once, not by every request");
    let only = spec("jsonly", "", "", Encoding::Protobuf);
    for _ in 0..3 {
        let refused = hub.views.open(&node(), &only).await;
        assert!(
            matches!(&refused, Err(ViewError::Upstream(response)) if response.code == 406),
            "{refused:?}"
        );
    }
    assert_eq!(api.lists(), 2);
    hub.views.open(&node(), &spec("jsonly", "", "", Encoding::Json)).await.unwrap();
    let missing = hub.views.open(&node(), &spec("nonsense", "", "", Encoding::Json)).await;
    assert!(matches!(&missing, Err(ViewError::Upstream(response)) if response.code == 404), "{missing:?}");
}

fn limits_asked(api: &FakeApi) -> Vec<usize> {
    let lists = api.requests().into_iter().filter(|seen| !seen.is_watch());
    let limit = |query: &str| query.split('&').find_map(|pair| pair.strip_prefix("limit=")?.parse().ok());
    lists.filter_map(|seen| limit(&seen.query)).collect()
}

#[tokio::test]
async fn pages_have_about_a_mebibyte_however_large_the_objects_are() {
    for encoding in ENCODINGS {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        for number in 0..12 {
            api.put_data("secrets", "n", &format!("large-{number:02}"), "x", &"x".repeat(900 << 10));
        }
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&node(), &spec("secrets", "", "", encoding)).await.unwrap();
        assert!(view.list().unwrap().body == api.list("secrets", "Secret", "", encoding));
        let asked = limits_asked(&api);
        assert_eq!(asked[..4], [250, 50, 10, 2], "what was too big is asked for in parts");
        assert!(asked[4..].iter().all(|limit| *limit == 1), "{asked:?}");
    }
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for number in 0..2000 {
        api.put_data("pods", "n", &format!("small-{number}"), "x", "data");
    }
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    assert_eq!(limits_asked(&api).len(), 3, "{:?}", limits_asked(&api));
}

#[tokio::test]
async fn a_collection_beyond_its_identitys_share_is_forwarded_and_leaves_nothing_behind() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for number in 0..9 {
        api.put_data("pods", "n", &format!("large-{number:02}"), "x", &"x".repeat(900 << 10));
    }
    // Of 64 MiB a tenth.
    let hub = Hub::start(&api, dir.path()).await;
    let pods = pods(Encoding::Json);
    let refused = hub.views.open(&service_account("t"), &pods).await;
    assert!(matches!(refused, Err(ViewError::NotAView)), "{refused:?}");
    let left = hub.store.read(|reader| {
        let mut left = 0;
        for table in [Table::Objects, Table::Log, Table::Staging, Table::Views] {
            reader.scan(table, &[], None, |_, _| {
                left += 1;
                Ok(true)
            })?;
        }
        Ok(left)
    });
    assert_eq!(left.unwrap(), 0);
    // kubelet's has no share: it is what the node is for.
    let view = hub.views.open(&node(), &pods).await.unwrap();
    assert!(view.list().unwrap().body == api.list("pods", "Pod", "", Encoding::Json));
    // Several that are small are counted together.
    let some = |app: &str| spec("configmaps", &format!("app={app}"), "", Encoding::Json);
    for app in ["a", "b", "c"] {
        for number in 0..3 {
            api.put_data("configmaps", "n", &format!("{app}-{number}"), app, &"x".repeat(900 << 10));
        }
    }
    hub.views.open(&service_account("t"), &some("a")).await.unwrap();
    hub.views.open(&service_account("t"), &some("b")).await.unwrap();
    let refused = hub.views.open(&service_account("t"), &some("c")).await;
    assert!(matches!(refused, Err(ViewError::NotAView)), "{refused:?}");
}

#[tokio::test]
async fn a_list_in_pages_writes_what_has_changed_and_one_that_has_changed_too_much_starts_over() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let put = |from: usize, to: usize, data: &str| {
        for number in from..to {
            api.put_data("pods", "n", &format!("pod-{number:03}"), "x", &data.repeat(4000));
        }
    };
    put(0, 300, "a");
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let is_upstreams = || view.list().unwrap().body == api.list("pods", "Pod", "", Encoding::Json);
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    api.cut();
    hub.reaches(LinkState::Offline).await;
    put(0, 3, "b");
    api.compact();
    api.restore();
    for name in ["pod-000", "pod-001", "pod-002"] {
        assert_eq!(watch.object().await.1, name);
    }
    caught_up(&view, api.version()).await;
    assert!(is_upstreams());
    api.cut();
    hub.reaches(LinkState::Offline).await;
    put(0, 200, "c");
    api.compact();
    api.restore();
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !(view.is_followed() && is_upstreams()) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
