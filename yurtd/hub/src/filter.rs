//! What the hub changes in what kubelet reads, so that pods and kube-proxy find the hub and images that are on the
//! node are used. Each filter is a pure function on one object; lists and watch frames around it stay as they are.
//!
//! Filters work on JSON: the views of kubelet that a filter may touch are JSON views, which kubelet accepts like
//! protobuf. Everybody else's views pass untouched.
//!
//! | filter | object | change |
//! |---|---|---|
//! | [`Filter::HubAsService`] | Service `default/kubernetes` | cluster IP and port lead to the hub: kubelet makes `KUBERNETES_SERVICE_HOST` and `_PORT` of them |
//! | [`Filter::HubForKubeProxy`] | ConfigMap `kube-system/kube-proxy` | `server:` of its kubeconfig is the hub on loopback |
//! | [`Filter::PullIfNotPresent`] | Pods, while the link is down | `imagePullPolicy: Always` is `IfNotPresent`, or nothing with a `:latest` image would come back from an offline reboot |
//!
//! The last one needs kubelet 1.31 or newer, whose hash of a container covers its name and image alone: older ones
//! would restart running containers when the policy changes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use yurt_api::names::{HUB_POD_ADDRESS, HUB_POD_PORT, HUB_PORT};

use crate::wire::Resource;

/// The first kubelet (1.minor) on which [`Filter::PullIfNotPresent`] leaves running containers alone.
const PULL_POLICY_FREE_OF_HASH: u32 = 31;

/// One of the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Service `default/kubernetes` leads to the hub.
    HubAsService,
    /// kube-proxy's kubeconfig leads to the hub.
    HubForKubeProxy,
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
    pub(crate) fn depends_on_link(self) -> bool {
        self == Self::PullIfNotPresent
    }
}

/// Chooses the filter for kubelet's views of `resource`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filters {
    pull_if_not_present: bool,
}

