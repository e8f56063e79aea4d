//! Everything together: etcd, `kube-apiserver`, the link, the hub and its clients, on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::KeyPair;
use serde_json::json;
use yurt_api::names::{HUB_HEALTH_PORT, HUB_PORT};
use yurt_fakes::pki::TestCa;
use yurt_tests::wait::until_true;

use crate::clients::Clients;
use crate::hub::Hub;
use crate::line::Line;
use crate::process::Process;
use crate::report::Report;
use crate::world::CLUSTER_ADDRESS;

const NODE: &str = "edge-node";
/// The API server.
pub(crate) const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 6443);
const START: Duration = Duration::from_secs(90);

/// Whether etcd forgets old revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compaction {
    /// Every list can be asked for again at its resourceVersion.
    Never,
    /// As the API server does it.
    AsUsual,
}

/// What a rig is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) bin: &'a Path,
    pub(crate) clients: &'a Path,
    pub(crate) yurtd: &'a Path,
    pub(crate) seed: u64,
    pub(crate) rate: u32,
    pub(crate) bulk: u32,
    pub(crate) compaction: Compaction,
    /// Whether the hub's link is a relay that can do something to it.
    pub(crate) relayed: bool,
}

/// It runs. Fields are dropped in their order: clients first, etcd last.
pub(crate) struct Rig {
    pub(crate) clients: Clients,
    pub(crate) hub: Hub,
    pub(crate) line: Line,
    api: Process,
    etcd: Process,
    files: Files,
    folder: PathBuf,
}

impl Rig {
    /// From nothing to a hub that has a link.
    pub(crate) fn start(options: Options<'_>) -> Result<Self> {
        let folder = options.folder.join("rig");
        fs::create_dir_all(folder.join("state"))?;
        let files = certificates(&folder)?;
        let mut etcd = etcd(&options, &folder)?;
        let mut api = api_server(&options, &folder, &files)?;
        until_true("the API server", START, || {
            let mut curl = Command::new("curl");
            curl.args(["-sf", "-m", "5", "--cacert"]).arg(&files.ca).arg("--cert").arg(&files.admin);
            curl.arg(format!("https://{API}/readyz"));
            let answered = yurt_tests::run::run(curl)?;
            // Whoever has ended does not come any more.
            let ended = etcd.lives().and_then(|()| api.lives()).err();
            Ok((!answered.ok() && ended.is_none()).then(|| answered.to_string()))
        })?;
        etcd.lives()?;
        api.lives()?;
        let settings = folder.join("clients.json");
        let text = json!({
            "api": format!("https://{API}"),
            "hub": format!("https://127.0.0.1:{HUB_PORT}"),
            "health": format!("http://127.0.0.1:{HUB_HEALTH_PORT}"),
            "apiCA": files.ca, "admin": files.admin, "node": files.node,
            "nodeName": NODE, "seed": options.seed >> 1, "rate": options.rate, "bulk": options.bulk,
        });
        fs::write(&settings, text.to_string())?;
        let mut clients = Clients::start(options.clients, &settings, &folder)?;
        clients.ask("setup").context("making what the clients need")?;
        let line = Line::to(API)?;
        let server = if options.relayed { line.address() } else { API };
        let config = folder.join("edge.json");
        let text = json!({
            "nodeName": NODE, "apiServers": [format!("https://{server}")],
            "caFile": files.ca, "clientCaFile": files.ca,
            "clientCertificate": files.node, "clientKey": files.node,
            "tunnelServers": [], "tunnelCaFile": files.ca, "kubeletAddress": "127.0.0.1:10250",
            "kubeletVersion": yurt_tests::build::KUBERNETES_VERSION,
        });
        fs::write(&config, text.to_string())?;
        let hub = Hub::new(options.yurtd, &config, &folder)?;
        hub.start()?;
        clients.ask("list").context("the hub's first list")?;
        Ok(Self { clients, hub, line, api, etcd, files, folder })
    }

