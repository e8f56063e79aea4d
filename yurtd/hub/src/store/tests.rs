use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn open(dir: &Path) -> (Store, Opened) {
    Store::open_with(dir, 16 << 20).unwrap()
}

#[tokio::test]
async fn values_survive_the_process_and_are_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Created);
    store.put_durable(Bucket::Tokens, b"a", b"a token that nobody may read").await.unwrap();
    drop(store);
    let file = fs::read(dir.path().join("store/data.mdb")).unwrap();
    assert!(!file.windows(7).any(|window| window == b"a token"));
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.get(Bucket::Tokens, b"a").unwrap().unwrap(), b"a token that nobody may read");
    assert_eq!(store.get(Bucket::Journal, b"a").unwrap(), None);
}

#[tokio::test]
async fn folders_and_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = open(dir.path());
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("store")), (0o700, 0o700));
    assert_eq!((mode("store/data.mdb"), mode("store/lock.mdb"), mode("store.key")), (0o600, 0o600, 0o600));
}

#[tokio::test]
async fn a_scan_stays_in_its_bucket_and_goes_on_behind_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        store.put(Bucket::Misc, key.as_bytes(), key.as_bytes()).await.unwrap();
        store.put(Bucket::Journal, key.as_bytes(), b"other").await.unwrap();
    }
    let keys = |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let found = store.scan(Bucket::Misc, prefix.as_bytes(), after.map(str::as_bytes), limit).unwrap();
        found
            .into_iter()
            .map(|(key, value)| {
                assert_eq!(key, value);
                String::from_utf8(key).unwrap()
            })
            .collect()
    };
    assert_eq!(keys("", None, 10), ["a/1", "a/2", "a/3", "b/1"]);
    assert_eq!(keys("a/", Some("a/1"), 10), ["a/2", "a/3"]);
    assert_eq!(keys("a/", None, 2), ["a/1", "a/2"]);
    assert_eq!(keys("", None, 0), [""; 0]);
    store.delete(Bucket::Misc, &[b"a/1".to_vec(), b"a/3".to_vec()]).await.unwrap();
    assert_eq!(keys("", None, 10), ["a/2", "b/1"]);
}

#[tokio::test]
async fn one_bad_job_does_not_fail_the_others_of_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let mut all = Vec::new();
    for number in 0..50_u8 {
        let store = store.clone();
        all.push(tokio::spawn(async move {
            store
                .write(Durability::Soon, move |tx| {
                    tx.put(Table::Staging, &[number], &[number])?;
                    if number == 25 { Err(StoreError::Damaged("on purpose".to_owned())) } else { Ok(()) }
                })
                .await
        }));
    }
    for (number, task) in all.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().is_err(), number == 25);
    }
    let mut found = Vec::new();
    store
        .read(|reader| {
            reader.scan(Table::Staging, &[], None, |key, _| {
                found.push(key[0]);
                Ok(true)
            })
        })
        .unwrap();
    assert_eq!(found, (0..50).filter(|number| *number != 25).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_full_map_keeps_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
    store.put_durable(Bucket::Misc, b"small", b"1").await.unwrap();
    let error = store.put_durable(Bucket::Misc, b"big", &vec![7; 2 << 20]).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(store.stats().full);
    assert_eq!(store.get(Bucket::Misc, b"small").unwrap().unwrap(), b"1");
    assert_eq!(store.get(Bucket::Misc, b"big").unwrap(), None);
    store.put_durable(Bucket::Misc, b"small", b"2").await.unwrap();
    assert!(store.stats().full, "what is small says nothing about what is not");
    assert_eq!(store.get(Bucket::Misc, b"small").unwrap().unwrap(), b"2");
}

