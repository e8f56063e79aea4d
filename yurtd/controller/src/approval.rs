//! Which certificate requests are our own, and may be approved: the tunnel server's client certificates, with which it
//! comes to kubelets as [`names::TUNNEL_SERVER_USER`]. Pure; `requests` applies it. Hubs vouch for themselves and ask
//! nobody.
//!
//! The signer `kubernetes.io/kube-apiserver-client` issues whatever subject is approved; only the group
//! `system:masters` is refused before, by the API server's admission. So nothing is approved that is not, to the last
//! field, what the tunnel server asks for (a test of the whole program compares): by the tunnel server's own
//! ServiceAccount, one common name, no group, no other name, a day at most.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use yurt_api::names;

/// The signer of client certificates that the API server and kubelets accept.
pub(super) const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Reason of the condition `Approved`.
pub(super) const REASON: &str = "YurtTunnelServerClient";
/// The longest life that is approved, seconds: a day.
const LONGEST: i32 = 24 * 60 * 60;
/// What the signer lets a client certificate be for; the last is demanded.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", CLIENT_AUTH];
const CLIENT_AUTH: &str = "client auth";

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Exactly what it should be: approve it.
    Approve,
    /// None of ours: somebody else's business.
    Leave,
    /// It claims to be ours and may not be approved; a person should know why.
    Suspicious(Fault),
}

/// Why a request that claims to be ours is not approved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The tunnel server's user name, asked for by somebody else.
    #[error("the requester {0:?} is not the tunnel server")]
    NotTheTunnelServer(String),
    /// The tunnel server, asking for another name or for groups.
    #[error("the subject is not exactly CN={user}", user = names::TUNNEL_SERVER_USER)]
    Subject,
    /// A client certificate with names or other extensions.
    #[error("it has attributes, and a client certificate of ours has none")]
    Attributes,
    /// For more than being a client.
    #[error("the usages {0:?} are not those of such a certificate")]
    Usages(Vec<String>),
    /// For longer than needed, or for as long as the signer likes.
    #[error("expirationSeconds is {0:?} and may be {LONGEST} at most")]
    Expiration(Option<i32>),
}

/// Decides about one request. `namespace` is that of our components.
pub fn decide(spec: &CertificateSigningRequestSpec, namespace: &str) -> Decision {
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(&spec.request.0) else {
        return Decision::Leave;
    };
    let Ok((rest, request)) = X509CertificationRequest::from_der(&der) else { return Decision::Leave };
    if !rest.is_empty() || spec.signer_name != SIGNER || !is_claimed(spec, &request, namespace) {
        return Decision::Leave;
    }
    match check(spec, &request, namespace) {
        Ok(()) => Decision::Approve,
        Err(fault) => Decision::Suspicious(fault),
    }
}

fn account(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{}", names::TUNNEL_SERVER)
}

/// Whether it is by the tunnel server, or for its name: what should be ours.
fn is_claimed(
    spec: &CertificateSigningRequestSpec,
    request: &X509CertificationRequest<'_>,
    namespace: &str,
) -> bool {
    let mut names = request.certification_request_info.subject.iter_common_name();
    spec.username.as_deref() == Some(&account(namespace))
        || names.any(|name| name.as_str() == Ok(names::TUNNEL_SERVER_USER))
}

