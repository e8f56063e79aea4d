//! `kill -9` in the middle of writing, again and again: a test program writes and is killed, the test looks.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

const FOLDER: &str = "YURT_TEST_STORE_TO_WRITE";

/// Runs in the killed process: generations of 50 records each, every generation one transaction.
#[test]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else { return };
    let (store, opened) = Store::open(Path::new(&dir)).unwrap();
    assert!(!matches!(opened, Opened::Replaced { .. }), "{opened:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let first = generation(&store).unwrap_or(0) + 1;
        for number in first.. {
            store
                .write(Durability::Soon, move |tx| {
                    for record in 0..50_u8 {
                        let value =
                            [&number.to_be_bytes()[..], &vec![record; 500 + usize::from(record) * 40]]
                                .concat();
                        tx.put(Table::Objects, &[1, record], &value)?;
                    }
                    Ok(())
                })
                .await
                .unwrap();
            store.put_durable(Bucket::Journal, b"acknowledged", &number.to_be_bytes()).await.unwrap();
            println!("{number}");
        }
    });
}

/// The generation that all 50 records have; none without records.
fn generation(store: &Store) -> Option<u64> {
    let mut generations = Vec::new();
    store
        .read(|reader| {
            reader.scan(Table::Objects, &[1], None, |_, value| {
                generations.push(u64::from_be_bytes(*value.first_chunk().unwrap()));
                Ok(true)
            })
        })
        .unwrap();
    let first = *generations.first()?;
    assert_eq!(generations, vec![first; 50], "a transaction was torn");
    Some(first)
}

#[test]
fn a_killed_writer_leaves_every_acknowledged_write_and_no_half_one() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::crash::writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = last;
        // Past a different number of commits each time, then at once or a moment later.
        for _ in 0..=round {
            acknowledged = lines.by_ref().find_map(|line| line.unwrap().parse::<u64>().ok()).unwrap();
        }
        std::thread::sleep(Duration::from_micros(300 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, opened) = Store::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::Existing);
        let found = generation(&store).unwrap();
        assert!(found >= acknowledged && acknowledged > last, "{found} {acknowledged} {last}");
        let journal = store.get(Bucket::Journal, b"acknowledged").unwrap().unwrap();
        let journal = u64::from_be_bytes(journal.try_into().unwrap());
        assert!(journal >= acknowledged && journal <= found, "{journal} {acknowledged} {found}");
        last = found;
    }
}
