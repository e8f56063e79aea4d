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

/// How long a probe may go without an answer while a condition is watched.
const UNSEEN: Duration = Duration::from_secs(15);

/// Watches that a condition goes on holding for a while; the first time it does not is the error. An error of the
/// probe says neither; when it has said nothing for long, nobody has watched.
pub fn throughout(
    what: &str,
    duration: Duration,
    every: Duration,
    mut probe: impl FnMut() -> Result<Option<String>>,
) -> Result<u32> {
    let started = Instant::now();
    let mut seen = started;
    let mut times = 0;
    loop {
        match probe() {
            Ok(None) => {
                times += 1;
                seen = Instant::now();
                if started.elapsed() >= duration {
                    return Ok(times);
                }
            }
            Ok(Some(text)) => bail!("{what} did not hold {:.1?} on: {text}", started.elapsed()),
            Err(error) if seen.elapsed() >= UNSEEN => {
                return Err(error.context(format!("whether {what} was not seen for {:.0?}", seen.elapsed())));
            }
            Err(_) => {}
        }
        thread::sleep(every);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    const BRIEF: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_watched_must_be_seen_to_hold_at_the_end_and_one_failed_look_is_no_fault() {
        let mut looks = 0;
        let times = throughout("it", Duration::ZERO, BRIEF, || {
            looks += 1;
            if looks < 3 { Err(anyhow!("reset")) } else { Ok(None) }
        });
        assert_eq!((times.unwrap(), looks), (1, 3));
    }

    #[test]
    fn what_does_not_hold_once_is_the_error() {
        let mut looks = 0;
        let error = throughout("it", Duration::from_secs(600), BRIEF, || {
            looks += 1;
            Ok((looks == 4).then(|| "gone".to_owned()))
        });
        assert!(error.unwrap_err().to_string().contains("gone"));
    }
}
