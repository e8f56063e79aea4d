//! How the sessions fare, for whoever wants to know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use yurt_api::doctor::TunnelSession;

/// One entry an address. Cheap to clone; all clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    state: State,
    /// The cluster names it, and nobody gave it.
    found: bool,
    /// Since when it is so.
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Connected,
    /// This other address has a session with the same server.
    StandsBy(String),
    /// Why the last attempt failed, for programs and for people.
    Lost(Option<(&'static str, String)>),
}

impl Known {
    /// Not there yet.
    fn new(found: bool) -> Self {
        Self { state: State::Lost(None), found, since: Instant::now() }
    }

    fn becomes(&mut self, state: State) {
        (self.state, self.since) = (state, Instant::now());
    }
}

impl Connections {
    /// To these servers, none there yet.
    pub fn of(servers: &[String]) -> Self {
        let none = |server: &String| (server.clone(), Known::new(false));
        Self(Arc::new(Mutex::new(servers.iter().map(none).collect())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self, server: &str) {
        self.lock().entry(server.to_owned()).or_insert_with(|| Known::new(false)).becomes(State::Connected);
    }

    /// The cluster names it.
    pub(super) fn found(&self, server: &str) {
        self.lock().entry(server.to_owned()).or_insert_with(|| Known::new(true));
    }

    /// The cluster does not name it any more.
    pub(super) fn gone(&self, server: &str) {
        self.lock().remove(server);
    }

    /// It is not needed while `other` has a session with the same server. Says whether that is news.
    pub(super) fn stands_by(&self, server: &str, other: &str) -> bool {
        let mut all = self.lock();
        let state = State::StandsBy(other.to_owned());
        let known = all.entry(server.to_owned()).or_insert_with(|| Known::new(false));
        if known.state == state {
            return false;
        }
        known.becomes(state);
        true
    }

    /// It is not there, or not any more.
    pub(super) fn lost(&self, server: &str, code: &'static str, error: &str) {
        let mut all = self.lock();
        let known = all.entry(server.to_owned()).or_insert_with(|| Known::new(false));
        let lost = State::Lost(Some((code, error.to_owned())));
        match known.state {
            State::Lost(_) => known.state = lost,
            _ => known.becomes(lost),
        }
    }

    /// All of them now.
    pub fn sessions(&self) -> Vec<TunnelSession> {
        let session = |(server, known): (&String, &Known)| {
            let (stands_by_for, lost) = match &known.state {
                State::Connected => (None, None),
                State::StandsBy(other) => (Some(other.clone()), None),
                State::Lost(why) => (None, why.clone()),
            };
            let (code, error) = lost.unzip();
            TunnelSession {
                server: server.clone(),
                connected: known.state == State::Connected,
                found: known.found,
                for_seconds: known.since.elapsed().as_secs(),
                stands_by_for,
                error,
                code: code.map(str::to_owned),
            }
        };
        self.lock().iter().map(session).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_lost_since_it_was_there_last_and_not_since_the_last_attempt() {
        let connections = Connections::of(&["cloud:10262".to_owned()]);
        let since = || connections.lock()["cloud:10262"].since;
        let session = || connections.sessions().remove(0);
        let first = since();
        connections.lost("cloud:10262", "Refused", "refused");
        assert_eq!(
            (session().connected, session().error, since()),
            (false, Some("refused".to_owned()), first)
        );
        connections.connected("cloud:10262");
        assert_eq!((session().connected, session().error), (true, None));
        let up = since();
        connections.lost("cloud:10262", "SessionEnded", "the session has ended");
        let down = since();
        assert!(!session().connected && down >= up);
        connections.lost("cloud:10262", "Refused", "refused");
        assert_eq!(since(), down);
    }

    #[test]
    fn an_address_that_stands_by_is_not_lost() {
        let connections = Connections::of(&["cloud:10262".to_owned()]);
        connections.lost("cloud:10262", "Refused", "refused");
        assert!(connections.stands_by("cloud:10262", "vpn:10262"));
        assert!(!connections.stands_by("cloud:10262", "vpn:10262"));
        let session = connections.sessions().remove(0);
        assert_eq!((session.connected, session.error), (false, None));
        assert_eq!(session.stands_by_for.as_deref(), Some("vpn:10262"));
    }
}
