//! `make bench-rig`: how fast the hub is, beside the API server it stands before and beside a relay with nothing in it.
//!
//! All of them are asked in short turns, in one run, so that whatever else the machine does meets all of them. Nothing
//! here fails because something was slow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use yurt_api::names::{HUB_HEALTH_PORT, HUB_PORT};
use yurt_tests::run;
use yurt_tests::wait::until_true;

use crate::process::Process;
use crate::rig::{API, Rig};

const PODS: usize = 1000;
/// Objects in one call of kubectl.
const AT_ONCE: usize = 250;
/// Relays: their name, where they listen, and how many workers their runtime has; 0: all in one thread.
const RELAYS: [(&str, u16, &str); 2] = [("relay", 7443, "2"), ("one thread", 7444, "0")];
/// In which all are asked, in a second.
const TURNS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(30);

const GET: &str = "/api/v1/namespaces/bulk/configmaps/bulk-00000";
const LIST: &str = "/api/v1/namespaces/bulk/pods?resourceVersion=0";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// What is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    pub(crate) bin: &'a Path,
    /// Of `yurt-load` and `yurt-relay`.
    pub(crate) programs: &'a Path,
    /// The hub, and builds of it that it is compared with.
    pub(crate) hubs: &'a [PathBuf],
    /// How long each is asked each thing, in seconds.
    pub(crate) seconds: u64,
    /// How often all of it.
    pub(crate) rounds: u32,
    /// Lists, too.
    pub(crate) lists: bool,
}

struct Figures<'a> {
    options: Options<'a>,
    rig: &'a Rig,
    token: PathBuf,
    authorities: PathBuf,
}

/// Prints them.
pub(crate) fn run(rig: &Rig, options: Options<'_>) -> Result<()> {
    let figures = Figures::prepare(rig, options)?;
    let folder = rig.folder();
    let mut relays = Vec::new();
    for (name, port, workers) in RELAYS {
        let mut relay = Command::new(options.programs.join("yurt-relay"));
        relay
            .args(["--listen", &format!("127.0.0.1:{port}"), "--server", &API.to_string()])
            .args(["--workers", workers, "--name", "kubernetes", "--ca"])
            .arg(&rig.files().ca)
            .arg("--certificate")
            .arg(&rig.files().server);
        relays.push((name, port, Process::start(name, folder, relay)?));
    }
    for _ in 0..options.rounds {
        for hub in options.hubs {
            rig.hub.run(hub)?;
            figures.wait()?;
            println!("{}", hub.display());
            let api = ("API server", API.port(), rig.api_process());
            let hub = ("hub", HUB_PORT, rig.hub.process().context("the hub has ended")?);
            let mut all = vec![api];
            for (name, port, relay) in &mut relays {
                relay.lives()?;
                all.push((name, *port, relay.id()));
            }
            all.push(hub);
            figures.compare("GET, forwarded", GET, JSON, 1, &all)?;
            for (name, accept) in [("protobuf", PROTOBUF), ("JSON", JSON)] {
                for connections in if options.lists { &[1, 8][..] } else { &[] } {
                    let what = format!("LIST of {PODS} pods, {name}, {connections} connections");
                    figures.compare(&what, LIST, accept, *connections, &[api, hub])?;
                }
            }
        }
    }
    Ok(())
}

impl<'a> Figures<'a> {
    fn prepare(rig: &'a Rig, options: Options<'a>) -> Result<Self> {
        let this = Self {
            options,
            rig,
            token: rig.folder().join("reader.token"),
            authorities: rig.folder().join("authorities.pem"),
        };
        let pods: Vec<_> = (0..PODS).map(pod).collect();
        for items in pods.chunks(AT_ONCE) {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
            run::run_with(this.kubectl(&["create", "-f", "-"]), Some(list.as_bytes()), run::DEFAULT_TIMEOUT)?
                .success()?;
        }
        fs::write(&this.token, run::output(this.kubectl(&["create", "token", "-n", "shop", "reader"]))?)?;
        this.wait()?;
        let node = run::sh("curl", &["-sf", &format!("http://127.0.0.1:{HUB_HEALTH_PORT}/ca.crt")])?;
        fs::write(&this.authorities, fs::read_to_string(&rig.files().ca)? + "\n" + &node)?;
        Ok(this)
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        let (files, mut command) = (self.rig.files(), Command::new(self.options.bin.join("kubectl")));
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command
            .arg(format!("--server=https://{API}"))
            .arg(flag("certificate-authority", &files.ca))
            .arg(flag("client-certificate", &files.admin))
            .arg(flag("client-key", &files.admin))
            .args(words);
        command
    }

    /// Until the hub has a link. It is not ready: nobody here leads pods to it.
    fn wait(&self) -> Result<()> {
        until_true("the hub's link", PATIENCE, || {
            let mut curl = Command::new("curl");
            curl.args(["-s", &format!("http://127.0.0.1:{HUB_HEALTH_PORT}/readyz")]);
            let said = run::run(curl)?.stdout();
            let readiness: Value = serde_json::from_str(&said).unwrap_or_default();
            Ok((readiness["link"] != "online").then_some(said))
        })?;
        Ok(())
    }

    fn compare(
        &self,
        what: &str,
        path: &str,
        accept: &str,
        connections: usize,
        servers: &[(&str, u16, u32)],
    ) -> Result<()> {
        let mut command = Command::new(self.options.programs.join("yurt-load"));
        for (_, port, process) in servers {
            command.args(["--server", &format!("127.0.0.1:{port}"), "--process", &process.to_string()]);
        }
        command
            .args(["--name", "kubernetes", "--path", path, "--accept", accept])
            .args(["--connections", &connections.to_string(), "--seconds", &self.options.seconds.to_string()])
            .args(["--turns", &(self.options.seconds * TURNS).to_string(), "--ca"])
            .arg(&self.authorities)
            .arg("--token")
            .arg(&self.token);
        let said = run::output(command)?;
        let reports: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(reports.len() == servers.len(), "{what}: {said}");
        let number = |report: &Value, name: &str| {
            report.pointer(name).and_then(Value::as_f64).with_context(|| format!("no {name} in {report}"))
        };
        let first = number(&reports[0], "/requestsPerSecond")?;
        println!("  {what}, {} bytes", number(&reports[0], "/bytes")?);
        for ((name, ..), report) in servers.iter().zip(&reports) {
            let rate = number(report, "/requestsPerSecond")?;
            println!(
                "    {name:<10} {rate:>7.1} /s (÷ {:>5.2})  p50 {:>7.3}  p99 {:>7.3}  added {:>7.3} ms; CPU of it \
                 {:>6.0} µs, of the client {:>6.0} µs; {:>5.1} context switches",
                rate / first,
                number(report, "/p50Ms")?,
                number(report, "/p99Ms")?,
                number(report, "/addedP50Ms")?,
                number(report, "/server/cpuUs")?,
                number(report, "/clientCpuUs")?,
                number(report, "/server/switches")?,
            );
        }
        Ok(())
    }
}

/// About as large as a pod of a Deployment.
fn pod(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {
        "name": format!("pod-{number}"), "namespace": "bulk",
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
