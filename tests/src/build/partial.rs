//! An artifact while it is made.
//!
//! A folder of its own in the cache, with an `flock` that dies with the build: one that nobody holds is what a
//! killed build left, mounts of debootstrap's included. The programs that a build starts inherit the lock, so
//! a debootstrap that outlives its testbed is not disturbed either.
//!
//! A folder is made and locked in two steps. Both, and looking for dead ones, happen under a lock on the cache.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::{leftovers, run};

const PREFIX: &str = ".partial-";
const LOCK: &str = ".lock";

/// Dropped before it is finished, it goes.
pub(super) struct Partial {
    path: PathBuf,
    _lock: File,
    finished: bool,
}

impl Partial {
    pub(super) fn create(cache: &Path) -> Result<Self> {
        let _cache = lock_cache(cache)?;
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache)?.keep();
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // Inherited.
        fcntl_setfd(&lock, FdFlags::empty())?;
        Ok(Self { path, _lock: lock, finished: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It is complete: this is its name from now on. The name says what it is made of, so one that another build has
    /// finished meanwhile is as good, and this one goes.
    pub(super) fn finish(mut self, name: &Path) -> Result<()> {
        match fs::rename(&self.path, name) {
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            }
            renamed => {
                renamed.with_context(|| format!("naming {}", name.display()))?;
                self.finished = true;
            }
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = remove(&self.path)
        {
            eprintln!("testbed: removing {}: {error:#}", self.path.display());
        }
    }
}

/// Removes what killed builds left.
pub(super) fn sweep(cache: &Path) -> Result<()> {
    if !cache.exists() {
        return Ok(());
    }
    let _cache = lock_cache(cache)?;
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
            continue;
        }
        let lock = File::open(&path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        eprintln!("testbed: removing {}, which a killed build left", path.display());
        remove(&path)?;
    }
    Ok(())
}

fn lock_cache(cache: &Path) -> Result<File> {
    let file =
        File::create(cache.join(LOCK)).with_context(|| format!("opening {LOCK} in {}", cache.display()))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Unmounts first: below a half-made root are the kernel's own file systems.
fn remove(folder: &Path) -> Result<()> {
    leftovers::unmount_below(folder)?;
    let mut command = Command::new("rm");
    command.args(["-rf", "--one-file-system"]).arg(folder);
    run::output(command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait::until_true;

    fn names(cache: &Path) -> Vec<String> {
        let mut found: Vec<String> = fs::read_dir(cache)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != LOCK)
            .collect();
        found.sort();
        found
    }

    #[test]
    fn two_builds_of_the_same_make_one() {
        let cache = tempfile::tempdir().unwrap();
        let builds = [Partial::create(cache.path()).unwrap(), Partial::create(cache.path()).unwrap()];
        for build in builds {
            fs::write(build.path().join("program"), "the same").unwrap();
            build.finish(&cache.path().join("bin-0123")).unwrap();
        }
        assert_eq!(names(cache.path()), ["bin-0123"]);
    }

    #[test]
    fn what_a_dead_build_left_goes_and_what_a_live_one_makes_stays() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join(".partial-dead/debian/proc")).unwrap();
        fs::write(cache.path().join(".partial-dead/debian/file"), "half").unwrap();
        fs::create_dir(cache.path().join("bin-0123")).unwrap();
        let live = Partial::create(cache.path()).unwrap();
        sweep(cache.path()).unwrap();
        let own = live.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(names(cache.path()), [own, "bin-0123".to_owned()]);
        live.finish(&cache.path().join("root-4567")).unwrap();
        assert_eq!(names(cache.path()), ["bin-0123", "root-4567"]);
    }

    #[test]
    fn a_program_that_outlives_its_build_keeps_its_folder() {
        let cache = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(cache.path()).unwrap();
        let mut live = Partial::create(&folder).unwrap();
        let path = live.path().to_owned();
        let mut outlives = Command::new("sleep").arg("600").spawn().unwrap();
        // As after a kill.
        live.finished = true;
        drop(live);
        sweep(&folder).unwrap();
        assert!(path.exists());
        outlives.kill().unwrap();
        outlives.wait().unwrap();
        // Another test may just have started something, which has inherited the lock as well.
        until_true("the folder to be removed", Duration::from_secs(30), || {
            sweep(&folder)?;
            Ok(path.exists().then(|| "it is there".to_owned()))
        })
        .unwrap();
    }

    #[test]
    fn a_build_that_fails_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        drop(Partial::create(cache.path()).unwrap());
        assert!(names(cache.path()).is_empty());
        sweep(&cache.path().join("nowhere")).unwrap();
    }

    #[test]
    #[ignore = "needs root in a mount namespace of its own: unshare --mount"]
    fn what_is_mounted_below_is_unmounted_and_not_emptied() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join(".partial-dead/debian/proc");
        let elsewhere = cache.path().join("elsewhere");
        fs::create_dir_all(&target).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("kept"), "").unwrap();
        let (from, to) = (elsewhere.display().to_string(), target.display().to_string());
        run::sh("mount", &["--bind", &from, &to]).unwrap();
        sweep(cache.path()).unwrap();
        assert_eq!(names(cache.path()), ["elsewhere"]);
        assert!(elsewhere.join("kept").exists());
    }
}
