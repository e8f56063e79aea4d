//! Views that are fed from wider ones: a collection crosses the uplink once, whoever reads it.

use proptest::prelude::*;

use super::*;

const PATH: &str = "/api/v1/services";
pub(super) const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const NOT_HEADLESS: &str = "spec.clusterIP!=None";
const NO_PROXY_NAME: &str = "!service.kubernetes.io/service-proxy-name";

pub(super) fn services(labels: &str, fields: &str, encoding: Encoding) -> ViewSpec {
    spec("services", labels, fields, encoding)
}

/// As kubelet, kube-proxy and CoreDNS ask for Services.
pub(super) fn three() -> [(Permit, ViewSpec); 3] {
    let encoding = Encoding::Protobuf;
    [
        (node(), services("", NOT_HEADLESS, encoding)),
        (proxy(), services(NO_PROXY_NAME, NOT_HEADLESS, encoding)),
        (service_account("dns"), services("", "", encoding)),
    ]
}

pub(super) fn proxy() -> Permit {
    let credential = Credential::Bearer(BearerToken::new("proxy"));
    let identity = Identity::new("system:serviceaccount:kube-system:kube-proxy");
    Permit::for_test(Caller { identity, credential })
}

pub(super) fn put(api: &FakeApi, name: &str, labels: serde_json::Value, cluster_ip: &str) -> u64 {
    let path = format!("/api/v1/namespaces/shop/services/{name}");
    api.put(&path, json!({"metadata": {"labels": labels}, "spec": {"clusterIP": cluster_ip}})).version
}

fn delete(api: &FakeApi, name: &str) -> u64 {
    api.delete(&format!("/api/v1/namespaces/shop/services/{name}"));
    api.version()
}

pub(super) fn filled(api: &FakeApi) {
    put(api, "plain", json!({}), "10.96.0.7");
    put(api, "headless", json!({}), "None");
    put(api, "named", json!({"service.kubernetes.io/service-proxy-name": "other"}), "10.96.0.8");
}

/// Lists and watches of Services that the API server has answered.
pub(super) fn asked(api: &FakeApi) -> (usize, usize) {
    let seen = api.seen("GET", PATH);
    let watches = seen.iter().filter(|seen| seen.is_watch()).count();
    (seen.len() - watches, watches)
}

pub(super) fn names(view: &View) -> Vec<String> {
    let list = split_list(view.spec().encoding(), &view.list().unwrap().body).unwrap();
    list.items.into_iter().map(|item| item.meta.name).collect()
}

/// As if there were no other view.
fn listed(api: &FakeApi, view: &View) -> bool {
    let spec = view.spec();
    if !spec.field_selector().is_empty() {
        return true;
    }
    view.list().unwrap().body == api.list("services", "Service", spec.label_selector(), spec.encoding())
}

pub(super) async fn open_three(hub: &Hub) -> Vec<Arc<View>> {
    let mut views = Vec::new();
    for (permit, spec) in three() {
        views.push(hub.views.open(&permit, &spec).await.unwrap());
    }
    views
}

