//! Tells one version of a file from the next without reading it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a file shows of itself. Two versions within one tick of the kernel's clock differ by the file that a rename brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds, of the content and of anything.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file that is there now; nothing while none can be seen.
    pub fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_place_of_another_is_told_from_it_also_in_the_same_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(Stamp::of(&path("file")), None);
        let time = std::time::SystemTime::UNIX_EPOCH;
        for name in ["file", "new"] {
            std::fs::write(path(name), "x").unwrap();
            std::fs::File::options().write(true).open(path(name)).unwrap().set_modified(time).unwrap();
        }
        let before = Stamp::of(&path("file"));
        assert!(before.is_some() && before == Stamp::of(&path("file")));
        std::fs::rename(path("new"), path("file")).unwrap();
        assert_ne!(Stamp::of(&path("file")), before);
    }
}
