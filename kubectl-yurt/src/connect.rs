//! The servers that the plugin talks to: the API server ([`session`], by the [`kubeconfig`] and the flags on top of it),
//! the tunnel servers ([`tunnel`]) and what they say of their agents ([`agents`]), the proxies that lead there
//! ([`proxy`]), and certificates ([`pem`]).

pub mod agents;
pub mod kubeconfig;
pub mod pem;
pub mod proxy;
pub mod session;
pub mod tunnel;
