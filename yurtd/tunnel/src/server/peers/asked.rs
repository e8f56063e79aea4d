//! What peers ask of this server: whom it has a session with, and to be led there.
//!
//! The answers come from this server's own [`Registry`] and from nowhere else. So a peer that hands a stream back, by
//! mistake or on purpose, is told that the node is not here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;
use yurt_api::tunnel::{GoAwayCode, NodeName, OpenErrorCode, ServerId, Target};

use super::list;
use crate::mux::relay::relay;
use crate::mux::session::{self, Established, Settings};
use crate::mux::{HelloError, OpenRequest, Session};
use crate::server::connections::Connections;
use crate::server::registry::{DialError, Registry};

/// How many peers may ask. Control planes have three or five nodes.
const MOST: usize = 16;

/// Why a peer may not ask.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum AskedError {
    /// It did not come to a session.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// It says that it is this one.
    #[error("it calls itself {0}, as this server is called")]
    Myself(ServerId),
    /// More than there can be.
    #[error("{MOST} other servers ask already")]
    TooMany,
}

/// The peers that ask here.
#[derive(Debug)]
pub(in crate::server) struct Asked {
    registry: Arc<Registry>,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_peer: BTreeMap<ServerId, (u64, Session)>,
    epoch: u64,
    going_away: bool,
}

impl Asked {
    /// They are led to the nodes of `registry`.
    pub(in crate::server) fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { registry, sessions: Mutex::default() })
    }

    /// Has a session begin with a server that has proven to be one, and whose WebSocket handshake is done.
    ///
    /// # Errors
    ///
    /// [`AskedError`].
    pub(in crate::server) async fn accept<S>(
        &self,
        stream: S,
    ) -> Result<(ServerId, Established<S>), AskedError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let own = self.registry.server();
        let (peer, established) = session::accept_peer(stream, own.clone(), Settings::peer()).await?;
        if peer == *own {
            return Err(AskedError::Myself(peer));
        }
        Ok((peer, established))
    }

    /// Answers until the session ends.
    ///
    /// # Errors
    ///
    /// [`AskedError::TooMany`].
    pub(in crate::server) async fn serve<S>(
        self: Arc<Self>,
        peer: ServerId,
        (session, mut requests, driver): Established<S>,
        connections: Connections,
    ) -> Result<(), AskedError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let _place = self.take_place(&peer, session)?;
        tracing::info!(%peer, "another server asks here");
        let answering = async {
            while let Some(request) = requests.recv().await {
                let asked = self.clone();
                connections.start(async move { asked.answer(request).await }.in_current_span());
            }
            std::future::pending().await
        };
        let end = tokio::select! {
            biased;
            end = driver.run() => end,
            end = answering => end,
        };
        tracing::info!(%peer, reason = %end, "another server does not ask here any more");
        Ok(())
    }

    /// Asks every peer to ask elsewhere; open streams go on.
    pub(in crate::server) fn go_away(&self) {
        let mut sessions = self.lock();
        sessions.going_away = true;
        sessions.by_peer.values().for_each(|(_, session)| session.go_away(GoAwayCode::ShuttingDown));
    }

    /// The newest session of a peer takes the place of an older one, whose connection broke.
    fn take_place(self: &Arc<Self>, peer: &ServerId, session: Session) -> Result<Place, AskedError> {
        let mut sessions = self.lock();
        if !sessions.by_peer.contains_key(peer) && sessions.by_peer.len() >= MOST {
            return Err(AskedError::TooMany);
        }
        if sessions.going_away {
            session.go_away(GoAwayCode::ShuttingDown);
        }
        sessions.epoch += 1;
        let epoch = sessions.epoch;
        if let Some((_, older)) = sessions.by_peer.insert(peer.clone(), (epoch, session)) {
            older.close(GoAwayCode::Superseded);
        }
        Ok(Place { asked: self.clone(), peer: peer.clone(), epoch })
    }

    async fn answer(&self, request: OpenRequest) {
        match request.target().clone() {
            Target::Session(node) if self.registry.has(node.as_str()) => drop(request.accept()),
            Target::Session(_) => request.reject(OpenErrorCode::NotHere, String::new()),
            Target::KubeletOf(node) => self.lead(request, &node).await,
            // What is asked of an agent.
            Target::Kubelet => request.reject(OpenErrorCode::NotServed, String::new()),
            Target::Agents => {
                if let Some(stream) = request.accept() {
                    list::say(stream, &self.registry.statuses()).await;
                }
            }
        }
    }

    async fn lead(&self, request: OpenRequest, node: &NodeName) {
        match self.registry.dial(node.as_str(), Target::Kubelet).await {
            Ok(target) => {
                if let Some(caller) = request.accept()
                    && let Err(error) = relay(caller, target).await
                {
                    tracing::debug!(%node, %error, "stream of another server's broke");
                }
            }
            Err(error) => {
                let (code, message) = answer_of(error);
                request.reject(code, message);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the peer is told: the agent's own answer, where there is one.
fn answer_of(error: DialError) -> (OpenErrorCode, String) {
    match error {
        DialError::Rejected { code, message, .. } => (code, message),
        DialError::NotConnected(_) => (OpenErrorCode::NotHere, String::new()),
        DialError::SessionEnded(_) => (OpenErrorCode::GoingAway, error.to_string()),
        DialError::NoAnswer(_) => (OpenErrorCode::TimedOut, error.to_string()),
        DialError::TooManyStreams(_) => (OpenErrorCode::TooManyStreams, error.to_string()),
    }
}

/// Given back by the session that has it and by no other.
#[derive(Debug)]
struct Place {
    asked: Arc<Asked>,
    peer: ServerId,
    epoch: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.asked.lock();
        if sessions.by_peer.get(&self.peer).is_some_and(|(epoch, _)| *epoch == self.epoch) {
            sessions.by_peer.remove(&self.peer);
        }
    }
}
