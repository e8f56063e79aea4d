//! The hub's serving certificate.
//!
//! The hub on an edge node serves 127.0.0.1 and 169.254.2.1 with a certificate of the signer
//! `kubernetes.io/kubelet-serving`, requested with the node's own credentials. The signer issues what is
//! approved without looking at the names, and nobody in Kubernetes approves these by itself, so what is
//! let through here is all there is: exactly the hub's names, for the node that asks. kubelet's own
//! requests (`serverTLSBootstrap`) have no 169.254.2.1 in them and are left to whoever approves those.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use yurt_api::names;

use super::Fault;

const NODE_PREFIX: &str = "system:node:";
pub(super) const NODES_GROUP: &str = "system:nodes";
/// What the signer lets a serving certificate be for; the last is demanded.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", SERVER_AUTH];
const SERVER_AUTH: &str = "server auth";

/// Whether 169.254.2.1 is among the requested names: that is how the hub's requests are told from kubelet's.
pub(super) fn is_claimed(request: &X509CertificationRequest<'_>) -> bool {
    alternative_names(request).any(|name| address(name) == names::HUB_POD_ADDRESS.parse().ok())
}

fn alternative_names<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    extensions(request)
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
}

fn extensions<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> impl Iterator<Item = &'a ParsedExtension<'a>> {
    request
        .certification_request_info
        .iter_attributes()
        .filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            _ => None,
        })
        .flatten()
        .map(|extension| extension.parsed_extension())
}

fn address(name: &GeneralName<'_>) -> Option<IpAddr> {
    match name {
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(bytes) => Some(bytes.into()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

/// Demands that it is exactly the hub's; says whose hub's.
pub(super) fn check(
    spec: &CertificateSigningRequestSpec,
    request: &X509CertificationRequest<'_>,
    is_edge: impl FnOnce(&str) -> bool,
) -> Result<String, Fault> {
    let user = spec.username.as_deref().unwrap_or_default();
    let node = user.strip_prefix(NODE_PREFIX).filter(|node| !node.is_empty());
    let in_group = spec.groups.iter().flatten().any(|group| group == NODES_GROUP);
    let Some(node) = node.filter(|_| in_group) else { return Err(Fault::NotANode(user.to_owned())) };

    // The subject: these two attributes, once each, and nothing besides.
    let subject = &request.certification_request_info.subject;
    let only = |mut values: Box<dyn Iterator<Item = Option<String>> + '_>, wanted: &str| {
        values.next().flatten().as_deref() == Some(wanted) && values.next().is_none()
    };
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    let exact = subject.iter_attributes().count() == 2
        && only(Box::new(subject.iter_common_name().map(text)), user)
        && only(Box::new(subject.iter_organization().map(text)), NODES_GROUP);
    if !exact {
        return Err(Fault::Subject(user.to_owned()));
    }

    // Go's parser and this one must not be able to see different names.
    let requests = request.certification_request_info.iter_attributes();
    let is_request =
        |parsed: &ParsedCriAttribute<'_>| matches!(parsed, ParsedCriAttribute::ExtensionRequest(_));
    let requests = requests.filter(|attribute| is_request(attribute.parsed_attribute())).count();
    let lists = extensions(request)
        .filter(|extension| matches!(extension, ParsedExtension::SubjectAlternativeName(_)))
        .count();
    let unreadable =
        extensions(request).any(|extension| matches!(extension, ParsedExtension::ParseError { .. }));
    if requests != 1 || lists != 1 || unreadable {
        return Err(Fault::Extensions);
    }

    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let hub: Option<IpAddr> = names::HUB_POD_ADDRESS.parse().ok();
    for name in alternative_names(request) {
        let allowed = match name {
            GeneralName::DNSName(dns) => *dns == node,
            GeneralName::IPAddress(_) => {
                address(name).is_some_and(|address| address == loopback || Some(address) == hub)
            }
            _ => false,
        };
        if !allowed {
            return Err(Fault::Name(name.to_string()));
        }
    }

    let usages = spec.usages.as_deref().unwrap_or_default();
    let known = usages.iter().all(|usage| USAGES.contains(&usage.as_str()));
    if !known || !usages.iter().any(|usage| usage == SERVER_AUTH) {
        return Err(Fault::Usages(usages.to_vec()));
    }
    // Last, since the label can come a moment after the request.
    if !is_edge(node) {
        return Err(Fault::NotAnEdge(node.to_owned()));
    }
    Ok(node.to_owned())
}
