//! One holder at a time: what to do with a `coordination.k8s.io/v1` Lease, as a state machine over what was read of it.
//! Pure: whoever uses it reads and writes the object, and says what time it is.
//!
//! The rules are those of client-go's
//! [leaderelection](https://pkg.go.dev/k8s.io/client-go/tools/leaderelection):
//!
//! - Clocks of two machines are never compared. A holder counts as gone when *we* have not seen its record change for as
//!   long as the record says that it lasts; the times in it are for people.
//! - Every write carries the resourceVersion that was read, so that of two who try at once one gets a conflict, and
//!   begins again with [`Candidate::step`].
//! - Who holds it and cannot renew it stops before anybody else may begin, [`Timing::renew_within`] after the last
//!   renewal that worked.
//!
//! ```text
//!            step                     write worked: wrote()
//!   read ──► Create, Take ──► write ──────────────────────► held ──► step: Renew ──► write ─┐
//!     ▲      Wait ─┐                                          ▲                               │ wrote()
//!     └────────────┘                                          └───────────────────────────────┘
//!   held, and step says Wait: lost.   held, and time_left() says None: lost.   release(): free at once.
//! ```

use std::time::{Duration, Instant};

/// The fields of a Lease's `spec` that decide. `T` is a time as the caller's API types have it; nothing here reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record<T> {
    /// `holderIdentity`; empty when nobody holds it.
    pub holder: String,
    /// `leaseDurationSeconds`
    pub seconds: Option<i32>,
    /// `acquireTime`
    pub acquired: Option<T>,
    /// `renewTime`
    pub renewed: Option<T>,
    /// `leaseTransitions`
    pub transitions: i32,
}

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a holder that is not heard of keeps the Lease. Whole seconds are written.
    pub length: Duration,
    /// How long a holder goes on without having renewed it; shorter than `length`.
    pub renew_within: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// There is no Lease: create it with this.
    Create(Record<T>),
    /// It is ours: write this.
    Renew(Record<T>),
    /// It is free, or its holder is gone: write this.
    Take(Record<T>),
    /// Somebody else has it.
    Wait(Other),
}

/// Somebody else who has the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Who.
    pub holder: String,
    /// When to look again at the latest: the Lease is free then if nobody renews it.
    pub left: Duration,
    /// The record has changed since we saw it first: somebody is at work.
    pub alive: bool,
}

/// Somebody who wants the Lease, or has it.
#[derive(Debug, Clone)]
pub struct Candidate<T> {
    me: String,
    timing: Timing,
    /// A record with our name is ours although this candidate never wrote it.
    adopts: bool,
    seen: Option<Sighting<T>>,
    /// When the write that last made or kept it ours was asked for.
    held: Option<Instant>,
}

/// What was read last.
#[derive(Debug, Clone)]
struct Sighting<T> {
    record: Record<T>,
    since: Instant,
    changes: u32,
}

impl<T: Clone + PartialEq> Candidate<T> {
    /// A candidate named `me`, which nobody else may be at the same time.
    pub fn new(me: impl Into<String>, timing: Timing) -> Self {
        Self { me: me.into(), timing, adopts: false, seen: None, held: None }
    }

    /// Takes a record with this name for its own from the start: the name outlives the process and nobody else can ever
    /// have it, as that of a pod whose container was restarted.
    #[must_use]
    pub fn adopting(mut self) -> Self {
        self.adopts = true;
        self
    }

    /// From what was read to what to write. `now` is when it was read, `time` the same for people.
    pub fn step(&mut self, found: Option<&Record<T>>, now: Instant, time: T) -> Step<T> {
        let Some(found) = found else {
            self.seen = None;
            return Step::Create(self.record(0, time.clone(), time));
        };
        let (unchanged, changes) = self.observe(found, now);
        if found.holder == self.me && (self.adopts || self.held.is_some()) {
            let acquired = found.acquired.clone().unwrap_or_else(|| time.clone());
            return Step::Renew(self.record(found.transitions, acquired, time));
        }
        // Not ours, or not any more.
        self.held = None;
        let length = found.seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let length = length.map_or(self.timing.length, Duration::from_secs);
        if found.holder.is_empty() || unchanged >= length {
            return Step::Take(self.record(found.transitions.saturating_add(1), time.clone(), time));
        }
        Step::Wait(Other {
            holder: found.holder.clone(),
            left: length.saturating_sub(unchanged),
            alive: changes > 0,
        })
    }

    /// A step's record has been written. `asked` is when the write was begun: others count from when they see it, which
    /// is later.
    pub fn wrote(&mut self, record: Record<T>, asked: Instant) {
        self.seen = Some(Sighting { record, since: asked, changes: 0 });
        self.held = Some(asked);
    }

