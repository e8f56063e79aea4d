//! What a request asks for ([`classify`]), who asks ([`authenticate`]) and what the asker may use ([`authorise`]).
//!
//! `classify` is pure. `authenticate` knows the node's certificate and bearer tokens; it asks the API server about a
//! token that it has not seen. Nobody is anonymous.

pub mod accept;
pub mod authenticate;
pub mod authorise;
pub mod classify;
pub mod jwt;
pub mod query;
pub mod tokens;

pub use authenticate::{AuthError, Authenticator, Peer};
pub use classify::Class;