/// Waits until each of these views is fed.
pub(super) async fn fed<'v>(views: impl IntoIterator<Item = &'v Arc<View>>) {
    for view in views {
        yurt_fakes::until("the view is fed", async || {
            (view.source().is_some() && view.is_followed()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn three_components_cost_one_list_and_one_watch() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    assert_eq!(names(&views[0]), ["named", "plain"]);
    assert_eq!(names(&views[1]), ["plain"]);
    assert_eq!(names(&views[2]), ["headless", "named", "plain"]);
    assert!(views.iter().all(|view| listed(&api, view)));
    let version = put(&api, "new", json!({}), "10.96.0.9");
    for view in &views {
        caught_up(view, version).await;
        assert!(names(view).contains(&"new".to_owned()));
    }
    assert_eq!(asked(&api), (1, 1));
    // kubelet's own right to a part follows from its right to all; the others were asked for by themselves.
    let reviews = api.seen("POST", REVIEWS);
    let by = |token: &str| reviews.iter().filter(|seen| seen.token.as_deref() == Some(token)).count();
    assert_eq!((reviews.len(), by("proxy"), by("dns")), (4, 2, 2));
    let first = &reviews.iter().find(|seen| seen.token.as_deref() == Some("proxy")).unwrap().json();
    let attributes = &first["spec"]["resourceAttributes"];
    assert_eq!(attributes["labelSelector"]["rawSelector"], NO_PROXY_NAME);
    assert_eq!(attributes["fieldSelector"]["rawSelector"], NOT_HEADLESS);
    // A bookmark moves all of them.
    let bookmark = api.bookmark();
    for view in &views {
        caught_up(view, bookmark).await;
    }
}

#[tokio::test]
async fn an_object_that_is_selected_no_more_is_deleted_as_it_was() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    let mut watch = Watch::start(&views[1], options(Since::Exactly(views[1].resource_version())));
    let named = json!({"service.kubernetes.io/service-proxy-name": "other"});
    let left = put(&api, "plain", named.clone(), "10.96.0.7");
    let Event::Object { event_type, item, .. } = watch.next().await else { panic!() };
    assert_eq!((event_type, item.meta.resource_version), (EventType::Deleted, left));
    assert!(!String::from_utf8_lossy(&item.body).contains("service-proxy-name"), "as it was");
    // Every version of it, once it is back.
    let versions: Vec<u64> =
        ["1", "2", "3"].iter().map(|a| put(&api, "plain", json!({"a": a}), "10.96.0.7")).collect();
    assert_eq!(watch.object().await, (EventType::Added, "plain".into(), versions[0]));
    for version in &versions[1..] {
        assert_eq!(watch.object().await, (EventType::Modified, "plain".into(), *version));
    }
    put(&api, "headless", json!({"b": "1"}), "None");
    let gone = delete(&api, "plain");
    assert_eq!(watch.object().await, (EventType::Deleted, "plain".into(), gone));
    assert_eq!(asked(&api), (1, 1));
}

#[tokio::test]
async fn who_may_not_read_it_is_refused_by_the_api_server_itself() {
    for verb in ["list", "watch"] {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        filled(&api);
        api.forbid("proxy", verb, "services");
        let hub = Hub::start(&api, dir.path()).await;
        let [(node, part), (proxy, narrow), _] = three();
        hub.views.open(&node, &part).await.unwrap();
        let refused = hub.views.open(&proxy, &narrow).await;
        match verb {
            "list" => {
                let refused = matches!(&refused, Err(ViewError::Upstream(response)) if response.code == 403);
                assert!(refused);
                assert!(hub.views.find(&proxy, &narrow, Question::Any).is_none());
            }
            // As without a source: it may list and not watch.
            _ => {
                let asks =
                    |seen: &api_server::Seen| seen.is_watch() && seen.token.as_deref() == Some("proxy");
                yurt_fakes::until("it asks itself", async || api.requests().iter().any(asks).then_some(()))
                    .await;
            }
        }
        assert_eq!(
            hub.views.all().iter().filter(|view| view.source().is_some()).count(),
            1,
            "kubelet's alone"
        );
    }
}

#[tokio::test]
async fn a_right_is_asked_for_again_when_the_link_is_back() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    api.cut();
    hub.reaches(LinkState::Offline).await;
    for view in &views {
        let mut sync = view.sync.subscribe();
        let lost = sync.wait_for(|sync| !sync.state.is_following());
        tokio::time::timeout(Duration::from_secs(5), lost).await.unwrap().unwrap();
        assert!(view.may_answer(Question::AsLastKnown));
    }
    api.forbid("proxy", "*", "services");
    let version = put(&api, "new", json!({}), "10.96.0.9");
    api.restore();
    caught_up(&views[0], version).await;
    caught_up(&views[2], version).await;
    let mut sync = views[1].sync.subscribe();
    let refused = sync.wait_for(|sync| sync.state.is_refused());
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap().unwrap();
    assert!(!names_of_any(&views[1]).contains(&"new".to_owned()), "nothing was told to it meanwhile");
}

pub(super) fn names_of_any(view: &View) -> Vec<String> {
    let mut names = Vec::new();
    view.for_each(|body| {
        names.push(crate::wire::object::meta(view.spec().encoding(), body).unwrap().name);
        Ok(())
    })
    .unwrap();
    names
}

/// Nothing is listed again by anybody: what was followed goes on from where it was.
#[tokio::test]
async fn a_view_whose_source_ends_goes_on_by_itself() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    // CoreDNS is the first.
    let [(node, part), (proxy, narrow), (dns, all)] = three();
    let source = hub.views.open(&dns, &all).await.unwrap();
    let kubelets = hub.views.open(&node, &part).await.unwrap();
    let proxys = hub.views.open(&proxy, &narrow).await.unwrap();
    fed([&kubelets, &proxys]).await;
    let mut watch = Watch::start(&proxys, options(Since::Exactly(proxys.resource_version())));
    let first = put(&api, "plain", json!({"a": "1"}), "10.96.0.7");
    assert_eq!(watch.object().await.2, first);
    assert_eq!(asked(&api), (1, 1));
    // Its pod is deleted.
    api.refuse_token("dns");
    api.cut_connections();
    let mut versions = vec![put(&api, "plain", json!({"a": "2"}), "10.96.0.7")];
    versions.push(delete(&api, "plain"));
    for version in versions {
        assert_eq!(watch.object().await.2, version);
    }
    caught_up(&kubelets, api.version()).await;
    yurt_fakes::until("the source is refused", async || (!source.is_followed()).then_some(())).await;
    let lists = asked(&api).0;
    assert_eq!(lists, 1);
    let watches: Vec<_> = api.seen("GET", PATH).into_iter().filter(|seen| seen.is_watch()).collect();
    assert!(
        watches.iter().any(|seen| seen.token.as_deref() == Some("proxy") && seen.query.contains("clusterIP"))
    );
}

/// What was opened before there was a wider view, and what was left by its source, is fed as soon as it has come to where
/// the source is: no event is missed and none is told twice.
#[tokio::test]
async fn a_view_with_a_watch_of_its_own_joins_a_source_between_two_events() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let narrow = services(NO_PROXY_NAME, "", Encoding::Json);
    let own = hub.views.open(&proxy(), &narrow).await.unwrap();
    let mut watch = Watch::start(&own, options(Since::Exactly(own.resource_version())));
    hub.views.open(&service_account("dns"), &services("", "", Encoding::Json)).await.unwrap();
    let mut expected = Vec::new();
    yurt_fakes::until("the view is fed", async || {
        expected.push(put(&api, "plain", json!({"a": expected.len().to_string()}), "10.96.0.7"));
        put(&api, "named", json!({"service.kubernetes.io/service-proxy-name": "x"}), "10.96.0.8");
        own.source().map(drop)
    })
    .await;
    expected.push(put(&api, "plain", json!({"a": "last"}), "10.96.0.7"));
    for version in expected {
        assert_eq!(watch.object().await.2, version);
    }
    watch.is_silent().await;
    assert_eq!(asked(&api), (2, 2));
}

