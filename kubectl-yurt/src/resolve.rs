//! From arguments to something to talk to: the API server ([`session`]), the tunnel server ([`tunnel`]), and the
//! pods that kubectl's `TYPE/NAME` means ([`target`]).

pub mod kubeconfig;
pub mod session;
pub mod target;
pub mod tunnel;
