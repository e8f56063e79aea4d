//! What a reflector does next: a machine without I/O, clock or randomness.

use std::time::Duration;

/// How a reflector begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Somebody wants the state of now.
    Fresh,
    /// Somebody watches from this resourceVersion.
    At(u64),
    /// Nobody waits: go on where the store is.
    Resume,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing yet.
    Started,
    /// The list is committed.
    Listed,
    /// The watch came to its regular end.
    Ended,
    /// 410: the resourceVersion (or the continue token) is too old.
    Expired,
    /// 401: the credential is not good, or not any more.
    Refused,
    /// 403: the identity may not read this.
    Forbidden,
    /// 404.
    Gone,
    /// The collection cannot be a view.
    NotAView,
    /// Any other error answer, or the store failed.
    Failed,
    /// Neither an event nor a bookmark has come for too long.
    Silent,
    /// Bytes that are no watch events.
    Unreadable,
    /// The connection broke, although the link may be up.
    Broken,
    /// The link is down.
    Unreachable,
    /// A pause or a wait is over.
    Rested,
    /// Nobody is interested any more.
    Closed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// List everything; `at` exactly this resourceVersion, if possible.
    List { at: Option<u64> },
    /// Watch from the view's resourceVersion.
    Watch,
    /// Wait.
    Pause(Duration),
    /// Wait for the link.
    AwaitLink,
    /// Wait for another credential, or for somebody who wants to try again.
    AwaitCredential,
    /// End.
    End,
}

/// The first pause after an error, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The longest, like client-go's.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Step {
    /// What is to be done after a pause.
    next: Action,
    complete: bool,
    /// Errors in a row.
    failures: u32,
}

impl Step {
    /// `complete`: the store has a whole list.
    pub(crate) fn new(start: Start, complete: bool) -> Self {
        let next = match (start, complete) {
            (Start::Fresh, _) | (Start::Resume, false) => Action::List { at: None },
            (Start::At(version), false) => Action::List { at: Some(version) },
            (Start::At(_) | Start::Resume, true) => Action::Watch,
        };
        Self { next, complete, failures: 0 }
    }

    /// Decides; `jitter` in 0..1.
    pub(crate) fn next(&mut self, outcome: Outcome, jitter: f64) -> Action {
        match outcome {
            Outcome::Started | Outcome::Rested => self.next,
            Outcome::Listed => {
                self.complete = true;
                self.failures = 0;
                self.go(Action::Watch)
            }
            Outcome::Ended => {
                self.failures = 0;
                self.go(Action::Watch)
            }
            Outcome::Expired => {
                // The first expiry of a watch is answered at once; a list that expires again and again is not.
                let was = std::mem::replace(&mut self.next, Action::List { at: None });
                if was == (Action::List { at: None }) { self.pause(jitter) } else { self.next }
            }
            // Not every server can list at a version. The state of now makes the client list again at worst.
            Outcome::Failed if matches!(self.next, Action::List { at: Some(_) }) => {
                self.go(Action::List { at: None })
            }
            // Only a list shows whether nothing has happened.
            Outcome::Silent => self.go(Action::List { at: None }),
            Outcome::Refused => Action::AwaitCredential,
            // Only a list shows that all of it may be read again.
            Outcome::Forbidden => {
                self.next = Action::List { at: None };
                Action::AwaitCredential
            }
            Outcome::Gone if self.complete => self.pause(jitter),
            // Nothing is stored and nothing can be: the next opener starts anew.
            Outcome::Gone | Outcome::NotAView | Outcome::Closed => Action::End,
            Outcome::Failed if self.complete || self.failures < 3 => self.pause(jitter),
            Outcome::Failed => Action::End,
            Outcome::Unreadable => {
                self.next = Action::List { at: None };
                self.pause(jitter)
            }
            Outcome::Broken => self.pause(jitter),
            Outcome::Unreachable => {
                self.failures = 0;
                Action::AwaitLink
            }
        }
    }

    fn go(&mut self, action: Action) -> Action {
        self.next = action;
        action
    }

