//! The Go programs: Kubernetes as one multi-call binary, etcd, CoreDNS, pause; metrics-server; flannel.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Key, cached};
use crate::{paths, run};

pub const KUBERNETES_VERSION: &str = "v1.36.3";
pub const ETCD_VERSION: &str = "3.6.16";
pub const COREDNS_VERSION: &str = "v1.13.1";

/// The names that the Kubernetes binary answers to.
const KUBERNETES: &[&str] = &[
    "kubelet",
    "kubeadm",
    "kubectl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

/// Largest first: it decides how long this takes.
const PROGRAMS: &[&str] = &["kubernetes", "etcd", "coredns", "pause"];

/// metrics-server, which only `kubectl top` needs: it shares little with the others and takes as long
/// as Kubernetes itself.
pub(super) fn metrics_server() -> Result<PathBuf> {
    program("metrics-server")
}

/// The clients of `make torture`.
pub(super) fn torture() -> Result<PathBuf> {
    program("torture")
}

/// flannel's agent and its CNI plugin, in a folder each.
pub(super) fn flannel() -> Result<(PathBuf, PathBuf)> {
    Ok((program("flannel")?, program("flannel-cni")?))
}

/// A folder with all programs; `YURT_TESTBED_BIN` names one that was built elsewhere.
pub(super) fn build() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("YURT_TESTBED_BIN") {
        let given = PathBuf::from(given);
        for program in PROGRAMS {
            if !given.join(program).is_file() {
                bail!("YURT_TESTBED_BIN={}: no `{program}` there", given.display());
            }
        }
        return Ok(given);
    }
    // A folder per program: a change to one does not build the others again.
    let mut built = Vec::new();
    let mut all = Key::new();
    for program in PROGRAMS {
        let folder = self::program(program)?;
        all = all.add(folder.as_os_str().as_encoded_bytes());
        built.push((program, folder));
    }
    cached("bin", &all, |folder| {
        for (program, from) in &built {
            fs::hard_link(from.join(program), folder.join(program))?;
        }
        for name in KUBERNETES {
            symlink("kubernetes", folder.join(name))?;
        }
        Ok(())
    })
}

fn program(name: &str) -> Result<PathBuf> {
    let key = Key::new().add_folder(&paths::sources().join(name))?.add(linker_flags());
    cached(name, &key, |folder| compile(name, folder))
}

fn compile(program: &str, into: &std::path::Path) -> Result<()> {
    let mut command = Command::new("go");
    command
        .current_dir(paths::sources().join(program))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false -mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .args(["build", "-trimpath", "-ldflags", &linker_flags(), "-o"])
        .arg(into.join(program))
        .arg(package(program));
    // Its progress (downloads) is shown: the first build takes minutes.
    run::show(command).context("building with Go 1.26 (`go` must be on the PATH)")
}

/// What is built: the folder's own program, or somebody else's that its `go.mod` names as a tool.
fn package(program: &str) -> &'static str {
    match program {
        "flannel-cni" => "github.com/containernetworking/plugins/plugins/meta/flannel",
        _ => ".",
    }
}

/// kubeadm refuses to work with binaries that do not know their version.
fn linker_flags() -> String {
    let mut flags = "-s -w".to_owned();
    let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap_or_default();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", KUBERNETES_VERSION),
            ("gitMajor", "1"),
            ("gitMinor", minor),
            ("gitCommit", "unknown"),
            ("gitTreeState", "clean"),
            ("buildDate", "2026-01-01T00:00:00Z"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}
