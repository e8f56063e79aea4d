//! PATCH of a status by kubelet: applied to the stored object, in the [`journal`](super::journal) first.

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde_json::Value;

use super::journal::ObjectKey;
use super::patch::{self, PatchType};
use super::{Answer, Offline, OfflineError, describe, header, never_cached, not_found, strategic};
use crate::caller::Permit;
use crate::request::RequestInfo;
use crate::request::classify::ResourceTarget;
use crate::view::Lookup;
use crate::wire::{Encoding, Resource};

impl Offline {
    pub(super) async fn patch_status(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        target: &ResourceTarget,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let content_type = header(&parts.headers, CONTENT_TYPE);
        let patch_type = PatchType::from_content_type(content_type)
            .ok_or_else(|| OfflineError::PatchType(content_type.to_owned()))?;
        let schema = if target.resource.plural == "nodes" { &strategic::NODE } else { &strategic::POD };
        let (namespace, name) = (target.namespace.as_deref(), target.name.as_deref().unwrap_or_default());
        if !info.accept.accepts(Encoding::Json.content_type()) {
            return Err(OfflineError::Unavailable("status patches are answered in JSON alone".into()));
        }
        let object = ObjectKey {
            plural: target.resource.plural.clone(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        // Journal and local version come and go together: a replay in between would leave the local version behind.
        let _claim = self.journal.claim(&object).await;
        let stored = self.json(permit, &target.resource, namespace, name, target)?;
        // A version that came from the API server while the link was up for a moment does not know of it.
        let before = match self.journal.change(&object)? {
            Some(change) => change.over(&stored),
            None => stored.clone(),
        };
        let patched = patch::apply_to_status(&before, patch_type, body, schema)?;
        if patched != stored {
            // First on the disk, then visible: what a watcher has seen is never lost.
            self.journal.append(&object, &before, &patched).await?;
            self.views.apply_local(permit, &target.resource, namespace, name, &patched).await?;
        }
        Ok(Answer::new(StatusCode::OK, Encoding::Json.content_type(), Bytes::from(patched.to_string())))
    }

    fn json(
        &self,
        permit: &Permit,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        target: &ResourceTarget,
    ) -> Result<Value, OfflineError> {
        match self.views.lookup(permit, resource, namespace, name, &[Encoding::Json]) {
            Lookup::Found { body, .. } => {
                serde_json::from_slice(&body).map_err(|error| OfflineError::Damaged(error.to_string()))
            }
            Lookup::ProvenAbsent { .. } => Err(not_found(target)),
            Lookup::Refused => Err(OfflineError::Refused(describe(target))),
            Lookup::Unknown => Err(never_cached(&describe(target))),
        }
    }
}