#[tokio::test]
async fn a_full_store_says_so_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open_with(dir.path(), 4 << 20).unwrap();
    assert!(store.has_room_for_others());
    let mut kept = Vec::<Vec<u8>>::new();
    while store.put(Bucket::Misc, &[kept.len() as u8], &vec![7; 300_000]).await.is_ok() {
        kept.push(vec![kept.len() as u8]);
    }
    assert!(kept.len() > 8 && !store.has_room_for_others());
    let stats = store.stats();
    assert!(stats.full && stats.used_bytes > 3 << 20 && stats.used_bytes < stats.map_bytes, "{stats:?}");
    store.put(Bucket::Misc, b"small", b"1").await.unwrap();
    assert!(store.is_full());
    store.delete(Bucket::Misc, &kept[..4]).await.unwrap();
    assert!(!store.is_full(), "room was made");
    // LMDB uses pages again two transactions after they were given back.
    store.put(Bucket::Misc, b"small", b"2").await.unwrap();
    store.put(Bucket::Misc, b"big", &vec![7; 300_000]).await.unwrap();
    assert!(!store.is_full());
}

fn filled(dir: &Path) {
    let (store, _) = open(dir);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for number in 0..200_u32 {
            store.put(Bucket::Answers, &number.to_be_bytes(), &[number as u8; 3000]).await.unwrap();
        }
    });
}

#[test]
fn a_store_that_is_no_store_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    fs::write(dir.path().join("store/data.mdb"), vec![0x55; 100_000]).unwrap();
    let (store, opened) = open(dir.path());
    let Opened::Replaced { set_aside, .. } = opened else { panic!("{opened:?}") };
    assert!(set_aside.join("data.mdb").exists());
    assert_eq!(store.get(Bucket::Answers, &0_u32.to_be_bytes()).unwrap(), None);
}

#[test]
fn a_store_cut_short_is_set_aside_or_whole_but_never_kills() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let data = dir.path().join("store/data.mdb");
    let whole = fs::read(&data).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for keep in [used, used - 4096, used / 2, 3 * 4096, 8192, 5000, 100, 0] {
        fs::write(&data, &whole[..keep]).unwrap();
        let (store, opened) = open(dir.path());
        // LMDB makes a new environment out of an empty file.
        assert!(matches!(opened, Opened::Replaced { .. }) || keep == 0, "{keep}: {opened:?}");
        assert_eq!(store.get(Bucket::Answers, &0_u32.to_be_bytes()).unwrap(), None);
        drop(store);
    }
}

#[test]
fn a_store_of_another_version_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    store.environment.write(|tx| tx.put(Table::Meta, b"version", b"yurt store 99")).unwrap();
    drop(store);
    let (_, opened) = open(dir.path());
    assert!(matches!(opened, Opened::Replaced { reason, .. } if reason.contains("99")));
}

