//! Which certificate requests are our own, and may be approved. Pure; `requests` applies it.
//!
//! There are two kinds, told apart by their signer: the hubs' serving certificates ([`hub_serving`]), and the tunnel
//! server's client certificate for kubelets ([`kubelet_client`]).

mod hub_serving;
mod kubelet_client;

use std::fmt;

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use yurt_api::names;

use self::hub_serving::NODES_GROUP;

/// The signer of kubelets' serving certificates.
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
/// The signer of client certificates that the API server and kubelets accept.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

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
    #[error("expirationSeconds is {0:?} and may be {limit} at most", limit = kubelet_client::LONGEST)]
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
        SERVING if hub_serving::is_claimed(&request) => {
            hub_serving::check(spec, &request, is_edge).map(|node| Ours::Hub { node })
        }
        CLIENT if kubelet_client::is_claimed(spec, &request, namespace) => {
            kubelet_client::check(spec, &request, namespace).map(|()| Ours::TunnelServer)
        }
        _ => return Decision::Leave,
    };
    match checked {
        Ok(ours) => Decision::Approve(ours),
        Err(fault) => Decision::Suspicious(fault),
    }
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
