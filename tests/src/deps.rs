//! The Debian packages that the testbed needs on its host, installed when they are missing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cgroup, run};

/// A program and the package it comes from.
const NEEDED: &[(&str, &str)] = &[
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("findmnt", "mount"),
];

/// Why nothing here can run on this machine, if so: tests skip with this reason.
pub fn impossible() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the testbed needs root".to_owned());
    }
    if !std::path::Path::new("/proc/self/ns/net").exists() {
        return Some("this kernel has no network namespaces".to_owned());
    }
    if let Err(error) = run::sh("unshare", &["--net", "--mount", "true"]) {
        return Some(format!("namespaces cannot be made here: {error:#}"));
    }
    cgroup::impossible()
}

/// Installs what is missing.
pub fn install() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the testbed needs root");
    }
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    let apt = |args: &[&str]| -> Result<String> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        run::output(command)
    };
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    if apt(&install).is_err() {
        // The package lists may be absent or stale.
        apt(&["update", "-q"])?;
        apt(&install).context("installing the packages that the testbed needs")?;
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
