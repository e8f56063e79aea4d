//! A program of the rig: started with a log of its own, and ended with whoever started it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use yurt_tests::run::{describe, tail};

/// A program that runs until it is ended.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// Opens a log, to write on.
pub(crate) fn log(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())
}

impl Process {
    /// Starts a program; what it says goes to a file of its name.
    pub(crate) fn start(name: &'static str, folder: &Path, mut command: Command) -> Result<Self> {
        let path = folder.join(name).with_extension("log");
        let file = log(&path)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting `{}`", describe(&command)))?;
        Ok(Self { name, child, log: path })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended, with its last words.
    pub(crate) fn lives(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{} has ended ({status}): {}", self.name, tail(&text, 20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
