//! What the hub changes in what kubelet reads, so that pods and kube-proxy find the hub and believe it, and images that
//! are on the node are used. Each filter is a pure function on one object; lists and watch frames around it stay as they
//! are.
//!
//! Filters work on JSON: the views of kubelet that a filter may touch are JSON views, which kubelet accepts like
//! protobuf. Everybody else's views pass untouched.
//!
//! | filter | object | change |
//! |---|---|---|
//! | [`Filter::HubAsService`] | Service `default/kubernetes`, in the way by the environment alone ([`crate::way_in`]) | cluster IP and port lead to the hub: kubelet makes `KUBERNETES_SERVICE_HOST` and `_PORT` of them |
//! | [`Filter::ConfigMaps`] | ConfigMap `kube-system/kube-proxy` | `server:` of its kubeconfig is the hub on loopback |
//! | | ConfigMap `kube-root-ca.crt` of every namespace | the node's CA is appended to `ca.crt`, which kubelet writes into pods beside their tokens |
//! | [`Filter::TokenSecrets`] | Secrets of type `kubernetes.io/service-account-token` | the same |
//! | [`Filter::PullIfNotPresent`] | Pods, while the link is down | `imagePullPolicy: Always` is `IfNotPresent`, or nothing with a `:latest` image would come back from an offline reboot |
//!
//! The last one needs kubelet 1.31 or newer, whose hash of a container covers its name and image alone: older ones
//! would restart running containers when the policy changes.

use std::net::Ipv6Addr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use yurt_api::names::{HUB_POD_ADDRESS, HUB_POD_IPV6, HUB_POD_PORT, HUB_PORT};
use yurt_node::config::WayIn;

use crate::wire::Resource;

/// The first kubelet (1.minor) on which [`Filter::PullIfNotPresent`] leaves running containers alone.
const PULL_POLICY_FREE_OF_HASH: u32 = 31;

/// The ConfigMap that kube-controller-manager publishes in every namespace, for pods to verify the API server with.
const ROOT_CA: &str = "kube-root-ca.crt";
/// The type of Secrets with a token that does not expire; they have a `ca.crt` too.
const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";

/// One of the changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Service `default/kubernetes` leads to the hub.
    HubAsService,
    /// kube-proxy's kubeconfig leads to the hub; the CA certificates of pods have the node's as well (PEM).
    ConfigMaps(Arc<str>),
    /// So have those beside tokens that do not expire.
    TokenSecrets(Arc<str>),
    /// Images that are there are not pulled.
    PullIfNotPresent,
}

/// An answer that should have been filtered is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot filter {what}: {source}")]
pub(crate) struct FilterError {
    what: &'static str,
    source: serde_json::Error,
}

impl Filter {
    /// Whether it is there only while the link is down.
    pub(crate) fn depends_on_link(&self) -> bool {
        *self == Self::PullIfNotPresent
    }
}

/// Chooses the filter for kubelet's views of `resource`.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    pull_if_not_present: bool,
    hub_as_service: bool,
    node_ca: Arc<str>,
}

impl Filters {
    /// `kubelet_version` as the Node reports it, `v1.36.3`; `node_ca` in PEM; the way by which pods come to the hub.
    pub(crate) fn new(kubelet_version: &str, node_ca: Arc<str>, way_in: WayIn) -> Self {
        let minor = kubelet_version
            .strip_prefix("v1.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|minor| minor.parse::<u32>().ok());
        Self {
            pull_if_not_present: minor.is_some_and(|minor| minor >= PULL_POLICY_FREE_OF_HASH),
            hub_as_service: way_in == WayIn::Environment,
            node_ca,
        }
    }

    /// The filter that may touch objects of `resource`, `None` when there is none.
    pub(crate) fn for_kubelet(&self, resource: &Resource, offline: bool) -> Option<Filter> {
        if !resource.group.is_empty() {
            return None;
        }
        match resource.plural.as_str() {
            "services" if self.hub_as_service => Some(Filter::HubAsService),
            "configmaps" => Some(Filter::ConfigMaps(self.node_ca.clone())),
            "secrets" => Some(Filter::TokenSecrets(self.node_ca.clone())),
            "pods" if offline && self.pull_if_not_present => Some(Filter::PullIfNotPresent),
            _ => None,
        }
    }
}

impl Filters {
    /// Whether kubelet's view of this collection is kept in JSON. Services are only where one of them is
    /// changed: in protobuf other components are fed from them.
    pub(crate) fn json_for_kubelet(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        field_selector: &str,
    ) -> bool {
        let service = resource.group.is_empty() && resource.plural == "services";
        json_for_kubelet(resource, namespace, field_selector) || (service && self.hub_as_service)
    }

