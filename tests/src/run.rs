//! Running a command to its end, with a deadline and an error that says what was run and what it said.
//!
//! A command runs in a process group of its own, so that what it started (`nsenter` forks) ends with it when
//! its time is up. A terminal's Ctrl-C does not reach such a group: [`pass_signals_on`] does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Long enough for everything here that has no deadline of its own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the output of a command that was killed may stay open: something that left its group may hold it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Finished {
    pub command: String,
    /// `None`: it was killed, by a signal or because its time was up.
    pub code: Option<i32>,
    pub timed_out: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Finished {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The output of a command that must have succeeded.
    pub fn success(self) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout());
        }
        bail!("{self}")
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = match (self.timed_out, self.code) {
            (true, _) => format!("did not end within {:.0?}", self.took),
            (_, Some(code)) => format!("exit code {code}"),
            (_, None) => "killed by a signal".to_owned(),
        };
        write!(f, "`{}`: {end}", self.command)?;
        for (name, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let text = text.trim_end();
            if !text.is_empty() {
                write!(f, "\n  {name}: {}", tail(text, 40).replace('\n', "\n  "))?;
            }
        }
        Ok(())
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command line as one would type it.
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains([' ', '\n', '"', '\'']) {
                format!("{word:?}")
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with `input` on its standard input; kills it, and what it started, when `timeout` has passed.
pub fn run_with(command: Command, input: Option<&[u8]>, timeout: Duration) -> Result<Finished> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    run_to_end(command, stdin, input, timeout)
}

/// Runs a command with a file as its standard input.
pub fn run_from(command: Command, input: File) -> Result<Finished> {
    run_to_end(command, input.into(), None, DEFAULT_TIMEOUT)
}

fn run_to_end(
    mut command: Command,
    stdin: Stdio,
    input: Option<&[u8]>,
    timeout: Duration,
) -> Result<Finished> {
    let text = describe(&command);
    let started = Instant::now();
    let deadline = started + timeout;
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting `{text}`"))?;
    let group = Group::of(&child);
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        let input = input.to_vec();
        // A command that ends without reading all of it is no error of ours.
        thread::spawn(move || stdin.write_all(&input).ok());
    }
    let outputs = [child.stdout.take().map(Output::of), child.stderr.take().map(Output::of)];
    let (status, mut timed_out) = wait_until(&mut child, deadline, &group)?;
    // What the command started and left behind is a part of it as long as it holds the output.
    if !timed_out && !outputs.iter().flatten().all(|output| output.ends_by(deadline)) {
        timed_out = true;
        group.kill();
    }
    let end = Instant::now() + LAST_WORDS;
    let [stdout, stderr] = outputs.map(|output| {
        output.map(|output| {
            output.ends_by(end);
            output.taken()
        })
    });
    Ok(Finished {
        command: text,
        code: if timed_out { None } else { status.code() },
        timed_out,
        stdout: stdout.unwrap_or_default(),
        stderr: stderr.unwrap_or_default(),
        took: started.elapsed(),
    })
}

/// Runs a command to its end, whatever that is.
pub fn run(command: Command) -> Result<Finished> {
    run_with(command, None, DEFAULT_TIMEOUT)
}

/// Runs a command that must succeed; returns what it printed.
pub fn output(command: Command) -> Result<String> {
    run(command)?.success()
}

/// `program` with `args`, which must succeed.
pub fn sh(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    output(command)
}

/// Runs a command whose output the person at the terminal should see.
pub fn show(mut command: Command) -> Result<()> {
    let text = describe(&command);
    let status = command.status().with_context(|| format!("starting `{text}`"))?;
    if !status.success() {
        bail!("`{text}`: {status}");
    }
    Ok(())
}

fn wait_until(child: &mut Child, deadline: Instant, group: &Group) -> Result<(ExitStatus, bool)> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, false));
        }
        if Instant::now() >= deadline {
            group.kill();
            return Ok((child.wait()?, true));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What a stream says, read in a thread of its own that nobody has to wait for.
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    /// Closed when the stream has ended.
    end: Receiver<()>,
}

impl Output {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (open, end) = mpsc::channel();
        let into = Arc::clone(&text);
        thread::spawn(move || {
            let _open: mpsc::Sender<()> = open;
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                lock(&into).extend_from_slice(&buffer[..n]);
            }
        });
        Self { text, end }
    }

    fn ends_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        self.end.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    fn taken(self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.text))
    }
}

/// The groups of the commands that run now.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process group of a command, for as long as we wait for it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        pass_signals_on();
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        lock(&GROUPS).extend(leader);
        Self(leader)
    }

    fn kill(&self) {
        if let Some(leader) = self.0 {
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            lock(&GROUPS).retain(|other| *other != leader);
        }
    }
}

/// What ends this process ends the commands that it waits for.
fn pass_signals_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
        thread::spawn(move || {
            for signal in signals.forever() {
                let named = match signal {
                    SIGHUP => Signal::HUP,
                    SIGINT => Signal::INT,
                    _ => Signal::TERM,
                };
                for leader in lock(&GROUPS).iter() {
                    kill_process_group(*leader, named).ok();
                }
                signal_hook::low_level::emulate_default_handler(signal).ok();
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::is_alive;
    use crate::wait::until_true;

    fn shell(script: &str, timeout: Duration) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run_with(command, None, timeout).unwrap()
    }

    fn ends(pid: &str) {
        let pid = pid.trim().parse().unwrap();
        let gone = || Ok(is_alive(pid).then(|| format!("process {pid} is there")));
        until_true("what the command started to end", Duration::from_secs(20), gone).unwrap();
    }

    #[test]
    fn both_outputs_and_the_exit_code_are_kept() {
        let finished = shell("cat; echo out; echo err >&2; exit 7", Duration::from_secs(60));
        assert_eq!((finished.code, finished.timed_out), (Some(7), false));
        assert_eq!((finished.stdout().as_str(), finished.stderr().as_str()), ("out\n", "err\n"));
        let mut cat = Command::new("cat");
        cat.arg("-");
        let echoed = run_with(cat, Some(&[b'x'; 200_000]), Duration::from_secs(60)).unwrap();
        assert!(echoed.ok() && echoed.stdout.len() == 200_000);
    }

    #[test]
    fn what_a_command_started_ends_with_it_when_its_time_is_up() {
        let started = Instant::now();
        // The outer shell waits for the inner one, which holds the output: killing one alone waits for the other.
        let finished = shell("sh -c 'echo $$; sleep 600; true'; true", Duration::from_millis(500));
        assert!(finished.timed_out && finished.code.is_none(), "{finished}");
        assert!(started.elapsed() < Duration::from_secs(300), "it was waited for");
        ends(&finished.stdout());
    }

    #[test]
    fn what_a_command_leaves_behind_has_no_more_time_than_it() {
        let finished = shell("sleep 600 & echo $!", Duration::from_millis(500));
        assert!(finished.timed_out, "{finished}");
        ends(&finished.stdout());
    }

    #[test]
    fn what_left_the_group_is_not_waited_for() {
        let finished = shell("setsid sleep 600 & echo $!", Duration::from_millis(500));
        assert!(finished.timed_out && finished.took < Duration::from_secs(300), "{finished}");
        run_with(
            {
                let mut kill = Command::new("kill");
                kill.arg(finished.stdout().trim());
                kill
            },
            None,
            DEFAULT_TIMEOUT,
        )
        .unwrap();
    }
}
