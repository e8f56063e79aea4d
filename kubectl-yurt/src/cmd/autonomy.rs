//! `autonomy`: which nodes keep their pods while they are away. The annotation is the request; whether it is in
//! effect is what the controller made of it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use yurt_api::names;

use crate::{
    args::{AutonomyChangeArgs, AutonomyCommand, AutonomyStatusArgs, Format},
    cluster::{
        autonomy::{NodeAutonomy, describe},
        definition,
        node::{self, known, patch_node},
    },
    connect::session::Session,
    error::Error,
    output::{API_VERSION, Document, Table, Tone, plain, words::join},
};

/// Runs the command.
///
/// # Errors
///
/// [`Error::Refused`] for nodes that are no edge nodes, or the server's answer.
pub async fn run(session: &Session, command: &AutonomyCommand) -> Result<(), Error> {
    match command {
        AutonomyCommand::Enable(args) => enable(session, args).await,
        AutonomyCommand::Disable(args) => disable(session, args).await,
        AutonomyCommand::Status(args) => status(session, args).await,
    }
}

async fn enable(session: &Session, args: &AutonomyChangeArgs) -> Result<(), Error> {
    let nodes = pick(session, args).await?;
    refuse_cloud(&nodes)?;
    for node in &nodes {
        let name = node.name_any();
        let done = node.annotations().get(names::ANNOTATION_AUTONOMY).is_some_and(|value| value == "true");
        if done {
            session.console.line(format!("node/{name} already autonomous"))?;
            continue;
        }
        patch_node(session, &name, json!({ "annotations": { names::ANNOTATION_AUTONOMY: "true" } })).await?;
        session.console.line(format!("node/{name} autonomy enabled"))?;
        if !node::is_ready(node) {
            session.console.warn(format!(
                "node {name} is not ready: pods that Kubernetes has marked for deletion already are not kept"
            ));
        }
    }
    Ok(())
}

async fn disable(session: &Session, args: &AutonomyChangeArgs) -> Result<(), Error> {
    let nodes = pick(session, args).await?;
    let away: BTreeSet<String> = nodes
        .iter()
        .filter(|node| node::autonomy(node).is_on() && !node::is_ready(node))
        .map(|node| node.name_any())
        .collect();
    if !away.is_empty() {
        let question = format!(
            "These nodes are away: {}. Without autonomy their pods are evicted and started elsewhere. Go on?",
            join(&away)
        );
        session.console.confirm(&question, args.yes)?;
    }
    for node in &nodes {
        let name = node.name_any();
        if !node::has_any(node, &node::AUTONOMY_ANNOTATIONS) {
            session.console.line(format!("node/{name} not autonomous"))?;
            continue;
        }
        let annotations = node::without(&node::AUTONOMY_ANNOTATIONS);
        patch_node(session, &name, json!({ "annotations": annotations })).await?;
        session.console.line(format!("node/{name} autonomy disabled"))?;
    }
    Ok(())
}

/// The nodes that the arguments mean; unknown names are refused.
async fn pick(session: &Session, args: &AutonomyChangeArgs) -> Result<Vec<Node>, Error> {
    let api: Api<Node> = Api::all(session.client.clone());
    if let Some(selector) = &args.selector {
        let found = api.list(&ListParams::default().labels(selector)).await?.items;
        let edge: Vec<Node> = found.into_iter().filter(node::is_edge).collect();
        if edge.is_empty() {
            return Err(Error::Refused(format!("no edge node has the labels {selector:?}")));
        }
        return Ok(edge);
    }
    let all = api.list(&ListParams::default()).await?.items;
    if args.all {
        return Ok(all.into_iter().filter(node::is_edge).collect());
    }
    named(all, &args.nodes)
}

/// The nodes of these names, with or without `node/` in front.
fn named(all: Vec<Node>, wanted: &[String]) -> Result<Vec<Node>, Error> {
    let wanted: BTreeSet<String> = wanted
        .iter()
        .map(|name| name.trim_start_matches("nodes/").trim_start_matches("node/").to_owned())
        .collect();
    known(&wanted, &all.iter().map(|node| node.name_any()).collect())?;
    Ok(all.into_iter().filter(|node| wanted.contains(&node.name_any())).collect())
}

