//! One object: what the hub reads of it, and its stored form.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Encoding, WireError, json, proto};

/// `kind` and `apiVersion` of the objects of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeMeta {
    /// `v1`, `apps/v1`
    pub api_version: String,
    /// `Pod`
    pub kind: String,
}

impl TypeMeta {
    /// Kind and version.
    pub fn new(api_version: &str, kind: &str) -> Self {
        Self { api_version: api_version.to_owned(), kind: kind.to_owned() }
    }
}

/// The part of `metadata` that the hub needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectMeta {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid; differs when an object was deleted and made again.
    pub uid: String,
    /// As the API server counts; 0 when there is none.
    pub resource_version: u64,
}

impl ObjectMeta {
    /// The object's key in a view, ordered like the API server's lists: `namespace/name`, or `name`.
    pub fn key(&self) -> String {
        object_key((!self.namespace.is_empty()).then_some(&*self.namespace), &self.name)
    }
}

/// Key of an object in a view: `namespace/name`, or `name`.
pub fn object_key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// An object in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What was read of it.
    pub meta: ObjectMeta,
    /// Its bytes.
    pub body: Bytes,
}

/// Encodes a stored object as the answer of a GET.
pub fn encode_object(encoding: Encoding, kind: &TypeMeta, stored: &[u8]) -> Bytes {
    if encoding.is_protobuf() { proto::envelope(kind, stored) } else { json::typed(kind, stored, true) }
}

/// Takes a whole object, as a GET answers it, apart.
///
/// # Errors
///
/// [`WireError`] when it is no Kubernetes object in this encoding.
pub fn decode_object(encoding: Encoding, body: &Bytes) -> Result<(TypeMeta, Item), WireError> {
    if encoding.is_protobuf() {
        let (kind, raw) = proto::open_envelope(body)?;
        let meta = proto::object_meta(&raw)?;
        Ok((kind, Item { meta, body: raw }))
    } else {
        json::decode_object(encoding, body)
    }
}

/// The same object with another resourceVersion, for a deletion that the hub learnt from a list.
///
/// # Errors
///
/// [`WireError`] when the stored bytes are damaged.
pub fn with_resource_version(encoding: Encoding, stored: &[u8], version: u64) -> Result<Bytes, WireError> {
    if encoding.is_protobuf() {
        proto::with_resource_version(stored, version)
    } else {
        json::with_resource_version(stored, version)
    }
}
