//! What the API server refuses.

use super::*;

#[tokio::test]
async fn a_refusal_is_handed_on_and_a_new_token_ends_it() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    api.refuse_token("old");
    let hub = Hub::start(&api, dir.path()).await;
    let refused = hub.views.open(&service_account("old"), &pods(Encoding::Json)).await;
    let Err(ViewError::Upstream(response)) = refused else { panic!("{refused:?}") };
    assert_eq!(
        (response.code.as_u16(), response.headers.get("audit-id").unwrap().as_bytes()),
        (401, &b"a-1"[..])
    );
    assert!(std::str::from_utf8(&response.body).unwrap().contains("Unauthorized"));
    let view = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await.unwrap();
    // The new token is refused in turn: what is there stays there, for when the link is down.
    api.refuse_token("new");
    api.cut_connections();
    let again = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await;
    let live_or_refused = again.is_err() || view.may_answer(Question::Any);
    assert!(live_or_refused);
    let mut sync = view.sync.subscribe();
    tokio::time::timeout(Duration::from_secs(10), sync.wait_for(|state| state.failure.is_some()))
        .await
        .unwrap()
        .unwrap();
    let refused = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await;
    assert!(matches!(&refused, Err(ViewError::Upstream(response)) if response.code == 401), "{refused:?}");
    assert!(hub.views.find(&service_account("new"), &pods(Encoding::Json), Question::Any).is_some());
    // And the next one is taken by the reflector that is there.
    let lists = api.lists();
    let view = hub.views.open(&service_account("newest"), &pods(Encoding::Json)).await.unwrap();
    assert!(view.is_followed());
    assert_eq!(api.lists(), lists);
}

#[tokio::test]
async fn a_view_that_was_refused_is_served_to_nobody_until_it_is_listed_again() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let (permit, pods, resource) =
        (service_account("t"), pods(Encoding::Json), Resource::new("", "v1", "pods"));
    let lookup = |hub: &Hub| hub.views.lookup(&permit, &resource, Some("n"), "a", &ENCODINGS);
    let view = hub.views.open(&permit, &pods).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    assert!(matches!(lookup(&hub), Lookup::Found { .. }));
    api.answer_with(Some(403));
    api.cut_connections();
    let mut sync = view.sync.subscribe();
    let refused = sync.wait_for(|sync| sync.state.is_refused());
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap().unwrap();
    assert!(watch.stream.next().await.is_none(), "who watches has to ask again");
    assert!(hub.views.find(&permit, &pods, Question::Any).is_none());
    assert!(matches!(lookup(&hub), Lookup::Refused));
    let online = hub.views.open(&permit, &pods).await;
    assert!(matches!(&online, Err(ViewError::Upstream(response)) if response.code == 403), "{online:?}");
    // The mark is on the disk.
    api.cut();
    hub.reaches(LinkState::Offline).await;
    assert!(matches!(hub.views.open(&permit, &pods).await, Err(ViewError::Refused)));
    let remains = hub.remains(dir.path());
    drop(hub);
    let hub = Hub::start(&api, remains.path()).await;
    assert!(matches!(hub.views.open_at(&permit, &pods, api.version()).await, Err(ViewError::Refused)));
    assert!(matches!(lookup(&hub), Lookup::Refused));
    // Allowed again: a list, even for those who only want to watch on.
    api.answer_with(None);
    api.restore();
    hub.reaches(LinkState::Online).await;
    let lists = api.lists();
    let view = hub.views.open_at(&permit, &pods, api.version()).await.unwrap();
    assert!(view.may_answer(Question::Any) && !view.is_refused());
    assert_eq!(api.lists(), lists + 1);
    assert!(matches!(lookup(&hub), Lookup::Found { .. }));
}

