//! Private files that are always whole: written beside, synced, renamed.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes a file have this text and be readable by its owner alone. Returns whether it had to be written.
pub(super) fn keep(path: &Path, text: &str) -> io::Result<bool> {
    let there = std::fs::read(path).is_ok_and(|found| found == text.as_bytes());
    if there && std::fs::symlink_metadata(path)?.permissions().mode() & 0o7777 == 0o600 {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = beside(path, ".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Moves a file out of the way, for a person to look at; the one from before is replaced.
pub(super) fn set_aside(path: &Path) -> PathBuf {
    let aside = beside(path, ".damaged");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "a damaged file cannot be set aside; it is replaced");
    }
    aside
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_whole_and_written_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/ca.pem");
        assert!(keep(&path, "one").unwrap());
        assert!(!keep(&path, "one").unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        // What a killed process left is in nobody's way.
        std::fs::write(dir.path().join("state/ca.pem.new"), "half").unwrap();
        assert!(keep(&path, "one").unwrap());
        assert_eq!(mode(&path), 0o600);
        assert!(keep(&path, "two").unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path().join("state")).unwrap().count(), 1);
    }
}