    /// The filter for what kubelet reads without a view, a list (no name) or one object: nothing when what may touch
    /// the answer depends on the link.
    pub(crate) fn for_forwarded(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Option<Filter> {
        let filter = self.for_kubelet(resource, false)?;
        let may_be = |(own_namespace, own_name): (Option<&str>, &str)| {
            namespace.is_none_or(|namespace| own_namespace.is_none_or(|own| own == namespace))
                && name.is_none_or(|name| name == own_name)
        };
        let touches = match &filter {
            // Its type is not in its name.
            Filter::TokenSecrets(_) => true,
            filter => filter.object_names().iter().copied().any(may_be),
        };
        touches.then_some(filter)
    }
}

/// Whether kubelet's view of this collection is kept in JSON, whichever the way in is: the hub changes objects of it, or
/// filters them.
pub(crate) fn json_for_kubelet(resource: &Resource, namespace: Option<&str>, field_selector: &str) -> bool {
    resource.group.is_empty()
        && match resource.plural.as_str() {
            // kubelet reads every Secret by a watch of its own; of what type it is is seen when it is there.
            "nodes" | "pods" | "secrets" => true,
            // The same; two names of them are filtered.
            "configmaps" => match field_selector.strip_prefix("metadata.name=") {
                Some("kube-proxy") => namespace.is_none_or(|namespace| namespace == "kube-system"),
                Some(name) => name == ROOT_CA,
                None => field_selector.is_empty(),
            },
            _ => false,
        }
}

#[derive(Deserialize)]
struct Probe<'a> {
    #[serde(default, borrow)]
    metadata: Option<ProbeMeta<'a>>,
    #[serde(default, borrow, rename = "type")]
    kind_of_secret: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct ProbeMeta<'a> {
    #[serde(default, borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: std::borrow::Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    kind: &'a RawValue,
    #[serde(borrow, rename = "apiVersion")]
    api_version: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow)]
    items: Option<Vec<std::borrow::Cow<'a, RawValue>>>,
}

