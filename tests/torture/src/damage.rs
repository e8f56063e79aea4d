//! What can happen to a store on a cheap card: bits, pages, lengths, files. Pure over a folder and a seed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use crate::random::Random;

const PAGE: u64 = 4096;
/// LMDB's two meta pages.
const META_PAGES: u64 = 2;
/// The stamp that a store has of its version, and one of the same length that nobody writes.
const STAMPS: (&[u8], &[u8]) = (b"yurt store ", b"yurt stork ");

/// One kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Some bits anywhere.
    Bits,
    /// Many bits in one page.
    Page,
    /// Pages full of zeros.
    ZeroPages,
    /// Pages with the content of others.
    MovedPages,
    /// A meta page is half another.
    TornMeta,
    /// Both meta pages are zeros.
    NoMeta,
    /// The file is shorter.
    CutShort,
    /// The file is empty.
    Empty,
    /// Something else follows.
    Garbage,
    /// The file is something else altogether.
    Noise,
    /// The key is another one.
    OtherKey,
    /// The key is cut short.
    ShortKey,
    /// There is no key.
    NoKey,
    /// Store and key have changed places.
    Swapped,
    /// The file is a folder.
    Folder,
    /// Nobody may read or write it.
    Mode,
    /// It says that another version wrote it.
    Stamp,
    /// The CA is cut short.
    ShortCa,
    /// Locks of a process that is gone are noise.
    Lock,
}

pub(crate) const ALL: [Damage; 19] = [
    Damage::Bits,
    Damage::Page,
    Damage::ZeroPages,
    Damage::MovedPages,
    Damage::TornMeta,
    Damage::NoMeta,
    Damage::CutShort,
    Damage::Empty,
    Damage::Garbage,
    Damage::Noise,
    Damage::OtherKey,
    Damage::ShortKey,
    Damage::NoKey,
    Damage::Swapped,
    Damage::Folder,
    Damage::Mode,
    Damage::Stamp,
    Damage::ShortCa,
    Damage::Lock,
];

/// Damages the state in a folder.
pub(crate) fn inflict(damage: Damage, state: &Path, random: &mut Random) -> Result<()> {
    let data = state.join("store/data.mdb");
    let key = state.join("store.key");
    let length = fs::metadata(&data).with_context(|| data.display().to_string())?.len();
    // Behind what is used the file is a hole: damage there is none.
    let used = used(&data)?.max(META_PAGES * PAGE);
    let pages = used / PAGE;
    match damage {
        Damage::Bits => {
            for _ in 0..1 + random.below(12) {
                flip(&data, random.below(used), random)?;
            }
        }
        Damage::Page => {
            let page = random.below(pages);
            for _ in 0..200 {
                flip(&data, page * PAGE + random.below(PAGE), random)?;
            }
        }
        Damage::ZeroPages => {
            for _ in 0..1 + random.below(4) {
                write(&data, random.below(pages) * PAGE, &[0; PAGE as usize])?;
            }
        }
        Damage::MovedPages => {
            for _ in 0..1 + random.below(4) {
                let content = read(&data, random.below(pages) * PAGE, PAGE as usize)?;
                write(&data, random.below(pages) * PAGE, &content)?;
            }
        }
        Damage::TornMeta => {
            let half = PAGE / 2;
            let content = read(&data, random.below(META_PAGES) * PAGE, half as usize)?;
            write(&data, random.below(META_PAGES) * PAGE + random.below(64), &content)?;
        }
        Damage::NoMeta => write(&data, 0, &vec![0; (META_PAGES * PAGE) as usize])?,
        Damage::CutShort => open(&data)?.set_len(random.below(used))?,
        Damage::Empty => open(&data)?.set_len(0)?,
        Damage::Garbage => {
            let more = 1 + random.below(3 * PAGE);
            write(&data, length, &noise(random, more))?;
        }
        Damage::Noise => fs::write(&data, noise(random, used))?,
        Damage::OtherKey => fs::write(&key, noise(random, fs::metadata(&key)?.len()))?,
        Damage::ShortKey => open(&key)?.set_len(random.below(fs::metadata(&key)?.len()))?,
        Damage::NoKey => fs::remove_file(&key)?,
        Damage::Swapped => {
            let aside = state.join("aside");
            fs::rename(&data, &aside)?;
            fs::rename(&key, &data)?;
            fs::rename(&aside, &key)?;
        }
        Damage::Folder => {
            fs::remove_file(&data)?;
            fs::create_dir(&data)?;
        }
        Damage::Mode => {
            for path in [&data, &key, &state.join("store")] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o000))?;
            }
        }
        Damage::Stamp => {
            let text = fs::read(&data)?;
            let (ours, theirs) = STAMPS;
            for at in 0..text.len().saturating_sub(ours.len()) {
                if text[at..].starts_with(ours) {
                    write(&data, at as u64, theirs)?;
                }
            }
        }
        Damage::ShortCa => {
            let ca = state.join("ca.pem");
            open(&ca)?.set_len(random.below(fs::metadata(&ca)?.len()))?;
        }
        Damage::Lock => {
            let lock = state.join("store/lock.mdb");
            let length = fs::metadata(&lock).map_or(8192, |metadata| metadata.len());
            fs::write(&lock, noise(random, length))?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<fs::File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())
}

fn write(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    open(path)?.write_all_at(bytes, at).with_context(|| path.display().to_string())
}

fn read(path: &Path, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    open(path)?.read_exact_at(&mut bytes, at).with_context(|| path.display().to_string())?;
    Ok(bytes)
}

fn flip(path: &Path, at: u64, random: &mut Random) -> Result<()> {
    let byte = read(path, at, 1)?[0] ^ (1 << random.below(8));
    write(path, at, &[byte])
}

fn noise(random: &mut Random, length: u64) -> Vec<u8> {
    (0..length).map(|_| random.next() as u8).collect()
}

/// Bytes up to the last one that is not 0, in whole pages.
fn used(path: &Path) -> Result<u64> {
    let text = fs::read(path)?;
    let last = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    Ok(last.div_ceil(PAGE) * PAGE.min(text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files of the names that a state has.
    fn state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let mut random = Random::new(7);
        let mut data = noise(&mut random, 20 * PAGE);
        data[5000..5012].copy_from_slice(b"yurt store 1");
        data.extend(vec![0; 1 << 20]);
        fs::write(dir.path().join("store/data.mdb"), data).unwrap();
        fs::write(dir.path().join("store/lock.mdb"), [0; 8192]).unwrap();
        fs::write(dir.path().join("store.key"), noise(&mut random, 32)).unwrap();
        fs::write(dir.path().join("ca.pem"), noise(&mut random, 500)).unwrap();
        dir
    }

    /// Name, mode and content of everything.
    fn content(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
        let mut all = Vec::new();
        for name in ["store", "store/data.mdb", "store/lock.mdb", "store.key", "ca.pem"] {
            if let Ok(metadata) = fs::metadata(folder.join(name)) {
                all.push((
                    name.to_owned(),
                    metadata.permissions().mode(),
                    fs::read(folder.join(name)).unwrap_or_default(),
                ));
            }
        }
        all
    }

    #[test]
    fn every_damage_damages_and_is_the_same_for_the_same_seed() {
        for damage in ALL {
            let (one, other) = (state(), state());
            let before = content(one.path());
            inflict(damage, one.path(), &mut Random::new(3)).unwrap();
            inflict(damage, other.path(), &mut Random::new(3)).unwrap();
            assert_ne!(content(one.path()), before, "{damage:?}");
            assert_eq!(content(one.path()), content(other.path()), "{damage:?}");
        }
    }
}
