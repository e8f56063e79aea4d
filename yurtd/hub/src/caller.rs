//! Who asks, with what the request goes upstream, and the evidence that it may read ([`Permit`]).

mod permit;

use std::fmt;
use std::sync::Arc;

use yurt_node::token::BearerToken;

pub(crate) use permit::{Permit, authorise};

/// The user name that the API server knows the caller by (`system:node:edge-1`,
/// `system:serviceaccount:kube-system:coredns`). Views belong to one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity(Arc<str>);

impl Identity {
    /// Takes the user name as the API server writes it.
    pub(crate) fn new(user_name: &str) -> Self {
        Self(user_name.into())
    }

    /// The user name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a request carries upstream. The hub never lends one caller the credential of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// The node's own client certificate; only for requests that arrived with that certificate.
    Node,
    /// The caller's own bearer token.
    Bearer(BearerToken),
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Who it is.
    pub(crate) identity: Identity,
    /// What its requests carry upstream.
    pub(crate) credential: Credential,
}
