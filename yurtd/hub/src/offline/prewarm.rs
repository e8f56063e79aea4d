//! Views opened ahead of need, for components that talked to the API server directly when they started and will
//! start through the hub after an offline reboot: then it is too late to fetch what they list.
//!
//! The moment is the API server's reply to kubelet's TokenRequest for the component's pod, which passes through the
//! hub when kubelet first mounts the token and every hour after that. The views are opened with that token: they
//! are the component's own, under its own identity.
//!
//! | component | lists and watches (encoding: protobuf) | source |
//! |---|---|---|
//! | kube-proxy 1.36 | Services without `service-proxy-name` and with a cluster IP; EndpointSlices that are not headless; ServiceCIDRs; its own Node | `cmd/kube-proxy/app/server.go`, `pkg/proxy/node.go` |
//! | kube-proxy before 1.36 | Services and EndpointSlices, both without `service-proxy-name` and not headless; ServiceCIDRs; its own Node | the same, 1.34 |
//! | CoreDNS | Services, EndpointSlices, Namespaces, all of them | `plugin/kubernetes/controller.go` |

use super::token_request::Request;
use crate::view::ViewSpec;
use crate::wire::{Encoding, Resource};

const PROXY_NAME: &str = "!service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "!service.kubernetes.io/headless";

/// The first kube-proxy (1.minor) with separate selectors for Services and EndpointSlices.
const SEPARATE_SELECTORS: u32 = 36;

/// What the component behind this TokenRequest will list and watch; nothing for all others.
pub(crate) fn specs(request: &Request, node_name: &str, kubelet_version: &str) -> Vec<ViewSpec> {
    if request.namespace != "kube-system" || !request.is_for_api_server() {
        return Vec::new();
    }
    let view = |group: &str, plural: &str, labels: &str, fields: &str| {
        ViewSpec::new(Resource::new(group, "v1", plural), None, labels, fields, Encoding::Protobuf)
    };
    match request.service_account.as_str() {
        "kube-proxy" => {
            let both = format!("{HEADLESS},{PROXY_NAME}");
            // kube-proxy is of kubelet's version or older, by at most three: kubeadm keeps them equal.
            let (services, slices) = if minor(kubelet_version) >= SEPARATE_SELECTORS {
                (
                    view("", "services", PROXY_NAME, "spec.clusterIP!=None"),
                    view("discovery.k8s.io", "endpointslices", HEADLESS, ""),
                )
            } else {
                (view("", "services", &both, ""), view("discovery.k8s.io", "endpointslices", &both, ""))
            };
            let own_node = format!("metadata.name={node_name}");
            vec![
                services,
                slices,
                view("networking.k8s.io", "servicecidrs", "", ""),
                view("", "nodes", "", &own_node),
            ]
        }
        "coredns" => vec![
            view("", "services", "", ""),
            view("discovery.k8s.io", "endpointslices", "", ""),
            view("", "namespaces", "", ""),
        ],
        _ => Vec::new(),
    }
}

/// The minor version in `v1.36.3`; of a version that cannot be read, that of the newest.
fn minor(version: &str) -> u32 {
    version
        .strip_prefix("v1.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|minor| minor.parse().ok())
        .unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn request(namespace: &str, service_account: &str, audiences: &str) -> Request {
        let body = Bytes::from(format!("{{\"spec\":{{\"audiences\":{audiences}}}}}"));
        Request::parse(namespace, service_account, false, &body).unwrap()
    }

    #[test]
    fn kube_proxy_gets_the_views_of_its_version() {
        let specs_of = |version: &str| specs(&request("kube-system", "kube-proxy", "[]"), "edge", version);
        let new = specs_of("v1.36.3");
        assert_eq!(new.len(), 4);
        assert_eq!(new[0].label_selector(), PROXY_NAME);
        assert_eq!(new[0].field_selector(), "spec.clusterIP!=None");
        assert_eq!(new[1].label_selector(), HEADLESS);
        assert_eq!(new[3].field_selector(), "metadata.name=edge");
        let old = specs_of("v1.34.4");
        assert_eq!(
            old[0].label_selector(),
            "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
        );
        assert_eq!(old[0].field_selector(), "");
    }

    #[test]
    fn nobody_else_is_prewarmed() {
        assert_eq!(specs(&request("kube-system", "coredns", "[]"), "edge", "v1.36.3").len(), 3);
        assert!(specs(&request("shop", "coredns", "[]"), "edge", "v1.36.3").is_empty());
        assert!(specs(&request("kube-system", "default", "[]"), "edge", "v1.36.3").is_empty());
        assert!(specs(&request("kube-system", "coredns", "[\"vault\"]"), "edge", "v1.36.3").is_empty());
    }
}
