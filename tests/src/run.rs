//! Running a command to its end, with a deadline and an error that says what was run and what it said.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Long enough for everything here that has no deadline of its own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

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

/// Runs a command with `input` on its standard input; kills it when `timeout` has passed.
pub fn run_with(mut command: Command, input: Option<&[u8]>, timeout: Duration) -> Result<Finished> {
    let text = describe(&command);
    let started = Instant::now();
    command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting `{text}`"))?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A command that ends without reading all of it is no error of ours.
            scope.spawn(move || stdin.write_all(input).ok());
        }
        let stdout = scope.spawn(move || read_all(stdout));
        let stderr = scope.spawn(move || read_all(stderr));
        let (status, timed_out) = wait_until(&mut child, started + timeout)?;
        Ok(Finished {
            command: text.clone(),
            code: if timed_out { None } else { status.code() },
            timed_out,
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
            took: started.elapsed(),
        })
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

fn wait_until(child: &mut Child, deadline: Instant) -> Result<(ExitStatus, bool)> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, false));
        }
        if Instant::now() >= deadline {
            child.kill().ok();
            return Ok((child.wait()?, true));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn read_all(stream: Option<impl Read>) -> Vec<u8> {
    let mut buffer = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut buffer).ok();
    }
    buffer
}
