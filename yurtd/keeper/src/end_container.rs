//! `yurtd end-container`: ends the processes of one container, and kubelet starts it again in its place.
//!
//! It runs on the host, in a transient unit of systemd: the keeper itself sees no process of another pod that it could
//! signal. A container is found by its cgroup, which every runtime and cgroup driver names after the container's id. The
//! first process gets TERM and, after a while, KILL, as from a runtime; the rest of the container ends with it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long the kernel may take to end a process that was killed.
const KILLED: Duration = Duration::from_secs(10);
/// Ids of containers are 64 hexadecimal digits. One that is much shorter might be a part of somebody else's name.
const SHORTEST_ID: usize = 32;
/// What stands before the id in the name of a container's cgroup: with the cgroup driver `cgroupfs` nothing, with `systemd`
/// the runtime's word.
const PREFIXES: [&str; 4] = ["", "cri-containerd-", "crio-", "docker-"];

/// Ends a container: TERM, and KILL to what still runs after `grace`. One that does not run is no error. Blocks.
///
/// # Errors
///
/// When the id is none, processes cannot be seen or signalled, or one does not end.
pub fn run(id: &str, grace: Duration) -> anyhow::Result<()> {
    end(Path::new("/proc"), id, grace)
}

fn end(proc: &Path, id: &str, grace: Duration) -> anyhow::Result<()> {
    if id.len() < SHORTEST_ID || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        bail!("{id:?} is no id of a container");
    }
    let mut left = first_processes(proc, id).context("cannot look for the container's processes")?;
    for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, KILLED)] {
        for process in &left {
            match pidfd_send_signal(process, signal) {
                // It has ended in the meantime.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).context("cannot signal a process of the container"),
            }
        }
        let deadline = Instant::now() + patience;
        let mut running = Vec::new();
        for process in left {
            if !ends_by(&process, deadline)? {
                running.push(process);
            }
        }
        if running.is_empty() {
            return Ok(());
        }
        left = running;
    }
    bail!("{} processes of the container do not end", left.len())
}

/// The processes of a container whose parents are not in it: its first one, and what was executed in it from outside.
fn first_processes(proc: &Path, id: &str) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc)? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if !is_first(proc, pid, id) {
            continue;
        }
        // Looked at again through what cannot become another process: its number may have been given away.
        // Without flags: the kernel knows none before 5.10.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            // It has ended in the meantime.
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_first(proc, pid, id) {
            found.push(process);
        }
    }
    Ok(found)
}

/// Whether a process is in the container and its parent is not. One that has ended is in none.
fn is_first(proc: &Path, pid: Pid, id: &str) -> bool {
    let read = |pid: i32, file: &str| std::fs::read_to_string(proc.join(pid.to_string()).join(file));
    let inside = |pid: i32| read(pid, "cgroup").is_ok_and(|text| names_container(&text, id));
    let pid = pid.as_raw_nonzero().get();
    inside(pid) && !read(pid, "stat").ok().and_then(|text| parent(&text)).is_some_and(inside)
}

/// Whether a process' cgroup (`/proc/PID/cgroup`, see `cgroups(7)`) is that of a container or below it.
fn names_container(text: &str, id: &str) -> bool {
    let is_its = |part: &str| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        PREFIXES.iter().any(|prefix| part.strip_prefix(prefix) == Some(id))
    };
    // Runtimes of old nodes nest by colons: `…:cri-containerd:ID`.
    text.lines().any(|line| line.split(['/', ':']).any(is_its))
}

