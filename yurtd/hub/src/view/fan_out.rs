//! What one event costs for a hundred and a thousand watchers of a view, out of memory and out of the log, in one run:
//!
//! ```text
//! cargo test -p yurt-hub --lib --config 'profile.test.package.yurt-hub.opt-level=3' fan_out -- --ignored --nocapture
//! ```
//!
//! On one thread, so that time is work: from the moment when the transaction is committed until the last watcher has taken
//! the event. In it are the encoding, the wake-ups, tokio's scheduling and [`WatchStream`](super::WatchStream); HTTP and TLS
//! are not, nor is the transaction. What is printed is nothing to assert: machines differ.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::task::{LocalSet, yield_now};
use tokio::time::Instant;

use super::record::ViewId;
use super::table::Change;
use super::{Identity, Since, Stored, View, ViewRecord, ViewSpec, WatchOptions};
use crate::store::{Durability, Store, Table};
use crate::wire::{Encoding, EventType, Item, ListPage, ObjectMeta, Resource, TypeMeta};

const ID: ViewId = ViewId(1);
const OBJECTS: u64 = 100;
const ROUNDS: u64 = 200;

fn pod(number: u64, version: u64) -> Item {
    let name = format!("pod-{number}");
    let text = format!(
        r#"{{"metadata":{{"name":"{name}","uid":"{number}","resourceVersion":"{version}"}},"spec":"{}"}}"#,
        "x".repeat(3000)
    );
    let (uid, namespace) = (number.to_string(), String::new());
    Item { meta: ObjectMeta { name, namespace, uid, resource_version: version }, body: text.into() }
}

async fn view(store: &Store, ring: usize) -> Arc<View> {
    let spec = ViewSpec::new(Resource::new("", "v1", "pods"), None, "", "", Encoding::Json);
    let record = ViewRecord::new("node", &spec, 0);
    let (stored, identity) = (Stored::default(), Identity::new("node"));
    let view = Arc::new(View::new(ID, identity, spec, store.read_only(), stored, Some(&record)));
    view.ring.set_limit(ring);
    let page = ListPage {
        kind: TypeMeta::new("v1", "Pod"),
        resource_version: OBJECTS,
        continue_token: None,
        items: (1..=OBJECTS).map(|number| pod(number, number)).collect(),
    };
    let (table, told) = (Arc::clone(&view), Arc::clone(&view));
    let job = move |tx: &mut crate::store::Tx<'_>| {
        tx.put(Table::Views, &ID.prefix(), &record.encode()?)?;
        let mut table = table.table(tx)?;
        table.apply_list(&page, 0, 0)?;
        table.save()
    };
    store.write_then(Durability::Soon, job, move |written| told.publish(written)).await.unwrap();
    view
}

/// Microseconds a watcher, the median of all rounds.
async fn cost(watchers: usize, ring: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open_with(dir.path(), 64 << 20).unwrap();
    let view = view(&store, ring).await;
    let taken = Rc::new(Cell::new(0));
    for _ in 0..watchers {
        let options = WatchOptions {
            since: Since::Exactly(OBJECTS),
            send_initial_events: false,
            bookmarks: true,
            ends_at: Instant::now() + Duration::from_secs(3600),
        };
        let mut stream = view.watch(options).unwrap();
        let taken = Rc::clone(&taken);
        tokio::task::spawn_local(async move {
            while let Some(frame) = stream.next().await {
                assert!(frame.len() > 3000);
                taken.set(taken.get() + 1);
            }
        });
    }
    yield_now().await;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        let item = pod(1 + round % OBJECTS, OBJECTS + round);
        let changes = [Change { event_type: EventType::Modified, item }];
        let table = Arc::clone(&view);
        let written = store.write(Durability::Soon, move |tx| {
            let mut table = table.table(tx)?;
            table.apply_events(&changes, 0)?;
            table.save()
        });
        let mut written = written.await.unwrap();
        taken.set(0);
        let begin = std::time::Instant::now();
        view.publish(&mut written);
        while taken.get() < watchers {
            yield_now().await;
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6 / watchers as f64);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
#[ignore = "prints figures"]
fn fan_out() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    println!("| watchers | out of the log | out of memory |\n|---|---|---|");
    for watchers in [100, 1000] {
        let (log, ring) = LocalSet::new()
            .block_on(&runtime, async { (cost(watchers, 0).await, cost(watchers, 512 << 10).await) });
        println!("| {watchers} | {log:.2} µs | {ring:.2} µs |");
    }
}
