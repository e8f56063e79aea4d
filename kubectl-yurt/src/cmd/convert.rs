//! `convert`: preflight and plan ([`plan`]), then objects, components and nodes ([`execute`]), each step such that
//! running it again continues where it stopped.

pub mod connected;
pub mod execute;
pub mod image;
pub mod plan;
mod undo;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, Node},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use yurt_api::{names, way_in::WayIn};

use crate::{
    args::nodes::{AskedWayIn, DryRun},
    cluster::{
        access,
        data_path::DataPath,
        lock,
        manifests::{self, Object, Settings},
        node, node_agents, objects,
        objects::Effect,
        pods,
    },
    connect::{session::Session, tunnel},
    error::Error,
    options::nodes::{Convert, Split},
    output::{
        Console,
        words::{self, count_of, join},
    },
};

/// How many objects are looked at at once.
const PARALLEL: usize = 8;

/// Everything that is decided before anything is changed.
pub struct Plan {
    /// What is to be done with which node.
    pub work: plan::Work,
    /// The objects to apply.
    pub objects: Vec<Object>,
    /// What is filled into them.
    pub settings: Settings,
    /// The image in use before the run.
    pub image_before: Option<String>,
    /// The release that nodes report when they have got this one, if that is known.
    pub release: Option<String>,
    /// The value of our label on each node before the run.
    pub labels: BTreeMap<String, Option<String>>,
    /// Pods on each node that is converted.
    pub pods: BTreeMap<String, usize>,
    /// Those of them that are infrastructure agents.
    pub agents: Vec<String>,
    /// Leave them as they are.
    pub keep_agents: bool,
}

/// Runs the command.
///
/// # Errors
///
/// Refused with nothing changed, failed with everything undone, or some nodes failed.
pub async fn run(session: &Session, console: Console, options: &Convert) -> Result<(), Error> {
    let plan = prepare(session, options).await?;
    if options.dry_run == DryRun::Client {
        return show(console, &plan);
    }
    access::check(&session.client, access::convert_needs(&plan.objects, &session.yurt_namespace)).await?;
    if options.dry_run == DryRun::Server {
        return dry_run(session, console, &plan).await;
    }
    let effects = preview(session, &plan.objects).await?;
    let pending = effects.iter().filter(|effect| **effect != Effect::None).count();
    let superseded = superseded(session, &plan).await?;
    let work = &plan.work;
    let idle = work.convert.is_empty() && work.upgrade.is_empty() && work.label.is_empty();
    if pending == 0 && superseded.is_empty() && idle {
        return console.line(format!(
            "already converted: {} ({}); nothing was changed",
            words::nodes(plan.work.converted.len()),
            join(&plan.work.converted)
        ));
    }
    console.confirm(&question(&plan, pending), options.yes)?;
    if !plan.work.away.is_empty() {
        console.warn(format!("not reachable now, will follow by themselves: {}", join(&plan.work.away)));
    }
    // Who was asked has read it.
    if options.yes && !plan.work.later.is_empty() {
        console.warn(format!("not ready, the tunnel server starts there later: {}", join(&plan.work.later)));
    }
    lock::hold(session, |text| console.note(text), execute::run(session, console, options, plan, &effects))
        .await
}

