//! What a Node object says: its role, its conversion, its autonomy, whether it is there. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use yurt_api::{names, status::ConversionStatus};

use crate::duration;

/// What a node is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Labelled as an edge node.
    Edge,
    /// Labelled as a cloud node.
    Cloud,
    /// Not labelled.
    None,
}

impl Role {
    /// As `status` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Cloud => "cloud",
            Self::None => "<none>",
        }
    }
}

/// The node's role, by our label or by its synonym.
pub fn role(node: &Node) -> Role {
    let labels = node.labels();
    match labels.get(names::LABEL_EDGE_WORKER).or_else(|| labels.get(names::LABEL_EDGE_WORKER_LEGACY)) {
        Some(value) if value == "true" => Role::Edge,
        Some(value) if value == "false" => Role::Cloud,
        _ => Role::None,
    }
}

/// The value of our own label.
pub fn edge_label(node: &Node) -> Option<&str> {
    node.labels().get(names::LABEL_EDGE_WORKER).map(String::as_str)
}

/// True for a control-plane node.
pub fn is_control_plane(node: &Node) -> bool {
    node.labels().contains_key(names::LABEL_CONTROL_PLANE)
}

/// What the keeper reported last; an annotation that cannot be understood counts as none.
pub fn conversion(node: &Node) -> Option<ConversionStatus> {
    serde_json::from_str(report(node)?).ok()
}

/// The keeper's last report as it stands in the annotation.
pub fn report(node: &Node) -> Option<&str> {
    node.annotations().get(names::ANNOTATION_CONVERSION).map(String::as_str)
}

/// True if the node was told to go back to vanilla.
pub fn is_reverting(node: &Node) -> bool {
    node.annotations().get(names::ANNOTATION_TARGET).is_some_and(|target| target == names::TARGET_VANILLA)
}

/// Our annotations on the node, the user's autonomy ones included.
pub fn our_annotations(node: &Node) -> Vec<&'static str> {
    const OURS: [&str; 5] = [
        names::ANNOTATION_TARGET,
        names::ANNOTATION_CONVERSION,
        names::ANNOTATION_AUTONOMY,
        names::ANNOTATION_AUTONOMY_LEGACY,
        names::ANNOTATION_AUTONOMY_DURATION,
    ];
    OURS.into_iter().filter(|key| node.annotations().contains_key(*key)).collect()
}

/// True if anything of ours is on the node.
pub fn is_touched(node: &Node) -> bool {
    edge_label(node).is_some() || !our_annotations(node).is_empty() || has_condition(node)
}

/// The condition that shows whether the node is autonomous.
pub const CONDITION_AUTONOMY: &str = "Autonomy";

/// True if the node has the condition `Autonomy`.
pub fn has_condition(node: &Node) -> bool {
    condition(node, CONDITION_AUTONOMY).is_some()
}

/// A condition of the node: its status, reason and since when.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::NodeCondition> {
    node.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|entry| entry.type_ == kind)
}

/// True if kubelet says that the node is ready and the control plane believes it.
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The node's address for other components.
pub fn internal_ip(node: &Node) -> Option<&str> {
    node.status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .find(|address| address.type_ == "InternalIP")
        .map(|address| address.address.as_str())
}

/// Label of the nodes of MicroK8s, whose kubelet's version says nothing.
const LABEL_MICROK8S: &str = "microk8s.io/cluster";

/// The node's layout, if it is one that is known not to be kubeadm's: kubelet is then no systemd unit of its own, has
/// its files elsewhere, or the node's image undoes what is changed.
pub fn foreign_layout(node: &Node) -> Option<&'static str> {
    const SUFFIXES: [(&str, &str); 5] =
        [("+k3s", "k3s"), ("+rke2", "RKE2"), ("+k0s", "k0s"), ("-eks-", "EKS"), ("-gke", "GKE")];
    if node.labels().contains_key(LABEL_MICROK8S) {
        return Some("MicroK8s");
    }
    let version = &node.status.as_ref()?.node_info.as_ref()?.kubelet_version;
    SUFFIXES.iter().find(|(suffix, _)| version.contains(suffix)).map(|(_, layout)| *layout)
}

/// How autonomous the node is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autonomy {
    /// The annotation that says so.
    pub source: &'static str,
    /// For how long; `None` for ever.
    pub limit: Option<Duration>,
    /// What is wrong with the annotation that sets the limit.
    pub fault: Option<String>,
}

