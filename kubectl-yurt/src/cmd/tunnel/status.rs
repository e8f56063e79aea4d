//! `tunnel status`: the edge nodes' sessions as the tunnel servers see them, and the nodes that have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PartialObjectMeta},
};
use serde::Serialize;
use serde_json::json;
use yurt_api::{
    names,
    status::{AgentStatus, LostAgent, RedirectState, RedirectStatus},
};

use crate::{
    connect::{
        agents::{self, Sessions},
        session::Session,
    },
    error::Error,
    options::TunnelStatus,
    output::{
        API_VERSION, Console, Form, Listing, Table, Tone, plain,
        words::{age, bytes, round_trip},
    },
};

/// How often `-w` looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `tunnel status`.
///
/// # Errors
///
/// [`Error::Failed`] when there is no tunnel or no server answers.
pub async fn run(session: &Session, console: Console, options: TunnelStatus) -> Result<(), Error> {
    let first = look(session).await?;
    first.warn(console);
    show(console, options.form, &first.found, &first.away)?;
    if !options.watch {
        return Ok(());
    }
    let mut before = first.standing();
    let (mut failing, mut warned) = (false, first.warnings.clone());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let look = match look(session).await {
            Ok(look) => look,
            // Who watches wants to see the end of that, too.
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    console.warn(error.plain(&session.server()));
                }
                continue;
            }
        };
        failing = false;
        if look.warnings != warned {
            look.warn(console);
            warned.clone_from(&look.warnings);
        }
        let now = look.standing();
        let changed: Vec<&String> = now
            .iter()
            .filter(|(node, stand)| before.get(*node) != Some(*stand))
            .map(|(node, _)| node)
            .collect();
        if !changed.is_empty() || before.len() != now.len() {
            let (mut found, mut away) = (look.found.clone(), look.away.clone());
            if !matches!(options.form, Form::Document(_)) {
                found.agents.retain(|holds, _| changed.contains(&&line(holds)));
                away.retain(|node| changed.contains(&&node.node));
                found.redirects.clear();
                for (node, server) in
                    before.keys().filter(|key| !now.contains_key(*key)).filter_map(|key| ended(key))
                {
                    // A name a line is for programs.
                    if look.found.has(node) && matches!(options.form, Form::Table { .. }) {
                        console.line(format!("{node} has no session with {server} any more"))?;
                    }
                }
                if found.agents.is_empty() && away.is_empty() {
                    before = now;
                    continue;
                }
            }
            show(console, options.form, &found, &away)?;
        }
        before = now;
    }
}

/// Names a session among the lines: no node's name has a slash.
fn line((node, server): &(String, String)) -> String {
    format!("{node}/{server}")
}

/// The session that a line was about; nothing of a node without any.
fn ended(line: &str) -> Option<(&str, &str)> {
    line.split_once('/')
}

/// A node without a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Away {
    node: String,
    /// What the server that saw it last says; nothing if none has since it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<LostAgent>,
}

/// What was seen at a time.
struct Look {
    found: Sessions,
    away: Vec<Away>,
    /// What could not be seen.
    warnings: Vec<String>,
}

impl Look {
    fn warn(&self, console: Console) {
        self.warnings.iter().for_each(|warning| console.warn(warning));
    }

    /// What of each node is worth a line when it changes.
    fn standing(&self) -> BTreeMap<String, String> {
        let there = self.found.agents.iter().map(|(holds, agent)| {
            let times = agent.duplicate.as_ref().map_or(0, |duplicate| duplicate.times);
            let AgentStatus { connected_since, version, redirected, .. } = agent;
            let stand = format!("{connected_since} {version} {times} {redirected:?}");
            (line(holds), stand)
        });
        let away = self.away.iter().map(|away| (away.node.clone(), format!("{:?}", away.last)));
        there.chain(away).collect()
    }
}

async fn look(session: &Session) -> Result<Look, Error> {
    let (found, nodes) = tokio::join!(agents::sessions(session), edge_nodes(session));
    let found = found?;
    let silent = |(address, why): (&String, &String)| format!("tunnel server {address}: {why}");
    let mut warnings: Vec<String> = found.silent.iter().map(silent).collect();
    if found.answered == 0 {
        return Err(Error::Failed(
            "no tunnel server answers; `kubectl yurt status` shows whether they run".into(),
        ));
    }
    let nodes = nodes.unwrap_or_else(|error| {
        let why = Error::from(error).plain(&session.server());
        warnings.push(format!("nodes that never were connected are not shown: {why}"));
        found.lost.keys().cloned().collect()
    });
    let away = away(&nodes, &found);
    Ok(Look { found, away, warnings })
}

