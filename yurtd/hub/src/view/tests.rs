//! Views against a fake API server, over real TLS and HTTP/2.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::caller::{Caller, Credential, Permit};
use crate::link::Link;
use crate::upstream::{Upstream, UpstreamConfig};
use crate::wire::frame::decode_event;
use crate::wire::{Event, EventType, FrameDecoder};
use yurt_fakes::api_server::{self, FakeApi, Kind};
use yurt_node::link::LinkState;
use yurt_node::token::BearerToken;

const ENCODINGS: [Encoding; 2] = [Encoding::Protobuf, Encoding::Json];

impl From<Encoding> for api_server::Encoding {
    fn from(encoding: Encoding) -> Self {
        if encoding.is_protobuf() { Self::Protobuf } else { Self::Json }
    }
}

/// Reads frames of a local watch, one event at a time.
fn decode(encoding: Encoding, frame: &Bytes) -> Event {
    let mut decoder = FrameDecoder::new(encoding);
    decoder.push(frame);
    let event = decode_event(encoding, &decoder.next_frame().unwrap().unwrap()).unwrap();
    assert!(decoder.is_clean(), "more than one frame an item");
    event
}

struct Hub {
    views: Views,
    link: Link,
    store: Store,
    stop: CancellationToken,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Hub {
    async fn start(api: &FakeApi, dir: &Path) -> Self {
        let stop = CancellationToken::new();
        let (store, _) = Store::open_with(dir, 64 << 20).unwrap();
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(api), stop.clone()).unwrap();
        let views = Views::load(&store, &upstream, &link, &node(), stop.clone()).unwrap();
        assert_ne!(link.settled(Duration::from_secs(5)).await, LinkState::Unknown);
        Self { views, link, store, stop }
    }

    async fn reaches(&self, state: LinkState) {
        let mut states = self.link.subscribe();
        let reached = states.wait_for(|now| *now == state);
        tokio::time::timeout(Duration::from_secs(5), reached)
            .await
            .expect("the link changes in time")
            .unwrap();
    }

    /// What a killed process leaves on the disk.
    fn remains(&self, dir: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("store")).unwrap();
        for file in ["store.key", "store/data.mdb"] {
            std::fs::copy(dir.join(file), copy.path().join(file)).unwrap();
        }
        copy
    }
}

fn node() -> Permit {
    Permit::for_test(Caller { identity: Identity::new("system:node:edge-1"), credential: Credential::Node })
}

fn service_account(token: &str) -> Permit {
    let credential = Credential::Bearer(BearerToken::new(token));
    Permit::for_test(Caller { identity: Identity::new("system:serviceaccount:kube-system:dns"), credential })
}

fn spec(plural: &str, label: &str, field: &str, encoding: Encoding) -> ViewSpec {
    ViewSpec::new(Resource::new("", "v1", plural), None, label, field, encoding)
}

fn pods(encoding: Encoding) -> ViewSpec {
    spec("pods", "", "", encoding)
}

fn options(since: Since) -> WatchOptions {
    let ends_at = Instant::now() + Duration::from_secs(600);
    WatchOptions { since, send_initial_events: false, bookmarks: false, ends_at }
}

/// One local watcher.
struct Watch {
    encoding: Encoding,
    stream: WatchStream,
}

impl Watch {
    fn start(view: &Arc<View>, options: WatchOptions) -> Self {
        Self { encoding: view.spec().encoding(), stream: view.watch(options).unwrap() }
    }

    async fn next(&mut self) -> Event {
        let frame = tokio::time::timeout(Duration::from_secs(10), self.stream.next()).await;
        decode(self.encoding, &frame.expect("an event comes in time").expect("the watch goes on"))
    }

