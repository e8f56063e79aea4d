//! What the tunnel servers tell about the agents that are connected to them. All that can be reached are asked, and each asks
//! the others: from here perhaps only one can be.

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
    /// By node, and by the server that holds the session.
    pub agents: BTreeMap<(String, String), AgentStatus>,
    /// How the redirect stands on each server's host, by the server's node.
    pub redirects: BTreeMap<String, RedirectStatus>,
    /// Nodes that were connected and are to no server any more.
    pub lost: BTreeMap<String, LostAgent>,
    /// How many servers answered.
    pub answered: usize,
    /// Servers that did not answer, and why: those that were asked from here by their addresses, and those that another server
    /// asked in vain by the names of their nodes.
    pub silent: BTreeMap<String, String>,
}

impl Sessions {
    /// Takes over what a server says of itself and of others.
    fn add(&mut self, list: AgentStatusList) {
        self.answered += 1;
        self.redirects.extend(list.redirect.map(|redirect| (redirect.server.clone(), redirect)));
        for agent in list.items {
            self.agents.insert((agent.node.clone(), agent.server.clone()), agent);
        }
        self.silent.extend(list.silent);
        list.lost.into_iter().for_each(|agent| self.miss(agent));
    }

    /// Whom one server could not ask, and who has answered another one, is not silent; and a node that one server has is not
    /// lost.
    fn heard(&mut self) {
        let heard = |server: &String| {
            self.redirects.contains_key(server) || self.agents.keys().any(|(_, holder)| holder == server)
        };
        self.silent.retain(|server, _| !heard(server));
        let Self { agents, lost, .. } = self;
        lost.retain(|lost, _| !agents.keys().any(|(node, _)| node == lost));
    }

    /// Whether some server has a session with the node.
    pub fn has(&self, node: &str) -> bool {
        self.agents.keys().any(|(known, _)| known == node)
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
            Ok(list) => found.add(list),
            Err(why) => {
                found.silent.insert(tunnel.address.clone(), why);
            }
        }
    }
    found.heard();
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(server: &str, held: &[(&str, &str)], silent: &[&str]) -> AgentStatusList {
        let agent = |(node, holder): &(&str, &str)| {
            json!({ "node": node, "server": holder, "version": "", "remoteAddress": "", "connectedSince": "",
                "rttMicros": null, "streams": 0, "bytesSent": 0, "bytesReceived": 0 })
        };
        let silent: BTreeMap<_, _> = silent.iter().map(|server| (*server, "no answer")).collect();
        serde_json::from_value(json!({ "apiVersion": "", "kind": "", "silent": silent,
            "items": held.iter().map(agent).collect::<Vec<_>>(),
            "redirect": { "server": server, "state": "inPlace", "kubelets": 0, "repaired": 0, "since": "" } }))
        .unwrap()
    }

    #[test]
    fn servers_say_together_who_holds_whom_and_only_who_was_heard_by_nobody_is_silent() {
        let mut found = Sessions::default();
        found.add(list("cp-1", &[("a", "cp-1"), ("a", "cp-2"), ("b", "cp-2")], &["cp-3", "cp-4"]));
        found.add(list("cp-3", &[("a", "cp-1")], &["cp-2", "cp-4"]));
        found.heard();
        let holders: Vec<_> = found.agents.keys().map(|(node, server)| format!("{node} {server}")).collect();
        assert_eq!(holders, ["a cp-1", "a cp-2", "b cp-2"]);
        assert_eq!(found.silent.keys().collect::<Vec<_>>(), ["cp-4"]);
        assert!(found.has("b") && !found.has("c"));
    }
}
