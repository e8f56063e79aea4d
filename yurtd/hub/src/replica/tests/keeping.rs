//! Which views are kept, and whose make room.

use super::*;

fn one(plural: &str, name: &str) -> ViewSpec {
    let field = format!("metadata.name={name}");
    ViewSpec::new(Resource::new("", "v1", plural), Some("n"), "", &field, Encoding::Protobuf)
}

#[tokio::test]
async fn what_the_nodes_pods_refer_to_is_followed_and_kept_however_long_nobody_asks() {
    const MONTH: u64 = 30 * 24 * 3600;
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    for name in ["named", "other"] {
        api.put_data("configmaps", "n", name, "x", "1");
    }
    let containers = json!([{"envFrom": [{"configMapRef": {"name": "named"}}]}]);
    let pod = json!({"spec": {"nodeName": "edge-1", "containers": containers}});
    api.put("/api/v1/namespaces/n/pods/p", pod);
    let hub = Hub::start(&api, dir.path()).await;
    let own_pods = spec("pods", "", "spec.nodeName=edge-1", Encoding::Json);
    for spec in [own_pods.clone(), one("configmaps", "named"), one("configmaps", "other")] {
        hub.views.open(&node(), &spec).await.unwrap();
    }
    let remains = hub.remains(dir.path());
    drop(hub);
    let hub = Hub::start(&api, remains.path()).await;
    let view = |spec: &ViewSpec| hub.views.find(&node(), spec, Question::Any);
    // A month later nobody has come for any of them.
    let later = now() + MONTH;
    hub.views.forget_at(7 * 24 * 3600, later).await.unwrap();
    assert!(view(&one("configmaps", "other")).is_none(), "nobody needs it");
    let (named, pods) = (view(&one("configmaps", "named")).unwrap(), view(&own_pods).unwrap());
    assert_eq!((named.idle_at(later), pods.idle_at(later)), (0, 0));
    // Nobody asks, and they are followed.
    let newer = api.put_data("configmaps", "n", "named", "x", "2");
    caught_up(&named, newer.version).await;
    api.delete("/api/v1/namespaces/n/pods/p");
    caught_up(&pods, api.version()).await;
    hub.views.follow_needed();
    assert_eq!(pods.idle_at(later), 0);
    assert!(named.idle_at(later) >= MONTH, "no pod refers to it any more");
}

#[tokio::test]
async fn what_an_identity_used_is_followed_after_a_restart_while_its_pod_is_on_the_node() {
    const MONTH: u64 = 30 * 24 * 3600;
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let of = |account: &str| json!({"spec": {"nodeName": "edge-1", "serviceAccountName": account}});
    api.put("/api/v1/namespaces/kube-system/pods/dns", of("dns"));
    api.put_data("configmaps", "n", "one", "x", "1");
    let stranger = || {
        let identity = Identity::new("system:serviceaccount:kube-system:stranger");
        Permit::for_test(Caller { identity, credential: Credential::Bearer(BearerToken::new("s")) })
    };
    let maps = spec("configmaps", "", "", Encoding::Protobuf);
    let own_pods = spec("pods", "", "spec.nodeName=edge-1", Encoding::Json);
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &own_pods).await.unwrap();
    for permit in [service_account("old"), stranger()] {
        hub.views.open(&permit, &maps).await.unwrap();
    }
    let remains = hub.remains(dir.path());
    drop(hub);

    let hub = Hub::start(&api, remains.path()).await;
    hub.views.open(&node(), &own_pods).await.unwrap();
    let view = |permit: &Permit| hub.views.find(permit, &maps, Question::Any).unwrap();
    let later = now() + MONTH;
    hub.views.follow_needed();
    assert_eq!(
        view(&service_account("")).idle_at(later),
        0,
        "kept, also before anything can be asked for it"
    );
    assert!(view(&stranger()).idle_at(later) >= MONTH, "no pod of it is here");
    // Nobody has come; the token is that of a stored reply to a TokenRequest.
    let asked = api.requests().len();
    hub.views.lend(&service_account("stored"));
    hub.views.lend(&stranger());
    let newer = api.put_data("configmaps", "n", "two", "x", "1");
    caught_up(&view(&service_account("")), newer.version).await;
    assert!(!view(&stranger()).is_followed());
    let tokens: Vec<_> = api.requests()[asked..].iter().filter_map(|seen| seen.token.clone()).collect();
    assert!(!tokens.is_empty() && tokens.iter().all(|token| token == "stored"), "{tokens:?}");

    api.delete("/api/v1/namespaces/kube-system/pods/dns");
    caught_up(&hub.views.find(&node(), &own_pods, Question::Any).unwrap(), api.version()).await;
    hub.views.follow_needed();
    assert!(view(&service_account("")).idle_at(later) >= MONTH, "its pod has gone");
}

