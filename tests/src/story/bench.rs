//! What the hub is worth, measured beside the API server and beside a vanilla node, in one run: `make bench-hub`.
//!
//! Nothing here fails because something was slow: figures are for people, and are compared within one run. Requests are
//! sent by `yurt-load` in the edge node's network, with the token of one ServiceAccount, to the hub and to the API
//! server in turns.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Story, autonomy, seconds};
use crate::cluster::EDGE;
use crate::net::{self, Fault};
use crate::observe::memory;
use crate::wait::until_true;
use crate::{paths, run};

const NAMESPACE: &str = "bench";
const READER: &str = "reader";
const PODS: usize = 1000;
const SERVICES: usize = 1000;
/// Objects in one call of kubectl.
const AT_ONCE: usize = 250;
const ROUNDS: usize = 3;
const SECONDS: u64 = 4;
const MINUTE: Duration = Duration::from_secs(60);

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";
const HUB: &str = "127.0.0.1:10261";
const LIST: &str = "/api/v1/namespaces/bench/pods?resourceVersion=0";
const GET: &str = "/api/v1/namespaces/bench/configmaps/kube-root-ca.crt";

/// On a vanilla cluster, before the conversion.
pub(super) fn vanilla(story: &mut Story) -> Result<()> {
    story
        .teller
        .step(&format!("{SERVICES} Services, {PODS} pods that nobody schedules, and who may list them"));
    let kubectl = &story.cluster.kubectl;
    kubectl.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string(),
    )?;
    until_true("the namespace's ServiceAccount", MINUTE, || {
        let found = kubectl.run(["get", "serviceaccount", "-n", NAMESPACE, "default"])?;
        Ok((!found.ok()).then(|| found.stderr()))
    })?;
    create(story, reader())?;
    create(story, (0..SERVICES).map(service).collect())?;
    create(story, (0..PODS).map(pod).collect())?;
    // The control plane writes them at a bounded rate.
    until_true("an EndpointSlice of every Service", 5 * MINUTE, || {
        let slices = story.cluster.kubectl.ok(["get", "endpointslices", "-n", NAMESPACE, "-o", "name"])?;
        let slices = slices.lines().count();
        Ok((slices < SERVICES).then(|| format!("{slices} of {SERVICES}")))
    })?;
    uplink(story, "vanilla")
}

/// On the cluster straight after the conversion.
pub(super) fn hub(story: &mut Story) -> Result<()> {
    // Or the cluster evicts the pods of a node that is away, and gives it others.
    autonomy::enable(story)?;
    uplink(story, "converted")?;
    story.teller.step("a DNS server that a Deployment has put there goes past the hub until it begins anew");
    let kubectl = &story.cluster.kubectl;
    kubectl.ok(["rollout", "restart", "-n", "kube-system", "deployment/coredns-edge"])?;
    kubectl.ok(["rollout", "status", "-n", "kube-system", "deployment/coredns-edge", "--timeout=90s"])?;
    uplink(story, "converted, DNS restarted")?;
    story.teller.step("the same questions to the API server and to the hub, in turns");
    let load = Load::new(story)?;
    for (what, accept) in [("protobuf", PROTOBUF), ("JSON", JSON)] {
        for connections in [1, 8] {
            let (api, hub) = load.compare(LIST, accept, connections)?;
            story.teller.figure(
                &format!("LIST of {PODS} pods, {what}, {connections} connections: hub ÷ API server"),
                &format!(
                    "{:.1} ({:.0} and {:.0} requests/s; hub p50 {} ms, p99 {} ms)",
                    hub.rate / api.rate,
                    hub.rate,
                    api.rate,
                    hub.p50,
                    hub.p99
                ),
            );
        }
    }
    let (api, hub) = load.compare(GET, JSON, 1)?;
    story.teller.figure(
        "forwarded GET, added by the hub, p50 / p99",
        &format!("{:.2} / {:.2} ms (direct {} / {})", hub.p50 - api.p50, hub.p99 - api.p99, api.p50, api.p99),
    );
    memory_of_hub(story, "after it")?;

    story.teller.step("kill -9 of the hub, cut off; how long until it lists from its store");
    story.cluster.shop.cut(Fault::BlackHole)?;
    let killed = Instant::now();
    story.cluster.edge.exec(["systemctl", "kill", "--signal=SIGKILL", "yurtd.service"])?.success()?;
    until_true("the hub to list again", MINUTE, || {
        Ok(load.run(HUB, LIST, PROTOBUF, 1, 1).err().map(|error| format!("{error:#}")))
    })?;
    // One second of it is the load's own.
    let took = killed.elapsed().saturating_sub(Duration::from_secs(1));
    story.teller.figure(&format!("killed → lists of {PODS} pods are answered, cut off"), &seconds(took));
    story.cluster.shop.restore()?;
    story.cluster.wait_ready(EDGE)?;
    memory_of_hub(story, "in the end")
}

