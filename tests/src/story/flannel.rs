//! flannel as the cluster's network: its agent asks the API server for its own pod, its node and all nodes before a pod
//! gets an address. Converted, cut at once, and without power: everything on the node is there again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::convert::{CONVERT, is_converted, only_agents_restarted};
use super::reboot::{address, exec, expected, power_cycle};
use super::workload::{self, NAMESPACE};
use super::{Story, reads_well, seconds};
use crate::cluster::EDGE;
use crate::net::Fault;
use crate::observe::containers::Container;
use crate::observe::processes;
use crate::wait::until_true;

/// Agents and kubelet begin again what failed, with pauses of up to ten seconds at first.
const REACHED_WITHIN: Duration = Duration::from_secs(60);

/// kubelet compares and patches on, one pod after the other.
const REPORTED_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn flannel(story: &mut Story) -> Result<()> {
    story.teller.step("given: a network by flannel, and pods of business on it");
    workload::apply_shop(&story.cluster)?;
    let agent = story.cluster.kubectl.ok([
        "get",
        "pods",
        "-n",
        "kube-flannel",
        "--field-selector=spec.nodeName=edge-node",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ])?;
    let before = story.containers()?;

    story.teller.step("convert");
    let finished = story.kubectl_ok(CONVERT)?;
    reads_well(&finished)?;
    story.teller.figure("convert", &seconds(finished.took));
    let told = finished.stdout();
    story.teller.check(told.contains(agent.trim()), "it names flannel's agent", &told)?;

    story.teller.step("cut the link at once, take the node's power away and give it back");
    let pods = expected(story)?;
    story.cluster.shop.cut(Fault::BlackHole)?;
    let offline = power_cycle(story, &pods)?;
    story.teller.figure(&format!("offline reboot until all {} pods serve", pods.len()), &seconds(offline));

    story.teller.step("every pod asks every other, still cut");
    let took = until_true("pods to reach each other", REACHED_WITHIN, || reach(story))?;
    story.teller.figure("and reach each other by address and by Service", &seconds(took));

    story.teller.step("restore the link");
    story.cluster.shop.restore()?;
    story.cluster.wait_ready(EDGE)?;
    is_converted(story)?;
    until_true("the API server to know every container that runs now", REPORTED_WITHIN, || {
        let now = story.containers()?;
        let waiting = |(name, old): (&String, &Container)| match now.get(name) {
            Some(now) if now.ready && now.id != old.id => None,
            now => Some(format!("{name}: {now:?}")),
        };
        let waiting: Vec<String> = before.iter().filter_map(waiting).collect();
        Ok((!waiting.is_empty()).then(|| waiting.join("; ")))
    })?;
    story.teller.holds(&format!("all {} containers are reported as they run now", before.len()));

    story.teller.step("revert");
    let before = story.containers()?;
    let finished = story.kubectl_ok(super::revert::REVERT)?;
    only_agents_restarted(story, &before, &finished)
}

/// What does not work between the pods on the node; asked from inside of each.
fn reach(story: &Story) -> Result<Option<String>> {
    let running = processes::of_pods(EDGE);
    let mut pods: BTreeMap<String, (i32, String)> = BTreeMap::new();
    for (uid, pod) in expected_offline(story)? {
        let process = running.iter().find(|process| process.pod_uid == uid);
        let Some(pid) = process.map(|process| process.pid) else {
            return Ok(Some(format!("{pod} does not run")));
        };
        match address(pid) {
            Ok(address) => pods.insert(pod, (pid, address)),
            Err(error) => return Ok(Some(format!("{pod}: {error:#}"))),
        };
    }
    let service = story.cluster.kubectl.ok([
        "get",
        "service",
        "-n",
        NAMESPACE,
        "web",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    for (name, (pid, _)) in &pods {
        let others = pods.iter().map(|(other, (_, address))| (other.as_str(), address.as_str()));
        for (what, host) in others.chain([("Service web", service.trim())]) {
            let url = format!("http://{host}/");
            if let Err(error) = exec(*pid, &["curl", "-s", "-m", "2", "-o", "/dev/null", &url]) {
                return Ok(Some(format!("{name} does not reach {what} ({host}): {error:#}")));
            }
        }
    }
    Ok(None)
}

/// By UID: the pods of business, as the API server knows them.
fn expected_offline(story: &Story) -> Result<BTreeMap<String, String>> {
    let pods = story.cluster.kubectl.items(["pods", "-n", NAMESPACE])?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a pod without a name");
    pods.iter().map(|pod| Ok((text(&pod["metadata"]["uid"])?, text(&pod["metadata"]["name"])?))).collect()
}
