//! One object in either encoding: in and out of its stored form.

use bytes::Bytes;

use super::{Encoding, Item, ObjectMeta, TypeMeta, WireError, json, proto};

/// Key of an object in a view: `namespace/name`, or `name`.
pub(crate) fn object_key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Encodes a stored object as the answer of a GET.
pub(crate) fn encode_object(encoding: Encoding, kind: &TypeMeta, stored: &[u8]) -> Bytes {
    if encoding.is_protobuf() { proto::envelope(kind, stored) } else { json::typed(kind, stored, true) }
}

/// Takes a whole object, as a GET answers it, apart.
///
/// # Errors
///
/// [`WireError`] when it is no Kubernetes object in this encoding.
pub(crate) fn decode_object(encoding: Encoding, body: &Bytes) -> Result<(TypeMeta, Item), WireError> {
    if encoding.is_protobuf() {
        let (kind, raw) = proto::open_envelope(body)?;
        let meta = proto::object_meta(&raw)?;
        Ok((kind, Item { meta, body: raw }))
    } else {
        json::decode_object(encoding, body)
    }
}

/// What is read of a stored object.
///
/// # Errors
///
/// [`WireError`] when it is no object with a name.
pub(crate) fn meta(encoding: Encoding, stored: &[u8]) -> Result<ObjectMeta, WireError> {
    if encoding.is_protobuf() { proto::object_meta(stored) } else { json::object_meta(stored) }
}

/// The same object with another resourceVersion, for a deletion that the hub learnt from a list.
///
/// # Errors
///
/// [`WireError`] when the stored bytes are damaged.
pub(crate) fn with_resource_version(
    encoding: Encoding,
    stored: &[u8],
    version: u64,
) -> Result<Bytes, WireError> {
    if encoding.is_protobuf() {
        proto::with_resource_version(stored, version)
    } else {
        json::with_resource_version(stored, version)
    }
}
