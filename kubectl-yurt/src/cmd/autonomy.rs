//! `autonomy`: which nodes keep their pods while they are away. The annotation is the request; whether it is in
//! effect is what the controller made of it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::json;
use yurt_api::names;

use crate::{
    args::{AutonomyChangeArgs, AutonomyCommand, AutonomyStatusArgs, Format},
    cluster::{
        definition,
        node::{self, Role},
        release::patch_node,
    },
    cmd::convert::plan::{join, known},
    duration,
    error::Error,
    output::{API_VERSION, Document, Table, Tone, plain},
    resolve::session::Session,
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
        .filter(|node| node::autonomy(node).is_some() && !node::is_ready(node))
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
        let keys = [
            names::ANNOTATION_AUTONOMY,
            names::ANNOTATION_AUTONOMY_LEGACY,
            names::ANNOTATION_AUTONOMY_DURATION,
        ];
        if !keys.iter().any(|key| node.annotations().contains_key(*key)) {
            session.console.line(format!("node/{name} not autonomous"))?;
            continue;
        }
        let annotations: serde_json::Map<String, serde_json::Value> =
            keys.iter().map(|key| ((*key).to_owned(), serde_json::Value::Null)).collect();
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
        let edge: Vec<Node> = found.into_iter().filter(|node| node::role(node) == Role::Edge).collect();
        if edge.is_empty() {
            return Err(Error::Refused(format!("no edge node has the labels {selector:?}")));
        }
        return Ok(edge);
    }
    let all = api.list(&ListParams::default()).await?.items;
    if args.all {
        return Ok(all.into_iter().filter(|node| node::role(node) == Role::Edge).collect());
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
        nodes.iter().filter(|node| node::role(node) != Role::Edge).map(|node| node.name_any()).collect();
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

/// One node's autonomy, as `-o json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAutonomy {
    /// The node.
    pub name: String,
    /// The annotations ask for it.
    pub enabled: bool,
    /// The annotation that does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// For how long, in seconds; absent for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<u64>,
    /// The policies protect the node's pods.
    pub in_effect: bool,
    /// Status of the node condition `Autonomy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What is wrong with the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The node is there.
    pub ready: bool,
}

/// Puts together what a node's annotations ask for and what became of it. Pure.
pub fn describe(node: &Node, parameter: Option<&DynamicObject>) -> NodeAutonomy {
    let name = node.name_any();
    let asked = node::autonomy(node);
    let condition = node::condition(node, node::CONDITION_AUTONOMY);
    let protected = parameter.is_some_and(|parameter| definition::names_node(parameter, &name));
    NodeAutonomy {
        enabled: asked.is_some(),
        source: asked.as_ref().map(|autonomy| autonomy.source.to_owned()),
        limit_seconds: asked.as_ref().and_then(|autonomy| autonomy.limit).map(|limit| limit.as_secs()),
        in_effect: protected,
        condition: condition.map(|condition| condition.status.clone()),
        reason: condition.and_then(|condition| condition.reason.clone()),
        message: condition.and_then(|condition| condition.message.clone()),
        since: condition
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0.to_string()),
        fault: asked.and_then(|autonomy| autonomy.fault),
        ready: node::is_ready(node),
        name,
    }
}

impl NodeAutonomy {
    /// The word for the request.
    pub fn request(&self) -> String {
        match (self.enabled, self.limit_seconds) {
            (false, _) => "off".into(),
            (true, None) => "on".into(),
            (true, Some(seconds)) => {
                format!("on for {}", duration::human(std::time::Duration::from_secs(seconds)))
            }
        }
    }

    /// The word for its effect.
    pub fn effect(&self) -> (&'static str, Tone) {
        match (self.enabled, self.in_effect) {
            (true, true) => ("yes", Tone::Good),
            (true, false) => ("not yet", Tone::Warn),
            (false, true) => ("still", Tone::Warn),
            (false, false) => ("no", Tone::Faint),
        }
    }
}

async fn status(session: &Session, args: &AutonomyStatusArgs) -> Result<(), Error> {
    let nodes_api: Api<Node> = Api::all(session.client.clone());
    let every = ListParams::default();
    let (nodes, parameter) = tokio::try_join!(nodes_api.list(&every), definition::parameter(session))?;
    let nodes = if args.nodes.is_empty() {
        nodes.items.into_iter().filter(|node| node::role(node) == Role::Edge).collect()
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

    fn parameter(names: &[&str]) -> DynamicObject {
        let nodes: serde_json::Map<String, serde_json::Value> =
            names.iter().map(|name| ((*name).to_owned(), json!(""))).collect();
        serde_json::from_value(json!({ "metadata": {}, "spec": { "nodes": nodes } })).unwrap()
    }

    #[test]
    fn the_request_and_its_effect_are_two_things() {
        let asked = node("true", json!({ names::ANNOTATION_AUTONOMY: "true" }));
        let pending = describe(&asked, Some(&parameter(&[])));
        assert_eq!((pending.request().as_str(), pending.effect().0), ("on", "not yet"));
        let effective = describe(&asked, Some(&parameter(&["edge"])));
        assert_eq!(effective.effect().0, "yes");
        let ended = describe(&node("true", json!({})), Some(&parameter(&["edge"])));
        assert_eq!((ended.request().as_str(), ended.effect().0), ("off", "still"));
        let limited = describe(&node("true", json!({ names::ANNOTATION_AUTONOMY_DURATION: "2h" })), None);
        assert_eq!(limited.request(), "on for 2h0m");
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
