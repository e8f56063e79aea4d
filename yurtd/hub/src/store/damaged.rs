//! What a card does to a store, again and again: every record is as it was written or known to be lost, and nothing kills
//! the process.

use std::fs;
use std::path::Path;

use super::*;

const PAGE: usize = 4096;
/// Records of the view that is read, small and large.
const RECORDS: u32 = 300;

fn key(number: u32) -> Vec<u8> {
    [&7_u32.to_be_bytes()[..], format!("shop/record-{number}").as_bytes()].concat()
}

/// Some lie in leaves, some in overflow pages.
fn value(number: u32) -> Vec<u8> {
    vec![number as u8; if number.is_multiple_of(7) { 9000 } else { 40 + number as usize }]
}

/// A store with a history: free pages, trees of several levels, both kinds of values.
fn fill(dir: &Path) {
    let (store, _) = Store::open(dir).unwrap();
    let write = |numbers: std::ops::Range<u32>, length: usize| {
        store
            .environment
            .write(|tx| {
                numbers.clone().try_for_each(|number| {
                    // A value that is overwritten by a shorter one at once keeps the pages that it had.
                    tx.put(Table::Objects, &key(number), &vec![2; 3 * value(number).len()])?;
                    let value = if length == 0 { value(number) } else { vec![1; length] };
                    tx.put(Table::Objects, &key(number), &value)
                })
            })
            .unwrap();
    };
    // Little of the file is free, so that most damage hits something.
    write(RECORDS..RECORDS + 30, 700);
    store
        .environment
        .write(|tx| {
            (RECORDS..RECORDS + 30).try_for_each(|number| tx.delete(Table::Objects, &key(number)).map(drop))
        })
        .unwrap();
    write(0..RECORDS, 0);
    store.environment.sync().unwrap();
}

/// What a store says of the view: all of it, or an error.
fn read(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let mut found = Vec::new();
    store.read(|reader| {
        reader.scan(Table::Objects, &7_u32.to_be_bytes(), None, |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(true)
        })
    })?;
    Ok(found)
}

/// Numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn damage(round: usize, data: &mut [u8], numbers: &mut Numbers) {
    let pages = data.len() / PAGE;
    let (one, other) = (numbers.below(pages) * PAGE, numbers.below(pages) * PAGE);
    match round % 5 {
        0 => {
            let at = numbers.below(data.len());
            data[at] ^= 1 << numbers.below(8);
        }
        // The heads of pages, where the structure is.
        1 => data[one + numbers.below(40)] ^= 1 << numbers.below(8),
        2 => data[one..one + PAGE].fill(0),
        3 => {
            let content = data[other..other + PAGE].to_vec();
            data[one..one + PAGE].copy_from_slice(&content);
        }
        _ => (0..100).for_each(|_| data[one + numbers.below(PAGE)] ^= 1 << numbers.below(8)),
    }
}

#[test]
fn a_damaged_store_gives_what_was_stored_or_says_that_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let mut expected: Vec<_> = (0..RECORDS).map(|number| (key(number), value(number))).collect();
    expected.sort();
    let (whole, opened) = Store::open(dir.path()).unwrap();
    assert_eq!((read(&whole).unwrap(), opened), (expected.clone(), Opened::Existing));
    drop(whole);
    let path = dir.path().join("store/data.mdb");
    let good = fs::read(&path).unwrap();
    let used = good.iter().rposition(|byte| *byte != 0).unwrap().div_ceil(PAGE) * PAGE;
    let mut numbers = Numbers(1);
    let (mut set_aside, mut refused, mut unharmed) = (0, 0, 0);
    for round in 0..400 {
        let mut data = good.clone();
        damage(round, &mut data[..used], &mut numbers);
        fs::write(&path, &data).unwrap();
        let (store, opened) = Store::open(dir.path()).unwrap();
        match (opened, read(&store)) {
            (Opened::Replaced { .. }, found) => {
                assert_eq!(found.unwrap(), [], "round {round}");
                set_aside += 1;
            }
            (Opened::Existing, Ok(found)) => {
                assert!(found == expected, "round {round}: {} records", found.len());
                // And it goes on.
                store.environment.write(|tx| tx.put(Table::Objects, b"new", &[1; 20_000])).unwrap();
                unharmed += 1;
            }
            (Opened::Existing, Err(error)) => {
                assert!(matches!(error, StoreError::Damaged(_)), "round {round}: {error}");
                refused += 1;
            }
            (Opened::Created, _) => panic!("round {round}: it was not found"),
        }
    }
    assert!(set_aside > 20 && refused > 20 && unharmed > 20, "{set_aside} {refused} {unharmed}");
}

#[test]
fn what_is_no_file_any_more_is_set_aside() {
    for name in ["store/data.mdb", "store/lock.mdb", "store.key", "store"] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let path = dir.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
            fs::write(&path, "").unwrap();
        } else {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        let (store, opened) = Store::open(dir.path()).unwrap();
        assert!(matches!(opened, Opened::Replaced { .. }), "{name}: {opened:?}");
        assert_eq!(read(&store).unwrap(), []);
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().1, Opened::Existing, "{name}");
    }
}
