//! `tunnel status`: the edge nodes' sessions as the tunnel servers see them.

use serde_json::json;
use yurt_api::status::{AgentStatus, RedirectState, RedirectStatus};

use crate::{
    connect::{agents, session::Session},
    error::Error,
    output::{
        API_VERSION, Console, Form, Listing, Table, Tone, plain,
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
    agents: impl ExactSizeIterator<Item = &'a AgentStatus> + Clone,
    wide: bool,
) -> Result<(), Error> {
    if agents.len() == 0 {
        console.note("No edge node is connected.");
        return Ok(());
    }
    for trouble in agents.clone().filter_map(copied).chain(agents.clone().filter_map(unreachable)) {
        console.warn(trouble);
    }
    console.raw(table(agents, wide, jiff::Timestamp::now()).render(&console))
}

fn table<'a>(agents: impl Iterator<Item = &'a AgentStatus>, wide: bool, now: jiff::Timestamp) -> Table {
    let mut headings =
        vec!["NODE", "CONNECTED", "RTT", "STREAMS", "SENT", "RECEIVED", "SUPERSEDED", "KUBELET", "VERSION"];
    if wide {
        headings.extend(["SERVER", "REMOTE ADDRESS"]);
    }
    let mut table = Table::new(&headings);
    for agent in agents {
        let mut row = vec![
            plain(&agent.node),
            plain(age(&agent.connected_since, now)),
            plain(agent.rtt_micros.map_or_else(|| "<none>".into(), round_trip)),
            plain(agent.streams.to_string()),
            plain(bytes(agent.bytes_sent)),
            plain(bytes(agent.bytes_received)),
            superseded(agent, now),
            kubelet(agent),
            plain(&agent.version),
        ];
        if wide {
            row.extend([plain(&agent.server), plain(&agent.remote_address)]);
        }
        table.row(row);
    }
    table
}

/// Where plain kubectl finds the node's kubelet. A server of before does not say.
fn kubelet(agent: &AgentStatus) -> (String, Option<Tone>) {
    match (&agent.redirected[..], &agent.not_redirected[..]) {
        ([], []) => plain("<none>"),
        ([], _) => ("not redirected".to_owned(), Some(Tone::Bad)),
        (redirected, _) => plain(redirected.join(",")),
    }
}

/// Why plain kubectl does not find a node's kubelet.
fn unreachable(agent: &AgentStatus) -> Option<String> {
    let why = agent.redirected.is_empty() && !agent.not_redirected.is_empty();
    why.then(|| {
        format!(
            "node {}: plain kubectl does not find its kubelet: {}",
            agent.node,
            agent.not_redirected.join("; ")
        )
    })
}

/// How often and when, as kubectl shows restarts.
fn superseded(agent: &AgentStatus, now: jiff::Timestamp) -> (String, Option<Tone>) {
    match &agent.duplicate {
        None => plain("0"),
        Some(found) => (format!("{} ({} ago)", found.times, age(&found.last, now)), Some(Tone::Bad)),
    }
}

/// What a person should know about a node whose certificate is in two places.
fn copied(agent: &AgentStatus) -> Option<String> {
    let found = agent.duplicate.as_ref()?;
    Some(format!(
        "two machines show the certificate of node {}, the last ones from {} and {}: one is a copy of the other, and \
         kubectl logs and exec reach now the one, now the other; give one of them a node name and a certificate of its \
         own (`kubeadm reset` and `kubeadm join`)",
        agent.node, found.older_address, found.newer_address
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Coloring;

    #[test]
    fn a_copied_machine_shows_in_the_table_in_words_and_in_the_document() {
        let of = |node: &str, duplicate: serde_json::Value| -> AgentStatus {
            let mut agent = json!({ "node": node, "server": "cp-1", "version": "yurtd/0.1.0",
                "remoteAddress": "192.0.2.7:40000", "connectedSince": "2026-11-28T08:00:00Z", "rttMicros": 41_000,
                "streams": 1, "bytesSent": 0, "bytesReceived": 0 });
            match duplicate.is_null() {
                true => agent["redirected"] = json!(["192.168.0.100:40000"]),
                false => agent["duplicate"] = duplicate,
            }
            serde_json::from_value(agent).unwrap()
        };
        let found = json!({ "times": 7, "last": "2026-11-28T08:01:20Z", "olderAddress": "192.0.2.6:50000",
            "newerAddress": "192.0.2.7:40000" });
        let agents = [of("edge-1", json!(null)), of("edge-2", found.clone())];
        let console = Console::new(Coloring::Never);
        let now = "2026-11-28T08:02:00Z".parse().unwrap();
        assert_eq!(
            table(agents.iter(), false, now).render(&console),
            "NODE     CONNECTED   RTT    STREAMS   SENT   RECEIVED   SUPERSEDED    KUBELET               VERSION\n\
             edge-1   2m0s        41ms   1         0B     0B         0             192.168.0.100:40000   yurtd/0.1.0\n\
             edge-2   2m0s        41ms   1         0B     0B         7 (40s ago)   <none>                yurtd/0.1.0\n"
        );
        assert_eq!(copied(&agents[0]), None);
        let text = copied(&agents[1]).unwrap();
        assert!(
            text.contains("node edge-2, the last ones from 192.0.2.6:50000 and 192.0.2.7:40000"),
            "{text}"
        );
        assert_eq!(serde_json::to_value(&agents[1]).unwrap()["duplicate"], found);
    }

    #[test]
    fn a_kubelet_that_plain_kubectl_does_not_find_is_said_with_the_reason() {
        let agent: AgentStatus = serde_json::from_value(json!({ "node": "edge-1", "server": "cp-1",
            "version": "yurtd/0.1.0", "remoteAddress": "192.0.2.7:40000", "connectedSince": "2026-11-28T08:00:00Z",
            "rttMicros": 41_000, "streams": 1, "bytesSent": 0, "bytesReceived": 0,
            "notRedirected": ["192.168.0.100:10250: it is an address of edge-2 too"] }))
        .unwrap();
        assert_eq!(kubelet(&agent).0, "not redirected");
        assert_eq!(
            unreachable(&agent).unwrap(),
            "node edge-1: plain kubectl does not find its kubelet: 192.168.0.100:10250: it is an address of edge-2 too"
        );
    }
}
