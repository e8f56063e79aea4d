//! `kubectl yurt tunnel diagnose`: what is broken on the way to a node is named, each in its turn.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Story;
use crate::cluster::{EDGE, MASTER};
use crate::wait::until_true;

/// A Lease is old after 40 s, a session that hears nothing is given up earlier, and the keeper looks every ten seconds.
const NAMED: Duration = Duration::from_secs(150);
/// Somebody else's table on a machine, for packets that come in.
const SHUT: &str = "add table inet shut; add chain inet shut input { type filter hook input priority -300; }; \
                    add rule inet shut input tcp dport";

pub(super) fn diagnose(story: &mut Story) -> Result<()> {
    let (edge, master) = (story.cluster.edge.clone(), story.cluster.master.clone());
    story.teller.step("a way that is whole");
    named(story, &[])?;
    let words = ["yurt", "tunnel", "diagnose", EDGE];
    let finished = story.kubectl(&words)?;
    story.teller.output(&finished.stdout());
    story.teller.check(finished.ok(), "every hop is well", &finished)?;

    story.teller.step("somebody flushes the redirect rules");
    on(story, MASTER, "nft flush chain inet yurt output");
    master.sh("nft flush chain inet yurt output")?;
    let put_back = |check: &Value| {
        check["check"] == "rules" && check["message"].as_str().is_some_and(|text| text.contains("put back"))
    };
    until_true("the rules to be put back", NAMED, || {
        let (checks, reaches) = walk(story)?;
        Ok((!(reaches && checks.iter().any(put_back))).then(|| format!("{checks:?}")))
    })?;
    story.teller.holds("they are put back, and it says that somebody changed them");

    story.teller.step("kubelet's port is closed");
    let reject = format!("nft '{SHUT} 10250 reject with tcp reset'");
    on(story, EDGE, &reject);
    edge.sh(&reject)?;
    named(story, &[("kubelet", "KubeletPortClosed")])?;
    edge.sh("nft delete table inet shut")?;

    story.teller.step("kubelet is stopped");
    on(story, EDGE, "systemctl stop kubelet");
    edge.sh("systemctl stop kubelet")?;
    named(story, &[("node", "NodeSilent"), ("kubelet", "KubeletStopped")])?;
    story.teller.check(
        edge.sh("systemctl is-active kubelet || true")?.trim() == "inactive",
        "a kubelet that somebody has stopped stays stopped",
        "it runs",
    )?;
    edge.sh("systemctl start kubelet")?;
    story.cluster.wait_ready(EDGE)?;

    story.teller.step("a firewall drops the port for agents");
    let drop = format!("nft '{SHUT} 10262 drop'");
    on(story, MASTER, &drop);
    master.sh(&drop)?;
    named(story, &[("session", "NotConnected"), ("agent", "Silent")])?;
    let status = story.kubectl(&["yurt", "tunnel", "status", "-o", "wide"])?;
    story.teller.output(&status.stdout());
    story.teller.check(
        status.ok() && status.stdout().lines().any(|line| line.starts_with(EDGE) && line.contains("no, for")),
        "status says since when it is away",
        &status,
    )?;
    master.sh("nft delete table inet shut")?;
    named(story, &[])?;
    Ok(())
}

fn on(story: &Story, machine: &str, command: &str) {
    story.teller.typed(&format!("{command}            (on {machine})"));
}

/// What it finds, and whether the way leads to the node.
fn walk(story: &Story) -> Result<(Vec<Value>, bool)> {
    let finished = story
        .cluster
        .kubectl
        .run_for(Duration::from_secs(120), ["yurt", "tunnel", "diagnose", EDGE, "-o", "json"])?;
    let document: Value =
        serde_json::from_str(&finished.stdout()).map_err(|error| anyhow::anyhow!("{error}: {finished}"))?;
    let reaches = document["reaches"] == true;
    ensure!(reaches == finished.ok(), "the exit code says something else than the document: {finished}");
    Ok((document["checks"].as_array().cloned().unwrap_or_default(), reaches))
}

/// Waits until it names these hops with these codes, and no other one as failed.
fn named(story: &mut Story, hops: &[(&str, &str)]) -> Result<()> {
    let wanted: Vec<String> = hops.iter().map(|(check, code)| format!("{check} {code}")).collect();
    let took = until_true(&format!("{wanted:?} to be named"), NAMED, || {
        let (checks, _) = walk(story)?;
        let failed = checks.iter().filter(|check| check["verdict"] == "failed");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let failed: Vec<String> =
            failed.map(|check| format!("{} {}", word(&check["check"]), word(&check["code"]))).collect();
        Ok((failed != wanted).then(|| format!("{failed:?}")))
    })?;
    if !hops.is_empty() {
        story.teller.holds(&format!("named after {:.0} s: {}", took.as_secs_f64(), wanted.join(", ")));
    }
    Ok(())
}
