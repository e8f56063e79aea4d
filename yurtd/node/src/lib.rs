//! What at least two roles of `yurtd` need: whose node a certificate is, files in PEM, names and dialling, the
//! configuration that the keeper writes for the edge service, accepting connections with limits, supervision.
//!
//! The roles themselves do not know each other.

pub mod accept;
pub mod certificate;
pub mod config;
pub mod dial;
pub mod link;
pub mod pki;
pub mod random;
pub mod supervise;
pub mod token;
pub mod verify;
