//! `autonomy`: which nodes keep their pods while they are away. The annotation is the request; whether it is in
//! effect is what the controller made of it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use yurt_api::names;

use crate::{
    cluster::{
        autonomy::{NodeAutonomy, describe},
        definition,
        node::{self, known, patch_node},
    },
    connect::session::Session,
    error::Error,
    options::nodes::{AutonomyChange, AutonomyStatus, EdgeNodes},
    output::{API_VERSION, Console, Listing, Table, Tone, plain, words::join},
};

/// `autonomy enable`.
///
/// # Errors
///
/// [`Error::Refused`] for nodes that are no edge nodes, or the server's answer.
pub async fn enable(session: &Session, console: Console, options: &AutonomyChange) -> Result<(), Error> {
    let nodes = pick(session, &options.which).await?;
    refuse_cloud(&nodes)?;
    for node in &nodes {
        let name = node.name_any();
        let done = node.annotations().get(names::ANNOTATION_AUTONOMY).is_some_and(|value| value == "true");
        if done {
            console.line(format!("node/{name} already autonomous"))?;
            continue;
        }
        patch_node(session, &name, json!({ "annotations": { names::ANNOTATION_AUTONOMY: "true" } })).await?;
        console.line(format!("node/{name} autonomy enabled"))?;
        if !node::is_ready(node) {
            console.warn(format!(
                "node {name} is not ready: pods that Kubernetes has marked for deletion already are not kept"
            ));
        }
    }
    Ok(())
}

/// `autonomy disable`.
///
/// # Errors
///
/// [`Error::Refused`] for unknown nodes or without a yes, or the server's answer.
pub async fn disable(session: &Session, console: Console, options: &AutonomyChange) -> Result<(), Error> {
    let nodes = pick(session, &options.which).await?;
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
        console.confirm(&question, options.yes)?;
    }
    for node in &nodes {
        let name = node.name_any();
        if !node::has_any(node, &node::AUTONOMY_ANNOTATIONS) {
            console.line(format!("node/{name} not autonomous"))?;
            continue;
        }
        let annotations = node::without(&node::AUTONOMY_ANNOTATIONS);
        patch_node(session, &name, json!({ "annotations": annotations })).await?;
        console.line(format!("node/{name} autonomy disabled"))?;
    }
    Ok(())
}

/// The nodes that are meant; unknown names are refused, and so are labels that no edge node has.
async fn pick(session: &Session, which: &EdgeNodes) -> Result<Vec<Node>, Error> {
    let api: Api<Node> = Api::all(session.client.clone());
    let labels = match which {
        EdgeNodes::Labelled(selector) => ListParams::default().labels(selector),
        EdgeNodes::Named(_) | EdgeNodes::All => ListParams::default(),
    };
    chosen(api.list(&labels).await?.items, which)
}

/// Those of the nodes that were found that are meant. Pure.
fn chosen(found: Vec<Node>, which: &EdgeNodes) -> Result<Vec<Node>, Error> {
    if let EdgeNodes::Named(wanted) = which {
        known(wanted, &found.iter().map(|node| node.name_any()).collect())?;
        return Ok(found.into_iter().filter(|node| wanted.contains(&node.name_any())).collect());
    }
    let edge: Vec<Node> = found.into_iter().filter(node::is_edge).collect();
    match which {
        EdgeNodes::Labelled(selector) if edge.is_empty() => {
            Err(Error::Refused(format!("no edge node has the labels {selector:?}")))
        }
        _ => Ok(edge),
    }
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

/// `autonomy status`.
///
/// # Errors
///
/// [`Error::Refused`] for unknown nodes, or the server's answer.
pub async fn status(session: &Session, console: Console, options: &AutonomyStatus) -> Result<(), Error> {
    let parameter = async { definition::parameter(session).await.map_err(Error::from) };
    let (nodes, parameter) = tokio::try_join!(pick(session, &options.which), parameter)?;
    let all: Vec<NodeAutonomy> = nodes.iter().map(|node| describe(node, parameter.as_ref())).collect();
    let listing = Listing {
        document: json!({ "apiVersion": API_VERSION, "kind": "AutonomyStatus", "nodes": all }),
        nodes: all.iter().map(|node| node.name.clone()).collect(),
        table: |wide| print(console, &all, wide),
    };
    listing.print(console, options.form)
}

fn print(console: Console, all: &[NodeAutonomy], wide: bool) -> Result<(), Error> {
    if all.is_empty() {
        console.note("No edge nodes found.");
        return Ok(());
    }
    let mut headings = vec!["NODE", "AUTONOMY", "IN EFFECT", "READY", "REASON", "SINCE"];
    if wide {
        headings.extend(["SOURCE", "MESSAGE"]);
    }
    let mut table = Table::new(&headings);
    let or_none = |text: &Option<String>| plain(text.clone().unwrap_or_else(|| "<none>".into()));
    for node in all {
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
    console.raw(table.render(&console))?;
    for node in all.iter().filter(|node| node.fault.is_some()) {
        let fault = node.fault.as_deref().unwrap_or_default();
        console.warn(format!("node {}: {}: {fault}", node.name, names::ANNOTATION_AUTONOMY_DURATION));
    }
    for node in all.iter().filter(|node| node.enabled && !node.in_effect) {
        console.warn(format!(
            "node {}: the controller has not put this into effect yet; `kubectl yurt status` shows whether it runs",
            node.name
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples::node;

    #[test]
    fn a_cloud_node_cannot_be_autonomous() {
        assert!(refuse_cloud(&[node("true", json!({}))]).is_ok());
        let error = refuse_cloud(&[node("false", json!({}))]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--edge-nodes edge"));
    }

    #[test]
    fn names_have_to_exist_and_labels_have_to_find_an_edge_node() {
        let nodes = || vec![node("true", json!({}))];
        let named = |name: &str| EdgeNodes::Named([name.to_owned()].into());
        assert_eq!(chosen(nodes(), &named("edge")).unwrap().len(), 1);
        assert_eq!(chosen(nodes(), &named("egde")).unwrap_err().exit_code(), 2);
        assert_eq!(chosen(nodes(), &EdgeNodes::All).unwrap().len(), 1);
        let cloud = || vec![node("false", json!({}))];
        assert!(chosen(cloud(), &EdgeNodes::All).unwrap().is_empty());
        assert!(chosen(cloud(), &EdgeNodes::Labelled("a=b".into())).is_err());
    }
}
