//! `convert`, when it does not work: the node that was tried is brought back, and what the run has made is taken away.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;
use yurt_api::{names, status::ConversionState};

use super::Plan;
use crate::{
    cluster::{
        node::{self, patch_node},
        objects, pods, teardown,
        unmark::Unmarking,
        view::Observer,
    },
    connect::session::Session,
    error::Error,
    output::{progress::Progress, words::join},
};

/// How long a node that is turned round may take: kubelet 90 s, and its agents 180.
const TURN_ROUND: Duration = Duration::from_secs(300);

/// What this run has changed so far.
#[derive(Default)]
pub(super) struct Made {
    /// Indices into the plan's objects.
    pub(super) created: Vec<usize>,
    pub(super) labelled: BTreeSet<String>,
    /// Nothing of ours existed before.
    pub(super) fresh: bool,
}

/// Brings the one node that was tried back to where it was.
pub(super) async fn take_back(
    session: &Session,
    plan: &Plan,
    observer: &mut Observer,
    name: &str,
) -> Result<(), Error> {
    // The target first: whatever the keeper is doing now, it does not go on with it.
    patch_node(session, name, json!({ "annotations": { names::ANNOTATION_TARGET: names::TARGET_VANILLA } }))
        .await?;
    let deadline = Instant::now() + TURN_ROUND;
    loop {
        let view = observer.view();
        let state = view.nodes.get(name).and_then(node::conversion).map(|status| status.state);
        let at_work = view.keeper(name).is_some_and(pods::is_ready);
        let late = Instant::now() >= deadline;
        match state {
            Some(ConversionState::Reverted) => break,
            // Nothing was done, or all of it was undone; a keeper that runs says so itself.
            None | Some(ConversionState::Failed) if !at_work || late => break,
            Some(_) if late => {
                return Err(Error::Failed("its keeper does not report that it is vanilla again".into()));
            }
            _ => observer.changed_or_tick().await,
        }
    }
    let mut unmarking = Unmarking::default();
    unmarking.begin(session, name).await?;
    while !unmarking.is_empty() {
        observer.changed_or_tick().await;
        unmarking.advance(session, observer.view()).await?;
    }
    if !unmarking.stuck().is_empty() {
        return Err(Error::Failed("its keeper's pod does not end".into()));
    }
    if let Some(Some(label)) = plan.labels.get(name).filter(|label| label.as_deref() == Some("false")) {
        patch_node(session, name, json!({ "labels": { names::LABEL_EDGE_WORKER: label } })).await?;
    }
    Ok(())
}

/// Undoes what this run has made, if no node is an edge node, and adds to `error` what became of that.
pub(super) async fn give_up(
    session: &Session,
    plan: &Plan,
    made: &Made,
    error: Error,
    progress: &mut Progress,
) -> Error {
    let why = error.plain(&session.server());
    if !plan.work.converted.is_empty() {
        return Error::Failed(format!(
            "{why}\nnodes converted earlier still are ({}), so nothing was undone",
            join(&plan.work.converted)
        ));
    }
    progress.phase("undoing");
    match undo(session, plan, made, progress).await {
        Ok(by_hand) => {
            let by_hand: String = by_hand.iter().map(|text| format!("\n{text}")).collect();
            Error::Failed(format!("{why}\neverything that this run made was undone{by_hand}"))
        }
        Err(left) => Error::Failed(format!(
            "{why}\nnot everything could be undone ({}): `kubectl yurt revert` finishes that",
            left.plain(&session.server())
        )),
    }
}

/// What is left for a person to do.
async fn undo(
    session: &Session,
    plan: &Plan,
    made: &Made,
    progress: &mut Progress,
) -> Result<Vec<String>, Error> {
    let mut by_hand = Vec::new();
    if made.fresh {
        // The controller may have made something already, so everything that carries our label goes.
        let mut observer = Observer::new(session);
        by_hand = teardown::run(session, &mut observer, |text| progress.phase(text)).await?.by_hand;
    } else {
        for object in made.created.iter().rev().filter_map(|index| plan.objects.get(*index)) {
            objects::delete(session, object.kind, object.namespace(), object.name()).await?;
        }
    }
    for name in &made.labelled {
        let before = plan.labels.get(name).cloned().flatten();
        patch_node(session, name, json!({ "labels": { names::LABEL_EDGE_WORKER: before } })).await?;
    }
    Ok(by_hand)
}
