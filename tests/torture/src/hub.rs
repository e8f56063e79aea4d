//! The hub as a process, and what systemd does for it: it holds the sockets, passes them on, and starts it again when it
//! has ended.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use yurt_api::names::{HUB_HEALTH_PORT, HUB_POD_ADDRESS, HUB_POD_PORT, HUB_PORT};

use crate::process;

/// As in the unit.
const RESTART: Duration = Duration::from_millis(100);
/// From this number on file descriptors are only these.
const FIRST_DESCRIPTOR: i32 = 100;
/// bash takes descriptors of more than one digit; it has the PID that the hub will have.
const PASS: &str = "exec 3<&100- 4<&101- 5<&102-; export LISTEN_PID=$$ LISTEN_FDS=3; exec \"$@\"";

/// The hub. It is started again whenever it ends, until this value is dropped.
pub(crate) struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    config: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    _sockets: Vec<OwnedFd>,
    running: Mutex<Running>,
    over: AtomicBool,
}

struct Running {
    program: PathBuf,
    child: Option<Child>,
    state: PathBuf,
    /// Ends that nobody asked for, since they were last looked at.
    ends: Vec<ExitStatus>,
    /// Whether it is to run at all.
    wanted: bool,
}

impl Hub {
    /// Takes the sockets. Nothing runs yet.
    pub(crate) fn new(program: &Path, config: &Path, folder: &Path) -> Result<Self> {
        let pods: Ipv4Addr = HUB_POD_ADDRESS.parse()?;
        let addresses =
            [(Ipv4Addr::LOCALHOST, HUB_PORT), (pods, HUB_POD_PORT), (Ipv4Addr::LOCALHOST, HUB_HEALTH_PORT)];
        let sockets = (FIRST_DESCRIPTOR..)
            .zip(addresses)
            .map(|(least, (address, port))| {
                let socket = TcpListener::bind(SocketAddr::from((address, port)))
                    .with_context(|| format!("listening on {address}:{port}"))?;
                // Everything else of this process has been started already: the hub alone inherits them.
                let passed = fcntl_dupfd_cloexec(&socket, least)?;
                fcntl_setfd(&passed, FdFlags::empty())?;
                Ok(passed)
            })
            .collect::<Result<_>>()?;
        let (program, state) = (program.to_owned(), folder.join("state"));
        let running = Running { program, child: None, state, ends: Vec::new(), wanted: false };
        let shared = Arc::new(Shared {
            config: config.to_owned(),
            folder: folder.to_owned(),
            log: folder.join("hub.log"),
            _sockets: sockets,
            running: Mutex::new(running),
            over: AtomicBool::new(false),
        });
        let watching = Arc::clone(&shared);
        std::thread::spawn(move || watching.supervise());
        Ok(Self { shared })
    }

    /// Where its state is now.
    pub(crate) fn state(&self) -> PathBuf {
        self.shared.lock().state.clone()
    }

    /// Starts it with this state.
    pub(crate) fn start_with(&self, state: &Path) -> Result<()> {
        let mut running = self.shared.lock();
        running.state = state.to_owned();
        self.shared.start(&mut running)
    }

    /// Ends it well and starts another build of it with the same state.
    pub(crate) fn run(&self, program: &Path) -> Result<()> {
        self.stop(None)?;
        let mut running = self.shared.lock();
        running.program = program.to_owned();
        self.shared.start(&mut running)
    }

    /// Its process, if it runs.
    pub(crate) fn process(&self) -> Option<u32> {
        self.shared.lock().child.as_ref().map(Child::id)
    }

    /// Starts it.
    pub(crate) fn start(&self) -> Result<()> {
        self.shared.start(&mut self.shared.lock())
    }

    /// `kill -9`. It stays down until it is started.
    pub(crate) fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Asks it to end, waits a moment, and ends it. `None`: it has all the time it needs.
    pub(crate) fn stop(&self, patience: Option<Duration>) -> Result<()> {
        let mut running = self.shared.lock();
        running.wanted = false;
        if let Some(child) = &mut running.child {
            signal(child, Signal::TERM);
            match patience {
                None => drop(child.wait()?),
                Some(patience) => std::thread::sleep(patience),
            }
        }
        drop(running);
        self.kill()
    }

    fn end(&self, with: Signal) -> Result<()> {
        let mut running = self.shared.lock();
        running.wanted = false;
        if let Some(mut child) = running.child.take() {
            // It may have ended by itself just now: that counts.
            if let Some(status) = child.try_wait()?
                && !status.success()
            {
                running.ends.push(status);
            }
            signal(&child, with);
            child.wait()?;
        }
        Ok(())
    }

    /// Ends that nobody asked for since the last look, as a person would say them.
    pub(crate) fn ends(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().ends).into_iter().map(describe).collect()
    }

    /// All that it has said so far.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.shared.log)?).into_owned())
    }

    /// Bytes of its log so far.
    pub(crate) fn said(&self) -> u64 {
        std::fs::metadata(&self.shared.log).map_or(0, |metadata| metadata.len())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.kill().ok();
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit code {}", status.code().unwrap_or_default()),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, running: &mut Running) -> Result<()> {
        running.wanted = true;
        let file = process::log(&self.log)?;
        let mut command = Command::new("bash");
        command
            .args(["-c", PASS, "bash"])
            .arg(&running.program)
            .args(["edge", "--config"])
            .arg(&self.config)
            .arg("--state-dir")
            .arg(&running.state)
            .arg("--runtime-dir")
            .arg(self.folder.join("run"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("YURT_BOOT_ID", "torture")
            .env("YURT_LOG", std::env::var("YURT_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        running.child = Some(command.spawn().context("starting the hub")?);
        Ok(())
    }

    /// `Restart=always`.
    fn supervise(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let ended = {
                let mut running = self.lock();
                let status = running.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                if let Some(status) = status {
                    running.child = None;
                    // It ends well when it is told to.
                    if running.wanted || !status.success() {
                        running.ends.push(status);
                    }
                }
                status.is_some()
            };
            std::thread::sleep(if ended { RESTART } else { Duration::from_millis(5) });
            if ended {
                let mut running = self.lock();
                if running.wanted && running.child.is_none() && self.start(&mut running).is_err() {
                    return;
                }
            }
        }
    }
}
