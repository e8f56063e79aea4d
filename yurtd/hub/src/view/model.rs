//! Any order of changes, lists, local changes, slow watchers, reconnections and restarts, with rings of any size and
//! transactions that are read before they are told, against a model: what a watcher has built from its events is in the
//! end what the view lists, and what the API server has; no object goes back; who keeps up has seen every event; and who
//! holds what there was at the resourceVersion with which it comes is told ADDED of what it has not, MODIFIED and DELETED
//! of what it has ([`holding`]).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use self::holding::{Holding, Past};
use super::record::ObjectRecord;
use super::ring::Noted;
use super::table::{Change, Taken, ViewTable, Written};
use super::{
    Bytes, Identity, Since, StoreError, View, ViewId, ViewRecord, ViewSpec, WatchError, WatchOptions,
    WatchStream, feed,
};
use crate::store::{Durability, Store, Table};
use crate::wire::frame::decode_event;
use crate::wire::{
    Encoding, Event, EventType, FrameDecoder, Item, ListPage, ObjectMeta, Resource, TypeMeta, split_list,
};

mod holding;
mod keeping_up;

const ID: ViewId = ViewId(7);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Delete(usize),
    /// The view hears of so many changes.
    Deliver(usize),
    /// The same, and watchers may read it before they are told.
    DeliverLate(usize),
    /// The view lists anew, as after 410.
    List,
    /// The same in pages of so many objects.
    ListInPages(usize),
    Local(usize),
    DropLocal(usize),
    Read(usize),
    /// One event alone: the watcher is slow.
    ReadOne(usize),
    Reconnect(usize),
    /// A watch that begins with the state.
    Stream(usize),
    /// It has listed past the hub, and knows what the view has not heard of yet.
    Direct(usize),
    Restart,
    /// What etcd is backed up as.
    Backup,
    /// etcd is restored; with a bump of its revision or without. The view lists anew, as after 410.
    Restore {
        bump: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..NAMES.len()).prop_map(Step::Put),
        3 => (0..NAMES.len()).prop_map(Step::Delete),
        5 => (1..6_usize).prop_map(Step::Deliver),
        2 => (1..6_usize).prop_map(Step::DeliverLate),
        1 => Just(Step::List),
        1 => (1..4_usize).prop_map(Step::ListInPages),
        1 => (0..NAMES.len()).prop_map(Step::Local),
        1 => (0..NAMES.len()).prop_map(Step::DropLocal),
        4 => (0..2_usize).prop_map(Step::Read),
        4 => (0..2_usize).prop_map(Step::ReadOne),
        2 => (0..2_usize).prop_map(Step::Reconnect),
        2 => (0..2_usize).prop_map(Step::Stream),
        1 => (0..2_usize).prop_map(Step::Direct),
        1 => Just(Step::Restart),
        1 => Just(Step::Backup),
        1 => any::<bool>().prop_map(|bump| Step::Restore { bump }),
    ]
}

/// Bodies by name.
type Objects = BTreeMap<String, Bytes>;

struct Server {
    version: u64,
    objects: BTreeMap<String, Item>,
    /// What the view has not heard of yet.
    pending: Vec<Change>,
    backup: (u64, BTreeMap<String, Item>),
    /// Histories so far: objects that are made get uids of their own.
    history: u64,
    past: Past,
}

fn item(name: &str, uid: u64, version: u64, data: &str) -> Item {
    let text = format!(
        r#"{{"metadata":{{"name":"{name}","uid":"{uid}","resourceVersion":"{version}"}},"data":"{data}"}}"#
    );
    let meta = ObjectMeta {
        name: name.to_owned(),
        namespace: String::new(),
        uid: uid.to_string(),
        resource_version: version,
    };
    Item { meta, body: text.into() }
}

struct Client {
    known: Objects,
    version: u64,
    /// None while the process restarts.
    stream: Option<WatchStream>,
    /// Versions of objects that this stream has brought.
    seen: HashMap<String, u64>,
    /// The state is not there yet.
    streams: bool,
    /// The history that it knows is not etcd's any more.
    stranded: bool,
    holds: Holding,
}

