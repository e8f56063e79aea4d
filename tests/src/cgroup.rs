//! A cgroup of its own for every machine, in every hierarchy of this host.
//!
//! nspawn makes a cgroup namespace from wherever it is started. Started inside a group of its own,
//! what kubelet calls `/kubepods` is `/yurt-testbed/NAME/kubepods` here (under v2
//! `/yurt-testbed/NAME/payload/kubepods`): two kubelets on one kernel neither see nor clean up each
//! other's pods, and the groups that a killed machine leaves (cAdvisor would spend three seconds on each
//! of them at the next boot) can be found and removed.
//!
//! Under v2 a group has the controllers that every group above it hands down, and only the root of all
//! groups may have processes of its own and hand something down. The machine's own group hands down
//! nothing while its first process enters it: nspawn moves itself and the machine into two groups below,
//! then hands on everything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths::CGROUP;
use crate::wait::until_true;

const ROOT: &str = "/sys/fs/cgroup";

/// What systemd and kubelet manage in a machine, as far as the kernel has it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Whether there is one hierarchy for everything (v2).
fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// The mounted hierarchies: one folder per controller under v1, the root itself under v2.
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if is_unified(root) {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
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
    create_below(Path::new(ROOT), machine)
}

fn create_below(root: &Path, machine: &str) -> Result<Vec<PathBuf>> {
    let mut procs = Vec::new();
    for hierarchy in hierarchies(root) {
        let parent = hierarchy.join(CGROUP);
        let own = parent.join(machine);
        if is_unified(root) {
            hand_down(&hierarchy)?;
            fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
            hand_down(&parent)?;
        }
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

/// Lets the groups below a group of v2 have every controller that it has itself.
fn hand_down(group: &Path) -> Result<()> {
    let text = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    let (has, hands_down) = (text("cgroup.controllers"), text("cgroup.subtree_control"));
    let is_in = |list: &str, name: &str| list.split_whitespace().any(|found| found == name);
    for name in CONTROLLERS.iter().filter(|name| is_in(&has, name) && !is_in(&hands_down, name)) {
        // One a write: the kernel takes all of a write or nothing.
        let control = group.join("cgroup.subtree_control");
        write_control(&control, &format!("+{name}"))
            .with_context(|| format!("{}: switching the {name} controller on", control.display()))?;
    }
    Ok(())
}

/// Writes to a file of the kernel's, which is there or will not be.
fn write_control(file: &Path, text: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().append(true).open(file)?.write_all(text.as_bytes())
}

/// Why machines here would have no controllers, if so, and what to do about it.
pub fn impossible() -> Option<String> {
    impossible_below(Path::new(ROOT))
}

fn impossible_below(root: &Path) -> Option<String> {
    if !is_unified(root) {
        return hierarchies(root)
            .is_empty()
            .then(|| format!("no cgroup hierarchy is mounted at {}", root.display()));
    }
    hand_down(root).err().map(|error| refusal(root, &error))
}

fn refusal(root: &Path, error: &anyhow::Error) -> String {
    let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let why = match code.map(rustix::io::Errno::from_raw_os_error) {
        // We are in a container, and what it runs is in the group that it takes for the root. Those processes are
        // not ours to move.
        Some(rustix::io::Errno::BUSY) => format!(
            "this container's own processes are in its root cgroup; start it with the host's cgroups (docker: \
             --cgroupns=host), or move them first: `mkdir {root}/init; for p in $(cat {root}/cgroup.procs); do echo \
             $p > {root}/init/cgroup.procs; done`",
            root = root.display()
        ),
        Some(rustix::io::Errno::ROFS) => {
            "this container's cgroups are read-only; start it privileged (docker: --privileged)".to_owned()
        }
        _ => format!("{error:#}"),
    };
    format!("machines cannot be given cgroup controllers: {why}")
}

/// A machine's group in every hierarchy, as the machine sees it: its root.
pub fn of_machine(machine: &str) -> Vec<PathBuf> {
    of_machine_below(Path::new(ROOT), machine)
}

fn of_machine_below(root: &Path, machine: &str) -> Vec<PathBuf> {
    let inner = if is_unified(root) { "payload" } else { "" };
    hierarchies(root).into_iter().map(|found| found.join(CGROUP).join(machine).join(inner)).collect()
}

/// Kills what still runs in a machine's groups (all machines': `None`) and removes them.
pub fn remove(machine: Option<&str>) -> Result<()> {
    let tops: Vec<PathBuf> = hierarchies(Path::new(ROOT))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A root of v2 as a folder: `cgroup.subtree_control` keeps what is written to it, one write after the other.
    fn unified(controllers: &str, enabled: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), controllers, enabled);
        root
    }

    fn group(folder: &Path, controllers: &str, enabled: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("cgroup.controllers"), controllers).unwrap();
        fs::write(folder.join("cgroup.subtree_control"), enabled).unwrap();
        fs::write(folder.join("cgroup.procs"), "").unwrap();
    }

    fn written(group: &Path) -> String {
        fs::read_to_string(group.join("cgroup.subtree_control")).unwrap()
    }

    #[test]
    fn under_v2_every_group_above_the_machine_s_hands_controllers_down_and_its_own_does_not() {
        let root = unified("cpuset cpu io memory pids rdma", "memory pids");
        let parent = root.path().join(CGROUP);
        group(&parent, "cpuset cpu memory pids", "");
        group(&parent.join("edge"), "cpuset cpu memory pids", "");
        let procs = create_below(root.path(), "edge").unwrap();
        assert_eq!(procs, [parent.join("edge/cgroup.procs")]);
        // What is on stays as it is, and what the kernel lacks (hugetlb) is not asked for.
        assert_eq!(written(root.path()), "memory pids+cpu+cpuset+io");
        assert_eq!(written(&parent), "+cpu+cpuset+memory+pids");
        assert_eq!(written(&parent.join("edge")), "", "a process could not enter it any more");
    }

    #[test]
    fn under_v1_no_such_file_is_written_and_cpusets_are_inherited() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["cpuset", "memory"] {
            fs::create_dir(root.path().join(controller)).unwrap();
            fs::write(root.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        fs::write(root.path().join("cpuset/cpuset.cpus"), "0-1").unwrap();
        fs::write(root.path().join("cpuset/cgroup.clone_children"), "0").unwrap();
        let procs = create_below(root.path(), "edge").unwrap();
        let own = |controller: &str| root.path().join(controller).join(CGROUP).join("edge");
        assert_eq!(procs, [own("cpuset").join("cgroup.procs"), own("memory").join("cgroup.procs")]);
        assert_eq!(fs::read_to_string(own("cpuset").join("cpuset.cpus")).unwrap(), "0-1");
        assert!(!root.path().join("memory").join(CGROUP).join("cgroup.subtree_control").exists());
        assert_eq!(of_machine_below(root.path(), "edge"), [own("cpuset"), own("memory")]);
        assert_eq!(impossible_below(root.path()), None);
    }

    #[test]
    fn a_machine_s_own_root_under_v2_is_the_payload_that_nspawn_makes() {
        let root = unified("cpu", "cpu");
        assert_eq!(of_machine_below(root.path(), "edge"), [root.path().join(CGROUP).join("edge/payload")]);
        assert_eq!(impossible_below(root.path()), None);
    }

    #[test]
    fn a_root_that_refuses_is_named() {
        let root = unified("cpu memory", "");
        fs::remove_file(root.path().join("cgroup.subtree_control")).unwrap();
        let why = impossible_below(root.path()).unwrap();
        assert!(why.contains("cgroup controllers") && why.contains("subtree_control"), "{why}");
        assert!(create_below(root.path(), "edge").is_err());
        for (errno, advice) in
            [(rustix::io::Errno::BUSY, "--cgroupns=host"), (rustix::io::Errno::ROFS, "--privileged")]
        {
            let error = anyhow::Error::from(io::Error::from(errno)).context("switching it on");
            assert!(refusal(root.path(), &error).contains(advice));
        }
    }

    #[test]
    fn a_folder_without_any_hierarchy_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert!(impossible_below(root.path()).unwrap().contains("no cgroup hierarchy"));
    }
}
