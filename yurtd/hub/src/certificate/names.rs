//! Under which names and addresses the hub is asked: every one by which a process of the node knows the API server.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use yurt_api::names::{HUB_POD_ADDRESS, HUB_POD_IPV6};

/// kubelet's default for `clusterDomain` with kubeadm.
pub(crate) const DEFAULT_DOMAIN: &str = "cluster.local";

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// An IP address.
    Address(IpAddr),
    /// A DNS name.
    Dns(String),
}

impl Name {
    /// A node may be called like an address. Nothing when it is neither an address nor a name of the DNS.
    fn of(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (text.len() <= 253 && text.split('.').all(label)).then(|| Self::Dns(text.to_ascii_lowercase()))
    }
}

/// What does not change while the hub runs: the node, the cluster's domain.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    fixed: BTreeSet<Name>,
}

impl Names {
    /// `domain` is the cluster's domain, [`DEFAULT_DOMAIN`] when it is not known.
    pub(crate) fn new(node: &str, domain: Option<&str>) -> Self {
        let domain = domain.filter(|domain| !domain.is_empty()).unwrap_or(DEFAULT_DOMAIN);
        let service = format!("kubernetes.default.svc.{domain}");
        let names =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", HUB_POD_ADDRESS];
        let mut fixed: BTreeSet<Name> = names.into_iter().filter_map(Name::of).collect();
        let addresses: [IpAddr; 3] =
            [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), HUB_POD_IPV6.into()];
        fixed.extend(addresses.map(Name::Address));
        for given in [node, &service] {
            match Name::of(given) {
                Some(name) => drop(fixed.insert(name)),
                None => tracing::warn!(name = given, "no certificate can have this name"),
            }
        }
        Self { fixed }
    }

    /// All of them, the Service's addresses included.
    pub(super) fn with(&self, service: &BTreeSet<IpAddr>) -> BTreeSet<Name> {
        self.fixed.iter().cloned().chain(service.iter().copied().map(Name::Address)).collect()
    }

    /// Of the names of a certificate of ours, the addresses that are not there in any case: those of the Service.
    pub(super) fn service_addresses(&self, names: &BTreeSet<Name>) -> BTreeSet<IpAddr> {
        let address = |name: &Name| match name {
            Name::Address(address) => Some(*address),
            Name::Dns(_) => None,
        };
        names.difference(&self.fixed).filter_map(address).collect()
    }
}

/// The names that a certificate is for; those of other kinds are left out.
pub(super) fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<Name> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
            GeneralName::IPAddress(octets) => {
                let four = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
                four.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from)).ok().map(Name::Address)
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &BTreeSet<Name>) -> Vec<String> {
        let text = |name: &Name| match name {
            Name::Address(address) => address.to_string(),
            Name::Dns(dns) => dns.clone(),
        };
        names.iter().map(text).collect()
    }

    #[test]
    fn every_name_of_the_api_server_on_a_node_is_there() {
        let service = BTreeSet::from(["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let names = Names::new("edge-1", None);
        let all = names.with(&service);
        let expected = [
            "10.96.0.1",
            "127.0.0.1",
            "169.254.2.1",
            "::1",
            "fd00::1",
            "fd6b:7975:7274::1",
            "edge-1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ];
        assert_eq!(texts(&all), expected);
        assert_eq!(names.service_addresses(&all), service);
        let other = texts(&Names::new("edge-1", Some("shop.example.")).with(&service));
        assert!(other.contains(&"kubernetes.default.svc.shop.example".to_owned()), "{other:?}");
    }

    #[test]
    fn a_node_may_be_called_like_an_address_and_what_cannot_be_a_name_costs_only_itself() {
        let names = Names::new("10.80.0.7", Some("not a domain")).with(&BTreeSet::new());
        assert!(names.contains(&Name::Address("10.80.0.7".parse().unwrap())));
        assert_eq!(names.len(), Names::new("edge", None).with(&BTreeSet::new()).len() - 1);
        for bad in ["", "a..b", "-a", "a b", "*.a", &"a".repeat(64), "ä"] {
            assert_eq!(Name::of(bad), None, "{bad:?}");
        }
    }
}
