//! One object out of whichever view has it.

use bytes::Bytes;

use super::View;
use super::catalogue::Catalogue;
use crate::caller::Permit;
use crate::wire::{Encoding, Resource};

/// What is known of one object.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// It exists, as a GET would answer it.
    Found {
        /// Encoding of the body.
        encoding: Encoding,
        /// The object.
        body: Bytes,
    },
    /// A complete view that covers it does not have it.
    ProvenAbsent,
    /// The API server's last word on a view that covers it was a 403.
    Refused,
    /// No complete view covers it.
    Unknown,
}

impl Catalogue {
    /// A single object out of any complete view of the identity in one of the `accept`ed encodings, those that follow
    /// upstream first.
    pub(crate) fn lookup(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        accept: &[Encoding],
    ) -> Lookup {
        let mut candidates = self.showing(permit, resource);
        candidates.retain(|view| view.spec.namespace().is_none_or(|own| Some(own) == namespace));
        let refused = candidates.iter().any(|view| view.is_refused() && view.spec.covers(namespace, name));
        candidates.retain(|view| view.is_complete());
        let preference = |view: &View| accept.iter().position(|encoding| *encoding == view.spec.encoding());
        candidates.sort_by_key(|view| (!view.is_live(), preference(view).unwrap_or(usize::MAX)));
        for view in candidates {
            match view.get(namespace, name) {
                Ok(Some(body)) if preference(&view).is_some() => {
                    view.touch();
                    return Lookup::Found { encoding: view.spec.encoding(), body };
                }
                Ok(None) if view.spec.covers(namespace, name) => return Lookup::ProvenAbsent,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, view = %view.name(), "an object cannot be read"),
            }
        }
        if refused { Lookup::Refused } else { Lookup::Unknown }
    }
}
