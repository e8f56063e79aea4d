//! Why there is no answer without the API server.

use super::events::EventError;
use super::patch::PatchError;
use super::token_request::TokenError;
use crate::store::StoreError;
use crate::wire::WireError;

/// Why there is no answer without the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfflineError {
    /// 503: what was never cached, or cannot be done now.
    #[error("the edge node is offline and {0}")]
    Unavailable(String),
    /// 403: the API server's last word.
    #[error("the edge node is offline, and the API server refused {0} when it was last asked")]
    Refused(String),
    /// 409: the object is there already.
    #[error("{plural} {name:?} already exists")]
    AlreadyExists {
        /// Resource.
        plural: String,
        /// Name.
        name: String,
    },
    /// 409: it is not as the client believes.
    #[error("the edge node is offline, and {plural} {name:?} cannot be changed: {reason}")]
    Conflict {
        /// API group.
        group: String,
        /// Resource.
        plural: String,
        /// Name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// 404: a view that may say so does not have it.
    #[error("{plural} {name:?} not found")]
    NotFound {
        /// API group.
        group: String,
        /// Resource.
        plural: String,
        /// Name.
        name: String,
    },
    /// 409, 400 or 422: the patch.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// 415: not a patch format.
    #[error("{0:?} is not a patch format of the Kubernetes API")]
    PatchType(String),
    /// 400: the TokenRequest.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// 400: the Event.
    #[error(transparent)]
    Event(EventError),
    /// 500: the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// 500: a stored object cannot be read.
    #[error("a stored object cannot be read: {0}")]
    Damaged(String),
}

impl From<EventError> for OfflineError {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Store(error) => Self::Store(error),
            error => Self::Event(error),
        }
    }
}

impl From<WireError> for OfflineError {
    fn from(error: WireError) -> Self {
        Self::Damaged(error.to_string())
    }
}
