//! Watchers that keep up, that come again, and that do neither.

use super::*;
use crate::limits;

/// A world with one object, of which the view knows, and what its clients have seen.
fn with_one_object(ring: usize) -> (tempfile::TempDir, World) {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), ring);
    let steps = [Step::Put(0), Step::Deliver(1), Step::Read(0), Step::Read(1)];
    steps.iter().for_each(|step| world.step(step, dir.path()));
    (dir, world)
}

/// Versions of what comes next for a client, until nothing does.
fn versions(world: &mut World, client: usize) -> Vec<u64> {
    let mut versions = Vec::new();
    while !world.read_one(client) {
        versions.push(world.clients[client].version);
    }
    versions
}

#[test]
fn who_keeps_up_sees_every_version_and_who_fell_behind_the_last() {
    for (ring, expected) in [(1 << 20, vec![102, 103, 104]), (0, vec![104]), (250, vec![104])] {
        let (dir, mut world) = with_one_object(ring);
        let steps = [Step::Put(0), Step::Put(0), Step::Put(0), Step::Deliver(3)];
        steps.iter().for_each(|step| world.step(step, dir.path()));
        assert_eq!(versions(&mut world, 0), expected, "{ring}");
    }
}

#[test]
fn who_comes_again_soon_sees_every_version_too() {
    let (dir, mut world) = with_one_object(1 << 20);
    for step in [Step::Put(0), Step::Put(0), Step::Put(1), Step::Deliver(3), Step::Reconnect(0)] {
        world.step(&step, dir.path());
    }
    assert_eq!(versions(&mut world, 0), [102, 103, 104]);
    // What was made here and has given way to something newer is not shown once more.
    for step in
        [Step::Local(0), Step::Put(0), Step::Deliver(1), Step::Read(0), Step::Reconnect(0), Step::Local(1)]
    {
        world.step(&step, dir.path());
    }
    assert_eq!(versions(&mut world, 0), [104], "the local version of the other object");
    assert_eq!(world.clients[0].known, world.listed().1);
}

#[test]
fn the_state_is_given_where_the_watch_stands_and_nowhere_else() {
    let (dir, mut world) = with_one_object(1 << 20);
    let state = |world: &World| world.clients[0].stream.as_ref().unwrap().state().unwrap().is_some();
    assert!(state(&world));
    for step in [Step::Put(0), Step::Put(0), Step::DeliverLate(2)] {
        world.step(&step, dir.path());
    }
    // The state has it, and no watcher has been told.
    assert!(!state(&world));
    world.tell();
    assert!(!state(&world));
    world.read_one(0);
    assert!(!state(&world), "a version is left that is older than the state");
    world.read(0);
    assert!(state(&world));
}

#[test]
fn a_watch_that_is_not_read_holds_nothing() {
    let (dir, mut world) = with_one_object(2000);
    for _ in 0..100 {
        world.step(&Step::Put(0), dir.path());
        world.step(&Step::Deliver(1), dir.path());
        assert!(world.view().ring.held().0 <= 2000);
    }
    assert_eq!(versions(&mut world, 0).last(), Some(&world.server.version));
    // Nor does a view that nobody watches, after a while, nor what is old.
    world.view().forget_events(crate::clock::steady() + 1);
    assert_eq!(world.view().ring.held(), (0, 0));
}

/// What comes next for a client whose batches a thread reads: type, name, version; a bookmark is one, too.
fn events(world: &World, stream: &mut WatchStream, count: usize) -> Vec<(String, String, u64)> {
    let event = |frame: Option<Bytes>| match Client::decode(&frame.expect("the watch goes on")) {
        Event::Object { event_type, item, .. } => {
            (event_type.as_str().to_owned(), item.meta.name, item.meta.resource_version)
        }
        Event::Bookmark { resource_version } => ("BOOKMARK".to_owned(), String::new(), resource_version),
        Event::Error(status) => panic!("{status:?}"),
    };
    let in_time = Duration::from_secs(10);
    world.runtime.block_on(async {
        let mut events = Vec::new();
        for _ in 0..count {
            let frame = tokio::time::timeout(in_time, stream.next()).await;
            events.push(event(frame.unwrap_or_else(|_| panic!("an event is missing behind {events:?}"))));
        }
        events
    })
}

