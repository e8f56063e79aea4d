//! The link's probe: a connection that is always open. The task that keeps it so drives the link's machine with what
//! becomes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, watch};
use yurt_node::random::random;
use yurt_node::supervise::Tasks;

use super::pool::{Connection, OpenError, PROBE, Pool};
use super::silence::Ear;
use crate::link::{History, Link, Machine, Next, Silence};
use yurt_node::link::LinkState;

/// How often the kernel is asked what it has heard: while somebody is waited for, and while not.
const LISTEN_AGAIN: Duration = Duration::from_millis(200);
const LISTEN: Duration = Duration::from_millis(500);
/// When the link is back, connections from before have twice as long as its proof took to answer, within these bounds.
const GRACE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// So much earlier than others the configured servers are asked.
const HEAD_START: Duration = Duration::from_millis(300);

/// How often rotated certificates are looked for while nothing else happens.
const RETIRE_EVERY: Duration = Duration::from_secs(30);

/// Starts the task, a part of the role; it ends when the role stops.
pub(super) fn start(pool: Arc<Pool>, tasks: &Tasks) -> Link {
    let (state, receiver) = watch::channel(LinkState::Unknown);
    let kick = Arc::<Notify>::default();
    let link = Link::new(receiver, Arc::clone(&kick));
    let prober = Prober { pool, state, history: link.history(), kick, machine: Machine::new(), grace: None };
    let stop = tasks.stop().clone();
    tasks.part("the link's probe", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = prober.run() => {}
        }
    });
    link
}

/// A number in 0..1.
pub(crate) fn jitter() -> f64 {
    f64::from(random()) / (f64::from(u32::MAX) + 1.0)
}

struct Prober {
    pool: Arc<Pool>,
    state: watch::Sender<LinkState>,
    history: Arc<History>,
    kick: Arc<Notify>,
    machine: Machine,
    /// A server has just answered: connections from before have so long.
    grace: Option<Duration>,
}

/// Why a connection is watched over no longer.
enum Loss {
    Closed,
    Silent,
}

/// Who answered.
enum Found {
    /// Somebody on the connection that was silent.
    Again,
    /// A server on a new one.
    New(Arc<Connection>),
}

impl Prober {
    async fn run(mut self) {
        let mut next = Next::Round(Duration::ZERO);
        let mut probe: Option<Arc<Connection>> = None;
        loop {
            next = match (next, &probe) {
                (Next::Rest, Some(connection)) => {
                    if let Loss::Closed = Self::watch_over(&self.pool, &mut self.machine, connection).await {
                        probe = None;
                    }
                    self.machine.lost()
                }
                (Next::Rest, None) => self.machine.lost(),
                (Next::Round(pause), _) => self.try_again(pause, &mut probe).await,
            };
            self.publish();
            // When everybody knows that there is a link, and not before: it is then that they listen for what it finds.
            if let Some(grace) = self.grace.take() {
                self.pool.check(grace);
            }
        }
    }

