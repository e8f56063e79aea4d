//! Renewals of Leases: the node's own ([`lease`](super::lease)) and those of leader elections
//! ([`leases`](super::leases)).

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;

use super::leases::{LeaseError, Renewal};
use super::patch::PatchType;
use super::{Answer, Offline, OfflineError, describe, header, names, never_cached};
use crate::caller::Permit;
use crate::request::RequestInfo;
use crate::request::classify::ResourceTarget;

/// An applied configuration. It may be YAML, and clients send JSON.
const APPLY: &str = "application/apply-patch+yaml";

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

impl Offline {
    pub(super) fn lease(
        &self,
        target: &ResourceTarget,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let acceptable = |answer: Answer| info.accept.accepts(&answer.content_type).then_some(answer);
        let answer = match parts.method {
            http::Method::GET => self.lease.get().and_then(acceptable),
            http::Method::PUT => {
                let content_type = header(&parts.headers, CONTENT_TYPE);
                if info.accept.accepts(content_type) { self.lease.renew(content_type, body) } else { None }
            }
            _ if self.lease.get().is_some() => {
                return Err(OfflineError::AlreadyExists {
                    plural: "leases".into(),
                    name: self.node_name.clone(),
                });
            }
            _ => None,
        };
        answer.ok_or_else(|| never_cached(&describe(target)))
    }

    pub(super) fn renew(
        &self,
        permit: &Permit,
        target: &ResourceTarget,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let content_type = header(&parts.headers, CONTENT_TYPE);
        let renewal = match PatchType::from_content_type(content_type) {
            Some(patch) => Renewal::Patch(patch),
            None if media_type(content_type) == APPLY => Renewal::Apply {
                manager: info.query.get("fieldManager").unwrap_or_default(),
                force: info.query.flag("force"),
            },
            None => Renewal::Whole { content_type },
        };
        let accepted = |content_type: &str| info.accept.accepts(content_type);
        let renewed = self.leases.renew(permit.identity(), names(target), renewal, body, accepted);
        renewed.map_err(|error| match error {
            LeaseError::NotHere(reason) => {
                OfflineError::Unavailable(format!("{} cannot be renewed: {reason}", describe(target)))
            }
            LeaseError::Conflict(reason) => OfflineError::Conflict {
                group: target.resource.group.clone(),
                plural: target.resource.plural.clone(),
                name: target.name.clone().unwrap_or_default(),
                reason,
            },
            LeaseError::Patch(error) => error.into(),
        })
    }
}