/// The parent in `/proc/PID/stat`: the second field behind the name, which may have blanks and brackets in it.
fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Waits until a process has ended; says whether it did by then.
fn ends_by(process: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        // A process' descriptor becomes readable when the process ends: pidfd_open(2).
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// Real processes in an invented `/proc`.
    struct Processes {
        proc: TempDir,
        children: Vec<Child>,
    }

    impl Processes {
        fn new() -> Self {
            let proc = tempfile::tempdir().unwrap();
            std::fs::create_dir(proc.path().join("sys")).unwrap();
            Self { proc, children: Vec::new() }
        }

        /// Starts one and waits until it has done what it does first.
        fn start(&mut self, first: &str, cgroup: &str, parent: Option<u32>) -> u32 {
            let mut child = Command::new("sh")
                .args(["-c", &format!("{first}; echo; exec sleep 1000 >&-")])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
            let pid = child.id();
            let folder = self.proc.path().join(pid.to_string());
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
            let parent = parent.unwrap_or(1);
            std::fs::write(folder.join("stat"), format!("{pid} (a) b) S {parent} 1 1 0")).unwrap();
            self.children.push(child);
            pid
        }

        /// By which signal each one ended, if it did.
        fn signals(&mut self) -> Vec<Option<i32>> {
            let ended = self.children.iter_mut().map(|child| child.try_wait().unwrap());
            ended.map(|status| status.and_then(|status| status.signal())).collect()
        }
    }

    impl Drop for Processes {
        fn drop(&mut self) {
            for child in &mut self.children {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }

    #[test]
    fn only_the_first_process_of_the_container_is_asked_to_end() {
        let mut processes = Processes::new();
        let mine = format!("/kubepods/besteffort/pod7/{ID}");
        let first = processes.start(":", &mine, None);
        processes.start(":", &mine, Some(first));
        processes.start(":", "/kubepods/besteffort/pod7/0000", None);
        end(processes.proc.path(), ID, Duration::from_secs(30)).unwrap();
        assert_eq!(processes.signals(), [Some(15), None, None]);
    }

    #[test]
    fn a_process_that_does_not_listen_is_killed() {
        let mut processes = Processes::new();
        processes.start("trap '' TERM", &format!("/a.slice/crio-{ID}.scope/container"), None);
        end(processes.proc.path(), ID, Duration::from_millis(50)).unwrap();
        assert_eq!(processes.signals(), [Some(9)]);
    }

    #[test]
    fn a_container_that_does_not_run_has_ended_and_what_is_no_id_is_refused() {
        let processes = Processes::new();
        end(processes.proc.path(), ID, Duration::ZERO).unwrap();
        for id in ["", "abc", "../../../../../../../../../../../../../etc"] {
            assert!(end(processes.proc.path(), id, Duration::ZERO).is_err(), "{id}");
        }
    }

    #[test]
    fn a_process_that_has_ended_is_none_and_one_that_cannot_be_opened_is_an_error() {
        let mut processes = Processes::new();
        let pid = processes.start(":", &format!("/{ID}"), None);
        let mine = processes.proc.path().join(pid.to_string());
        // Larger than any process' number.
        let gone = processes.proc.path().join(i32::MAX.to_string());
        std::fs::rename(&mine, &gone).unwrap();
        end(processes.proc.path(), ID, Duration::ZERO).unwrap();
        assert_eq!(processes.signals(), [None]);
        // A thread, not a process: the kernel opens none of those.
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (told, tid) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            told.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
            receiver.recv().ok();
        });
        let thread_id = tid.recv().unwrap();
        std::fs::rename(&gone, processes.proc.path().join(thread_id.file_name().unwrap())).unwrap();
        assert!(end(processes.proc.path(), ID, Duration::ZERO).is_err());
        drop(sender);
        thread.join().unwrap();
    }

    #[test]
    fn a_container_is_found_in_the_cgroups_of_every_driver() {
        for cgroup in [
            format!("0::/kubepods/burstable/poda/{ID}"),
            format!("0::/../../kubepods.slice/kubepods-poda.slice/cri-containerd-{ID}.scope"),
            format!("4:memory:/x\n0::/kubepods.slice/docker-{ID}.scope/init"),
            format!("0::/system.slice/containerd.service/kubepods-poda.slice:cri-containerd:{ID}"),
        ] {
            assert!(names_container(&cgroup, ID), "{cgroup}");
        }
        for cgroup in ["0::/".into(), format!("0::/a.slice/crio-conmon-{ID}.scope"), format!("0::/x{ID}")] {
            assert!(!names_container(&cgroup, ID), "{cgroup}");
        }
    }
}
