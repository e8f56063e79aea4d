//! Which collections there are, and how they are served.

use std::collections::HashMap;

use super::resource::Resource;

/// A kind of object.
#[derive(Debug, Clone, Default)]
pub struct Kind {
    /// `Pod`
    pub name: String,
    /// Protobuf is refused, as for custom resources.
    pub json_only: bool,
    /// Its collection has no resourceVersion.
    pub numberless: bool,
}

impl Kind {
    /// A custom resource.
    pub fn custom(name: &str) -> Self {
        Self { name: name.to_owned(), json_only: true, numberless: false }
    }
}

/// Group prefix and what is in it.
const BUILT_IN: &[(&str, &[(&str, &str)])] = &[
    (
        "/api/v1",
        &[
            ("configmaps", "ConfigMap"),
            ("endpoints", "Endpoints"),
            ("events", "Event"),
            ("limitranges", "LimitRange"),
            ("namespaces", "Namespace"),
            ("nodes", "Node"),
            ("persistentvolumeclaims", "PersistentVolumeClaim"),
            ("persistentvolumes", "PersistentVolume"),
            ("pods", "Pod"),
            ("resourcequotas", "ResourceQuota"),
            ("secrets", "Secret"),
            ("serviceaccounts", "ServiceAccount"),
            ("services", "Service"),
        ],
    ),
    (
        "/apis/admissionregistration.k8s.io/v1",
        &[
            ("mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
            ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
            ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
            ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
            ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
            ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
        ],
    ),
    ("/apis/apiextensions.k8s.io/v1", &[("customresourcedefinitions", "CustomResourceDefinition")]),
    ("/apis/apiregistration.k8s.io/v1", &[("apiservices", "APIService")]),
    (
        "/apis/apps/v1",
        &[
            ("controllerrevisions", "ControllerRevision"),
            ("daemonsets", "DaemonSet"),
            ("deployments", "Deployment"),
            ("replicasets", "ReplicaSet"),
            ("statefulsets", "StatefulSet"),
        ],
    ),
    ("/apis/batch/v1", &[("cronjobs", "CronJob"), ("jobs", "Job")]),
    ("/apis/certificates.k8s.io/v1", &[("certificatesigningrequests", "CertificateSigningRequest")]),
    ("/apis/coordination.k8s.io/v1", &[("leases", "Lease")]),
    ("/apis/discovery.k8s.io/v1", &[("endpointslices", "EndpointSlice")]),
    ("/apis/events.k8s.io/v1", &[("events", "Event")]),
    (
        "/apis/networking.k8s.io/v1",
        &[("ingresses", "Ingress"), ("networkpolicies", "NetworkPolicy"), ("servicecidrs", "ServiceCIDR")],
    ),
    ("/apis/node.k8s.io/v1", &[("runtimeclasses", "RuntimeClass")]),
    ("/apis/policy/v1", &[("poddisruptionbudgets", "PodDisruptionBudget")]),
    (
        "/apis/rbac.authorization.k8s.io/v1",
        &[
            ("clusterrolebindings", "ClusterRoleBinding"),
            ("clusterroles", "ClusterRole"),
            ("rolebindings", "RoleBinding"),
            ("roles", "Role"),
        ],
    ),
    ("/apis/scheduling.k8s.io/v1", &[("priorityclasses", "PriorityClass")]),
    (
        "/apis/storage.k8s.io/v1",
        &[
            ("csidrivers", "CSIDriver"),
            ("csinodes", "CSINode"),
            ("storageclasses", "StorageClass"),
            ("volumeattachments", "VolumeAttachment"),
        ],
    ),
];

/// The kinds that are served.
#[derive(Debug)]
pub(super) struct Kinds(HashMap<Resource, Kind>);

impl Default for Kinds {
    fn default() -> Self {
        let all = BUILT_IN.iter().flat_map(|(prefix, group)| {
            group.iter().map(|(plural, name)| {
                let kind = Kind { name: (*name).to_owned(), ..Kind::default() };
                (Resource::new(prefix, plural), kind)
            })
        });
        Self(all.collect())
    }
}

impl Kinds {
    pub(super) fn of(&self, resource: &Resource) -> Option<&Kind> {
        self.0.get(resource)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Resource, &Kind)> {
        self.0.iter()
    }

    pub(super) fn define(&mut self, resource: Resource, kind: Kind) {
        self.0.insert(resource, kind);
    }

    pub(super) fn forget(&mut self, resource: &Resource) {
        self.0.remove(resource);
    }
}