struct World {
    runtime: Runtime,
    store: Option<Store>,
    view: Option<Arc<View>>,
    ring: usize,
    server: Server,
    clients: Vec<Client>,
    /// Committed, and not told yet.
    late: Option<Written>,
    /// All that was noted since everything started over last.
    noted: Vec<Noted>,
}

fn options(since: Since) -> WatchOptions {
    let ends_at = Instant::now() + Duration::from_secs(3600);
    WatchOptions { since, send_initial_events: false, bookmarks: false, ends_at }
}

fn spec() -> ViewSpec {
    ViewSpec::new(Resource::new("", "v1", "nodes"), None, "", "", Encoding::Json)
}

impl World {
    fn new(dir: &Path, ring: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (store, _) = Store::open_with(dir, 16 << 20).unwrap();
        let server = Server {
            version: 100,
            objects: BTreeMap::new(),
            pending: Vec::new(),
            backup: (100, BTreeMap::new()),
            history: 0,
            past: Past::default(),
        };
        let mut world = Self {
            runtime,
            store: Some(store),
            view: None,
            ring,
            server,
            clients: Vec::new(),
            late: None,
            noted: Vec::new(),
        };
        let record = ViewRecord::new("node", &spec(), 0).encode().unwrap();
        world.write(move |tx| tx.put(Table::Views, &ID.prefix(), &record));
        world.open();
        world.list();
        for client in 0..2 {
            let client = world.connect(client);
            world.clients.push(client);
        }
        world
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn write<T: Send + 'static>(
        &self,
        job: impl FnMut(&mut crate::store::Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.runtime.block_on(self.store().write(Durability::Soon, job)).unwrap()
    }

    fn change<T: Send + 'static>(
        &mut self,
        change: impl FnMut(&mut ViewTable<'_, '_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        let (outcome, _) = self.change_untold(change);
        self.tell();
        outcome
    }

    /// What came of it, and what was noted.
    fn change_untold<T: Send + 'static>(
        &mut self,
        mut change: impl FnMut(&mut ViewTable<'_, '_>) -> Result<T, StoreError> + Send + 'static,
    ) -> (T, Option<Vec<Noted>>) {
        // As the store's writer does: one after the other.
        self.tell();
        let view = Arc::clone(self.view());
        let (outcome, written) = self.write(move |tx| {
            let mut table = view.table(tx)?;
            let outcome = change(&mut table)?;
            Ok((outcome, table.save()?))
        });
        let noted = written.news.noted();
        match &noted {
            Some(noted) => self.noted.extend_from_slice(noted),
            None => self.noted.clear(),
        }
        self.late = Some(written);
        (outcome, noted)
    }

    fn tell(&mut self) {
        if let Some(mut written) = self.late.take() {
            self.view().publish(&mut written);
            // One event alone may be more.
            assert!(self.view().ring.held().0 <= self.ring.max(400));
        }
    }

    fn record(&self) -> ViewRecord {
        self.store().read(|reader| feed::load(reader, ID)).unwrap()
    }

    fn view(&self) -> &Arc<View> {
        self.view.as_ref().unwrap()
    }

    fn open(&mut self) {
        let (record, store) = (self.record(), self.store().read_only());
        let (identity, stored) = (Identity::new("node"), super::Stored::default());
        let view = View::new(ID, identity, spec(), store, stored, Some(&record));
        view.ring.set_limit(self.ring);
        self.view = Some(Arc::new(view));
    }

    /// One of the clients takes bookmarks, the other does not.
    fn watch(&self, client: usize, since: Since) -> Result<WatchStream, WatchError> {
        let _in_runtime = self.runtime.enter();
        self.view().watch(WatchOptions { bookmarks: client == 1, ..options(since) })
    }

    /// The view as a client lists it.
    fn listed(&self) -> (u64, Objects) {
        let page = split_list(Encoding::Json, &self.view().list().unwrap().body).unwrap();
        (page.resource_version, page.items.into_iter().map(|item| (item.meta.name, item.body)).collect())
    }

    fn connect(&self, client: usize) -> Client {
        let (version, known) = self.listed();
        let holds = self.holding(client, &known, version);
        let stream =
            self.watch(client, Since::Exactly(version)).expect("what was just listed is not expired");
        let (stream, seen) = (Some(stream), HashMap::new());
        Client { known, version, stream, seen, streams: false, stranded: false, holds }
    }