fn memory_of_hub(story: &mut Story, when: &str) -> Result<()> {
    let held = memory::of_roles();
    let hub = held.iter().find(|held| held.role == "edge").context("no hub runs")?;
    let text = format!("{} KiB, {} of its own; peak {}", hub.total_kib, hub.anonymous_kib, hub.peak_kib);
    story.teller.figure(&format!("memory of the hub {when}"), &text);
    Ok(())
}

/// Bytes over the node's uplink: idle, and after a cut in which nothing changed.
fn uplink(story: &mut Story, what: &str) -> Result<()> {
    story.teller.step(&format!("{what}: a minute idle, a minute cut, and the minute after it"));
    story.cluster.shop.wait_quiet()?;
    let idle = bytes_in(story, MINUTE)?;
    story.teller.figure(&format!("{what}: uplink in an idle minute"), &kib(idle));
    story.cluster.shop.cut(Fault::BlackHole)?;
    std::thread::sleep(MINUTE);
    story.cluster.shop.restore()?;
    let after = bytes_in(story, MINUTE)?;
    story.teller.figure(&format!("{what}: uplink in the minute after a cut of a minute"), &kib(after));
    story.cluster.wait_ready(EDGE)?;
    Ok(())
}

fn bytes_in(story: &Story, time: Duration) -> Result<(u64, u64)> {
    let (out, into) = story.cluster.shop.uplink_bytes()?;
    std::thread::sleep(time);
    let (out_now, into_now) = story.cluster.shop.uplink_bytes()?;
    Ok((out_now - out, into_now - into))
}

fn kib((out, into): (u64, u64)) -> String {
    format!("{} KiB ({} out, {} in)", (out + into) / 1024, out / 1024, into / 1024)
}

/// What `yurt-load` said.
#[derive(Debug, Clone, Copy)]
struct Answered {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// Sends requests in the edge node's network.
struct Load {
    init: String,
    program: PathBuf,
    ca: PathBuf,
    token: PathBuf,
}

impl Load {
    fn new(story: &Story) -> Result<Self> {
        let program = std::env::var_os("YURT_LOAD")
            .map_or_else(|| paths::target().join("release/yurt-load"), PathBuf::from);
        ensure!(program.is_file(), "{} is not there; `make bench-hub` builds it", program.display());
        let edge = &story.cluster.edge;
        let token = paths::state().join("bench.token");
        let words = ["create", "token", "-n", NAMESPACE, READER, "--duration=2h"];
        fs::write(&token, story.cluster.kubectl.ok(words)?)?;
        let ca = paths::state().join("bench-ca.pem");
        // Whoever signs the hub's certificate, kubelet believes it.
        let kubelet = fs::read_to_string(edge.root().join("opt/yurt/etc/kubelet.conf"))?;
        fs::write(&ca, authorities(story, &kubelet)?)?;
        Ok(Self { init: edge.init()?.as_raw_nonzero().to_string(), program, ca, token })
    }

