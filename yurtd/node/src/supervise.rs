//! A role is a set of supervised tasks.
//!
//! Some must run for as long as the role does: a listener, a watch, a reconciler. The first of them that ends without
//! having been asked ends the role, with its name and its reason, and systemd or kubelet starts the process again.
//! A role that goes on without one of its parts looks well from outside and is not. The others (a connection, a
//! stream) come and go, and are only counted, so that the role can wait for them when it stops.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A part of a role ended although nobody had asked it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} ended: {reason}")]
pub struct Ended {
    /// Which part, in the words of the log.
    pub part: &'static str,
    /// Why, as far as it is known.
    pub reason: String,
}

/// How a part ended: with nothing to say, or with an error.
pub trait Outcome {
    /// The reason, for the log.
    fn reason(self) -> Option<String>;
}

impl Outcome for () {
    fn reason(self) -> Option<String> {
        None
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn reason(self) -> Option<String> {
        self.err().map(|error| format!("{error:#}"))
    }
}

/// The tasks of a role.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    first: Arc<OnceLock<Ended>>,
    ended: CancellationToken,
}

impl Tasks {
    /// None yet. From `stop` on every task may end.
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), stop, first: Arc::default(), ended: CancellationToken::new() }
    }

    /// Cancelled when the role is told to stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a part that must run until the role stops.
    pub fn part<F>(&self, name: &'static str, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Outcome + Send,
    {
        let (stop, first, ended) = (self.stop.clone(), self.first.clone(), self.ended.clone());
        self.tracker.spawn(async move {
            let reason = match AssertUnwindSafe(task).catch_unwind().await {
                // The panic's words were printed where it happened.
                Err(_) => "it panicked".to_owned(),
                Ok(outcome) => match outcome.reason() {
                    _ if stop.is_cancelled() => return,
                    Some(reason) => reason,
                    None => "it was not asked to".to_owned(),
                },
            };
            tracing::error!(part = name, reason, "a part of this role ended");
            // Of two that end at the same moment, one is the first.
            let _ = first.set(Ended { part: name, reason });
            ended.cancel();
        });
    }

    /// Starts a task that may end at any time: a connection, a stream.
    pub fn passing<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task);
    }

    /// The same for one that is most likely done at once: a task of its own, which wakes another thread, it becomes only
    /// if it has to wait.
    pub fn at_once<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // One that panics ends nobody else's: its words were printed where it happened.
        let mut task = Box::pin(AssertUnwindSafe(task).catch_unwind());
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.tracker.spawn(async move {
                let _ = task.await;
            });
        }
    }

    /// The first part that ended without having been asked.
    pub async fn ended(&self) -> Ended {
        self.ended.cancelled().await;
        self.first.get().cloned().unwrap_or(Ended { part: "a part", reason: "unknown".into() })
    }

    /// Waits until the role is told to stop.
    ///
    /// # Errors
    ///
    /// [`Ended`] when a part ended before.
    pub async fn until_stopped(&self) -> Result<(), Ended> {
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            ended = self.ended() => Err(ended),
        }
    }

    /// Tells all tasks to stop and waits for them, at most `limit`; says how many are left.
    pub async fn finish(&self, limit: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        match tokio::time::timeout(limit, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}

/// SIGTERM (systemd, kubelet) and SIGINT (a person), caught from the moment this is made: before a role begins.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Catches them. In a runtime.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the handlers.
    pub fn catch() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    /// Cancels `stop` at the first of them; returns when `stop` is cancelled.
    pub async fn cancel(mut self, stop: CancellationToken) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = stop.cancelled() => return,
        }
        tracing::info!("stopping");
        stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_part_that_ends_ends_the_role_with_its_name() {
        let tasks = Tasks::new(CancellationToken::new());
        tasks.part("the listener", std::future::pending::<()>());
        tasks.passing(async {});
        tasks.part("the watch", async { Err::<(), _>("connection refused") });
        let ended = tasks.until_stopped().await.unwrap_err();
        assert_eq!(ended.to_string(), "the watch ended: connection refused");
    }

    #[tokio::test]
    async fn a_panic_is_such_an_end() {
        let tasks = Tasks::new(CancellationToken::new());
        tasks.part("the reconciler", async {
            assert!(std::env::args().len() == 0, "on purpose");
        });
        assert_eq!(tasks.ended().await, Ended { part: "the reconciler", reason: "it panicked".into() });
    }

    #[tokio::test]
    async fn what_ends_after_stop_ended_as_asked() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let asked = stop.clone();
        tasks.part("the listener", async move { asked.cancelled().await });
        stop.cancel();
        assert_eq!(tasks.until_stopped().await, Ok(()));
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, 0);
        assert!(tasks.first.get().is_none());
    }

    #[tokio::test]
    async fn what_is_done_at_once_is_no_task_and_what_waits_is() {
        let tasks = Tasks::new(CancellationToken::new());
        let (done, finished) = tokio::sync::oneshot::channel();
        tasks.at_once(async move { done.send(()).unwrap() });
        assert_eq!(tasks.tracker.len(), 0);
        finished.await.unwrap();
        let (go, going) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel();
        tasks.at_once(async move {
            going.await.unwrap();
            done.send(()).unwrap();
        });
        assert_eq!(tasks.tracker.len(), 1);
        go.send(()).unwrap();
        finished.await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_stop_is_counted() {
        let tasks = Tasks::new(CancellationToken::new());
        tasks.passing(std::future::pending());
        assert_eq!(tasks.finish(Duration::from_millis(10)).await, 1);
    }
}
