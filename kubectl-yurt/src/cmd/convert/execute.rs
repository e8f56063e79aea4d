//! `convert`, after the question: labels, objects, components, nodes. What is undone when it does not work stands in
//! `undo`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use yurt_api::{names, status::ConversionState};

use super::{
    Plan, connected,
    undo::{Made, give_up, take_back},
};
use crate::{
    cluster::{
        components::{self, Components},
        manifests,
        node::{self, patch_node},
        node_agents,
        objects::{self, Effect},
        report,
        rollout::{News, Report, Rollout},
        view::Observer,
    },
    connect::session::Session,
    error::{Error, is_not_found},
    options::nodes::Convert,
    output::{
        Console,
        progress::Progress,
        words::{self, human},
    },
};

/// Carries out the plan.
///
/// # Errors
///
/// [`Error::Failed`] when no node was converted (what this run made is undone), [`Error::Partial`] when some nodes
/// failed.
pub async fn run(
    session: &Session,
    console: Console,
    options: &Convert,
    plan: Plan,
    effects: &[Effect],
) -> Result<(), Error> {
    let at_work = || plan.work.convert.union(&plan.work.upgrade).cloned();
    let mut progress = Progress::start(console, "done", at_work().count());
    let fresh = objects::existing(session).await?.is_empty() && plan.work.converted.is_empty();
    let mut made = Made { fresh, ..Made::default() };
    let cloud = cloud_side(session, options, &plan, effects, &mut made, &mut progress).await;
    let mut observer = match cloud {
        Ok(observer) => observer,
        Err(error) => return Err(give_up(session, &plan, &made, error, &mut progress).await),
    };
    // A node that was converted earlier has shown that it works here.
    let canary = plan.work.converted.is_empty();
    let mut rollout = Rollout::new(at_work(), options.max_parallel, options.timeout, canary);
    follow(session, &plan, &mut observer, &mut rollout, &mut progress).await?;
    if rollout.canary_failed() {
        let failed = rollout.failed().map(|(name, why)| (name.to_owned(), why.to_owned())).next();
        let (name, why) = failed.unwrap_or_default();
        progress.phase(&format!("taking node {name} back"));
        let back = take_back(session, &plan, &mut observer, &name).await;
        let error = Error::Failed(format!("node {name}: {why}"));
        return Err(match back {
            Ok(()) => give_up(session, &plan, &made, error, &mut progress).await,
            Err(left) => Error::Failed(format!(
                "node {name}: {why}\nthe node could not be taken back ({}): `kubectl yurt revert` finishes that",
                left.plain(&session.server())
            )),
        });
    }
    let done: BTreeSet<String> = rollout.done().map(str::to_owned).collect();
    let tunnel = !plan.settings.config.tunnel_addresses.is_empty();
    let unconnected = if tunnel && !done.is_empty() {
        progress.phase("waiting for the tunnel");
        connected::check(session, &plan.settings.config, &done).await
    } else {
        None
    };
    progress.clear();
    if let Some(text) = unconnected {
        console.warn(text);
    }
    summary(console, &plan, &observer, &rollout, &progress)
}

/// Labels, objects and components.
async fn cloud_side(
    session: &Session,
    options: &Convert,
    plan: &Plan,
    effects: &[Effect],
    made: &mut Made,
    progress: &mut Progress,
) -> Result<Observer, Error> {
    for name in &plan.work.label {
        patch_node(session, name, json!({ "labels": { names::LABEL_EDGE_WORKER: "false" } })).await?;
        made.labelled.insert(name.clone());
    }
    for (kind, name) in manifests::superseded(&plan.settings) {
        objects::delete(session, kind, None, name).await?;
    }
    for (index, (object, effect)) in plan.objects.iter().zip(effects).enumerate() {
        progress.phase(&format!("applying {}/{}", object.kind.label(), object.name()));
        objects::apply(session, object).await?;
        if *effect == Effect::Create {
            made.created.push(index);
        }
    }
    // Started only now: what an older view says about a changed Deployment would look ready.
    let mut observer = Observer::new(session);
    let tunnel = !plan.settings.config.tunnel_addresses.is_empty();
    let deadline = Instant::now() + options.timeout;
    let image = &plan.settings.image;
    loop {
        if observer.view().is_complete() {
            match components::components(observer.view(), image, tunnel, Instant::now()) {
                Components::Ready => return Ok(observer),
                Components::Failed(why) => return Err(Error::Failed(why)),
                Components::Waiting(text) => progress.phase(&text),
            }
        }
        if Instant::now() >= deadline {
            let waiting = match components::components(observer.view(), image, tunnel, Instant::now()) {
                Components::Waiting(text) => text + &components::last_words(observer.view(), image, tunnel),
                Components::Failed(text) => text,
                Components::Ready => "waiting for the API server".into(),
            };
            let lost =
                observer.view().lost_contact.clone().map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(Error::Failed(format!(
                "timed out after {}: {waiting}{lost}",
                human(options.timeout)
            )));
        }
        observer.changed_or_tick().await;
    }
}