/// Demands that it is exactly the tunnel server's.
fn check(
    spec: &CertificateSigningRequestSpec,
    request: &X509CertificationRequest<'_>,
    namespace: &str,
) -> Result<(), Fault> {
    // The API server writes these two; somebody who may impersonate users need not be able to impersonate groups.
    let user = spec.username.as_deref().unwrap_or_default();
    let group = format!("system:serviceaccounts:{namespace}");
    if user != account(namespace) || !spec.groups.iter().flatten().any(|name| *name == group) {
        return Err(Fault::NotTheTunnelServer(user.to_owned()));
    }
    let info = &request.certification_request_info;
    let mut names = info.subject.iter_common_name();
    let name = names.next().map(|name| name.as_str());
    if info.subject.iter_attributes().count() != 1 || name != Some(Ok(names::TUNNEL_SERVER_USER)) {
        return Err(Fault::Subject);
    }
    // Names of any kind are an extension, extensions are an attribute; no parser can see any where there is none.
    if info.iter_attributes().next().is_some() {
        return Err(Fault::Attributes);
    }
    let usages = spec.usages.as_deref().unwrap_or_default();
    let known = usages.iter().all(|usage| USAGES.contains(&usage.as_str()));
    if !known || !usages.iter().any(|usage| usage == CLIENT_AUTH) {
        return Err(Fault::Usages(usages.to_vec()));
    }
    match spec.expiration_seconds {
        Some(1..=LONGEST) => Ok(()),
        other => Err(Fault::Expiration(other)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:edge:yurt-tunnel-server";

    fn params(subject: &[(DnType, &str)], names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params
    }

    fn of(params: &CertificateParams) -> CertificateSigningRequestSpec {
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        CertificateSigningRequestSpec {
            signer_name: SIGNER.into(),
            request: ByteString(request.pem().unwrap().into_bytes()),
            username: Some(ACCOUNT.into()),
            groups: Some(vec!["system:serviceaccounts".into(), "system:serviceaccounts:edge".into()]),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            expiration_seconds: Some(LONGEST),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn ours() -> CertificateSigningRequestSpec {
        of(&params(&[(DnType::CommonName, names::TUNNEL_SERVER_USER)], &[]))
    }

    fn decision(spec: &CertificateSigningRequestSpec) -> Decision {
        decide(spec, "edge")
    }

    fn fault(spec: &CertificateSigningRequestSpec) -> Fault {
        match decision(spec) {
            Decision::Suspicious(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_tunnel_servers_own_request_is_approved() {
        assert_eq!(decision(&ours()), Decision::Approve);
    }

    #[test]
    fn other_peoples_client_certificates_are_left_to_them() {
        let mut person =
            of(&params(&[(DnType::CommonName, "jane"), (DnType::OrganizationName, "shop")], &[]));
        person.username = Some("jane".into());
        assert_eq!(decision(&person), Decision::Leave);
        for signer in
            ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet", "example.com/x"]
        {
            assert_eq!(
                decision(&CertificateSigningRequestSpec { signer_name: signer.into(), ..ours() }),
                Decision::Leave
            );
        }
    }

    #[test]
    fn nobody_else_gets_the_tunnel_servers_name() {
        for user in [
            "jane",
            "yurt-tunnel-server",
            "system:node:edge-1",
            "system:serviceaccount:kube-system:yurt-tunnel-server",
            "system:serviceaccount:edge:yurtd",
            "system:serviceaccount:edge:yurt-tunnel-server2",
        ] {
            let other = CertificateSigningRequestSpec { username: Some(user.into()), ..ours() };
            assert_eq!(fault(&other), Fault::NotTheTunnelServer(user.into()));
        }
        for groups in [None, Some(vec!["system:serviceaccounts:kube-system".into()])] {
            let other = CertificateSigningRequestSpec { groups, ..ours() };
            assert_eq!(fault(&other), Fault::NotTheTunnelServer(ACCOUNT.into()));
        }
    }

    #[test]
    fn the_tunnel_server_gets_no_other_name_and_no_group() {
        let name = (DnType::CommonName, names::TUNNEL_SERVER_USER);
        let subjects: [&[(DnType, &str)]; 7] = [
            &[],
            &[(DnType::CommonName, "system:admin")],
            &[(DnType::CommonName, "yurt-tunnel-server ")],
            &[(DnType::OrganizationName, "system:masters")],
            &[name.clone(), (DnType::OrganizationName, "system:masters")],
            &[name.clone(), (DnType::OrganizationName, "kubeadm:cluster-admins")],
            &[name, (DnType::OrganizationalUnitName, "x")],
        ];
        for subject in subjects {
            assert_eq!(fault(&of(&params(subject, &[]))), Fault::Subject, "{subject:?}");
        }
    }

    #[test]
    fn no_alternative_name_and_no_other_extension() {
        let subject = [(DnType::CommonName, names::TUNNEL_SERVER_USER)];
        for name in ["yurt-tunnel-server", "10.0.0.1"] {
            assert_eq!(fault(&of(&params(&subject, &[name]))), Fault::Attributes, "{name}");
        }
        let mut authority = params(&subject, &[]);
        authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        assert_eq!(fault(&of(&authority)), Fault::Attributes);
    }

    #[test]
    fn no_usage_but_being_a_client_and_no_life_beyond_a_day() {
        for usages in [
            &["digital signature"][..],
            &["client auth", "server auth"],
            &["client auth", "cert sign"],
            &["any"],
            &[],
        ] {
            let usages: Vec<String> = usages.iter().map(|&usage| usage.to_owned()).collect();
            let other = CertificateSigningRequestSpec { usages: Some(usages.clone()), ..ours() };
            assert_eq!(fault(&other), Fault::Usages(usages));
        }
        for seconds in [None, Some(LONGEST + 1), Some(0), Some(-1)] {
            let other = CertificateSigningRequestSpec { expiration_seconds: seconds, ..ours() };
            assert_eq!(fault(&other), Fault::Expiration(seconds));
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        for bytes in [
            &b""[..],
            b"nonsense",
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            let broken = CertificateSigningRequestSpec { request: ByteString(bytes.to_vec()), ..ours() };
            assert_eq!(decision(&broken), Decision::Leave);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_request_makes_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            use base64::Engine as _;
            let body = base64::engine::general_purpose::STANDARD.encode(bytes);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            let request = ByteString(pem.into_bytes());
            let broken = CertificateSigningRequestSpec { request, ..ours() };
            proptest::prop_assert!(decision(&broken) != Decision::Approve);
        }
    }
}
