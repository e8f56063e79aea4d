//! The Lease with another `spec`: patched, or applied. Pure.
//!
//! Only what renews a Lease is done here; whatever would change anything beside the `spec`, or who owns what of it, needs
//! the API server. So a configuration is applied if its manager has applied the same fields before (`managedFields`):
//! then applying is to set them (KEP-555; `structured-merge-diff`).

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use super::lease::KIND;
use super::{LeaseError, protobuf};
use crate::offline::answer::Answer;
use crate::offline::patch::{self, PatchType};
use crate::offline::token_request::is_protobuf;

const BESIDE: LeaseError = LeaseError::NotHere("nothing but its spec can be changed");
const UNREADABLE: LeaseError = LeaseError::NotHere("it cannot be read");

/// The Lease after a patch.
pub(super) fn patched(known: &Answer, patch: PatchType, body: &[u8]) -> Result<Answer, LeaseError> {
    let lease = document(known)?;
    let changed = patch::apply_as_merge(&lease, patch, body)?;
    is_precondition_met(&changed["metadata"], &lease["metadata"])?;
    if beside_spec(changed.clone()) != beside_spec(lease) {
        return Err(BESIDE);
    }
    with_spec(known, &changed)
}

/// The Lease after `manager` has applied this configuration.
pub(super) fn applied(known: &Answer, manager: &str, force: bool, body: &[u8]) -> Result<Answer, LeaseError> {
    let mut lease = document(known)?;
    let configuration: Value = serde_json::from_slice(body)
        .map_err(|_| LeaseError::NotHere("what is applied is understood in JSON alone"))?;
    is_precondition_met(&configuration["metadata"], &lease["metadata"])?;
    let fields = Fields::of(&configuration, &lease)?;
    let mut owners = lease["metadata"]["managedFields"].as_array().into_iter().flatten();
    let is_own = |entry: &&Value| {
        let has = |field: &str, value: &str| entry[field].as_str().unwrap_or_default() == value;
        has("manager", manager) && has("operation", "Apply") && has("subresource", "")
    };
    let own = owners.clone().find(is_own);
    if !own.is_some_and(|own| fields.are(&own["fieldsV1"])) {
        return Err(LeaseError::NotHere("its manager has not applied these fields before, and no others"));
    }
    let changed = fields.spec.iter().filter(|(field, value)| lease["spec"][field] != **value);
    let changed: Vec<String> = changed.map(|(field, _)| format!("f:{field}")).collect();
    let owns = |entry: &Value| changed.iter().any(|field| !entry["fieldsV1"]["f:spec"][field].is_null());
    if !force && owners.any(|entry| !is_own(&entry) && owns(entry)) {
        return Err(LeaseError::Conflict("another manager has set what is applied"));
    }
    let Value::Object(spec) = lease["spec"].take() else { return Err(UNREADABLE) };
    lease["spec"] = spec.into_iter().chain(fields.spec.clone()).collect();
    with_spec(known, &lease)
}

/// What an applied configuration sets.
struct Fields<'c> {
    spec: &'c Map<String, Value>,
    labels: Vec<&'c String>,
    annotations: Vec<&'c String>,
}

impl<'c> Fields<'c> {
    fn of(configuration: &'c Value, lease: &Value) -> Result<Self, LeaseError> {
        let metadata = configuration["metadata"].as_object().ok_or(BESIDE)?;
        for (field, value) in metadata {
            let is_as_known = match &**field {
                "name" | "namespace" | "uid" | "resourceVersion" => *value == lease["metadata"][field],
                "labels" | "annotations" => {
                    let mut entries = value.as_object().into_iter().flatten();
                    entries.all(|(key, value)| lease["metadata"][field][key] == *value)
                }
                "managedFields" | "creationTimestamp" => value.is_null(),
                _ => false,
            };
            if !is_as_known {
                return Err(BESIDE);
            }
        }
        let is_known = |(field, value): (&String, &Value)| match &**field {
            "metadata" | "spec" => true,
            "kind" => value == KIND,
            _ => *value == lease[field],
        };
        if !configuration.as_object().into_iter().flatten().all(is_known) {
            return Err(BESIDE);
        }
        let spec = configuration["spec"].as_object().ok_or(BESIDE)?;
        let keys = |field: &str| metadata.get(field).and_then(Value::as_object).into_iter().flatten();
        let names = |field| keys(field).map(|(key, _)| key).collect();
        Ok(Self { spec, labels: names("labels"), annotations: names("annotations") })
    }

    /// Whether these are the fields of an entry in `managedFields`, all of them.
    fn are(&self, owned: &Value) -> bool {
        // `.` is the map itself.
        let same = |owned: &Value, names: &[&String]| {
            let owned = owned.as_object();
            let count = owned.map_or(0, |owned| owned.keys().filter(|field| *field != ".").count());
            count == names.len()
                && names
                    .iter()
                    .all(|name| owned.is_some_and(|owned| owned.contains_key(&format!("f:{name}"))))
        };
        let metadata = &owned["f:metadata"];
        let other = |known: &[&str], owned: &Value| {
            owned.as_object().into_iter().flatten().any(|(field, _)| !known.contains(&&**field))
        };
        !other(&["f:metadata", "f:spec"], owned)
            && !other(&["f:labels", "f:annotations"], metadata)
            && same(&owned["f:spec"], &self.spec.keys().collect::<Vec<_>>())
            && same(&metadata["f:labels"], &self.labels)
            && same(&metadata["f:annotations"], &self.annotations)
    }
}

/// The Lease as JSON; of one in protobuf what a patch may name.
fn document(known: &Answer) -> Result<Value, LeaseError> {
    let lease = if is_protobuf(&known.content_type) {
        protobuf::document(&known.body).ok()
    } else {
        serde_json::from_slice(&known.body).ok()
    };
    lease.filter(Value::is_object).ok_or(UNREADABLE)
}

/// The Lease as it is known, with the `spec` of this one.
fn with_spec(known: &Answer, lease: &Value) -> Result<Answer, LeaseError> {
    let body = if is_protobuf(&known.content_type) {
        protobuf::with_spec(&known.body, &lease["spec"])
            .ok_or(LeaseError::NotHere("its spec is none that is known here"))?
    } else {
        Bytes::from(lease.to_string())
    };
    Ok(Answer::new(StatusCode::OK, &known.content_type, body))
}

/// What a patch names of these has to be so.
fn is_precondition_met(named: &Value, known: &Value) -> Result<(), LeaseError> {
    let is_met = |field: &str| {
        let named = named[field].as_str().filter(|named| !named.is_empty());
        named.is_none_or(|named| known[field] == *named)
    };
    if is_met("uid") && is_met("resourceVersion") {
        Ok(())
    } else {
        Err(LeaseError::Conflict("it has been modified; read it again"))
    }
}

fn beside_spec(mut lease: Value) -> Value {
    lease.as_object_mut().and_then(|lease| lease.remove("spec"));
    lease
}
