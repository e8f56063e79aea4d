//! What at least two roles need: whose node a certificate is, files in PEM, names and dialling, accepting connections
//! with limits, a small client of the API server, the configuration that the keeper writes for the edge service, tables in
//! the kernel's nftables, supervision.
//!
//! The roles themselves do not know each other.

pub mod accept;
pub mod api_client;
pub mod certificate;
pub mod config;
pub mod dial;
#[doc(hidden)]
pub mod fuzzing;
pub mod known;
pub mod link;
pub mod nft;
pub mod pki;
pub mod random;
pub mod stamp;
pub mod supervise;
pub mod token;
pub mod verify;
