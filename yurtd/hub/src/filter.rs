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

mod change;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
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
            Self::HubAsService => change::lead_service_to_hub(&mut object),
            Self::ConfigMaps(_) if change::is_kube_proxys(&object) => {
                change::lead_kube_proxy_to_hub(&mut object)
            }
            Self::ConfigMaps(ca) => change::believe_node_ca(&mut object, ca),
            Self::TokenSecrets(ca) => change::believe_node_ca_in_secret(&mut object, ca),
            Self::PullIfNotPresent => change::pull_if_not_present(&mut object),
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

#[cfg(test)]
mod tests;
