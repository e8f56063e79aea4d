//! The root file system that every machine starts as a copy of: Debian with systemd, containerd and
//! the CNI plugins, prepared as the Kubernetes packages would.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Key, cached};
use crate::{paths, run};

const SUITE: &str = "bookworm";

/// What a node has, and (nginx, busybox) what the workload's image is cut from.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "iproute2",
    "procps",
    "containerd",
    "runc",
    "iptables",
    "nftables",
    "conntrack",
    "socat",
    "kmod",
    "ca-certificates",
    "ethtool",
    "util-linux",
    "containernetworking-plugins",
    "curl",
    "iputils-ping",
    "netcat-openbsd",
    "tcpdump",
    "nginx-light",
    "busybox-static",
];

/// Not part of a node, or of no use on one that nobody logs in to.
const DROPPED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log/apt",
];

const DISABLED: &[&str] = &[
    "nginx.service",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "logrotate.timer",
    "man-db.timer",
    "console-getty.service",
];

pub(super) fn build(bin: &Path) -> Result<PathBuf> {
    let debian = Key::new().add(SUITE).add(PACKAGES.join(" "));
    let debian = cached("debian", &debian, |folder| {
        let mut command = Command::new("debootstrap");
        command
            .arg("--variant=minbase")
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(SUITE)
            .arg(folder);
        run::run_with(command, None, std::time::Duration::from_secs(900))?.success()?;
        for dropped in DROPPED {
            let path = folder.join(dropped);
            if path.exists() {
                fs::remove_dir_all(&path)?;
                fs::create_dir(&path)?;
            }
        }
        Ok(())
    })?;
    let key = Key::new()
        .add(debian.as_os_str().as_encoded_bytes())
        .add(bin.as_os_str().as_encoded_bytes())
        .add(include_str!("root.rs"))
        .add_folder(&paths::sources().join("machine"))?;
    cached("root", &key, |folder| {
        run::sh(
            "cp",
            &["-a", "--reflink=auto", &format!("{}/.", debian.display()), &folder.display().to_string()],
        )?;
        prepare(folder, bin)
    })
}

fn prepare(root: &Path, bin: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in DISABLED {
        let mask = units.join(unit);
        fs::remove_file(&mask).ok();
        symlink("/dev/null", mask)?;
    }
    fs::copy(bin.join("kubernetes"), root.join("usr/bin/kubernetes"))?;
    for name in ["kubelet", "kubeadm", "kubectl"] {
        symlink("kubernetes", root.join("usr/bin").join(name))?;
    }
    // The files that make a machine of ours out of it, laid out as they are in the machine.
    let ours = paths::sources().join("machine");
    run::sh("cp", &["-r", &format!("{}/.", ours.display()), &root.display().to_string()])?;
    for (folder, unit, target) in [
        (Path::new("/etc/systemd/system"), "testbed-machine.service", "sysinit"),
        (Path::new("/etc/systemd/system"), "testbed-online.service", "network-online"),
        (Path::new("/usr/lib/systemd/system"), "kubelet.service", "multi-user"),
    ] {
        let wants = units.join(format!("{target}.target.wants"));
        fs::create_dir_all(&wants)?;
        symlink(folder.join(unit), wants.join(unit))?;
    }
    // Every machine makes its own.
    fs::write(root.join("etc/machine-id"), "")?;
    fs::remove_file(root.join("var/lib/dbus/machine-id")).ok();
    fs::remove_file(root.join("etc/resolv.conf")).ok();
    fs::remove_file(root.join("etc/hostname")).ok();
    Ok(())
}
