//! What is kept when something went wrong: enough to find out why without running it again.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::kubectl::Kubectl;
use crate::machine::{self, Machine};
use crate::{paths, run};

/// What to ask of every machine, and the file that keeps the answer.
const FROM_MACHINES: &[(&str, &str)] = &[
    ("journal.txt", "journalctl --no-pager -b -o short-precise"),
    ("journal-before.txt", "journalctl --no-pager -b -1 -o short-precise 2>&1 || true"),
    ("units.txt", "systemctl --no-pager --all list-units"),
    ("sockets.txt", "ss -tunap"),
    ("addresses.txt", "ip addr; ip route"),
    ("rules.txt", "nft list ruleset"),
    ("processes.txt", "ps axf -o pid,ppid,etime,rss,args"),
    ("containers.txt", "ctr -n k8s.io containers ls; ctr -n k8s.io tasks ls; ctr -n k8s.io images ls"),
    ("yurt.txt", "ls -laR /var/lib/yurt /opt/yurt /etc/systemd/system 2>&1 || true"),
];

/// What to ask of the cluster.
const FROM_CLUSTER: &[(&str, &[&str])] = &[
    ("objects.txt", &["get", "all,configmaps,nodes,csr,leases,events", "-A", "-o", "wide"]),
    ("autonomous-nodes.yaml", &["get", "autonomousnodes", "-o", "yaml"]),
    ("nodes.txt", &["describe", "nodes"]),
    ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
];

/// Gathers everything into `target/e2e/<test>/`; returns that folder. What cannot be had is noted
/// there in place of its contents: a broken cluster is when this is needed.
pub fn collect(test: &str, kubectl: &Kubectl) -> Result<PathBuf> {
    let folder = paths::target().join("e2e").join(test);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for (_, root) in machine::nspawns() {
        let Some(name) = root.file_name().and_then(|name| name.to_str()) else { continue };
        let machine = Machine::find(name)?;
        let into = folder.join(name);
        fs::create_dir_all(&into)?;
        for (file, script) in FROM_MACHINES {
            let text = machine.sh(script).unwrap_or_else(|error| format!("{error:#}\n"));
            fs::write(into.join(file), text)?;
        }
        // Pod logs from the node's disk: the API server may have no way to it.
        run::sh(
            "cp",
            &["-rL", &root.join("var/log/containers").display().to_string(), &into.display().to_string()],
        )
        .ok();
    }
    for (file, args) in FROM_CLUSTER {
        let text = kubectl.run(*args).map_or_else(
            |error| format!("{error:#}"),
            |found| {
                if found.ok() { found.stdout() } else { found.to_string() }
            },
        );
        fs::write(folder.join(file), text)?;
    }
    Ok(folder)
}
