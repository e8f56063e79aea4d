//! `tunnel status`: the edge nodes' sessions as the tunnel servers see them.

use serde_json::json;
use yurt_api::status::{AgentStatus, RedirectState, RedirectStatus};

use crate::{
    connect::{agents, session::Session},
    error::Error,
    output::{
        API_VERSION, Console, Form, Listing, Table, plain,
        words::{age, bytes, round_trip},
    },
};

/// `tunnel status`.
///
/// # Errors
///
/// [`Error::Failed`] when there is no tunnel or no server answers.
pub async fn status(session: &Session, console: Console, form: Form) -> Result<(), Error> {
    let found = agents::sessions(session).await?;
    for (address, why) in &found.silent {
        console.warn(format!("tunnel server {address}: {why}"));
    }
    if found.answered == 0 {
        return Err(Error::Failed(
            "no tunnel server answers; `kubectl yurt status` shows whether they run".into(),
        ));
    }
    let listing = Listing {
        document: json!({
            "apiVersion": API_VERSION, "kind": "TunnelStatus",
            "agents": found.agents.values().collect::<Vec<_>>(), "silent": found.silent,
            "redirects": found.redirects.values().collect::<Vec<_>>(),
        }),
        nodes: found.agents.keys().cloned().collect(),
        table: |wide| {
            print(console, found.agents.values(), wide)?;
            print_redirects(console, found.redirects.values())
        },
    };
    for fault in found.redirects.values().filter_map(agents::fault_of) {
        console.warn(fault);
    }
    listing.print(console, form)
}

fn print_redirects<'a>(
    console: Console,
    redirects: impl ExactSizeIterator<Item = &'a RedirectStatus>,
) -> Result<(), Error> {
    if redirects.len() == 0 {
        return Ok(());
    }
    let mut table = Table::new(&["SERVER", "REDIRECT", "SINCE", "KUBELETS", "REPAIRED"]);
    let now = jiff::Timestamp::now();
    for redirect in redirects {
        let state = match redirect.state {
            RedirectState::InPlace => "in place",
            RedirectState::Waiting => "waiting",
            RedirectState::Failing => "failing",
        };
        table.row(vec![
            plain(&redirect.server),
            plain(state),
            plain(age(&redirect.since, now)),
            plain(redirect.kubelets.to_string()),
            plain(redirect.repaired.to_string()),
        ]);
    }
    console.raw(format!("\n{}", table.render(&console)))
}

fn print<'a>(
    console: Console,
    agents: impl ExactSizeIterator<Item = &'a AgentStatus>,
    wide: bool,
) -> Result<(), Error> {
    if agents.len() == 0 {
        console.note("No edge node is connected.");
        return Ok(());
    }
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
    console.raw(table.render(&console))
}