#[tokio::test]
async fn what_an_identity_may_not_watch_is_not_listed_again_and_again_for_it() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let pod = json!({"spec": {"nodeName": "edge-1", "serviceAccountName": "dns"}});
    api.put("/api/v1/namespaces/kube-system/pods/dns", pod);
    let hub = Hub::start(&api, dir.path()).await;
    hub.views.open(&node(), &spec("pods", "", "spec.nodeName=edge-1", Encoding::Json)).await.unwrap();
    let maps = spec("configmaps", "", "", Encoding::Json);
    api.fault(When::path("/api/v1/configmaps").watching(true), Fault::Answer(403));
    let _ = hub.views.open(&service_account("t"), &maps).await;
    let view = hub.views.find(&service_account("t"), &maps, Question::Any).unwrap();
    let mut sync = view.sync.subscribe();
    let unwatchable = |sync: &crate::view::Sync| {
        matches!(sync.state, State::Behind { why: Why::CannotBeWatched, .. }) && sync.no_view_until.is_some()
    };
    let learnt = tokio::time::timeout(Duration::from_secs(20), sync.wait_for(unwatchable)).await;
    drop(learnt.expect("in time").unwrap());
    let ended = async {
        while hub.views.inner.followers.is_running(view.id) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("nobody can follow it");
    assert!(view.state().ends_watches(), "whoever watches is the API server's to answer");
    hub.views.follow_needed();
    assert!(!hub.views.inner.followers.is_running(view.id));
    // A list alone, which that identity is answered, shows nothing of watches.
    view.sync.send_modify(|sync| sync.state = State::Following { seen: now() });
    hub.views.follow_needed();
    assert!(!hub.views.inner.followers.is_running(view.id));
}

#[tokio::test]
async fn whoever_invents_selectors_drives_out_his_own_views_alone() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let selected = |number: usize| spec("pods", &format!("app={number}"), "", Encoding::Json);
    let greedy = |number: usize| {
        let credential = Credential::Bearer(BearerToken::new("t"));
        let identity = Identity::new(&format!("greedy-{number}"));
        Permit::for_test(Caller { identity, credential })
    };
    let count = |permit: &Permit| {
        (0..40).filter(|number| hub.views.find(permit, &selected(*number), Question::Any).is_some()).count()
    };
    let open = async |permit: &Permit, number| hub.views.open(permit, &selected(number)).await.map(drop);
    // Twenty views here, a share is five.
    for number in 0..5 {
        open(&greedy(0), number).await.unwrap();
    }
    let full = open(&greedy(0), 5).await;
    assert!(matches!(full, Err(ViewError::NotAView)), "all are in use: {full:?}");
    let age = |permit: &Permit, number: usize, seconds: u64| {
        let view = hub.views.find(permit, &selected(number), Question::Any).unwrap();
        view.used_at(now() - seconds);
        view
    };
    for number in 0..5 {
        age(&greedy(0), number, 100 + number as u64);
    }
    let oldest = hub.views.find(&greedy(0), &selected(4), Question::Any).unwrap();
    open(&greedy(0), 5).await.unwrap();
    assert_eq!(count(&greedy(0)), 5);
    assert!(
        hub.views.find(&greedy(0), &selected(4), Question::Any).is_none(),
        "the one that was used longest ago"
    );
    let gone = async {
        let stored = || hub.store.read(|reader| Ok(reader.get(Table::Views, &oldest.id.prefix())?.is_some()));
        while stored().unwrap() || oldest.is_followed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("with what is stored of it");
    // Others take what is there but kubelet's share.
    for (identity, number) in (1..=3).flat_map(|identity| (0..5).map(move |number| (identity, number))) {
        let opened = open(&greedy(identity), number).await;
        // Four of the first identity's are old: they make room.
        assert_eq!(opened.is_ok(), identity < 3 || number < 4, "{identity} {number} {opened:?}");
    }
    assert_eq!((1..=3).map(|identity| count(&greedy(identity))).sum::<usize>() + count(&greedy(0)), 15);
    for number in 0..5 {
        open(&node(), number).await.unwrap();
    }
    assert_eq!(count(&node()), 5);
}

#[tokio::test]
async fn a_view_that_was_removed_is_not_started_by_who_still_has_it() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let selected = spec("pods", "app=x", "", Encoding::Json);
    // It stands still, as after a restart.
    hub.views.open(&service_account("t"), &selected).await.unwrap();
    let remains = hub.remains(dir.path());
    drop(hub);
    let hub = Hub::start(&api, remains.path()).await;
    let view = hub.views.find(&service_account("t"), &selected, Question::Any).unwrap();
    hub.views.forget_at(60, now() + 3600).await.unwrap();
    hub.views.resume(&service_account("t"), &view);
    assert!(!hub.views.inner.followers.is_running(view.id));
    // Another one is made for who asks.
    let other = hub.views.open(&service_account("t"), &selected).await.unwrap();
    assert_ne!(other.id, view.id);
    let mut stored = Vec::new();
    hub.store
        .read(|reader| {
            reader.scan(Table::Views, &[], None, |key, _| {
                stored.push(key.to_vec());
                Ok(true)
            })
        })
        .unwrap();
    assert_eq!(stored, [other.id.prefix()]);
}

#[tokio::test]
async fn a_clock_that_jumps_makes_no_view_unused() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let pods = spec("pods", "", "", Encoding::Json);
    let view = hub.views.open(&service_account("t"), &pods).await.unwrap();
    view.used_at(crate::clock::steady() - 100);
    hub.views.save().await.unwrap();
    let record = hub
        .store
        .read(|reader| {
            crate::view::record::ViewRecord::decode(reader.get(Table::Views, &view.id.prefix())?.unwrap())
        })
        .unwrap();
    // A process that finds it while the clock is years behind takes it for used just now.
    let found = |used: u64| {
        let record = crate::view::record::ViewRecord { used, ..record.clone() };
        View::new(
            view.id,
            view.identity.clone(),
            pods.clone(),
            hub.store.read_only(),
            crate::view::Stored::default(),
            Some(&record),
        )
        .idle()
    };
    assert_eq!(found(now() + 50 * 365 * 24 * 3600), 0);
    assert!((99..=102).contains(&found(now() - 100)), "{}", found(now() - 100));
    assert!((99..=102).contains(&view.idle()));
    assert!(now() - view.used() >= 99);
}
