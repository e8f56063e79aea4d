//! A machine: systemd as PID 1 on a disk of its own, in a network namespace, under systemd-nspawn.
//!
//! A machine is recognised by the nspawn process that runs on its root, so that a second process (a
//! person at the terminal while a test runs) can find and use it; nothing here remembers a PID.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::{self, Finished};
use crate::wait::until_true;
use crate::{cgroup, net, paths};

/// The environment of a command in a machine: a login's, not the caller's.
const ENVIRONMENT: &[&str] = &[
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "KUBECONFIG=/etc/kubernetes/admin.conf",
];

#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    namespace: String,
    root: PathBuf,
}

impl Machine {
    /// Makes a machine's disk from the prepared root. It is not started.
    pub fn create(name: &str, namespace: &str, prepared: &Path, hosts: &str, resolver: &str) -> Result<Self> {
        let machine = Self::named(name, namespace);
        let parent = machines();
        fs::create_dir_all(&parent)?;
        fs::create_dir(&machine.root).with_context(|| format!("making {}", machine.root.display()))?;
        run::sh(
            "cp",
            &[
                "-a",
                "--reflink=auto",
                &format!("{}/.", prepared.display()),
                &machine.root.display().to_string(),
            ],
        )?;
        fs::write(machine.root.join("etc/hostname"), format!("{name}\n"))?;
        fs::write(machine.root.join("etc/hosts"), format!("127.0.0.1 localhost\n{hosts}"))?;
        fs::write(
            machine.root.join("etc/resolv.conf"),
            format!("nameserver {resolver}\noptions timeout:1 attempts:1\n"),
        )?;
        Ok(machine)
    }

    fn named(name: &str, namespace: &str) -> Self {
        Self { name: name.to_owned(), namespace: namespace.to_owned(), root: machines().join(name) }
    }

