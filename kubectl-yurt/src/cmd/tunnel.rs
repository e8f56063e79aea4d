//! `tunnel status`: the edge nodes' sessions as the tunnel servers see them.

use serde_json::json;
use yurt_api::status::AgentStatus;

use crate::{
    args::{Format, StatusArgs, TunnelCommand},
    connect::{agents, session::Session},
    error::Error,
    output::{
        API_VERSION, Document, Table, plain,
        words::{age, bytes, round_trip},
    },
};

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
    let found = agents::sessions(session).await?;
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
            plain(agent.rtt_micros.map_or_else(|| "<none>".into(), round_trip)),
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
