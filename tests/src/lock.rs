//! One testbed at a time on a machine: it owns addresses, names and cgroups.
//!
//! An `flock`, because it dies with its process however that ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

const PATH: &str = "/run/lock/yurt-testbed.lock";

/// Held for as long as this value lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub fn take() -> Result<Self> {
        std::fs::create_dir_all("/run/lock").context("making /run/lock")?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(PATH)
            .with_context(|| format!("opening {PATH} (the testbed needs root)"))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut owner = String::new();
            file.read_to_string(&mut owner).ok();
            bail!("another testbed is at work on this machine (process {})", owner.trim());
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}