/// The names of all nodes that should have a session.
async fn edge_nodes(session: &Session) -> kube::Result<Vec<String>> {
    let api: Api<Node> = Api::all(session.client.clone());
    let edge = ListParams::default().labels(&format!("{}=true", names::LABEL_EDGE_WORKER));
    let nodes: Vec<PartialObjectMeta<Node>> = api.list_metadata(&edge).await?.items;
    Ok(nodes.iter().map(|node| node.name_any()).collect())
}

/// A node that is an edge node no more is missed by nobody.
fn away(nodes: &[String], found: &Sessions) -> Vec<Away> {
    let none = nodes.iter().filter(|node| !found.has(node));
    none.map(|node| Away { node: node.clone(), last: found.lost.get(node).cloned() }).collect()
}

fn show(console: Console, form: Form, found: &Sessions, away: &[Away]) -> Result<(), Error> {
    let connected = found.agents.keys().map(|(node, _)| node.clone()).collect::<BTreeSet<_>>();
    let listing = Listing {
        document: json!({
            "apiVersion": API_VERSION, "kind": "TunnelStatus",
            "agents": found.agents.values().collect::<Vec<_>>(), "notConnected": away, "silent": found.silent,
            "redirects": found.redirects.values().collect::<Vec<_>>(),
        }),
        nodes: connected.into_iter().chain(away.iter().map(|away| away.node.clone())).collect(),
        table: |wide| {
            print(console, found.agents.values(), away, wide)?;
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
    away: &[Away],
    wide: bool,
) -> Result<(), Error> {
    if agents.len() == 0 && away.is_empty() {
        console.note("No edge node is connected.");
        return Ok(());
    }
    // Several servers may say the same.
    let troubles: BTreeSet<String> =
        agents.clone().filter_map(copied).chain(agents.clone().filter_map(unreachable)).collect();
    for trouble in troubles {
        console.warn(trouble);
    }
    console.raw(table(agents, away, wide, jiff::Timestamp::now()).render(&console))
}

fn table<'a>(
    agents: impl Iterator<Item = &'a AgentStatus>,
    away: &[Away],
    wide: bool,
    now: jiff::Timestamp,
) -> Table {
    let mut headings = vec![
        "NODE",
        "SERVER",
        "CONNECTED",
        "RTT",
        "STREAMS",
        "SENT",
        "RECEIVED",
        "SUPERSEDED",
        "KUBELET",
        "VERSION",
    ];
    if wide {
        headings.extend(["REMOTE ADDRESS", "WHY NOT"]);
    }
    let mut table = Table::new(&headings);
    for agent in agents {
        let mut row = vec![
            plain(&agent.node),
            plain(&agent.server),
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
            row.extend([plain(&agent.remote_address), plain("")]);
        }
        table.row(row);
    }
    for Away { node, last } in away {
        let since = match last {
            Some(last) => format!("no, for {}", age(&last.last_seen, now)),
            None => "no".to_owned(),
        };
        let server = last.as_ref().map_or("<none>", |last| &last.server);
        let mut row = vec![plain(node), plain(server), (since, Some(Tone::Bad))];
        row.resize_with(headings.len(), || plain("<none>"));
        if wide && let Some(last) = last {
            let at = headings.len() - 2;
            row[at..].clone_from_slice(&[&last.remote_address, &last.reason].map(plain));
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
    let faults = agent.not_redirected.join("; ");
    why.then(|| format!("node {}: plain kubectl does not find its kubelet: {faults}", agent.node))
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
        let last: LostAgent = serde_json::from_value(json!({ "node": "edge-3", "server": "cp-1",
            "remoteAddress": "192.0.2.8:40000", "lastSeen": "2026-11-28T08:00:30Z",
            "reason": "the other side does not answer any more" }))
        .unwrap();
        let away =
            [Away { node: "edge-3".into(), last: Some(last) }, Away { node: "edge-4".into(), last: None }];
        let console = Console::new(Coloring::Never);
        let now = "2026-11-28T08:02:00Z".parse().unwrap();
        assert_eq!(
            table(agents.iter(), &away, false, now).render(&console),
            "NODE     SERVER   CONNECTED       RTT      STREAMS   SENT     RECEIVED   SUPERSEDED    KUBELET               VERSION\n\
             edge-1   cp-1     2m0s            41ms     1         0B       0B         0             192.168.0.100:40000   yurtd/0.1.0\n\
             edge-2   cp-1     2m0s            41ms     1         0B       0B         7 (40s ago)   <none>                yurtd/0.1.0\n\
             edge-3   cp-1     no, for 1m30s   <none>   <none>    <none>   <none>     <none>        <none>                <none>\n\
             edge-4   <none>   no              <none>   <none>    <none>   <none>     <none>        <none>                <none>\n"
        );
        let wide = table(agents.iter(), &away, true, now).render(&console);
        assert!(wide.contains("cp-1") && wide.contains("the other side does not answer any more"), "{wide}");
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