#[derive(Serialize, Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    event: &'a RawValue,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Filter {
    /// Filters the objects of a JSON list.
    ///
    /// # Errors
    ///
    /// [`FilterError`] when it is no list.
    pub(crate) fn list(&self, body: Bytes) -> Result<Bytes, FilterError> {
        let failed = |source| FilterError { what: "a list", source };
        let mut list: List<'_> = serde_json::from_slice(&body).map_err(failed)?;
        let mut changed = false;
        for item in list.items.iter_mut().flatten() {
            if let Some(filtered) = self.object(item.get()).map_err(failed)? {
                *item = std::borrow::Cow::Owned(filtered);
                changed = true;
            }
        }
        if !changed {
            return Ok(body);
        }
        serde_json::to_vec(&list).map(Bytes::from).map_err(failed)
    }

    /// Filters the object of a JSON watch event.
    ///
    /// # Errors
    ///
    /// [`FilterError`] when it is no watch event.
    pub(crate) fn event(&self, frame: Bytes) -> Result<Bytes, FilterError> {
        let failed = |source| FilterError { what: "a watch event", source };
        let event: Event<'_> = serde_json::from_slice(&frame).map_err(failed)?;
        let Some(filtered) = self.object(event.object.get()).map_err(failed)? else { return Ok(frame) };
        let mut text =
            serde_json::to_vec(&Event { event: event.event, object: &filtered }).map_err(failed)?;
        text.push(b'\n');
        Ok(text.into())
    }

    /// Filters one JSON object.
    ///
    /// # Errors
    ///
    /// [`FilterError`] when it is no object.
    pub(crate) fn single(&self, body: Bytes) -> Result<Bytes, FilterError> {
        let failed = |source| FilterError { what: "an object", source };
        let text: &RawValue = serde_json::from_slice(&body).map_err(failed)?;
        let filtered = self.object(text.get()).map_err(failed)?;
        Ok(filtered.map_or(body.clone(), |filtered| Bytes::from(filtered.get().as_bytes().to_vec())))
    }

    /// MODIFIED events for the objects of a JSON list that the filter touches, as they are with the filter or
    /// without it: what a watcher has to see when the filter comes or goes.
    ///
    /// # Errors
    ///
    /// [`FilterError`] when it is no list.
    pub(crate) fn transition(&self, list: &Bytes, filtered: bool) -> Result<Vec<Bytes>, FilterError> {
        let failed = |source| FilterError { what: "a list", source };
        let list: List<'_> = serde_json::from_slice(list).map_err(failed)?;
        let list_kind: String = serde_json::from_str(list.kind.get()).map_err(failed)?;
        let kind = list_kind.strip_suffix("List").unwrap_or(&list_kind);
        let api_version: Value = serde_json::from_str(list.api_version.get()).map_err(failed)?;
        let mut events = Vec::new();
        for item in list.items.iter().flatten() {
            let Some(with_filter) = self.object(item.get()).map_err(failed)? else { continue };
            let text = if filtered { with_filter.get() } else { item.get() };
            let mut object: Value = serde_json::from_str(text).map_err(failed)?;
            // Items of a list do not carry them, objects of an event do.
            object["kind"] = kind.into();
            object["apiVersion"] = api_version.clone();
            let mut event = serde_json::json!({"type": "MODIFIED", "object": object}).to_string();
            event.push('\n');
            events.push(event.into());
        }
        Ok(events)
    }

    /// The filtered object, `None` when the filter does not touch it.
    fn object(&self, text: &str) -> Result<Option<Box<RawValue>>, serde_json::Error> {
        if !self.concerns(text)? {
            return Ok(None);
        }
        let mut object: Value = serde_json::from_str(text)?;
        let changed = match self {
            Self::HubAsService => lead_service_to_hub(&mut object),
            Self::ConfigMaps(_) if is_kube_proxys(&object) => lead_kube_proxy_to_hub(&mut object),
            Self::ConfigMaps(ca) => believe_node_ca(&mut object, ca),
            Self::TokenSecrets(ca) => believe_node_ca_in_secret(&mut object, ca),
            Self::PullIfNotPresent => pull_if_not_present(&mut object),
        };
        changed.then(|| serde_json::value::to_raw_value(&object)).transpose()
    }

    /// Namespace (or any) and name of the objects that it touches, as far as that is all that tells them.
    fn object_names(&self) -> &'static [(Option<&'static str>, &'static str)] {
        match self {
            Self::HubAsService => &[(Some("default"), "kubernetes")],
            Self::ConfigMaps(_) => &[(Some("kube-system"), "kube-proxy"), (None, ROOT_CA)],
            Self::TokenSecrets(_) | Self::PullIfNotPresent => &[],
        }
    }

    /// A look at the object's name or type, without building the object.
    fn concerns(&self, text: &str) -> Result<bool, serde_json::Error> {
        match self {
            Self::PullIfNotPresent => Ok(text.contains("\"Always\"")),
            Self::TokenSecrets(_) => {
                let probe: Probe<'_> = serde_json::from_str(text)?;
                Ok(probe.kind_of_secret == TOKEN_SECRET)
            }
            Self::HubAsService | Self::ConfigMaps(_) => {
                let probe: Probe<'_> = serde_json::from_str(text)?;
                let names = self.object_names();
                Ok(probe.metadata.is_some_and(|meta| {
                    names.iter().any(|(namespace, name)| {
                        meta.name == *name && namespace.is_none_or(|namespace| meta.namespace == namespace)
                    })
                }))
            }
        }
    }
}

