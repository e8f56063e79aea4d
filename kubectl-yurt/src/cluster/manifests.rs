//! The objects that `convert` applies: the files of `manifests/` with image and namespace filled in, and what the
//! plugin writes itself: the configuration, and the policies' parameter, empty. Pure.

use kube::{
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use yurt_api::{names, status::ClusterConfig, way_in::WayIn};

/// Placeholder for the image in the files.
const IMAGE: &str = "YURT_IMAGE";
/// Annotation on the one object that stays in `kube-system` whatever `--yurt-namespace` says.
const KEEP_NAMESPACE: &str = "openyurt.io/keep-namespace";

const DEFINITION: &str = include_str!("../../../manifests/crd.yaml");
const RBAC: &str = include_str!("../../../manifests/rbac.yaml");
const ACCESS: &str = include_str!("../../../manifests/access.yaml");
const APPROVAL: &str = include_str!("../../../manifests/approval.yaml");
const POLICIES: &str = include_str!("../../../manifests/policies.yaml");
const READINESS_MUTATING: &str = include_str!("../../../manifests/readiness-mutating.yaml");
const READINESS_VALIDATING: &str = include_str!("../../../manifests/readiness-validating.yaml");
const CONTROLLER: &str = include_str!("../../../manifests/controller.yaml");
const TUNNEL_SERVER: &str = include_str!("../../../manifests/tunnel-server.yaml");
const KEEPER: &str = include_str!("../../../manifests/keeper.yaml");

/// A kind of object that we make. The plural saves a discovery of the whole API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Name of the kind.
    pub kind: &'static str,
    /// Name of the resource.
    pub plural: &'static str,
    /// Objects live in a namespace.
    pub namespaced: bool,
}

impl Kind {
    /// For kube's dynamic API.
    pub fn resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(self.group, self.version, self.kind),
            self.plural,
        )
    }

    /// True for what makes another kind.
    pub fn is_definition(&self) -> bool {
        self.kind == "CustomResourceDefinition"
    }

    /// `deployment.apps`, as kubectl's mutation lines say it.
    pub fn label(&self) -> String {
        let kind = self.kind.to_ascii_lowercase();
        if self.group.is_empty() { kind } else { format!("{kind}.{}", self.group) }
    }
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { group, version, kind, plural, namespaced }
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const AUTHORIZATION: &str = "rbac.authorization.k8s.io";

/// Every kind of which our components or the plugin make objects, in the order in which `revert` deletes them:
/// what acts first, what it needs after it.
pub const KINDS: &[Kind] = &[
    kind("apps", "v1", "DaemonSet", "daemonsets", true),
    kind("apps", "v1", "Deployment", "deployments", true),
    kind(ADMISSION, "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", false),
    kind(ADMISSION, "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", false),
    kind(ADMISSION, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", false),
    kind(ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", false),
    kind(
        names::AUTONOMY_GROUP,
        names::AUTONOMY_VERSION,
        names::AUTONOMOUS_NODES_KIND,
        names::AUTONOMOUS_NODES_PLURAL,
        false,
    ),
    kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false),
    kind(AUTHORIZATION, "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    kind(AUTHORIZATION, "v1", "ClusterRole", "clusterroles", false),
    kind(AUTHORIZATION, "v1", "RoleBinding", "rolebindings", true),
    kind(AUTHORIZATION, "v1", "Role", "roles", true),
    kind("", "v1", "Service", "services", true),
    kind("", "v1", "ServiceAccount", "serviceaccounts", true),
    kind("", "v1", "Secret", "secrets", true),
    kind("", "v1", "ConfigMap", "configmaps", true),
    kind("coordination.k8s.io", "v1", "Lease", "leases", true),
    kind("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", false),
    kind("", "v1", "Namespace", "namespaces", false),
];

/// Why the manifests cannot be used. None of these can happen to a user: the tests would have failed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML.
    #[error("a manifest cannot be parsed: {0}")]
    Parse(String),
    /// A kind that [`KINDS`] does not have: `revert` would leave it behind.
    #[error("a manifest has an object of unknown kind {0}")]
    Kind(String),
}

/// What is filled into the manifests.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of our components.
    pub namespace: String,
    /// Make that namespace too.
    pub create_namespace: bool,
    /// Image of `yurtd`.
    pub image: String,
    /// The cluster-wide configuration.
    pub config: ClusterConfig,
    /// By which way pods of edge nodes come to the hub.
    pub way_in: WayIn,
    /// The tunnel server's endpoint serves what only the API server could admit.
    pub connect_bypass: bool,
    /// The API server has MutatingAdmissionPolicy (1.36).
    pub mutating: bool,
}

