//! A second conversion of the same cluster, with what may go wrong and what may join.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::convert::{
    CONVERT, edge_is_converted, edge_is_vanilla, is_converted, nothing_of_ours, only_agents_restarted,
};
use super::refusals::refused;
use super::revert::{KUBELET_COLLECTS, REVERT};
use super::{Story, reads_well, seconds};
use crate::cluster::{self, EDGE};
use crate::machine::Machine;
use crate::net::Site;
use crate::observe::{node, objects};
use crate::wait::until_true;

const SECOND: &str = "edge-two";

/// The node has no image: an error that says so, the node as it was; then convert finishes the work.
pub(super) fn without_the_image(story: &mut Story) -> Result<()> {
    let edge = story.cluster.edge.clone();
    let before = story.containers()?;
    let image = story.product.image.clone();
    story.teller.step(&format!("remove {image} from {EDGE}"));
    edge.exec(["ctr", "-n", "k8s.io", "images", "rm", &image])?.success()?;
    let words = [CONVERT, &["--timeout", "40s"]].concat();
    let finished = story.kubectl(&words)?;
    reads_well(&finished)?;
    refused(story, &finished, 1, &[EDGE, "image", "undone"])?;
    let ends = node::connections(&edge, "kubelet")?;
    story.teller.check(
        !edge.root().join("opt/yurt").exists() && ends.iter().any(|end| end.ends_with(":6443")),
        "the node is as it was",
        ends.join(" "),
    )?;
    let left = objects::of_ours(&story.cluster.kubectl)?;
    story.teller.check_none(&left, "and so is the cluster")?;

    story.teller.step("give the node its image and convert again");
    cluster::import(&edge, &story.product.archive)?;
    let finished = story.kubectl_ok(CONVERT)?;
    story.teller.figure("the second convert", &seconds(finished.took));
    is_converted(story)?;
    only_agents_restarted(story, &before, &finished)
}

/// Convert on a converted cluster says so and changes nothing.
pub(super) fn convert_twice(story: &mut Story) -> Result<()> {
    let edge = story.cluster.edge.clone();
    let state = |story: &Story| -> Result<Vec<String>> {
        let objects = objects::of_ours(&story.cluster.kubectl)?;
        let process = edge.exec(["systemctl", "show", "-p", "MainPID", "yurtd.service"])?.success()?;
        let versions = story.cluster.kubectl.ok([
            "get",
            "daemonsets,deployments,clusterroles,validatingadmissionpolicies,mutatingadmissionpolicies",
            "-A",
            "-l",
            "app.kubernetes.io/part-of=kubectl-yurt",
            "-o",
            "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation} {.metadata.uid}{\"\\n\"}{end}",
        ])?;
        Ok(objects.into_iter().chain([process]).chain(versions.lines().map(str::to_owned)).collect())
    };
    let before = state(story)?;
    story.teller.step("convert once more");
    let finished = story.kubectl_ok(CONVERT)?;
    reads_well(&finished)?;
    let text = (finished.stdout() + &finished.stderr()).to_lowercase();
    story.teller.check(text.contains("already"), "says that it is converted already", &finished)?;
    let after = state(story)?;
    let changed: Vec<String> = before
        .iter()
        .filter(|line| !after.contains(line))
        .chain(after.iter().filter(|line| !before.contains(line)))
        .cloned()
        .collect();
    story.teller.check_none(&changed, "no object and no process changed")
}

