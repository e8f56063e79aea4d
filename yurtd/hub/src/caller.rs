//! Who asks, with what the request goes upstream, and the evidence that it may read ([`Permit`]).

pub(crate) mod jwt;
mod permit;

use std::fmt;
use std::sync::Arc;

use yurt_node::token::BearerToken;

pub(crate) use permit::{Permit, authorise};

/// Days that the API server's word on what an identity may read is believed although nobody has asked again.
const RIGHTS_LAST: u64 = 30;
/// The same for Secrets.
const RIGHTS_TO_SECRETS_LAST: u64 = 7;

/// Whether a right that the API server confirmed on one day is believed on another, in days since 1970. Not for kubelet,
/// which needs what its pods need however long the link is down, and not for what was followed as long as there was a
/// link: nobody could have known better. A clock that has gone back makes no right older.
pub(crate) fn rights_last(confirmed: u64, today: u64, is_secret: bool) -> bool {
    let days = if is_secret { RIGHTS_TO_SECRETS_LAST } else { RIGHTS_LAST };
    today.saturating_sub(confirmed) <= days
}

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

impl Identity {
    /// Whether it is a node's: kubelet's.
    pub(crate) fn is_node(&self) -> bool {
        self.0.starts_with("system:node:")
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

impl Credential {
    /// When it ends by its own word, in seconds since 1970; the node's certificate and legacy tokens do not.
    pub(crate) fn expires(&self) -> Option<i64> {
        match self {
            Self::Node => None,
            Self::Bearer(token) => jwt::claims(token.expose())?.exp,
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Who it is.
    pub(crate) identity: Identity,
    /// What its requests carry upstream.
    pub(crate) credential: Credential,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_to_secrets_lasts_a_week_and_others_a_month() {
        for (days, is_secret, last) in
            [(0, true, true), (7, true, true), (8, true, false), (8, false, true), (31, false, false)]
        {
            assert_eq!(rights_last(20_000, 20_000 + days, is_secret), last, "{days} {is_secret}");
        }
        assert!(rights_last(20_000, 0, true), "a board without a clock");
        assert!(!rights_last(0, 20_000, true), "nobody has ever confirmed it");
    }
}
