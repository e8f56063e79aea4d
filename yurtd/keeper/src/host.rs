//! The node's file system as the keeper may touch it.
//!
//! In the pod the host's folders are mounted below `/host`; tests use a temporary folder. Every path given here
//! is absolute *on the host*; symlinks are followed inside the root, because the ones that kubelet makes
//! (`kubelet-client-current.pem`) have absolute targets.
//!
//! Writes are whole or not at all: a temporary sibling, fsync, rename, fsync of the folder. A crash leaves at most
//! the temporary sibling, which the next write replaces and [`Host::remove`] takes along.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use yurt_api::names;

/// As many symlinks in one path as Linux follows.
const MAX_LINKS: usize = 40;

/// What could not be done to the node's files.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub(crate) struct HostError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The node's file system, rooted at a folder.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
    #[cfg(test)]
    pub(crate) fuse: crate::sim::Fuse,
}

impl Host {
    #[cfg(not(test))]
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    #[cfg(test)]
    pub(crate) fn with_fuse(root: &Path, fuse: crate::sim::Fuse) -> Self {
        Self { root: root.into(), fuse }
    }

    /// Where a file of the host is for this process, every symlink followed inside the root.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut pending: Vec<OsString> = names_reversed(path);
        let mut real = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let here = self.root.join(&next);
            match fs::symlink_metadata(&here) {
                Ok(found) if found.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    let target = fs::read_link(&here)?;
                    if target.is_absolute() {
                        real = PathBuf::new();
                    }
                    pending.extend(names_reversed(&target));
                }
                _ => real = next,
            }
        }
        Ok(self.root.join(real))
    }

    /// The file itself, its folder's symlinks followed.
    fn entry(&self, path: &Path) -> io::Result<PathBuf> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.resolve(parent)?.join(name)),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    /// Content of a file; `None` when it is not there.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>, HostError> {
        let path = path.as_ref();
        match self.resolve(path).and_then(fs::read) {
            Ok(content) => Ok(Some(content)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(HostError { action: "read", path: path.into(), source }),
        }
    }

    /// Content of a text file; `None` when it is not there.
    pub(crate) fn read_text(&self, path: impl AsRef<Path>) -> Result<Option<String>, HostError> {
        let path = path.as_ref();
        let Some(content) = self.read(path)? else { return Ok(None) };
        String::from_utf8(content).map(Some).map_err(|error| HostError {
            action: "read",
            path: path.into(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }

    /// Whether something (a dangling symlink too) has this name.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.entry(path.as_ref()).and_then(fs::symlink_metadata).is_ok()
    }

    /// Target of a symlink; `None` when there is none of this name.
    pub(crate) fn read_link(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        self.entry(path.as_ref()).and_then(fs::read_link).ok()
    }

    /// Makes a file have this content and mode. Returns whether anything had to be written.
    pub(crate) fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> Result<bool, HostError> {
        let path = path.as_ref();
        self.try_write(path, content, mode).map_err(|source| HostError {
            action: "write",
            path: path.into(),
            source,
        })
    }

    fn try_write(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
        let target = self.entry(path)?;
        if let Ok(found) = fs::symlink_metadata(&target)
            && found.is_file()
            && found.permissions().mode() & 0o7777 == mode
            && fs::read(&target)? == content
        {
            self.sweep(&target)?;
            return Ok(false);
        }
        self.replace(&target, mode, &mut &*content)?;
        Ok(true)
    }

    /// Removes what an interrupted write has left beside its target.
    fn sweep(&self, target: &Path) -> io::Result<()> {
        let temporary = temporary_sibling(target);
        if fs::symlink_metadata(&temporary).is_ok() {
            self.effect()?;
            remove_if_there(&temporary)?;
        }
        Ok(())
    }

    /// Copies a program to the host.
    pub(crate) fn install(&self, source: &Path, path: impl AsRef<Path>) -> Result<(), HostError> {
        let path = path.as_ref();
        let copy = || {
            let target = self.entry(path)?;
            self.replace(&target, 0o755, &mut File::open(source)?)
        };
        copy().map_err(|source| HostError { action: "install", path: path.into(), source })
    }

    fn replace(&self, target: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
        let temporary = temporary_sibling(target);
        self.effect()?;
        remove_if_there(&temporary)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode & 0o700 | 0o200).open(&temporary)?;
        let written = io::copy(content, &mut file)
            .and_then(|_| file.flush())
            // The umask has no say in what we install.
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
            .and_then(|()| file.sync_all());
        if let Err(error) = written {
            // A full disk must not stay fuller than it was.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        self.effect()?;
        fs::rename(&temporary, target)?;
        sync_parent(target)
    }

    /// Makes a symlink lead to `target`. Returns whether anything had to be changed.
    pub(crate) fn link(&self, path: impl AsRef<Path>, target: &Path) -> Result<bool, HostError> {
        let path = path.as_ref();
        let make = || {
            let entry = self.entry(path)?;
            if fs::read_link(&entry).is_ok_and(|found| found == target) {
                self.sweep(&entry)?;
                return Ok(false);
            }
            let temporary = temporary_sibling(&entry);
            self.effect()?;
            remove_if_there(&temporary)?;
            symlink(target, &temporary)?;
            self.effect()?;
            fs::rename(&temporary, &entry)?;
            sync_parent(&entry)?;
            Ok(true)
        };
        make().map_err(|source| HostError { action: "link", path: path.into(), source })
    }

    /// Makes a folder exist; its parent must.
    pub(crate) fn make_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<(), HostError> {
        let path = path.as_ref();
        let make = || {
            let entry = self.resolve(path)?;
            if entry.is_dir() {
                return Ok(());
            }
            self.effect()?;
            fs::DirBuilder::new().mode(mode).create(&entry)?;
            fs::set_permissions(&entry, fs::Permissions::from_mode(mode))?;
            sync_parent(&entry)
        };
        make().map_err(|source| HostError { action: "create", path: path.into(), source })
    }

    /// Removes a file or symlink and what an interrupted write of it left. Absent is fine.
    pub(crate) fn remove(&self, path: impl AsRef<Path>) -> Result<(), HostError> {
        let path = path.as_ref();
        let remove = || {
            let entry = self.entry(path)?;
            let mut removed = false;
            for file in [temporary_sibling(&entry), entry.clone()] {
                if fs::symlink_metadata(&file).is_ok() {
                    self.effect()?;
                    removed |= remove_if_there(&file)?;
                }
            }
            if removed { sync_parent(&entry) } else { Ok(()) }
        };
        match remove() {
            Err(error) if is_absent(&error) => Ok(()),
            outcome => outcome.map_err(|source| HostError { action: "remove", path: path.into(), source }),
        }
    }

    /// Removes a folder if nothing is in it.
    pub(crate) fn remove_empty_dir(&self, path: impl AsRef<Path>) -> Result<(), HostError> {
        let path = path.as_ref();
        let remove = || {
            let entry = self.entry(path)?;
            if fs::read_dir(&entry)?.next().is_some() {
                return Ok(());
            }
            self.effect()?;
            fs::remove_dir(&entry)?;
            sync_parent(&entry)
        };
        match remove() {
            Err(error) if is_absent(&error) => Ok(()),
            outcome => outcome.map_err(|source| HostError { action: "remove", path: path.into(), source }),
        }
    }

    /// Removes a folder of ours with everything in it. Anything outside [`names::INSTALL_DIR`] is refused.
    pub(crate) fn remove_tree(&self, path: impl AsRef<Path>) -> Result<(), HostError> {
        let path = path.as_ref();
        let failed = |source| HostError { action: "remove", path: path.into(), source };
        let ours = path.strip_prefix(names::INSTALL_DIR).is_ok_and(|rest| {
            rest.components().next().is_some()
                && rest.components().all(|part| matches!(part, Component::Normal(_)))
        });
        if !ours {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let entry = match self.entry(path) {
            Err(error) if is_absent(&error) => return Ok(()),
            entry => entry.map_err(failed)?,
        };
        if fs::symlink_metadata(&entry).is_err() {
            return Ok(());
        }
        self.effect().map_err(failed)?;
        fs::remove_dir_all(&entry).and_then(|()| sync_parent(&entry)).map_err(failed)
    }

    /// Names in a folder, sorted; none when it is not there.
    pub(crate) fn list(&self, path: impl AsRef<Path>) -> Result<Vec<String>, HostError> {
        let path = path.as_ref();
        let read = || {
            let mut found = Vec::new();
            for entry in fs::read_dir(self.resolve(path)?)? {
                found.push(entry?.file_name().to_string_lossy().into_owned());
            }
            found.sort();
            Ok(found)
        };
        match read() {
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            outcome => outcome.map_err(|source| HostError { action: "list", path: path.into(), source }),
        }
    }

    /// Bytes that may still be written where this folder is.
    pub(crate) fn free_bytes(&self, path: impl AsRef<Path>) -> Result<u64, HostError> {
        let path = path.as_ref();
        let stat = || {
            let stat = rustix::fs::statvfs(&self.resolve(path)?)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        stat().map_err(|source| HostError { action: "examine", path: path.into(), source })
    }

    /// Size, inode and times of a file: changes when the file does, cheap to compare.
    pub(crate) fn stamp(&self, path: impl AsRef<Path>) -> Option<[i64; 4]> {
        let found = self.resolve(path.as_ref()).and_then(fs::metadata).ok()?;
        Some([found.size().cast_signed(), found.ino().cast_signed(), found.ctime(), found.ctime_nsec()])
    }

    /// SHA-256 of a file of the host, hexadecimal; `None` when it is not there.
    pub(crate) fn digest(&self, path: impl AsRef<Path>) -> Result<Option<String>, HostError> {
        let path = path.as_ref();
        match self.resolve(path).and_then(|file| digest(&file)) {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(HostError { action: "read", path: path.into(), source }),
        }
    }

    /// Every change of the node passes here, so that a test can stop the world before any one of them.
    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "a test build can fail here")]
    fn effect(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn effect(&self) -> io::Result<()> {
        self.fuse.burn().map_err(io::Error::other)
    }
}

/// SHA-256 of a file of this container, hexadecimal.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    use std::fmt::Write as _;
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn names_reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn temporary_sibling(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".yurt-tmp");
    path.with_file_name(name)
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Fuse;

    fn host() -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::with_fuse(folder.path(), Fuse::default());
        (folder, host)
    }

    #[test]
    fn an_absolute_symlink_is_followed_inside_the_root() {
        let (folder, host) = host();
        fs::create_dir_all(folder.path().join("var/pki")).unwrap();
        fs::write(folder.path().join("var/pki/2026.pem"), "certificate").unwrap();
        symlink("/var/pki/2026.pem", folder.path().join("var/pki/current.pem")).unwrap();
        assert_eq!(host.read("/var/pki/current.pem").unwrap().unwrap(), b"certificate");
    }

    #[test]
    fn dots_do_not_lead_out_of_the_root() {
        let (folder, host) = host();
        let outside = folder.path().parent().unwrap().join("outside.txt");
        assert_eq!(host.resolve(Path::new("/../../outside.txt")).unwrap(), folder.path().join("outside.txt"));
        assert!(!outside.starts_with(folder.path()));
    }

    #[test]
    fn a_symlink_loop_is_an_error() {
        let (folder, host) = host();
        symlink("/b", folder.path().join("a")).unwrap();
        symlink("/a", folder.path().join("b")).unwrap();
        assert!(host.read("/a").is_err());
    }

    #[test]
    fn the_same_content_is_not_written_twice() {
        let (_folder, host) = host();
        assert!(host.write("/file", b"one", 0o644).unwrap());
        assert!(!host.write("/file", b"one", 0o644).unwrap());
        assert!(host.write("/file", b"one", 0o600).unwrap());
        assert!(host.write("/file", b"two", 0o600).unwrap());
    }

    #[test]
    fn a_write_that_is_interrupted_leaves_the_old_content() {
        let (folder, host) = host();
        host.write("/file", b"old", 0o644).unwrap();
        host.fuse.set(1);
        assert!(host.write("/file", b"new", 0o644).is_err());
        assert_eq!(host.read("/file").unwrap().unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the temporary file is there");
        host.fuse.set(u32::MAX);
        host.remove("/file").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "and goes with the file");
    }

    #[test]
    fn only_our_own_folder_is_ever_removed_as_a_tree() {
        let (folder, host) = host();
        fs::create_dir_all(folder.path().join("opt/yurt/etc")).unwrap();
        for refused in ["/opt", "/opt/yurt", "/etc", "/opt/yurt/../other", "/"] {
            assert!(host.remove_tree(refused).is_err(), "{refused}");
        }
        host.remove_tree("/opt/yurt/etc").unwrap();
        host.remove_tree("/opt/yurt/etc").unwrap();
        assert!(!folder.path().join("opt/yurt/etc").exists());
    }
}
