//! The one thread that writes. Jobs that wait while a transaction commits go into the next one together; if one of
//! them fails, each of them runs again alone, so that nobody pays for another's mistake.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::env::Environment;
use super::transaction::Tx;

/// Jobs that may wait at a time; more wait to be let in.
const QUEUE: usize = 128;
/// Watch events come in bursts (one change is seen by several views): wait that long for company.
const GATHER: Duration = Duration::from_millis(2);
/// And that long, if nobody waits, once there were so many commits within [`BUSY_WITHIN`]: flash cards wear with every
/// one of them.
const GATHER_WHEN_BUSY: Duration = Duration::from_millis(500);
const BUSY: usize = 20;
const BUSY_WITHIN: Duration = Duration::from_secs(10);
/// What was committed is flushed entirely within this time.
const SYNC_WITHIN: Duration = Duration::from_secs(1);

/// When a write is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Before it is acknowledged.
    Durable,
    /// Within a second; until then a power cut may undo it.
    Soon,
    /// The same, and nobody waits for the acknowledgement: it may go with what comes after it.
    Relaxed,
}

impl Durability {
    /// How long a job may wait for company.
    fn patience(self, busy: bool) -> Duration {
        match self {
            Self::Durable => Duration::ZERO,
            Self::Relaxed if busy => GATHER_WHEN_BUSY,
            Self::Soon | Self::Relaxed => GATHER,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    syncs: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Writer {
    // Dropped first, in `drop`, to end the thread.
    jobs: Option<Sender<Box<dyn Job>>>,
    room: Arc<Semaphore>,
    counters: Arc<Counters>,
    thread: Option<thread::JoinHandle<()>>,
    /// Cancelled when the thread ends, however it does.
    ended: CancellationToken,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

trait Job: Send {
    fn durability(&self) -> Durability;
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Work<T, F, G> {
    job: F,
    /// Once it is committed.
    then: G,
    durability: Durability,
    value: Option<T>,
    done: oneshot::Sender<Result<T, StoreError>>,
    _room: OwnedSemaphorePermit,
}

impl<T, F, G> Job for Work<T, F, G>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send,
    G: FnOnce(&mut T) + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        self.value = Some((self.job)(tx)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { value, then, done, .. } = *self;
        let mut outcome = outcome.and_then(|()| value.ok_or(StoreError::Closed));
        if let Ok(value) = &mut outcome
            && catch_unwind(AssertUnwindSafe(|| then(value))).is_err()
        {
            tracing::error!("what is told of a write panicked");
        }
        // Whoever waited may have gone.
        let _ = done.send(outcome);
    }
}

impl Writer {
    pub(super) fn start(environment: Arc<Environment>) -> Result<Self, StoreError> {
        let (jobs, queue) = channel();
        let counters = Arc::<Counters>::default();
        let ended = CancellationToken::new();
        let thread = {
            let (counters, ended) = (Arc::clone(&counters), ended.clone());
            thread::Builder::new()
                .name("store-writer".to_owned())
                .stack_size(512 << 10)
                .spawn(move || {
                    // A panic drops it, too.
                    let _ended = ended.drop_guard();
                    Loop { environment, queue, counters, unsynced: None, recent: VecDeque::new() }.run();
                })
                .map_err(|error| StoreError::Failed(format!("cannot start the writer: {error}")))?
        };
        let room = Arc::new(Semaphore::new(QUEUE));
        Ok(Self { jobs: Some(jobs), room, counters, thread: Some(thread), ended })
    }

    /// Cancelled when nothing is written any more.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (done, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Box::new(Work { job, then, durability, value: None, done, _room: room }))
            .map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// Has something written that nobody waits for; nothing if so many others wait that there is no room.
    pub(super) fn try_write(&self, job: impl FnMut(&mut Tx<'_>) -> Result<(), StoreError> + Send + 'static) {
        let (Ok(room), Some(jobs)) = (Arc::clone(&self.room).try_acquire_owned(), self.jobs.as_ref()) else {
            return;
        };
        let (done, _) = oneshot::channel();
        let (durability, then) = (Durability::Relaxed, |_: &mut ()| ());
        // The thread has ended: whoever asks for something else hears of it.
        let _ = jobs.send(Box::new(Work { job, then, durability, value: None, done, _room: room }));
    }

    /// Commits, and waits for the disk.
    pub(super) fn counters(&self) -> (u64, u64) {
        let Counters { commits, syncs } = &*self.counters;
        (commits.load(Ordering::Relaxed), syncs.load(Ordering::Relaxed))
    }
}

struct Loop {
    environment: Arc<Environment>,
    queue: Receiver<Box<dyn Job>>,
    counters: Arc<Counters>,
    /// Since when something is committed and not flushed.
    unsynced: Option<Instant>,
    /// When the last [`BUSY`] commits were.
    recent: VecDeque<Instant>,
}

impl Loop {
    fn run(mut self) {
        loop {
            let next = match self.unsynced {
                Some(since) => self.queue.recv_timeout(SYNC_WITHIN.saturating_sub(since.elapsed())),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(job) => self.group(job),
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.unsynced.is_some() {
            self.sync();
        }
    }

    fn sync(&mut self) {
        self.unsynced = None;
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.environment.sync() {
            tracing::warn!(%error, "the store could not be flushed");
        }
    }

    fn group(&mut self, first: Box<dyn Job>) {
        let busy = self.is_busy();
        let mut until = Instant::now() + first.durability().patience(busy);
        let mut jobs = vec![first];
        while jobs.len() < QUEUE {
            let patience = until.saturating_duration_since(Instant::now());
            let Ok(job) = self.queue.recv_timeout(patience) else { break };
            until = until.min(Instant::now() + job.durability().patience(busy));
            jobs.push(job);
        }
        if let Err(error) = self.transaction(&mut jobs) {
            if jobs.len() == 1 {
                return Self::finish(jobs, &Err(error));
            }
            tracing::debug!(%error, jobs = jobs.len(), "a group of writes failed; each alone now");
            for job in jobs {
                let mut alone = vec![job];
                let outcome = self.transaction(&mut alone);
                Self::finish(alone, &outcome);
            }
        } else {
            Self::finish(jobs, &Ok(()));
        }
    }

    fn is_busy(&self) -> bool {
        self.recent.len() == BUSY && self.recent.front().is_some_and(|first| first.elapsed() < BUSY_WITHIN)
    }

    fn transaction(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        let write = || self.environment.write(|tx| jobs.iter_mut().try_for_each(|job| job.run(tx)));
        // A job that panics is one that fails: its transaction is dropped, and with it all that it did. The thread must
        // go on: without it nothing is ever written again.
        let panicked = |_| Err(StoreError::Failed("a write panicked".to_owned()));
        catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(panicked)?;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        if self.recent.len() == BUSY {
            self.recent.pop_front();
        }
        self.recent.push_back(Instant::now());
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        if jobs.iter().any(|job| job.durability() == Durability::Durable) {
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
            self.environment.sync()?;
            self.unsynced = None;
        } else if self.unsynced.is_none() {
            self.unsynced = Some(Instant::now());
        }
        Ok(())
    }

    fn finish(jobs: Vec<Box<dyn Job>>, outcome: &Result<(), StoreError>) {
        for job in jobs {
            job.finish(outcome.clone());
        }
    }
}
