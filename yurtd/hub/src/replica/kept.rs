//! Views that are followed and never forgotten although nobody watches them right now, because kubelet will need them
//! to start the node's pods again without a link.
//!
//! - what kubelet lists for itself: the node's own pods and Node, Services, RuntimeClasses, CSIDrivers and so on;
//! - the ConfigMaps and Secrets that a pod of the node refers to (see [`needs`](super::needs)). kubelet's own
//!   watch of such an object may have ended long ago, or never have begun: what has no view is given one. While the
//!   node's pods are not known, all of them.
//!
//! What an older release has kept in an encoding that kubelet is not answered from any more is kept until the view in
//! its place is followed.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use super::needs::{Need, NeedKind, NodePods};
use super::{Start, Views};
use crate::caller::Permit;
use crate::filter::json_for_kubelet;
use crate::store::StoreError;
use crate::view::record::ViewId;
use crate::view::{Question, View, ViewSpec};
use crate::wire::{Encoding, Resource};

/// Whole collections that kubelet has informers for, by group and plural.
const COLLECTIONS: [(&str, &str); 8] = [
    ("", "services"),
    ("node.k8s.io", "runtimeclasses"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "volumeattachments"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("certificates.k8s.io", "clustertrustbundles"),
    ("resource.k8s.io", "resourceslices"),
];

/// Views that are started at one look; the others come with the next.
const OPENED_AT_A_TIME: usize = 64;

/// The pods as they were at this change of this view.
pub(super) type PodsAt = (ViewId, u64, Arc<NodePods>);

/// Whether kubelet needs the view, whether or not it watches it. `pods`: nothing, while they are not known.
fn is_needed(spec: &ViewSpec, node_name: &str, pods: Option<&NodePods>) -> bool {
    let (resource, fields) = (spec.resource(), spec.field_selector());
    if !spec.label_selector().is_empty() {
        return false;
    }
    match (&*resource.group, &*resource.plural) {
        ("", "pods") => is_own_pods(spec, node_name),
        ("", "nodes") => fields.strip_prefix("metadata.name=") == Some(node_name),
        ("", "configmaps" | "secrets") => {
            need_of(spec).is_some_and(|need| pods.is_none_or(|pods| pods.needs.contains(&need)))
        }
        other => spec.namespace().is_none() && COLLECTIONS.contains(&other),
    }
}

/// What a pod would refer to that this is the view of.
fn need_of(spec: &ViewSpec) -> Option<Need> {
    let kind = match (&*spec.resource().group, &*spec.resource().plural) {
        ("", "configmaps") => NeedKind::ConfigMap,
        ("", "secrets") => NeedKind::Secret,
        _ => return None,
    };
    let name = spec.field_selector().strip_prefix("metadata.name=")?;
    Some(Need { kind, namespace: spec.namespace()?.to_owned(), name: name.to_owned() })
}

/// The view that kubelet watches such an object in.
fn spec_of(need: &Need) -> ViewSpec {
    let plural = match need.kind {
        NeedKind::ConfigMap => "configmaps",
        NeedKind::Secret => "secrets",
    };
    let (resource, fields) = (Resource::new("", "v1", plural), format!("metadata.name={}", need.name));
    let json = json_for_kubelet(&resource, Some(&need.namespace), &fields);
    let encoding = if json { Encoding::Json } else { Encoding::Protobuf };
    ViewSpec::new(resource, Some(&need.namespace), "", &fields, encoding)
}

/// The view that kubelet is answered from instead of this one, which a release before has left in another encoding.
fn successor(spec: &ViewSpec) -> Option<ViewSpec> {
    let (resource, namespace, fields) = (spec.resource(), spec.namespace(), spec.field_selector());
    let replaced = spec.encoding() != Encoding::Json && json_for_kubelet(resource, namespace, fields);
    replaced
        .then(|| ViewSpec::new(resource.clone(), namespace, spec.label_selector(), fields, Encoding::Json))
}

fn is_own_pods(spec: &ViewSpec, node_name: &str) -> bool {
    spec.namespace().is_none() && spec.field_selector().strip_prefix("spec.nodeName=") == Some(node_name)
}

impl Views {
    /// Decides which views kubelet and the node's pods need, and follows those that nobody follows.
    pub(super) fn follow_needed(&self) {
        let node = self.inner.node.clone();
        let Some(node_name) = self.node_name() else { return };
        let pods = self.node_pods();
        for view in self.inner.catalogue.of(node.identity()) {
            let needed = is_needed(&view.spec, node_name, pods.as_deref());
            if self.is_of_another_way_in(&node, &view) {
                view.set_kept(false);
                continue;
            }
            if let Some(successor) = successor(&view.spec) {
                // It is not fetched twice, and not given away before there is something better.
                let replaced =
                    self.find(&node, &successor, Question::Any).is_some_and(|view| view.is_followed());
                view.set_kept(needed && !replaced);
                continue;
            }
            view.set_kept(needed);
            if needed && view.is_stored() {
                self.inner.followers.start(&node, &view, Start::Resume);
            }
        }
        if let Some(pods) = pods {
            self.open_needed(&node, &pods);
            self.follow_accounts(&pods);
        }
    }

    /// Whether kubelet reads these Services in another encoding now, in which they are followed: with the way in that may
    /// have changed.
    fn is_of_another_way_in(&self, node: &Permit, view: &View) -> bool {
        let spec = &view.spec;
        let encoding = match spec.encoding() {
            Encoding::Json => Encoding::Protobuf,
            Encoding::Protobuf => Encoding::Json,
            _ => return false,
        };
        if !spec.resource().group.is_empty() || spec.resource().plural != "services" {
            return false;
        }
        let (labels, fields) = (spec.label_selector(), spec.field_selector());
        let other = ViewSpec::new(spec.resource().clone(), spec.namespace(), labels, fields, encoding);
        self.find(node, &other, Question::Any)
            .is_some_and(|other| other.is_followed() && other.used() > view.used())
    }

    /// Starts views of what pods refer to and nobody has asked for: kubelet has read it from somewhere else, or with a
    /// hub that kept it otherwise.
    fn open_needed(&self, node: &Permit, pods: &NodePods) {
        if !self.inner.link.is_online() {
            return;
        }
        let views = self.inner.catalogue.of(node.identity());
        let known: HashSet<Need> = views
            .iter()
            .filter(|view| view.spec.label_selector().is_empty() && successor(&view.spec).is_none())
            .filter_map(|view| need_of(&view.spec))
            .collect();
        for need in pods.needs.difference(&known).take(OPENED_AT_A_TIME) {
            let Some(view) = self.enter(node, &spec_of(need)) else { return };
            view.set_kept(true);
            self.inner.followers.start(node, &view, Start::Resume);
        }
    }

    /// The node's pods as they are now; nothing while that cannot be known.
    pub(crate) fn live_pods(&self) -> Option<Arc<NodePods>> {
        self.pods_view().filter(|view| view.is_followed()).and_then(|view| self.pods_of(&view))
    }

    /// The node's pods as last known; nothing while no complete view has them.
    pub(super) fn node_pods(&self) -> Option<Arc<NodePods>> {
        self.pods_view().and_then(|view| self.pods_of(&view))
    }

    /// Whether the node has the pod of this UID, and one of this user, as last known; nothing while no complete view has
    /// its pods.
    pub(crate) fn has_pod(&self, uid: &str, account: &str) -> Option<bool> {
        let pods = self.node_pods()?;
        Some(pods.uids.contains(uid) && pods.accounts.contains(account))
    }

    /// The view of the node's pods that has something to tell.
    pub(crate) fn pods_view(&self) -> Option<Arc<View>> {
        let node_name = self.node_name()?;
        let views = self.inner.catalogue.showing(&self.inner.node, &Resource::new("", "v1", "pods"));
        views.into_iter().find(|view| {
            view.spec.label_selector().is_empty()
                && view.spec.encoding() == Encoding::Json
                && is_own_pods(&view.spec, node_name)
                && view.may_answer(Question::Any)
        })
    }

    fn pods_of(&self, view: &View) -> Option<Arc<NodePods>> {
        let mut known = self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, sequence, pods)) = &*known
            && (*id, *sequence) == (view.id, view.progress.borrow().sequence)
        {
            return Some(Arc::clone(pods));
        }
        match read_pods(view) {
            Ok((sequence, pods)) => {
                let pods = Arc::new(pods);
                *known = Some((view.id, sequence, Arc::clone(&pods)));
                Some(pods)
            }
            Err(error) => {
                tracing::warn!(%error, "the node's pods cannot be read; every ConfigMap and Secret is kept");
                None
            }
        }
    }

    fn node_name(&self) -> Option<&str> {
        self.inner.node.identity().as_str().strip_prefix("system:node:")
    }
}