    /// For how long the holder may go on without another renewal. `None`: it does not hold the Lease, or has not been
    /// able to renew it in time and has to stop.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.held?);
        self.timing.renew_within.checked_sub(silent).filter(|left| !left.is_zero())
    }

    /// What to write to let go, so that the next one need not wait. `None` when it is not ours.
    pub fn release(&mut self, found: &Record<T>, time: T) -> Option<Record<T>> {
        self.held = None;
        (found.holder == self.me).then(|| Record {
            holder: String::new(),
            // For candidates that wait out whatever they find.
            seconds: Some(1),
            renewed: Some(time),
            ..found.clone()
        })
    }

    fn record(&self, transitions: i32, acquired: T, renewed: T) -> Record<T> {
        Record {
            holder: self.me.clone(),
            seconds: Some(i32::try_from(self.timing.length.as_secs()).unwrap_or(i32::MAX)),
            acquired: Some(acquired),
            renewed: Some(renewed),
            transitions,
        }
    }

    /// For how long the record has not changed by our own clock, and how often it has since it was seen first.
    fn observe(&mut self, record: &Record<T>, now: Instant) -> (Duration, u32) {
        let changes = match &self.seen {
            Some(seen) if seen.record == *record => {
                return (now.saturating_duration_since(seen.since), seen.changes);
            }
            Some(seen) => seen.changes.saturating_add(1),
            None => 0,
        };
        self.seen = Some(Sighting { record: record.clone(), since: now, changes });
        (Duration::ZERO, changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { length: Duration::from_secs(15), renew_within: Duration::from_secs(10) };

    /// Times are numbers here; those of others lie in the future, because their clocks do not count.
    fn held_by(holder: &str, renewed: u32) -> Record<u32> {
        Record {
            holder: holder.into(),
            seconds: Some(15),
            acquired: Some(1_000_000),
            renewed: Some(1_000_000 + renewed),
            transitions: 3,
        }
    }

    fn candidate() -> Candidate<u32> {
        Candidate::new("a", TIMING)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_missing_lease_is_created() {
        let Step::Create(record) = candidate().step(None, Instant::now(), 7) else { panic!() };
        let expected = Record {
            holder: "a".into(),
            seconds: Some(15),
            acquired: Some(7),
            renewed: Some(7),
            transitions: 0,
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn another_ones_is_left_until_it_has_been_silent_for_its_length() {
        let (mut me, start) = (candidate(), Instant::now());
        let wait = |left, alive| Step::Wait(Other { holder: "b".into(), left: seconds(left), alive });
        assert_eq!(me.step(Some(&held_by("b", 0)), start, 0), wait(15, false));
        assert_eq!(me.step(Some(&held_by("b", 0)), start + seconds(14), 0), wait(1, false));
        // Renewed: it counts anew from when we saw that.
        assert_eq!(me.step(Some(&held_by("b", 5)), start + seconds(16), 0), wait(15, true));
        let Step::Take(record) = me.step(Some(&held_by("b", 5)), start + seconds(31), 9) else { panic!() };
        assert_eq!((record.holder.as_str(), record.transitions), ("a", 4));
        assert_eq!((record.acquired, record.renewed), (Some(9), Some(9)));
    }

    #[test]
    fn the_record_says_how_long_its_holder_counts() {
        let short = Record { seconds: Some(3), ..held_by("b", 0) };
        let none = Record { seconds: None, ..held_by("b", 0) };
        for (record, length) in [(short, 3), (none, 15)] {
            let (mut me, start) = (candidate(), Instant::now());
            assert!(matches!(me.step(Some(&record), start, 0), Step::Wait(_)));
            assert!(matches!(me.step(Some(&record), start + seconds(length - 1), 0), Step::Wait(_)));
            assert!(matches!(me.step(Some(&record), start + seconds(length), 0), Step::Take(_)));
        }
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        assert!(matches!(candidate().step(Some(&held_by("", 0)), Instant::now(), 0), Step::Take(_)));
    }

    #[test]
    fn ours_is_renewed_and_keeps_its_beginning() {
        let (mut me, start) = (candidate(), Instant::now());
        let Step::Create(first) = me.step(None, start, 7) else { panic!() };
        me.wrote(first.clone(), start);
        let Step::Renew(next) = me.step(Some(&first), start + seconds(2), 9) else { panic!() };
        assert_eq!(next, Record { renewed: Some(9), ..first });
    }

    #[test]
    fn a_namesake_s_is_not_ours_unless_we_may_adopt_it() {
        let now = Instant::now();
        assert!(matches!(candidate().step(Some(&held_by("a", 0)), now, 0), Step::Wait(_)));
        assert!(matches!(candidate().adopting().step(Some(&held_by("a", 0)), now, 0), Step::Renew(_)));
    }

    #[test]
    fn a_holder_has_to_stop_before_another_one_begins() {
        let (mut me, start) = (candidate(), Instant::now());
        assert_eq!(me.time_left(start), None);
        me.wrote(held_by("a", 0), start);
        assert_eq!(me.time_left(start), Some(seconds(10)));
        assert_eq!(me.time_left(start + seconds(9)), Some(seconds(1)));
        assert_eq!(me.time_left(start + seconds(10)), None);
    }

    #[test]
    fn a_lease_that_somebody_else_has_taken_is_lost() {
        let (mut me, start) = (candidate(), Instant::now());
        me.wrote(held_by("a", 0), start);
        assert!(matches!(me.step(Some(&held_by("b", 1)), start, 0), Step::Wait(_)));
        assert_eq!(me.time_left(start), None);
    }

    #[test]
    fn only_our_own_is_released() {
        let mut me = candidate();
        me.wrote(held_by("a", 0), Instant::now());
        assert_eq!(me.release(&held_by("b", 0), 9), None);
        let released = me.release(&held_by("a", 0), 9).unwrap();
        assert_eq!((released.holder.as_str(), released.seconds, released.renewed), ("", Some(1), Some(9)));
        assert_eq!(me.time_left(Instant::now()), None);
    }
}
