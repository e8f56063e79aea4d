//! S7: an autonomous node reboots without its link, and every pod is back before the link is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::workload::{NAMESPACE, PODS};
use super::{Story, seconds, way_in};
use crate::cluster::EDGE;
use crate::net::Fault;
use crate::observe::containers::{self, Containers};
use crate::observe::processes;
use crate::run;
use crate::wait::{throughout, until_true};

/// How much longer an offline reboot may take.
const ALLOWANCE: Duration = Duration::from_secs(3);
const DNS: &str = "10.96.0.10";
/// A Service with two endpoints leads to the wrong one half of the time.
const TRIES: usize = 8;
/// From the last pod's first answer until Services and DNS lead to it: probes are every two seconds.
const SETTLED: Duration = Duration::from_secs(30);

/// A pod that must answer: its page proves that it got what it needs.
#[derive(Debug)]
pub(super) struct Expected {
    name: String,
    path: &'static str,
    page: &'static str,
}

/// S7.
pub(super) fn comes_back(story: &mut Story) -> Result<()> {
    let pods = expected(story)?;
    story.teller.step("for comparison: the same node reboots with its link up");
    let online = power_cycle(story, &pods)?;
    story.teller.figure(&format!("online reboot until all {} pods serve", pods.len()), &seconds(online));
    let settled = business(story)?.len();
    until_true("the API server to have seen all of it", Duration::from_secs(90), || {
        let now = business(story)?;
        let waiting: Vec<&String> = now.iter().filter(|(_, c)| !c.ready).map(|(name, _)| name).collect();
        Ok((!waiting.is_empty() || now.len() < settled).then(|| format!("not ready: {waiting:?}")))
    })?;
    story.cluster.wait_ready(EDGE)?;
    let before = business(story)?;

    story.teller.step("cut the link, take the node's power away and give it back");
    story.cluster.shop.cut(Fault::BlackHole)?;
    let cut = Instant::now();
    let offline = power_cycle(story, &pods)?;
    story.teller.figure(&format!("offline reboot until all {} pods serve", pods.len()), &seconds(offline));
    story.teller.holds(
        "every pod runs again while the link is still cut: tokens, ConfigMaps, Secrets, the init container",
    );

    story.teller.step("judge Services and DNS on the node, still cut");
    judge_services(story)?;
    way_in::everybody_finds_the_hub(story)?;

    story.cluster.wait_not_ready(EDGE, Duration::from_secs(120))?;
    story.teller.note(&format!("node NotReady {} after the cut", seconds(cut.elapsed())));
    // Longer than it took to evict the vanilla pod.
    let rest = Duration::from_secs(12).max(Duration::from_secs(60).saturating_sub(cut.elapsed()));
    let kubectl = &story.cluster.kubectl;
    throughout("no pod is deleted", rest, Duration::from_secs(1), || {
        let pod = kubectl.json(["get", "pod", "nginx"])?;
        let since = &pod["metadata"]["deletionTimestamp"];
        Ok((!since.is_null()).then(|| format!("nginx is deleted since {since}")))
    })?;
    story.teller.step("restore the link");
    story.cluster.shop.restore()?;
    let back = story.cluster.wait_ready(EDGE)?;
    story.teller.figure("node Ready after the link came back", &seconds(back));
    until_true("every pod to be Running with one restart more", Duration::from_secs(60), || {
        let now = business(story)?;
        let mut faults = containers::restarts_other_than(&before, &now, 1);
        faults.extend(now.iter().filter(|(_, c)| !c.ready).map(|(name, _)| format!("{name} is not ready")));
        Ok((!faults.is_empty()).then(|| faults.join("; ")))
    })?;
    story.kubectl_ok(&["get", "pods", "-A", "-o", "wide", "--field-selector=spec.nodeName=edge-node"])?;
    story.teller.holds(&format!("all {} containers: one restart, same pods, same node, Ready", before.len()));
    compare(story, &pods, offline, online)
}

/// How long a node needs online is itself not the same every time. Only where the one reboot with a link was too quick
/// to compare with, a second one says how much of the difference is the link's.
fn compare(
    story: &mut Story,
    pods: &BTreeMap<String, Expected>,
    offline: Duration,
    mut online: Duration,
) -> Result<()> {
    if offline > online + ALLOWANCE {
        story.teller.step("for comparison: once more with its link up");
        let again = power_cycle(story, pods)?;
        story.teller.figure("second online reboot", &seconds(again));
        story.cluster.wait_ready(EDGE)?;
        online = online.max(again);
        until_true("every pod to be Ready", Duration::from_secs(90), || {
            let now = business(story)?;
            let waiting: Vec<&String> = now.iter().filter(|(_, c)| !c.ready).map(|(name, _)| name).collect();
            Ok((!waiting.is_empty()).then(|| format!("not ready: {waiting:?}")))
        })?;
    }
    story.teller.check(
        offline <= online + ALLOWANCE,
        &format!("offline within {} s of what it needs online", ALLOWANCE.as_secs()),
        format!("offline {}, online {}", seconds(offline), seconds(online)),
    )
}

/// The containers of business, not of the cluster itself.
fn business(story: &Story) -> Result<Containers> {
    Ok(story.containers()?.into_iter().filter(|(name, _)| !name.starts_with("kube-system/")).collect())
}

