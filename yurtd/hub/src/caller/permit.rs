//! Who may use which views: the only maker of [`Permit`]s.
//!
//! A caller may use the views of its own identity and no others. What such a view holds is what the API server gave
//! that identity, with its own credential, when the node was last online; so the API server's authorisation is
//! already in the view, and there is nothing to decide again here.
//!
//! It stands below the views, which ask for a permit, and below `request`, which makes the callers.

use super::{Caller, Credential, Identity};

/// Evidence that a caller may use the views of its identity.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    caller: Caller,
}

/// The permit of an authenticated caller.
pub(crate) fn authorise(caller: Caller) -> Permit {
    Permit { caller }
}

impl Permit {
    /// The permit of the hub itself acting for its own node: the rebase of what it changed offline, prewarmed views.
    pub(crate) fn of_node(user: &str) -> Self {
        Self { caller: Caller { identity: Identity::new(user), credential: Credential::Node } }
    }

    /// Whose views these are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.caller.identity
    }

    /// What goes upstream on the caller's behalf.
    pub(crate) fn credential(&self) -> &Credential {
        &self.caller.credential
    }

    /// Whether the caller came with the node's own certificate: kubelet.
    pub(crate) fn is_node(&self) -> bool {
        self.caller.credential == Credential::Node
    }

    /// A permit out of nothing, for tests of what lies behind.
    #[cfg(test)]
    pub(crate) fn for_test(caller: Caller) -> Self {
        Self { caller }
    }
}
