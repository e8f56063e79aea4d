//! Any order of changes, lists, local changes, slow watchers, reconnections and restarts, against a model: what a
//! watcher has built from its events is in the end what the view lists, and what the API server has.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::feed::Position;
use super::record::ObjectRecord;
use super::table::{Change, Taken, ViewTable};
use super::{Bytes, Identity, StoreError, Table, View, ViewId, ViewRecord, ViewSpec, feed};
use crate::store::{Durability, Store};
use crate::wire::frame::decode_event;
use crate::wire::{
    Encoding, Event, EventType, FrameDecoder, Item, ListPage, ObjectMeta, Resource, TypeMeta, split_list,
};

const ID: ViewId = ViewId(7);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Delete(usize),
    /// The view hears of so many changes.
    Deliver(usize),
    /// The view lists anew, as after 410.
    List,
    /// The same in pages of so many objects.
    ListInPages(usize),
    Local(usize),
    DropLocal(usize),
    Read(usize),
    /// One batch alone: the watcher is slow.
    ReadBatch(usize),
    Reconnect(usize),
    /// A watch that begins with the state.
    Stream(usize),
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
        1 => Just(Step::List),
        1 => (1..4_usize).prop_map(Step::ListInPages),
        1 => (0..NAMES.len()).prop_map(Step::Local),
        1 => (0..NAMES.len()).prop_map(Step::DropLocal),
        4 => (0..2_usize).prop_map(Step::Read),
        4 => (0..2_usize).prop_map(Step::ReadBatch),
        2 => (0..2_usize).prop_map(Step::Reconnect),
        2 => (0..2_usize).prop_map(Step::Stream),
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
    position: Position,
    /// The state is not there yet.
    streams: bool,
    /// The history that it knows is not etcd's any more.
    stranded: bool,
}

struct World {
    runtime: Runtime,
    store: Option<Store>,
    server: Server,
    clients: Vec<Client>,
}

fn spec() -> ViewSpec {
    ViewSpec::new(Resource::new("", "v1", "nodes"), None, "", "", Encoding::Json)
}

