//! How the sessions fare, for whoever wants to know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use yurt_api::doctor::TunnelSession;

/// One session a server. Cheap to clone; all clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    connected: bool,
    /// Since when it is so.
    since: Instant,
    error: Option<String>,
}

impl Connections {
    /// To these servers, none there yet.
    pub(super) fn of(servers: &[String]) -> Self {
        let none = |server: &String| {
            (server.clone(), Known { connected: false, since: Instant::now(), error: None })
        };
        Self(Arc::new(Mutex::new(servers.iter().map(none).collect())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self, server: &str) {
        self.lock().insert(server.to_owned(), Known { connected: true, since: Instant::now(), error: None });
    }

    /// It is not there, or not any more.
    pub(super) fn lost(&self, server: &str, error: &str) {
        let mut all = self.lock();
        let since =
            all.get(server).filter(|known| !known.connected).map_or_else(Instant::now, |known| known.since);
        all.insert(server.to_owned(), Known { connected: false, since, error: Some(error.to_owned()) });
    }

    /// All of them now.
    pub fn sessions(&self) -> Vec<TunnelSession> {
        let session = |(server, known): (&String, &Known)| TunnelSession {
            server: server.clone(),
            connected: known.connected,
            for_seconds: known.since.elapsed().as_secs(),
            error: known.error.clone(),
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
        connections.lost("cloud:10262", "refused");
        assert_eq!(
            (session().connected, session().error, since()),
            (false, Some("refused".to_owned()), first)
        );
        connections.connected("cloud:10262");
        assert_eq!((session().connected, session().error), (true, None));
        let up = since();
        connections.lost("cloud:10262", "the session has ended");
        let down = since();
        assert!(!session().connected && down >= up);
        connections.lost("cloud:10262", "refused");
        assert_eq!(since(), down);
    }
}