/// An object to apply.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its kind.
    pub kind: &'static Kind,
    /// The object.
    pub body: DynamicObject,
}

impl Object {
    /// Its name.
    pub fn name(&self) -> &str {
        self.body.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        self.body.metadata.namespace.as_deref()
    }
}

/// Every object of a converted cluster, in the order in which they are applied: what others need first, the
/// keeper last.
///
/// # Errors
///
/// [`ManifestError`] when a file is broken.
pub fn render(settings: &Settings) -> Result<Vec<Object>, ManifestError> {
    // What binds the controller is there before its rights are used.
    let mut files = vec![DEFINITION, APPROVAL, RBAC, ACCESS];
    files.extend([POLICIES, if settings.mutating { READINESS_MUTATING } else { READINESS_VALIDATING }]);
    files.push(CONTROLLER);
    if !settings.config.tunnel_addresses.is_empty() {
        files.push(TUNNEL_SERVER);
    }
    files.push(KEEPER);

    let mut objects = Vec::new();
    if settings.create_namespace {
        objects.push(namespace(&settings.namespace)?);
    }
    objects.push(config_map(settings)?);
    for file in files {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(file).map_err(|error| ManifestError::Parse(error.to_string()))?;
        for document in documents {
            objects.push(object(fill(document, settings))?);
        }
        if file == DEFINITION {
            objects.push(autonomous_nodes()?);
        }
    }
    Ok(objects)
}

/// Kind and name of each object that may exist in a converted cluster of the other choice of readiness policy:
/// after an upgrade of Kubernetes past 1.36 the validating one is in the way of the mutating one.
pub fn superseded(settings: &Settings) -> Vec<(&'static Kind, &'static str)> {
    let obsolete: &[&str] = if settings.mutating {
        &["ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"]
    } else {
        &[]
    };
    KINDS
        .iter()
        .filter(|kind| obsolete.contains(&kind.kind))
        .map(|kind| (kind, names::READINESS_POLICY))
        .collect()
}

fn object(document: Value) -> Result<Object, ManifestError> {
    let text =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, name) = (text("/apiVersion"), text("/kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let kind = KINDS
        .iter()
        .find(|kind| kind.kind == name && kind.group == group && kind.version == version)
        .ok_or_else(|| ManifestError::Kind(format!("{api_version} {name}")))?;
    let body = serde_json::from_value(document).map_err(|error| ManifestError::Parse(error.to_string()))?;
    Ok(Object { kind, body })
}

/// Puts image and namespace where they belong.
fn fill(mut document: Value, settings: &Settings) -> Value {
    let keep = document
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(KEEP_NAMESPACE))
        .is_some_and(|value| value == "true");
    let namespace = Value::from(settings.namespace.as_str());
    let mut set = |pointer: &str| {
        if let Some(value) = document.pointer_mut(pointer) {
            *value = namespace.clone();
        }
    };
    if !keep {
        set("/metadata/namespace");
    }
    if let Some(subjects) = document.pointer_mut("/subjects").and_then(Value::as_array_mut) {
        for subject in subjects {
            if let Some(value) = subject.pointer_mut("/namespace") {
                *value = namespace.clone();
            }
        }
    }
    for pointer in ["/spec/template/spec/containers", "/spec/template/spec/initContainers"] {
        for container in document.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten() {
            if container.get("image").is_some_and(|image| image == IMAGE) {
                container["image"] = Value::from(settings.image.as_str());
            }
            let is_tunnel_server = container.get("name").is_some_and(|name| name == "tunnel-server");
            if settings.connect_bypass
                && is_tunnel_server
                && let Some(arguments) = container.get_mut("args").and_then(Value::as_array_mut)
            {
                arguments.push("--allow-connect-admission-bypass".into());
            }
        }
    }
    document
}

fn namespace(name: &str) -> Result<Object, ManifestError> {
    object(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {
                names::LABEL_PART_OF: names::PART_OF,
                // The keeper and the tunnel server use host paths and the host's network.
                "pod-security.kubernetes.io/enforce": "privileged",
            }
        }
    }))
}

