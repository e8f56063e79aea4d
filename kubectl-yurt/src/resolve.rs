//! From arguments to something to talk to: the API server ([`session`]), the tunnel server ([`tunnel`]), the proxies
//! that lead there ([`proxy`]), and the pods that kubectl's `TYPE/NAME` means ([`target`]).

pub mod kubeconfig;
pub mod proxy;
pub mod session;
pub mod target;
pub mod tunnel;
