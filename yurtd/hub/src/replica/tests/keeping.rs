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