/// What the node's annotations ask for; `None` if it is not autonomous.
pub fn autonomy(node: &Node) -> Option<Autonomy> {
    let annotations = node.annotations();
    let on = |key: &str| annotations.get(key).is_some_and(|value| value == "true");
    let plain =
        [names::ANNOTATION_AUTONOMY, names::ANNOTATION_AUTONOMY_LEGACY].into_iter().find(|key| on(key));
    let Some(text) = annotations.get(names::ANNOTATION_AUTONOMY_DURATION) else {
        return plain.map(|source| Autonomy { source, limit: None, fault: None });
    };
    match duration::parse(text) {
        Ok(limit) => Some(Autonomy {
            source: plain.unwrap_or(names::ANNOTATION_AUTONOMY_DURATION),
            limit: Some(limit).filter(|limit| !limit.is_zero()),
            fault: None,
        }),
        // An unparsable value counts as what the plain annotation says.
        Err(error) => plain.map(|source| Autonomy { source, limit: None, fault: Some(error.to_string()) }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(metadata: serde_json::Value) -> Node {
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    #[test]
    fn the_synonym_is_read_but_ours_decides() {
        assert_eq!(role(&node(json!({ "labels": { names::LABEL_EDGE_WORKER_LEGACY: "true" } }))), Role::Edge);
        assert_eq!(
            role(&node(json!({ "labels": {
                names::LABEL_EDGE_WORKER: "false", names::LABEL_EDGE_WORKER_LEGACY: "true" } }))),
            Role::Cloud
        );
        assert_eq!(role(&node(json!({}))), Role::None);
    }

    #[test]
    fn an_unreadable_report_counts_as_none() {
        let annotated = |text: &str| node(json!({ "annotations": { names::ANNOTATION_CONVERSION: text } }));
        assert!(conversion(&annotated("{")).is_none());
        let text = r#"{"state":"Converted","version":"0.1.0","time":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(
            conversion(&annotated(text)).map(|status| status.state),
            Some(yurt_api::status::ConversionState::Converted)
        );
    }

    #[test]
    fn autonomy_comes_from_either_name_and_a_limit_is_optional() {
        let asked = |annotations: serde_json::Value| autonomy(&node(json!({ "annotations": annotations })));
        assert_eq!(asked(json!({})), None);
        assert_eq!(asked(json!({ names::ANNOTATION_AUTONOMY: "false" })), None);
        assert_eq!(
            asked(json!({ names::ANNOTATION_AUTONOMY_LEGACY: "true" })).map(|autonomy| autonomy.source),
            Some(names::ANNOTATION_AUTONOMY_LEGACY)
        );
        let limited = asked(json!({ names::ANNOTATION_AUTONOMY_DURATION: "1h" })).unwrap();
        assert_eq!(limited.limit, Some(Duration::from_secs(3600)));
        let for_ever = asked(json!({ names::ANNOTATION_AUTONOMY_DURATION: "0" })).unwrap();
        assert_eq!(for_ever.limit, None);
        assert_eq!(asked(json!({ names::ANNOTATION_AUTONOMY_DURATION: "soon" })), None);
        let faulty =
            asked(json!({ names::ANNOTATION_AUTONOMY: "true", names::ANNOTATION_AUTONOMY_DURATION: "soon" }));
        assert!(faulty.unwrap().fault.is_some());
    }

    #[test]
    fn a_layout_shows_in_kubelet_s_version_or_in_a_label() {
        let layout = |version: &str| {
            let mut node = node(json!({}));
            let info = json!({ "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": version, "machineID": "", "operatingSystem": "",
                "osImage": "", "systemUUID": "" });
            node.status = serde_json::from_value(json!({ "nodeInfo": info })).unwrap();
            foreign_layout(&node)
        };
        for (version, expected) in [
            ("v1.36.3", None),
            ("v1.36.3-rc.1", None),
            ("v1.34.1+k3s1", Some("k3s")),
            ("v1.34.1+rke2r2", Some("RKE2")),
            ("v1.34.1+k0s", Some("k0s")),
            ("v1.34.1-eks-113cf36", Some("EKS")),
            ("v1.34.1-gke.1829001", Some("GKE")),
        ] {
            assert_eq!(layout(version), expected, "{version}");
        }
        assert_eq!(foreign_layout(&node(json!({ "labels": { LABEL_MICROK8S: "true" } }))), Some("MicroK8s"));
    }

    #[test]
    fn readiness_is_true_only_when_it_is_said() {
        let with = |status: &str| -> Node {
            serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": [
                { "type": "Ready", "status": status } ] } }))
            .unwrap()
        };
        assert!(is_ready(&with("True")));
        assert!(!is_ready(&with("Unknown")));
        assert!(!is_ready(&node(json!({}))));
    }
}