/// A node that joins later and gets the label.
pub(super) fn second_edge(story: &mut Story) -> Result<()> {
    story.teller.step("a second shop with the same private addresses, and a machine in it: kubeadm join");
    let site = Site::create("shop-two", Ipv4Addr::new(10, 80, 0, 12), story.cluster.shop.inside)?;
    let address = address_of(story, EDGE)?;
    let machine = story.cluster.add_edge(SECOND, &site, address.parse()?)?;
    story.cluster.wait_ready(SECOND)?;
    let label = "openyurt.io/is-edge-worker=true";
    story.kubectl_ok(&["label", "node", SECOND, label])?;
    let took = until_true(&format!("{SECOND} to be converted"), Duration::from_secs(120), || {
        let node = story.cluster.node(SECOND)?;
        let state = node["metadata"]["annotations"]["openyurt.io/conversion-state"]
            .as_str()
            .unwrap_or("{}")
            .to_owned();
        let document: Value = serde_json::from_str(&state)?;
        Ok((document["state"] != "Converted").then_some(state))
    })?;
    story.teller.figure("an edge node by itself after it got the label", &seconds(took));
    edge_is_converted(story, &machine)?;
    let proxy = story.cluster.kubectl.ok([
        "get",
        "pods",
        "-n",
        "kube-system",
        "-l",
        "k8s-app=kube-proxy",
        "--field-selector=spec.nodeName=edge-two",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])?;
    let back = until_true("kubectl logs of a pod on it", Duration::from_secs(60), || {
        let finished = story
            .cluster
            .kubectl
            .run_for(Duration::from_secs(10), ["logs", "-n", "kube-system", "--tail=1", &proxy])?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    story.teller.figure("kubectl logs reaches it", &seconds(back));
    told_apart(story)?;
    story.kubectl_ok(&["yurt", "status"])?;
    story.kubectl_ok(&["yurt", "tunnel", "status"])?;
    Ok(())
}

fn address_of(story: &Story, node: &str) -> Result<String> {
    let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    story.cluster.kubectl.ok(["get", "node", node, "-o", path])
}

fn kubelet_port(story: &Story, node: &str) -> Result<String> {
    let path = "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}";
    story.cluster.kubectl.ok(["get", "node", node, "-o", path])
}

/// One address, two kubelets: the API server reaches both, each time the right one.
fn told_apart(story: &mut Story) -> Result<()> {
    story.teller.step("both kubelets at one address");
    let answers = |node: &str| -> Result<Option<String>> {
        let path = format!("/api/v1/nodes/{node}/proxy/pods");
        let finished = story.cluster.kubectl.run_for(Duration::from_secs(10), ["get", "--raw", &path])?;
        if !finished.ok() {
            return Ok(Some(finished.to_string()));
        }
        let pods: Value = serde_json::from_str(&finished.stdout())?;
        let of = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let nodes: BTreeSet<String> = pods["items"].as_array().into_iter().flatten().map(of).collect();
        ensure!(nodes.iter().eq([node]), "asked for the pods of {node}, and those of {nodes:?} came");
        Ok(None)
    };
    let took = until_true("both kubelets to answer", Duration::from_secs(90), || {
        Ok(answers(EDGE)?.or(answers(SECOND)?))
    })?;
    for _ in 0..10 {
        for node in [EDGE, SECOND] {
            if let Some(why) = answers(node)? {
                bail!("{node} does not answer any more: {why}");
            }
        }
    }
    let (first, second) = (kubelet_port(story, EDGE)?, kubelet_port(story, SECOND)?);
    let (one, other) = (address_of(story, EDGE)?, address_of(story, SECOND)?);
    story.teller.check(
        one == other && first != second,
        &format!("{EDGE} is {one}:{first}, {SECOND} is {other}:{second}, and each answers for itself"),
        "they have one port",
    )?;
    story.teller.figure("two nodes of one address told apart", &seconds(took));
    Ok(())
}

/// A node that is down is reported, not forgotten; when it is back, revert finishes.
pub(super) fn revert_with_a_node_down(story: &mut Story) -> Result<()> {
    let second = Machine::find(SECOND)?;
    let edge = story.cluster.edge.clone();
    story.teller.step(&format!("take the power of {SECOND} away, then revert"));
    second.power_cut()?;
    let words = [REVERT, &["--timeout", "60s"]].concat();
    let finished = story.kubectl(&words)?;
    reads_well(&finished)?;
    story.teller.check(
        finished.code == Some(3) && finished.stderr().contains(SECOND),
        "exit code 3: some nodes failed, and which",
        &finished,
    )?;
    edge_is_vanilla(story, &edge)?;

    story.teller.step("the node comes back; revert again");
    second.start()?;
    story.cluster.wait_ready(SECOND)?;
    let master = story.cluster.master.clone();
    leave_rules(story, &master)?;
    let finished = story.kubectl_ok(REVERT)?;
    story.teller.figure("the revert that finishes", &seconds(finished.took));
    let tables = master.sh("nft list tables")?;
    story.teller.check(
        !tables.contains("inet yurt"),
        "the redirect is gone, although no tunnel server ended",
        tables,
    )?;
    for machine in [&edge, &second] {
        edge_is_vanilla(story, machine)?;
        until_true(&format!("nothing of ours on {}", machine.name()), KUBELET_COLLECTS, || {
            nothing_of_ours(machine)
        })?;
        story.teller.holds(&format!("nothing of ours on {}", machine.name()));
    }
    for node in [EDGE, SECOND] {
        until_true(&format!("{node} to say its kubelet's own port"), Duration::from_secs(60), || {
            Ok(Some(kubelet_port(story, node)?).filter(|port| port != "10250"))
        })?;
    }
    story.teller.holds("both kubelets say their own port again");
    until_true("no object of ours", Duration::from_secs(45), || {
        let left = objects::of_ours(&story.cluster.kubectl).context("looking for traces")?;
        Ok((!left.is_empty()).then(|| left.join("\n  ")))
    })?;
    story.teller.holds("no object of ours in the cluster");
    Ok(())
}

/// A tunnel server that cannot run, and the rules of one that was killed.
fn leave_rules(story: &mut Story, master: &Machine) -> Result<()> {
    story.teller.step("with a tunnel server that cannot run and rules that one has left");
    let kubectl = &story.cluster.kubectl;
    let patch = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/args","value":["tunnel-server","--unknown"]}]"#;
    kubectl.ok([
        "patch",
        "daemonset",
        "-n",
        "kube-system",
        "yurt-tunnel-server",
        "--type=json",
        "-p",
        patch,
    ])?;
    until_true("the tunnel server to crash", Duration::from_secs(60), || {
        let state = kubectl.ok([
            "get",
            "pods",
            "-n",
            "kube-system",
            "-l",
            "app.kubernetes.io/name=yurt-tunnel-server",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}",
        ])?;
        Ok((state.trim() != "CrashLoopBackOff").then_some(state))
    })?;
    master.sh("nft add table inet yurt")?;
    Ok(())
}