#[tokio::test]
async fn a_cut_costs_one_watch_and_every_event_is_told() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    let mut watch = Watch::start(&views[1], options(Since::Exactly(views[1].resource_version())));
    caught_up(&views[1], put(&api, "plain", json!({"a": "0"}), "10.96.0.7")).await;
    watch.object().await;
    api.cut();
    hub.reaches(LinkState::Offline).await;
    let versions: Vec<u64> =
        ["1", "2", "3"].iter().map(|a| put(&api, "plain", json!({"a": a}), "10.96.0.7")).collect();
    let before = asked(&api);
    api.restore();
    for version in versions {
        assert_eq!(watch.object().await, (EventType::Modified, "plain".into(), version));
    }
    fed([&views[0], &views[1], &views[2]]).await;
    assert_eq!(asked(&api), (before.0, before.1 + 1));
}

/// Upstream waits for whoever is fed, and that one for those who watch it.
#[tokio::test]
async fn what_was_told_while_a_copy_waited_is_not_done_to_it_again() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let all = hub.views.open(&service_account("dns"), &services("", "", Encoding::Protobuf)).await.unwrap();
    caught_up(&all, api.version()).await;
    let places = hub.views.inner.followers.large_places(false);
    let held = places.acquire_many(crate::limits::LARGE_PAGES as u32).await.unwrap();
    let (views, spec) = (hub.views.clone(), services(NO_PROXY_NAME, NOT_HEADLESS, Encoding::Protobuf));
    let opening = tokio::spawn(async move { views.open(&proxy(), &spec).await.unwrap() });
    // Its source is tapped, and it waits for a place.
    yurt_fakes::until("the copy waits", async || all.is_tapped().then_some(())).await;
    for round in 0..3 {
        delete(&api, "plain");
        caught_up(&all, api.version()).await;
        put(&api, "plain", json!({"round": round.to_string()}), "10.96.0.7");
        caught_up(&all, api.version()).await;
    }
    let copied = api.version();
    drop(held);
    let view = opening.await.unwrap();
    fed([&view]).await;
    let options = WatchOptions { bookmarks: true, ..options(Since::Exactly(copied)) };
    let mut watch = Watch::start(&view, options);
    let next = put(&api, "plain", json!({"round": "last"}), "10.96.0.7");
    assert_eq!(
        watch.object().await,
        (EventType::Modified, "plain".into(), next),
        "nothing of before is told"
    );
    assert_eq!(names(&view), ["plain"]);
    // Its beginning, the object of the copy, and the last change.
    assert_eq!(view.list().unwrap().sequence, 3, "nothing of before was done again");
}