    fn pause(&mut self, jitter: f64) -> Action {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        Action::Pause(pause.mul_f64(0.5 + jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watching() -> Step {
        let mut step = Step::new(Start::Fresh, false);
        assert_eq!(step.next(Outcome::Started, 0.0), Action::List { at: None });
        assert_eq!(step.next(Outcome::Listed, 0.0), Action::Watch);
        step
    }

    #[test]
    fn a_list_is_followed_by_watches_without_end() {
        let mut step = watching();
        for _ in 0..3 {
            assert_eq!(step.next(Outcome::Ended, 0.0), Action::Watch);
        }
    }

    #[test]
    fn a_lost_link_is_awaited_and_the_watch_resumed() {
        let mut step = watching();
        assert_eq!(step.next(Outcome::Unreachable, 0.0), Action::AwaitLink);
        assert_eq!(step.next(Outcome::Rested, 0.0), Action::Watch);
    }

    #[test]
    fn an_expired_watch_is_followed_by_a_list_at_once() {
        let mut step = watching();
        assert_eq!(step.next(Outcome::Expired, 0.0), Action::List { at: None });
        assert_eq!(step.next(Outcome::Listed, 0.0), Action::Watch);
    }

    #[test]
    fn a_list_at_a_version_that_cannot_be_had_falls_back_to_now() {
        for outcome in [Outcome::Expired, Outcome::Failed] {
            let mut step = Step::new(Start::At(7), false);
            assert_eq!(step.next(Outcome::Started, 0.0), Action::List { at: Some(7) });
            assert_eq!(step.next(outcome, 0.0), Action::List { at: None });
            assert!(matches!(step.next(outcome, 0.0), Action::Pause(_)));
            assert_eq!(step.next(Outcome::Rested, 0.0), Action::List { at: None });
        }
    }

    #[test]
    fn a_stored_view_is_resumed_unless_somebody_wants_the_state_of_now() {
        assert_eq!(Step::new(Start::Resume, true).next(Outcome::Started, 0.0), Action::Watch);
        assert_eq!(Step::new(Start::At(7), true).next(Outcome::Started, 0.0), Action::Watch);
        assert_eq!(Step::new(Start::Fresh, true).next(Outcome::Started, 0.0), Action::List { at: None });
    }

    #[test]
    fn a_refused_credential_is_not_tried_again() {
        let mut step = watching();
        assert_eq!(step.next(Outcome::Refused, 0.0), Action::AwaitCredential);
        assert_eq!(step.next(Outcome::Rested, 0.0), Action::Watch);
    }

    #[test]
    fn a_forbidden_collection_is_listed_again_before_it_is_watched() {
        let mut step = watching();
        assert_eq!(step.next(Outcome::Forbidden, 0.0), Action::AwaitCredential);
        assert_eq!(step.next(Outcome::Rested, 0.0), Action::List { at: None });
        assert_eq!(step.next(Outcome::Forbidden, 0.0), Action::AwaitCredential);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_again_after_success() {
        let mut step = watching();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let Action::Pause(pause) = step.next(Outcome::Failed, 0.5) else { panic!() };
            assert!(pause >= last && pause <= LONGEST_PAUSE);
            assert_eq!(step.next(Outcome::Rested, 0.5), Action::Watch);
            last = pause;
        }
        assert_eq!(last, LONGEST_PAUSE);
        step.next(Outcome::Ended, 0.5);
        assert_eq!(step.next(Outcome::Failed, 0.5), Action::Pause(FIRST_PAUSE));
    }

    #[test]
    fn a_silent_watch_is_followed_by_a_list() {
        let mut step = watching();
        assert_eq!(step.next(Outcome::Silent, 0.0), Action::List { at: None });
        assert_eq!(step.next(Outcome::Listed, 0.0), Action::Watch);
    }

    #[test]
    fn what_never_was_a_view_ends() {
        let mut step = Step::new(Start::Fresh, false);
        step.next(Outcome::Started, 0.0);
        assert_eq!(step.next(Outcome::Gone, 0.0), Action::End);
        let mut step = Step::new(Start::Fresh, false);
        assert_eq!(step.next(Outcome::NotAView, 0.0), Action::End);
        assert!(matches!(watching().next(Outcome::Gone, 0.0), Action::Pause(_)));
    }
}
