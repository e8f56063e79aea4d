//! Views and their reflectors against a fake API server, over real TLS and HTTP/2.

mod confirmed;
mod derived;
mod keeping;
mod link;
mod lists;
mod objects;
mod refusals;
mod storage;
mod watches;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_node::supervise::Tasks;

use super::Views;
use crate::caller::{Caller, Credential, Identity, Permit};
use crate::clock::{Boot, now};
use crate::link::Link;
use crate::store::{Durability, Store, StoreError, Table};
use crate::upstream::{Upstream, UpstreamConfig};
use crate::view::{
    Lookup, Question, Since, State, View, ViewError, ViewSpec, WatchError, WatchOptions, WatchStream, Why,
};
use crate::wire::frame::decode_event;
use crate::wire::{Encoding, Event, EventType, FrameDecoder, Resource, split_list};
use yurt_fakes::api_server::{self, FakeApi, Fault, Kind, When};
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
        Self::start_with(api, dir, Duration::from_secs(180)).await
    }

    /// One that does not believe watches which are silent for so long.
    async fn start_with(api: &FakeApi, dir: &Path, silence: Duration) -> Self {
        Self::start_as(&UpstreamConfig::of(api), dir, silence).await
    }

    /// One that runs in another boot of the node.
    async fn start_in(api: &FakeApi, dir: &Path, boot: &Boot) -> Self {
        Self::start_on(&UpstreamConfig::of(api), dir, boot, Duration::from_secs(180)).await
    }

    async fn start_as(config: &UpstreamConfig, dir: &Path, silence: Duration) -> Self {
        Self::start_on(config, dir, &boot(), silence).await
    }

    async fn start_on(config: &UpstreamConfig, dir: &Path, boot: &Boot, silence: Duration) -> Self {
        let stop = CancellationToken::new();
        let (store, _) = Store::open_with(dir, 64 << 20).unwrap();
        let (upstream, link) = Upstream::start(config, &Tasks::new(stop.clone())).unwrap();
        let tasks = Tasks::new(stop.clone());
        let views = Views::load_with(&store, &upstream, &link, &node(), boot, &tasks, silence).unwrap();
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

fn boot() -> Boot {
    Boot::new("this-one")
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

/// resourceVersion of the list that a client is sent.
fn listed_version(view: &View) -> u64 {
    split_list(view.spec().encoding(), &view.list().unwrap().body).unwrap().resource_version
}

async fn caught_up(view: &View, version: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(view.wait_for(version, deadline).await, "{} < {version}", view.resource_version());
}
