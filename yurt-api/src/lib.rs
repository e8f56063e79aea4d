//! What `kubectl-yurt` and `yurtd` must agree on: names and paths ([`names`]), what a Node's labels and
//! annotations mean ([`node`], [`duration`]), which pods are the node's own agents ([`agent`]), the documents they leave
//! for each other in the cluster ([`status`]), by which way pods come to the hub ([`way_in`]), what an edge node says of
//! itself ([`doctor`]), what a walk along the way to it finds ([`diagnosis`]), kubelet ports of nodes that share an address
//! ([`kubelet_port`]), who of several may work ([`lease`]), and the tunnel's wire protocol ([`tunnel`]).
//!
//! No I/O, no Kubernetes client, no store: the plugin never links LMDB, and the codec can be fuzzed
//! in isolation.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod agent;
pub mod diagnosis;
pub mod doctor;
pub mod duration;
pub mod kubelet_port;
pub mod lease;
pub mod names;
pub mod node;
pub mod status;
pub mod tunnel;
pub mod way_in;
