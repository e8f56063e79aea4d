//! A cgroup of its own for every machine, in every hierarchy of this host.
//!
//! nspawn makes a cgroup namespace from wherever it is started. Started inside a group of its own,
//! what kubelet calls `/kubepods` is `/yurt-testbed/NAME/kubepods` here: two kubelets on one kernel
//! neither see nor clean up each other's pods, and the groups that a killed machine leaves (cAdvisor
//! would spend three seconds on each of them at the next boot) can be found and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths::CGROUP;
use crate::wait::until_true;

const ROOT: &str = "/sys/fs/cgroup";

/// The mounted hierarchies: one folder per controller under v1, the root itself under v2.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ROOT)];
    }
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        // `cpu,cpuacct` is often linked from `cpu`: one mount, one folder.
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    found
}

/// Makes the groups of a machine; returns the `cgroup.procs` files a process writes itself into.
pub fn create(machine: &str) -> Result<Vec<PathBuf>> {
    let mut procs = Vec::new();
    for hierarchy in hierarchies() {
        let parent = hierarchy.join(CGROUP);
        let own = parent.join(machine);
        for folder in [&parent, &own] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let inherited = hierarchy.join(file);
                if inherited.exists() && hierarchy.join("cgroup.clone_children").exists() {
                    fs::write(folder.join(file), fs::read(inherited)?)?;
                }
            }
        }
        procs.push(own.join("cgroup.procs"));
    }
    Ok(procs)
}

/// A machine's group in every hierarchy.
pub fn of_machine(machine: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.join(CGROUP).join(machine)).collect()
}

/// Kills what still runs in a machine's groups (all machines': `None`) and removes them.
pub fn remove(machine: Option<&str>) -> Result<()> {
    let tops: Vec<PathBuf> = hierarchies()
        .into_iter()
        .map(|hierarchy| match machine {
            Some(name) => hierarchy.join(CGROUP).join(name),
            None => hierarchy.join(CGROUP),
        })
        .filter(|path| path.exists())
        .collect();
    until_true("the machine's cgroups to be empty", Duration::from_secs(30), || {
        let mut left = None;
        for top in &tops {
            for group in groups_bottom_up(top) {
                for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                    if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                    }
                }
                if let Err(error) = fs::remove_dir(&group)
                    && group.exists()
                {
                    left = Some(format!("{}: {error}", group.display()));
                }
            }
        }
        Ok(left)
    })?;
    Ok(())
}

fn groups_bottom_up(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(top) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found.extend(groups_bottom_up(&entry.path()));
        }
    }
    if top.exists() {
        found.push(top.to_owned());
    }
    found
}
