//! `revert`: every edge node back to vanilla, then everything of ours out of the cluster. A node that cannot be
//! reached is left *reverting*, with what its keeper needs to finish when it is back.

pub mod restart;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use yurt_api::{names, status::ConversionState};

use restart::Windows;

use crate::{
    cluster::{
        access, lock,
        node::{self, patch_node},
        node_agents, objects, pods, report,
        rollout::{News, Report, Rollout},
        teardown,
        unmark::{self, Unmarking},
        view::{Observer, View},
    },
    connect::session::Session,
    error::Error,
    options::nodes::Revert,
    output::{
        Console,
        progress::Progress,
        words::{self, count_of, join},
    },
};

/// What is to be done with each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ToRevert {
    /// Nodes whose keepers must bring them back.
    revert: BTreeSet<String>,
    /// Those of them that are not ready.
    away: BTreeSet<String>,
    /// Nodes on which nothing is installed, but which carry marks of ours.
    clean: BTreeSet<String>,
    /// Nodes that lose an autonomy annotation that a person set.
    autonomous: BTreeSet<String>,
}

/// Sorts the nodes by what is to be done. Pure.
fn work(nodes: &[Node]) -> ToRevert {
    let mut work = ToRevert::default();
    for node in nodes {
        let name = node.name_any();
        let state = node::conversion(node).map(|status| status.state);
        let installed = !matches!(state, None | Some(ConversionState::Reverted));
        if installed || node::edge_label(node) == Some("true") {
            if !node::is_ready(node) {
                work.away.insert(name.clone());
            }
            work.revert.insert(name.clone());
        } else if node::is_touched(node) {
            work.clean.insert(name.clone());
        }
        if node::has_any(node, &node::AUTONOMY_ANNOTATIONS) {
            work.autonomous.insert(name);
        }
    }
    work
}

/// Runs the command.
///
/// # Errors
///
/// [`Error::Refused`] with nothing changed, [`Error::Partial`] when some nodes are not vanilla yet.
pub async fn run(session: &Session, console: Console, options: Revert) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(session.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let work = work(&nodes);
    let existing = objects::existing(session).await?;
    if work.revert.is_empty() && work.clean.is_empty() && existing.is_empty() {
        return console.line("this cluster is vanilla: there is nothing to revert");
    }
    access::check(&session.client, access::revert_needs(&session.yurt_namespace)).await?;
    if needs_keeper(&nodes, &work) && keeper_is_missing(session).await? {
        return Err(Error::Refused(format!(
            "the DaemonSet {} is gone, and its pods are what brings nodes back ({}): pass --yurt-namespace if \
             it is not in {}, or run `kubectl yurt convert` again first, then revert; nothing was changed",
            names::KEEPER,
            join(&work.revert),
            session.yurt_namespace
        )));
    }
    let mut windows = Windows::of(&nodes);
    let pods = pods::unfinished(session).await?;
    let (agents, stale): (Vec<_>, Vec<_>) =
        restart::stale(&pods, &windows).into_iter().partition(restart::Stale::is_agent);
    let agents: Vec<String> = agents.iter().map(restart::Stale::name).collect();
    let pods = pods::count(&pods, &work.revert);
    let agents = node_agents::intent(&agents, options.keep_agents);
    console.confirm(&question(&work, &pods, existing.len(), agents, &stale), options.yes)?;
    let result = lock::hold(
        session,
        |text| console.note(text),
        execute(session, console, options, work, &mut windows),
    )
    .await;
    // Looked at again: pods have come and gone, and some nodes may not be vanilla yet.
    if let Ok(pods) = pods::unfinished(session).await
        && let Some(text) = restart::warning(&restart::stale(&pods, &windows))
    {
        console.warn(text);
    }
    result
}

/// True if something is installed on a node.
fn needs_keeper(nodes: &[Node], work: &ToRevert) -> bool {
    nodes
        .iter()
        .filter(|node| work.revert.contains(&node.name_any()))
        .any(|node| node::conversion(node).is_some_and(|status| status.state != ConversionState::Reverted))
}

