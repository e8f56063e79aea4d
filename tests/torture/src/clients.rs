//! The clients, a program written with client-go: told what to do by a line, and answering with one.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process;

/// Longer than any deadline of theirs.
const PATIENCE: Duration = Duration::from_secs(900);

/// The clients.
#[derive(Debug)]
pub(crate) struct Clients {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Clients {
    /// Starts them with a file of settings.
    pub(crate) fn start(program: &Path, settings: &Path, folder: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .arg(settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(process::log(&folder.join("clients.log"))?);
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let input = child.stdin.take().context("they have no input")?;
        let output = child.stdout.take().context("they have no output")?;
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, answers })
    }

    /// Has them do something.
    pub(crate) fn ask(&mut self, what: &str) -> Result<Value> {
        self.ask_with(what, json!({}))
    }

    /// The same with arguments.
    pub(crate) fn ask_with(&mut self, what: &str, mut command: Value) -> Result<Value> {
        command["do"] = json!(what);
        writeln!(self.input, "{command}").with_context(|| format!("asking the clients to {what}"))?;
        let line = match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the clients did not answer to {what} within {PATIENCE:?}")
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the clients have ended; their log says why"),
        };
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("the answer to {what}"))?;
        match answer["error"].as_str() {
            Some(error) => bail!("{what}: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
