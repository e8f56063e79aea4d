//! Stand-ins for what a test has no real one of: certificate authorities, API servers, kubelets, nodes, links with
//! faults. Nothing here knows the code under test, so that a fault cannot be on both sides.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

pub mod pki;
