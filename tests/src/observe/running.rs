//! A command that goes on while its output is watched: `logs -f`, `attach`, a shell, `port-forward`.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run;
use crate::wait::until_true;

/// Dropping it ends the command.
#[derive(Debug)]
pub struct Running {
    text: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// Both streams, in the order in which they were read.
    output: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    /// Starts a command with a pipe as its standard input.
    pub fn start(mut command: Command) -> Result<Self> {
        let text = run::describe(&command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{text}`"))?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let stdin = child.stdin.take();
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, Arc::clone(&output));
        }
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, Arc::clone(&output));
        }
        Ok(Self { text, child, stdin, output })
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output)).into_owned()
    }

    /// Types something.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush())?;
        Ok(())
    }

    /// Ends its standard input.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has printed `needle`; returns how long that took from now.
    pub fn wait_for(&self, needle: &str, timeout: Duration) -> Result<Duration> {
        until_true(&format!("`{}` to print {needle:?}", self.text), timeout, || {
            let output = self.output();
            Ok((!output.contains(needle)).then_some(output))
        })
    }

    /// Waits until it ends by itself; returns its exit code.
    pub fn end(mut self, timeout: Duration) -> Result<i32> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return status.code().with_context(|| format!("`{}`: {status}", self.text));
            }
            if Instant::now() >= deadline {
                bail!("`{}` did not end within {timeout:.0?}; it printed: {}", self.text, self.output());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn collect(mut stream: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            lock(&into).extend_from_slice(&buffer[..n]);
        }
    });
}

fn lock(output: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command).unwrap()
    }

    #[test]
    fn it_answers_what_is_said_to_it_and_its_exit_code_is_kept() {
        let mut running = shell("read word; echo got $word; exit 7");
        running.say("this\n").unwrap();
        running.wait_for("got this", Duration::from_secs(20)).unwrap();
        assert_eq!(running.end(Duration::from_secs(20)).unwrap(), 7);
    }

    #[test]
    fn waiting_in_vain_says_what_was_printed() {
        let running = shell("echo one; read forever");
        running.wait_for("one", Duration::from_secs(20)).unwrap();
        let error = running.wait_for("two", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("one"), "{error}");
    }
}
