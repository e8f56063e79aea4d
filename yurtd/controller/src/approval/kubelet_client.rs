//! The tunnel server's client certificate, with which it comes to kubelets as [`names::TUNNEL_SERVER_USER`].
//!
//! The signer `kubernetes.io/kube-apiserver-client` issues whatever subject is approved; only the group
//! `system:masters` is refused before, by the API server's admission. So nothing is approved that is not, to the last
//! field, what the tunnel server asks for (a test of the whole program compares): by the tunnel server's own ServiceAccount, one common name, no
//! group, no other name, a day at most.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use x509_parser::certification_request::X509CertificationRequest;
use yurt_api::names;

use super::Fault;

/// The longest life that is approved, seconds: a day.
pub(super) const LONGEST: i32 = 24 * 60 * 60;
/// What the signer lets a client certificate be for; the last is demanded.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", CLIENT_AUTH];
const CLIENT_AUTH: &str = "client auth";

fn account(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{}", names::TUNNEL_SERVER)
}

/// Whether it is by the tunnel server, or for its name: what should be ours.
pub(super) fn is_claimed(
    spec: &CertificateSigningRequestSpec,
    request: &X509CertificationRequest<'_>,
    namespace: &str,
) -> bool {
    let mut names = request.certification_request_info.subject.iter_common_name();
    spec.username.as_deref() == Some(&account(namespace))
        || names.any(|name| name.as_str() == Ok(names::TUNNEL_SERVER_USER))
}

/// Demands that it is exactly the tunnel server's.
pub(super) fn check(
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
        return Err(Fault::ClientSubject);
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

    use super::super::{CLIENT, Decision, Ours, SERVING, decide};
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
            signer_name: CLIENT.into(),
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
        decide(spec, "edge", |_| true)
    }

    fn fault(spec: &CertificateSigningRequestSpec) -> Fault {
        match decision(spec) {
            Decision::Suspicious(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_tunnel_servers_own_request_is_approved() {
        assert_eq!(decision(&ours()), Decision::Approve(Ours::TunnelServer));
    }

    #[test]
    fn other_peoples_client_certificates_are_left_to_them() {
        let mut person =
            of(&params(&[(DnType::CommonName, "jane"), (DnType::OrganizationName, "shop")], &[]));
        person.username = Some("jane".into());
        assert_eq!(decision(&person), Decision::Leave);
        for signer in [SERVING, "kubernetes.io/kube-apiserver-client-kubelet", "example.com/x"] {
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
            assert_eq!(fault(&of(&params(subject, &[]))), Fault::ClientSubject, "{subject:?}");
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
}