fn lead_service_to_hub(service: &mut Value) -> bool {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    // Pods have an address of the Service's first family in any case.
    let first = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default();
    let hub =
        if first.parse::<Ipv6Addr>().is_ok() { HUB_POD_IPV6.to_string() } else { HUB_POD_ADDRESS.into() };
    if spec.contains_key("clusterIPs") {
        spec.insert("clusterIPs".into(), vec![hub.as_str()].into());
    }
    spec.insert("clusterIP".into(), hub.into());
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port["name"] == "https" || port["port"] == 443 {
            port["port"] = HUB_POD_PORT.into();
        }
    }
    true
}

fn lead_kube_proxy_to_hub(config_map: &mut Value) -> bool {
    let Some(Value::String(kubeconfig)) =
        config_map.get_mut("data").and_then(|data| data.get_mut("kubeconfig.conf"))
    else {
        return false;
    };
    let mut changed = false;
    let lines: Vec<String> = kubeconfig
        .split('\n')
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            if line[indent..].starts_with("server:") {
                changed = true;
                format!("{}server: https://127.0.0.1:{HUB_PORT}", &line[..indent])
            } else {
                line.to_owned()
            }
        })
        .collect();
    *kubeconfig = lines.join("\n");
    changed
}

fn is_kube_proxys(config_map: &Value) -> bool {
    config_map["metadata"]["name"] == "kube-proxy"
}

/// `ca.crt` of a ConfigMap: text.
fn believe_node_ca(config_map: &mut Value, node_ca: &str) -> bool {
    let Some(Value::String(bundle)) = config_map.get_mut("data").and_then(|data| data.get_mut("ca.crt"))
    else {
        return false;
    };
    let with = with_node_ca(bundle.as_bytes(), node_ca).and_then(|with| String::from_utf8(with).ok());
    with.map(|with| *bundle = with).is_some()
}

/// `ca.crt` of a Secret: base64.
fn believe_node_ca_in_secret(secret: &mut Value, node_ca: &str) -> bool {
    let Some(Value::String(bundle)) = secret.get_mut("data").and_then(|data| data.get_mut("ca.crt")) else {
        return false;
    };
    let with = STANDARD.decode(&*bundle).ok().and_then(|bundle| with_node_ca(&bundle, node_ca));
    with.map(|with| *bundle = STANDARD.encode(with)).is_some()
}

/// The bundle with the node's CA at its end; nothing when it has it already.
fn with_node_ca(bundle: &[u8], node_ca: &str) -> Option<Vec<u8>> {
    let mut with = bundle.trim_ascii_end().to_vec();
    if with.ends_with(node_ca.trim_ascii_end().as_bytes()) {
        return None;
    }
    if !with.is_empty() {
        with.push(b'\n');
    }
    with.extend_from_slice(node_ca.as_bytes());
    Some(with)
}

