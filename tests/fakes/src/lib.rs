//! Stand-ins for what a test has no real one of. Nothing here knows the code under test, so that a fault cannot be on
//! both sides: the protobuf is written here once more, and the objects are plain JSON.
//!
//! | module | stands in for |
//! |---|---|
//! | [`pki`] | the cluster's CA, and every certificate it signs |
//! | [`api_server`] | kube-apiserver: list, watch and writes in JSON and protobuf, with faults |
//! | [`cluster`] | an API server with the controllers and [`node`]s around it |
//! | [`issuer`] | who signs ServiceAccount tokens |
//! | [`kubelet`] | kubelet's own port: logs and streams |
//! | [`link`] | the wire between two of them: cut, black hole, reset, slow |
//! | [`client`] | kubelet, a pod, kubectl: who calls over TLS |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

pub mod api_server;
pub mod client;
pub mod cluster;
pub mod issuer;
pub mod kubelet;
pub mod link;
pub mod node;
pub mod pki;
pub mod tls;
mod wait;

pub use wait::{PATIENCE, until};
