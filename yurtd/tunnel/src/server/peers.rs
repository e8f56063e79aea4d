//! The other tunnel servers of the cluster: whom this one asks for nodes that it has no session with.
//!
//! ```text
//!                this server                                  a peer
//!  intercept ─┐            ┌─ ways ─ registry ── agent        ┌─ asked ─ registry ── agent ─► kubelet
//!  API port  ─┴──► ways ───┴─ peers ══ a session, mutual TLS ═┘
//! ```
//!
//! Each server keeps one session to each peer that the cluster names ([`discovery`], [`connect`]), in which it alone opens
//! streams; what a peer asks here comes in the peer's own session ([`asked`]). Who holds a node is asked when somebody wants
//! to go there, of all peers at once: nothing has to be announced, and nothing can be out of date.
//!
//! A peer is led to what the asked server's own registry has, and never to [`Peers`]: a stream is handed on once at most,
//! whatever the peer says.

mod asked;
mod connect;
pub(super) mod discovery;
mod identity;
mod list;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};
use yurt_api::tunnel::{NodeName, OpenErrorCode, ServerId, Target};

pub(super) use self::asked::{Asked, AskedError};
pub(super) use self::discovery::Found;
pub(super) use self::identity::Identity;
pub(super) use self::list::Said;
use super::registry::DialError;
use crate::mux::{OpenFailure, Session, TunnelStream};

/// How long peers may take to say whether they have a session with a node. They only look it up.
const SAY: Duration = Duration::from_secs(2);

/// The peers that the cluster names, and the sessions to them.
#[derive(Debug)]
pub(super) struct Peers {
    /// This server.
    id: ServerId,
    identity: Arc<Identity>,
    known: Mutex<BTreeMap<ServerId, Peer>>,
}

#[derive(Debug)]
enum Peer {
    Connected(Session),
    /// Why there is no session.
    Lost(String),
}

impl Peers {
    /// Of this server; none yet.
    pub(super) fn new(id: ServerId, identity: Arc<Identity>) -> Arc<Self> {
        Arc::new(Self { id, identity, known: Mutex::default() })
    }

    /// Opens a stream to the kubelet of `node` through a peer that has a session with it.
    ///
    /// # Errors
    ///
    /// [`DialError`]; [`DialError::NotConnected`] when no peer that answers in time has one.
    pub(super) async fn dial(&self, node: &str) -> Result<TunnelStream, DialError> {
        let not_connected = || DialError::NotConnected(node.to_owned());
        let name = NodeName::new(node).ok_or_else(not_connected)?;
        let said = Instant::now() + SAY;
        let mut asked: FuturesUnordered<_> = self
            .sessions()
            .into_iter()
            .map(|(id, session)| {
                let target = Target::Session(name.clone());
                async move { session.open(target).await.map(|_yes| (id, session)) }
            })
            .collect();
        let mut failed = None;
        // Whoever says so first is as good as any other.
        while let Ok(Some(answer)) = timeout_at(said, asked.next()).await {
            let Ok((id, session)) = answer else { continue };
            match session.open(Target::KubeletOf(name.clone())).await {
                Ok(stream) => {
                    tracing::debug!(node, peer = %id, "another server has the node");
                    return Ok(stream);
                }
                Err(failure) => {
                    tracing::debug!(node, peer = %id, %failure, "another server had the node");
                    let of_this_peer = is_of_the_peer(&failure);
                    failed = Some(DialError::of(node, failure));
                    if !of_this_peer {
                        break;
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(not_connected))
    }

    /// Whether there is anybody to ask.
    pub(super) fn any(&self) -> bool {
        self.lock().values().any(|peer| matches!(peer, Peer::Connected(session) if session.takes_streams()))
    }

    /// Why there is no session with a peer that the cluster names.
    #[cfg(test)]
    pub(super) fn fault(&self, id: &ServerId) -> Option<String> {
        match self.lock().get(id) {
            Some(Peer::Lost(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// How many of them can be asked.
    #[cfg(test)]
    pub(super) fn connected(&self) -> usize {
        self.sessions().len()
    }

    fn sessions(&self) -> Vec<(ServerId, Session)> {
        let session = |(id, peer): (&ServerId, &Peer)| match peer {
            Peer::Connected(session) => Some((id.clone(), session.clone())),
            Peer::Lost(_) => None,
        };
        self.lock().iter().filter_map(session).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, Peer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it says nothing about the node: another peer may lead there.
fn is_of_the_peer(failure: &OpenFailure) -> bool {
    match failure {
        OpenFailure::SessionEnded | OpenFailure::Reset | OpenFailure::TooManyStreams => true,
        OpenFailure::NoAnswer => false,
        OpenFailure::Rejected { code, .. } => matches!(
            code,
            OpenErrorCode::NotHere
                | OpenErrorCode::NotServed
                | OpenErrorCode::GoingAway
                | OpenErrorCode::TooManyStreams
        ),
    }
}