#[tokio::test]
async fn a_store_of_the_version_before_is_kept_and_a_damaged_record_costs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for key in [b"a", b"b"] {
        store.put_durable(Bucket::Tokens, key, b"value").await.unwrap();
    }
    let values = |store: &Store| store.scan(Bucket::Tokens, b"", None, 10).unwrap();
    let (all, one) = (values(&store), bucket_key(Bucket::Tokens, b"a"));
    assert_eq!(all.len(), 2);
    // As the release before wrote it.
    let records: Vec<(Table, Vec<u8>, Vec<u8>)> = [Table::Meta, Table::Buckets]
        .into_iter()
        .flat_map(|table| {
            let mut found = Vec::new();
            let scan = |reader: &Reader<'_>| {
                reader.scan(table, &[], None, |key, value| {
                    found.push((table, key.to_vec(), value.to_vec()));
                    Ok(true)
                })
            };
            store.read(scan).unwrap();
            found
        })
        .collect();
    store
        .environment
        .write(|tx| {
            for (table, key, value) in &records {
                tx.put_raw(*table, key, value)?;
            }
            tx.put_raw(Table::Meta, b"version", b"yurt store 1")
        })
        .unwrap();
    drop(store);
    let (store, opened) = open(dir.path());
    assert_eq!((opened, values(&store)), (Opened::Existing, all.clone()));

    store.environment.write(|tx| tx.put_raw(Table::Buckets, &one, b"bent by the disk")).unwrap();
    assert_eq!(values(&store), all[1..]);
    assert_eq!(store.sizes(Bucket::Tokens).unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_record_of_a_bucket_is_not_there_and_is_removed_by_whoever_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let is_there = |key: &[u8]| {
        let key = bucket_key(Bucket::Misc, key);
        store.read(|reader| Ok(!matches!(reader.get(Table::Buckets, &key), Ok(None)))).unwrap()
    };
    let bend = |key: &[u8], sealed: bool| {
        let key = bucket_key(Bucket::Misc, key);
        let put = |tx: &mut Tx<'_>| match sealed {
            // With a checksum that is right: it was sealed for another record.
            true => tx.put(Table::Buckets, &key, &[7; 40]),
            false => tx.put_raw(Table::Buckets, &key, b"bent by the disk"),
        };
        store.environment.write(put).unwrap();
    };
    type Find = fn(&Store);
    let finders: [(Find, bool); 4] = [
        (|store| assert_eq!(store.get(Bucket::Misc, b"a").unwrap(), None), false),
        (|store| assert_eq!(store.get(Bucket::Misc, b"a").unwrap(), None), true),
        (|store| assert_eq!(store.scan(Bucket::Misc, b"", None, 9).unwrap().len(), 1), true),
        (|store| assert_eq!(store.sizes(Bucket::Misc).unwrap().len(), 1), false),
    ];
    for (number, (find, sealed)) in finders.into_iter().enumerate() {
        for key in [b"a", b"b"] {
            store.put_durable(Bucket::Misc, key, b"value").await.unwrap();
        }
        bend(b"a", sealed);
        assert!(is_there(b"a"));
        find(&store);
        // One after the other: that has been written, too.
        store.put_durable(Bucket::Misc, b"b", b"another").await.unwrap();
        assert!(!is_there(b"a") && is_there(b"b"), "{number}");
    }
    // What has come in its place meanwhile stays.
    bend(b"b", false);
    let held = store.environment.write(|tx| {
        assert_eq!(store.get(Bucket::Misc, b"b").unwrap(), None);
        let key = bucket_key(Bucket::Misc, b"b");
        tx.put(Table::Buckets, &key, &store.sealer().seal(&key, b"new")?)
    });
    held.unwrap();
    store.put_durable(Bucket::Misc, b"a", b"value").await.unwrap();
    assert_eq!(store.get(Bucket::Misc, b"b").unwrap().unwrap(), b"new");
}

#[test]
fn a_store_whose_key_is_lost_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    fs::remove_file(dir.path().join("store.key")).unwrap();
    let (_, opened) = open(dir.path());
    assert!(matches!(opened, Opened::Replaced { reason, .. } if reason.contains("key")));
}

#[test]
fn only_the_latest_damaged_store_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        filled(dir.path());
        fs::remove_file(dir.path().join("store.key")).unwrap();
    }
    let (_, opened) = open(dir.path());
    assert!(matches!(opened, Opened::Replaced { .. }));
    let damaged = fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"));
    assert_eq!(damaged.count(), 1);
}

#[test]
fn starts_that_die_while_checking_end_in_a_new_store() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    fs::write(dir.path().join("store.opening"), "..").unwrap();
    assert_eq!(open(dir.path()).1, Opened::Existing);
    assert!(!dir.path().join("store.opening").exists());
    fs::write(dir.path().join("store.opening"), "...").unwrap();
    assert!(matches!(open(dir.path()).1, Opened::Replaced { .. }));
    assert_eq!(open(dir.path()).1, Opened::Existing);
}

#[test]
fn a_disk_that_gives_errors_is_tried_again_and_is_damage_at_the_fourth_start() {
    let (dir, map_size) = (tempfile::tempdir().unwrap(), 16 << 20);
    filled(dir.path());
    let data = || fs::read(dir.path().join("store/data.mdb")).unwrap();
    let good = data();
    let unreadable = |_: &Path| Err(StoreError::Unreadable("Input/output error (os error 5)".to_owned()));
    let start = |fails: bool| {
        let look: &opening::Look = if fails { &unreadable } else { &structure::check };
        opening::open_after(dir.path(), map_size, look).map(|(_, opened)| opened)
    };
    for _ in 0..2 {
        assert!(matches!(start(true), Err(StoreError::Unreadable(_))));
    }
    assert!(data() == good, "nothing was touched");
    assert_eq!(start(false).unwrap(), Opened::Existing, "the disk is better");
    for _ in 0..3 {
        assert!(matches!(start(true), Err(StoreError::Unreadable(_))), "that was counted anew");
    }
    // It is put aside unread; what is there then can be looked at.
    assert!(matches!(start(false), Ok(Opened::Replaced { .. })));
    assert_eq!(start(false).unwrap(), Opened::Existing);
}

