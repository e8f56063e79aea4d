//! Kubernetes on the wire, without compiled-in types: lists are split into objects and put together again, watch
//! streams are cut into frames and made of them, in protobuf and in JSON.
//!
//! Objects stay the bytes that the API server sent, so unknown fields survive and serving is copying. What the
//! hub has to know of an object, its [`ObjectMeta`], is read in place.
//!
//! # Stored form
//!
//! The store keeps an object the way a list carries it:
//!
//! - protobuf: the bare message, without the `k8s\0` envelope; lists have no envelope an item.
//! - JSON: the object as it was, but without leading `kind` and `apiVersion`, which Go's encoder puts first in
//!   single objects and watch events and leaves out in lists. Custom resources carry both everywhere and keep them.
//!
//! [`TypeMeta`] of the view restores what the stored form leaves out.
//!
//! Sources: k8s.io/apimachinery `runtime.Unknown`, `meta/v1` `generated.proto` (ListMeta, ObjectMeta, WatchEvent,
//! Status), `pkg/runtime/serializer/{protobuf,json}`; every built-in `*List` has metadata = 1, items = 2.

pub(crate) mod endpoint_slice;
pub(crate) mod frame;
pub(crate) mod json;
pub(crate) mod list;
pub(crate) mod node;
pub(crate) mod object;
pub(crate) mod proto;
pub(crate) mod query;
pub(crate) mod selectable;
pub(crate) mod status;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use frame::{Event, EventType, FrameDecoder};
pub(crate) use list::{ListPage, split_list};
pub(crate) use status::Status;

/// Bound of one watch frame, as in Go's decoders.
pub(crate) const MAX_FRAME: usize = 16 << 20;

/// How objects of a view are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Encoding {
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
    /// `application/json`
    Json,
    /// Protobuf, `as=PartialObjectMetadata;g=meta.k8s.io;v=v1`
    PartialProtobuf,
    /// JSON, `as=PartialObjectMetadata;g=meta.k8s.io;v=v1`
    PartialJson,
}

impl Encoding {
    /// Protobuf or not.
    pub(crate) fn is_protobuf(self) -> bool {
        matches!(self, Self::Protobuf | Self::PartialProtobuf)
    }

    /// `PartialObjectMetadata` or the resource's own type.
    pub(crate) fn is_partial(self) -> bool {
        matches!(self, Self::PartialProtobuf | Self::PartialJson)
    }

    /// `Content-Type` of an object, a list or a Status.
    pub(crate) fn content_type(self) -> &'static str {
        if self.is_protobuf() { "application/vnd.kubernetes.protobuf" } else { "application/json" }
    }

    /// `Content-Type` of a watch.
    pub(crate) fn watch_content_type(self) -> &'static str {
        if self.is_protobuf() {
            "application/vnd.kubernetes.protobuf;stream=watch"
        } else {
            "application/json"
        }
    }

    /// `Accept` that makes the API server answer a list in this encoding and no other. Aggregated servers that do
    /// not speak it answer 406.
    pub(crate) fn accept_list(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
            Self::Json => "application/json",
            Self::PartialProtobuf => {
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
            }
            Self::PartialJson => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        }
    }

    /// `Accept` of a watch in this encoding. The server adds `stream=watch` to its answer itself.
    pub(crate) fn accept_watch(self) -> &'static str {
        match self {
            Self::Protobuf | Self::Json => self.accept_list(),
            Self::PartialProtobuf => {
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
            }
            Self::PartialJson => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }
}

/// Which collection of the API.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resource {
    /// API group; empty for the core group.
    pub(crate) group: String,
    /// API version, `v1`.
    pub(crate) version: String,
    /// Plural as in the path, `pods`.
    pub(crate) plural: String,
}

impl Resource {
    /// `group`, `version`, `plural`.
    pub(crate) fn new(group: &str, version: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), plural: plural.to_owned() }
    }

    /// Path of the collection, of one namespace if given: `/api/v1/namespaces/default/pods`.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// Whether objects of this resource are secret: their bytes are sealed in the store.
    pub(crate) fn is_secret(&self) -> bool {
        self.group.is_empty() && self.plural == "secrets"
    }
}

/// `kind` and `apiVersion` of the objects of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TypeMeta {
    /// `v1`, `apps/v1`
    pub(crate) api_version: String,
    /// `Pod`
    pub(crate) kind: String,
}

impl TypeMeta {
    /// Kind and version.
    pub(crate) fn new(api_version: &str, kind: &str) -> Self {
        Self { api_version: api_version.to_owned(), kind: kind.to_owned() }
    }
}

/// The part of `metadata` that the hub needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ObjectMeta {
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
    /// The uid; differs when an object was deleted and made again.
    pub(crate) uid: String,
    /// As the API server counts; 0 when there is none.
    pub(crate) resource_version: u64,
}

impl ObjectMeta {
    /// The object's key in a view, ordered like the API server's lists: `namespace/name`, or `name`.
    pub(crate) fn key(&self) -> String {
        object::object_key((!self.namespace.is_empty()).then_some(&*self.namespace), &self.name)
    }
}

/// An object in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// What was read of it.
    pub(crate) meta: ObjectMeta,
    /// Its bytes.
    pub(crate) body: Bytes,
}

/// What cannot be read. Nothing of it is used then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// The bytes end inside a field.
    #[error("{what} is cut short")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// The bytes are not what they claim to be.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A frame or a page beyond its bound.
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// Its size as announced.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// A resourceVersion that is no decimal number: such a collection cannot be a view.
    #[error("resourceVersion {0:?} is no decimal number")]
    ResourceVersion(String),
}

impl WireError {
    pub(crate) fn malformed(what: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }
}

/// Parses a resourceVersion: decimal, no sign, no leading zero (KEP-5504), at most 64 bits here.
///
/// # Errors
///
/// [`WireError::ResourceVersion`].
pub(crate) fn parse_resource_version(text: &str) -> Result<u64, WireError> {
    let canonical =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    match text.parse() {
        Ok(version) if canonical => Ok(version),
        _ => Err(WireError::ResourceVersion(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_api_conventions() {
        assert_eq!(Resource::new("", "v1", "nodes").path(None), "/api/v1/nodes");
        let leases = Resource::new("coordination.k8s.io", "v1", "leases");
        assert_eq!(
            leases.path(Some("kube-node-lease")),
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        );
    }

    #[test]
    fn only_canonical_resource_versions_are_taken() {
        assert_eq!(parse_resource_version("123"), Ok(123));
        for bad in ["", "0", "-1", "+1", "01", "a", "1a", "99999999999999999999"] {
            assert!(parse_resource_version(bad).is_err(), "{bad}");
        }
    }
}