fn refuse_cloud(nodes: &[Node]) -> Result<(), Error> {
    let cloud: BTreeSet<String> =
        nodes.iter().filter(|node| !node::is_edge(node)).map(|node| node.name_any()).collect();
    if cloud.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "not an edge node: {}; only edge nodes can be autonomous, because only they can restart their pods without the \
         API server. `kubectl yurt convert --edge-nodes {}` makes edge nodes; nothing was changed",
        join(&cloud),
        cloud.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    )))
}

async fn status(session: &Session, args: &AutonomyStatusArgs) -> Result<(), Error> {
    let nodes_api: Api<Node> = Api::all(session.client.clone());
    let every = ListParams::default();
    let (nodes, parameter) = tokio::try_join!(nodes_api.list(&every), definition::parameter(session))?;
    let nodes = if args.nodes.is_empty() {
        nodes.items.into_iter().filter(node::is_edge).collect()
    } else {
        named(nodes.items, &args.nodes)?
    };
    let all: Vec<NodeAutonomy> = nodes.iter().map(|node| describe(node, parameter.as_ref())).collect();
    let document = || json!({ "apiVersion": API_VERSION, "kind": "AutonomyStatus", "nodes": all });
    match args.output {
        Some(Format::Json) => return session.console.document(Document::Json, &document()),
        Some(Format::Yaml) => return session.console.document(Document::Yaml, &document()),
        Some(Format::Name) => {
            return all.iter().try_for_each(|node| session.console.line(format!("node/{}", node.name)));
        }
        Some(Format::Wide) | None => {}
    }
    if all.is_empty() {
        session.console.note("No edge nodes found.");
        return Ok(());
    }
    let wide = args.output == Some(Format::Wide);
    let mut headings = vec!["NODE", "AUTONOMY", "IN EFFECT", "READY", "REASON", "SINCE"];
    if wide {
        headings.extend(["SOURCE", "MESSAGE"]);
    }
    let mut table = Table::new(&headings);
    let or_none = |text: &Option<String>| plain(text.clone().unwrap_or_else(|| "<none>".into()));
    for node in &all {
        let (effect, tone) = node.effect();
        let ready = if node.ready { ("True", Tone::Good) } else { ("False", Tone::Bad) };
        let mut row = vec![
            plain(&node.name),
            plain(node.request()),
            (effect.into(), Some(tone)),
            (ready.0.into(), Some(ready.1)),
            or_none(&node.reason),
            or_none(&node.since),
        ];
        if wide {
            row.extend([or_none(&node.source), or_none(&node.message)]);
        }
        table.row(row);
    }
    session.console.raw(table.render(&session.console))?;
    for node in all.iter().filter(|node| node.fault.is_some()) {
        let fault = node.fault.as_deref().unwrap_or_default();
        session.console.warn(format!("node {}: {}: {fault}", node.name, names::ANNOTATION_AUTONOMY_DURATION));
    }
    for node in all.iter().filter(|node| node.enabled && !node.in_effect) {
        session.console.warn(format!(
            "node {}: the controller has not put this into effect yet; `kubectl yurt status` shows whether it runs",
            node.name
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(label: &str, annotations: serde_json::Value) -> Node {
        serde_json::from_value(json!({ "metadata": {
            "name": "edge", "labels": { names::LABEL_EDGE_WORKER: label }, "annotations": annotations } }))
        .unwrap()
    }

    #[test]
    fn a_cloud_node_cannot_be_autonomous() {
        assert!(refuse_cloud(&[node("true", json!({}))]).is_ok());
        let error = refuse_cloud(&[node("false", json!({}))]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--edge-nodes edge"));
    }

    #[test]
    fn kubectl_s_form_of_a_name_is_understood() {
        let found = named(vec![node("true", json!({}))], &["node/edge".into()]).unwrap();
        assert_eq!(found.len(), 1);
        assert!(named(vec![], &["edge".into()]).is_err());
    }
}
