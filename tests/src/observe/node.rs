//! Everything of a machine that a conversion could leave something behind in.

use anyhow::Result;

use super::Snapshot;
use crate::machine::Machine;

/// A section and the script that prints its lines.
///
/// Left out, because Kubernetes changes it by itself: pods' volumes, logs and interfaces, kubelet's own
/// certificates, kube-proxy's and the CNI plugins' rules for the pods that run now.
const SECTIONS: &[(&str, &str)] = &[
    (
        "file",
        "find /etc /opt /usr/lib/systemd /usr/local /root /var/lib/kubelet/config.yaml \
             /var/lib/kubelet/kubeadm-flags.env -xdev -printf '%y %m %u:%g %p %l\\n'",
    ),
    (
        "contents",
        "find /etc /opt /usr/lib/systemd /usr/local /root /var/lib/kubelet/config.yaml \
             /var/lib/kubelet/kubeadm-flags.env -xdev -type f -exec sha256sum '{}' +",
    ),
    ("folder", "find /var/lib /var/cache /srv /home -xdev -maxdepth 1 -printf '%y %m %u:%g %p %l\\n'"),
    (
        "name with yurt",
        "find / -xdev \\( -path /var/lib/containerd -o -path /proc -o -path /sys \\) -prune -o -iname '*yurt*' -print",
    ),
    ("runtime unit", "find /run/systemd/system /run/systemd/transient /run/systemd/generator -name '*.service' -o -name '*.socket' 2>/dev/null || true"),
    ("unit file", "systemctl list-unit-files --no-legend --no-pager | awk '{print $1, $2}'"),
    (
        "unit",
        "systemctl list-units --all --no-legend --no-pager --plain --type=service,socket,timer,path |
         awk '$1 !~ /^systemd-|^modprobe@/ && $2 == \"loaded\" {print $1, $3}'",
    ),
    ("failed unit", "systemctl list-units --failed --no-legend --no-pager --plain | awk '{print $1}'"),
    ("kubelet", "tr '\\0' '\\n' < /proc/$(pidof kubelet)/cmdline; systemctl show kubelet -p DropInPaths -p ExecStart --value | sed 's/; start_time=.*//'"),
    // Ports that a program lets the kernel choose differ from boot to boot.
    (
        "socket",
        "ss -Hlntup | awk '{print $1, $5, $7}' | sed -E 's/users:\\(\\(\"([^\"]+)\".*/\\1/; s/:(3[2-9]|[4-6][0-9])[0-9]{3} /:chosen /'",
    ),
    ("address", "ip -o addr | awk '$2 !~ /^veth/ && $4 !~ /^fe80/ {print $2, $4}'"),
    ("route", "ip route; ip rule; ip -6 route | grep -v fe80 || true"),
    (
        "rule",
        "nft -s list ruleset 2>/dev/null | awk '
            /^table/ { table = $0; skip = table ~ /kube-proxy/ }
            /^\\tchain|^\\tset|^\\tmap/ { chain = $0; of_pod = chain ~ /CNI|KUBE-(SVC|SEP|SERVICES|NODEPORTS|EXT|POSTROUTING)/ }
            /^table/ && !skip { print; chain = \"\"; of_pod = 0; next }
            !skip && !of_pod && NF && $1 != \"}\" && $0 !~ /CNI|KUBE-/ { print table, chain, $0 }'",
    ),
    (
        "rule of ours",
        "nft -s list ruleset 2>/dev/null | grep -inE 'yurt|169\\.254\\.2\\.1|1026[0-9]' || true",
    ),
    (
        "kernel setting",
        "sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.(conf\\.(all|default|lo|eth0)\\.|ip_)' | grep -vE 'stable_secret|mc_forwarding' || true",
    ),
    ("process", "ps -eo comm= | grep -i yurt || true"),
    ("user", "getent passwd; getent group"),
];

/// What the machine looks like now.
pub fn snapshot(machine: &Machine) -> Result<Snapshot> {
    SECTIONS
        .iter()
        .map(|(section, script)| {
            let lines = machine.sh(script)?;
            let lines = lines.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty());
            Ok((format!("{} {section}", machine.name()), lines.collect()))
        })
        .collect()
}

/// The far ends of a program's established connections on a machine.
pub fn connections(machine: &Machine, program: &str) -> Result<Vec<String>> {
    let quoted = format!("((\"{program}\",");
    let lines = machine.exec(["ss", "-Htnp", "state", "established"])?.success()?;
    Ok(lines
        .lines()
        .filter(|line| line.contains(&quoted))
        .filter_map(|line| line.split_whitespace().nth(3))
        .map(str::to_owned)
        .collect())
}