fn pull_if_not_present(pod: &mut Value) -> bool {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    let mut changed = false;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if container["imagePullPolicy"] == "Always" {
                container["imagePullPolicy"] = "IfNotPresent".into();
                changed = true;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NODE_CA: &str = "-----BEGIN CERTIFICATE-----\nnode\n-----END CERTIFICATE-----\n";
    const CLUSTER_CA: &str = "-----BEGIN CERTIFICATE-----\ncluster\n-----END CERTIFICATE-----\n";

    fn core(plural: &str) -> Resource {
        Resource::new("", "v1", plural)
    }

    fn filters(version: &str) -> Filters {
        Filters::new(version, NODE_CA.into(), WayIn::Environment)
    }

    fn bytes(value: &Value) -> Bytes {
        Bytes::from(value.to_string())
    }

    fn value(bytes: &Bytes) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    fn api_service() -> Value {
        json!({
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver"}},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "unknown": {"kept": 1.50},
                     "ports": [{"name": "https", "port": 443, "targetPort": 6443}]},
        })
    }

    #[test]
    fn the_api_servers_service_leads_to_the_hub_and_others_do_not() {
        let other = json!({"metadata": {"name": "kubernetes", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.9"}});
        let list = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
                          "items": [other, api_service()]});
        let filtered = value(&Filter::HubAsService.list(bytes(&list)).unwrap());
        assert_eq!(filtered["items"][0], other);
        assert_eq!(filtered["items"][1]["spec"]["clusterIP"], "169.254.2.1");
        assert_eq!(filtered["items"][1]["spec"]["clusterIPs"], json!(["169.254.2.1"]));
        assert_eq!(
            filtered["items"][1]["spec"]["ports"][0],
            json!({"name": "https", "port": 10268, "targetPort": 6443})
        );
        assert_eq!(filtered["items"][1]["spec"]["unknown"], json!({"kept": 1.50}));
        assert_eq!(filtered["metadata"], list["metadata"]);
    }

    #[test]
    fn a_service_whose_first_address_is_ipv6_leads_to_the_ipv6_address_of_the_hub() {
        let hub = HUB_POD_IPV6.to_string();
        let led = |addresses: &[&str]| {
            let mut service = api_service();
            service["spec"]["clusterIP"] = addresses[0].into();
            service["spec"]["clusterIPs"] = addresses.into();
            let filtered = value(&Filter::HubAsService.single(bytes(&service)).unwrap());
            assert_eq!(filtered["spec"]["ports"][0]["port"], 10268);
            (filtered["spec"]["clusterIP"].clone(), filtered["spec"]["clusterIPs"].clone())
        };
        assert_eq!(led(&["fd00:10:96::1"]), (json!(hub), json!([hub])));
        assert_eq!(led(&["fd00:10:96::1", "10.96.0.1"]), (json!(hub), json!([hub])));
        assert_eq!(led(&["10.96.0.1", "fd00:10:96::1"]), (json!("169.254.2.1"), json!(["169.254.2.1"])));
    }

    #[test]
    fn a_watch_event_is_filtered_and_keeps_its_line_end() {
        let event = json!({"type": "MODIFIED", "object": api_service()});
        let filtered = Filter::HubAsService.event(bytes(&event)).unwrap();
        assert!(filtered.ends_with(b"}\n"));
        assert_eq!(value(&filtered)["type"], "MODIFIED");
        assert_eq!(value(&filtered)["object"]["spec"]["clusterIP"], "169.254.2.1");
        let bookmark = Bytes::from_static(
            b"{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Service\",\"metadata\":{\"resourceVersion\":\"9\"}}}\n",
        );
        assert_eq!(Filter::HubAsService.event(bookmark.clone()).unwrap(), bookmark);
    }

    #[test]
    fn what_no_filter_touches_stays_byte_for_byte() {
        let list = Bytes::from_static(
            b"{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":[ {\"metadata\":{\"name\":\"a\"}} ]}\n",
        );
        assert_eq!(Filter::HubAsService.list(list.clone()).unwrap(), list);
        let empty = Bytes::from_static(
            b"{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":null}",
        );
        assert_eq!(Filter::HubAsService.list(empty.clone()).unwrap(), empty);
    }

    #[test]
    fn kube_proxy_finds_the_hub_on_loopback() {
        let kubeconfig = "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: /ca.crt\n    server: https://10.80.0.2:6443\n  name: default\n";
        let map = json!({"metadata": {"name": "kube-proxy", "namespace": "kube-system"},
                         "data": {"config.conf": "server: untouched", "kubeconfig.conf": kubeconfig}});
        let filtered = value(&Filter::ConfigMaps("CA\n".into()).single(bytes(&map)).unwrap());
        let text = filtered["data"]["kubeconfig.conf"].as_str().unwrap();
        assert_eq!(text, kubeconfig.replace("https://10.80.0.2:6443", "https://127.0.0.1:10261"));
        assert_eq!(filtered["data"]["config.conf"], "server: untouched");
    }

    #[test]
    fn pods_believe_the_nodes_ca_beside_the_clusters() {
        let filter = Filter::ConfigMaps(NODE_CA.into());
        let map = |namespace: &str, name: &str| json!({"metadata": {"name": name, "namespace": namespace}, "data": {"ca.crt": CLUSTER_CA, "a": "b"}});
        for namespace in ["default", "kube-system", "shop"] {
            let filtered = filter.single(bytes(&map(namespace, "kube-root-ca.crt"))).unwrap();
            let data = &value(&filtered)["data"];
            assert_eq!(*data, json!({"ca.crt": format!("{CLUSTER_CA}{NODE_CA}"), "a": "b"}));
            assert_eq!(filter.single(filtered.clone()).unwrap(), filtered, "nothing is left to do");
        }
        // A bundle of somebody's that does not end with its line, and one with nothing in it.
        for (bundle, expected) in [
            (CLUSTER_CA.trim_end().to_owned(), format!("{CLUSTER_CA}{NODE_CA}")),
            (format!("{CLUSTER_CA}\n\n"), format!("{CLUSTER_CA}{NODE_CA}")),
            (String::new(), NODE_CA.to_owned()),
        ] {
            let map = json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": {"ca.crt": bundle}});
            assert_eq!(value(&filter.single(bytes(&map)).unwrap())["data"]["ca.crt"], expected);
        }
        // Somebody's own ConfigMap, one without certificates.
        for other in [
            map("shop", "my-ca"),
            json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": {"other": "x"}}),
            json!({"metadata": {"name": "kube-root-ca.crt", "namespace": "a"}, "data": null}),
        ] {
            assert_eq!(filter.single(bytes(&other)).unwrap(), bytes(&other));
        }
    }

    #[test]
    fn so_do_those_with_a_token_that_does_not_expire() {
        let filter = Filter::TokenSecrets(NODE_CA.into());
        let secret = |kind: &str, ca: &str| {
            json!({"metadata": {"name": "t", "namespace": "shop"}, "type": kind,
                "data": {"ca.crt": ca, "token": "dG9rZW4="}})
        };
        let filtered = filter.single(bytes(&secret(TOKEN_SECRET, &STANDARD.encode(CLUSTER_CA)))).unwrap();
        let data = &value(&filtered)["data"];
        let bundle = STANDARD.decode(data["ca.crt"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(bundle).unwrap(), format!("{CLUSTER_CA}{NODE_CA}"));
        assert_eq!(data["token"], "dG9rZW4=");
        assert_eq!(filter.single(filtered.clone()).unwrap(), filtered, "nothing is left to do");
        for other in [
            secret("Opaque", &STANDARD.encode(CLUSTER_CA)),
            secret(TOKEN_SECRET, "not base64"),
            json!({"metadata": {"name": "t"}, "type": TOKEN_SECRET}),
        ] {
            assert_eq!(filter.single(bytes(&other)).unwrap(), bytes(&other));
        }
    }

    #[test]
    fn images_are_not_pulled_while_the_link_is_down() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {
            "containers": [{"name": "a", "imagePullPolicy": "Always"}, {"name": "b", "imagePullPolicy": "Never"}],
            "initContainers": [{"name": "i", "imagePullPolicy": "Always"}],
        }});
        let filtered = value(&Filter::PullIfNotPresent.single(bytes(&pod)).unwrap());
        assert_eq!(filtered["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(filtered["spec"]["containers"][1]["imagePullPolicy"], "Never");
        assert_eq!(filtered["spec"]["initContainers"][0]["imagePullPolicy"], "IfNotPresent");
        // `restartPolicy: Always` alone is no reason to write the pod anew.
        let other = bytes(&json!({"spec": {"restartPolicy": "Always", "containers": []}}));
        assert_eq!(Filter::PullIfNotPresent.single(other.clone()).unwrap(), other);
    }

    #[test]
    fn watchers_see_the_filter_come_and_go() {
        let list = bytes(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
            {"metadata": {"name": "a"}, "spec": {"containers": [{"imagePullPolicy": "Always"}]}},
            {"metadata": {"name": "b"}, "spec": {"containers": [{"imagePullPolicy": "IfNotPresent"}]}},
        ]}));
        for (filtered, policy) in [(true, "IfNotPresent"), (false, "Always")] {
            let events = Filter::PullIfNotPresent.transition(&list, filtered).unwrap();
            let [event] = events.as_slice() else { panic!("{events:?}") };
            let event = value(event);
            assert_eq!(event["type"], "MODIFIED");
            assert_eq!(event["object"]["kind"], "Pod");
            assert_eq!(event["object"]["apiVersion"], "v1");
            assert_eq!(event["object"]["metadata"]["name"], "a");
            assert_eq!(event["object"]["spec"]["containers"][0]["imagePullPolicy"], policy);
        }
    }

    #[test]
    fn the_pull_policy_stays_online_and_on_old_kubelets() {
        let pods = core("pods");
        assert_eq!(filters("v1.36.3").for_kubelet(&pods, true), Some(Filter::PullIfNotPresent));
        assert_eq!(filters("v1.36.3").for_kubelet(&pods, false), None);
        for version in ["v1.30.9", "", "v2.0.0"] {
            assert_eq!(filters(version).for_kubelet(&pods, true), None, "{version}");
        }
        let other = Resource::new("apps", "v1", "services");
        assert_eq!(filters("v1.36.3").for_kubelet(&other, true), None);
    }

    #[test]
    fn only_what_may_hold_the_object_is_filtered_on_its_way() {
        let filters = filters("v1.36.3");
        let table = [
            ("services", None, None, true),
            ("services", Some("default"), None, true),
            ("services", Some("default"), Some("kubernetes"), true),
            ("services", Some("default"), Some("web"), false),
            ("services", Some("shop"), None, false),
            ("configmaps", None, None, true),
            ("configmaps", Some("kube-system"), Some("kube-proxy"), true),
            ("configmaps", Some("shop"), Some("kube-proxy"), false),
            ("configmaps", Some("shop"), Some("kube-root-ca.crt"), true),
            ("configmaps", Some("shop"), Some("other"), false),
            ("configmaps", Some("shop"), None, true),
            ("pods", None, None, false),
            ("secrets", None, None, true),
            ("secrets", Some("shop"), Some("any"), true),
        ];
        for (plural, namespace, name, expected) in table {
            let filter = filters.for_forwarded(&core(plural), namespace, name);
            assert_eq!(filter.is_some(), expected, "{plural} {namespace:?} {name:?}");
        }
    }

    #[test]
    fn only_the_views_that_need_it_are_json() {
        assert!(json_for_kubelet(&core("pods"), None, "spec.nodeName=edge"));
        assert!(json_for_kubelet(&core("configmaps"), Some("kube-system"), "metadata.name=kube-proxy"));
        assert!(!json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=kube-proxy"));
        assert!(json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=kube-root-ca.crt"));
        assert!(!json_for_kubelet(&core("configmaps"), Some("shop"), "metadata.name=other"));
        assert!(json_for_kubelet(&core("secrets"), Some("shop"), "metadata.name=any"));
        assert!(!json_for_kubelet(&core("endpoints"), None, ""));
        let services =
            |way| Filters::new("v1.36.3", NODE_CA.into(), way).json_for_kubelet(&core("services"), None, "");
        assert!(services(WayIn::Environment) && !services(WayIn::Service));
        assert!(filters("v1.36.3").json_for_kubelet(&core("pods"), None, ""));
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(Filter::HubAsService.list(Bytes::from_static(b"k8s\0")).is_err());
        assert!(Filter::HubAsService.event(Bytes::from_static(b"{}")).is_err());
    }
}
