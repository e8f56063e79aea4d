//! Whether the other side is still there.
//!
//! A silent connection is asked with a PING; any byte that arrives afterwards is an answer. Three questions without one
//! and the session is dead. An idle link behind NAT sees a packet at least every [`Settings::silence`], less than
//! the shortest idle times of mobile networks.

use std::time::{Duration, Instant};

/// When to ask.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Silence after which the peer is asked.
    pub silence: Duration,
    /// How long an answer may take before the peer is asked again.
    pub answer: Duration,
    /// How many questions may go unanswered.
    pub misses: u32,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask, and come back then.
    Ping(Instant),
    /// Come back then.
    Wait(Instant),
    /// Give the session up.
    Dead,
}

#[derive(Debug)]
pub(super) struct Liveness {
    settings: Settings,
    asked: Option<Instant>,
    missed: u32,
}

impl Liveness {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, asked: None, missed: 0 }
    }

    /// `heard` is when the last byte arrived.
    pub(super) fn step(&mut self, now: Instant, heard: Instant) -> Step {
        if let Some(asked) = self.asked {
            if heard >= asked {
                self.asked = None;
                self.missed = 0;
            } else if now < asked + self.settings.answer {
                return Step::Wait(asked + self.settings.answer);
            } else {
                self.missed += 1;
                if self.missed >= self.settings.misses {
                    return Step::Dead;
                }
                return self.ask(now);
            }
        }
        if now < heard + self.settings.silence {
            return Step::Wait(heard + self.settings.silence);
        }
        self.ask(now)
    }

    fn ask(&mut self, now: Instant) -> Step {
        self.asked = Some(now);
        Step::Ping(now + self.settings.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings =
        Settings { silence: Duration::from_secs(20), answer: Duration::from_secs(5), misses: 3 };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn three_questions_without_an_answer_end_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(SETTINGS);
        assert_eq!(liveness.step(start, start), Step::Wait(after(start, 20)));
        assert_eq!(liveness.step(after(start, 20), start), Step::Ping(after(start, 25)));
        assert_eq!(liveness.step(after(start, 22), start), Step::Wait(after(start, 25)));
        assert_eq!(liveness.step(after(start, 25), start), Step::Ping(after(start, 30)));
        assert_eq!(liveness.step(after(start, 30), start), Step::Ping(after(start, 35)));
        assert_eq!(liveness.step(after(start, 35), start), Step::Dead);
    }

    #[test]
    fn any_byte_is_an_answer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(SETTINGS);
        assert_eq!(liveness.step(after(start, 20), start), Step::Ping(after(start, 25)));
        assert_eq!(liveness.step(after(start, 25), start), Step::Ping(after(start, 30)));
        let heard = after(start, 27);
        assert_eq!(liveness.step(after(start, 30), heard), Step::Wait(after(heard, 20)));
        // The misses from before are forgotten.
        assert_eq!(liveness.step(after(heard, 20), heard), Step::Ping(after(heard, 25)));
        assert_eq!(liveness.step(after(heard, 25), heard), Step::Ping(after(heard, 30)));
    }

    #[test]
    fn a_busy_connection_is_not_asked() {
        let start = Instant::now();
        let mut liveness = Liveness::new(SETTINGS);
        for second in 0..100 {
            let now = after(start, second);
            assert_eq!(liveness.step(now, now), Step::Wait(after(now, 20)));
        }
    }
}
