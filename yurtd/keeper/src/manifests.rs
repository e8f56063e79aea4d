//! The manifests and this program must agree on names, ports and paths.

use serde_json::Value;
use yurt_api::names;

const FILES: [(&str, &str); 9] = [
    ("crd", include_str!("../../../manifests/crd.yaml")),
    ("rbac", include_str!("../../../manifests/rbac.yaml")),
    ("approval", include_str!("../../../manifests/approval.yaml")),
    ("keeper", include_str!("../../../manifests/keeper.yaml")),
    ("controller", include_str!("../../../manifests/controller.yaml")),
    ("tunnel-server", include_str!("../../../manifests/tunnel-server.yaml")),
    ("policies", include_str!("../../../manifests/policies.yaml")),
    ("readiness-mutating", include_str!("../../../manifests/readiness-mutating.yaml")),
    ("readiness-validating", include_str!("../../../manifests/readiness-validating.yaml")),
];

fn objects(file: &str) -> Vec<Value> {
    let (_, text) = FILES.into_iter().find(|(name, _)| *name == file).unwrap();
    serde_saphyr::from_multiple(text).unwrap()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn revert_finds_every_object_and_every_pod_by_its_label() {
    for (file, _) in FILES {
        for object in objects(file) {
            let label = |at: &str| {
                object.pointer(&format!("{at}/labels/{}", names::LABEL_PART_OF.replace('/', "~1"))).cloned()
            };
            assert_eq!(label("/metadata"), Some(names::PART_OF.into()), "{object}");
            if object.pointer("/spec/template").is_some() {
                assert_eq!(label("/spec/template/metadata"), Some(names::PART_OF.into()), "{object}");
            }
        }
    }
}

#[test]
fn objects_have_the_names_that_the_components_use() {
    for (file, name, program, role) in [
        ("keeper", names::KEEPER, "/yurtd-keeper", None),
        ("controller", names::CONTROLLER, "/yurtd-cloud", Some("controller")),
        ("tunnel-server", names::TUNNEL_SERVER, "/yurtd-cloud", Some("tunnel-server")),
    ] {
        let object = &objects(file)[0];
        assert_eq!(text(object, "/metadata/name"), name);
        let pod = object.pointer("/spec/template/spec").unwrap();
        assert_eq!(text(pod, "/serviceAccountName"), name);
        assert_eq!(text(pod, "/containers/0/command/0"), program);
        assert_eq!(pod.pointer("/containers/0/args/0").and_then(|word| word.as_str()), role);
        assert_eq!(text(pod, "/containers/0/image"), "YURT_IMAGE");
        assert_eq!(text(pod, "/containers/0/securityContext/capabilities/drop/0"), "ALL");
        assert!(pod.pointer("/containers/0/securityContext/privileged").is_none());
        assert!(
            objects("rbac")
                .iter()
                .any(|object| object["kind"] == "ServiceAccount" && object["metadata"]["name"] == name)
        );
    }
    for (file, name) in [
        ("policies", names::EVICTION_POLICY),
        ("readiness-mutating", names::READINESS_POLICY),
        ("readiness-validating", names::READINESS_POLICY),
    ] {
        for object in objects(file) {
            assert_eq!(text(&object, "/metadata/name"), name);
            assert!(text(&object, "/kind").contains("AdmissionPolicy"));
            if let Some(reference) = object.pointer("/spec/paramRef") {
                assert_eq!(text(reference, "/name"), names::AUTONOMOUS_NODES);
                assert!(reference.get("namespace").is_none(), "cluster-scoped");
                assert_eq!(text(reference, "/parameterNotFoundAction"), "Allow");
            } else {
                assert_eq!(text(&object, "/spec/failurePolicy"), "Ignore");
                let kind = format!("{}/{}", names::AUTONOMY_GROUP, names::AUTONOMY_VERSION);
                assert_eq!(text(&object, "/spec/paramKind/apiVersion"), kind);
                assert_eq!(text(&object, "/spec/paramKind/kind"), names::AUTONOMOUS_NODES_KIND);
                assert_eq!(text(&object, "/spec/variables/0/name"), "autonomous");
                assert!(text(&object, "/spec/variables/0/expression").contains("in params.spec.nodes"));
            }
        }
    }
}

#[test]
fn what_the_controller_may_approve_is_bound_by_the_identities_of_our_components() {
    let policy = &objects("approval")[0];
    assert_eq!(text(policy, "/metadata/name"), names::APPROVAL_POLICY);
    assert_eq!(text(policy, "/spec/failurePolicy"), "Fail");
    let condition = text(policy, "/spec/matchConditions/0/expression");
    assert!(condition.contains(&format!("endsWith(':{}')", names::CONTROLLER)), "{condition}");
    let rule = text(policy, "/spec/validations/0/expression");
    let replaced = format!("replace(':{}', ':{}')", names::CONTROLLER, names::TUNNEL_SERVER);
    assert!(rule.contains(&replaced), "{rule}");
    assert!(rule.contains("== 'kubernetes.io/kube-apiserver-client' &&") && !rule.contains('?'), "{rule}");
    let binding = &objects("approval")[1];
    assert_eq!(text(binding, "/spec/policyName"), names::APPROVAL_POLICY);
    assert_eq!(text(binding, "/spec/validationActions/0"), "Deny");
}

#[test]
fn the_definition_is_of_the_kind_that_the_controller_writes() {
    let definition = &objects("crd")[0];
    let name = format!("{}.{}", names::AUTONOMOUS_NODES_PLURAL, names::AUTONOMY_GROUP);
    assert_eq!(text(definition, "/metadata/name"), name);
    assert_eq!(text(definition, "/spec/group"), names::AUTONOMY_GROUP);
    assert_eq!(text(definition, "/spec/scope"), "Cluster");
    assert_eq!(text(definition, "/spec/names/kind"), names::AUTONOMOUS_NODES_KIND);
    assert_eq!(text(definition, "/spec/names/plural"), names::AUTONOMOUS_NODES_PLURAL);
    assert_eq!(text(definition, "/spec/versions/0/name"), names::AUTONOMY_VERSION);
    let nodes = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/nodes";
    assert_eq!(text(definition, &format!("{nodes}/additionalProperties/type")), "string");
    let rights = objects("rbac");
    let role = rights
        .iter()
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == names::CONTROLLER)
        .unwrap();
    let verbs = |named: bool| -> Vec<&str> {
        let rules = role["rules"].as_array().unwrap().iter();
        rules
            .filter(|rule| {
                rule["apiGroups"][0] == names::AUTONOMY_GROUP
                    && rule["resources"][0] == names::AUTONOMOUS_NODES_PLURAL
                    && (rule["resourceNames"][0] == names::AUTONOMOUS_NODES) == named
            })
            .flat_map(|rule| rule["verbs"].as_array().unwrap())
            .filter_map(Value::as_str)
            .collect()
    };
    assert_eq!(verbs(false), ["create"]);
    assert_eq!(verbs(true), ["get", "list", "watch", "update", "patch"]);
}