    /// A round after the pause, or a sign of life on the connection that was silent, whichever is first.
    async fn try_again(&mut self, pause: Duration, probe: &mut Option<Arc<Connection>>) -> Next {
        let waiting = Instant::now();
        let mut started = waiting;
        let outcome = {
            let round = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.kick.notified() => {}
                }
                started = Instant::now();
                self.round().await.map(Found::New)
            };
            tokio::select! {
                outcome = round => outcome,
                () = speaks(probe.as_ref()) => Ok(Found::Again),
            }
        };
        let took = match outcome {
            Ok(Found::New(connection)) => {
                if probe.is_some() {
                    self.pool.doubt_others(&connection);
                }
                *probe = Some(connection);
                started.elapsed()
            }
            Ok(Found::Again) => {
                let waited = waiting.elapsed();
                // How long a cut took says nothing about round trips.
                if self.machine.state() == LinkState::Online {
                    self.machine.measured(waited);
                }
                self.machine.round_trip().max(Duration::from_millis(500))
            }
            Err(silence) => return self.machine.failed(silence, started.elapsed(), jitter()),
        };
        self.grace = Some((took * 2).clamp(GRACE.0, GRACE.1));
        self.machine.connected()
    }

    /// Until the connection is lost or silent. A kick is no reason to give it up: the kernel knows soon enough.
    async fn watch_over(pool: &Pool, machine: &mut Machine, connection: &Connection) -> Loss {
        let closed = connection.closed();
        let mut ear = Ear::new(PROBE.idle);
        let mut retired = Instant::now();
        loop {
            let mut pause = LISTEN;
            if let Some(heard) = connection.heard() {
                machine.measured(heard.round_trip);
                if ear.is_silent(Instant::now(), &heard, machine.round_trip()) {
                    tracing::debug!(?heard, "nobody answers on the link's probe");
                    return Loss::Silent;
                }
                if heard.unanswered || heard.unanswered_probes {
                    pause = LISTEN_AGAIN;
                }
            }
            if retired.elapsed() > RETIRE_EVERY {
                retired = Instant::now();
                pool.retire();
            }
            tokio::select! {
                () = closed.cancelled() => return Loss::Closed,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One attempt to every server; the first that answers wins. Those that the cluster has named have to wait: they are
    /// for when nobody answers whom the configuration names.
    async fn round(&self) -> Result<Arc<Connection>, Silence> {
        let patience = self.machine.patience();
        let head_start = HEAD_START.min(patience / 2);
        let unanswered = AtomicUsize::new(self.pool.servers().configured().len());
        let nobody = Notify::new();
        let found = self.pool.servers().found();
        let configured = self.pool.servers().configured().iter().map(|server| {
            let (unanswered, nobody) = (&unanswered, &nobody);
            async move {
                let opened = self.pool.open_probe(server, patience).await;
                if opened.is_err() && unanswered.fetch_sub(1, Ordering::Relaxed) == 1 {
                    nobody.notify_waiters();
                }
                (true, opened)
            }
            .boxed()
        });
        let found = found.iter().map(|server| {
            let (unanswered, nobody) = (&unanswered, &nobody);
            async move {
                let told = nobody.notified();
                if unanswered.load(Ordering::Relaxed) > 0 {
                    tokio::select! {
                        () = tokio::time::sleep(head_start) => {}
                        () = told => {}
                    }
                }
                // One that hangs holds up no round.
                let opened = self.pool.open_probe(server, patience - head_start);
                let opened = tokio::time::timeout(patience, opened).await;
                (false, opened.unwrap_or(Err(OpenError::TimedOut)))
            }
            .boxed()
        });
        let mut attempts: FuturesUnordered<_> = configured.chain(found).collect();
        let mut silence = Silence::Refused;
        while let Some((configured, outcome)) = attempts.next().await {
            match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    if self.machine.state() != LinkState::Offline {
                        tracing::info!(%error, "an API server cannot be reached");
                    }
                    // Where the others listen is perhaps nothing that the node can reach: it says nothing of the link.
                    if configured && matches!(error, OpenError::TimedOut) {
                        silence = Silence::TimedOut;
                    }
                }
            }
        }
        Err(silence)
    }

    fn publish(&self) {
        let state = self.machine.state();
        let changed = self.state.send_if_modified(|known| {
            let changed = *known != state;
            if changed {
                self.history.note(state);
                *known = state;
            }
            changed
        });
        if changed {
            tracing::info!(?state, "the link to the API server");
            if state == LinkState::Offline {
                self.pool.doubt_all();
            }
        }
    }
}

/// Until something is heard on a connection that was silent; never without one.
async fn speaks(connection: Option<&Arc<Connection>>) {
    let Some(connection) = connection else { return std::future::pending().await };
    let since = Instant::now();
    loop {
        tokio::time::sleep(LISTEN_AGAIN).await;
        match connection.heard() {
            // The kernel counts in ticks.
            Some(heard) if heard.ago + Duration::from_millis(20) < since.elapsed() => return,
            Some(_) => {}
            // It has ended.
            None => return std::future::pending().await,
        }
    }
}
