//! S6: an autonomous node loses its link for a minute, and nobody who uses its pods can tell.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Story, ask, seconds, workload};
use crate::cluster::{EDGE, condition};
use crate::net::Fault;
use crate::observe::containers;
use crate::observe::prober::Prober;
use crate::wait::{throughout, until_true};

/// The annotation as users of the original write it.
const SYNONYM: &str = "node.beta.alibabacloud.com/autonomy";

/// S6.
pub(super) fn survives_a_cut(story: &mut Story) -> Result<()> {
    story.teller.step("make the node autonomous");
    let set = format!("{SYNONYM}=true");
    story.kubectl_ok(&["annotate", "node", EDGE, &set])?;
    wait_in_effect(story, true)?;
    story.teller.holds("the annotation of the original takes effect");
    let unset = format!("{SYNONYM}-");
    story.kubectl_ok(&["annotate", "node", EDGE, &unset])?;
    wait_in_effect(story, false)?;
    enable(story)?;

    let before = story.containers()?;
    let address = story.nginx_address()?;
    let service = story.cluster.kubectl.ok([
        "get",
        "service",
        "-n",
        workload::NAMESPACE,
        "web",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    let edge = story.cluster.edge.clone();
    let urls = [format!("http://{address}/"), format!("http://{service}/")];
    let prober =
        Prober::start(Duration::from_secs(1), move || urls.iter().try_for_each(|url| ask(&edge, url)));

    story.teller.step("cut the link; a client on the node asks nginx and the Service once a second");
    let bytes = story.cluster.shop.uplink_bytes()?;
    story.cluster.shop.cut(Fault::BlackHole)?;
    let cut = Instant::now();
    let not_ready = story.cluster.wait_not_ready(EDGE, Duration::from_secs(120))?;
    story.teller.figure("node NotReady after the cut", &seconds(not_ready));
    // A minute in all, and longer than it took to evict the vanilla pod.
    let rest = Duration::from_secs(60).max(not_ready + Duration::from_secs(12)).saturating_sub(cut.elapsed());
    let kubectl = &story.cluster.kubectl;
    throughout("nginx stays as it is", rest, Duration::from_secs(1), || {
        let pod = kubectl.json(["get", "pod", "nginx"])?;
        let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
        let ready = condition(&pod, "Ready");
        Ok((deleted || ready != "True").then(|| format!("deleted: {deleted}, Ready: {ready}")))
    })?;
    story.kubectl_ok(&["get", "nodes"])?;
    story.kubectl_ok(&["get", "pods", "-A", "--field-selector=spec.nodeName=edge-node"])?;
    story
        .teller
        .holds(&format!("cut for {}: no pod deleted, nginx Ready throughout", seconds(cut.elapsed())));

    story.teller.step("restore the link");
    story.cluster.shop.restore()?;
    let back = story.cluster.wait_ready(EDGE)?;
    story.teller.figure("node Ready after the link came back", &seconds(back));
    let answers = prober.finish()?;
    let failures: Vec<String> =
        answers.failures.iter().map(|(at, why)| format!("after {}: {why}", seconds(*at))).collect();
    story
        .teller
        .check_none(&failures, &format!("each of {} requests on the node was answered", 2 * answers.asked))?;
    story
        .teller
        .figure("longest time between two answers (asked once a second)", &seconds(answers.longest_gap));
    let faults = containers::changes(&before, &story.containers()?);
    story.teller.check_none(&faults, "same pods, same containers, no restart")?;
    let after = story.cluster.shop.uplink_bytes()?;
    story.teller.figure(
        "over the uplink, cut and recovery",
        &format!("{} KiB out, {} KiB in", (after.0 - bytes.0) >> 10, (after.1 - bytes.1) >> 10),
    );
    Ok(())
}

/// `kubectl yurt autonomy enable`; the policies know the node when this returns.
pub(super) fn enable(story: &mut Story) -> Result<()> {
    let finished = story.kubectl_ok(&["yurt", "autonomy", "enable", EDGE, "--yes"])?;
    super::reads_well(&finished)?;
    wait_in_effect(story, true)?;
    story.kubectl_ok(&["yurt", "autonomy", "status"])?;
    Ok(())
}

/// The policies' parameter names the autonomous nodes, and the policies go by it: the API server would refuse the
/// node-controller, and only because of us, what taint-based eviction does.
fn wait_in_effect(story: &Story, expected: bool) -> Result<()> {
    until_true("the policies to know", Duration::from_secs(30), || {
        let parameter = story.cluster.kubectl.json(["get", "autonomousnodes", "yurt-autonomous-nodes"])?;
        let is = parameter["spec"]["nodes"].get(EDGE).is_some();
        Ok((is != expected).then(|| parameter["spec"].to_string()))
    })?;
    until_true("the policies to act", Duration::from_secs(60), || {
        let tried = story.cluster.kubectl.run([
            "delete",
            "pod",
            "nginx",
            "--dry-run=server",
            "--as=system:serviceaccount:kube-system:node-controller",
        ])?;
        let refused = !tried.ok() && tried.stderr().contains("is autonomous (kubectl yurt autonomy)");
        // Anything but these two answers is neither.
        let is = if expected { refused } else { tried.ok() };
        Ok((!is).then(|| tried.to_string()))
    })?;
    for kind in ["validatingadmissionpolicy", "validatingadmissionpolicybinding"] {
        let found = story.cluster.kubectl.run(["get", kind, "yurt-autonomy-eviction"])?;
        ensure!(found.ok(), "{found}");
    }
    Ok(())
}