impl Filters {
    /// `kubelet_version` as the Node reports it, `v1.36.3`.
    pub(crate) fn new(kubelet_version: &str) -> Self {
        let minor = kubelet_version
            .strip_prefix("v1.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|minor| minor.parse::<u32>().ok());
        Self { pull_if_not_present: minor.is_some_and(|minor| minor >= PULL_POLICY_FREE_OF_HASH) }
    }

    /// The filter that may touch objects of `resource`, `None` when there is none.
    pub(crate) fn for_kubelet(self, resource: &Resource, offline: bool) -> Option<Filter> {
        if !resource.group.is_empty() {
            return None;
        }
        match resource.plural.as_str() {
            "services" => Some(Filter::HubAsService),
            "configmaps" => Some(Filter::HubForKubeProxy),
            "pods" if offline && self.pull_if_not_present => Some(Filter::PullIfNotPresent),
            _ => None,
        }
    }
}

impl Filters {
    /// The filter for what kubelet reads without a view, a list (no name) or one object: nothing when what may touch
    /// the answer depends on the link.
    pub(crate) fn for_forwarded(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Option<Filter> {
        let filter = self.for_kubelet(resource, false)?;
        let (own_namespace, own_name) = filter.object_name()?;
        let touches = namespace.is_none_or(|namespace| namespace == own_namespace)
            && name.is_none_or(|name| name == own_name);
        touches.then_some(filter)
    }
}

/// Whether kubelet's view of this collection is kept in JSON: the hub changes objects of it, or filters them.
pub(crate) fn json_for_kubelet(resource: &Resource, namespace: Option<&str>, field_selector: &str) -> bool {
    resource.group.is_empty()
        && match resource.plural.as_str() {
            "nodes" | "pods" | "services" => true,
            // kubelet reads every ConfigMap by a watch of its own; one of them is filtered.
            "configmaps" => {
                namespace.is_none_or(|namespace| namespace == "kube-system")
                    && (field_selector.is_empty() || field_selector == "metadata.name=kube-proxy")
            }
            _ => false,
        }
}

#[derive(Deserialize)]
struct Probe<'a> {
    #[serde(default, borrow)]
    metadata: Option<ProbeMeta<'a>>,
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
    pub(crate) fn list(self, body: Bytes) -> Result<Bytes, FilterError> {
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
    pub(crate) fn event(self, frame: Bytes) -> Result<Bytes, FilterError> {
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
    pub(crate) fn single(self, body: Bytes) -> Result<Bytes, FilterError> {
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
    pub(crate) fn transition(self, list: &Bytes, filtered: bool) -> Result<Vec<Bytes>, FilterError> {
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
    fn object(self, text: &str) -> Result<Option<Box<RawValue>>, serde_json::Error> {
        if !self.concerns(text)? {
            return Ok(None);
        }
        let mut object: Value = serde_json::from_str(text)?;
        let changed = match self {
            Self::HubAsService => lead_service_to_hub(&mut object),
            Self::HubForKubeProxy => lead_kube_proxy_to_hub(&mut object),
            Self::PullIfNotPresent => pull_if_not_present(&mut object),
        };
        changed.then(|| serde_json::value::to_raw_value(&object)).transpose()
    }

    /// Namespace and name of the one object that it touches.
    fn object_name(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::HubAsService => Some(("default", "kubernetes")),
            Self::HubForKubeProxy => Some(("kube-system", "kube-proxy")),
            Self::PullIfNotPresent => None,
        }
    }

    /// A look at the object's name, without building the object.
    fn concerns(self, text: &str) -> Result<bool, serde_json::Error> {
        let Some(named) = self.object_name() else { return Ok(text.contains("\"Always\"")) };
        let probe: Probe<'_> = serde_json::from_str(text)?;
        Ok(probe.metadata.is_some_and(|meta| (&*meta.namespace, &*meta.name) == named))
    }
}

fn lead_service_to_hub(service: &mut Value) -> bool {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    spec.insert("clusterIP".into(), HUB_POD_ADDRESS.into());
    if spec.contains_key("clusterIPs") {
        spec.insert("clusterIPs".into(), vec![HUB_POD_ADDRESS].into());
    }
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

    fn core(plural: &str) -> Resource {
        Resource::new("", "v1", plural)
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
        let filtered = value(&Filter::HubForKubeProxy.single(bytes(&map)).unwrap());
        let text = filtered["data"]["kubeconfig.conf"].as_str().unwrap();
        assert_eq!(text, kubeconfig.replace("https://10.80.0.2:6443", "https://127.0.0.1:10261"));
        assert_eq!(filtered["data"]["config.conf"], "server: untouched");
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
        assert_eq!(Filters::new("v1.36.3").for_kubelet(&pods, true), Some(Filter::PullIfNotPresent));
        assert_eq!(Filters::new("v1.36.3").for_kubelet(&pods, false), None);
        for version in ["v1.30.9", "", "v2.0.0"] {
            assert_eq!(Filters::new(version).for_kubelet(&pods, true), None, "{version}");
        }
        let other = Resource::new("apps", "v1", "services");
        assert_eq!(Filters::new("v1.36.3").for_kubelet(&other, true), None);
    }

    #[test]
    fn only_what_may_hold_the_object_is_filtered_on_its_way() {
        let filters = Filters::new("v1.36.3");
        let table = [
            ("services", None, None, true),
            ("services", Some("default"), None, true),
            ("services", Some("default"), Some("kubernetes"), true),
            ("services", Some("default"), Some("web"), false),
            ("services", Some("shop"), None, false),
            ("configmaps", None, None, true),
            ("configmaps", Some("kube-system"), Some("kube-proxy"), true),
            ("configmaps", Some("shop"), Some("kube-proxy"), false),
            ("pods", None, None, false),
            ("secrets", None, None, false),
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
        assert!(!json_for_kubelet(&core("secrets"), Some("kube-system"), "metadata.name=kube-proxy"));
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(Filter::HubAsService.list(Bytes::from_static(b"k8s\0")).is_err());
        assert!(Filter::HubAsService.event(Bytes::from_static(b"{}")).is_err());
    }
}