#[tokio::test]
async fn a_store_that_breaks_while_it_is_used_is_set_aside_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let broken = store.broken();
    let outcome: Result<(), _> = store.read(|_| Err(heed::Error::Mdb(heed::MdbError::Corrupted).into()));
    assert!(matches!(outcome, Err(StoreError::Broken(_))));
    assert!(broken.is_cancelled());
    drop(store);
    assert!(matches!(open(dir.path()).1, Opened::Replaced { .. }));
    assert_eq!(open(dir.path()).1, Opened::Existing);
}

/// `unshare -m cargo test -p yurtd --lib -- --ignored full_disk`: mounts a small file system.
#[tokio::test]
#[ignore = "mounts a file system: for root in a mount namespace of its own"]
async fn a_full_disk_keeps_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(dir.path()).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "none"]);
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut stored = 0_u32;
    let error = loop {
        match store.put_durable(Bucket::Misc, &stored.to_be_bytes(), &[9; 20_000]).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(stored > 5);
    assert!(store.put_durable(Bucket::Misc, b"more", &[9; 20_000]).await.is_err());
    let all = |store: &Store| store.scan(Bucket::Misc, b"", None, usize::MAX).unwrap().len() as u32;
    assert_eq!(all(&store), stored);
    drop(store);
    // The next start finds it, and has room again once something goes.
    let (store, opened) = Store::open(dir.path()).unwrap();
    assert_eq!((opened, all(&store)), (Opened::Existing, stored));
    mount(&["mount", "-o", "remount,size=2m"]);
    store.put_durable(Bucket::Misc, b"more", &[9; 20_000]).await.unwrap();
    assert_eq!(all(&store), stored + 1);
    drop(store);
    mount(&["umount"]);
}

#[tokio::test]
async fn a_job_that_panics_costs_itself_and_not_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let put = |key: &'static [u8]| store.put(Bucket::Misc, key, b"value");
    let panics = store.write(Durability::Soon, |tx| -> Result<(), StoreError> {
        tx.put(Table::Buckets, b"half", b"done")?;
        panic!("on purpose")
    });
    let (one, panicked, two) = tokio::join!(put(b"one"), panics, put(b"two"));
    assert!(matches!(panicked, Err(StoreError::Failed(_))), "{panicked:?}");
    one.and(two).unwrap();
    assert!(!store.read(|reader| Ok(reader.get(Table::Buckets, b"half")?.is_some())).unwrap());
    assert!(store.get(Bucket::Misc, b"two").unwrap().is_some());
    assert!(!store.writer_ended().is_cancelled());
}

#[tokio::test]
async fn a_stream_of_writes_that_nobody_waits_for_is_grouped_and_the_first_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let write = |durability| store.write(durability, |tx| tx.put(Table::Buckets, b"key", b"value"));
    let started = std::time::Instant::now();
    for _ in 0..10 {
        write(Durability::Relaxed).await.unwrap();
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    assert_eq!(store.stats().commits, 10, "an event that comes alone is not held up");
    let mut writes = Vec::new();
    for _ in 0..200 {
        let store = store.clone();
        let write =
            async move { store.write(Durability::Relaxed, |tx| tx.put(Table::Buckets, b"k", b"v")).await };
        writes.push(tokio::spawn(write));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let commits = store.stats().commits;
    assert!(commits < 60, "{commits}");
    // Who waits takes the others along.
    let relaxed = store.clone();
    let relaxed = tokio::spawn(async move { relaxed.write(Durability::Relaxed, |_| Ok(())).await });
    tokio::task::yield_now().await;
    let started = std::time::Instant::now();
    write(Durability::Soon).await.unwrap();
    relaxed.await.unwrap().unwrap();
    assert!(started.elapsed() < std::time::Duration::from_millis(400));
}