#[tokio::test]
async fn a_view_that_becomes_fed_ends_its_taps() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    fed(&views[..2]).await;
    // It tells nothing itself from now on, and nobody is to wait for it.
    let mut tap = views[1].tap();
    views[1].set_source(Some(&views[2]));
    assert!(tap.next().await.is_none());
    assert!(views[1].source().is_some());
}

/// What tells nothing any more is no source, however it came to that while somebody was about to be fed from it.
#[tokio::test]
async fn a_view_that_has_become_fed_is_refused_as_a_source() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let all = services("", "", Encoding::Json);
    let wide = hub.views.open(&service_account("dns"), &all).await.unwrap();
    caught_up(&wide, api.version()).await;
    api.fault(When::path(REVIEWS).token("proxy"), Fault::Stall);
    let (views, narrow) = (hub.views.clone(), services(NO_PROXY_NAME, "", Encoding::Json));
    let opening = tokio::spawn(async move { views.open(&proxy(), &narrow).await.unwrap() });
    yurt_fakes::until("its right is asked for", async || {
        (!api.seen("POST", REVIEWS).is_empty()).then_some(())
    })
    .await;
    let other = hub.views.open(&node(), &services("", "", Encoding::Protobuf)).await.unwrap();
    wide.set_source(Some(&other));
    let lists = asked(&api).0;
    api.no_faults();
    let view = opening.await.unwrap();
    assert_eq!(asked(&api).0, lists + 1, "it has asked for itself");
    assert!(view.source().is_none());
}

/// Not by its state: that of a view whose reflector was stopped says nothing of it.
#[tokio::test]
async fn who_waits_for_a_source_is_told_of_its_end() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    api.fault(When::path(PATH).token("dns"), Fault::Stall);
    let (views, all) = (hub.views.clone(), services("", "", Encoding::Json));
    let first = tokio::spawn(async move { views.open(&service_account("dns"), &all).await });
    yurt_fakes::until("the source lists", async || (asked(&api).0 == 1).then_some(())).await;
    let (views, narrow) = (hub.views.clone(), services(NO_PROXY_NAME, "", Encoding::Json));
    let opening = tokio::spawn(async move { views.open(&proxy(), &narrow).await.unwrap() });
    let source = hub.views.all().into_iter().find(|view| view.spec().label_selector().is_empty()).unwrap();
    yurt_fakes::until("somebody waits for it", async || (source.sync.receiver_count() > 1).then_some(()))
        .await;
    hub.views.inner.followers.end(&source).await;
    let view = tokio::time::timeout(Duration::from_secs(5), opening).await.unwrap().unwrap();
    assert_eq!((asked(&api).0, names(&view).len()), (2, 2));
    first.abort();
}

