//! The link's probe: a connection that is always open. The task that keeps it so drives the link's machine with what
//! becomes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use yurt_node::random::random;
use yurt_node::supervise::Tasks;

use super::pool::{Connection, OpenError, Pool};
use crate::clock::steady;
use crate::link::{Link, Machine, Next, Silence};
use yurt_node::link::LinkState;

/// How often rotated certificates are looked for while nothing else happens.
const RETIRE_EVERY: Duration = Duration::from_secs(30);

/// Starts the task, a part of the role; it ends when the role stops.
pub(super) fn start(pool: Arc<Pool>, tasks: &Tasks) -> Link {
    let (state, receiver) = watch::channel(LinkState::Unknown);
    let kick = Arc::<Notify>::default();
    let link = Link::new(receiver, Arc::clone(&kick));
    let prober = Prober { pool, state, changed: link.changed(), kick, machine: Machine::new() };
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
    /// When it changed.
    changed: Arc<AtomicU64>,
    kick: Arc<Notify>,
    machine: Machine,
}

impl Prober {
    async fn run(mut self) {
        let mut next = Next::Round(Duration::ZERO);
        let mut probe: Option<Arc<Connection>> = None;
        loop {
            next = match (next, probe.take()) {
                (Next::Rest, Some(connection)) => {
                    self.watch_over(&connection).await;
                    self.machine.lost()
                }
                (Next::Rest, None) => self.machine.lost(),
                (Next::Round(pause), _) => {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.kick.notified() => {}
                    }
                    let started = Instant::now();
                    match self.round().await {
                        Ok(connection) => {
                            probe = Some(connection);
                            self.machine.connected()
                        }
                        Err(silence) => self.machine.failed(silence, started.elapsed(), jitter()),
                    }
                }
            };
            self.publish();
        }
    }

    /// Until the connection is lost. A kick is no reason to give it up: the kernel knows soon enough.
    async fn watch_over(&self, connection: &Connection) {
        let closed = connection.closed();
        loop {
            tokio::select! {
                () = closed.cancelled() => return,
                () = tokio::time::sleep(RETIRE_EVERY) => self.pool.retire(),
            }
        }
    }

    /// One attempt to every server; the first that answers wins.
    async fn round(&self) -> Result<Arc<Connection>, Silence> {
        let patience = self.machine.patience();
        let mut attempts: FuturesUnordered<_> =
            (0..self.pool.servers()).map(|server| self.pool.open_probe(server, patience)).collect();
        let mut silence = Silence::Refused;
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    if self.machine.state() != LinkState::Offline {
                        tracing::info!(%error, "an API server cannot be reached");
                    }
                    if matches!(error, OpenError::TimedOut) {
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
            let changed = std::mem::replace(known, state) != state;
            if changed {
                self.changed.store(steady(), Ordering::Relaxed);
            }
            changed
        });
        if changed {
            tracing::info!(?state, "the link to the API server");
            if state == LinkState::Offline {
                self.pool.close_all();
            }
        }
    }
}
