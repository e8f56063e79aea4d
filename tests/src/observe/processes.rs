//! Processes of pods, seen in the host's cgroups: the one place that neither kubelet nor the API server
//! has a say in, and that can be read while a node is cut off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{cgroup, run};

/// The first process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pod_uid: String,
    pub pid: i32,
}

/// Every container that runs on a machine, without the pause containers.
pub fn of_pods(machine: &str) -> Vec<Process> {
    let Some(top) =
        cgroup::of_machine(machine).into_iter().map(|group| group.join("kubepods")).find(|p| p.exists())
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    descend(&top, None, &mut found);
    found
}

fn descend(group: &Path, pod: Option<&str>, found: &mut Vec<Process>) {
    if let Some(uid) = pod
        && let Some(pid) = first_process(group)
    {
        found.push(Process { pod_uid: uid.to_owned(), pid });
    }
    let Ok(entries) = fs::read_dir(group) else { return };
    let mut below: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    below.sort();
    for path in below {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        descend(&path, pod.or(name.strip_prefix("pod")), found);
    }
}

fn first_process(group: &Path) -> Option<i32> {
    let pid = fs::read_to_string(group.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() != "pause").then_some(pid)
}

/// Asks a web server on a process's own loopback; `Err` says why the answer is not it.
pub fn answers(pid: i32, path: &str, expected: &str) -> Result<()> {
    let body = inside(pid, &["-n"], &["curl", "-sS", "-f", "-m", "2", &format!("http://127.0.0.1{path}")])?;
    if !body.contains(expected) {
        bail!("{path} is {body:?}, not {expected:?}");
    }
    Ok(())
}

/// Runs a program of the container's own image as one of its processes would run it.
pub fn exec(pid: i32, words: &[&str]) -> Result<String> {
    inside(pid, &["-m", "-n", "-u", "-i", "-p"], words)
}

fn inside(pid: i32, namespaces: &[&str], words: &[&str]) -> Result<String> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string()]).args(namespaces).arg("--").args(words);
    run::output(command)
}