    fn list(&mut self) {
        self.server.pending.clear();
        let passed = self.passes_over();
        let page = ListPage {
            kind: TypeMeta::new("v1", "Node"),
            resource_version: self.server.version,
            continue_token: None,
            items: self.server.objects.values().cloned().collect(),
        };
        self.change(move |table| table.apply_list(&page, 0, 0));
        self.connect_again(passed);
    }

    fn list_in_pages(&mut self, objects: usize) {
        self.server.pending.clear();
        let passed = self.passes_over();
        let items: Vec<_> = self.server.objects.values().cloned().collect();
        let mut pages: Vec<_> = items.chunks(objects).map(<[Item]>::to_vec).collect();
        let last = pages.pop().unwrap_or_default();
        let page = |items| ListPage {
            kind: TypeMeta::new("v1", "Node"),
            resource_version: self.server.version,
            continue_token: None,
            items,
        };
        let last = page(last);
        let pages: Vec<_> = pages.into_iter().map(page).collect();
        for (number, page) in pages.into_iter().enumerate() {
            let taken = self.change(move |table| table.stage(&page, number == 0, 0));
            assert!(matches!(taken, Taken::Staged(_)), "{taken:?}");
        }
        self.change(move |table| table.apply_list(&last, 0, 0));
        self.connect_again(passed);
    }

    fn deliver(&mut self, count: usize) {
        let count = count.min(self.server.pending.len());
        let changes: Vec<_> = self.server.pending.drain(..count).collect();
        let expected: Vec<_> = changes
            .iter()
            .map(|Change { event_type, item }| (*event_type, item.meta.resource_version))
            .collect();
        let ((), noted) = self.change_untold(move |table| table.apply_events(&changes, 0));
        let noted = noted.expect("somebody listens");
        let noted: Vec<_> = noted.iter().map(|noted| (noted.event_type, noted.version)).collect();
        assert_eq!(noted, expected, "every event, as it came");
    }

    fn read(&mut self, client: usize) {
        while !self.read_one(client) {}
    }

    /// `true` when nothing is left for now.
    fn read_one(&mut self, number: usize) -> bool {
        let client = &mut self.clients[number];
        let stream = client.stream.as_mut().unwrap();
        let (before, read_before) = (stream.stands_at(), stream.log_reads());
        let next = {
            let _in_runtime = self.runtime.enter();
            stream.next().now_or_never()
        };
        let (after, out_of_memory) = (stream.stands_at(), read_before == stream.log_reads());
        let Some(frame) = next else {
            client.streams = false;
            return true;
        };
        let event = Client::decode(&frame.expect("a watch ended"));
        if let Event::Bookmark { resource_version } = event {
            client.version = resource_version;
            return false;
        }
        let Event::Object { event_type, item, .. } = event else {
            assert!(client.stranded, "a watcher lost its place");
            self.clients[number] = self.connect(number);
            return false;
        };
        let version = item.meta.resource_version;
        // Out of memory comes the next event that there is, whatever the log has of it.
        if out_of_memory && before < after {
            let since = client.stream.as_ref().map_or(0, WatchStream::since);
            let next = self
                .noted
                .iter()
                .find(|noted| noted.sequence > before && (noted.local || noted.version > since));
            let next = next.map(|noted| (noted.sequence, noted.event_type, noted.is_of(&item.meta.name)));
            assert_eq!(next, Some((after, event_type, true)), "an event was lost, or told twice");
        }
        let client = &mut self.clients[number];
        let last = client.seen.insert(item.meta.name.clone(), version);
        assert!(last.is_none_or(|last| last <= version), "{} went back", item.meta.name);
        client.holds.judge(event_type, &item, &client.known);
        client.take(event_type, item);
        false
    }

