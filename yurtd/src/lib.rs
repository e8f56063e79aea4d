//! `yurtd`: one program, one role per process.
//!
//! | role | root | runs as |
//! |---|---|---|
//! | `edge` | [`edge`] | systemd service on every edge node: the hub and the tunnel agent |
//! | `keeper` | [`keeper`] | DaemonSet on edge nodes: installs, repairs and removes `edge` |
//! | `tunnel-server` | [`tunnel_server`] | DaemonSet on control-plane nodes |
//! | `controller` | [`controller`] | Deployment in the cloud |
//!
//! A LIST that kubelet sends travels
//! `serve::listener → request::classify → request::authorise → view → store → serve::respond`
//! and never turns back.

pub mod cli;
pub mod config;
pub mod controller;
pub mod edge;
#[cfg(test)]
pub(crate) mod fake_api;
pub mod filter;
pub mod identity;
pub mod keeper;
pub mod link;
pub mod net;
pub mod node_client;
pub mod offline;
pub mod replica;
pub mod request;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod tunnel_server;
pub mod upstream;
pub mod view;
pub mod wire;
