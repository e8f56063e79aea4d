//! A look that does not come to its end.

use std::fs;
use std::path::PathBuf;

use super::super::{Store, Table};
use super::*;

/// The file of a store with some levels.
fn filled(dir: &Path) -> PathBuf {
    let (store, _) = Store::open_with(dir, 16 << 20).unwrap();
    let environment = &store.environment;
    let put = |number: u32, length| {
        environment.write(|tx| tx.put(Table::Objects, &number.to_be_bytes(), &vec![7; length])).unwrap();
    };
    (0..400).for_each(|number| put(number, 300));
    // In overflow pages.
    (400..404).for_each(|number| put(number, 20_000));
    environment.sync().unwrap();
    dir.join("store/data.mdb")
}

fn from_disk(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

#[test]
fn a_store_that_cannot_be_looked_at_in_time_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let mut data = fs::read(&path).unwrap();
    // All but the meta pages.
    data[2 * 4096..].fill(0);
    fs::write(&path, data).unwrap();
    assert!(matches!(check_within(&path, LONGEST, &from_disk), Err(StoreError::Damaged(_))));
    check_within(&path, Duration::ZERO, &from_disk).unwrap();
    // A disk that takes its time in the middle of it: no page more than that is waited for.
    let reads = Cell::new(0);
    let slow = |file: &File, bytes: &mut [u8], at: u64| {
        reads.set(reads.get() + 1);
        std::thread::sleep(Duration::from_millis(60));
        file.read_exact_at(bytes, at)
    };
    let begun = Instant::now();
    check_within(&path, Duration::from_millis(100), &slow).unwrap();
    assert!(reads.get() <= 3 && begun.elapsed() < Duration::from_secs(5), "{}", reads.get());
}

#[test]
fn an_error_of_the_disk_at_any_page_is_no_damage_and_an_end_of_the_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let failing_at = |fails_at: usize, error: fn() -> io::Error| {
        let reads = Cell::new(0);
        let read = |file: &File, bytes: &mut [u8], at: u64| {
            reads.set(reads.get() + 1);
            if reads.get() == fails_at { Err(error()) } else { file.read_exact_at(bytes, at) }
        };
        (check_within(&path, LONGEST, &read), reads.get())
    };
    let eio = || io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
    let (whole, reads) = failing_at(0, eio);
    whole.unwrap();
    assert!(reads > 30, "{reads}");
    for fails_at in 1..=reads {
        let (found, read) = failing_at(fails_at, eio);
        assert!(matches!(&found, Err(StoreError::Unreadable(_))), "{fails_at} of {reads}: {found:?}");
        assert_eq!(read, fails_at, "the disk is left alone");
        let (found, _) = failing_at(fails_at, || io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(&found, Err(StoreError::Damaged(_))), "{fails_at} of {reads}: {found:?}");
    }
}
