//! What the hub knows of a connection: who is at its other end, what is under way on it, and when it has to go.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::time::{Instant, sleep, sleep_until};

use super::respond::Failure;
use crate::caller::Caller;
use crate::limits::{self, Accounts, Flow};
use crate::request::Peer;

/// One connection.
pub(crate) struct Connection {
    /// What its client certificate says.
    pub(crate) peer: Peer,
    /// Its other end.
    pub(crate) from: IpAddr,
    /// Somebody who is known has asked for something on it.
    known: AtomicBool,
    flows: Mutex<Vec<Weak<Flow>>>,
}

/// Why a connection has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// Nobody who is known has asked for anything on it.
    Unknown,
    /// One of its readers has stopped, and what there is for it stays in memory.
    Stalled,
}

impl Connection {
    /// One that has asked for nothing.
    pub(crate) fn new(peer: Peer, from: IpAddr) -> Self {
        let known = AtomicBool::new(matches!(peer, Peer::Node { .. }));
        Self { peer, from, known, flows: Mutex::default() }
    }

    /// Another request of a caller who is known.
    ///
    /// # Errors
    ///
    /// [`Failure::Busy`].
    pub(crate) fn admit(&self, accounts: &Accounts, caller: &Caller) -> Result<Arc<Flow>, Failure> {
        self.known.store(true, Ordering::Relaxed);
        let flow = accounts.of(caller).stream().ok_or(Failure::Busy)?;
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        if flows.len() == flows.capacity() {
            flows.retain(|flow| flow.strong_count() > 0);
        }
        flows.push(Arc::downgrade(&flow));
        Ok(flow)
    }

    /// Returns when the connection, which was accepted at `at`, has to go.
    pub(crate) async fn overdue(&self, at: Instant) -> Overdue {
        sleep_until(at + limits::AUTHENTICATED_WITHIN).await;
        if !self.known.load(Ordering::Relaxed) {
            return Overdue::Unknown;
        }
        while !self.is_stalled() {
            sleep(limits::LOOK_FOR_STALLED).await;
        }
        Overdue::Stalled
    }

    fn is_stalled(&self) -> bool {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.retain(|flow| flow.strong_count() > 0);
        flows.iter().filter_map(Weak::upgrade).any(|flow| flow.stalled() >= limits::STALLED)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::caller::{Credential, Identity};

    fn connection(peer: Peer) -> Arc<Connection> {
        Arc::new(Connection::new(peer, [10, 244, 0, 7].into()))
    }

    async fn overdue(connection: &Connection) -> Option<Overdue> {
        let soon = limits::STALLED + limits::AUTHENTICATED_WITHIN + limits::LOOK_FOR_STALLED * 2;
        tokio::time::timeout(soon, connection.overdue(Instant::now())).await.ok()
    }

    fn caller() -> Caller {
        Caller { identity: Identity::new("web"), credential: Credential::Node }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nobody_is_known_has_half_a_minute() {
        let stranger = connection(Peer::Anonymous);
        assert_eq!(overdue(&stranger).await, Some(Overdue::Unknown));
        assert_eq!(overdue(&connection(Peer::Node { not_before: 0, not_after: 0 })).await, None);
        let pod = connection(Peer::Anonymous);
        drop(pod.admit(&Accounts::new(), &caller()).unwrap());
        assert_eq!(overdue(&pod).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_reader_that_has_stopped_has_to_go() {
        let (accounts, pod) = (Accounts::new(), connection(Peer::Anonymous));
        let watch = pod.admit(&accounts, &caller()).unwrap();
        assert_eq!(overdue(&pod).await, None, "nothing is there for it");
        let _piece = watch.sending(Bytes::from_static(b"event"));
        // Others on the connection that go on do not help it.
        for _ in 0..100 {
            drop(pod.admit(&accounts, &caller()).unwrap());
        }
        assert!(pod.flows.lock().unwrap().len() < 100);
        assert_eq!(overdue(&pod).await, Some(Overdue::Stalled));
    }
}
