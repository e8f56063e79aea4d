//! `kill -9` of the hub in the middle of anything: it is back at once, and kubelet lists nothing
//! again from the API server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Story, seconds};
use crate::cluster::{EDGE, MASTER, ready_condition};
use crate::machine::Machine;
use crate::observe::audit::Since;
use crate::observe::containers;
use crate::observe::running::Running;
use crate::wait::{Seen, throughout, until, until_true};

/// A busy machine takes its time to start any process; what waits for a time-out of somebody's takes longer.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// What new TLS sessions and resumed watches may cost; one list of what a small node sees costs more.
const BYTES: u64 = 64 << 10;

pub(super) fn crash(story: &mut Story) -> Result<()> {
    let edge = story.cluster.edge.clone();
    let before = story.containers()?;

    story.teller.step("while nothing happens");
    story.cluster.shop.wait_quiet()?;
    let since = Since::now(&story.cluster.master, EDGE)?;
    let bytes = story.cluster.shop.uplink_bytes()?;
    let back = kill(story, &edge)?;
    story.teller.figure("hub active and healthy again after kill -9", &format!("{} ms", back.as_millis()));
    // Kubelet's watches come back within a few seconds; a relist would be seen by then.
    let kubectl = &story.cluster.kubectl;
    throughout("the node stays Ready", Duration::from_secs(15), Duration::from_secs(1), || {
        let ready = ready_condition(&kubectl.json(["get", "node", EDGE])?);
        Ok((ready != "True").then_some(ready))
    })?;
    let lists = since.lists()?;
    story.teller.check_none(&lists, "no list reaches the API server with the node's credentials")?;
    let watches = since.requests()?.len();
    let after = story.cluster.shop.uplink_bytes()?;
    let cost = (after.0 - bytes.0) + (after.1 - bytes.1);
    story.teller.figure(
        "over the uplink in the 15 s after it",
        &format!("{} KiB, {watches} watches resumed", cost >> 10),
    );
    story.teller.check(cost < BYTES, "no more than new connections cost", format!("{} KiB", cost >> 10))?;

    story.teller.step("while logs are followed");
    let words = ["logs", "-f", "--tail=1", "nginx"];
    story.teller.command("kubectl", &words);
    let running = Running::start(story.cluster.kubectl.command(words))?;
    running.wait_for("\"", Duration::from_secs(30))?;
    kill(story, &edge)?;
    drop(running);
    let logs = until_true("kubectl logs to work again", Duration::from_secs(60), || {
        let finished =
            story.cluster.kubectl.run_for(Duration::from_secs(10), ["logs", "--tail=1", "nginx"])?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    story.teller.figure("kubectl logs works again after kill -9", &seconds(logs));

    story.teller.step("five times in a row, while a pod starts");
    let kubectl = &story.cluster.kubectl;
    let image = format!("--image={}", crate::build::NGINX);
    let place = r#"--overrides={"spec":{"nodeSelector":{"kubernetes.io/hostname":"edge-node"},"terminationGracePeriodSeconds":1}}"#;
    kubectl.ok(["run", "late", &image, "--image-pull-policy=IfNotPresent", place])?;
    for _ in 0..5 {
        kill(story, &edge)?;
    }
    let started = Instant::now();
    story.cluster.wait_pod_ready("default", "late", Duration::from_secs(60))?;
    story.teller.figure("the pod is Ready after the last kill", &seconds(started.elapsed()));
    story.cluster.kubectl.ok(["delete", "pod", "late", "--timeout=60s"])?;

    story.teller.step("the tunnel server, too");
    let master = story.cluster.master.clone();
    let pid = master.sh("pgrep -f '^[^ ]*yurtd-cloud tunnel-server' | head -1")?;
    ensure!(!pid.trim().is_empty(), "no tunnel server runs on {MASTER}");
    master.sh(&format!("kill -9 {}", pid.trim()))?;
    let logs = until_true("kubectl logs to work again", Duration::from_secs(90), || {
        let finished =
            story.cluster.kubectl.run_for(Duration::from_secs(10), ["logs", "--tail=1", "nginx"])?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    story.teller.figure("kubectl logs works again after kill -9 of the tunnel server", &seconds(logs));

    story.cluster.wait_ready(EDGE)?;
    let faults = containers::changes(&before, &story.containers()?);
    story.teller.check_none(&faults, "same pods, same containers, no restart")
}

/// Kills the hub; how long until a new one is active and healthy.
fn kill(story: &Story, edge: &Machine) -> Result<Duration> {
    let old = main_pid(edge)?;
    ensure!(old != "0", "no hub runs on {EDGE}");
    story.teller.typed(&format!("kill -9 {old}            (yurtd edge, on {EDGE})"));
    edge.sh(&format!("kill -9 {old}"))?;
    let (_, took) = until("a new hub", Duration::from_secs(30), || {
        let new = main_pid(edge)?;
        if new == "0" || new == old {
            return Ok(Seen::NotYet(format!("its process is {new}")));
        }
        let health = edge.exec(["curl", "-s", "-f", "-m", "1", "http://127.0.0.1:10267/healthz"])?;
        let active = edge.exec(["systemctl", "is-active", "yurtd.service"])?;
        Ok(if health.ok() && active.ok() { Seen::Yes(()) } else { Seen::NotYet(active.stdout()) })
    })?;
    story.teller.check(took < BACK_WITHIN, &format!("back after {} ms", took.as_millis()), seconds(took))?;
    Ok(took)
}

fn main_pid(edge: &Machine) -> Result<String> {
    let text = edge.exec(["systemctl", "show", "-p", "MainPID", "--value", "yurtd.service"])?.success()?;
    text.lines().next().map(|line| line.trim().to_owned()).context("systemd knows no main process")
}
