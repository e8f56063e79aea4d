//! What a pod needs of other objects: the ConfigMaps and Secrets that kubelet reads to start it. Pure.
//!
//! kubelet watches such an object only while it has lately asked for it: with the default change detection the watch
//! of an object that is used in `env` alone ends some minutes after the container has started, that of an immutable one
//! at once. To start the container again it reads the object again. The places are those that kubelet visits
//! (`pkg/api/v1/pod`: `VisitPodSecretNames`, `VisitPodConfigmapNames`).

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;

/// A kind of object that pods refer to by name, in their own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum NeedKind {
    ConfigMap,
    Secret,
}

/// One object that a pod refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Need {
    pub(crate) kind: NeedKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The pods of the node, as far as other decisions depend on them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NodePods {
    pub(crate) uids: HashSet<String>,
    pub(crate) needs: HashSet<Need>,
    /// The users that the pods are to the API server.
    pub(crate) accounts: HashSet<String>,
}

impl NodePods {
    /// Adds one pod, in JSON.
    pub(crate) fn add(&mut self, pod: &[u8]) -> Result<(), serde_json::Error> {
        let pod: Pod = serde_json::from_slice(pod)?;
        let namespace = pod.metadata.namespace;
        if !pod.spec.service_account_name.is_empty() {
            let account = format!("system:serviceaccount:{namespace}:{}", pod.spec.service_account_name);
            self.accounts.insert(account);
        }
        let need = |named: Named| Need { kind: named.kind, namespace: namespace.clone(), name: named.name };
        self.needs.extend(pod.spec.names().into_iter().map(need));
        self.uids.insert(pod.metadata.uid);
        Ok(())
    }
}

/// What a pod does not start without.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// Objects that have to exist.
    pub(crate) needs: BTreeSet<Need>,
    /// Its ServiceAccount.
    pub(crate) account: String,
    /// The tokens of it that are mounted.
    pub(crate) tokens: Vec<Token>,
}

/// A token that kubelet asks for, bound to the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Token {
    pub(crate) audience: String,
    pub(crate) expiration_seconds: Option<i64>,
}

impl Start {
    /// Of a pod in JSON. What is optional, and a Secret for pulling images, it starts without.
    pub(crate) fn of(pod: &[u8]) -> Result<Self, serde_json::Error> {
        let Pod { metadata, spec } = serde_json::from_slice(pod)?;
        let projected = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
        let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
        let tokens = sources.filter_map(|source| source.service_account_token.clone()).collect();
        let account = spec.service_account_name.clone();
        let needed = spec.names().into_iter().filter(|named| !named.optional);
        let need =
            |named: Named| Need { kind: named.kind, namespace: metadata.namespace.clone(), name: named.name };
        Ok(Self { needs: needed.map(need).collect(), account, tokens })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    namespace: String,
    uid: String,
}

/// A list that may be `null`.
type List<T> = Option<Vec<T>>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    containers: List<Container>,
    init_containers: List<Container>,
    ephemeral_containers: List<Container>,
    image_pull_secrets: List<Name>,
    service_account_name: String,
    volumes: List<Volume>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    env: List<Env>,
    env_from: List<Source>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Env {
    value_from: Option<Source>,
}

/// A source of `env`, `envFrom` or a projected volume.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Source {
    config_map_key_ref: Option<Name>,
    config_map_ref: Option<Name>,
    config_map: Option<Name>,
    secret_key_ref: Option<Name>,
    secret_ref: Option<Name>,
    secret: Option<Name>,
    service_account_token: Option<Token>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Name {
    name: String,
    optional: bool,
}

/// An object that a pod names.
struct Named {
    kind: NeedKind,
    name: String,
    /// The pod starts without it.
    optional: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    config_map: Option<Name>,
    projected: Option<Projected>,
    secret: Option<Mount>,
    azure_file: Option<Mount>,
    cephfs: Option<Mount>,
    csi: Option<Mount>,
    flex_volume: Option<Mount>,
    iscsi: Option<Mount>,
    rbd: Option<Mount>,
    #[serde(rename = "scaleIO")]
    scale_io: Option<Mount>,
    storageos: Option<Mount>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: List<Source>,
}

/// A kind of volume that needs a Secret, by whichever field it has for that.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mount {
    secret_name: Option<String>,
    optional: bool,
    secret_ref: Option<Name>,
    node_publish_secret_ref: Option<Name>,
}

