//! PATCH of a status subresource while the link is down: the stored object and the request's body in, the new
//! object out. What `nodes/X/status` and `pods/X/status` may change is what the API server lets them change: the
//! status, labels and annotations; the rest of the object stays as it is.
//!
//! Pure.

use serde_json::Value;

use super::strategic::{self, MergeError, Schema};

/// Bytes that the `copy` operations of one JSON patch may copy, as JSON: a few of them would otherwise double the object
/// again and again. The API server has the same bound (evanphx/json-patch, `AccumulatedCopySizeLimit`).
pub(crate) const MAX_COPIED: usize = 3 << 20;

/// The patch formats of the Kubernetes API that work without a schema of every type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchType {
    /// `application/strategic-merge-patch+json`
    StrategicMerge,
    /// `application/merge-patch+json` (RFC 7386)
    Merge,
    /// `application/json-patch+json` (RFC 6902)
    Json,
}

impl PatchType {
    /// From the request's `Content-Type`, whose parameters do not matter.
    pub(crate) fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next()?.trim() {
            "application/strategic-merge-patch+json" => Some(Self::StrategicMerge),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/json-patch+json" => Some(Self::Json),
            _ => None,
        }
    }

    /// The media type, for the replay.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::StrategicMerge => "application/strategic-merge-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

/// Why a patch is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    /// The body is not JSON.
    #[error("the patch is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A strategic merge patch that cannot be applied.
    #[error("the strategic merge patch cannot be applied: {0}")]
    Merge(#[from] MergeError),
    /// A JSON patch that cannot be applied.
    #[error("the JSON patch cannot be applied: {0}")]
    JsonPatch(#[from] json_patch::PatchError),
    /// A JSON patch that copies too much.
    #[error("the JSON patch copies more than {MAX_COPIED} bytes")]
    Copies,
    /// The patch names another `metadata.uid` or `metadata.resourceVersion` than the object has.
    #[error("precondition failed: {field} in the patch is {wanted:?}, the object has {found:?}")]
    Precondition {
        /// The field.
        field: &'static str,
        /// What the patch says.
        wanted: String,
        /// What the object has.
        found: String,
    },
}

/// Applies `body` to the status of `object`.
///
/// # Errors
///
/// [`PatchError`]; `object` is untouched.
pub(crate) fn apply_to_status(
    object: &Value,
    patch_type: PatchType,
    body: &[u8],
    schema: &Schema,
) -> Result<Value, PatchError> {
    let mut patched = object.clone();
    match patch_type {
        PatchType::StrategicMerge => strategic::apply(&mut patched, serde_json::from_slice(body)?, schema)?,
        PatchType::Merge => json_patch::merge(&mut patched, &serde_json::from_slice(body)?),
        PatchType::Json => {
            apply_json_patch(&mut patched, body)?;
        }
    }
    for field in ["uid", "resourceVersion"] {
        let (wanted, found) = (&patched["metadata"][field], &object["metadata"][field]);
        // Kubernetes reads an empty value as none.
        if wanted != found && wanted.as_str().is_some_and(|wanted| !wanted.is_empty()) {
            return Err(PatchError::Precondition {
                field: if field == "uid" { "metadata.uid" } else { "metadata.resourceVersion" },
                wanted: wanted.as_str().unwrap_or_default().into(),
                found: found.as_str().unwrap_or_default().into(),
            });
        }
    }
    let mut result = object.clone();
    for field in ["labels", "annotations"] {
        move_field(&mut patched["metadata"], &mut result["metadata"], field);
    }
    move_field(&mut patched, &mut result, "status");
    Ok(result)
}

/// Whether a patch would leave the whole object as it is. A strategic merge patch is tried as a plain merge, which
/// changes more: what it leaves alone, the strategic one does too.
///
/// # Errors
///
/// [`PatchError`].
pub(crate) fn changes_nothing(
    object: &Value,
    patch_type: PatchType,
    body: &[u8],
) -> Result<bool, PatchError> {
    Ok(apply_as_merge(object, patch_type, body)? == *object)
}

/// Applies `body` to the whole object, a strategic merge patch as a plain merge: the same where no list is touched.
///
/// # Errors
///
/// [`PatchError`].
pub(crate) fn apply_as_merge(
    object: &Value,
    patch_type: PatchType,
    body: &[u8],
) -> Result<Value, PatchError> {
    let mut patched = object.clone();
    match patch_type {
        PatchType::StrategicMerge | PatchType::Merge => {
            json_patch::merge(&mut patched, &serde_json::from_slice(body)?);
        }
        PatchType::Json => {
            apply_json_patch(&mut patched, body)?;
        }
    }
    Ok(patched)
}

fn apply_json_patch(object: &mut Value, body: &[u8]) -> Result<(), PatchError> {
    let operations: Vec<json_patch::PatchOperation> = serde_json::from_slice(body)?;
    let mut copied = 0;
    for operation in &operations {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > MAX_COPIED {
                return Err(PatchError::Copies);
            }
        }
        json_patch::patch(object, std::slice::from_ref(operation))?;
    }
    Ok(())
}