fn read_by_threads(world: &World, options: WatchOptions) -> WatchStream {
    world.runtime.block_on(async {
        let mut stream = world.view().watch(options).unwrap();
        stream.read_by(async { Some(Box::new(()) as _) }, Box::new(|| None), options).await;
        stream
    })
}

fn named(events: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    events.iter().map(|(kind, name, version)| ((*kind).to_owned(), (*name).to_owned(), *version)).collect()
}

#[test]
fn a_large_state_is_of_one_moment_and_everything_after_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 1 << 20);
    for step in [Step::Put(0), Step::Put(1), Step::Put(2), Step::Put(3), Step::Deliver(4)] {
        world.step(&step, dir.path());
    }
    let wanted = WatchOptions { send_initial_events: true, bookmarks: true, ..options(Since::Any) };
    let mut stream = read_by_threads(&world, wanted);
    // One batch has been read ahead, of four.
    for step in [Step::Put(3), Step::Delete(2), Step::Put(2), Step::Put(2), Step::Deliver(4)] {
        world.step(&step, dir.path());
    }
    let state = [("ADDED", "a", 101), ("ADDED", "b", 102), ("ADDED", "c", 103), ("ADDED", "d", 104)];
    assert_eq!(events(&world, &mut stream, 4), named(&state));
    assert_eq!(events(&world, &mut stream, 1), named(&[("BOOKMARK", "", 104)]));
    let then = [("MODIFIED", "d", 105), ("DELETED", "c", 106), ("ADDED", "c", 107), ("MODIFIED", "c", 108)];
    assert_eq!(events(&world, &mut stream, 4), named(&then));
}

#[test]
fn who_comes_back_late_is_told_what_has_become_of_what_it_has_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 1 << 20);
    for step in [Step::Put(0), Step::Put(1), Step::Deliver(2)] {
        world.step(&step, dir.path());
    }
    // It has a and b, at 102.
    for step in [Step::Put(2), Step::Delete(2), Step::Put(3), Step::Put(3), Step::Delete(1), Step::Put(0)] {
        world.step(&step, dir.path());
    }
    for step in [Step::Deliver(6), Step::Restart] {
        world.step(&step, dir.path());
    }
    let wanted = WatchOptions { bookmarks: true, ..options(Since::Exactly(102)) };
    let mut stream = read_by_threads(&world, wanted);
    let told = [("ADDED", "d", 106), ("DELETED", "b", 107), ("MODIFIED", "a", 108)];
    assert_eq!(events(&world, &mut stream, 3), named(&told));
    // One that may have more than its version says is told of all that has gone.
    let mut stream = read_by_threads(&world, options(Since::Exactly(102)));
    assert_eq!(events(&world, &mut stream, 1), named(&[("DELETED", "c", 104)]));
    assert_eq!(events(&world, &mut stream, 3), named(&told));
}

#[test]
fn a_version_that_was_made_here_does_not_say_what_its_watcher_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 1 << 20);
    // a at 101 is made another one here, behind b at 102: a client that is cut off then comes back with 101.
    for step in [Step::Put(0), Step::Put(1), Step::Deliver(2), Step::Local(0), Step::Delete(1)] {
        world.step(&step, dir.path());
    }
    for step in [Step::Deliver(1), Step::Restart] {
        world.step(&step, dir.path());
    }
    let wanted = WatchOptions { bookmarks: true, ..options(Since::Exactly(101)) };
    let told = events(&world, &mut read_by_threads(&world, wanted), 2);
    assert!(told.contains(&("DELETED".to_owned(), "b".to_owned(), 103)), "{told:?}");
}

