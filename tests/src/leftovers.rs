//! Removing a testbed: one's own at the end, or what a killed run left, recognised by its names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until_true;
use crate::{cgroup, machine, net, paths, run};

/// What there is of a testbed now, for people; empty when there is none.
pub fn describe() -> Vec<String> {
    let mut found: Vec<String> = machine::nspawns()
        .into_iter()
        .map(|(pid, root)| format!("machine {} (process {pid})", root.display()))
        .collect();
    found.extend(net::namespaces().unwrap_or_default().into_iter().map(|name| format!("namespace {name}")));
    if machine::machines().exists() {
        found.push(format!("disks in {}", machine::machines().display()));
    }
    found
}

/// Removes machines, namespaces, links, mounts, cgroups and disks, in the order in which they depend
/// on each other. Does nothing where there is nothing.
pub fn remove() -> Result<()> {
    for (pid, root) in machine::nspawns() {
        let init = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for pid in init.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([pid]) {
            if let Some(pid) = Pid::from_raw(pid) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        until_true(&format!("{} to be off", root.display()), Duration::from_secs(30), || {
            Ok(machine::is_alive(pid).then(|| format!("process {pid} is there")))
        })?;
    }
    cgroup::remove(None)?;
    net::remove_all()?;
    let state = paths::state();
    if state.exists() {
        unmount_below(&state)?;
        // Never across a mount: what is mounted below belongs to somebody else.
        let mut command = Command::new("rm");
        command.args(["-rf", "--one-file-system"]).arg(&state);
        run::output(command).context("removing the machines' disks")?;
    }
    Ok(())
}

/// Unmounts whatever is mounted on or below a folder.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    until_true(
        &format!("the mounts below {} to be gone", folder.display()),
        Duration::from_secs(20),
        || {
            let ours = mounts_below(&fs::read_to_string("/proc/self/mounts")?, folder);
            for target in &ours {
                let mut command = Command::new("umount");
                command.arg("-l").arg(target);
                run::run(command)?;
            }
            let left: Vec<String> = ours.iter().map(|target| target.display().to_string()).collect();
            Ok((!left.is_empty()).then(|| left.join(" ")))
        },
    )?;
    Ok(())
}

/// The mount points in a folder, the deepest first.
fn mounts_below(mounts: &str, folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .filter(|target| target.starts_with(folder))
        .collect();
    found.sort_by_key(|target| std::cmp::Reverse(target.as_os_str().len()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_folder_whose_name_begins_the_same_are_not_touched() {
        let mounts = "proc /c/.partial-a/debian/proc proc rw 0 0\nsysfs /c/.partial-a/debian sysfs rw 0 0\n\
            proc /c/.partial-ab/proc proc rw 0 0\ntmpfs /with\\040space/x tmpfs rw 0 0\n";
        let below = |folder: &str| mounts_below(mounts, Path::new(folder));
        assert_eq!(
            below("/c/.partial-a"),
            [PathBuf::from("/c/.partial-a/debian/proc"), PathBuf::from("/c/.partial-a/debian")]
        );
        assert_eq!(below("/with space"), [PathBuf::from("/with space/x")]);
        assert!(below("/c/.partial").is_empty());
    }
}