async fn keeper_is_missing(session: &Session) -> Result<bool, Error> {
    let sets: Api<DaemonSet> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    Ok(sets.get_metadata_opt(names::KEEPER).await?.is_none())
}

fn question(
    work: &ToRevert,
    pods: &BTreeMap<String, usize>,
    objects: usize,
    agents: Option<String>,
    stale: &[restart::Stale],
) -> String {
    let mut parts = Vec::new();
    if !work.revert.is_empty() {
        let nodes: Vec<String> = work
            .revert
            .iter()
            .map(|name| {
                let away = if work.away.contains(name) { ", not ready" } else { "" };
                format!("{name} ({}{away})", count_of(pods.get(name).copied().unwrap_or(0), "pod"))
            })
            .collect();
        parts.push(format!("bring {} back to vanilla: {}", words::nodes(nodes.len()), nodes.join(", ")));
    }
    if !work.autonomous.is_empty() {
        parts.push(format!("end the autonomy of: {}", join(&work.autonomous)));
    }
    parts.push(format!("delete {} of kubectl-yurt", count_of(objects, "object")));
    let afterwards = if stale.is_empty() {
        String::new()
    } else {
        format!(" Afterwards restart yourself, if they use the API server: {}.", restart::listed(stale))
    };
    let agents = agents.map(|text| format!("; {text}")).unwrap_or_default();
    format!("This will {}. Pods keep running{agents}.{afterwards} Go on?", parts.join("; "))
}

async fn execute(
    session: &Session,
    console: Console,
    options: Revert,
    work: ToRevert,
    windows: &mut Windows,
) -> Result<(), Error> {
    let mut progress = Progress::start(console, "reverted", work.revert.len());
    let mut observer = Observer::new(session);
    let mut rollout = Rollout::new(work.revert.iter().cloned(), options.max_parallel, options.timeout, false);
    let keep = options.keep_agents;
    let unmarked = follow(session, &work, keep, &mut observer, &mut rollout, &mut progress, windows).await?;

    let mut left: BTreeMap<String, String> =
        rollout.failed().map(|(name, why)| (name.to_owned(), why.to_owned())).collect();
    left.extend(
        unmarked.stuck().iter().map(|name| (name.clone(), "its keeper's pod does not end".to_owned())),
    );
    let reverted = || {
        let mut done = rollout.done().filter(|name| !left.contains_key(*name));
        done.try_for_each(|name| {
            console.line(format!("node/{name} reverted"))?;
            let agents = windows.agents(name);
            for text in node_agents::failures(agents) {
                console.warn(format!("node {name}: {text}"));
            }
            node_agents::outcome(agents).map_or(Ok(()), |text| console.line(format!("node/{name} {text}")))
        })
    };
    if !left.is_empty() {
        progress.clear();
        reverted()?;
        let lines: Vec<String> = left.iter().map(|(name, why)| format!("  {name}: {why}")).collect();
        return Err(Error::Partial(format!(
            "{} of {} not vanilla yet, left reverting:\n{}\nits keeper finishes when the node is back; run \
             `kubectl yurt revert` again then to delete the rest",
            left.len(),
            words::nodes(work.revert.len()),
            lines.join("\n")
        )));
    }

    let done = teardown::run(session, &mut observer, |text| progress.phase(text)).await?;
    // The controller sets the condition until its last moment, so nodes are cleaned after it has gone.
    let nodes: Api<Node> = Api::all(session.client.clone());
    for node in nodes.list(&ListParams::default()).await?.items {
        if node::is_touched(&node) {
            let name = node.name_any();
            unmark::clean(session, &name, Some(&node)).await?;
        }
    }
    progress.clear();
    reverted()?;
    for name in &work.autonomous {
        console.line(format!("node/{name} autonomy ended"))?;
    }
    for object in &done.deleted {
        console.line(format!("{} deleted", object.text()))?;
    }
    for left in &done.by_hand {
        console.warn(left);
    }
    console.line(format!("the cluster is vanilla again, {}", progress.took()))
}