    fn step(&mut self, step: &Step, dir: &Path) {
        match step {
            Step::Put(name) => {
                let name = NAMES[*name];
                self.server.version += 1;
                let version = self.server.version;
                let before = self.server.objects.get(name);
                let new = || (self.server.history * 1_000_000 + version).to_string();
                let uid = before.map_or_else(new, |item| item.meta.uid.clone());
                let event_type = if before.is_some() { EventType::Modified } else { EventType::Added };
                let item = item(name, uid.parse().unwrap(), version, "upstream");
                self.server.objects.insert(name.to_owned(), item.clone());
                self.server.remember();
                self.server.pending.push(Change { event_type, item });
            }
            Step::Delete(name) => {
                let name = NAMES[*name];
                if let Some(last) = self.server.objects.remove(name) {
                    self.server.version += 1;
                    let uid = last.meta.uid.parse().unwrap();
                    let item = item(name, uid, self.server.version, "gone");
                    self.server.remember();
                    self.server.pending.push(Change { event_type: EventType::Deleted, item });
                }
            }
            Step::Deliver(count) => {
                self.deliver(*count);
                self.tell();
            }
            Step::DeliverLate(count) => self.deliver(*count),
            Step::List => self.list(),
            Step::ListInPages(objects) => self.list_in_pages(*objects),
            // What is made here of an older version of an object than the client has is not told apart.
            Step::Direct(_) if self.record().locals > 0 => {}
            Step::Local(_) if !self.ahead().is_empty() => {}
            Step::Local(name) => {
                let name = NAMES[*name];
                let stored = self.store().read(|reader| {
                    let value = reader.get(Table::Objects, &ID.object(name))?;
                    Ok(value.map(|value| ObjectRecord::decode(value).unwrap().body.to_vec()))
                });
                if let Some(stored) = stored.unwrap() {
                    let local = String::from_utf8(stored).unwrap().replace("upstream", "local");
                    assert!(self.change(move |table| table.apply_local(name, local.as_bytes())));
                }
            }
            Step::DropLocal(name) => {
                let name = NAMES[*name];
                self.change(move |table| table.drop_local(name));
            }
            Step::Read(client) => self.read(*client),
            Step::ReadOne(client) => {
                self.read_one(*client);
            }
            Step::Stream(client) => {
                let stream = Some(self.watch(*client, Since::Any).unwrap());
                // Its resourceVersion means something only when the state is there.
                self.clients[*client] = Client {
                    known: Objects::new(),
                    version: 0,
                    stream,
                    seen: HashMap::new(),
                    streams: true,
                    stranded: false,
                    holds: Holding::nothing(),
                };
            }
            Step::Direct(client) => {
                let items = self.server.objects.values();
                let known = items.map(|item| (item.meta.name.clone(), item.body.clone())).collect();
                let version = self.server.version;
                let holds = self.holding(*client, &known, version);
                if let Ok(stream) = self.watch(*client, Since::Exactly(version)) {
                    let (stream, seen) = (Some(stream), HashMap::new());
                    self.clients[*client] =
                        Client { known, version, stream, seen, streams: false, stranded: false, holds };
                }
            }
            Step::Reconnect(client) => {
                let Client { version, streams, stranded, .. } = self.clients[*client];
                let record = self.record();
                let holds = self.holding(*client, &self.clients[*client].known, version);
                match self.watch(*client, Since::Exactly(version)).ok() {
                    // Of a history that is no more: known as long as the new one has not come so far. Then nobody can
                    // tell, no more than the API server: a client that comes back so late has to list.
                    Some(_) if stranded => {
                        assert!(
                            streams || version <= record.resource_version,
                            "a lost history was continued"
                        );
                        self.clients[*client] = self.connect(*client);
                    }
                    Some(stream) if !streams => {
                        let client = &mut self.clients[*client];
                        (client.stream, client.seen) = (Some(stream), HashMap::new());
                        client.holds = holds;
                    }
                    _ => self.clients[*client] = self.connect(*client),
                }
            }
            Step::Restart => {
                self.clients.iter_mut().for_each(|client| client.stream = None);
                (self.late, self.view, self.store) = (None, None, None);
                self.noted.clear();
                self.store = Some(Store::open_with(dir, 16 << 20).unwrap().0);
                self.open();
                for client in 0..self.clients.len() {
                    self.step(&Step::Reconnect(client), dir);
                }
            }
            Step::Backup => self.server.backup = (self.server.version, self.server.objects.clone()),
            Step::Restore { bump } => {
                let ahead = self.ahead();
                let server = &mut self.server;
                let (version, objects) = server.backup.clone();
                server.version = if *bump { server.version + 1000 } else { version };
                server.objects = objects;
                server.history += 1;
                server.past = Past::default();
                server.remember();
                for client in &mut self.clients {
                    client.stranded = true;
                }
                self.list();
                self.connect_again(ahead);
            }
        }
    }
}

