//! What carries connections to Services in this cluster, and so by which way pods of edge nodes can come to the hub.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Pod, Service},
};
use kube::{Api, api::ListParams};
use yurt_api::way_in::WayIn;

use crate::connect::session::Session;

const NAMESPACE: &str = "kube-system";
const KUBE_PROXY: &str = "kube-proxy";
/// The label of its pods, whoever installs it.
const KUBE_PROXY_PODS: &str = "k8s-app=kube-proxy";
/// Cilium's configuration, and its key.
const CILIUM: (&str, &str) = ("cilium-config", "kube-proxy-replacement");

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataPath {
    /// kube-proxy runs.
    pub kube_proxy: bool,
    /// Cilium connects sockets to Services before there is a packet.
    pub sockets: bool,
    /// Pods look for the API server at an address, of either family.
    pub address: bool,
}

impl DataPath {
    /// Looks at the cluster.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub async fn of(session: &Session) -> Result<Self, kube::Error> {
        let client = || session.client.clone();
        let sets: Api<DaemonSet> = Api::namespaced(client(), NAMESPACE);
        let pods: Api<Pod> = Api::namespaced(client(), NAMESPACE);
        let maps: Api<ConfigMap> = Api::namespaced(client(), NAMESPACE);
        let services: Api<Service> = Api::namespaced(client(), "default");
        let one = ListParams::default().labels(KUBE_PROXY_PODS).limit(1);
        let (set, pods, cilium, service) = tokio::try_join!(
            sets.get_opt(KUBE_PROXY),
            pods.list_metadata(&one),
            maps.get_opt(CILIUM.0),
            services.get_opt("kubernetes"),
        )?;
        Ok(Self {
            kube_proxy: set.is_some_and(|set| desired(&set) > 0) || !pods.items.is_empty(),
            sockets: cilium.is_some_and(|map| replaces_kube_proxy(&map)),
            address: service.is_some_and(|service| has_address(&service)),
        })
    }

    /// The way that works here.
    pub fn way_in(&self) -> WayIn {
        if self.kube_proxy && !self.sockets && self.address { WayIn::Service } else { WayIn::Environment }
    }
}

fn desired(set: &DaemonSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.desired_number_scheduled)
}

fn replaces_kube_proxy(map: &ConfigMap) -> bool {
    let value = map.data.as_ref().and_then(|data| data.get(CILIUM.1));
    value.is_some_and(|value| !matches!(value.as_str(), "false" | "disabled" | "probe" | ""))
}

fn has_address(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let all = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
    let mut all = all.chain(spec.and_then(|spec| spec.cluster_ip.as_ref()));
    all.any(|address| address.parse::<std::net::IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_services_address_is_the_way_where_kube_proxy_carries_it() {
        let usual = DataPath { kube_proxy: true, sockets: false, address: true };
        assert_eq!(usual.way_in(), WayIn::Service);
        for other in [
            DataPath { kube_proxy: false, ..usual },
            DataPath { sockets: true, ..usual },
            DataPath { address: false, ..usual },
        ] {
            assert_eq!(other.way_in(), WayIn::Environment, "{other:?}");
        }
    }

    #[test]
    fn what_is_found_is_read_as_it_is_meant() {
        let map = |value: &str| serde_json::from_value(json!({ "data": { CILIUM.1: value } })).unwrap();
        assert!(replaces_kube_proxy(&map("true")) && replaces_kube_proxy(&map("strict")));
        assert!(!replaces_kube_proxy(&map("false")) && !replaces_kube_proxy(&ConfigMap::default()));
        let service = |spec| serde_json::from_value(json!({ "spec": spec })).unwrap();
        assert!(has_address(&service(json!({ "clusterIP": "10.96.0.1" }))));
        assert!(has_address(&service(json!({ "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"] }))));
        assert!(!has_address(&service(json!({ "clusterIP": "None", "clusterIPs": ["None"] }))));
        let set = |desired: i32| {
            let status = json!({ "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
                "desiredNumberScheduled": desired });
            serde_json::from_value(json!({ "status": status })).unwrap()
        };
        assert!(desired(&set(3)) > 0 && desired(&set(0)) == 0, "one that is for no node carries nothing");
    }
}
