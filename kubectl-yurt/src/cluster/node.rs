//! What a Node object says: what it is to us, its conversion, its autonomy, whether it is there; and the one way in which
//! we change it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use yurt_api::{
    names,
    node::{Autonomy, Kind},
    status::ConversionStatus,
};

use crate::{
    connect::session::Session,
    error::{Error, is_not_found},
    output::words::join,
};

/// What the node is to us, by our label or by its synonym.
pub fn kind(node: &Node) -> Kind {
    Kind::of(node.metadata.labels.as_ref())
}

/// True for an edge node.
pub fn is_edge(node: &Node) -> bool {
    kind(node).is_edge()
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
    serde_json::from_str(report_text(node)?).ok()
}

/// The keeper's last report as it stands in the annotation.
pub fn report_text(node: &Node) -> Option<&str> {
    node.annotations().get(names::ANNOTATION_CONVERSION).map(String::as_str)
}

/// True if the node was told to go back to vanilla.
pub fn is_reverting(node: &Node) -> bool {
    node.annotations().get(names::ANNOTATION_TARGET).is_some_and(|target| target == names::TARGET_VANILLA)
}

/// The annotations with which a person asks for autonomy.
pub const AUTONOMY_ANNOTATIONS: [&str; 3] =
    [names::ANNOTATION_AUTONOMY, names::ANNOTATION_AUTONOMY_LEGACY, names::ANNOTATION_AUTONOMY_DURATION];

/// The annotations with which plugin and keeper talk to each other.
pub const CONVERSION_ANNOTATIONS: [&str; 3] =
    [names::ANNOTATION_TARGET, names::ANNOTATION_AGENTS, names::ANNOTATION_CONVERSION];

/// What tells a keeper what to do with its node's agents, as the value of their annotation in a patch.
pub fn agents_annotation(keep: bool) -> Value {
    if keep { json!(names::AGENTS_KEEP) } else { Value::Null }
}

/// True if the node has one of these annotations.
pub fn has_any(node: &Node, annotations: &[&str]) -> bool {
    annotations.iter().any(|name| node.annotations().contains_key(*name))
}

/// True if anything of ours is on the node.
pub fn is_touched(node: &Node) -> bool {
    edge_label(node).is_some()
        || node.labels().contains_key(names::LABEL_KUBELET_PORT)
        || has_any(node, &CONVERSION_ANNOTATIONS)
        || has_any(node, &AUTONOMY_ANNOTATIONS)
        || has_condition(node)
}

/// What takes these annotations away in a patch.
pub fn without<'a>(annotations: impl IntoIterator<Item = &'a &'a str>) -> Value {
    annotations
        .into_iter()
        .map(|name| ((*name).to_owned(), Value::Null))
        .collect::<serde_json::Map<_, _>>()
        .into()
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

/// Where the API server finds the node's kubelet: its address, and the port in its status.
pub fn kubelet_endpoint(node: &Node) -> Option<String> {
    let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref();
    let port =
        endpoints.and_then(|endpoints| endpoints.kubelet_endpoint.as_ref()).map(|endpoint| endpoint.port);
    let port = port.filter(|port| *port != 0).unwrap_or_else(|| names::KUBELET_PORT.into());
    let address = internal_ip(node)?;
    Some(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
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

/// What the node's annotations ask for.
pub fn autonomy(node: &Node) -> Autonomy<'_> {
    Autonomy::of(node.metadata.annotations.as_ref())
}

/// Refuses names that no node has.
///
/// # Errors
///
/// [`Error::Refused`] with the unknown names and those that exist.
pub fn known(wanted: &BTreeSet<String>, all: &BTreeSet<String>) -> Result<(), Error> {
    let unknown: BTreeSet<String> = wanted.difference(all).cloned().collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} {} not found; the cluster has: {}",
        if unknown.len() == 1 { "node" } else { "nodes" },
        unknown.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
        join(all)
    )))
}

/// Changes labels and annotations of a node; `null` removes one. That the node is gone is fine.
///
/// # Errors
///
/// The server's answer.
pub async fn patch_node(session: &Session, name: &str, metadata: Value) -> Result<(), Error> {
    let api: Api<Node> = Api::all(session.client.clone());
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
    match api.patch_metadata(name, &params, &Patch::Merge(json!({ "metadata": metadata }))).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(metadata: Value) -> Node {
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
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
    fn kubelet_is_found_where_its_node_says() {
        let at = |address: &str, port: i32| {
            let mut node = node(json!({}));
            node.status = serde_json::from_value(json!({
                "addresses": [{ "type": "InternalIP", "address": address }],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": port } } }))
            .unwrap();
            kubelet_endpoint(&node).unwrap()
        };
        assert_eq!(at("192.168.0.100", 40_000), "192.168.0.100:40000");
        assert_eq!(at("fd00::1", 0), "[fd00::1]:10250");
        assert_eq!(kubelet_endpoint(&node(json!({}))), None);
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