fn move_field(from: &mut Value, to: &mut Value, field: &str) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get_mut(field).map(Value::take) {
        Some(value) if !value.is_null() => to.insert(field.into(), value),
        _ => to.remove(field),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "d", "uid": "u-1", "resourceVersion": "7"},
            "spec": {"nodeName": "edge"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    fn apply(patch_type: PatchType, body: &Value) -> Result<Value, PatchError> {
        apply_to_status(&pod(), patch_type, body.to_string().as_bytes(), &strategic::POD)
    }

    #[test]
    fn a_status_patch_changes_the_status_and_nothing_of_the_spec() {
        let body =
            json!({"metadata": {"uid": "u-1"}, "spec": {"nodeName": "other"}, "status": {"phase": "Failed"}});
        let patched = apply(PatchType::StrategicMerge, &body).unwrap();
        assert_eq!(patched["status"]["phase"], "Failed");
        assert_eq!(patched["status"]["conditions"][0]["type"], "Ready");
        assert_eq!(patched["spec"], pod()["spec"]);
        assert_eq!(patched["metadata"], pod()["metadata"]);
    }

    #[test]
    fn another_uid_is_a_failed_precondition() {
        let body = json!({"metadata": {"uid": "u-2"}, "status": {"phase": "Failed"}});
        for patch_type in [PatchType::StrategicMerge, PatchType::Merge] {
            assert!(matches!(
                apply(patch_type, &body),
                Err(PatchError::Precondition { field: "metadata.uid", .. })
            ));
        }
    }

    #[test]
    fn merge_patch_replaces_lists() {
        let body = json!({"status": {"conditions": [{"type": "Other"}], "phase": null}});
        let patched = apply(PatchType::Merge, &body).unwrap();
        assert_eq!(patched["status"], json!({"conditions": [{"type": "Other"}]}));
    }

    #[test]
    fn json_patch_is_applied_or_refused_as_a_whole() {
        let body = json!([{"op": "replace", "path": "/status/phase", "value": "Failed"}]);
        assert_eq!(apply(PatchType::Json, &body).unwrap()["status"]["phase"], "Failed");
        let body = json!([
            {"op": "replace", "path": "/status/phase", "value": "Failed"},
            {"op": "test", "path": "/status/phase", "value": "Running"},
        ]);
        assert!(matches!(apply(PatchType::Json, &body), Err(PatchError::JsonPatch(_))));
    }

    #[test]
    fn a_json_patch_that_doubles_the_object_again_and_again_is_refused() {
        // Each to another place: copies over one another only add up.
        let copy = |number: i32| json!({"op": "copy", "from": "", "path": format!("/status/x{number}")});
        let body = (0..64).map(copy).collect();
        assert!(matches!(apply(PatchType::Json, &body), Err(PatchError::Copies)));
    }

    #[test]
    fn labels_and_annotations_may_change_through_the_status() {
        let body = json!({"metadata": {"annotations": {"a": "b"}, "name": "other"}});
        let patched = apply(PatchType::StrategicMerge, &body).unwrap();
        assert_eq!(patched["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(patched["metadata"]["name"], "a");
    }

    #[test]
    fn a_body_that_is_not_json_is_refused() {
        let result = apply_to_status(&pod(), PatchType::StrategicMerge, b"k8s\0", &strategic::POD);
        assert!(matches!(result, Err(PatchError::Json(_))));
    }

    #[test]
    fn the_content_type_names_the_format() {
        assert_eq!(
            PatchType::from_content_type("application/strategic-merge-patch+json; charset=utf-8"),
            Some(PatchType::StrategicMerge)
        );
        assert_eq!(PatchType::from_content_type("application/apply-patch+yaml"), None);
    }
}