fn read_pods(view: &View) -> Result<(u64, NodePods), StoreError> {
    let mut pods = NodePods::default();
    let sequence = view.for_each(|body| {
        pods.add(body).map_err(|error| StoreError::Failed(format!("a pod cannot be read: {error}")))
    })?;
    Ok((sequence, pods))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubelet_lists_and_what_its_pods_name_is_needed() {
        let mut pods = NodePods::default();
        let need = |kind, name: &str| Need { kind, namespace: "shop".into(), name: name.into() };
        pods.needs.extend([need(NeedKind::ConfigMap, "named"), need(NeedKind::Secret, "named")]);
        let table = [
            (("", "pods", None, "spec.nodeName=edge"), true),
            (("", "pods", None, "spec.nodeName=other"), false),
            (("", "pods", None, ""), false),
            (("", "pods", Some("shop"), "spec.nodeName=edge"), false),
            (("", "nodes", None, "metadata.name=edge"), true),
            (("", "nodes", None, ""), false),
            (("", "services", None, ""), true),
            (("", "services", Some("shop"), ""), false),
            (("node.k8s.io", "runtimeclasses", None, ""), true),
            (("storage.k8s.io", "csidrivers", None, ""), true),
            (("apps", "services", None, ""), false),
            (("", "configmaps", Some("shop"), "metadata.name=named"), true),
            (("", "configmaps", Some("shop"), "metadata.name=other"), false),
            (("", "configmaps", Some("bank"), "metadata.name=named"), false),
            (("", "configmaps", Some("shop"), ""), false),
            (("", "secrets", Some("shop"), "metadata.name=named"), true),
            (("", "secrets", Some("shop"), "metadata.name=other"), false),
        ];
        for ((group, plural, namespace, fields), expected) in table {
            let resource = Resource::new(group, "v1", plural);
            let spec =
                |labels, encoding| ViewSpec::new(resource.clone(), namespace, labels, fields, encoding);
            let needed = |spec: &ViewSpec| is_needed(spec, "edge", Some(&pods));
            assert_eq!(needed(&spec("", Encoding::Json)), expected, "{plural} {fields}");
            assert_eq!(needed(&spec("", Encoding::Protobuf)), expected, "{plural} {fields}");
            let json = json_for_kubelet(&resource, namespace, fields);
            let next = json.then(|| spec("", Encoding::Json));
            assert_eq!(successor(&spec("", Encoding::Protobuf)), next, "{plural} {fields}");
            assert_eq!(successor(&spec("", Encoding::Json)), None, "{plural} {fields}");
            assert!(!needed(&spec("a=b", Encoding::Json)), "{plural} {fields}");
        }
        let other = ViewSpec::new(
            Resource::new("", "v1", "secrets"),
            Some("shop"),
            "",
            "metadata.name=other",
            Encoding::Json,
        );
        assert!(is_needed(&other, "edge", None), "while the pods are not known");
        for need in &pods.needs {
            assert_eq!(need_of(&spec_of(need)).as_ref(), Some(need));
            assert_eq!(successor(&spec_of(need)), None);
        }
    }
}
