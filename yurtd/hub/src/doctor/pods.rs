//! What there is to say of a pod of the node: by which way it reaches the API server, and what becomes of it in a reboot
//! without a link. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use yurt_api::agent::{Moment, Volume};
use yurt_api::doctor::{Pod as Told, Reboot, Way};
use yurt_api::names;

use crate::offline::TokenRequest;
use crate::replica::needs::{Need, NeedKind, Start};

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
    /// When kubelet came to the hub.
    pub(super) came: Option<&'a Moment>,
    /// This boot.
    pub(super) boot: Option<&'a str>,
    pub(super) stored: &'a dyn Fn(&Need) -> Stored,
    /// For how many seconds the reply to this TokenRequest is good.
    pub(super) token: &'a dyn Fn(&TokenRequest) -> Option<i64>,
    /// Whether the pod's status, by namespace and name, is this node's own word.
    pub(super) ended_here: &'a dyn Fn(&str, &str) -> bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    restart_policy: String,
    volumes: Option<Vec<Volume>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: String,
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    state: State,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct State {
    running: Option<Running>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Running {
    /// RFC 3339
    started_at: Option<String>,
}

impl Pod {
    fn way(&self, known: &Known<'_>) -> Way {
        let part_of = self.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_PART_OF));
        if part_of.is_some_and(|part_of| part_of == names::PART_OF) {
            return Way::Own;
        }
        if !self.spec.volumes.iter().flatten().any(Volume::uses_api) {
            return Way::None;
        }
        let Some(came) = known.came else { return Way::Unknown };
        let statuses = [&self.status.init_container_statuses, &self.status.container_statuses];
        let running =
            statuses.into_iter().flatten().flatten().filter_map(|container| container.state.running.as_ref());
        let mut starts =
            running.filter_map(|running| running.started_at.as_deref()?.parse::<Timestamp>().ok());
        let past = starts.any(|started| came.is_after(started.as_second(), known.boot));
        if past { Way::Past } else { Way::Hub }
    }

    /// Whether kubelet has nothing more to do for it, also in its next life.
    fn has_ended(&self, known: &Known<'_>) -> bool {
        let terminal = matches!(&*self.status.phase, "Succeeded" | "Failed");
        // The next kubelet does not hear of an end that was one without a link.
        let taken_back = self.spec.restart_policy == "Always"
            && (known.ended_here)(&self.metadata.namespace, &self.metadata.name);
        self.metadata.deletion_timestamp.is_some() || (terminal && !taken_back)
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
    } else if pod.has_ended(known) {
        Reboot::Ended
    } else if not_stored.is_empty() {
        Reboot::ComesBack
    } else {
        Reboot::DoesNot
    };
    Ok(Told {
        way: if reboot == Reboot::Ended { Way::None } else { pod.way(known) },
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
            came: Some(&came),
            boot: Some("1a"),
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
            way(&|pod| pod["metadata"]["labels"] = json!({names::LABEL_PART_OF: names::PART_OF})),
            Way::Own
        );
        let known = Known {
            came: None,
            boot: None,
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
