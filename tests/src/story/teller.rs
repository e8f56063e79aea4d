//! What the person at the terminal reads: numbered steps, the command as one would type it, what was
//! seen, and the figure.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::run;

/// Lines of a command's output that are shown; the rest is counted.
const SHOWN: usize = 14;

/// Writes to standard output itself, past the test harness, which keeps what `println!` prints.
#[derive(Debug)]
pub struct Teller {
    started: Instant,
    step: usize,
    figures: Vec<(String, String)>,
    chapter: String,
}

impl Default for Teller {
    fn default() -> Self {
        Self { started: Instant::now(), step: 0, figures: Vec::new(), chapter: String::new() }
    }
}

impl Teller {
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A reader that has gone away is no reason to stop.
        writeln!(out, "{text}").and_then(|()| out.flush()).ok();
    }

    pub fn chapter(&mut self, id: &str, title: &str) {
        self.chapter = id.to_owned();
        self.step = 0;
        self.line(&format!("\n[{:>4.0} s] {id}  {title}", self.started.elapsed().as_secs_f64()));
    }

    pub fn chapter_took(&mut self, id: &str, took: Duration) {
        self.line(&format!("  {id} holds ({:.0} s)", took.as_secs_f64()));
    }

    /// What is done next.
    pub fn step(&mut self, text: &str) {
        self.step += 1;
        self.line(&format!("  {}. {text}", self.step));
    }

    /// A command as one would type it.
    pub fn command(&self, program: &str, words: &[&str]) {
        let mut command = std::process::Command::new(program);
        command.args(words);
        self.typed(&run::describe(&command));
    }

    /// The same for what is more than one command.
    pub fn typed(&self, text: &str) {
        self.line(&format!("     $ {text}"));
    }

    /// What a command printed.
    pub fn output(&self, text: &str) {
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        for line in lines.iter().take(SHOWN) {
            self.line(&format!("       {line}"));
        }
        if lines.len() > SHOWN {
            self.line(&format!("       … {} more lines", lines.len() - SHOWN));
        }
    }

    /// What was seen to hold.
    pub fn holds(&self, text: &str) {
        self.line(&format!("     ✓ {text}"));
    }

    /// Holds, or is the end of the story.
    pub fn check(&self, holds: bool, what: &str, otherwise: impl std::fmt::Display) -> Result<()> {
        if !holds {
            bail!("not true: {what}: {otherwise}");
        }
        self.holds(what);
        Ok(())
    }

    /// Holds if the list of faults is empty.
    pub fn check_none(&self, faults: &[String], what: &str) -> Result<()> {
        self.check(faults.is_empty(), what, format!("\n  {}", faults.join("\n  ")))
    }

    /// A measurement, shown again at the end.
    pub fn figure(&mut self, what: &str, value: &str) {
        self.line(&format!("     = {what}: {value}"));
        self.figures.push((format!("{} {what}", self.chapter), value.to_owned()));
    }

    pub fn note(&self, text: &str) {
        self.line(&format!("     {text}"));
    }

    pub fn fails(&self, text: &str) {
        self.line(&format!("     ✗ {}", text.replace('\n', "\n       ")));
    }

    /// All figures.
    pub fn summary(&self) {
        if !self.figures.is_empty() {
            self.line("\nMeasured");
        }
        let width = self.figures.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        for (what, value) in &self.figures {
            self.line(&format!("  {what:<width$}  {value}"));
        }
    }
}
