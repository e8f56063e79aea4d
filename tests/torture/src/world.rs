//! Namespaces of its own: network, mounts, processes.
//!
//! In the network are the ports and 169.254.2.1 that the hub insists on, so any number of these runs and a testbed can be
//! at work on one machine. The first process in a PID namespace takes all others with it when it ends, however it ends,
//! and what is written lies in memory. So nothing is left behind, not even by `kill -9`, and nothing has to be found.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use yurt_api::names::HUB_POD_ADDRESS;
use yurt_tests::build::TortureArtifacts;
use yurt_tests::run::sh;

use crate::Arguments;

/// Everything that is written, in the mount namespace alone.
const FOLDER: &str = "/mnt";
/// An API server advertises neither a loopback nor a link-local address.
pub(crate) const CLUSTER_ADDRESS: &str = "10.80.0.2";

/// Why it cannot run on this machine, if so.
pub(crate) fn impossible() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("namespaces of its own need root".to_owned());
    }
    for program in ["unshare", "ip", "nft", "bash", "mount"] {
        if let Err(error) = sh(program, &["--version"]).or_else(|_| sh(program, &["-V"])) {
            return Some(format!("{program} cannot be run ({error:#})"));
        }
    }
    sh("unshare", &["--net", "--mount", "--pid", "--fork", "true"])
        .err()
        .map(|error| format!("namespaces cannot be made here: {error:#}"))
}

/// Becomes the process that holds the namespaces. Returns only when that fails.
pub(crate) fn enter(
    arguments: &Arguments,
    built: &TortureArtifacts,
    yurtd: &Path,
    load: &Path,
    keep: &Path,
    seed: u64,
) -> Result<ExitCode> {
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .args(["--kills", &arguments.kills.to_string(), "--stores", &arguments.stores.to_string()])
        .args(["--seconds", &arguments.seconds.to_string(), "--seed", &seed.to_string()])
        .args(["--rate", &arguments.rate.to_string(), "--bulk", &arguments.bulk.to_string()])
        .args(arguments.lenient.then_some("--lenient"))
        .arg("--yurtd")
        .arg(absolute(yurtd)?)
        .arg("--keep")
        .arg(absolute(keep)?)
        .args(arguments.figures.map(|seconds| format!("--figures={seconds}")))
        .args(arguments.no_lists.then_some("--no-lists"))
        .args(["--rounds", &arguments.rounds.to_string()])
        .arg("--load")
        .arg(absolute(load)?)
        .arg("--inside")
        .arg(absolute(&built.bin)?)
        .arg(absolute(&built.clients)?);
    for beside in &arguments.beside {
        command.arg("--beside").arg(absolute(beside)?);
    }
    Err(command.exec()).context("starting unshare")
}

/// Sets the namespaces up, and ends with them when told to. Returns the folder to write to.
pub(crate) fn prepare() -> Result<PathBuf> {
    // The kernel ignores signals to the first process of a namespace that it does not handle itself.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            std::process::exit(128 + signal);
        }
    });
    sh("mount", &["-t", "tmpfs", "-o", "size=60%,mode=700", "torture", FOLDER])?;
    sh("ip", &["link", "set", "lo", "up"])?;
    for address in [HUB_POD_ADDRESS, CLUSTER_ADDRESS] {
        sh("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"])?;
    }
    Ok(PathBuf::from(FOLDER))
}