/// By UID: the pods that must serve.
pub(super) fn expected(story: &Story) -> Result<BTreeMap<String, Expected>> {
    let mut pods = story.cluster.kubectl.items(["pods", "-n", NAMESPACE])?;
    pods.push(story.cluster.kubectl.json(["get", "pod", "nginx"])?);
    pods.iter()
        .map(|pod| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = text(&pod["metadata"]["name"]);
            let (_, path, page) = PODS
                .iter()
                .find(|(wanted, ..)| name == *wanted || (wanted.ends_with('-') && name.starts_with(wanted)))
                .unwrap_or(&("nginx", "/", "nginx on the edge"));
            Ok((text(&pod["metadata"]["uid"]), Expected { name, path, page }))
        })
        .collect()
}

/// Off and on; how long after the power came back every pod served what only it can serve.
pub(super) fn power_cycle(story: &Story, pods: &BTreeMap<String, Expected>) -> Result<Duration> {
    let on = story.cluster.edge.power_cycle()?;
    let mut serving: BTreeMap<String, Duration> = BTreeMap::new();
    until_true("every pod to serve", Duration::from_secs(120), || {
        let running = processes::of_pods(EDGE);
        let mut waiting = Vec::new();
        for (uid, pod) in pods.iter().filter(|(uid, _)| !serving.contains_key(*uid)).collect::<Vec<_>>() {
            let answer = running
                .iter()
                .filter(|process| process.pod_uid == *uid)
                .map(|process| processes::answers(process.pid, pod.path, pod.page))
                .reduce(|one, other| one.or(other));
            match answer {
                Some(Ok(())) => {
                    serving.insert(uid.clone(), on.elapsed());
                }
                Some(Err(error)) => waiting.push(format!("{}: {error:#}", pod.name)),
                None => waiting.push(format!("{}: does not run", pod.name)),
            }
        }
        Ok((!waiting.is_empty()).then(|| waiting.join("; ")))
    })?;
    serving.values().max().copied().context("no pod was expected")
}

/// What works on the node beside the pods themselves: Services and DNS lead to the pods' new addresses, which nobody but
/// the node itself knows.
fn judge_services(story: &mut Story) -> Result<()> {
    let kubectl = &story.cluster.kubectl;
    let service =
        kubectl.ok(["get", "service", "-n", NAMESPACE, "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let pods = kubectl.items(["pods", "-n", NAMESPACE])?;
    let uid = |name: &str| {
        pods.iter()
            .find(|pod| pod["metadata"]["name"].as_str().is_some_and(|found| found.starts_with(name)))
            .and_then(|pod| pod["metadata"]["uid"].as_str())
            .map(str::to_owned)
            .with_context(|| format!("there is no pod {name}"))
    };
    let running = processes::of_pods(EDGE);
    let process =
        |uid: &str| running.iter().find(|process| process.pod_uid == uid).map(|process| process.pid);
    let client = process(&uid("plain")?).context("the pod plain does not run")?;

    let known = kubectl.ok([
        "get",
        "endpointslices",
        "-n",
        NAMESPACE,
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "jsonpath={.items[*].endpoints[*].addresses[*]}",
    ])?;
    let now: Vec<String> = pods
        .iter()
        .filter(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("web-")))
        .filter_map(|pod| process(pod["metadata"]["uid"].as_str()?))
        .filter_map(|pid| address(pid).ok())
        .collect();
    let addresses = format!("the API server knows {known}, the pods are at {}", now.join(" "));
    let url = format!("http://{service}/");
    // kubelet has just found the pods ready, and kube-proxy and CoreDNS hear of it now.
    let took = until_true(&format!("Service web to answer every time: {addresses}"), SETTLED, || {
        let missed: Vec<String> = (0..TRIES)
            .filter_map(|_| exec(client, &["curl", "-sf", "-m", "1", &url]).err())
            .map(|error| format!("{error:#}"))
            .collect();
        Ok((!missed.is_empty()).then(|| format!("{} of {TRIES} failed: {}", missed.len(), missed[0])))
    })?;
    story.teller.holds(&format!("Service web ({service}) answers a pod every time ({addresses})"));
    story.teller.figure("Services right, after the last pod served", &seconds(took));

    let name = format!("web.{NAMESPACE}.svc.cluster.local");
    until_true(&format!("DNS on the node to know {name}"), SETTLED, || {
        let answer = exec(client, &["timeout", "4", "nslookup", &name, DNS]);
        let why = match &answer {
            Ok(text) if text.contains(&service) => return Ok(None),
            Ok(text) => text.clone(),
            Err(error) => format!("{error:#}"),
        };
        Ok(Some(run::tail(why.trim(), 2).replace('\n', " ")))
    })?;
    story.teller.holds(&format!("DNS on the node, asked at its Service ({DNS}), knows {name}"));
    Ok(())
}

pub(super) fn exec(pid: i32, words: &[&str]) -> Result<String> {
    processes::exec(pid, words)
}

/// The address of a pod, from its own network namespace.
pub(super) fn address(pid: i32) -> Result<String> {
    let text =
        run::sh("nsenter", &["-t", &pid.to_string(), "-n", "ip", "-4", "-o", "addr", "show", "dev", "eth0"])?;
    let address = text.split_whitespace().nth(3).and_then(|address| address.split('/').next());
    address.map(str::to_owned).context("a pod without an address")
}