    /// A machine that exists on disk, running or not.
    pub fn find(name: &str) -> Result<Self> {
        let machine = Self::named(name, &format!("{}m-{name}", paths::PREFIX));
        if !machine.root.is_dir() {
            let names = fs::read_dir(machines())
                .map(|entries| {
                    entries
                        .flatten()
                        .map(|e| e.file_name().to_string_lossy().into_owned())
                        .collect::<Vec<_>>()
                })
                .unwrap_or_default();
            bail!("no machine {name:?}; there are: {}", names.join(" "));
        }
        Ok(machine)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine's root as the host sees it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Switches the machine on; returns when its systemd answers.
    pub fn start(&self) -> Result<()> {
        let procs = cgroup::create(&self.name)?;
        let console = File::create(self.console())?;
        // The shell enters the machine's cgroups and becomes nspawn there.
        let enter: String = procs.iter().map(|file| format!("echo $$ > {}\n", file.display())).collect();
        // In a session of its own: a Ctrl-C or the end of a terminal is for the testbed, which stops its
        // machines itself, or leaves them running.
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-ec", &format!("{enter}exec systemd-nspawn \"$@\""), "sh", "-q", "-D"])
            .arg(&self.root)
            .args(["-M", &self.name, "--register=no", "--keep-unit"])
            .arg(format!("--network-namespace-path=/run/netns/{}", self.namespace))
            .args([
                "--capability=all",
                "--bind=/dev/kmsg",
                "--bind=/dev/fuse",
                "--system-call-filter=add_key keyctl bpf",
                "--resolv-conf=off",
                "--timezone=off",
                "--console=pipe",
                "-b",
            ])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console);
        let mut nspawn = command.spawn().context("starting systemd-nspawn")?;
        // Somebody must collect its exit code.
        std::thread::spawn(move || nspawn.wait());
        until_true(&format!("systemd of {} to answer", self.name), Duration::from_secs(90), || {
            let state = self.exec(["systemctl", "show", "-p", "SystemState", "--value"])?;
            Ok(if state.ok() { None } else { Some(format!("{state}\n{}", self.console_tail())) })
        })?;
        Ok(())
    }

    fn console(&self) -> PathBuf {
        paths::state().join(format!("{}.console", self.name))
    }

    fn console_tail(&self) -> String {
        run::tail(&fs::read_to_string(self.console()).unwrap_or_default(), 15)
    }

    /// The machine's nspawn process, if it runs.
    fn nspawn(&self) -> Option<i32> {
        nspawns().into_iter().find(|(_, root)| *root == self.root).map(|(pid, _)| pid)
    }

    pub fn is_running(&self) -> bool {
        self.nspawn().is_some()
    }

    /// The host's PID of the machine's PID 1.
    pub fn init(&self) -> Result<Pid> {
        let nspawn = self.nspawn().with_context(|| format!("machine {} does not run", self.name))?;
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children"))?;
        children
            .split_whitespace()
            .find(|pid| innermost_pid(pid) == Some(1))
            .and_then(|pid| pid.parse().ok())
            .and_then(Pid::from_raw)
            .with_context(|| format!("machine {} has no PID 1 yet", self.name))
    }

    /// A command inside the machine, with a login's environment.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Command> {
        let init = self.init()?;
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &init.as_raw_nonzero().to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"])
            .args(["env", "-i"])
            .args(ENVIRONMENT)
            .args(words);
        Ok(command)
    }

    /// Runs a command in the machine to its end, whatever that is.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Finished> {
        run::run(self.command(words)?)
    }

    /// Runs a shell script in the machine, which must succeed; returns what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(["sh", "-ec", script])?.success().with_context(|| format!("on {}", self.name))
    }

    /// Runs a command in the machine with `input` on its standard input; it must succeed.
    pub fn feed<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>, input: File) -> Result<String> {
        run::run_from(self.command(words)?, input)?.success()
    }

    /// Writes a file in the machine; `path` is absolute there.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))
    }

    /// Takes the power away: no process of the machine gets to do anything more.
    pub fn power_cut(&self) -> Result<()> {
        let nspawn = self.nspawn().with_context(|| format!("machine {} does not run", self.name))?;
        kill_process(self.init()?, Signal::KILL).context("killing a machine's PID 1")?;
        self.wait_gone(nspawn)
    }

    /// The polite kind: every unit is stopped in order, then the machine starts again.
    pub fn reboot(&self) -> Result<()> {
        let nspawn = self.nspawn().with_context(|| format!("machine {} does not run", self.name))?;
        self.exec(["systemctl", "poweroff"])?.success()?;
        self.wait_gone(nspawn)?;
        self.start()
    }

    fn wait_gone(&self, nspawn: i32) -> Result<()> {
        until_true(&format!("{} to be off", self.name), Duration::from_secs(120), || {
            Ok(is_alive(nspawn).then(|| format!("process {nspawn} is there")))
        })?;
        cgroup::remove(Some(&self.name))?;
        net::forget(&self.namespace)
    }

    /// Power cut and start: the machine is off for no longer than that takes.
    pub fn power_cycle(&self) -> Result<Instant> {
        self.power_cut()?;
        let on = Instant::now();
        self.start()?;
        Ok(on)
    }
}

/// The folder with a root per machine.
pub fn machines() -> PathBuf {
    paths::state().join("machines")
}

/// Every machine of the testbed that runs: nspawn's PID and the root it runs on.
pub fn nspawns() -> Vec<(i32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_alive(*pid))
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            if !words.next()?.ends_with("systemd-nspawn") {
                return None;
            }
            words.find(|word| word == "-D")?;
            let root = PathBuf::from(words.next()?.into_owned());
            root.starts_with(machines()).then_some((pid, root))
        })
        .collect()
}

/// A zombie is as good as gone: who should collect it is not ours to say.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().chars().next()? != 'Z'))
        .unwrap_or(false)
}

/// A process's PID in the innermost PID namespace that it is in.
fn innermost_pid(pid: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
