//! `tunnel status`: the edge nodes' sessions as the tunnel servers see them.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use http::Request;
use serde_json::json;
use yurt_api::status::{AgentStatus, AgentStatusList};

use crate::{
    args::{Format, StatusArgs, TunnelCommand},
    duration::human,
    error::{Error, phrase},
    output::{API_VERSION, Document, Table, plain},
    resolve::{
        session::Session,
        tunnel::{self, Tunnel},
    },
};

/// Where a tunnel server tells about its agents.
const AGENTS: &str = "/apis/tunnel.openyurt.io/v1alpha1/agents";
/// How long a tunnel server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the tunnel servers say together.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// By node.
    pub agents: BTreeMap<String, AgentStatus>,
    /// How many servers answered.
    pub answered: usize,
    /// Servers that did not answer, and why.
    pub silent: BTreeMap<String, String>,
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
                found.agents.extend(list.items.into_iter().map(|agent| (agent.node.clone(), agent)));
            }
            Err(why) => {
                found.silent.insert(tunnel.address.clone(), why);
            }
        }
    }
    found
}

async fn ask(tunnel: &Tunnel) -> Result<AgentStatusList, String> {
    let request = Request::get(AGENTS).body(Vec::new()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, tunnel.client.request::<AgentStatusList>(request)).await {
        Ok(Ok(list)) => Ok(list),
        Ok(Err(error)) => Err(phrase(&error, &tunnel.address)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Runs the command.
///
/// # Errors
///
/// [`Error::Failed`] when there is no tunnel or no server answers.
pub async fn run(session: &Session, command: &TunnelCommand) -> Result<(), Error> {
    match command {
        TunnelCommand::Status(args) => status(session, args).await,
    }
}

async fn status(session: &Session, args: &StatusArgs) -> Result<(), Error> {
    let found = sessions(session).await?;
    for (address, why) in &found.silent {
        session.console.warn(format!("tunnel server {address}: {why}"));
    }
    if found.answered == 0 {
        return Err(Error::Failed(
            "no tunnel server answers; `kubectl yurt status` shows whether they run".into(),
        ));
    }
    let agents: Vec<&AgentStatus> = found.agents.values().collect();
    let document = || json!({ "apiVersion": API_VERSION, "kind": "TunnelStatus", "agents": agents, "silent": found.silent });
    match args.output {
        Some(Format::Json) => return session.console.document(Document::Json, &document()),
        Some(Format::Yaml) => return session.console.document(Document::Yaml, &document()),
        Some(Format::Name) => {
            return agents.iter().try_for_each(|agent| session.console.line(format!("node/{}", agent.node)));
        }
        Some(Format::Wide) | None => {}
    }
    if agents.is_empty() {
        session.console.note("No edge node is connected.");
        return Ok(());
    }
    let wide = args.output == Some(Format::Wide);
    let mut headings = vec!["NODE", "CONNECTED", "RTT", "STREAMS", "SENT", "RECEIVED", "VERSION"];
    if wide {
        headings.extend(["SERVER", "REMOTE ADDRESS"]);
    }
    let mut table = Table::new(&headings);
    let now = jiff::Timestamp::now();
    for agent in agents {
        let mut row = vec![
            plain(&agent.node),
            plain(age(&agent.connected_since, now)),
            plain(agent.rtt_micros.map_or_else(|| "<none>".into(), rtt)),
            plain(agent.streams.to_string()),
            plain(bytes(agent.bytes_sent)),
            plain(bytes(agent.bytes_received)),
            plain(&agent.version),
        ];
        if wide {
            row.extend([plain(&agent.server), plain(&agent.remote_address)]);
        }
        table.row(row);
    }
    session.console.raw(table.render(&session.console))
}

/// How long ago an RFC 3339 time was.
pub fn age(time: &str, now: jiff::Timestamp) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return "<unknown>".into() };
    let seconds = now.as_second().saturating_sub(time.as_second());
    human(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn rtt(micros: u64) -> String {
    if micros < 10_000 {
        format!("{}.{}ms", micros / 1000, micros % 1000 / 100)
    } else {
        format!("{}ms", micros / 1000)
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    for (unit, size) in UNITS {
        if count >= size {
            let (whole, tenth) = (count / size, count % size * 10 / size);
            return if size == 1 || whole >= 10 {
                format!("{whole}{unit}")
            } else {
                format!("{whole}.{tenth}{unit}")
            };
        }
    }
    "0B".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5KiB");
        assert_eq!(bytes(20 << 20), "20MiB");
        assert_eq!(rtt(1_234), "1.2ms");
        assert_eq!(rtt(45_678), "45ms");
    }

    #[test]
    fn an_age_is_never_negative() {
        let now: jiff::Timestamp = "2026-01-01T00:01:30Z".parse().unwrap();
        assert_eq!(age("2026-01-01T00:00:00Z", now), "1m30s");
        assert_eq!(age("2026-01-02T00:00:00Z", now), "0s");
        assert_eq!(age("yesterday", now), "<unknown>");
    }
}