/// Starts the nodes and follows them until each is done or has failed.
async fn follow(
    session: &Session,
    plan: &Plan,
    observer: &mut Observer,
    rollout: &mut Rollout,
    progress: &mut Progress,
) -> Result<(), Error> {
    // Reports of earlier runs that were taken away but that the view may still show.
    let mut stale: BTreeMap<String, String> = BTreeMap::new();
    loop {
        for name in rollout.start(Instant::now()) {
            if plan.work.upgrade.contains(&name) {
                progress.step(&name, "waiting for its new keeper");
                continue;
            }
            progress.step(&name, "labelling");
            stale.extend(
                start(session, observer, &name, plan.keep_agents).await?.map(|report| (name, report)),
            );
        }
        let active: Vec<String> = rollout.active().map(str::to_owned).collect();
        for name in active {
            let (view, image) = (observer.view(), &plan.settings.image);
            let mut report = match &plan.release {
                Some(release) if plan.work.upgrade.contains(&name) => {
                    report::upgrading(view, &name, image, release, Instant::now())
                }
                _ => report::converting(view, &name, image, Instant::now()),
            };
            let shown = observer.view().nodes.get(&name).and_then(node::report_text);
            if shown.is_some() && shown == stale.get(&name).map(String::as_str) {
                report = Report::Working("starting anew".into());
            }
            if let (Report::Working(text), Some(why)) = (&mut report, &observer.view().lost_contact) {
                *text = format!("{text} (lost contact: {why})");
            }
            match rollout.observe(&name, report, Instant::now()) {
                Some(News::Step(text)) => progress.step(&name, &text),
                Some(News::Done(text)) => progress.done(&name, &text),
                Some(News::Failed(text)) => progress.failed(&name, &text),
                None => {}
            }
        }
        if rollout.is_finished() {
            return Ok(());
        }
        if rollout.active().next().is_some() {
            observer.changed_or_tick().await;
        }
    }
}

/// Tells a node to become an edge node. A failure of an earlier run is forgotten and its keeper starts anew; that
/// failure's report is returned.
async fn start(
    session: &Session,
    observer: &Observer,
    name: &str,
    keep_agents: bool,
) -> Result<Option<String>, Error> {
    let node = observer.view().nodes.get(name);
    let failed =
        node.and_then(node::conversion).is_some_and(|status| status.state == ConversionState::Failed);
    let mut annotations = json!({
        names::ANNOTATION_TARGET: null,
        names::ANNOTATION_AGENTS: node::agents_annotation(keep_agents),
    });
    if failed {
        annotations[names::ANNOTATION_CONVERSION] = Value::Null;
    }
    patch_node(
        session,
        name,
        json!({ "labels": { names::LABEL_EDGE_WORKER: "true" }, "annotations": annotations }),
    )
    .await?;
    if let Some(keeper) = observer.view().keeper(name).filter(|_| failed) {
        let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
        match pods.delete(&keeper.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(node.and_then(node::report_text).filter(|_| failed).map(str::to_owned))
}

fn summary(
    console: Console,
    plan: &Plan,
    observer: &Observer,
    rollout: &Rollout,
    progress: &Progress,
) -> Result<(), Error> {
    let work = &plan.work;
    for name in work.converted.difference(&work.upgrade) {
        console.line(format!("node/{name} already converted"))?;
    }
    let (upgraded, converted): (Vec<&str>, Vec<&str>) =
        rollout.done().partition(|name| work.upgrade.contains(*name));
    for name in &converted {
        console.line(format!("node/{name} converted"))?;
        let reported = observer.view().nodes.get(name).and_then(node::conversion);
        let agents = reported.map(|status| status.agents).unwrap_or_default();
        if let Some(text) = node_agents::outcome(&agents) {
            console.line(format!("node/{name} {text}"))?;
        }
        for text in node_agents::failures(&agents) {
            console.warn(format!("node {name}: {text}"));
        }
    }
    for name in &upgraded {
        console.line(format!("node/{name} upgraded"))?;
    }
    let failed: Vec<(&str, &str)> = rollout.failed().collect();
    if failed.is_empty() {
        let counts: Vec<String> = [(converted.len(), "converted"), (upgraded.len(), "upgraded")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", words::nodes(count)))
            .collect();
        let what = if counts.is_empty() { "components are up to date".to_owned() } else { counts.join(", ") };
        return console.line(format!("{what} {}", progress.took()));
    }
    let lines: Vec<String> = failed.iter().map(|(name, why)| format!("  {name}: {why}")).collect();
    let verb = match (work.convert.is_empty(), work.upgrade.is_empty()) {
        (true, _) => "upgraded",
        (_, true) => "converted",
        _ => "converted or upgraded",
    };
    Err(Error::Partial(format!(
        "{} of {} not {verb}:\n{}\nrun the same command again to try again, or `kubectl yurt revert` to go back",
        failed.len(),
        words::nodes(work.convert.len() + work.upgrade.len()),
        lines.join("\n")
    )))
}
