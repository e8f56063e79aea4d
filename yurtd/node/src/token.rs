//! Bearer tokens, which are never printed.

use std::fmt;
use std::sync::Arc;

/// A bearer token. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(Arc<str>);

impl BearerToken {
    /// Takes the token without its `Bearer ` prefix.
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }

    /// The token itself, for the `Authorization` header and for hashing alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}
