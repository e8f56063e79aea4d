//! When to connect again: full jitter, so that agents which lost the same server do not come back as one.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);
/// A session that lasted this long was a success; the next failure is a first one.
pub(super) const STABLE: Duration = Duration::from_secs(60);

/// Counts failed attempts in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LAST)
    }
}

impl Backoff {
    /// That waits no longer than this.
    pub(super) fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    /// How long to wait after a failure; `random` is uniform over all `u32`.
    pub(super) fn after_failure(&mut self, random: u32) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        fraction(ceiling, random)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// How long an agent waits after another one with its certificate has taken its place; `random` is uniform over all
/// `u32`. Two that wait a different time each have streams that last longer than a minute.
pub(super) fn after_superseded(random: u32) -> Duration {
    STABLE + fraction(STABLE, random)
}

/// From nothing to all of `ceiling`; `random` is uniform over all `u32`.
pub(super) fn fraction(ceiling: Duration, random: u32) -> Duration {
    ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u128> = (0..8).map(|_| backoff.after_failure(u32::MAX).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        for _ in 0..100 {
            assert!(backoff.after_failure(u32::MAX) <= LAST);
        }
        backoff.reset();
        assert_eq!(backoff.after_failure(u32::MAX), FIRST);
    }

    #[test]
    fn who_was_superseded_leaves_the_other_one_alone_for_as_long_as_makes_a_session_a_success() {
        assert_eq!(after_superseded(0), STABLE);
        assert_eq!(after_superseded(u32::MAX), 2 * STABLE);
    }

    #[test]
    fn the_whole_range_below_the_ceiling_is_used() {
        let mut backoff = Backoff { failures: 20, longest: LAST };
        assert_eq!(backoff.after_failure(0), Duration::ZERO);
        assert_eq!(backoff.after_failure(u32::MAX / 2).as_secs(), 14);
    }
}
