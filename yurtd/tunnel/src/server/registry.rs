//! Which node is connected through which session.
//!
//! A node has one session here: the newest. The older one is closed, and its end removes nothing: entries are
//! removed by the registration that made them and by no other. One that was alive to the last is another machine's
//! ([`super::duplicates`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use yurt_api::status::{AgentStatus, LostAgent};
use yurt_api::tunnel::{GoAwayCode, OpenErrorCode, ServerId, Target};

use super::duplicates::Duplicates;
use super::lost::Lost;
use crate::mux::{End, OpenFailure, Session, TunnelStream};

/// How long a session that is replaced has to show that its agent lives. Its streams go on for as long.
const SHOW_LIFE: Duration = Duration::from_secs(2);

/// Why no stream to a node could be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// No agent of that node is connected to this server, nor to another one that answers.
    #[error("no tunnel agent of node {0:?} is connected")]
    NotConnected(String),
    /// The session ended before the agent answered.
    #[error("the tunnel session of node {0:?} ended before its agent answered")]
    SessionEnded(String),
    /// The agent did not answer in time.
    #[error("the tunnel agent of node {0:?} did not answer in time")]
    NoAnswer(String),
    /// The agent answered that it cannot or will not connect.
    #[error("the tunnel agent of node {node:?} {code}: {message}")]
    Rejected {
        /// The node.
        node: String,
        /// What the agent says.
        code: OpenErrorCode,
        /// Details for a person.
        message: String,
    },
    /// As many streams as both sides agreed on are open.
    #[error("too many streams to node {0:?} are open")]
    TooManyStreams(String),
}

impl DialError {
    /// Why a session opened no stream to `node`.
    pub(super) fn of(node: &str, failure: OpenFailure) -> Self {
        let node = node.to_owned();
        match failure {
            OpenFailure::SessionEnded | OpenFailure::Reset => Self::SessionEnded(node),
            OpenFailure::NoAnswer => Self::NoAnswer(node),
            OpenFailure::TooManyStreams => Self::TooManyStreams(node),
            OpenFailure::Rejected { code: OpenErrorCode::NotHere, .. } => Self::NotConnected(node),
            OpenFailure::Rejected { code, message } => Self::Rejected { node, code, message },
        }
    }
}

#[derive(Debug)]
struct Entry {
    epoch: u64,
    session: Session,
    remote: SocketAddr,
    since: Timestamp,
}

#[derive(Debug, Default)]
struct Entries {
    by_node: BTreeMap<String, Entry>,
    epoch: u64,
    /// Per node the addresses that are redirected, and those that are not, and why.
    redirected: BTreeMap<String, Vec<String>>,
    left_out: BTreeMap<String, Vec<String>>,
    duplicates: Duplicates,
    /// Agents are asked to connect elsewhere.
    going_away: bool,
    lost: Lost,
}

/// The sessions of all connected agents, by node name.
#[derive(Debug)]
pub(super) struct Registry {
    server: ServerId,
    entries: RwLock<Entries>,
}

impl Registry {
    /// The registry of this server.
    pub(super) fn new(server: ServerId) -> Arc<Self> {
        Arc::new(Self { server, entries: RwLock::default() })
    }

    /// Whose sessions they are.
    pub(super) fn server(&self) -> &ServerId {
        &self.server
    }

    /// Opens a stream to `target` on `node`.
    ///
    /// # Errors
    ///
    /// [`DialError`], never later than 15 seconds.
    pub(super) async fn dial(&self, node: &str, target: Target) -> Result<TunnelStream, DialError> {
        let session = self.read(|entries| entries.by_node.get(node).map(|entry| entry.session.clone()));
        let session = session.ok_or_else(|| DialError::NotConnected(node.to_owned()))?;
        session.open(target).await.map_err(|failure| DialError::of(node, failure))
    }

    /// Whether [`Self::dial`] would ask an agent of `node`.
    pub(super) fn has(&self, node: &str) -> bool {
        self.read(|entries| entries.by_node.get(node).is_some_and(|entry| entry.session.takes_streams()))
    }

    /// One entry a connected agent, sorted by node name.
    pub(super) fn statuses(&self) -> Vec<AgentStatus> {
        let now = Timestamp::now();
        self.read(|entries| {
            let status = |(node, entry): (&String, &Entry)| {
                let figures = entry.session.figures();
                AgentStatus {
                    node: node.clone(),
                    server: self.server.to_string(),
                    version: entry.session.peer_software(),
                    remote_address: entry.remote.to_string(),
                    connected_since: entry.since.to_string(),
                    rtt_micros: figures
                        .round_trip
                        .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                    streams: u32::try_from(figures.streams).unwrap_or(u32::MAX),
                    bytes_sent: figures.bytes_sent,
                    bytes_received: figures.bytes_received,
                    redirected: entries.redirected.get(node).cloned().unwrap_or_default(),
                    not_redirected: entries.left_out.get(node).cloned().unwrap_or_default(),
                    duplicate: entries.duplicates.of(node, now),
                }
            };
            entries.by_node.iter().map(status).collect()
        })
    }

