//! A client that asks once a second, for as long as something goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Asks in a thread of its own; dropping it stops it.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Answers>>,
}

/// What a prober was told.
#[derive(Debug, Default)]
pub struct Answers {
    pub asked: u32,
    /// When, from the start, and what was wrong.
    pub failures: Vec<(Duration, String)>,
    /// The longest time between two good answers.
    pub longest_gap: Duration,
}

impl Prober {
    /// Asks every `every`; `ask` returns what was wrong, if anything.
    pub fn start(every: Duration, ask: impl Fn() -> Result<()> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let started = Instant::now();
            let mut answers = Answers::default();
            let mut last_good = started;
            while !stopped.load(Ordering::Relaxed) {
                let asked_at = Instant::now();
                answers.asked += 1;
                match ask() {
                    Ok(()) => {
                        answers.longest_gap = answers.longest_gap.max(last_good.elapsed());
                        last_good = Instant::now();
                    }
                    Err(error) => answers.failures.push((started.elapsed(), format!("{error:#}"))),
                }
                thread::sleep(every.saturating_sub(asked_at.elapsed()));
            }
            answers.longest_gap = answers.longest_gap.max(last_good.elapsed());
            answers
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops asking.
    pub fn finish(mut self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("the prober has been stopped before"))?;
        thread.join().map_err(|_| anyhow!("the prober panicked"))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_among_good_answers_is_kept_with_its_time() {
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let inside = Arc::clone(&count);
        let prober = Prober::start(Duration::from_millis(5), move || {
            if inside.fetch_add(1, Ordering::Relaxed) == 2 { Err(anyhow!("refused")) } else { Ok(()) }
        });
        while count.load(Ordering::Relaxed) < 6 {
            thread::yield_now();
        }
        let answers = prober.finish().unwrap();
        assert!(answers.asked >= 6);
        assert_eq!(answers.failures.len(), 1);
        assert_eq!(answers.failures[0].1, "refused");
    }
}
