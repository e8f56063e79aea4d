//! Which certificate requests are our own, and may be approved. Pure; `requests` applies it.
//!
//! There are two kinds, told apart by their signer: the hubs' serving certificates, of which this page is, and the
//! tunnel server's client certificate ([`tunnel_server`]).
//!
//! The hub on an edge node serves 127.0.0.1 and 169.254.2.1 with a certificate of the signer
//! `kubernetes.io/kubelet-serving`, requested with the node's own credentials. The signer issues what is
//! approved without looking at the names, and nobody in Kubernetes approves these by itself, so what is
//! let through here is all there is: exactly the hub's names, for the node that asks. kubelet's own
//! requests (`serverTLSBootstrap`) have no 169.254.2.1 in them and are left to whoever approves those.

mod tunnel_server;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use yurt_api::names;

/// The signer of kubelets' serving certificates.
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
/// The signer of client certificates that the API server and kubelets accept.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
/// What the signer lets a serving certificate be for; the last is demanded.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", SERVER_AUTH];
const SERVER_AUTH: &str = "server auth";

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Exactly what it should be: approve it.
    Approve(Ours),
    /// None of ours: somebody else's business.
    Leave,
    /// It claims to be ours and may not be approved; a person should know why.
    Suspicious(Fault),
}

/// A request of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ours {
    /// The serving certificate of the hub on this edge node.
    Hub {
        /// The node.
        node: String,
    },
    /// A tunnel server's client certificate for kubelets.
    TunnelServer,
}

impl Ours {
    /// Reason of the condition `Approved`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Hub { .. } => "YurtHubServing",
            Self::TunnelServer => "YurtTunnelServerClient",
        }
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { node } => write!(f, "the hub of edge node {node}"),
            Self::TunnelServer => f.write_str("the tunnel server as kubelets' client"),
        }
    }
}

/// Why a request that claims to be ours is not approved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not by a node.
    #[error("the requester {0:?} is not a node")]
    NotANode(String),
    /// Not by an edge node.
    #[error("{0:?} is not an edge node (label {label})", label = names::LABEL_EDGE_WORKER)]
    NotAnEdge(String),
    /// For somebody else than who asks.
    #[error("the subject is not exactly O={NODES_GROUP}, CN={0}")]
    Subject(String),
    /// For names that are not the hub's.
    #[error("{0} is not a name of the hub")]
    Name(String),
    /// Extensions that a parser could read otherwise than we do.
    #[error("the requested extensions are ambiguous")]
    Extensions,
    /// For more than serving, or more than being a client.
    #[error("the usages {0:?} are not those of such a certificate")]
    Usages(Vec<String>),
    /// The tunnel server's user name, asked for by somebody else.
    #[error("the requester {0:?} is not the tunnel server")]
    NotTheTunnelServer(String),
    /// The tunnel server, asking for another name or for groups.
    #[error("the subject is not exactly CN={user}", user = names::TUNNEL_SERVER_USER)]
    ClientSubject,
    /// A client certificate with names or other extensions.
    #[error("it has attributes, and a client certificate of ours has none")]
    Attributes,
    /// For longer than needed, or for as long as the signer likes.
    #[error("expirationSeconds is {0:?} and may be {limit} at most", limit = tunnel_server::LONGEST)]
    Expiration(Option<i32>),
}

/// Decides about one request. `namespace` is that of our components; `is_edge` says whether a node of that name
/// exists and is an edge node.
pub fn decide(
    spec: &CertificateSigningRequestSpec,
    namespace: &str,
    is_edge: impl FnOnce(&str) -> bool,
) -> Decision {
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&spec.request.0) else {
        return Decision::Leave;
    };
    let Ok((rest, request)) = X509CertificationRequest::from_der(&der) else { return Decision::Leave };
    if !rest.is_empty() {
        return Decision::Leave;
    }
    let checked = match spec.signer_name.as_str() {
        SERVING if names_the_hub(&request) => check(spec, &request, is_edge).map(|node| Ours::Hub { node }),
        CLIENT if tunnel_server::is_claimed(spec, &request, namespace) => {
            tunnel_server::check(spec, &request, namespace).map(|()| Ours::TunnelServer)
        }
        _ => return Decision::Leave,
    };
    match checked {
        Ok(ours) => Decision::Approve(ours),
        Err(fault) => Decision::Suspicious(fault),
    }
}

