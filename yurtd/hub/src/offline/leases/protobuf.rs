//! A Lease in protobuf, as far as patches go: what they may name as JSON, and another `spec` in its place. All else stays
//! byte for byte.
//!
//! Lease{metadata 1, spec 2}, ObjectMeta{name 1, namespace 3, uid 5, resourceVersion 6, labels 11, annotations 12,
//! managedFields 17}, ManagedFieldsEntry{manager 1, operation 2, fieldsV1 7, subresource 8}, FieldsV1{Raw 1},
//! LeaseSpec (`coordination/v1/types.go`): [`SPEC`], MicroTime{seconds 1, nanos 2}

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::lease::KIND;
use crate::wire::WireError;
use crate::wire::proto::{self, Writer};

#[derive(Clone, Copy)]
enum Type {
    Text,
    Number,
    Time,
}

/// The fields by their numbers, from 1.
const SPEC: [(&str, Type); 7] = [
    ("holderIdentity", Type::Text),
    ("leaseDurationSeconds", Type::Number),
    ("acquireTime", Type::Time),
    ("renewTime", Type::Time),
    ("leaseTransitions", Type::Number),
    ("strategy", Type::Text),
    ("preferredHolder", Type::Text),
];

/// The Lease as JSON: what a patch may name.
///
/// # Errors
///
/// [`WireError`] when it is none.
pub(super) fn document(body: &Bytes) -> Result<Value, WireError> {
    let (kind, raw) = proto::open_envelope(body)?;
    let (mut metadata, mut spec) = (Map::new(), Map::new());
    for field in proto::fields(KIND, &raw) {
        match field? {
            (1, proto::Value::Bytes(raw)) => read_metadata(raw, &mut metadata)?,
            (2, proto::Value::Bytes(raw)) => read_spec(raw, &mut spec)?,
            _ => {}
        }
    }
    Ok(json!({"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata, "spec": spec}))
}

fn read_metadata(raw: &[u8], metadata: &mut Map<String, Value>) -> Result<(), WireError> {
    for field in proto::fields(KIND, raw) {
        let (number, proto::Value::Bytes(raw)) = field? else { continue };
        let name = match number {
            1 => "name",
            3 => "namespace",
            5 => "uid",
            6 => "resourceVersion",
            11 | 12 => {
                let (mut key, mut value) = ("", "");
                for field in proto::fields(KIND, raw) {
                    match field? {
                        (1, proto::Value::Bytes(raw)) => key = proto::text(KIND, raw)?,
                        (2, proto::Value::Bytes(raw)) => value = proto::text(KIND, raw)?,
                        _ => {}
                    }
                }
                let map = if number == 11 { "labels" } else { "annotations" };
                let map = metadata.entry(map).or_insert_with(|| json!({}));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key.to_owned(), value.into());
                }
                continue;
            }
            17 => {
                let entry = read_owner(raw)?;
                let owners = metadata.entry("managedFields").or_insert_with(|| json!([]));
                if let Some(owners) = owners.as_array_mut() {
                    owners.push(entry);
                }
                continue;
            }
            _ => continue,
        };
        metadata.insert(name.to_owned(), proto::text(KIND, raw)?.into());
    }
    Ok(())
}

fn read_owner(raw: &[u8]) -> Result<Value, WireError> {
    let mut entry = json!({});
    for field in proto::fields(KIND, raw) {
        match field? {
            (1, proto::Value::Bytes(raw)) => entry["manager"] = proto::text(KIND, raw)?.into(),
            (2, proto::Value::Bytes(raw)) => entry["operation"] = proto::text(KIND, raw)?.into(),
            (8, proto::Value::Bytes(raw)) => entry["subresource"] = proto::text(KIND, raw)?.into(),
            (7, proto::Value::Bytes(raw)) => {
                for field in proto::fields(KIND, raw) {
                    if let (1, proto::Value::Bytes(raw)) = field? {
                        entry["fieldsV1"] =
                            serde_json::from_slice(raw).map_err(|error| WireError::malformed(KIND, error))?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(entry)
}

fn known(number: u32) -> Option<(&'static str, Type)> {
    SPEC.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

fn read_spec(raw: &[u8], spec: &mut Map<String, Value>) -> Result<(), WireError> {
    for field in proto::fields(KIND, raw) {
        let (number, value) = field?;
        let Some((name, kind)) = known(number) else { continue };
        let value = match (kind, value) {
            (Type::Text, proto::Value::Bytes(raw)) => proto::text(KIND, raw)?.into(),
            // An int32, which is written like an int64.
            (Type::Number, proto::Value::Number(number)) => {
                i32::try_from(number as i64).map_err(|error| WireError::malformed(KIND, error))?.into()
            }
            (Type::Time, proto::Value::Bytes(raw)) => read_time(raw)?,
            _ => return Err(WireError::malformed(KIND, format!("{name} is of another type"))),
        };
        spec.insert(name.to_owned(), value);
    }
    Ok(())
}

/// As Go writes a MicroTime.
fn read_time(raw: &[u8]) -> Result<Value, WireError> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in proto::fields(KIND, raw) {
        match field? {
            (1, proto::Value::Number(number)) => seconds = number as i64,
            (2, proto::Value::Number(number)) => nanos = number as i32,
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|error| WireError::malformed(KIND, error))?;
    Ok(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into())
}

/// The Lease with another `spec`; nothing if that is none. Fields of the old one that nobody knows here stay.
pub(super) fn with_spec(body: &Bytes, spec: &Value) -> Option<Bytes> {
    let spec = spec.as_object()?;
    if spec.keys().any(|field| SPEC.iter().all(|(known, _)| known != field)) {
        return None;
    }
    let (kind, raw) = proto::open_envelope(body).ok()?;
    let mut new = Writer::default();
    for (number, (name, kind)) in (1..).zip(SPEC) {
        let Some(value) = spec.get(name).filter(|value| !value.is_null()) else { continue };
        match kind {
            Type::Text => new.bytes(number, value.as_str()?.as_bytes()),
            Type::Number => new.varint(number, i64::from(i32::try_from(value.as_i64()?).ok()?) as u64),
            Type::Time => {
                let time: Timestamp = value.as_str()?.parse().ok()?;
                let mut out = Writer::default();
                out.varint(1, time.as_second() as u64);
                out.varint(2, i64::from(time.subsec_nanosecond() / 1000 * 1000) as u64);
                new.bytes(number, &out.finish());
            }
        }
    }
    let mut lease = Writer::with_capacity(raw.len() + 64);
    for part in proto::parts(KIND, &raw) {
        match part.ok()? {
            (_, 2, proto::Value::Bytes(old)) => {
                for part in proto::parts(KIND, old) {
                    let (whole, number, _) = part.ok()?;
                    if known(number).is_none() {
                        new.raw(whole);
                    }
                }
            }
            (whole, ..) => lease.raw(whole),
        }
    }
    lease.bytes(2, &new.finish());
    Some(proto::envelope(&kind, &lease.finish()))
}
