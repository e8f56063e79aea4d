//! How long to wait before the next pass.

use std::time::Duration;

use super::engine::KeeperError;
use super::journal::Step;

/// How often a settled node is looked at for drift. All of it is local.
pub(crate) const DRIFT: Duration = Duration::from_secs(10);
/// Pauses after passes that failed double from the first to the last. A conversion that fails is begun again,
/// because its reason may have gone, but not often: it may restart kubelet.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const FIRST_PAUSE_AFTER_REFUSING: Duration = Duration::from_secs(15);
const FIRST_PAUSE_AFTER_UNDOING: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
const LONGEST_PAUSE_OFFLINE: Duration = Duration::from_secs(15);

/// How long to wait after passes that failed.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    last: Option<Duration>,
}

impl Pause {
    pub(crate) fn after(&mut self, error: &KeeperError) -> Duration {
        let (first, longest) = match error {
            KeeperError::Undone { failure } if failure.step <= Step::Preflight => {
                (FIRST_PAUSE_AFTER_REFUSING, LONGEST_PAUSE)
            }
            KeeperError::Undone { .. } => (FIRST_PAUSE_AFTER_UNDOING, LONGEST_PAUSE),
            KeeperError::Offline(_) | KeeperError::Cluster(_) => (FIRST_PAUSE, LONGEST_PAUSE_OFFLINE),
            _ => (FIRST_PAUSE, FIRST_PAUSE_AFTER_UNDOING),
        };
        let next = self.last.map_or(first, |last| last * 2).clamp(first, longest);
        self.last = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::ClusterError;
    use super::super::journal::Failure;
    use super::*;

    fn undone(step: Step) -> KeeperError {
        KeeperError::Undone { failure: Failure { step, message: String::new() } }
    }

    #[test]
    fn pauses_double_from_the_first_to_the_longest_of_their_kind() {
        let lost = ClusterError::Unreachable { what: "the API server", message: String::new() };
        for (error, expected) in [
            (KeeperError::Offline(lost), [2, 4, 8, 15, 15]),
            (KeeperError::Refused(String::new()), [2, 4, 8, 16, 32]),
            (undone(Step::Preflight), [15, 30, 60, 120, 240]),
            (undone(Step::Verify), [60, 120, 240, 480, 600]),
        ] {
            let mut pause = Pause::default();
            let pauses: Vec<u64> = (0..5).map(|_| pause.after(&error).as_secs()).collect();
            assert_eq!(pauses, expected, "{error}");
        }
    }

    #[test]
    fn another_failure_has_its_own_bounds() {
        let mut pause = Pause::default();
        for _ in 0..10 {
            pause.after(&undone(Step::Verify));
        }
        assert_eq!(pause.after(&KeeperError::Refused(String::new())), FIRST_PAUSE_AFTER_UNDOING);
    }
}
