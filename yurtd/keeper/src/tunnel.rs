//! What the node's tunnel agent says while it has no session. The API server may be reached where no tunnel server is, and
//! who asks in the cloud why a node is not connected cannot ask the node itself.

use std::time::{Duration, Instant};

use yurt_api::doctor::TunnelSession;
use yurt_api::status::TunnelFault;

/// A session that has been away for less is about to come back.
const AWAY_FOR: u64 = 20;
/// How long the same servers keep the words that were said of them first: each attempt may fail in other words, and each
/// word is a write of the Node.
const SAME_WORDS: Duration = Duration::from_secs(600);
/// What is said of one server at most.
const LONGEST: usize = 300;

/// What was said last.
#[derive(Debug, Default)]
pub(crate) struct Words {
    said: Vec<TunnelFault>,
    at: Option<Instant>,
}

impl Words {
    /// What is to be said of these sessions; the same as before while the hub cannot be asked, which has other troubles then.
    pub(crate) fn of(&mut self, sessions: Option<&[TunnelSession]>, now: Instant) -> Vec<TunnelFault> {
        let Some(sessions) = sessions else { return self.said.clone() };
        let faults = sessions.iter().filter_map(fault).collect::<Vec<_>>();
        let servers = |faults: &[TunnelFault]| faults.iter().map(|it| it.server.clone()).collect::<Vec<_>>();
        let fresh = self.at.is_some_and(|at| now.duration_since(at) < SAME_WORDS);
        if !fresh || servers(&faults) != servers(&self.said) {
            (self.said, self.at) = (faults, Some(now));
        }
        self.said.clone()
    }
}

fn fault(session: &TunnelSession) -> Option<TunnelFault> {
    let away = !session.connected && session.stands_by_for.is_none() && session.for_seconds >= AWAY_FOR;
    let mut error = session.error.clone().filter(|_| away)?;
    error.truncate(error.floor_char_boundary(LONGEST));
    Some(TunnelFault { server: session.server.clone(), error, code: session.code.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(server: &str, for_seconds: u64, error: Option<&str>) -> TunnelSession {
        let error = error.map(str::to_owned);
        TunnelSession { server: server.into(), for_seconds, error, ..TunnelSession::default() }
    }

    #[test]
    fn a_session_that_is_away_is_told_with_why_and_one_that_stands_by_or_comes_back_is_not() {
        let waits = TunnelSession { stands_by_for: Some("a:1".into()), ..session("b:1", 900, None) };
        let there = TunnelSession { connected: true, ..session("c:1", 900, None) };
        let sessions =
            [session("a:1", 60, Some("refused")), waits, there, session("d:1", 5, Some("refused"))];
        let told = Words::default().of(Some(&sessions), Instant::now());
        let refused = TunnelFault { server: "a:1".into(), error: "refused".into(), code: None };
        assert_eq!(told, [refused]);
        let long =
            Words::default().of(Some(&[session("a:1", 60, Some(&"ü".repeat(LONGEST)))]), Instant::now());
        assert_eq!(long[0].error.len(), LONGEST);
    }

    #[test]
    fn words_that_change_with_every_attempt_are_not_written_each_time() {
        let (mut words, start) = (Words::default(), Instant::now());
        let first = words.of(Some(&[session("a:1", 60, Some("refused"))]), start);
        assert_eq!(words.of(Some(&[session("a:1", 90, Some("timed out"))]), start + SAME_WORDS / 2), first);
        let later = words.of(Some(&[session("a:1", 900, Some("timed out"))]), start + SAME_WORDS);
        assert_eq!(later[0].error, "timed out");
        let other = [session("a:1", 930, Some("refused")), session("b:1", 30, Some("refused"))];
        assert_eq!(words.of(Some(&other), start + SAME_WORDS).len(), 2);
        assert_eq!(words.of(None, start + SAME_WORDS).len(), 2);
        assert!(words.of(Some(&[]), start + SAME_WORDS).is_empty());
    }
}