#[tokio::test]
async fn a_burst_of_many_megabytes_is_told_event_by_event() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    let mut watch = Watch::start(&views[1], options(Since::Exactly(views[1].resource_version())));
    api.cut();
    hub.reaches(LinkState::Offline).await;
    let before = asked(&api);
    let large = |number: usize| {
        let metadata = json!({"annotations": {"a": number.to_string(), "b": "x".repeat(50_000)}});
        let service = json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.7"}});
        api.put("/api/v1/namespaces/shop/services/plain", service).version
    };
    let versions: Vec<u64> = (0..150).map(large).collect();
    api.restore();
    for version in versions {
        assert_eq!(watch.object().await, (EventType::Modified, "plain".into(), version));
    }
    fed(&views).await;
    assert_eq!(asked(&api), (before.0, before.1 + 1));
}

#[tokio::test]
async fn a_source_that_lists_again_is_heard_as_changes() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    let mut watch = Watch::start(&views[1], options(Since::Exactly(views[1].resource_version())));
    api.cut();
    hub.reaches(LinkState::Offline).await;
    put(&api, "plain", json!({"a": "1"}), "10.96.0.7");
    let changed = put(&api, "plain", json!({"a": "2"}), "10.96.0.7");
    let added = put(&api, "new", json!({}), "10.96.0.9");
    put(&api, "named", json!({"service.kubernetes.io/service-proxy-name": "x"}), "10.96.0.8");
    api.compact();
    let before = asked(&api);
    api.restore();
    assert_eq!(watch.object().await, (EventType::Modified, "plain".into(), changed));
    assert_eq!(watch.object().await, (EventType::Added, "new".into(), added));
    fed(&views).await;
    let later = put(&api, "new", json!({"a": "1"}), "10.96.0.9");
    assert_eq!(watch.object().await, (EventType::Modified, "new".into(), later));
    assert_eq!(asked(&api).0, before.0 + 1, "one list for all");
}

#[tokio::test]
async fn after_a_restart_one_watch_goes_on_for_all() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let views = open_three(&hub).await;
    let at: Vec<u64> = views.iter().map(|view| view.resource_version()).collect();
    let version = put(&api, "plain", json!({"a": "1"}), "10.96.0.7");
    for view in &views {
        caught_up(view, version).await;
    }
    hub.views.save().await.unwrap();
    let remains = hub.remains(dir.path());
    drop((views, hub));
    let later = put(&api, "plain", json!({"a": "2"}), "10.96.0.7");
    let (lists, watches) = asked(&api);
    let hub = Hub::start(&api, remains.path()).await;
    for ((permit, spec), since) in three().iter().zip(at) {
        let view = hub.views.open_at(permit, spec, since).await.unwrap();
        caught_up(&view, later).await;
        let mut watch = Watch::start(&view, options(Since::Exactly(since)));
        assert_eq!(watch.object().await.2, later);
        fed([&view]).await;
    }
    assert_eq!(asked(&api), (lists, watches + 1));
}

#[tokio::test]
async fn without_a_link_nobody_is_given_what_it_has_not_read_before() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let [(node, part), (proxy, narrow), (dns, all)] = three();
    hub.views.open(&node, &part).await.unwrap();
    hub.views.open(&dns, &all).await.unwrap();
    api.cut();
    hub.reaches(LinkState::Offline).await;
    assert!(hub.views.open(&dns, &all).await.is_ok());
    assert!(matches!(hub.views.open(&proxy, &narrow).await, Err(ViewError::NeverCached)));
}

/// In JSON nothing is widened, and another encoding is no source; nor are other resources shared.
#[tokio::test]
async fn nothing_is_fed_across_encodings_or_of_what_is_not_shared() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    api.put_data("secrets", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&service_account("dns"), &services("", "", Encoding::Protobuf)).await.unwrap();
    hub.views.open(&node(), &services("", NOT_HEADLESS, Encoding::Json)).await.unwrap();
    assert_eq!(asked(&api).0, 2);
    for permit in [node(), proxy()] {
        hub.views.open(&permit, &spec("secrets", "", "", Encoding::Json)).await.unwrap();
    }
    assert_eq!(api.seen("GET", "/api/v1/secrets").iter().filter(|seen| !seen.is_watch()).count(), 2);
    assert!(hub.views.all().iter().all(|view| view.source().is_none()));
}

