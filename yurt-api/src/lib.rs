//! What `kubectl-yurt` and `yurtd` must agree on: names and paths ([`names`]), the documents they
//! leave for each other in the cluster ([`status`]), and the tunnel's wire protocol ([`tunnel`]).
//!
//! No I/O, no Kubernetes client, no store: the plugin never links LMDB, and the codec can be fuzzed
//! in isolation.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod names;
pub mod status;
pub mod tunnel;