#[test]
fn who_comes_right_after_a_restart_sees_every_version() {
    let (dir, mut world) = with_one_object(1 << 20);
    world.step(&Step::Restart, dir.path());
    world.clients.iter_mut().for_each(|client| client.stream = None);
    for step in [Step::Put(0), Step::Put(0), Step::Put(0), Step::Deliver(3), Step::Reconnect(0)] {
        world.step(&step, dir.path());
    }
    assert_eq!(versions(&mut world, 0), [102, 103, 104]);
}

#[test]
fn what_comes_in_a_burst_waits_for_whoever_takes_it() {
    let (dir, mut world) = with_one_object(700);
    let way = |world: &World, bytes| {
        let view = Arc::clone(world.view());
        world.runtime.block_on(async move {
            let began = Instant::now();
            view.make_way(bytes).await;
            began.elapsed()
        })
    };
    assert_eq!(world.clients.len(), 2);
    world.clients[1].stream = None;
    for step in [Step::Put(0), Step::Put(0), Step::Deliver(2)] {
        world.step(&step, dir.path());
    }
    // There is room for one more, and not for so many.
    assert!(way(&world, 100) < limits::KEEPS_UP);
    let waits = {
        let view = Arc::clone(world.view());
        let mut waits = Box::pin(async move { view.make_way(500).await });
        let _in_runtime = world.runtime.enter();
        assert!((&mut waits).now_or_never().is_none());
        waits
    };
    assert_eq!(versions(&mut world, 0), [102, 103]);
    let in_time = Duration::from_secs(10);
    world.runtime.block_on(async { tokio::time::timeout(in_time, waits).await }).unwrap();
    // Whoever takes nothing is waited for once.
    for step in [Step::Put(0), Step::Put(0), Step::Deliver(2)] {
        world.step(&step, dir.path());
    }
    assert!(way(&world, 500) >= limits::KEEPS_UP);
    assert!(way(&world, 500) < limits::KEEPS_UP);
    assert_eq!(versions(&mut world, 0), [104, 105]);
    for step in [Step::Put(0), Step::Put(0), Step::Deliver(2)] {
        world.step(&step, dir.path());
    }
    assert!(way(&world, 500) >= limits::KEEPS_UP, "it has taken everything since");
}

#[test]
fn nothing_is_forgotten_by_a_change_that_is_none_of_the_views() {
    const MANY: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 0);
    let page = |version: u64, items: Vec<Item>| ListPage {
        kind: TypeMeta::new("v1", "Node"),
        resource_version: version,
        continue_token: None,
        items,
    };
    let many = (0..MANY as u64).map(|number| item(&format!("n{number}"), number + 1, 200 + number, "x"));
    let (full, empty) = (page(1000, many.collect()), page(1001, Vec::new()));
    world.change(move |table| table.apply_list(&full, 0, 0));
    // More tombstones than are kept: those of the last transaction are, whatever their number.
    world.change(move |table| table.apply_list(&empty, 0, 0));
    let other = item("other", 7, 1002, "x");
    let changed = world.write(move |tx| {
        let mut table = ViewTable::load(tx, ID)?;
        let change = Change { event_type: EventType::Modified, item: other.clone() };
        if table.apply_selected(&[change], &[false], 0, 1002)? {
            table.save()?;
            return Ok(true);
        }
        Ok(false)
    });
    assert!(!changed);
    let wanted = WatchOptions { bookmarks: true, ..options(Since::Exactly(1000)) };
    let told = events(&world, &mut read_by_threads(&world, wanted), MANY);
    assert!(told.iter().all(|(kind, ..)| kind == "DELETED"));
}

#[test]
fn who_catches_up_in_several_transactions_is_told_nothing_of_what_it_never_had() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 0);
    for step in [Step::Put(0), Step::Put(1), Step::Deliver(2), Step::Read(1)] {
        world.step(&step, dir.path());
    }
    world.clients[1].stream = None;
    // Behind its version c comes and goes, and again; before that a has changed, which is a batch of its own.
    for step in [Step::Put(0), Step::Put(2), Step::Delete(2), Step::Put(2), Step::Put(2), Step::Delete(2)] {
        world.step(&step, dir.path());
    }
    for step in [Step::Put(1), Step::Deliver(7), Step::Reconnect(1)] {
        world.step(&step, dir.path());
    }
    assert_eq!(versions(&mut world, 1), [103, 109]);
}

