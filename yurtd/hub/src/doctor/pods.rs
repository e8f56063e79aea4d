//! What there is to say of a pod of the node: by which way it reaches the API server, and what becomes of it in a reboot
//! without a link. Pure.

use yurt_api::agent::Volume;
use yurt_api::doctor::{Pod as Told, Reboot, Way};

use crate::offline::TokenRequest;
use crate::replica::needs::{Need, NeedKind, Start};
use crate::way_in::Since;
use crate::way_in::pod::Pod;

/// On what kubelet shows of a pod that it has from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether an object can be given without the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Yes,
    No,
    /// It does not exist.
    Absent,
}

/// What else is known.
pub(super) struct Known<'a> {
    /// Since when what begins goes through the hub.
    pub(super) since: Since<'a>,
    /// The host's own connections keep to the API server, because of some pod on its network.
    pub(super) host_kept: bool,
    pub(super) stored: &'a dyn Fn(&Need) -> Stored,
    /// For how many seconds the reply to this TokenRequest is good.
    pub(super) token: &'a dyn Fn(&TokenRequest) -> Option<i64>,
    /// Whether the pod's status, by namespace and name, is this node's own word.
    pub(super) ended_here: &'a dyn Fn(&str, &str) -> bool,
}

impl Known<'_> {
    fn way(&self, pod: &Pod) -> Way {
        if pod.is_ours() {
            return Way::Own;
        }
        if !pod.spec.volumes.iter().flatten().any(Volume::uses_api) {
            return Way::None;
        }
        match self.since.began_before(&pod.status) {
            None => Way::Unknown,
            Some(true) => Way::Past,
            Some(false) if pod.spec.host_network && self.host_kept => Way::Past,
            Some(false) => Way::Hub,
        }
    }

    /// Whether kubelet has nothing more to do for it, also in its next life.
    fn has_ended(&self, pod: &Pod) -> bool {
        let terminal = matches!(&*pod.status.phase, "Succeeded" | "Failed");
        // The next kubelet does not hear of an end that was one without a link.
        let taken_back = pod.spec.restart_policy == "Always"
            && (self.ended_here)(&pod.metadata.namespace, &pod.metadata.name);
        pod.metadata.deletion_timestamp.is_some() || (terminal && !taken_back)
    }
}

