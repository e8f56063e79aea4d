//! Whether the API server can be reached: one state for everyone, decided by a machine without clock or sockets.
//!
//! A connection with the node's credential is always kept open. While it is idle the kernel probes it with keep-alive
//! segments (52 bytes every three seconds: less than 1 KB a minute, nothing while requests flow). What the kernel hears
//! on it is looked at twice a second: if nobody acknowledges a segment, or data, the connection is **silent**, a black
//! hole after four seconds at most. That, or its end, starts a **round**: one connection attempt to every API server at
//! the same time, which a sign of life on the silent connection ends.
//!
//! ```text
//!            one server answers                    connection silent or lost
//!  Unknown ─────────────────────▶ Online ◀──────────▶ (a round, at once)
//!     │                             ▲                        │ nobody answers in time, or nobody twice
//!     │ nobody answers              │ one server answers     ▼
//!     └───────────────────────────▶ Offline ◀────────────────┘   (a round a second)
//! ```
//!
//! One dead API server of several therefore never is an offline link, nor is kubelet's silence, nor a server that
//! answers with errors, nor a congested uplink: where round trips were long before, a slower second round is asked
//! first. Offline is about what is answered, and ends no connection: TCP may carry on with what it has.
//!
//! HTTP/2 PINGs or a periodic GET in place of keep-alive segments were rejected: at the pace that
//! five seconds need they cost three times the traffic allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use yurt_node::link::LinkState;

use crate::clock::steady;

/// The state of the link, for everyone who has to know.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    state: watch::Receiver<LinkState>,
    kick: Arc<Notify>,
    history: Arc<History>,
}

/// What has become of the link in this process. Whoever changes the state writes it first.
#[derive(Debug)]
pub(crate) struct History {
    /// When it last changed, as [`steady`] says.
    changed: AtomicU64,
    /// How often it has turned out to be down.
    losses: AtomicU64,
}

impl History {
    /// The state is about to be this one.
    pub(crate) fn note(&self, state: LinkState) {
        self.changed.store(steady(), Ordering::Relaxed);
        if state == LinkState::Offline {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Link {
    pub(crate) fn new(state: watch::Receiver<LinkState>, kick: Arc<Notify>) -> Self {
        let history = History { changed: AtomicU64::new(steady()), losses: AtomicU64::new(0) };
        Self { state, kick, history: Arc::new(history) }
    }

    /// For whoever changes the state.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// For how many seconds it has been so, as far as this process has seen it.
    pub(crate) fn for_seconds(&self) -> u64 {
        steady().saturating_sub(self.history.changed.load(Ordering::Relaxed))
    }

    /// How often it was down since the process began: what is to hold until it is lost compares two of these.
    pub(crate) fn losses(&self) -> u64 {
        self.history.losses.load(Ordering::Relaxed)
    }

    /// Whether requests should go upstream. While nothing is known yet they should not.
    pub(crate) fn is_online(&self) -> bool {
        self.state() == LinkState::Online
    }

    /// The state now.
    pub(crate) fn state(&self) -> LinkState {
        *self.state.borrow()
    }

    /// The state now and whenever it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Waits (at most `limit`) until the state is no longer unknown.
    pub(crate) async fn settled(&self, limit: Duration) -> LinkState {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| *state != LinkState::Unknown);
        match tokio::time::timeout(limit, settled).await {
            Ok(Ok(state)) => *state,
            _ => LinkState::Unknown,
        }
    }

    /// Something changed (an address, a route): look at once instead of at the next try.
    pub(crate) fn kick(&self) {
        self.kick.notify_one();
    }
}

/// How a round without any answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Somebody refused, or there was no route: known at once, and often over at once.
    Refused,
    /// Nobody said anything.
    TimedOut,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Try all servers after this time.
    Round(Duration),
    /// Wait until the connection is lost.
    Rest,
}

/// Decides the state.
#[derive(Debug)]
pub(crate) struct Machine {
    state: LinkState,
    failures: u32,
    /// The longest of late; it fades.
    round_trip: Duration,
}

/// Another try after a refusal, before it counts.
const SECOND_TRY: Duration = Duration::from_millis(300);
/// Between the starts of two rounds while offline.
pub(crate) const ROUND_EVERY: Duration = Duration::from_secs(1);
/// For a connection, where round trips are short.
const PATIENCE: Duration = Duration::from_millis(900);
/// A round trip from which on silence may be congestion.
const LONG: Duration = Duration::from_millis(500);

impl Machine {
    pub(crate) fn new() -> Self {
        Self { state: LinkState::Unknown, failures: 0, round_trip: Duration::ZERO }
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    /// A server answered.
    pub(crate) fn connected(&mut self) -> Next {
        (self.state, self.failures) = (LinkState::Online, 0);
        Next::Rest
    }

    /// The connection broke, or is silent.
    pub(crate) fn lost(&mut self) -> Next {
        self.failures = 0;
        Next::Round(Duration::ZERO)
    }

    /// A round that took `took` ended without an answer; `jitter` in 0..1.
    pub(crate) fn failed(&mut self, silence: Silence, took: Duration, jitter: f64) -> Next {
        self.failures = self.failures.saturating_add(1);
        match silence {
            Silence::Refused if self.failures <= 1 && self.state != LinkState::Unknown => {
                return Next::Round(SECOND_TRY);
            }
            Silence::TimedOut if self.failures <= 1 && self.state == LinkState::Online && self.is_long() => {
                return Next::Round(Duration::ZERO);
            }
            Silence::Refused | Silence::TimedOut => {}
        }
        self.state = LinkState::Offline;
        let pause = ROUND_EVERY.mul_f64(0.8 + 0.4 * jitter).saturating_sub(took);
        Next::Round(pause.max(Duration::from_millis(50)))
    }

    /// How long an answer has taken, as measured about twice a second.
    pub(crate) fn measured(&mut self, round_trip: Duration) {
        self.round_trip = round_trip.max(self.round_trip.mul_f64(0.98));
    }

    /// The longest round trip of late.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    fn is_long(&self) -> bool {
        self.round_trip >= LONG
    }