/// With another way in kubelet reads Services in another encoding. What it read before is kept until it has something in
/// its place, and not followed beside it.
#[tokio::test]
async fn services_are_kept_for_kubelet_in_one_encoding() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    filled(&api);
    let hub = Hub::start(&api, dir.path()).await;
    let kept = |view: &View| {
        hub.views.follow_needed();
        view.is_kept()
    };
    let former = hub.views.open(&node(), &services("", NOT_HEADLESS, Encoding::Json)).await.unwrap();
    former.used_at(crate::clock::steady() - 10);
    assert!(kept(&former));
    let now = hub.views.open(&node(), &services("", NOT_HEADLESS, Encoding::Protobuf)).await.unwrap();
    assert!(kept(&now) && !kept(&former));
    assert!(kept(&now.source().unwrap()));
}

/// What is done to one of a few Services.
#[derive(Debug, Clone)]
enum Done {
    Put { label: Option<u8>, headless: bool },
    Delete,
}

fn done() -> impl Strategy<Value = (usize, Done)> {
    let put = (proptest::option::of(0..2_u8), any::<bool>())
        .prop_map(|(label, headless)| Done::Put { label, headless });
    (0..3_usize, prop_oneof![4 => put, 1 => Just(Done::Delete)])
}

fn apply(api: &FakeApi, (which, done): &(usize, Done)) {
    let name = ["a", "b", "c"][*which];
    match done {
        Done::Put { label, headless } => {
            let labels = label.map_or(json!({}), |value| json!({"l": value.to_string()}));
            put(api, name, labels, if *headless { "None" } else { "10.96.0.7" });
        }
        Done::Delete if api.get(&format!("/api/v1/namespaces/shop/services/{name}")).is_some() => {
            delete(api, name);
        }
        Done::Delete => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whoever watches a view that is fed is sent, byte for byte, what the API server sends for the same selectors.
    #[test]
    fn a_fed_view_tells_what_the_api_server_tells(
        before in proptest::collection::vec(done(), 0..8),
        after in proptest::collection::vec(done(), 1..24),
        labels in prop_oneof![Just(""), Just("l"), Just("!l"), Just("l=1"), Just("l!=1"), Just("l in (0)")],
        fields in prop_oneof![Just(""), Just(NOT_HEADLESS), Just("metadata.name=a")],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (api, dirs) = (FakeApi::start().await, [(); 2].map(|()| tempfile::tempdir().unwrap()));
            before.iter().for_each(|done| apply(&api, done));
            let narrow = services(labels, fields, Encoding::Json);
            let (fed_hub, own_hub) = (Hub::start(&api, dirs[0].path()).await, Hub::start(&api, dirs[1].path()).await);
            fed_hub.views.open(&service_account("dns"), &services("", "", Encoding::Json)).await.unwrap();
            let fed = fed_hub.views.open(&proxy(), &narrow).await.unwrap();
            let own = own_hub.views.open(&proxy(), &narrow).await.unwrap();
            assert!(fed.source().is_some() && own.source().is_none());
            assert_eq!(names(&fed), names(&own));
            let start = options(Since::Exactly(api.version()));
            let (mut one, mut other) = (Watch::start(&fed, start), Watch::start(&own, start));
            after.iter().for_each(|done| apply(&api, done));
            let end = api.bookmark();
            caught_up(&fed, end).await;
            caught_up(&own, end).await;
            loop {
                let wait = Duration::from_millis(50);
                let (fed, own) = (
                    tokio::time::timeout(wait, one.stream.next()).await.ok().flatten(),
                    tokio::time::timeout(wait, other.stream.next()).await.ok().flatten(),
                );
                assert_eq!(fed, own);
                if own.is_none() {
                    break;
                }
            }
            assert_eq!(fed.list().unwrap().body, own.list().unwrap().body);
        });
    }
}