impl Spec {
    fn names(self) -> Vec<Named> {
        let mut names = Vec::new();
        let mut add = |kind, name: Option<Name>| {
            let name = name.filter(|name| !name.name.is_empty());
            names.extend(name.map(|Name { name, optional }| Named { kind, name, optional }));
        };
        let mut add_source = |source: Source| {
            for name in [source.config_map_key_ref, source.config_map_ref, source.config_map] {
                add(NeedKind::ConfigMap, name);
            }
            for name in [source.secret_key_ref, source.secret_ref, source.secret] {
                add(NeedKind::Secret, name);
            }
        };
        let containers = [self.containers, self.init_containers, self.ephemeral_containers];
        for container in containers.into_iter().flatten().flatten() {
            container.env.into_iter().flatten().filter_map(|env| env.value_from).for_each(&mut add_source);
            container.env_from.into_iter().flatten().for_each(&mut add_source);
        }
        for volume in self.volumes.into_iter().flatten() {
            volume.projected.into_iter().filter_map(|it| it.sources).flatten().for_each(&mut add_source);
            add_source(Source { config_map: volume.config_map, ..Source::default() });
            let mounts = [
                volume.secret,
                volume.azure_file,
                volume.cephfs,
                volume.csi,
                volume.flex_volume,
                volume.iscsi,
                volume.rbd,
                volume.scale_io,
                volume.storageos,
            ];
            for mount in mounts.into_iter().flatten() {
                let named = mount.secret_name.map(|name| Name { name, optional: mount.optional });
                for secret in [named, mount.secret_ref, mount.node_publish_secret_ref] {
                    add_source(Source { secret, ..Source::default() });
                }
            }
        }
        for secret in self.image_pull_secrets.into_iter().flatten() {
            // Only for pulling.
            let secret = Some(Name { optional: true, ..secret });
            add_source(Source { secret, ..Source::default() });
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn needs(spec: &Value) -> Vec<(NeedKind, String)> {
        let pod = json!({"metadata": {"name": "p", "namespace": "shop", "uid": "u-1"}, "spec": spec});
        let mut pods = NodePods::default();
        pods.add(pod.to_string().as_bytes()).unwrap();
        assert!(pods.uids.contains("u-1"));
        assert!(pods.needs.iter().all(|need| need.namespace == "shop"));
        let mut needs: Vec<_> = pods.needs.into_iter().map(|need| (need.kind, need.name)).collect();
        needs.sort();
        needs
    }

    #[test]
    fn every_place_that_names_a_config_map_or_secret_is_found() {
        use NeedKind::{ConfigMap, Secret};
        let env_map = json!({"env": [{"name": "plain", "value": "x"},
            {"name": "a", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "node", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]});
        let env_secret =
            json!({"env": [{"name": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        let env_from = json!({"envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}]});
        let both = vec![(ConfigMap, "c".to_owned()), (Secret, "s".to_owned())];
        let (map, secret) = (vec![both[0].clone()], vec![both[1].clone()]);
        let volume = |volume: Value| json!({"volumes": [{"name": "v", "emptyDir": {}}, volume]});
        let table = [
            (json!({"containers": [{}, env_map]}), map.clone()),
            (json!({"initContainers": [env_secret]}), secret.clone()),
            (json!({"ephemeralContainers": [env_from]}), both.clone()),
            (json!({"containers": [env_from], "initContainers": null}), both.clone()),
            (json!({"imagePullSecrets": [{"name": "s"}, {}]}), secret.clone()),
            (volume(json!({"configMap": {"name": "c", "optional": true}})), map),
            (volume(json!({"secret": {"secretName": "s"}})), secret.clone()),
            (
                volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                    {"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]}})),
                both,
            ),
            (volume(json!({"csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"azureFile": {"secretName": "s"}})), secret.clone()),
            (volume(json!({"cephfs": {"secretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"flexVolume": {"secretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"iscsi": {"secretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"rbd": {"secretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"scaleIO": {"secretRef": {"name": "s"}}})), secret.clone()),
            (volume(json!({"storageos": {"secretRef": {"name": "s"}}})), secret),
            (json!({"containers": [{"name": "a", "image": "b"}]}), vec![]),
            (json!({}), vec![]),
        ];
        for (spec, expected) in table {
            assert_eq!(needs(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn a_pod_is_its_service_account_to_the_api_server() {
        let mut pods = NodePods::default();
        for spec in [json!({"serviceAccountName": "flannel"}), json!({})] {
            let pod = json!({"metadata": {"namespace": "kube-flannel"}, "spec": spec});
            pods.add(pod.to_string().as_bytes()).unwrap();
        }
        assert_eq!(pods.accounts, ["system:serviceaccount:kube-flannel:flannel".to_owned()].into());
    }

    #[test]
    fn a_pod_starts_without_what_is_optional() {
        let pod = json!({"metadata": {"namespace": "shop"}, "spec": {
            "serviceAccountName": "web", "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"env": [
                {"valueFrom": {"configMapKeyRef": {"name": "maybe", "key": "k", "optional": true}}},
                {"valueFrom": {"secretKeyRef": {"name": "password", "key": "k"}}}]}],
            "volumes": [{"secret": {"secretName": "maybe", "optional": true}}, {"projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
                {"configMap": {"name": "kube-root-ca.crt"}}]}}]}});
        let start = Start::of(pod.to_string().as_bytes()).unwrap();
        let needs: Vec<_> =
            start.needs.iter().map(|need| (need.kind, &*need.namespace, &*need.name)).collect();
        let expected =
            [(NeedKind::ConfigMap, "shop", "kube-root-ca.crt"), (NeedKind::Secret, "shop", "password")];
        assert_eq!(needs, expected);
        let token =
            |audience: &str, expiration_seconds| Token { audience: audience.into(), expiration_seconds };
        assert_eq!(
            (&*start.account, start.tokens),
            ("web", vec![token("", Some(3607)), token("vault", None)])
        );
    }

    #[test]
    fn what_is_no_pod_is_an_error() {
        assert!(NodePods::default().add(b"k8s\0").is_err());
        assert!(NodePods::default().add(br#"{"spec":{"containers":7}}"#).is_err());
    }
}