    /// Type, name and resourceVersion of the next event, which must be about an object.
    async fn object(&mut self) -> (EventType, String, u64) {
        match self.next().await {
            Event::Object { event_type, kind, item } => {
                assert!(!kind.kind.is_empty());
                (event_type, item.meta.name, item.meta.resource_version)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is there to be sent. Only of use when the view is known to have caught up.
    async fn is_silent(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(100), self.stream.next()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

async fn caught_up(view: &View, version: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(view.wait_for(version, deadline).await, "{} < {version}", view.resource_version());
}

use EventType::{Added, Deleted, Modified};

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
            assert_eq!(list.resource_version, api.version());
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
    assert!(!view.is_live());
    assert_eq!(
        hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap().list().unwrap().resource_version,
        bookmark
    );
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
        assert_eq!(watch.object().await, (Deleted, "again".into(), before));
        assert_eq!(watch.object().await, (Added, "again".into(), again.version));
        assert_eq!(watch.object().await, (Modified, "changed".into(), changed.version));
        assert_eq!(watch.object().await, (Added, "new".into(), new.version));
        assert_eq!(watch.object().await, (Deleted, "gone".into(), new.version));
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
            [(Deleted, "again"), (Added, "again"), (Modified, "changed"), (Added, "new"), (Deleted, "gone")];
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
async fn an_empty_view_of_one_name_proves_its_absence_and_nothing_else() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let resource = Resource::new("", "v1", "configmaps");
    let lookup = |permit: &Permit, name: &str| hub.views.lookup(permit, &resource, None, name, &ENCODINGS);
    let all = spec("configmaps", "", "metadata.name=x", Encoding::Json);
    assert!(matches!(lookup(&node(), "x"), Lookup::Unknown));
    hub.views.open(&node(), &all).await.unwrap();
    assert!(matches!(lookup(&node(), "x"), Lookup::ProvenAbsent));
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
    let Lookup::Found { encoding, body } = found else { panic!("{found:?}") };
    assert_eq!(encoding, Encoding::Json);
    let expected = pod.json().replacen('{', "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",", 1) + "\n";
    assert_eq!(body, expected);
    // In an encoding nobody asked for it is there, but cannot be given, and nothing is proven.
    let found = hub.views.lookup(&node(), &resource, Some("n"), "a", &[Encoding::Protobuf]);
    assert!(matches!(found, Lookup::Unknown), "{found:?}");
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
    assert!(hub.views.find(&node(), &pods(Encoding::Json)).is_some());
    assert!(hub.views.find(&service_account("t"), &pods(Encoding::Json)).is_none());
    hub.views.open(&service_account("t"), &pods(Encoding::Json)).await.unwrap();
    let seen = api.requests();
    let lists: Vec<_> = seen.iter().filter(|seen| !seen.query.contains("watch")).collect();
    assert_eq!((lists[0].certificate, lists[1].token.as_deref()), (true, Some("t")));
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
async fn a_refusal_is_handed_on_and_a_new_token_ends_it() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    api.refuse_token("old");
    let hub = Hub::start(&api, dir.path()).await;
    let refused = hub.views.open(&service_account("old"), &pods(Encoding::Json)).await;
    let Err(ViewError::Upstream(status)) = refused else { panic!("{refused:?}") };
    assert_eq!(
        (status.code.as_u16(), status.headers.get("audit-id").unwrap().as_bytes()),
        (401, &b"a-1"[..])
    );
    assert!(std::str::from_utf8(&status.body).unwrap().contains("Unauthorized"));
    let view = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await.unwrap();
    // The new token is refused in turn: what is there stays there, for when the link is down.
    api.refuse_token("new");
    api.cut_connections();
    let again = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await;
    let live_or_refused = again.is_err() || view.is_complete();
    assert!(live_or_refused);
    let mut status = view.status.subscribe();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|status| status.failure.is_some()))
        .await
        .unwrap()
        .unwrap();
    let refused = hub.views.open(&service_account("new"), &pods(Encoding::Json)).await;
    assert!(matches!(&refused, Err(ViewError::Upstream(status)) if status.code == 401), "{refused:?}");
    assert!(hub.views.find(&service_account("new"), &pods(Encoding::Json)).is_some());
    // And the next one is taken by the reflector that is there.
    let lists = api.lists();
    let view = hub.views.open(&service_account("newest"), &pods(Encoding::Json)).await.unwrap();
    assert!(view.is_live());
    assert_eq!(api.lists(), lists);
}

#[tokio::test]
async fn an_error_of_the_server_reaches_the_opener_or_nobody() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    api.answer_with(Some(500));
    let failed = hub.views.open(&node(), &pods(Encoding::Json)).await;
    assert!(matches!(&failed, Err(ViewError::Upstream(status)) if status.code == 500), "{failed:?}");
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
        assert!(matches!(&refused, Err(ViewError::Upstream(status)) if status.code == 406), "{refused:?}");
    }
    assert_eq!(api.lists(), 2);
    hub.views.open(&node(), &only.with_encoding(Encoding::Json)).await.unwrap();
    let missing = hub.views.open(&node(), &spec("nonsense", "", "", Encoding::Json)).await;
    assert!(matches!(&missing, Err(ViewError::Upstream(status)) if status.code == 404), "{missing:?}");
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
    assert_eq!(view.list().unwrap().resource_version, api.version());
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
async fn forgotten_deletions_end_old_watches_with_410() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let first = view.resource_version();
    let mut slow = Watch::start(&view, options(Since::Exactly(first)));
    for number in 0..600 {
        api.put_data("pods", "n", &format!("p{number}"), "x", "1");
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
    // Real servers answer a version from the future with an error; 410 stands for it here.
    api.answer_with(Some(410));
    api.restore();
    let mut status = view.status.subscribe();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|status| status.failure.is_some()))
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
async fn a_watch_ends_in_time_with_a_bookmark_before() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let view = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap();
    let ends_at = Instant::now() + Duration::from_millis(2200);
    let mut watch = Watch::start(&view, WatchOptions { bookmarks: true, ends_at, ..options(Since::Any) });
    let mut silent = Watch::start(&view, WatchOptions { ends_at, ..options(Since::Any) });
    assert_eq!(watch.next().await, Event::Bookmark { resource_version: api.version() });
    assert!(watch.stream.next().await.is_none());
    assert!(silent.stream.next().await.is_none());
    assert!(Instant::now() >= ends_at);
}

