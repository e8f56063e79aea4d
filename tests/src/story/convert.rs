//! S4: the cluster becomes an edge cluster, and no container of business notices.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Story, reads_well, seconds, way_in, workload};
use crate::machine::Machine;
use crate::observe::containers::{self, Containers};
use crate::observe::{Snapshot, node, objects};
use crate::paths;
use crate::run::Finished;
use crate::wait::until_true;

pub(super) const CONVERT: &[&str] = &["yurt", "convert", "--cloud-nodes", "master-node", "--yes"];
const HUB: &str = "127.0.0.1:10261";

/// S4.
pub(super) fn convert(story: &mut Story) -> Result<()> {
    story.teller.step("given: ten more pods with tokens, ConfigMaps, Secrets, an init container, a Service");
    // A fresh one: S3 has restarted it.
    story.cluster.kubectl.ok(["delete", "pod", "nginx", "--now", "--ignore-not-found"])?;
    workload::apply_nginx(story)?;
    workload::apply_shop(&story.cluster)?;
    save(&snapshot(story)?)?;
    let before = story.containers()?;

    story.teller.step("convert");
    let finished = story.kubectl_ok(CONVERT)?;
    reads_well(&finished)?;
    story.teller.figure("convert", &seconds(finished.took));
    story.teller.check(
        finished.took < Duration::from_secs(120),
        "done in under two minutes",
        seconds(finished.took),
    )?;

    is_converted(story)?;
    only_agents_restarted(story, &before, &finished)?;
    way_in::judge(story)?;
    story.kubectl_ok(&["yurt", "status"])?;
    Ok(())
}

/// What a conversion or a revert did to the containers on the edge, and that it says so.
pub(super) fn only_agents_restarted(story: &Story, before: &Containers, finished: &Finished) -> Result<()> {
    let faults = containers::changes_but_agents(before, &story.containers()?);
    let agents = containers::agents(before);
    let business = before.values().filter(|container| !container.agent).count();
    story.teller.check_none(
        &faults,
        &format!(
            "all {business} containers of business on the edge have the same id and no restart; restarted once: {}",
            agents.iter().cloned().collect::<Vec<_>>().join(", ")
        ),
    )?;
    let told = finished.stdout();
    let untold: Vec<String> = agents.into_iter().filter(|agent| !told.contains(agent.as_str())).collect();
    story.teller.check_none(&untold, "and the command has named them")
}

/// Components run, in the cloud and at the edge, and kubelet talks to the hub.
pub(super) fn is_converted(story: &mut Story) -> Result<()> {
    for (what, kind) in [
        ("deployment/yurt-controller", "controller"),
        ("daemonset/yurt-tunnel-server", "tunnel server"),
        ("daemonset/yurtd", "keeper"),
    ] {
        story
            .cluster
            .kubectl
            .ok(["rollout", "status", "-n", "kube-system", what, "--timeout=60s"])
            .with_context(|| format!("the {kind} does not run"))?;
    }
    story.teller.holds("controller, tunnel server and keeper run");
    let edge = story.cluster.edge.clone();
    edge_is_converted(story, &edge)
}

/// The node's part of it.
pub(super) fn edge_is_converted(story: &mut Story, machine: &Machine) -> Result<()> {
    let name = machine.name().to_owned();
    machine.exec(["systemctl", "is-active", "yurtd.service", "yurtd.socket"])?.success()?;
    story.teller.holds(&format!("hub and tunnel agent are active on {name}"));
    story.cluster.wait_ready(&name)?;
    // A connection that kubelet gave up may take a moment to go.
    until_true(&format!("kubelet of {name} to talk to the hub alone"), Duration::from_secs(20), || {
        let ends = node::connections(machine, "kubelet")?;
        let to_hub = ends.iter().any(|end| end.ends_with(HUB));
        let direct = ends.iter().any(|end| end.ends_with(":6443"));
        Ok((!to_hub || direct).then(|| format!("connections to {}", ends.join(" "))))
    })?;
    story.teller.typed(&format!("testbed sh {name} -- ss -tnp"));
    let ends = node::connections(machine, "kubelet")?;
    story.teller.holds(&format!("kubelet's connections: {}; none to 6443", ends.join(" ")));
    Ok(())
}

/// And nobody talks to a hub any more.
pub(super) fn edge_is_vanilla(story: &mut Story, machine: &Machine) -> Result<()> {
    let name = machine.name().to_owned();
    until_true(&format!("kubelet of {name} to talk to the API server"), Duration::from_secs(30), || {
        let ends = node::connections(machine, "kubelet")?;
        let to_hub = ends.iter().any(|end| end.ends_with(HUB));
        let direct = ends.iter().any(|end| end.ends_with(":6443"));
        Ok((to_hub || !direct).then(|| format!("connections to {}", ends.join(" "))))
    })?;
    story.cluster.wait_ready(&name)?;
    story.teller.holds(&format!("kubelet of {name} talks to the API server again, and the node is Ready"));
    Ok(())
}

/// Both machines and the whole cluster.
pub(super) fn snapshot(story: &Story) -> Result<Snapshot> {
    let mut all = objects::snapshot(&story.cluster.kubectl)?;
    for machine in [&story.cluster.master, &story.cluster.edge] {
        all.extend(node::snapshot(machine)?);
    }
    Ok(all)
}

/// The snapshot outlives the process: steps may be played one at a time.
fn save(snapshot: &Snapshot) -> Result<()> {
    fs::write(saved(), serde_json::to_vec(snapshot)?).context("keeping the snapshot")
}

pub(super) fn before() -> Result<Snapshot> {
    let text = fs::read(saved()).context("reading the snapshot that S4 keeps")?;
    Ok(serde_json::from_slice(&text)?)
}

fn saved() -> PathBuf {
    paths::state().join("before-convert.json")
}

/// Files, rules and processes of ours on a machine; `None` when there are none.
pub(super) fn nothing_of_ours(machine: &Machine) -> Result<Option<String>> {
    let now = node::snapshot(machine)?;
    let traces: Vec<String> = ["name with yurt", "rule of ours", "process"]
        .iter()
        .flat_map(|section| now.get(&format!("{} {section}", machine.name())).into_iter().flatten().cloned())
        .collect();
    Ok((!traces.is_empty()).then(|| traces.join("\n  ")))
}