fn config_map(settings: &Settings) -> Result<Object, ManifestError> {
    let config =
        serde_json::to_string(&settings.config).map_err(|error| ManifestError::Parse(error.to_string()))?;
    object(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names::CONFIG_MAP,
            "namespace": settings.namespace,
            "labels": { names::LABEL_PART_OF: names::PART_OF }
        },
        "data": {
            names::CONFIG_KEY: config,
            names::CONFIG_WAY_IN_KEY: settings.way_in.name(),
            names::CONFIG_CONNECT_BYPASS_KEY: settings.connect_bypass.to_string(),
        }
    }))
}

/// Its contents are the controller's: nothing is said about them here, so that applying again takes no node away.
fn autonomous_nodes() -> Result<Object, ManifestError> {
    object(json!({
        "apiVersion": format!("{}/{}", names::AUTONOMY_GROUP, names::AUTONOMY_VERSION),
        "kind": names::AUTONOMOUS_NODES_KIND,
        "metadata": {
            "name": names::AUTONOMOUS_NODES,
            "labels": { names::LABEL_PART_OF: names::PART_OF }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "kube-system".into(),
            create_namespace: false,
            image: "registry/yurtd:v1".into(),
            config: ClusterConfig {
                tunnel_addresses: vec!["10.80.0.2:10262".into()],
                tunnel_api_addresses: vec!["10.80.0.2:10263".into()],
            },
            way_in: WayIn::Service,
            connect_bypass: false,
            mutating: true,
        }
    }

    fn find<'a>(objects: &'a [Object], kind: &str, name: &str) -> Option<&'a Object> {
        objects.iter().find(|object| object.kind.kind == kind && object.name() == name)
    }

    #[test]
    fn every_object_is_labelled_so_that_revert_finds_it() {
        for mutating in [true, false] {
            for object in render(&Settings { mutating, create_namespace: true, ..settings() }).unwrap() {
                let labels = object.body.metadata.labels.clone().unwrap_or_default();
                assert_eq!(
                    labels.get(names::LABEL_PART_OF).map(String::as_str),
                    Some(names::PART_OF),
                    "{} {}",
                    object.kind.kind,
                    object.name()
                );
                assert_eq!(object.kind.namespaced, object.namespace().is_some());
            }
        }
    }

    #[test]
    fn pods_are_labelled_so_that_their_end_can_be_awaited() {
        for object in render(&settings()).unwrap() {
            if let Some(labels) = object.body.data.pointer("/spec/template/metadata/labels") {
                assert_eq!(labels[names::LABEL_PART_OF], names::PART_OF, "{}", object.name());
            }
        }
    }

    #[test]
    fn the_image_is_everywhere_and_the_placeholder_nowhere() {
        let text = serde_json::to_string(
            &render(&settings()).unwrap().into_iter().map(|object| object.body).collect::<Vec<_>>(),
        )
        .unwrap();
        assert!(!text.contains(IMAGE));
        assert_eq!(text.matches("registry/yurtd:v1").count(), 3);
    }

    #[test]
    fn another_namespace_is_used_everywhere_but_where_kubernetes_fixes_it() {
        let objects = render(&Settings { namespace: "edge".into(), ..settings() }).unwrap();
        for object in &objects {
            let keeps = object.name() == "yurt-tunnel-server-authentication-reader";
            if object.kind.namespaced {
                let expected = if keeps { "kube-system" } else { "edge" };
                assert_eq!(object.namespace(), Some(expected), "{}", object.name());
            }
            for subject in
                object.body.data.pointer("/subjects").and_then(Value::as_array).into_iter().flatten()
            {
                if subject["kind"] == "ServiceAccount" {
                    assert_eq!(subject["namespace"], "edge");
                }
            }
        }
        let binding = find(&objects, "ValidatingAdmissionPolicyBinding", names::EVICTION_POLICY).unwrap();
        assert!(binding.body.data["spec"]["paramRef"].get("namespace").is_none(), "cluster-scoped");
    }

    #[test]
    fn the_readiness_policy_fits_the_server() {
        let objects = render(&settings()).unwrap();
        assert!(find(&objects, "MutatingAdmissionPolicy", names::READINESS_POLICY).is_some());
        assert!(find(&objects, "ValidatingAdmissionPolicy", names::READINESS_POLICY).is_none());
        let objects = render(&Settings { mutating: false, ..settings() }).unwrap();
        assert!(find(&objects, "MutatingAdmissionPolicy", names::READINESS_POLICY).is_none());
        assert!(find(&objects, "ValidatingAdmissionPolicy", names::READINESS_POLICY).is_some());
    }

    #[test]
    fn the_way_past_admission_is_open_only_when_that_was_asked_for() {
        let arguments = |connect_bypass| {
            let objects = render(&Settings { connect_bypass, ..settings() }).unwrap();
            let server = find(&objects, "DaemonSet", names::TUNNEL_SERVER).unwrap();
            server.body.data.pointer("/spec/template/spec/containers/0/args").unwrap().clone()
        };
        assert_eq!(arguments(false), json!(["tunnel-server"]));
        assert_eq!(arguments(true), json!(["tunnel-server", "--allow-connect-admission-bypass"]));
    }

    #[test]
    fn without_addresses_there_is_no_tunnel_server() {
        let objects = render(&Settings { config: ClusterConfig::default(), ..settings() }).unwrap();
        assert!(find(&objects, "DaemonSet", names::TUNNEL_SERVER).is_none());
        assert!(find(&objects, "DaemonSet", names::KEEPER).is_some());
    }

    #[test]
    fn the_tunnel_server_runs_where_the_plugin_sees_a_control_plane_node_in_the_cloud() {
        let objects = render(&settings()).unwrap();
        let server = &find(&objects, "DaemonSet", names::TUNNEL_SERVER).unwrap().body.data;
        let pod = &server["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], json!({ names::LABEL_EDGE_WORKER: "false" }));
        let terms = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let expected = json!([{ "key": names::LABEL_CONTROL_PLANE, "operator": "Exists" }]);
        assert_eq!(terms["nodeSelectorTerms"], json!([{ "matchExpressions": expected }]));
    }

    #[test]
    fn one_node_that_is_away_does_not_stop_an_upgrade() {
        let objects = render(&settings()).unwrap();
        let keeper = &find(&objects, "DaemonSet", names::KEEPER).unwrap().body.data;
        let strategy = &keeper["spec"]["updateStrategy"];
        assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], "25%");
    }

    #[test]
    fn applying_again_leaves_the_autonomous_nodes_alone() {
        let objects = render(&settings()).unwrap();
        let parameter = find(&objects, names::AUTONOMOUS_NODES_KIND, names::AUTONOMOUS_NODES).unwrap();
        assert!(parameter.body.data.get("spec").is_none());
    }

    #[test]
    fn the_parameter_comes_after_its_definition_and_before_the_policies() {
        for mutating in [true, false] {
            let objects = render(&Settings { mutating, ..settings() }).unwrap();
            let position = |kind: &str| objects.iter().position(|object| object.kind.kind == kind).unwrap();
            let parameter = position(names::AUTONOMOUS_NODES_KIND);
            assert!(position("CustomResourceDefinition") < parameter);
            assert!(parameter < position("ValidatingAdmissionPolicy"));
            assert!(parameter < position("Deployment"), "the controller writes it");
        }
    }

    /// YAML 1.2 reads `0400` as a number that is not 0o400, and YAML 1.1 as one that is.
    #[test]
    fn numbers_mean_the_same_to_every_parser() {
        fn floats(value: &Value) -> bool {
            match value {
                Value::Number(number) => number.is_f64(),
                Value::Array(items) => items.iter().any(floats),
                Value::Object(fields) => fields.values().any(floats),
                _ => false,
            }
        }
        for object in render(&settings()).unwrap() {
            assert!(!floats(&object.body.data), "{} {}", object.kind.kind, object.name());
        }
        for file in [
            DEFINITION,
            RBAC,
            ACCESS,
            POLICIES,
            READINESS_MUTATING,
            READINESS_VALIDATING,
            CONTROLLER,
            TUNNEL_SERVER,
            KEEPER,
        ] {
            for line in file.lines() {
                let value = line.rsplit(": ").next().unwrap_or_default();
                let octal =
                    value.len() > 1 && value.starts_with('0') && value.bytes().all(|b| b.is_ascii_digit());
                assert!(!octal, "{line}");
            }
        }
    }

    #[test]
    fn the_keeper_comes_last_and_accounts_before_what_uses_them() {
        let objects = render(&settings()).unwrap();
        assert_eq!(objects.last().map(Object::name), Some(names::KEEPER));
        let position = |kind: &str, name: &str| {
            objects.iter().position(|object| object.kind.kind == kind && object.name() == name).unwrap()
        };
        assert!(position("ServiceAccount", names::CONTROLLER) < position("Deployment", names::CONTROLLER));
    }
}
