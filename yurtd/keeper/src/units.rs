//! What the keeper writes into `/etc/systemd/system`.

use yurt_api::names;

/// A unit of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    pub name: &'static str,
    pub text: &'static str,
    /// The target whose `.wants` folder gets a symlink to the unit.
    pub wanted_by: &'static str,
}

impl Unit {
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", names::SYSTEMD_DIR, self.name)
    }

    pub(crate) fn wants_dir(&self) -> String {
        format!("{}/{}.wants", names::SYSTEMD_DIR, self.wanted_by)
    }

    pub(crate) fn wants_link(&self) -> String {
        format!("{}/{}", self.wants_dir(), self.name)
    }
}

/// Holds the pods' address on `lo`.
pub(crate) const ADDRESS: Unit = Unit {
    name: names::UNIT_ADDRESS,
    text: include_str!("units/yurt-address.service"),
    wanted_by: "multi-user.target",
};
/// Holds the hub's sockets.
pub(crate) const SOCKET: Unit =
    Unit { name: names::UNIT_SOCKET, text: include_str!("units/yurtd.socket"), wanted_by: "sockets.target" };
/// The hub and tunnel agent.
pub(crate) const SERVICE: Unit = Unit {
    name: names::UNIT_SERVICE,
    text: include_str!("units/yurtd.service"),
    wanted_by: "multi-user.target",
};

/// In the order in which they start.
pub(crate) const ALL: [Unit; 3] = [ADDRESS, SOCKET, SERVICE];

/// kubelet's unit.
pub(crate) const KUBELET: &str = "kubelet.service";
/// The variable by which kubeadm's drop-in gives kubelet its kubeconfig.
pub(crate) const KUBECONFIG_VARIABLE: &str = "KUBELET_KUBECONFIG_ARGS";

/// Drop-in that points kubelet at the hub. Of drop-ins the last by file name counts; what the variable carries besides
/// stays as it is.
pub(crate) fn kubelet_drop_in(other_flags: &[String]) -> String {
    let kubeconfig = format!("--kubeconfig={}", names::KUBELET_KUBECONFIG);
    // `%` begins a specifier in a unit.
    let others = other_flags.iter().map(|word| word.replace('%', "%%"));
    let flags: Vec<String> =
        ["--bootstrap-kubeconfig=".into(), kubeconfig].into_iter().chain(others).collect();
    format!(
        "# Written by kubectl-yurt (`yurtd keeper`), removed by `kubectl yurt revert`.\n\
         [Service]\n\
         Environment=\"{KUBECONFIG_VARIABLE}={}\"\n",
        flags.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_names_agree_on_paths_and_ports() {
        for expected in [
            format!("{}:{}", "127.0.0.1", names::HUB_PORT),
            format!("{}:{}", "127.0.0.1", names::HUB_HEALTH_PORT),
            format!("{}:{}", names::HUB_POD_ADDRESS, names::HUB_POD_PORT),
        ] {
            assert!(SOCKET.text.contains(&format!("ListenStream={expected}\n")), "{expected}");
        }
        assert!(SERVICE.text.contains(&format!("ExecStart={}/yurtd edge\n", names::CURRENT_LINK)));
        for line in ["ExecStartPre=@ add", "ExecStart=@ hold", "ExecStopPost=@ remove"] {
            let program = format!("{}/yurtd address", names::CURRENT_LINK);
            assert!(ADDRESS.text.contains(&format!("{}\n", line.replace('@', &program))), "{line}");
        }
        for address in [names::HUB_POD_ADDRESS.to_owned(), names::HUB_POD_IPV6.to_string()] {
            assert!(ADDRESS.text.contains(&address), "{address}");
        }
        // Where the kernel has no IPv6 the unit would not start, and the other sockets would be gone with it.
        assert!(!SOCKET.text.contains("ListenStream=["));
        assert_eq!(names::STATE_DIR, "/var/lib/yurt");
        assert!(SERVICE.text.contains("\nStateDirectory=yurt\n"));
        assert_eq!(names::RUNTIME_DIR, "/run/yurt");
        assert!(SERVICE.text.contains("\nRuntimeDirectory=yurt\nRuntimeDirectoryMode=0700\n"));
        assert_eq!(names::ADDRESS_RUNTIME_DIR, "/run/yurt-address");
        assert!(ADDRESS.text.contains("\nRuntimeDirectory=yurt-address\n"));
    }

    #[test]
    fn the_drop_in_carries_other_flags_and_sorts_after_those_of_distributions_and_administrators() {
        let text = kubelet_drop_in(&["--node-ip=10.0.0.7".into(), "--x=100%".into()]);
        let expected = format!("--kubeconfig={} --node-ip=10.0.0.7 --x=100%%\"\n", names::KUBELET_KUBECONFIG);
        assert!(text.ends_with(&expected), "{text}");
        let (_, name) = names::KUBELET_DROP_IN.rsplit_once('/').unwrap();
        for other in ["10-kubeadm.conf", "90-local.conf", "kubeadm.conf", "override.conf", "service.conf"] {
            assert!(other < name, "{other}");
        }
    }

    #[test]
    fn every_unit_is_wanted_where_its_install_section_says() {
        for unit in ALL {
            assert!(unit.text.contains(&format!("WantedBy={}\n", unit.wanted_by)), "{}", unit.name);
        }
    }
}