    /// How long a round may wait for connections: briefly, so that a black hole is found in time; a second opinion, and
    /// now and then a round while offline, longer, for links whose round trip is longer than that.
    pub(crate) fn patience(&self) -> Duration {
        let slow = self.round_trip.mul_f64(3.0).clamp(Duration::from_secs(3), Duration::from_secs(6));
        match self.state {
            LinkState::Online if self.failures == 1 && self.is_long() => slow,
            LinkState::Offline | LinkState::Unknown if self.failures % 4 == 3 => slow,
            _ => PATIENCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn online() -> Machine {
        let mut machine = Machine::new();
        machine.connected();
        machine
    }

    #[test]
    fn a_lost_connection_alone_is_not_an_offline_link() {
        let mut machine = online();
        assert_eq!(machine.lost(), Next::Round(Duration::ZERO));
        assert_eq!(machine.state(), LinkState::Online);
        assert_eq!(machine.connected(), Next::Rest);
    }

    #[test]
    fn silence_counts_at_once() {
        let mut machine = online();
        machine.lost();
        machine.failed(Silence::TimedOut, machine.patience(), 0.5);
        assert_eq!(machine.state(), LinkState::Offline);
    }

    #[test]
    fn where_round_trips_were_long_silence_is_asked_about_twice_and_slower() {
        let mut machine = online();
        machine.measured(Duration::from_secs(2));
        machine.lost();
        let first = machine.patience();
        assert_eq!(machine.failed(Silence::TimedOut, first, 0.5), Next::Round(Duration::ZERO));
        assert_eq!(machine.state(), LinkState::Online);
        assert!(machine.patience() >= Duration::from_secs(5), "{:?}", machine.patience());
        machine.failed(Silence::TimedOut, machine.patience(), 0.5);
        assert_eq!(machine.state(), LinkState::Offline);
        // It was a while ago.
        machine.connected();
        for _ in 0..240 {
            machine.measured(Duration::from_millis(30));
        }
        machine.lost();
        machine.failed(Silence::TimedOut, machine.patience(), 0.5);
        assert_eq!(machine.state(), LinkState::Offline);
    }

    #[test]
    fn a_refusal_counts_the_second_time() {
        let mut machine = online();
        machine.lost();
        assert_eq!(machine.failed(Silence::Refused, Duration::ZERO, 0.5), Next::Round(SECOND_TRY));
        assert_eq!(machine.state(), LinkState::Online);
        machine.failed(Silence::Refused, Duration::ZERO, 0.5);
        assert_eq!(machine.state(), LinkState::Offline);
    }

    #[test]
    fn a_process_that_starts_offline_knows_after_one_round() {
        let mut machine = Machine::new();
        machine.failed(Silence::Refused, Duration::ZERO, 0.0);
        assert_eq!(machine.state(), LinkState::Offline);
    }

    #[test]
    fn while_offline_a_round_starts_about_every_second_for_ever() {
        let mut machine = Machine::new();
        for round in 0..10_000 {
            let took = machine.patience();
            let Next::Round(pause) = machine.failed(Silence::TimedOut, took, f64::from(round % 10) / 10.0)
            else {
                panic!("it rests while offline")
            };
            assert!(took > Duration::from_secs(1) || took + pause <= Duration::from_millis(1250), "{took:?}");
        }
        assert_eq!(machine.connected(), Next::Rest);
        assert_eq!(machine.state(), LinkState::Online);
    }
}
