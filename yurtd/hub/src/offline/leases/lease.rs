//! What decides about a Lease, out of either encoding.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use yurt_api::names::ANNOTATION_OFFLINE_LEASE;

use super::{Key, MAX_LEASE};
use crate::offline::token_request::is_protobuf;
use crate::wire::{WireError, parse_resource_version, proto};

pub(super) const KIND: &str = "Lease";

/// What decides about a Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: u64,
    pub(super) opted: bool,
    /// Empty when nobody holds it.
    pub(super) holder: String,
    pub(super) lasts: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
}

impl Lease {
    /// Reads a Lease; `None` when it is none.
    pub(super) fn of(content_type: &str, body: &Bytes) -> Option<Self> {
        if body.len() > MAX_LEASE {
            return None;
        }
        let lease = if is_protobuf(content_type) {
            Self::of_protobuf(body).ok()?
        } else {
            let Document { kind, metadata, spec } = serde_json::from_slice(body).ok()?;
            if kind != KIND {
                return None;
            }
            Self {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                version: parse_resource_version(&metadata.resource_version).unwrap_or(0),
                opted: metadata.annotations.is_some_and(|annotations| {
                    annotations.get(ANNOTATION_OFFLINE_LEASE).is_some_and(|value| value == "true")
                }),
                holder: spec.holder_identity.unwrap_or_default(),
                lasts: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0)),
            }
        };
        let whole = !lease.name.is_empty() && !lease.uid.is_empty() && lease.version != 0;
        whole.then_some(lease)
    }

    /// Lease{metadata 1, spec 2}, ObjectMeta{name 1, namespace 3, uid 5, resourceVersion 6, annotations 12},
    /// LeaseSpec{holderIdentity 1, leaseDurationSeconds 2}
    fn of_protobuf(body: &Bytes) -> Result<Self, WireError> {
        let (kind, raw) = proto::open_envelope(body)?;
        if kind.kind != KIND {
            return Err(WireError::malformed(KIND, "it is something else"));
        }
        let meta = proto::object_meta(&raw)?;
        let mut lease = Self {
            namespace: meta.namespace,
            name: meta.name,
            uid: meta.uid,
            version: meta.resource_version,
            ..Self::default()
        };
        for field in proto::fields(KIND, &raw) {
            match field? {
                (1, proto::Value::Bytes(raw)) => lease.opted |= is_opted(raw)?,
                (2, proto::Value::Bytes(raw)) => {
                    for field in proto::fields(KIND, raw) {
                        match field? {
                            (1, proto::Value::Bytes(holder)) => {
                                lease.holder = proto::text(KIND, holder)?.to_owned()
                            }
                            (2, proto::Value::Number(seconds)) => lease.lasts = Duration::from_secs(seconds),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(lease)
    }

    pub(super) fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Whether the metadata have the annotation.
fn is_opted(metadata: &[u8]) -> Result<bool, WireError> {
    let mut opted = false;
    for field in proto::fields(KIND, metadata) {
        let (12, proto::Value::Bytes(entry)) = field? else { continue };
        let (mut key, mut value) = (&b""[..], &b""[..]);
        for field in proto::fields(KIND, entry) {
            match field? {
                (1, proto::Value::Bytes(raw)) => key = raw,
                (2, proto::Value::Bytes(raw)) => value = raw,
                _ => {}
            }
        }
        if key == ANNOTATION_OFFLINE_LEASE.as_bytes() {
            opted = value == b"true";
        }
    }
    Ok(opted)
}
