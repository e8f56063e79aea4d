//! By which way pods come to the API server: new ones through the hub, at the address that Kubernetes gives them; those
//! from before as before. Who answers is seen by whose certificate it is.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Story, seconds, workload};
use crate::cluster::EDGE;
use crate::observe::processes;
use crate::run;
use crate::wait::until_true;

const NODE_CA: &str = "/var/lib/yurt/ca.pem";
const CLUSTER_CA: &str = "/etc/kubernetes/pki/ca.crt";
const CALLER: &str = "caller";
/// After somebody took something of it away.
const HEALED: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(10);

/// On a node that was just converted, with the pods of before on it.
pub(super) fn judge(story: &mut Story) -> Result<()> {
    story.teller.step("a pod that begins now finds the hub where Kubernetes says the API server is");
    let service = service(story)?;
    workload::apply_caller(story)?;
    let (new, old) = (process(story, CALLER)?, process(story, "nginx")?);
    // A server may write over what its kernel shows of it: what every process of the container is given is asked for.
    let environment = story.cluster.kubectl.ok(["exec", CALLER, "--", "sh", "-c", "env"])?;
    let host = format!("KUBERNETES_SERVICE_HOST={service}");
    story.teller.check(
        environment.lines().any(|line| line == host) && !environment.contains("169.254.2.1"),
        "its environment is Kubernetes' own",
        &environment,
    )?;
    let by_name = format!("kubernetes.default.svc:443:{service}");
    let urls = [
        (format!("https://{service}/version"), Vec::new()),
        ("https://kubernetes.default.svc/version".to_owned(), vec!["--resolve", &by_name]),
    ];
    for (url, options) in &urls {
        until_true(&format!("the hub to answer at {url}"), SOON, || {
            why_not(story, new, NODE_CA, url, options)
        })?;
        story.teller.holds(&format!("the hub answers it at {url}"));
    }
    let url = &urls[0].0;
    let why = why_not(story, old, CLUSTER_CA, url, &[])?;
    story.teller.check(why.is_none(), "a pod from before reaches the API server", format!("{why:?}"))?;
    let host = || on_host(story, url);
    until_true("the host's own connections to go to the hub", SOON, host)?;
    story.teller.holds("so does the host: every agent on its network has begun anew");

    for harm in [
        "ip addr del 169.254.2.1/32 dev lo",
        "nft delete table inet yurt-edge",
        "nft flush chain inet yurt-edge prerouting",
        "nft flush set inet yurt-edge services4",
    ] {
        story.teller.typed(&format!("testbed sh {EDGE} -- {harm}"));
        story.cluster.edge.sh(harm)?;
        let took = until_true(&format!("the hub to answer after {harm}"), HEALED, || {
            why_not(story, new, NODE_CA, url, &[])
        })?;
        story.teller.figure("the hub answers the pod again after", &seconds(took));
    }
    story.cluster.kubectl.ok(["delete", "pod", CALLER, "--now"])?;
    Ok(())
}

/// After a reboot, also without a link: everything began with the hub.
pub(super) fn everybody_finds_the_hub(story: &mut Story) -> Result<()> {
    let url = format!("https://{}/version", service(story)?);
    let pod = process(story, "nginx")?;
    until_true(&format!("the hub to answer nginx at {url}"), SOON, || {
        why_not(story, pod, NODE_CA, &url, &[])
    })?;
    until_true(&format!("the hub to answer the host at {url}"), SOON, || on_host(story, &url))?;
    story.teller.holds(&format!("the hub answers pods and the host at {url}"));
    Ok(())
}

/// The ClusterIP of Service `default/kubernetes`.
fn service(story: &Story) -> Result<String> {
    story.cluster.kubectl.ok(["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"])
}

/// The process of a pod in the namespace `default`.
fn process(story: &Story, pod: &str) -> Result<i32> {
    let uid = story.cluster.kubectl.json(["get", "pod", pod])?["metadata"]["uid"].clone();
    let found = processes::of_pods(EDGE).into_iter().find(|process| uid == *process.pod_uid);
    Ok(found.with_context(|| format!("pod {pod} does not run"))?.pid)
}

/// Why a process of this pod's network does not get an answer from whom the node's file of a CA vouches for.
fn why_not(story: &Story, pid: i32, ca: &str, url: &str, options: &[&str]) -> Result<Option<String>> {
    let ca = story.cluster.edge.root().join(ca.trim_start_matches('/'));
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "curl", "-sS", "-m", "3", "-o", "/dev/null", "--cacert"]);
    command.arg(ca).args(options).arg(url);
    let finished = run::run(command)?;
    Ok((!finished.ok()).then(|| finished.to_string()))
}

/// The same for the host and the hub.
fn on_host(story: &Story, url: &str) -> Result<Option<String>> {
    let words = ["curl", "-sS", "-m", "3", "-o", "/dev/null", "--cacert", NODE_CA, url];
    let finished = story.cluster.edge.exec(words)?;
    Ok((!finished.ok()).then(|| finished.to_string()))
}