#[test]
fn the_keeper_sees_exactly_the_folders_it_works_in() {
    let keeper = &objects("keeper")[0];
    let mounts =
        keeper.pointer("/spec/template/spec/containers/0/volumeMounts").and_then(Value::as_array).unwrap();
    let writable: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.get("readOnly").is_none())
        .map(|mount| text(mount, "/mountPath"))
        .collect();
    assert_eq!(writable, ["/host/opt", "/host/etc/systemd/system", "/host/run/dbus"]);
    assert!(names::INSTALL_DIR.starts_with("/opt/"));
    assert!(names::KUBELET_DROP_IN.starts_with(names::SYSTEMD_DIR));
    let volumes = keeper.pointer("/spec/template/spec/volumes").and_then(Value::as_array).unwrap();
    let map = |name: &str| {
        let volume = volumes.iter().find(|volume| volume["name"] == name).unwrap();
        assert_eq!(volume.pointer("/configMap/optional"), Some(&Value::Bool(true)));
        text(volume, "/configMap/name").to_owned()
    };
    assert_eq!(map("config"), names::CONFIG_MAP);
    assert_eq!(map("tunnel-ca"), names::TUNNEL_CA_CONFIG_MAP);
}

#[test]
fn the_keeper_makes_nothing_on_a_node_by_being_mounted_and_is_not_confined_where_it_must_not_be() {
    let pod = &objects("keeper")[0]["spec"]["template"]["spec"];
    for volume in pod["volumes"].as_array().unwrap().iter().filter(|volume| volume.get("hostPath").is_some())
    {
        let kind = text(volume, "/hostPath/type");
        // kubeadm's packages and most distributions have /opt.
        let may_be_made = text(volume, "/hostPath/path") == "/opt";
        assert!(["Directory", "File"].contains(&kind) || may_be_made, "{volume}");
    }
    let security = pod.pointer("/containers/0/securityContext").unwrap();
    assert_eq!(text(security, "/seLinuxOptions/type"), "spc_t");
    assert_eq!(text(security, "/appArmorProfile/type"), "Unconfined");
}