#[tokio::test]
async fn a_list_that_does_not_fit_leaves_the_view_as_it_was() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "small");
    let stop = CancellationToken::new();
    let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
    let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), stop.clone()).unwrap();
    let hub = Hub {
        views: Views::load(&store, &upstream, &link, &node(), stop.clone()).unwrap(),
        link,
        store,
        stop,
    };
    let view = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap();
    let before = view.list().unwrap();
    api.put_data("pods", "n", "big", "x", &"x".repeat(2 << 20));
    let mut status = view.status.subscribe();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|status| status.failure.is_some()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(view.list().unwrap().body, before.body);
    assert!(hub.store.stats().full);
    // Room again: the watch goes on where it was.
    api.delete("/api/v1/namespaces/n/pods/big");
    api.compact();
    view.poke.notify_one();
    caught_up(&view, api.version()).await;
    assert_eq!(view.list().unwrap().body, api.list("pods", "Pod", "", Encoding::Json));
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
    assert_eq!(hub.views.find(&node(), &pods(Encoding::Json)).unwrap().resource_version(), bookmark);
    hub.views.forget(60).await.unwrap();
    assert!(hub.views.find(&node(), &pods(Encoding::Json)).is_some());
    hub.views.find(&node(), &pods(Encoding::Json)).unwrap().used.store(0, Ordering::Relaxed);
    hub.views.forget(60).await.unwrap();
    assert!(hub.views.find(&node(), &pods(Encoding::Json)).is_none());
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
    hub.store
        .write(crate::store::Durability::Soon, move |tx| tx.put(Table::Objects, &key, b"bent"))
        .await
        .unwrap();
    assert!(matches!(view.list(), Err(StoreError::Damaged(_))));
    assert!(matches!(watch.next().await, Event::Error(status) if status.code == 410));
    let mut status = view.status.subscribe();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|status| status.live))
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
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    api.put_data("pods", "n", "a", "x", "1");
    let hub = Hub::start(&api, dir.path()).await;
    let damaged = hub.views.open(&node(), &pods(Encoding::Json)).await.unwrap().id;
    let kept = hub.views.open(&node(), &pods(Encoding::Protobuf)).await.unwrap().id;
    hub.store
        .write(crate::store::Durability::Durable, move |tx| tx.put(Table::Views, &damaged.prefix(), b"bent"))
        .await
        .unwrap();
    let remains = hub.remains(dir.path());
    let hub = Hub::start(&api, remains.path()).await;
    assert_eq!(hub.views.count(), (1, 1));
    let removed = async {
        loop {
            let (mut left, mut objects) = (Vec::new(), 0);
            hub.store
                .read(|reader| {
                    reader.scan(Table::Views, &[], None, |key, _| {
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
    let view = |spec: &ViewSpec| hub.views.find(&node(), spec);
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
    hub.views.keep();
    assert_eq!(pods.idle_at(later), 0);
    assert!(named.idle_at(later) >= MONTH, "no pod refers to it any more");
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
    let mut status = view.status.subscribe();
    let refused = status.wait_for(|status| status.refused);
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap().unwrap();
    assert!(watch.stream.next().await.is_none(), "who watches has to ask again");
    assert!(hub.views.find(&permit, &pods).is_none());
    assert!(matches!(lookup(&hub), Lookup::Refused));
    let online = hub.views.open(&permit, &pods).await;
    assert!(matches!(&online, Err(ViewError::Upstream(status)) if status.code == 403), "{online:?}");
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
    assert!(view.is_complete() && !view.is_refused());
    assert_eq!(api.lists(), lists + 1);
    assert!(matches!(lookup(&hub), Lookup::Found { .. }));
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
        (0..40).filter(|number| hub.views.find(permit, &selected(*number)).is_some()).count()
    };
    let open = async |permit: &Permit, number| hub.views.open(permit, &selected(number)).await.map(drop);
    // Twenty views here, a share is five.
    for number in 0..5 {
        open(&greedy(0), number).await.unwrap();
    }
    let full = open(&greedy(0), 5).await;
    assert!(matches!(full, Err(ViewError::NotAView)), "all are in use: {full:?}");
    let age = |permit: &Permit, number: usize, seconds: u64| {
        let view = hub.views.find(permit, &selected(number)).unwrap();
        view.used.store(now() - seconds, Ordering::Relaxed);
        view
    };
    for number in 0..5 {
        age(&greedy(0), number, 100 + number as u64);
    }
    let oldest = hub.views.find(&greedy(0), &selected(4)).unwrap();
    open(&greedy(0), 5).await.unwrap();
    assert_eq!(count(&greedy(0)), 5);
    assert!(hub.views.find(&greedy(0), &selected(4)).is_none(), "the one that was used longest ago");
    let gone = async {
        let stored = || hub.store.read(|reader| Ok(reader.get(Table::Views, &oldest.id.prefix())?.is_some()));
        while stored().unwrap() || oldest.is_live() {
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
async fn a_refusal_of_the_node_is_believed_when_it_lasts() {
    let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
    let hub = Hub::start(&api, dir.path()).await;
    let pods = pods(Encoding::Json);
    let view = hub.views.open(&node(), &pods).await.unwrap();
    // As an API server answers that has just started.
    api.answer_with(Some(403));
    api.cut_connections();
    let mut status = view.status.subscribe();
    let failed = status.wait_for(|status| status.failure.is_some());
    drop(tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap().unwrap());
    assert!(hub.views.open(&node(), &pods).await.is_err(), "online it is the answer");
    assert!(view.is_complete(), "and without a link the node has its pods");
    // It goes on saying so.
    let refused = status.wait_for(|status| status.refused);
    drop(tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap().unwrap());
    assert!(hub.views.find(&node(), &pods).is_none());
}