/// One pod, in JSON.
pub(super) fn tell(json: &[u8], known: &Known<'_>) -> Result<Told, serde_json::Error> {
    let pod: Pod = serde_json::from_slice(json)?;
    let start = Start::of(json)?;
    let mut not_stored = Vec::new();
    for need in &start.needs {
        let kind = match need.kind {
            NeedKind::ConfigMap => "ConfigMap",
            NeedKind::Secret => "Secret",
        };
        let named = format!("{kind} {}/{}", need.namespace, need.name);
        match (known.stored)(need) {
            Stored::Yes => {}
            Stored::No => not_stored.push(named),
            Stored::Absent => not_stored.push(format!("{named}, which does not exist")),
        }
    }
    let metadata = &pod.metadata;
    let bound = (&*metadata.name, &*metadata.uid);
    let mut token_ends = None;
    for token in &start.tokens {
        let (audience, seconds) = (&token.audience, token.expiration_seconds);
        let request = TokenRequest::of_pod(&metadata.namespace, &start.account, audience, seconds, bound);
        match (known.token)(&request) {
            Some(left) => token_ends = Some(token_ends.map_or(left, |ends: i64| ends.min(left))),
            None if audience.is_empty() => {
                not_stored.push(format!("the token of ServiceAccount {}", start.account))
            }
            None => not_stored.push(format!("the token of ServiceAccount {} for {audience}", start.account)),
        }
    }
    let is_mirror = metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR));
    let reboot = if is_mirror {
        Reboot::Static
    } else if known.has_ended(&pod) {
        Reboot::Ended
    } else if not_stored.is_empty() {
        Reboot::ComesBack
    } else {
        Reboot::DoesNot
    };
    Ok(Told {
        way: if reboot == Reboot::Ended { Way::None } else { known.way(&pod) },
        controlled: metadata.owner_references.iter().flatten().any(|owner| owner.controller),
        reboot,
        not_stored: if reboot == Reboot::DoesNot { not_stored } else { Vec::new() },
        token_ends_in_seconds: token_ends,
        namespace: pod.metadata.namespace,
        name: pod.metadata.name,
        phase: pod.status.phase,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use yurt_api::agent::Moment;
    use yurt_api::names;

    use super::*;

    const CAME: &str = "1970-01-01T00:01:40Z";

    fn pod() -> Value {
        json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": "u", "ownerReferences": [{"controller": true}]},
            "spec": {"restartPolicy": "Always", "serviceAccountName": "web", "containers": [],
                "volumes": [{"name": "config", "configMap": {"name": "settings"}},
                    {"name": "api", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                        {"configMap": {"name": "kube-root-ca.crt"}}]}}]},
            "status": {"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": "1970-01-01T00:01:41Z"}}}]}})
    }

    fn told(change: impl FnOnce(&mut Value), stored: Stored, token: Option<i64>) -> Told {
        let mut pod = pod();
        change(&mut pod);
        let came = Moment { boot_id: Some("1-a".into()), second: 100 };
        let known = Known {
            since: Since { came: Some(&came), believed: None, boot: Some("1a") },
            host_kept: true,
            stored: &|need| if need.name == "settings" { stored } else { Stored::Yes },
            token: &|request| {
                let expected = TokenRequest::of_pod("shop", "web", "", Some(3607), ("web-0", "u"));
                token.filter(|_| *request == expected)
            },
            ended_here: &|_, name| name == "web-1",
        };
        tell(pod.to_string().as_bytes(), &known).unwrap()
    }

    #[test]
    fn a_pod_goes_past_the_hub_if_a_container_began_before_kubelet_came_there() {
        let way = |change: &dyn Fn(&mut Value)| told(change, Stored::Yes, Some(1)).way;
        let started = |at: &str| {
            let at = at.to_owned();
            move |pod: &mut Value| {
                pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = json!(at)
            }
        };
        assert_eq!(way(&|_| {}), Way::Hub);
        assert_eq!(way(&started(CAME)), Way::Past);
        assert_eq!(way(&|pod| pod["status"] = json!({"phase": "Pending"})), Way::Hub, "it will begin there");
        assert_eq!(way(&|pod| pod["spec"]["volumes"] = Value::Null), Way::None);
        assert_eq!(
            way(&|pod| pod["spec"]["hostNetwork"] = json!(true)),
            Way::Past,
            "another one keeps the host"
        );
        assert_eq!(
            way(&|pod| pod["metadata"]["labels"] = json!({names::LABEL_PART_OF: names::PART_OF})),
            Way::Own
        );
        let known = Known {
            since: Since { came: None, believed: None, boot: None },
            host_kept: false,
            stored: &|_| Stored::Yes,
            token: &|_| None,
            ended_here: &|_, _| false,
        };
        assert_eq!(tell(pod().to_string().as_bytes(), &known).unwrap().way, Way::Unknown);
    }

    #[test]
    fn a_pod_comes_back_if_all_that_it_needs_is_stored() {
        let good = told(|_| {}, Stored::Yes, Some(3000));
        assert_eq!((good.reboot, good.token_ends_in_seconds), (Reboot::ComesBack, Some(3000)));
        assert!(good.controlled && good.not_stored.is_empty());
        let table = [
            (told(|_| {}, Stored::No, Some(1)), "ConfigMap shop/settings"),
            (told(|_| {}, Stored::Absent, Some(1)), "ConfigMap shop/settings, which does not exist"),
            (told(|_| {}, Stored::Yes, None), "the token of ServiceAccount web"),
            (
                told(|pod| pod["metadata"]["uid"] = json!("made anew"), Stored::Yes, Some(1)),
                "the token of ServiceAccount web",
            ),
        ];
        for (told, missing) in table {
            assert_eq!((told.reboot, told.not_stored), (Reboot::DoesNot, vec![missing.to_owned()]));
        }
    }

    #[test]
    fn what_has_ended_or_is_static_needs_nothing() {
        let reboot = |change: &dyn Fn(&mut Value)| told(change, Stored::No, None).reboot;
        assert_eq!(reboot(&|pod| pod["metadata"]["annotations"] = json!({MIRROR: "x"})), Reboot::Static);
        assert_eq!(reboot(&|pod| pod["status"]["phase"] = json!("Succeeded")), Reboot::Ended);
        assert_eq!(reboot(&|pod| pod["metadata"]["deletionTimestamp"] = json!(CAME)), Reboot::Ended);
        let failed = |name: &str, policy: &str| {
            told(
                |pod| {
                    pod["metadata"]["name"] = json!(name);
                    pod["spec"] = json!({"restartPolicy": policy});
                    pod["status"]["phase"] = json!("Failed");
                },
                Stored::No,
                None,
            )
            .reboot
        };
        assert_eq!(failed("web-0", "Always"), Reboot::Ended, "the cluster knows");
        assert_eq!(failed("web-1", "Always"), Reboot::ComesBack, "its end is taken back");
        assert_eq!(failed("web-1", "Never"), Reboot::Ended);
    }
}