impl Client {
    fn decode(frame: &Bytes) -> Event {
        let mut decoder = FrameDecoder::new(Encoding::Json);
        decoder.push(frame);
        decode_event(Encoding::Json, &decoder.next_frame().unwrap().unwrap()).unwrap()
    }

    fn take(&mut self, event_type: EventType, item: Item) {
        // What client-go does.
        self.version = item.meta.resource_version;
        match event_type {
            EventType::Added | EventType::Modified => self.known.insert(item.meta.name, item.body),
            EventType::Deleted => self.known.remove(&item.meta.name),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn watchers_end_where_the_server_is(
        ring in prop_oneof![1 => Just(0_usize), 3 => 200..1500_usize, 3 => Just(1 << 20)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let dir = tempfile::tempdir_in(if Path::new("/dev/shm").exists() { "/dev/shm" } else { "/tmp" }).unwrap();
        let mut world = World::new(dir.path(), ring);
        for step in &steps {
            world.step(step, dir.path());
        }
        world.deliver(usize::MAX);
        world.tell();
        let (version, listed) = world.listed();
        for client in 0..world.clients.len() {
            world.read(client);
            prop_assert_eq!(&world.clients[client].known, &listed);
        }
        for name in NAMES {
            world.change(move |table| table.drop_local(name));
        }
        let server: Objects =
            world.server.objects.values().map(|item| (item.meta.name.clone(), item.body.clone())).collect();
        prop_assert_eq!(&world.listed().1, &server);
        for client in 0..world.clients.len() {
            world.read(client);
            prop_assert_eq!(&world.clients[client].known, &server);
        }
        prop_assert!(version <= world.server.version);
        // Each object and each tombstone has one log entry, and nothing else is there.
        let record = world.record();
        let count = |table| {
            let mut count = 0;
            world.store().read(|reader| reader.scan(table, &ID.prefix(), None, |_, _| { count += 1; Ok(true) })).unwrap();
            count
        };
        prop_assert_eq!(count(Table::Log), server.len() as u64 + record.tombstones);
        prop_assert_eq!((count(Table::Locals), record.locals), (0, 0));
    }
}

#[test]
fn a_list_with_an_older_version_of_an_object_is_believed() {
    for bump in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path(), 1 << 20);
        let run =
            |world: &mut World, steps: &[Step]| steps.iter().for_each(|step| world.step(step, dir.path()));
        run(&mut world, &[Step::Put(0), Step::Deliver(1), Step::Backup, Step::Put(0), Step::Put(1)]);
        run(&mut world, &[Step::Deliver(2), Step::Read(0), Step::Restore { bump }]);
        let restored: Vec<u64> =
            world.server.objects.values().map(|item| item.meta.resource_version).collect();
        assert_eq!(restored, [101], "the backup's version, whatever the collection's is");
        let server = Objects::from([("a".to_owned(), world.server.objects["a"].body.clone())]);
        assert_eq!(world.listed(), (world.server.version, server.clone()), "bump: {bump}");
        // Who watches is told so, who comes back as well.
        run(&mut world, &[Step::Read(0), Step::Reconnect(1), Step::Read(1)]);
        assert_eq!((&world.clients[0].known, &world.clients[1].known), (&server, &server));
    }
}

#[test]
fn what_comes_and_goes_while_the_state_is_sent_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 1 << 20);
    let run = |world: &mut World, steps: &[Step]| steps.iter().for_each(|step| world.step(step, dir.path()));
    run(&mut world, &[Step::Put(0), Step::Put(1), Step::Deliver(2), Step::Stream(0), Step::ReadOne(0)]);
    assert_eq!(world.clients[0].known.len(), 1, "one of two");
    run(&mut world, &[Step::Put(3), Step::Deliver(1), Step::ReadOne(0), Step::ReadOne(0)]);
    run(&mut world, &[Step::Delete(3), Step::Deliver(1), Step::Read(0)]);
    assert_eq!(world.clients[0].known, world.listed().1);
}
