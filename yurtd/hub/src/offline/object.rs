//! Single objects without the API server, and lists that no view knows better: what views have and what passed by last.

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use serde_json::Value;

use super::patch::{self, PatchType};
use super::remember::{Key, Owner, Remembered};
use super::token_request::is_protobuf;
use super::{
    Answer, IGNORED_PARAMETERS, Offline, OfflineError, describe, header, names, never_cached, not_found,
};
use crate::caller::{Permit, rights_last};
use crate::clock;
use crate::request::RequestInfo;
use crate::request::classify::ResourceTarget;
use crate::view::Lookup;
use crate::wire::Encoding;
use crate::wire::endpoint_slice::is_slice;

impl Offline {
    pub(super) fn register_node(
        &self,
        permit: &Permit,
        target: &ResourceTarget,
    ) -> Result<Answer, OfflineError> {
        let found = self.views.lookup(permit, &target.resource, None, &self.node_name, &[Encoding::Json]);
        match found {
            Lookup::Found { .. } => {
                Err(OfflineError::AlreadyExists { plural: "nodes".into(), name: self.node_name.clone() })
            }
            Lookup::Refused => Err(OfflineError::Refused("its Node".into())),
            Lookup::ProvenAbsent { .. } | Lookup::Unknown => Err(never_cached("its Node")),
        }
    }

    pub(super) fn object(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        target: &ResourceTarget,
        parts: &Parts,
    ) -> Result<Answer, OfflineError> {
        let name = target.name.as_deref().unwrap_or_default();
        if target.is("coordination.k8s.io", "leases", None)
            && let Some(lease) = self.leases.get(permit.identity(), names(target).0, name)
            && info.accept.accepts(&lease.content_type)
        {
            return Ok(lease);
        }
        let accept = info.accept.view_encodings();
        let answer = self.recall(&self.answers, Owner::of(permit), info, parts)?;
        // Of what views know and what passed by the newer counts.
        let is_newer =
            |version: u64| answer.as_ref().and_then(Answer::version).is_some_and(|own| own > version);
        match self.views.lookup(permit, &target.resource, target.namespace.as_deref(), name, &accept) {
            Lookup::Found { encoding, body, version, local, view } if local || !is_newer(version) => {
                view.touch();
                return Ok(Answer::new(StatusCode::OK, encoding.content_type(), body));
            }
            Lookup::ProvenAbsent { version } if !is_newer(version) => return Err(not_found(target)),
            Lookup::Refused => return Err(OfflineError::Refused(describe(target))),
            Lookup::Found { .. } | Lookup::ProvenAbsent { .. } | Lookup::Unknown => {}
        }
        Ok(self.remembered(target, answer.ok_or_else(|| never_cached(&describe(target)))?))
    }

    /// The last answer seen; EndpointSlices in it show the node's own pods as they are here.
    pub(super) fn remembered(&self, target: &ResourceTarget, answer: Answer) -> Answer {
        if is_slice(&target.resource) { answer.showing(&self.views.overlay().book()) } else { answer }
    }

    /// The list as it last passed by, if that was after `version`.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn newer_list(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        parts: &Parts,
        version: u64,
    ) -> Result<Option<Answer>, OfflineError> {
        let answer = self.recall(&self.answers, Owner::of(permit), info, parts)?;
        let newer = answer.filter(|answer| answer.list_version().is_some_and(|own| own > version));
        let slices = info.resource().is_some_and(|target| is_slice(&target.resource));
        Ok(if slices { newer.map(|answer| answer.showing(&self.views.overlay().book())) } else { newer })
    }

    pub(super) fn unchanged(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        target: &ResourceTarget,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let stored = self.object(permit, info, target, parts)?;
        let refused = || OfflineError::Unavailable(format!("{} cannot be changed", describe(target)));
        let content_type = header(&parts.headers, CONTENT_TYPE);
        let unchanged = match (PatchType::from_content_type(content_type), is_protobuf(&stored.content_type))
        {
            (Some(patch_type), false) => {
                let object: Value = serde_json::from_slice(&stored.body)
                    .map_err(|error| OfflineError::Damaged(error.to_string()))?;
                patch::changes_nothing(&object, patch_type, body)?
            }
            (None, true) if is_protobuf(content_type) => *body == stored.body,
            (None, false) if !is_protobuf(content_type) => {
                let sent: Option<Value> = serde_json::from_slice(body).ok();
                sent.is_some() && sent == serde_json::from_slice(&stored.body).ok()
            }
            _ => false,
        };
        if unchanged { Ok(stored) } else { Err(refused()) }
    }

    pub(super) fn recall(
        &self,
        memory: &Remembered,
        owner: Owner<'_>,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<Option<Answer>, OfflineError> {
        let accept_encoding = header(&parts.headers, ACCEPT_ENCODING);
        let mut answer = memory.recall(&key(owner, info, parts))?;
        if let (Owner::Other(_), Some(target)) = (owner, info.resource()) {
            // Nobody has followed since whether the identity may still read this.
            let (today, is_secret) = (clock::today(), target.resource.is_secret());
            answer =
                answer.filter(|answer| rights_last(answer.confirmed.unwrap_or_default(), today, is_secret));
        }
        Ok(answer.and_then(|answer| answer.decompressed(accept_encoding, 16 * memory.limit())))
    }
}

pub(super) fn key(owner: Owner<'_>, info: &RequestInfo, parts: &Parts) -> Key {
    let query = info.query.canonical(&IGNORED_PARAMETERS);
    let subject =
        info.resource().map(|target| format!("{}/{}", target.resource.group, target.resource.plural));
    Key::new(owner, &subject.unwrap_or_default(), parts.uri.path(), &query, header(&parts.headers, ACCEPT))
}