#[test]
fn the_tunnel_server_has_its_ports_its_certificate_and_one_capability() {
    let server = &objects("tunnel-server")[0];
    let container = server.pointer("/spec/template/spec/containers/0").unwrap();
    let ports: Vec<_> = container["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["containerPort"].as_u64().unwrap())
        .collect();
    assert_eq!(ports, [u64::from(names::TUNNEL_AGENT_PORT), u64::from(names::TUNNEL_API_PORT)]);
    assert_eq!(
        container.pointer("/securityContext/capabilities/add"),
        Some(&serde_json::json!(["NET_ADMIN"]))
    );
    let volume = server.pointer("/spec/template/spec/volumes/0/secret").unwrap();
    assert_eq!(text(volume, "/secretName"), names::TUNNEL_SERVER_SECRET);
}

#[test]
fn only_the_certificates_user_may_use_kubelets_and_only_one_signer_is_approved() {
    let rights = objects("rbac");
    let holds = |role: &Value, resource: &str| {
        let rules = role["rules"].as_array().into_iter().flatten();
        rules.flat_map(|rule| rule["resources"].as_array().unwrap()).any(|name| {
            name.as_str().is_some_and(|name| name == resource || name.split('/').next_back() == Some("*"))
        })
    };
    let bound = |role: &Value| -> Vec<(String, String)> {
        let of = rights.iter().filter(|binding| {
            binding.pointer("/roleRef/name") == role.pointer("/metadata/name")
                && binding.pointer("/roleRef/kind") == Some(&role["kind"])
        });
        of.flat_map(|binding| binding["subjects"].as_array().unwrap())
            .map(|subject| (text(subject, "/kind").to_owned(), text(subject, "/name").to_owned()))
            .collect()
    };
    let proxies: Vec<_> = rights.iter().filter(|role| holds(role, "nodes/proxy")).flat_map(bound).collect();
    assert_eq!(proxies, [("User".to_owned(), names::TUNNEL_SERVER_USER.to_owned())]);
    assert!(!names::TUNNEL_SERVER_USER.starts_with("system:"));

    let approvers: Vec<_> = rights.iter().filter(|role| holds(role, "signers")).flat_map(bound).collect();
    assert_eq!(approvers, [("ServiceAccount".to_owned(), names::CONTROLLER.to_owned())]);
    let rules = rights.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten());
    for rule in rules.filter(|rule| rule["resources"][0] == "signers") {
        assert_eq!(rule["resourceNames"], serde_json::json!(["kubernetes.io/kube-apiserver-client"]));
    }
}