#[test]
fn what_was_made_here_is_not_told_to_one_who_has_listed_what_came_after_it() {
    let (dir, mut world) = with_one_object(1 << 20);
    for step in [Step::Local(0), Step::Read(0), Step::Put(0), Step::DeliverLate(1)] {
        world.step(&step, dir.path());
    }
    // It has the new version out of the store, of which no watcher has been told.
    world.clients[0] = world.connect(0);
    assert_eq!(versions(&mut world, 0), [0_u64; 0]);
    world.tell();
    world.read(0);
    assert_eq!(world.clients[0].known, world.listed().1);
}

#[test]
fn the_state_that_is_read_in_several_transactions_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 0);
    for step in [Step::Put(0), Step::Put(1), Step::Put(2), Step::Put(3), Step::Deliver(4)] {
        world.step(&step, dir.path());
    }
    let wanted = WatchOptions { send_initial_events: true, bookmarks: true, ..options(Since::Any) };
    let mut stream = {
        let _in_runtime = world.runtime.enter();
        world.view().watch(wanted).unwrap()
    };
    assert_eq!(events(&world, &mut stream, 2), named(&[("ADDED", "a", 101), ("ADDED", "b", 102)]));
    // Of what was sent and of what was not: changed, gone, gone and made again.
    for step in [Step::Put(0), Step::Delete(1), Step::Delete(2), Step::Put(3), Step::Put(2), Step::Deliver(5)]
    {
        world.step(&step, dir.path());
    }
    let rest = [("MODIFIED", "a", 105), ("DELETED", "b", 106), ("ADDED", "c", 109), ("ADDED", "d", 108)];
    assert_eq!(events(&world, &mut stream, 4), named(&rest));
    assert_eq!(events(&world, &mut stream, 1), named(&[("BOOKMARK", "", 109)]));
}

#[test]
fn who_was_told_of_more_than_is_remembered_lists_again_rather_than_being_told_wrong() {
    const MANY: u64 = 80;
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 0);
    let put = |numbers: std::ops::Range<u64>, version: u64| {
        let item = move |number: u64| item(&format!("n{number}"), number + 1, version + number, "x");
        let changes: Vec<_> =
            numbers.map(|number| Change { event_type: EventType::Modified, item: item(number) }).collect();
        move |table: &mut ViewTable<'_, '_>| table.apply_events(&changes, 0)
    };
    world.change(put(0..1, 150));
    world.change(put(1..MANY, 200));
    let wanted = WatchOptions { bookmarks: true, ..options(Since::Exactly(100)) };
    let told = |world: &World, stream: &mut WatchStream| {
        let _in_runtime = world.runtime.enter();
        Client::decode(&stream.next().now_or_never().unwrap().unwrap())
    };
    let mut stream = {
        let _in_runtime = world.runtime.enter();
        world.view().watch(wanted).unwrap()
    };
    for _ in 0..MANY - 5 {
        assert!(matches!(told(&world, &mut stream), Event::Object { event_type: EventType::Added, .. }));
    }
    // One that it was told of first is known, one of the others is not.
    world.change(put(2..3, 1000));
    for _ in 0..5 {
        assert!(matches!(told(&world, &mut stream), Event::Object { event_type: EventType::Added, .. }));
    }
    assert!(matches!(told(&world, &mut stream), Event::Object { event_type: EventType::Modified, .. }));
    let mut stream = {
        let _in_runtime = world.runtime.enter();
        world.view().watch(wanted).unwrap()
    };
    for _ in 0..MANY - 5 {
        told(&world, &mut stream);
    }
    world.change(put(MANY - 7..MANY - 6, 1000));
    let rest: Vec<_> = {
        let _in_runtime = world.runtime.enter();
        std::iter::from_fn(|| stream.next().now_or_never().unwrap()).collect()
    };
    let last = rest.last().map(Client::decode);
    assert!(matches!(&last, Some(Event::Error(status)) if status.code == 410), "{last:?}");
}
