//! What a request asks for ([`classify`]), who asks ([`authenticate`]) and what the asker may use ([`authorise()`]).
//!
//! `classify` is pure. `authenticate` knows the node's certificate and bearer tokens; it asks the API server about a
//! token that it has not seen ([`tokens`]), unless the cluster's own keys say that it was forged ([`issuer`]). Nobody is
//! anonymous.

pub(crate) mod accept;
pub(crate) mod authenticate;
pub(crate) mod classify;
pub(crate) mod issuer;
pub(crate) mod jwks;
pub(crate) mod tokens;

pub(crate) use crate::caller::authorise;
pub(crate) use authenticate::{Authenticator, Peer};
pub(crate) use classify::RequestInfo;

/// Why a request is not anybody's: each is a 401, but for [`Self::Busy`] and [`Self::NotReviewed`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// Neither certificate nor token.
    #[error("the hub serves nobody without a client certificate of the node or a bearer token")]
    Nobody,
    /// A certificate that is not this node's.
    #[error("the client certificate is not accepted: {0}")]
    Certificate(String),
    /// The node's certificate is out of its time, and the link is up.
    #[error("the node's client certificate has expired or is not yet valid")]
    CertificateTime,
    /// The `Authorization` header is no bearer token.
    #[error("only bearer tokens are accepted in the authorization header")]
    Header,
    /// The token has expired.
    #[error("the bearer token has expired")]
    TokenExpired,
    /// The API server does not know the token.
    #[error("the API server does not accept the bearer token: {0}")]
    TokenRefused(String),
    /// Without the API server it is known to be nobody's.
    #[error("the edge node is offline, and the bearer token is not good: {0}")]
    TokenNotGood(#[from] issuer::NotGood),
    /// Nobody can tell now.
    #[error("the edge node is offline and this bearer token was never seen while it was online")]
    TokenUnknown,
    /// 503: the link is there, and the API server has decided nothing.
    #[error("the API server could not say whose the bearer token is: {0}")]
    NotReviewed(String),
    /// 429: too many tokens, of this address or of all, wait for the API server's review.
    #[error("too many bearer tokens that are not known wait for their review; try again")]
    Busy,
}