impl World {
    fn new(dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (store, _) = Store::open_with(dir, 16 << 20).unwrap();
        let server = Server {
            version: 100,
            objects: BTreeMap::new(),
            pending: Vec::new(),
            backup: (100, BTreeMap::new()),
            history: 0,
        };
        let mut world = Self { runtime, store: Some(store), server, clients: Vec::new() };
        let record = ViewRecord::new("node", &spec(), 0).encode().unwrap();
        world.write(move |tx| tx.put(Table::Views, &ID.prefix(), &record));
        world.list();
        for _ in 0..2 {
            let client = world.connect();
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
        &self,
        mut change: impl FnMut(&mut ViewTable<'_, '_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.write(move |tx| {
            let mut table = ViewTable::load(tx, ID)?;
            let outcome = change(&mut table)?;
            table.save()?;
            Ok(outcome)
        })
    }

    fn record(&self) -> ViewRecord {
        self.store().read(|reader| feed::load(reader, ID)).unwrap()
    }

    fn view(&self) -> View {
        View::new(
            ID,
            Identity::new("node"),
            spec(),
            self.store().read_only(),
            super::Stored::default(),
            Some(&self.record()),
        )
    }

    /// The view as a client lists it.
    fn listed(&self) -> (u64, Objects) {
        let page = split_list(Encoding::Json, &self.view().list().unwrap().body).unwrap();
        (page.resource_version, page.items.into_iter().map(|item| (item.meta.name, item.body)).collect())
    }

    fn connect(&self) -> Client {
        let (version, known) = self.listed();
        let position =
            Position::after(&self.record(), 0, version).expect("what was just listed is not expired");
        Client { known, version, position, streams: false, stranded: false }
    }

    fn list(&mut self) {
        self.server.pending.clear();
        let page = ListPage {
            kind: TypeMeta::new("v1", "Node"),
            resource_version: self.server.version,
            continue_token: None,
            items: self.server.objects.values().cloned().collect(),
        };
        self.change(move |table| table.apply_list(&page, 0, 0));
    }

    fn list_in_pages(&mut self, objects: usize) {
        self.server.pending.clear();
        let items: Vec<_> = self.server.objects.values().cloned().collect();
        let mut pages: Vec<_> = items.chunks(objects).map(<[Item]>::to_vec).collect();
        let last = pages.pop().unwrap_or_default();
        let page = |items| ListPage {
            kind: TypeMeta::new("v1", "Node"),
            resource_version: self.server.version,
            continue_token: None,
            items,
        };
        for (number, items) in pages.into_iter().enumerate() {
            let page = page(items);
            let taken = self.change(move |table| table.stage(&page, number == 0, 0));
            assert!(matches!(taken, Taken::Staged(_)), "{taken:?}");
        }
        let last = page(last);
        self.change(move |table| table.apply_list(&last, 0, 0));
    }

    fn deliver(&mut self, count: usize) {
        let count = count.min(self.server.pending.len());
        let changes: Vec<_> = self.server.pending.drain(..count).collect();
        self.change(move |table| table.apply_events(&changes, 0));
    }

    fn read(&mut self, client: usize) {
        while !self.read_batch(client) {}
    }

    /// `true` when nothing is left for now.
    fn read_batch(&mut self, number: usize) -> bool {
        let store = self.store.as_ref().unwrap();
        let client = &mut self.clients[number];
        let batch = store.read(|reader| client.position.read(reader, ID, 0)).unwrap();
        if batch.expired {
            assert!(client.stranded, "a watcher lost its place");
            self.clients[number] = self.connect();
            return false;
        }
        for frame in &batch.frames {
            client.take(frame);
        }
        client.streams &= !batch.drained;
        batch.drained
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
                self.server.pending.push(Change { event_type, item });
            }
            Step::Delete(name) => {
                let name = NAMES[*name];
                if let Some(last) = self.server.objects.remove(name) {
                    self.server.version += 1;
                    let uid = last.meta.uid.parse().unwrap();
                    let item = item(name, uid, self.server.version, "gone");
                    self.server.pending.push(Change { event_type: EventType::Deleted, item });
                }
            }
            Step::Deliver(count) => self.deliver(*count),
            Step::List => self.list(),
            Step::ListInPages(objects) => self.list_in_pages(*objects),
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
            Step::ReadBatch(client) => {
                self.read_batch(*client);
            }
            Step::Stream(client) => {
                let position = Position::from_state(&self.record(), 0, false);
                // Its resourceVersion means something only when the state is there.
                self.clients[*client] =
                    Client { known: Objects::new(), version: 0, position, streams: true, stranded: false };
            }
            Step::Reconnect(client) => {
                let Client { version, streams, stranded, .. } = self.clients[*client];
                let record = self.record();
                let position = Position::after(&record, 0, version);
                match position {
                    // Of a history that is no more: known as long as the new one has not come so far. Then nobody can
                    // tell, no more than the API server: a client that comes back so late has to list.
                    Some(_) if stranded => {
                        assert!(
                            streams || version <= record.resource_version,
                            "a lost history was continued"
                        );
                        self.clients[*client] = self.connect();
                    }
                    Some(position) if !streams => self.clients[*client].position = position,
                    _ => self.clients[*client] = self.connect(),
                }
            }
            Step::Restart => {
                self.store = None;
                self.store = Some(Store::open_with(dir, 16 << 20).unwrap().0);
                for client in 0..self.clients.len() {
                    self.step(&Step::Reconnect(client), dir);
                }
            }
            Step::Backup => self.server.backup = (self.server.version, self.server.objects.clone()),
            Step::Restore { bump } => {
                let server = &mut self.server;
                let (version, objects) = server.backup.clone();
                server.version = if *bump { server.version + 1000 } else { version };
                server.objects = objects;
                server.history += 1;
                for client in &mut self.clients {
                    client.stranded = true;
                }
                self.list();
            }
        }
    }
}

impl Client {
    fn take(&mut self, frame: &Bytes) {
        let mut decoder = FrameDecoder::new(Encoding::Json);
        decoder.push(frame);
        let event = decode_event(Encoding::Json, &decoder.next_frame().unwrap().unwrap()).unwrap();
        let Event::Object { event_type, item, .. } = event else { panic!("{event:?}") };
        // What client-go does.
        self.version = item.meta.resource_version;
        match event_type {
            EventType::Added | EventType::Modified => self.known.insert(item.meta.name, item.body),
            EventType::Deleted => self.known.remove(&item.meta.name),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn watchers_end_where_the_server_is(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir_in(if Path::new("/dev/shm").exists() { "/dev/shm" } else { "/tmp" }).unwrap();
        let mut world = World::new(dir.path());
        for step in &steps {
            world.step(step, dir.path());
        }
        world.deliver(usize::MAX);
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
        let mut world = World::new(dir.path());
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
    let mut world = World::new(dir.path());
    let run = |world: &mut World, steps: &[Step]| steps.iter().for_each(|step| world.step(step, dir.path()));
    run(&mut world, &[Step::Put(0), Step::Put(1), Step::Deliver(2), Step::Stream(0), Step::ReadBatch(0)]);
    assert_eq!(world.clients[0].known.len(), 1, "a batch holds one object here");
    run(&mut world, &[Step::Put(3), Step::Deliver(1), Step::ReadBatch(0), Step::ReadBatch(0)]);
    run(&mut world, &[Step::Delete(3), Step::Deliver(1), Step::Read(0)]);
    assert_eq!(world.clients[0].known, world.listed().1);
}
