//! As much of a pod as says how it comes to the API server.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Deserialize;
use yurt_api::agent::Volume;
use yurt_api::names;

/// A pod, in JSON.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: Spec,
    pub(crate) status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) owner_references: Option<Vec<Owner>>,
    pub(crate) deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Owner {
    pub(crate) controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) restart_policy: String,
    pub(crate) host_network: bool,
    pub(crate) volumes: Option<Vec<Volume>>,
}

/// What kubelet says of it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
    ephemeral_container_statuses: Option<Vec<Container>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    state: State,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct State {
    running: Option<Running>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Running {
    /// RFC 3339
    started_at: Option<String>,
}

impl Pod {
    /// Whether it is one of this product's: they know the API server's own address.
    pub(crate) fn is_ours(&self) -> bool {
        let part_of = self.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_PART_OF));
        part_of.is_some_and(|part_of| part_of == names::PART_OF)
    }
}

impl Status {
    /// When each container that runs began, in seconds since 1970, if that is said.
    pub(crate) fn starts(&self) -> impl Iterator<Item = Option<i64>> {
        let all =
            [&self.init_container_statuses, &self.container_statuses, &self.ephemeral_container_statuses];
        let running =
            all.into_iter().flatten().flatten().filter_map(|container| container.state.running.as_ref());
        running.map(|running| {
            let started = running.started_at.as_deref()?.parse::<Timestamp>().ok()?;
            Some(started.as_second())
        })
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&self.pod_ip);
        all.filter_map(|ip| ip.parse().ok())
    }
}
