//! What one role asks of another, which do not know each other: the two sides are held together here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::KeyPair;
use yurt_api::names;
use yurt_controller::approval::{Decision, decide};

#[test]
fn the_certificate_that_the_tunnel_server_asks_for_is_approved_by_the_controller() {
    let request = yurt_tunnel::server::certificate_request(&KeyPair::generate().unwrap()).unwrap();
    let namespace = names::DEFAULT_NAMESPACE;
    let spec = CertificateSigningRequestSpec {
        username: Some(format!("system:serviceaccount:{namespace}:yurt-tunnel-server")),
        groups: Some(vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]),
        ..request.spec
    };
    assert_eq!(decide(&spec, namespace), Decision::Approve);
}
