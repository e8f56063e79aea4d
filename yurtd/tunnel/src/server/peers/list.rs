//! What the peers know about the agents that are connected to them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use yurt_api::status::AgentStatus;
use yurt_api::tunnel::Target;

use super::{Peer, Peers};
use crate::mux::{Session, TunnelStream};

/// How long a peer may take to say all of it.
const SAY: Duration = Duration::from_secs(2);
/// How long it may take to be heard.
const HEAR: Duration = Duration::from_secs(10);
/// What a peer may say: some tens of thousands of agents.
const MOST: u64 = 16 * 1024 * 1024;

/// What the peers say together.
#[derive(Debug, Default)]
pub(in crate::server) struct Said {
    /// Of all that answered.
    pub(in crate::server) agents: Vec<AgentStatus>,
    /// The others, by the name of their node, and why.
    pub(in crate::server) silent: BTreeMap<String, String>,
}

/// Why a peer is not heard.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it was asked in vain: {0}")]
    Open(#[from] crate::mux::OpenFailure),
    #[error("it broke off: {0}")]
    Broken(#[from] std::io::Error),
    #[error("it said too much")]
    TooMuch,
    #[error("it cannot be understood: {0}")]
    Nonsense(#[from] serde_json::Error),
    #[error("no answer within {SAY:?}")]
    Silent,
}

impl Peers {
    /// Asks all of them at once.
    pub(in crate::server) async fn agents(&self) -> Said {
        let mut said = Said::default();
        let mut asked = Vec::new();
        for (id, peer) in self.lock().iter() {
            match peer {
                Peer::Connected(session) => asked.push((id.to_string(), session.clone())),
                Peer::Lost(why) => {
                    said.silent.insert(id.to_string(), why.clone());
                }
            }
        }
        let ask = |(_, session): &(String, Session)| {
            let session = session.clone();
            async move { tokio::time::timeout(SAY, hear(&session)).await.map_err(|_| Unheard::Silent).flatten() }
        };
        let answers = join_all(asked.iter().map(ask)).await;
        for ((id, _), answer) in asked.into_iter().zip(answers) {
            match answer {
                // Each speaks of itself.
                Ok(agents) => said.agents.extend(agents.into_iter().filter(|agent| agent.server == id)),
                Err(why) => {
                    said.silent.insert(id, why.to_string());
                }
            }
        }
        said
    }
}

async fn hear(session: &Session) -> Result<Vec<AgentStatus>, Unheard> {
    let stream = session.open(Target::Agents).await?;
    let mut text = Vec::new();
    stream.take(MOST + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > MOST {
        return Err(Unheard::TooMuch);
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Says it to a peer.
pub(super) async fn say(mut stream: TunnelStream, agents: &[AgentStatus]) {
    let saying = async {
        stream.write_all(&serde_json::to_vec(agents)?).await?;
        stream.shutdown().await
    };
    match tokio::time::timeout(HEAR, saying).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the list of agents was not heard"),
        Err(_) => tracing::debug!("the list of agents was not heard within {HEAR:?}"),
    }
}