/// Tells the nodes to go back and follows them. Whoever is done loses our marks at once.
async fn follow(
    session: &Session,
    work: &ToRevert,
    keep_agents: bool,
    observer: &mut Observer,
    rollout: &mut Rollout,
    progress: &mut Progress,
    windows: &mut Windows,
) -> Result<Unmarking, Error> {
    let mut unmarking = Unmarking::default();
    observer.complete().await;
    loop {
        for name in rollout.start(Instant::now()) {
            progress.step(&name, "telling its keeper");
            let metadata = json!({
                // Its keeper runs only with the label, which somebody may have taken off.
                "labels": { names::LABEL_EDGE_WORKER: "true" },
                "annotations": {
                    names::ANNOTATION_TARGET: names::TARGET_VANILLA,
                    names::ANNOTATION_AGENTS: node::agents_annotation(keep_agents),
                }
            });
            patch_node(session, &name, metadata).await?;
        }
        let active: Vec<String> = rollout.active().map(str::to_owned).collect();
        // Nodes that were away from the start are not waited for when nothing else is at work.
        let only_away =
            active.iter().all(|name| work.away.contains(name)) && rollout.queued().next().is_none();
        for name in active {
            let mut report = report::reverting(observer.view(), &name, Instant::now());
            if only_away && matches!(report, Report::Working(_)) && !is_ready(observer.view(), &name) {
                report = Report::Failed("not reachable".into());
            }
            match rollout.observe(&name, report, Instant::now()) {
                Some(News::Step(text)) => progress.step(&name, &text),
                Some(News::Done(text)) => {
                    progress.step(&name, &text);
                    if let Some(node) = observer.view().nodes.get(&name) {
                        windows.close(node);
                    }
                    unmarking.begin(session, &name).await?;
                }
                Some(News::Failed(text)) => progress.failed(&name, &text),
                None => {}
            }
        }
        for name in unmarking.advance(session, observer.view()).await? {
            progress.done(&name, "reverted");
        }
        if rollout.is_finished() && unmarking.is_empty() {
            return Ok(unmarking);
        }
        observer.changed_or_tick().await;
    }
}

fn is_ready(view: &View, name: &str) -> bool {
    view.nodes.get(name).is_some_and(node::is_ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, label: Option<&str>, state: Option<&str>, ready: bool) -> Node {
        let mut metadata = json!({ "name": name, "labels": {}, "annotations": {} });
        if let Some(label) = label {
            metadata["labels"][names::LABEL_EDGE_WORKER] = json!(label);
        }
        if let Some(state) = state {
            let report = json!({ "state": state, "step": "kubelet", "stepIndex": 1, "steps": 4,
                "version": "0.1.0", "time": "2026-01-01T00:00:00Z" });
            metadata["annotations"][names::ANNOTATION_CONVERSION] = json!(report.to_string());
        }
        serde_json::from_value(json!({
            "metadata": metadata,
            "status": { "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "Unknown" } }] }
        }))
        .unwrap()
    }

    fn names_of(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn nodes_are_sorted_by_what_is_installed_on_them() {
        let mut annotated = node("annotated", None, None, true);
        annotated.annotations_mut().insert(names::ANNOTATION_AUTONOMY.into(), "true".into());
        let work = work(&[
            node("edge", Some("true"), Some("Converted"), true),
            node("unlabelled", None, Some("Converted"), true),
            node("away", Some("true"), Some("Converted"), false),
            node("cloud", Some("false"), None, true),
            node("done", None, Some("Reverted"), true),
            node("other", None, None, true),
            annotated,
        ]);
        assert_eq!(names_of(&work.revert), ["away", "edge", "unlabelled"]);
        assert_eq!(names_of(&work.away), ["away"]);
        assert_eq!(names_of(&work.clean), ["annotated", "cloud", "done"]);
        assert_eq!(names_of(&work.autonomous), ["annotated"]);
    }
}