#[tokio::test]
async fn a_refusal_is_believed_when_it_lasts_whoever_is_refused() {
    let pods = pods(Encoding::Json);
    for permit in [node(), service_account("t")] {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let hub = Hub::start(&api, dir.path()).await;
        let view = hub.views.open(&permit, &pods).await.unwrap();
        let mut watch = Watch::start(&view, options(Since::Any));
        // As an API server answers that has just started.
        api.answer_with(Some(403));
        api.cut_connections();
        let mut sync = view.sync.subscribe();
        let failed = sync.wait_for(|state| state.failure.is_some());
        drop(tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap().unwrap());
        assert!(hub.views.open(&permit, &pods).await.is_err(), "online it is the answer");
        assert!(view.may_answer(Question::Any), "and without a link it has what it had");
        watch.is_silent().await;
        // It goes on saying so.
        let refused = sync.wait_for(|sync| sync.state.is_refused());
        drop(tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap().unwrap());
        assert!(hub.views.find(&permit, &pods, Question::Any).is_none());
    }
}

#[tokio::test]
async fn an_api_server_that_starts_badly_again_and_again_refuses_nobody_for_good() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let pods = pods(Encoding::Json);
    for permit in [node(), service_account("t")] {
        api.restore();
        api.answer_with(None);
        hub.reaches(LinkState::Online).await;
        let view = hub.views.open(&permit, &pods).await.unwrap();
        let mut sync = view.sync.subscribe();
        for _ in 0..2 {
            api.answer_with(Some(403));
            api.restore();
            api.cut_connections();
            let forbidden = |sync: &crate::view::Sync| {
                assert!(!sync.state.is_refused(), "it was refused for a moment, and gone for a while");
                matches!(sync.state, State::Behind { why: Why::Forbidden, .. })
            };
            drop(
                tokio::time::timeout(Duration::from_secs(10), sync.wait_for(forbidden))
                    .await
                    .unwrap()
                    .unwrap(),
            );
            api.cut();
            hub.reaches(LinkState::Offline).await;
            // Longer than a refusal has to last.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            let asked = view.state();
            assert!(view.may_answer(Question::AsLastKnown), "{asked:?}");
            api.answer_with(None);
            api.restore();
            hub.reaches(LinkState::Online).await;
            let followed = sync.wait_for(|sync| sync.state.is_following());
            let followed = tokio::time::timeout(Duration::from_secs(10), followed).await.is_ok();
            assert!(followed, "{:?}", *view.sync.borrow());
        }
    }
}

/// Two pods of one ServiceAccount: what one of them watches does not depend on the other's life.
#[tokio::test]
async fn a_token_that_ends_does_not_stop_the_views_of_the_identitys_other_pods() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&service_account("stays"), &pods(Encoding::Json)).await.unwrap();
    let mut watch = Watch::start(&view, options(Since::Exactly(view.resource_version())));
    // The watch upstream has begun.
    let first = api.put_data("pods", "n", "a", "x", "2");
    assert_eq!(watch.object().await.2, first.version);
    // The other pod comes last, and is deleted.
    hub.views.open(&service_account("goes"), &pods(Encoding::Json)).await.unwrap();
    api.refuse_token("goes");
    let asked = api.requests().len();
    api.cut_connections();
    let newer = api.put_data("pods", "n", "b", "x", "1");
    assert_eq!(watch.object().await.2, newer.version);
    let tokens: Vec<_> = api.requests()[asked..].iter().filter_map(|seen| seen.token.clone()).collect();
    assert_eq!(tokens, ["goes", "stays"], "one attempt each");
    // Not a failure that anybody hears of, and not tried again.
    assert!(view.sync.borrow().failure.is_none());
    api.cut_connections();
    let newer = api.put_data("pods", "n", "c", "x", "1");
    assert_eq!(watch.object().await.2, newer.version);
    assert_eq!(api.requests().last().unwrap().token.as_deref(), Some("stays"));
    // An ERROR event says the same.
    api.fault_times(When::watches().token("stays"), Fault::Error(401), 1);
    hub.views.open(&service_account("newest"), &pods(Encoding::Json)).await.unwrap();
    api.cut_connections();
    let newer = api.put_data("pods", "n", "d", "x", "1");
    assert_eq!(watch.object().await.2, newer.version);
}