/// Preflight: looks at the cluster and decides.
async fn prepare(session: &Session, options: &Convert) -> Result<Plan, Error> {
    let version = session.client.apiserver_version().await?;
    let version = plan::ServerVersion::parse(&version.major, &version.minor).ok_or_else(|| {
        Error::Failed(format!(
            "the server's version {}.{} cannot be understood",
            version.major, version.minor
        ))
    })?;
    version.check()?;

    let nodes_api: Api<Node> = Api::all(session.client.clone());
    let nodes = nodes_api.list(&ListParams::default()).await?.items;
    let selected: BTreeSet<String> = match &options.which {
        Split::Labelled(selector) => {
            let list = nodes_api.list_metadata(&ListParams::default().labels(selector)).await?;
            list.items.into_iter().filter_map(|node| node.metadata.name).collect()
        }
        Split::Cloud(_) | Split::Edge(_) => BTreeSet::new(),
    };
    let choice = plan::choose(&nodes, &options.which, &selected)?;
    let mut work = plan::work(&nodes, &choice, options.tunnel.is_some())?;

    let namespaces: Api<Namespace> = Api::all(session.client.clone());
    let namespace = namespaces.get_opt(&session.yurt_namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let earlier = maps.get_opt(names::CONFIG_MAP).await?;
    let way_in = way_in(session, options, earlier.as_ref()).await?;
    let connect_bypass = options.connect_bypass.unwrap_or_else(|| {
        let data = earlier.as_ref().and_then(|map| map.data.as_ref());
        data.and_then(|data| data.get(names::CONFIG_CONNECT_BYPASS_KEY)).is_some_and(|value| value == "true")
    });
    let earlier = earlier.and_then(|map| tunnel::parse_config(&map).ok());
    let sets: Api<DaemonSet> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let keeper = sets.get_opt(names::KEEPER).await?;
    let image_before =
        keeper.as_ref().and_then(|set| pods::template_image(&set.spec.template)).map(str::to_owned);
    let settings = Settings {
        namespace: session.yurt_namespace.clone(),
        // One that we made in an earlier run is still ours to describe.
        create_namespace: namespace.as_ref().is_none_or(|namespace| {
            namespace.labels().get(names::LABEL_PART_OF).is_some_and(|value| value == names::PART_OF)
        }),
        image: image::choose(options.image.as_deref(), image_before.as_deref()),
        config: plan::cluster_config(&nodes, &choice, options.tunnel.as_ref(), earlier)?,
        way_in,
        connect_bypass,
        mutating: version.has_mutating_policies(),
    };
    let release = image::expected_release(&settings.image, image_before.as_deref());
    work.upgrade = plan::upgrades(&nodes, &work, release.as_deref());
    let objects = manifests::render(&settings).map_err(|error| Error::Failed(error.to_string()))?;
    let labels =
        nodes.iter().map(|node| (node.name_any(), node::edge_label(node).map(str::to_owned))).collect();
    let unfinished = if work.convert.is_empty() { Vec::new() } else { pods::unfinished(session).await? };
    let pods = pods::count(&unfinished, &work.convert);
    let agents = node_agents::on_nodes(&unfinished, &work.convert);
    let keep_agents = options.keep_agents;
    Ok(Plan { work, objects, settings, image_before, release, labels, pods, agents, keep_agents })
}

/// By which way pods come to the hub: what was asked for, what an earlier run decided, or what this cluster can.
async fn way_in(
    session: &Session,
    options: &Convert,
    earlier: Option<&ConfigMap>,
) -> Result<WayIn, kube::Error> {
    let earlier = earlier.and_then(|map| WayIn::of(map.data.as_ref()?.get(names::CONFIG_WAY_IN_KEY)?));
    match (options.way_in, earlier) {
        (Some(AskedWayIn::Service), _) => Ok(WayIn::Service),
        (Some(AskedWayIn::Environment), _) => Ok(WayIn::Environment),
        (None, Some(earlier)) => Ok(earlier),
        (Some(AskedWayIn::Auto), _) | (None, None) => Ok(DataPath::of(session).await?.way_in()),
    }
}

/// What applying each object would do.
async fn preview(session: &Session, objects: &[Object]) -> Result<Vec<Effect>, Error> {
    // In a namespace that does not exist yet the server cannot try anything.
    let fresh = objects.iter().find(|object| object.kind.kind == "Namespace");
    if let Some(namespace) = fresh
        && objects::preview(session, namespace).await? == Effect::Create
    {
        return Ok(vec![Effect::Create; objects.len()]);
    }
    futures::stream::iter(objects)
        .map(|object| objects::preview(session, object))
        .buffered(PARALLEL)
        .try_collect()
        .await
}

/// Objects of an earlier run that are in the way of this one.
async fn superseded(session: &Session, plan: &Plan) -> Result<Vec<objects::Existing>, Error> {
    let obsolete = manifests::superseded(&plan.settings);
    let existing = objects::existing(session).await?;
    Ok(existing
        .into_iter()
        .filter(|object| obsolete.iter().any(|(kind, name)| object.is(kind, name)))
        .collect())
}

impl Plan {
    /// `image A -> B`, if the image in use is another than the one to use.
    fn image_change(&self) -> Option<String> {
        let before = self.image_before.as_ref().filter(|before| **before != self.settings.image)?;
        Some(format!("image {before} -> {}", self.settings.image))
    }
}

fn question(plan: &Plan, pending: usize) -> String {
    let mut parts = Vec::new();
    parts.extend(plan.image_change().map(|change| format!("change {change}")));
    if pending > 0 {
        parts.push(format!("apply {}", count_of(pending, "object")));
    }
    if !plan.work.convert.is_empty() {
        let nodes: Vec<String> = plan
            .work
            .convert
            .iter()
            .map(|name| {
                let pods = plan.pods.get(name).copied().unwrap_or(0);
                format!("{name} ({})", count_of(pods, "pod"))
            })
            .collect();
        parts.push(format!(
            "turn {} into {}: {}",
            words::nodes(nodes.len()),
            if nodes.len() == 1 { "an edge node" } else { "edge nodes" },
            nodes.join(", ")
        ));
    }
    if !plan.work.upgrade.is_empty() {
        let release = plan.release.as_deref().map(words::version).unwrap_or_default();
        parts.push(format!("upgrade to {release}: {}", join(&plan.work.upgrade)));
    }
    if !plan.work.label.is_empty() {
        parts.push(format!("label as cloud: {}", join(&plan.work.label)));
    }
    let later = if plan.work.later.is_empty() {
        String::new()
    } else {
        format!(" Not ready, the tunnel server starts there later: {}.", join(&plan.work.later))
    };
    let agents = node_agents::intent(&plan.agents, plan.keep_agents);
    let agents = agents.map(|text| format!("; {text}")).unwrap_or_default();
    format!("This will {}.{later} Pods keep running{agents}. Go on?", parts.join("; "))
}

/// `--dry-run=client`: the objects on stdout, fit for `kubectl diff -f -`; the plan on stderr.
fn show(console: Console, plan: &Plan) -> Result<(), Error> {
    for object in &plan.objects {
        let text = serde_saphyr::to_string(&object.body)
            .map_err(|error| Error::Failed(format!("cannot print an object: {error}")))?;
        console.raw(format_args!("---\n{text}"))?;
    }
    if let Some(change) = plan.image_change() {
        console.note(format!("{change} (dry run)"));
    }
    for (node, step) in steps(plan) {
        console.note(format!("node/{node} {step} (dry run)"));
    }
    if let Some(agents) = node_agents::intent(&plan.agents, plan.keep_agents) {
        console.note(format!("{agents} (dry run)"));
    }
    Ok(())
}

/// `--dry-run=server`.
async fn dry_run(session: &Session, console: Console, plan: &Plan) -> Result<(), Error> {
    for object in &plan.objects {
        if !object.kind.namespaced || !plan.settings.create_namespace {
            objects::apply_dry(session, object).await?;
        }
        let label = object.kind.label();
        console.line(format!("{label}/{} serverside-applied (server dry run)", object.name()))?;
    }
    let nodes: Api<Node> = Api::all(session.client.clone());
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    for (names, value) in [(&plan.work.label, "false"), (&plan.work.convert, "true")] {
        for name in names {
            let patch = json!({ "metadata": { "labels": { names::LABEL_EDGE_WORKER: value } } });
            nodes.patch_metadata(name, &params, &Patch::Merge(patch)).await?;
        }
    }
    if let Some(change) = plan.image_change() {
        console.line(format!("{change} (server dry run)"))?;
    }
    for (node, step) in steps(plan) {
        console.line(format!("node/{node} {step} (server dry run)"))?;
    }
    if let Some(agents) = node_agents::intent(&plan.agents, plan.keep_agents) {
        console.line(format!("{agents} (server dry run)"))?;
    }
    Ok(())
}

/// A line for each node.
fn steps(plan: &Plan) -> Vec<(&str, &'static str)> {
    let mut steps: Vec<(&str, &'static str)> = Vec::new();
    steps.extend(plan.work.label.iter().map(|name| (name.as_str(), "labeled as cloud node")));
    steps.extend(plan.work.convert.iter().map(|name| (name.as_str(), "converted to edge node")));
    steps.extend(plan.work.upgrade.iter().map(|name| (name.as_str(), "upgraded")));
    let same = plan.work.converted.difference(&plan.work.upgrade);
    steps.extend(same.map(|name| (name.as_str(), "already converted")));
    steps.extend(
        plan.work.later.iter().map(|name| (name.as_str(), "not ready: gets the tunnel server later")),
    );
    steps
}