    fn run(&self, server: &str, path: &str, accept: &str, connections: usize, time: u64) -> Result<Answered> {
        let name = if server == HUB { "127.0.0.1" } else { "kubernetes" };
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init, "-n"])
            .arg(&self.program)
            .args(["--server", server, "--name", name, "--path", path, "--accept", accept])
            .args(["--connections", &connections.to_string(), "--seconds", &time.to_string()])
            .arg("--ca")
            .arg(&self.ca)
            .arg("--token")
            .arg(&self.token);
        let report: Value = serde_json::from_str(&run::output(command)?)?;
        let number = |name: &str| report[name].as_f64().with_context(|| format!("no {name} in {report}"));
        Ok(Answered { rate: number("requestsPerSecond")?, p50: number("p50Ms")?, p99: number("p99Ms")? })
    }

    /// The median round of API server and hub.
    fn compare(&self, path: &str, accept: &str, connections: usize) -> Result<(Answered, Answered)> {
        let api = format!("{}:6443", net::MASTER);
        let (mut of_api, mut of_hub) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_api.push(self.run(&api, path, accept, connections, SECONDS)?);
            of_hub.push(self.run(HUB, path, accept, connections, SECONDS)?);
        }
        Ok((median(of_api)?, median(of_hub)?))
    }
}

fn median(mut rounds: Vec<Answered>) -> Result<Answered> {
    rounds.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    rounds.get(rounds.len() / 2).copied().context("nothing was measured")
}

/// The cluster's CA, and what kubelet's kubeconfig believes besides.
fn authorities(story: &Story, kubeconfig: &str) -> Result<String> {
    let edge = &story.cluster.edge;
    let mut all = fs::read_to_string(edge.root().join("etc/kubernetes/pki/ca.crt"))?;
    for line in kubeconfig.lines().map(str::trim) {
        if let Some(data) = line.strip_prefix("certificate-authority-data:") {
            let script = format!("echo '{}' | base64 -d", data.trim().trim_matches('"'));
            all.push_str(&edge.sh(&script)?);
        } else if let Some(file) = line.strip_prefix("certificate-authority:") {
            let file = file.trim().trim_matches('"').trim_start_matches('/');
            all.push_str(&fs::read_to_string(edge.root().join(file))?);
        }
    }
    Ok(all)
}

fn create(story: &Story, items: Vec<Value>) -> Result<()> {
    for items in items.chunks(AT_ONCE) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let command = story.cluster.kubectl.command(["create", "-f", "-"]);
        run::run_with(command, Some(list.as_bytes()), run::DEFAULT_TIMEOUT)?.success()?;
    }
    Ok(())
}

fn reader() -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let named = json!({"name": READER, "namespace": NAMESPACE});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named}),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": named, "rules": [
            {"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list", "watch"]},
        ]}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": named,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": READER},
            "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": NAMESPACE}]}),
    ]
}

fn service(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{number}"), "namespace": NAMESPACE},
        "spec": {"selector": {"app": format!("app-{number}")}, "ports": [{"port": 80}]}})
}

/// About as large as a pod of a Deployment.
fn pod(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {
        "name": format!("pod-{number}"), "namespace": NAMESPACE,
        "labels": {"app": format!("app-{number}"), "pod-template-hash": "5d8f7b9c6d"},
        "annotations": {"example.com/about": "x".repeat(200)},
    },
    "spec": {
        // Nobody's: it stays as it is.
        "schedulerName": "nobody",
        "containers": [{
            "name": "app", "image": format!("registry.example.com/shop/app-{number}:1.2.3"),
            "ports": [{"containerPort": 8080}],
            "env": [{"name": "LISTEN", "value": ":8080"}, {"name": "LEVEL", "value": "info"}],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}},
        }],
    }})
}
