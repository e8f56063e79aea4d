//! Waiting on a condition with a deadline, and saying what was seen last when it passes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a probe saw.
pub enum Seen<T> {
    Yes(T),
    /// Not yet; the text is printed if the deadline passes.
    NotYet(String),
}

/// Probes until the condition holds; returns its value and how long that took. An error of the probe
/// counts as "not yet": an API server that restarts is part of the story.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Seen<T>>,
) -> Result<(T, Duration)> {
    let started = Instant::now();
    loop {
        let last = match probe() {
            Ok(Seen::Yes(value)) => return Ok((value, started.elapsed())),
            Ok(Seen::NotYet(text)) => text,
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() >= timeout {
            bail!("waited {timeout:.0?} for {what}; last seen: {last}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// As [`until`], for a condition without a value: `Ok(None)` holds, `Ok(Some(text))` does not yet.
pub fn until_true(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<String>>,
) -> Result<Duration> {
    let ((), took) = until(what, timeout, || {
        Ok(match probe()? {
            None => Seen::Yes(()),
            Some(text) => Seen::NotYet(text),
        })
    })?;
    Ok(took)
}

/// Watches that a condition goes on holding for a while; the first time it does not is the error.
pub fn throughout(
    what: &str,
    duration: Duration,
    every: Duration,
    mut probe: impl FnMut() -> Result<Option<String>>,
) -> Result<u32> {
    let started = Instant::now();
    let mut times = 0;
    while started.elapsed() < duration {
        if let Some(text) = probe()? {
            bail!("{what} did not hold {:.1?} on: {text}", started.elapsed());
        }
        times += 1;
        thread::sleep(every);
    }
    Ok(times)
}
