//! The tunnel: a way for the API server's connections to nodes that nothing can reach.
//!
//! [`agent`] dials out from the node; [`server`] on the control-plane nodes brings connections to it. Both speak
//! [`mux`].

pub mod agent;
mod backoff;
#[doc(hidden)]
pub mod fuzzing;
mod kept;
pub mod mux;
pub mod server;
mod upgrade;
