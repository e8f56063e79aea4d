//! One object out of whichever view knows it best.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;

use super::catalogue::Catalogue;
use super::{Question, View};
use crate::caller::Permit;
use crate::wire::{Encoding, Resource};

/// What the views know of one object.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// It exists, as a GET would answer it.
    Found {
        /// Encoding of the body.
        encoding: Encoding,
        /// The object.
        body: Bytes,
        /// Upstream's resourceVersion of it.
        version: u64,
        /// Whether it is the hub's own version over that.
        local: bool,
        /// Whose it is.
        view: Arc<View>,
    },
    /// A view that covers it does not have it, and may say so.
    ProvenAbsent {
        /// The view's resourceVersion.
        version: u64,
    },
    /// The API server's last word on a view that covers it was a 403.
    Refused,
    /// No view can tell.
    Unknown,
}

impl Catalogue {
    /// A single object out of the views of the identity, in one of the `accept`ed encodings. What is followed, or was
    /// until the link went, comes first, then the highest resourceVersion; a local version before both.
    pub(crate) fn lookup(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        accept: &[Encoding],
    ) -> Lookup {
        let mut candidates = self.showing(permit, resource);
        let known = candidates.iter().filter(|view| view.may_answer(Question::Any));
        let known = known.map(|view| view.resource_version()).max().unwrap_or_default();
        candidates.retain(|view| view.spec.namespace().is_none_or(|own| Some(own) == namespace));
        let refused = candidates.iter().any(|view| view.is_refused() && view.spec.covers(namespace, name));
        candidates.retain(|view| view.may_answer(Question::AsLastKnown));
        let preference = |view: &View| accept.iter().position(|encoding| *encoding == view.spec.encoding());
        candidates.sort_by_cached_key(|view| {
            let followed = view.state().was_followed();
            (!followed, Reverse(view.resource_version()), preference(view).unwrap_or(usize::MAX))
        });
        // Of the object as whichever view has it, in whatever encoding.
        let mut newest = 0;
        let mut best = Lookup::Unknown;
        for view in candidates {
            let found = match view.get(namespace, name) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, view = %view.name(), "an object cannot be read");
                    continue;
                }
            };
            let Some(found) = found else {
                let proves =
                    view.spec.covers(namespace, name) && view.may_answer(Question::Absence { known });
                if proves && newest == 0 {
                    return Lookup::ProvenAbsent { version: view.resource_version() };
                }
                continue;
            };
            let is_better = found.local || (matches!(best, Lookup::Unknown) && found.version >= newest);
            newest = newest.max(found.version);
            if preference(&view).is_some() && is_better {
                best = Lookup::Found {
                    encoding: view.spec.encoding(),
                    body: found.body,
                    version: found.version,
                    local: found.local,
                    view,
                };
                if found.local {
                    break;
                }
            }
        }
        if refused && matches!(best, Lookup::Unknown) { Lookup::Refused } else { best }
    }
}
