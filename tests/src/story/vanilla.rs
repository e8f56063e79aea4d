//! S1–S3: what vanilla Kubernetes does. If this did not fail, the rest would prove nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::convert::CONVERT;
use super::refusals::refused;
use super::{Story, seconds, workload};
use crate::cluster::EDGE;
use crate::net::Fault;
use crate::observe::processes;
use crate::wait::{self, until_true};

/// S1: `logs`, `exec` and `port-forward` fail.
pub(super) fn unreachable(story: &mut Story) -> Result<()> {
    story.teller.step("ask a vanilla cluster for a pod that runs behind NAT");
    let address = story.nginx_address()?;
    story.ask_on_edge(&format!("http://{address}/"))?;
    story.teller.holds(&format!("nginx answers a client on the node, at {address}"));
    let commands: [&[&str]; 3] =
        [&["logs", "nginx"], &["exec", "nginx", "--", "true"], &["port-forward", "pod/nginx", "8888:80"]];
    let kubectl = &story.cluster.kubectl;
    // Each waits half a minute in vain: all three at once.
    let finished = thread::scope(|scope| {
        let running =
            commands.map(|words| scope.spawn(move || kubectl.run_for(Duration::from_secs(90), words)));
        running.map(|thread| thread.join().map_err(|_| anyhow!("it panicked")).and_then(|result| result))
    });
    for (words, finished) in commands.iter().zip(finished) {
        let finished = finished?;
        story.teller.command("kubectl", words);
        story.teller.output(&finished.stderr());
        let refused = finished.code.is_some_and(|code| code != 0) && finished.stderr().contains(":10250");
        story.teller.check(refused, &format!("fails after {}", seconds(finished.took)), &finished)?;
    }
    Ok(())
}

/// S2: the link is lost for a minute.
pub(super) fn evicted(story: &mut Story) -> Result<()> {
    story.teller.step("cut the shop's link: packets vanish, both ways");
    story.cluster.shop.cut(Fault::BlackHole)?;
    let cut = Instant::now();
    let not_ready = story.cluster.wait_not_ready(EDGE, Duration::from_secs(120))?;
    story.teller.figure("node NotReady after the cut", &seconds(not_ready));
    until_true("nginx to be evicted", Duration::from_secs(60), || {
        let pod = story.cluster.kubectl.run([
            "get",
            "pod",
            "nginx",
            "-o",
            "jsonpath={.metadata.deletionTimestamp}",
        ])?;
        let there = pod.ok() && pod.stdout().is_empty();
        Ok(there.then(|| "it is still there".to_owned()))
    })?;
    story.teller.figure("pod evicted after the cut", &seconds(cut.elapsed()));
    let address = story.nginx_address().ok();
    if let Some(address) = address {
        story.ask_on_edge(&format!("http://{address}/"))?;
        story.teller.holds("although it runs perfectly well: it still answers on the node");
    }

    // Asked here because a node that is down costs a minute to make.
    story.teller.step("convert while the node is down");
    let finished = story.kubectl(CONVERT)?;
    refused(story, &finished, 2, &[EDGE, "not ready", "nothing was changed"])?;

    story.teller.step("restore the link");
    story.cluster.shop.restore()?;
    story.cluster.wait_ready(EDGE)?;
    until_true("nginx to be gone", Duration::from_secs(60), || {
        let pod = story.cluster.kubectl.run(["get", "pod", "nginx"])?;
        Ok((!pod.stderr().contains("NotFound")).then(|| pod.to_string()))
    })?;
    story.kubectl(&["get", "pod", "nginx"])?;
    story.teller.holds("the pod is gone: it was evicted");
    story.teller.step("create nginx again");
    workload::apply_nginx(story)
}

/// S3: the node reboots while the link is cut.
pub(super) fn stays_dark(story: &mut Story) -> Result<()> {
    // The node is away for as long as a minute, which evicts a pod that lets itself be evicted (S2); here only
    // the reboot is to tell.
    story.teller.step("an nginx that tolerates its node's absence");
    workload::replace_nginx_by_patient(story)?;
    story.teller.step("cut the link, then take the node's power away and give it back");
    story.cluster.shop.cut(Fault::BlackHole)?;
    story.cluster.edge.power_cycle()?;
    let edge = story.cluster.edge.clone();
    until_true("kubelet to run", Duration::from_secs(60), || {
        let state = edge.exec(["systemctl", "is-active", "kubelet", "containerd"])?;
        Ok((!state.ok()).then(|| state.to_string()))
    })?;
    // The same boot with the link up has the pod answering after six to seven seconds.
    let watched = Duration::from_secs(25);
    wait::throughout("no container", watched, Duration::from_millis(500), || {
        let found = processes::of_pods(EDGE);
        Ok((!found.is_empty()).then(|| format!("{found:?}")))
    })?;
    story
        .teller
        .holds(&format!("kubelet and containerd run, and {} later still no container", seconds(watched)));

    story.teller.step("restore the link");
    story.cluster.shop.restore()?;
    let restored = Instant::now();
    until_true("nginx to run again", Duration::from_secs(120), || {
        let found = processes::of_pods(EDGE)
            .iter()
            .any(|p| processes::answers(p.pid, "/", "nginx on the edge").is_ok());
        Ok((!found).then(|| "it does not answer".to_owned()))
    })?;
    story.teller.figure("nginx runs after the link came back", &seconds(restored.elapsed()));
    story.cluster.wait_ready(EDGE)?;
    story.cluster.wait_pod_ready("default", "nginx", Duration::from_secs(60))?;
    workload::replace_patient_by_nginx(story)
}