    /// Fails if what must not end has ended.
    pub(crate) fn lives(&mut self) -> Result<()> {
        self.etcd.lives()?;
        self.api.lives()
    }

    /// The process of the API server.
    pub(crate) fn api_process(&self) -> u32 {
        self.api.id()
    }

    /// Certificates.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// A place for copies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends everything; another one may be started then.
    pub(crate) fn end(mut self) -> Result<()> {
        self.lives()?;
        let folder = self.folder.clone();
        drop(self);
        let old = folder.with_extension("before");
        fs::create_dir_all(&old)?;
        for log in logs(&folder)? {
            fs::copy(folder.join(&log), old.join(&log))?;
        }
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}

fn logs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = PathBuf::from(entry?.file_name());
        found.extend(name.extension().is_some_and(|extension| extension == "log").then_some(name));
    }
    Ok(found)
}

/// Keeps logs and report outside the namespaces.
pub(crate) fn keep(folder: &Path, keep: &Path, report: &Report) -> Result<()> {
    for name in ["rig", "rig.before"] {
        let (from, to) = (folder.join(name), keep.join(name));
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        if from.exists() {
            fs::create_dir_all(&to)?;
            for log in logs(&from)? {
                fs::copy(from.join(&log), to.join(&log))?;
            }
        }
    }
    fs::create_dir_all(keep)?;
    fs::write(keep.join("report.txt"), report.to_string())?;
    Ok(())
}

/// Certificates and keys.
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) server: PathBuf,
    pub(crate) admin: PathBuf,
    node: PathBuf,
    accounts: PathBuf,
    accounts_public: PathBuf,
}

/// As kubeadm would have them: one CA, and a key for ServiceAccounts.
fn certificates(folder: &Path) -> Result<Files> {
    let ca = TestCa::new("kubernetes");
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let accounts = KeyPair::generate()?;
    let names = ["127.0.0.1", CLUSTER_ADDRESS, "kubernetes", "kubernetes.default.svc"];
    Ok(Files {
        ca: write("ca.crt", &ca.pem)?,
        server: write("server.pem", &ca.serving("kube-apiserver", &names).file())?,
        admin: write("admin.pem", &ca.client("admin", &["system:masters"]).file())?,
        node: write("node.pem", &ca.node(NODE).file())?,
        accounts: write("accounts.key", &accounts.serialize_pem())?,
        accounts_public: write("accounts.pub", &accounts.public_key_pem())?,
    })
}

fn etcd(options: &Options<'_>, folder: &Path) -> Result<Process> {
    let mut command = Command::new(options.bin.join("etcd"));
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args([
            "--listen-client-urls",
            "http://127.0.0.1:2379",
            "--advertise-client-urls",
            "http://127.0.0.1:2379",
        ])
        .args([
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:2380",
        ])
        .args(["--initial-cluster", "default=http://127.0.0.1:2380", "--log-level", "error"])
        // It lies in memory.
        .args(["--unsafe-no-fsync", "--quota-backend-bytes", "6000000000"]);
    Process::start("etcd", folder, command)
}

fn api_server(options: &Options<'_>, folder: &Path, files: &Files) -> Result<Process> {
    let mut command = Command::new(options.bin.join("kube-apiserver"));
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let compaction = match options.compaction {
        Compaction::Never => "0",
        Compaction::AsUsual => "5m",
    };
    command
        .args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1", "--secure-port=6443"])
        .arg(format!("--advertise-address={CLUSTER_ADDRESS}"))
        .arg(format!("--etcd-compaction-interval={compaction}"))
        .arg(flag("tls-cert-file", &files.server))
        .arg(flag("tls-private-key-file", &files.server))
        .arg(flag("client-ca-file", &files.ca))
        .arg(flag("service-account-key-file", &files.accounts_public))
        .arg(flag("service-account-signing-key-file", &files.accounts))
        .args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
        ])
        // There are no controllers that would make ServiceAccounts.
        .args(["--authorization-mode=Node,RBAC", "--disable-admission-plugins=ServiceAccount"]);
    Process::start("kube-apiserver", folder, command)
}
