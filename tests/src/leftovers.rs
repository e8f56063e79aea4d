//! Removing a testbed: one's own at the end, or what a killed run left, recognised by its names.

use std::fs;
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
        unmount_below(&state.display().to_string())?;
        // Never across a mount: what is mounted below belongs to somebody else.
        let mut command = Command::new("rm");
        command.args(["-rf", "--one-file-system"]).arg(&state);
        run::output(command).context("removing the machines' disks")?;
    }
    Ok(())
}

fn unmount_below(folder: &str) -> Result<()> {
    until_true("the machines' mounts to be gone", Duration::from_secs(20), || {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|target| target.starts_with(folder))
            .collect();
        ours.sort_by_key(|target| std::cmp::Reverse(target.len()));
        for target in &ours {
            run::sh("umount", &["-l", target]).ok();
        }
        Ok((!ours.is_empty()).then(|| ours.join(" ")))
    })?;
    Ok(())
}
