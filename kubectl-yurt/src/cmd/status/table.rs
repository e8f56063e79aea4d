//! `status` for a person: the components, the nodes, and a warning for each trouble.

use yurt_api::node::Kind;

use super::{ComponentStatus, NodeStatus, is_healthy, role};
use crate::{
    cluster::node_agents,
    error::Error,
    output::{Console, Table, Tone, plain, words::count_of},
};

/// Prints both tables, and what is wrong below them.
pub(super) fn print(
    console: Console,
    nodes: &[NodeStatus],
    components: &[ComponentStatus],
    converted: bool,
    wide: bool,
) -> Result<(), Error> {
    let or_none = |text: Option<&str>| text.unwrap_or("<none>").to_owned();
    let yes = |good: bool| if good { Tone::Good } else { Tone::Bad };
    if converted {
        let mut headings = vec!["COMPONENT", "READY", "STATE"];
        if wide {
            headings.push("IMAGE");
        }
        let mut table = Table::new(&headings);
        for component in components {
            let state = if component.healthy { "ok" } else { "not ready" };
            let mut row = vec![
                plain(component.name),
                plain(format!("{}/{}", component.ready, component.desired)),
                (state.into(), Some(yes(component.healthy))),
            ];
            if wide {
                row.push(plain(or_none(component.image.as_deref())));
            }
            table.row(row);
        }
        console.raw(format_args!("{}\n", table.render(&console)))?;
    } else {
        console.note(
            "This cluster is not converted: `kubectl yurt convert --cloud-nodes NODE,…` makes it an edge cluster.\n",
        );
    }
    let mut headings = vec!["NODE", "ROLE", "STATE", "READY", "AUTONOMY", "TUNNEL", "VERSION"];
    if wide {
        headings.extend(["KUBELET", "ENDPOINT", "WAY IN", "DETAIL"]);
    }
    let mut table = Table::new(&headings);
    for node in nodes {
        let state = or_none(node.conversion.as_deref());
        let tone = match state.as_str() {
            "Converted" => Some(Tone::Good),
            "Failed" => Some(Tone::Bad),
            "<none>" | "Reverted" => None,
            _ => Some(Tone::Warn),
        };
        let (effect, effect_tone) = node.autonomy.effect();
        let autonomy = match (node.autonomy.enabled, node.autonomy.in_effect) {
            (false, false) if node.role != role(Kind::Edge) => plain("<none>"),
            (true, true) | (false, false) => (node.autonomy.request(), None),
            _ => (format!("{} ({effect} in effect)", node.autonomy.request()), Some(effect_tone)),
        };
        let tunnel = match node.tunnel {
            Some(true) => ("connected".to_owned(), Some(Tone::Good)),
            Some(false) => ("not connected".to_owned(), Some(Tone::Bad)),
            None => plain("<none>"),
        };
        let ready = if node.ready { "True" } else { "False" };
        let mut row = vec![
            plain(&node.name),
            plain(node.role),
            (state, tone),
            (ready.into(), Some(yes(node.ready))),
            autonomy,
            tunnel,
            plain(or_none(node.version.as_deref())),
        ];
        if wide {
            let way_in = node.way_in.as_ref().map(|way_in| way_in.way.name());
            row.extend([
                plain(&node.kubelet),
                plain(or_none(node.kubelet_endpoint.as_deref())),
                plain(or_none(way_in)),
                plain(or_none(node.detail.as_deref())),
            ]);
        }
        table.row(row);
    }
    console.raw(table.render(&console))?;
    let of_components = components.iter().flat_map(|component| {
        component.troubles.iter().map(move |trouble| format!("{}: {trouble}", component.name))
    });
    let of_nodes = nodes
        .iter()
        .filter(|node| !is_healthy(node))
        .filter_map(|node| node.detail.as_ref().map(|detail| format!("node {}: {detail}", node.name)));
    let of_agents = nodes.iter().flat_map(|node| {
        let name = &node.name;
        node_agents::failures(&node.agents).into_iter().map(move |text| format!("node {name}: {text}"))
    });
    for trouble in of_components.chain(of_nodes).chain(of_agents) {
        console.warn(trouble);
    }
    for node in nodes {
        let name = &node.name;
        if let Some(why) = node.way_in.as_ref().and_then(|way_in| way_in.why.as_ref()) {
            console.note(format!("node {name}: pods are led to the hub by their environment: {why}"));
        }
        if !node.past_the_hub.is_empty() {
            console.note(format!(
                "node {name}: without a link the API server is gone for {}, which began before the conversion: {}",
                count_of(node.past_the_hub.len(), "pod"),
                node_agents::listed(&node.past_the_hub)
            ));
        }
    }
    Ok(())
}