    /// Nodes whose sessions have ended, the newest first.
    pub(super) fn lost(&self) -> Vec<LostAgent> {
        self.read(|entries| entries.lost.list(self.server.as_str()))
    }

    /// How long the agent of `node` takes to answer now, if it does `within` this time.
    pub(super) async fn measure(&self, node: &str, within: Duration) -> Option<Duration> {
        let session = self.read(|entries| entries.by_node.get(node).map(|entry| entry.session.clone()))?;
        session.measure(within).await
    }

    /// Remembers for [`Self::statuses`] which addresses of nodes are redirected, and which are not, and why.
    pub(super) fn set_addresses(
        &self,
        redirected: BTreeMap<String, Vec<String>>,
        left_out: BTreeMap<String, Vec<String>>,
    ) {
        self.write(|entries| (entries.redirected, entries.left_out) = (redirected, left_out));
    }

    /// Makes `session` the one of `node`, in the place of an older one.
    pub(super) fn register(
        self: &Arc<Self>,
        node: &str,
        session: Session,
        remote: SocketAddr,
    ) -> (Registration, Option<Superseded>) {
        // Fractions of a second say nothing to a reader of the status.
        let now = Timestamp::now();
        let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let (epoch, old) = self.write(|entries| {
            entries.epoch += 1;
            if entries.going_away {
                // Its handshake had begun before.
                session.go_away(GoAwayCode::ShuttingDown);
            }
            let entry = Entry { epoch: entries.epoch, session, remote, since };
            entries.lost.is_back(node);
            (entries.epoch, entries.by_node.insert(node.to_owned(), entry))
        });
        let superseded = old.map(|old| Superseded {
            registry: self.clone(),
            node: node.to_owned(),
            session: old.session,
            older: old.remote,
            newer: remote,
        });
        let registration = Registration { registry: self.clone(), node: node.to_owned(), epoch, end: None };
        (registration, superseded)
    }

    /// How often a session has begun here.
    #[cfg(test)]
    pub(super) fn registrations(&self) -> u64 {
        self.read(|entries| entries.epoch)
    }

    /// Asks every agent to connect elsewhere, for good; open streams go on.
    pub(super) fn go_away(&self) {
        self.write(|entries| {
            entries.going_away = true;
            entries.by_node.values().for_each(|entry| entry.session.go_away(GoAwayCode::ShuttingDown));
        });
    }

    /// How many streams are open in all sessions.
    pub(super) fn streams(&self) -> usize {
        self.read(|entries| entries.by_node.values().map(|entry| entry.session.figures().streams).sum())
    }

    fn read<T>(&self, act: impl FnOnce(&Entries) -> T) -> T {
        act(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, act: impl FnOnce(&mut Entries) -> T) -> T {
        act(&mut self.entries.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A session that a newer one of the same node has replaced. Closed when it is dropped.
#[derive(Debug)]
pub(super) struct Superseded {
    registry: Arc<Registry>,
    node: String,
    session: Session,
    older: SocketAddr,
    newer: SocketAddr,
}

impl Superseded {
    /// Tells its agent, finds out whether there still is one, and closes it.
    pub(super) async fn retire(self) {
        let Self { registry, node, session, older, newer } = &self;
        session.go_away(GoAwayCode::Superseded);
        if !session.is_alive(SHOW_LIFE).await {
            tracing::info!(node, %older, %newer, "the node has connected anew");
            return;
        }
        let now = Timestamp::now();
        if let Some(times) = registry.write(|entries| entries.duplicates.saw(node, *older, *newer, now)) {
            tracing::warn!(
                node,
                %older,
                %newer,
                times,
                "two agents show the certificate of one node: one machine is a copy of the other"
            );
        }
    }
}

impl Drop for Superseded {
    fn drop(&mut self) {
        self.session.close(GoAwayCode::Superseded);
    }
}

/// Removes its own entry, and none that replaced it, when it is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Arc<Registry>,
    node: String,
    epoch: u64,
    /// Why it ends, when that is known.
    end: Option<End>,
}

impl Registration {
    /// The session is over.
    pub(super) fn ends(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.write(|entries| {
            if entries.by_node.get(&self.node).is_none_or(|entry| entry.epoch != self.epoch) {
                return;
            }
            if let Some(entry) = entries.by_node.remove(&self.node) {
                let reason =
                    self.end.as_ref().map_or_else(|| "the server ended it".to_owned(), End::to_string);
                entries.lost.ended(&self.node, entry.remote, &reason, Timestamp::now());
            }
        });
    }
}
