//! Who is not sent to the hub, out of the node's pods: whoever may run from before it could be believed. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use yurt_api::agent::Turn;

use super::pod::Pod;
use super::since::Since;

/// Who keeps to the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Excluded {
    /// Addresses of pods.
    pub(crate) past: BTreeSet<IpAddr>,
    /// Pods on the host's network, `namespace/name`. The kernel cannot tell their connections from anybody else's of the
    /// host, so because of them all of these keep to the API server.
    pub(crate) on_host: BTreeSet<String>,
    /// Of what runs from before it is not known where: nobody can be sent to the hub.
    pub(crate) unplaced: BTreeSet<String>,
}

impl Excluded {
    /// Looks at a pod. Nothing when it is not known what runs from before. Those in `turn` are about to be restarted.
    pub(crate) fn add(&mut self, pod: &Pod, since: &Since<'_>, turn: Option<&Turn>) -> Option<()> {
        let before = since.began_before(&pod.status)?;
        // Without a token too: it may have read the CA beside another one's, or have a kubeconfig.
        if !before || pod.is_ours() {
            return Some(());
        }
        let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
        if turn.is_some_and(|turn| turn.pods.contains(&name)) {
            return Some(());
        }
        if pod.spec.host_network {
            self.on_host.insert(name);
            return Some(());
        }
        let mut placed = false;
        for address in pod.status.addresses() {
            placed = true;
            self.past.insert(address);
        }
        if !placed {
            self.unplaced.insert(name);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use yurt_api::agent::Moment;
    use yurt_api::names;

    use super::*;

    const BEFORE: &str = "1970-01-01T00:01:40Z";
    const LATER: &str = "1970-01-01T00:01:41Z";

    fn pod(name: &str, started: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({"metadata": {"namespace": "shop", "name": name},
            "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}],
                "containerStatuses": [{"state": {"running": {"startedAt": started}}}]}});
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn excluded(pods: &[Pod], boot: &str) -> Excluded {
        excluded_in(pods, boot, &[])
    }

    fn excluded_in(pods: &[Pod], boot: &str, turn: &[&str]) -> Excluded {
        let turn = Turn { second: 1, pods: turn.iter().map(|&name| name.to_owned()).collect() };
        let came = Moment { boot_id: Some("one".into()), second: 100 };
        let since = Since { came: Some(&came), believed: None, boot: Some(boot) };
        let mut excluded = Excluded::default();
        for pod in pods {
            excluded.add(pod, &since, Some(&turn)).unwrap();
        }
        excluded
    }

    #[test]
    fn a_pod_with_a_container_from_before_is_not_sent_to_the_hub_token_or_not() {
        let sidecar = |pod: &mut Value| {
            pod["status"]["initContainerStatuses"] = json!([{"state": {"running": {"startedAt": BEFORE}}}]);
            pod["status"]["podIPs"] = json!([{"ip": "10.244.1.6"}]);
            pod["status"]["podIP"] = json!("10.244.1.6");
        };
        let new =
            |pod: &mut Value| pod["status"]["podIPs"] = json!([{"ip": "10.244.1.7"}, {"ip": "fd00::7"}]);
        let crashed = |pod: &mut Value| {
            pod["status"]["containerStatuses"] =
                json!([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        };
        let pods = [
            pod("old", BEFORE, |_| {}),
            pod("sidecar", LATER, sidecar),
            pod("new", LATER, new),
            pod("crashed", LATER, crashed),
            pod("pending", LATER, |pod| pod["status"] = json!({"phase": "Pending"})),
        ];
        let found = excluded(&pods, "one");
        let expected = ["10.244.1.5", "10.244.1.6", "fd00::5"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(found, Excluded { past: expected, ..Excluded::default() });
        assert_eq!(excluded(&pods, "two"), Excluded::default(), "nothing from before a reboot runs after it");
    }

    #[test]
    fn one_on_the_hosts_network_keeps_the_host_to_the_api_server_unless_it_is_ours() {
        let host = |pod: &mut Value| pod["spec"]["hostNetwork"] = json!(true);
        let ours = |pod: &mut Value| {
            pod["spec"]["hostNetwork"] = json!(true);
            pod["metadata"]["labels"] = json!({names::LABEL_PART_OF: names::PART_OF});
        };
        let pods = [pod("exporter", BEFORE, host), pod("flannel", LATER, host), pod("yurtd", BEFORE, ours)];
        let found = excluded(&pods, "one");
        assert_eq!(found.on_host, BTreeSet::from(["shop/exporter".to_owned()]));
        assert!(found.past.is_empty());
        let found = excluded_in(&pods, "one", &["shop/exporter"]);
        assert_eq!(found, Excluded::default(), "it is about to be restarted");
    }

    #[test]
    fn nobody_is_covered_blindly() {
        let nowhere = |pod: &mut Value| {
            pod["status"]["podIP"] = Value::Null;
            pod["status"]["podIPs"] = Value::Null;
        };
        let found = excluded(&[pod("nowhere", BEFORE, nowhere)], "one");
        assert_eq!(found.unplaced, BTreeSet::from(["shop/nowhere".to_owned()]));
        let unknown = Since { came: None, believed: None, boot: Some("one") };
        assert_eq!(Excluded::default().add(&pod("old", LATER, |_| {}), &unknown, None), None);
    }
}
