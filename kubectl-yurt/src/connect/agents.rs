//! What the tunnel servers tell about the agents that are connected to them. Each server knows its own, so all are asked.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use http::Request;
use yurt_api::status::{AgentStatus, AgentStatusList, LostAgent, RedirectState, RedirectStatus};

use crate::{
    connect::{
        session::Session,
        tunnel::{self, Tunnel},
    },
    error::{Error, phrase},
};

/// Where a tunnel server tells about its agents.
pub const AGENTS: &str = "/apis/tunnel.openyurt.io/v1alpha1/agents";
/// How long a tunnel server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the tunnel servers say together.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// By node.
    pub agents: BTreeMap<String, AgentStatus>,
    /// How the redirect stands on each server's host, by the server's node.
    pub redirects: BTreeMap<String, RedirectStatus>,
    /// Nodes that were connected and are to no server any more.
    pub lost: BTreeMap<String, LostAgent>,
    /// How many servers answered.
    pub answered: usize,
    /// Servers that did not answer, and why.
    pub silent: BTreeMap<String, String>,
}

impl Sessions {
    /// One of several sessions of a node is as good as another, but for what only one server may have seen.
    fn add(&mut self, mut agent: AgentStatus) {
        let known = self.agents.remove(&agent.node);
        agent.duplicate = agent.duplicate.or(known.and_then(|known| known.duplicate));
        self.agents.insert(agent.node.clone(), agent);
    }

    /// The server that saw it last knows.
    fn miss(&mut self, agent: LostAgent) {
        let time = |agent: &LostAgent| agent.last_seen.parse::<jiff::Timestamp>().ok();
        if self.lost.get(&agent.node).is_none_or(|known| time(known) < time(&agent)) {
            self.lost.insert(agent.node.clone(), agent);
        }
    }
}

/// Asks every tunnel server.
///
/// # Errors
///
/// [`Error::Failed`] when the cluster has no tunnel.
pub async fn sessions(session: &Session) -> Result<Sessions, Error> {
    Ok(ask_all(&tunnel::open(session).await?).await)
}

/// Asks these tunnel servers.
pub async fn ask_all(tunnels: &[Tunnel]) -> Sessions {
    let answers = join_all(tunnels.iter().map(ask)).await;
    let mut found = Sessions::default();
    for (tunnel, answer) in tunnels.iter().zip(answers) {
        match answer {
            Ok(list) => {
                found.answered += 1;
                found.redirects.extend(list.redirect.map(|redirect| (redirect.server.clone(), redirect)));
                list.items.into_iter().for_each(|agent| found.add(agent));
                list.lost.into_iter().for_each(|agent| found.miss(agent));
            }
            Err(why) => {
                found.silent.insert(tunnel.address.clone(), why);
            }
        }
    }
    let Sessions { agents, lost, .. } = &mut found;
    lost.retain(|node, _| !agents.contains_key(node));
    found
}

/// Why plain kubectl does not find its way through this server; nothing if it does.
pub fn fault_of(redirect: &RedirectStatus) -> Option<String> {
    let RedirectStatus { server, message, .. } = redirect;
    match redirect.state {
        RedirectState::InPlace => None,
        RedirectState::Waiting => {
            Some(format!("tunnel server on {server}: connections are not redirected yet: {message}"))
        }
        RedirectState::Failing => Some(format!(
            "tunnel server on {server}: connections to edge nodes are not redirected: {message}; plain kubectl logs, \
             exec and port-forward fail there, kubectl yurt logs, exec and port-forward do not"
        )),
    }
}

async fn ask(tunnel: &Tunnel) -> Result<AgentStatusList, String> {
    let request = Request::get(AGENTS).body(Vec::new()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, tunnel.client.request::<AgentStatusList>(request)).await {
        Ok(Ok(list)) => Ok(list),
        Ok(Err(error)) => Err(phrase(&error, &tunnel.address)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