/// Whether 169.254.2.1 is among the requested names: that is how the hub's requests are told from kubelet's.
fn names_the_hub(request: &X509CertificationRequest<'_>) -> bool {
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

fn check(
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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    const OURS: [&str; 3] = ["127.0.0.1", "169.254.2.1", "edge-1"];

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:edge-1");
        params
    }

    fn spec(params: &CertificateParams) -> CertificateSigningRequestSpec {
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        CertificateSigningRequestSpec {
            signer_name: SERVING.into(),
            request: ByteString(request.pem().unwrap().into_bytes()),
            username: Some("system:node:edge-1".into()),
            groups: Some(vec!["system:nodes".into(), "system:authenticated".into()]),
            usages: Some(vec!["digital signature".into(), "server auth".into()]),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn edge_1(node: &str) -> bool {
        node == "edge-1"
    }

    fn decide(spec: &CertificateSigningRequestSpec, is_edge: impl FnOnce(&str) -> bool) -> Decision {
        super::decide(spec, names::DEFAULT_NAMESPACE, is_edge)
    }

    fn fault(spec: &CertificateSigningRequestSpec) -> Fault {
        match decide(spec, edge_1) {
            Decision::Suspicious(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_hubs_own_request_is_approved() {
        let hub = Ours::Hub { node: "edge-1".into() };
        assert_eq!(decide(&spec(&params(&OURS)), edge_1), Decision::Approve(hub));
        let mut rsa = spec(&params(&OURS[..2]));
        rsa.usages.as_mut().unwrap().push("key encipherment".into());
        assert!(matches!(decide(&rsa, edge_1), Decision::Approve(_)));
    }

    #[test]
    fn kubelets_own_request_and_other_signers_are_left_alone() {
        assert_eq!(decide(&spec(&params(&["10.80.0.7", "edge-1"])), edge_1), Decision::Leave);
        assert_eq!(decide(&spec(&params(&[])), edge_1), Decision::Leave);
        for signer in [
            "kubernetes.io/kube-apiserver-client-kubelet",
            "kubernetes.io/kube-apiserver-client",
            "example.com/x",
        ] {
            let mut other = spec(&params(&OURS));
            other.signer_name = signer.into();
            assert_eq!(decide(&other, edge_1), Decision::Leave, "{signer}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        for bytes in [
            &b""[..],
            b"nonsense",
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            let mut broken = spec(&params(&OURS));
            broken.request = ByteString(bytes.to_vec());
            assert_eq!(decide(&broken, edge_1), Decision::Leave);
        }
    }

    #[test]
    fn only_the_node_itself_may_ask() {
        for user in ["system:node:", "jane", "system:serviceaccount:kube-system:x", "system:admin"] {
            let mut other = spec(&params(&OURS));
            other.username = Some(user.into());
            assert_eq!(fault(&other), Fault::NotANode(user.into()));
        }
        let mut elsewhere = spec(&params(&OURS));
        elsewhere.groups = Some(vec!["system:authenticated".into()]);
        assert!(matches!(fault(&elsewhere), Fault::NotANode(_)));
        let mut another = spec(&params(&OURS));
        another.username = Some("system:node:edge-2".into());
        assert_eq!(fault(&another), Fault::Subject("system:node:edge-2".into()));
    }

    #[test]
    fn the_subject_is_exactly_the_nodes() {
        let subjects: [&[(DnType, &str)]; 6] = [
            &[(DnType::CommonName, "system:node:edge-1")],
            &[(DnType::OrganizationName, "system:nodes")],
            &[(DnType::OrganizationName, "system:masters"), (DnType::CommonName, "system:node:edge-1")],
            &[(DnType::OrganizationName, "system:nodes"), (DnType::CommonName, "system:node:edge-2")],
            &[
                (DnType::OrganizationName, "system:nodes"),
                (DnType::CommonName, "system:node:edge-1"),
                (DnType::OrganizationalUnitName, "x"),
            ],
            &[(DnType::OrganizationName, "system:nodes"), (DnType::CommonName, "edge-1")],
        ];
        for subject in subjects {
            let mut params = params(&OURS);
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in subject {
                params.distinguished_name.push(kind.clone(), *value);
            }
            assert!(matches!(fault(&spec(&params)), Fault::Subject(_)), "{subject:?}");
        }
    }

    #[test]
    fn no_name_but_the_hubs() {
        for name in [
            "10.80.0.7",
            "169.254.2.2",
            "::1",
            "edge-2",
            "kubernetes",
            "kubernetes.default.svc",
            "*.edge-1",
            "EDGE-1",
            "edge-1.",
            "localhost",
        ] {
            let names = [&OURS[..], &[name]].concat();
            assert!(matches!(fault(&spec(&params(&names))), Fault::Name(_)), "{name}");
        }
    }

    #[test]
    fn no_mail_and_no_uri() {
        for name in [
            SanType::Rfc822Name("a@example.com".try_into().unwrap()),
            SanType::URI("spiffe://example.com/a".try_into().unwrap()),
        ] {
            let mut params = params(&OURS);
            params.subject_alt_names.push(name);
            assert!(matches!(fault(&spec(&params)), Fault::Name(_)));
        }
    }

    #[test]
    fn no_usage_but_serving() {
        for usages in [
            &["digital signature"][..],
            &["digital signature", "server auth", "client auth"],
            &["server auth", "cert sign"],
            &["any"],
            &[],
        ] {
            let mut other = spec(&params(&OURS));
            other.usages = Some(usages.iter().map(|&usage| usage.to_owned()).collect());
            assert!(matches!(fault(&other), Fault::Usages(_)), "{usages:?}");
        }
        let mut none = spec(&params(&OURS));
        none.usages = None;
        assert!(matches!(fault(&none), Fault::Usages(_)));
    }

    #[test]
    fn a_second_list_of_names_is_ambiguous() {
        // A custom extension with the OID of subjectAltName beside rcgen's own.
        let mut params = params(&OURS);
        let der = vec![0x30, 0x06, 0x87, 0x04, 10, 80, 0, 7];
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], der));
        assert_eq!(fault(&spec(&params)), Fault::Extensions);
    }

    #[test]
    fn the_node_has_to_exist_and_to_be_an_edge_node() {
        let spec = spec(&params(&OURS));
        let decision = decide(&spec, |_| false);
        assert_eq!(decision, Decision::Suspicious(Fault::NotAnEdge("edge-1".into())));
    }

    proptest::proptest! {
        #[test]
        fn no_request_makes_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            use base64::Engine as _;
            let body = base64::engine::general_purpose::STANDARD.encode(bytes);
            let mut broken = spec_of(format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"
            ));
            broken.signer_name = SERVING.into();
            let decision = decide(&broken, |_| true);
            let approved = matches!(decision, Decision::Approve(_));
            proptest::prop_assert!(!approved);
        }
    }

    fn spec_of(pem: String) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            ..CertificateSigningRequestSpec::default()
        }
    }
}
