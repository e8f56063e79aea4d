//! `metav1.Status`: the errors of the API.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::proto::Writer;
use super::{Encoding, TypeMeta, WireError, proto};

/// A failure as Kubernetes clients understand it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    /// HTTP status code.
    pub(crate) code: u16,
    /// `NotFound`, `Expired`, `Timeout`: clients decide by it.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<StatusDetails>,
}

/// What a [`Status`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StatusDetails {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) group: String,
    /// Resource in the plural, as the API server puts it there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) kind: String,
    /// The object's uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
    /// Single causes (`ResourceVersionTooLarge`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<StatusCause>,
    /// Seconds before another try. Never set while offline: client-go sleeps that long, ten times.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retry_after_seconds: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// One cause in [`StatusDetails`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StatusCause {
    /// `ResourceVersionTooLarge`
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
    /// Field of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) field: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: serde_json::Map<String, serde_json::Value>,
    status: &'static str,
    message: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a StatusDetails>,
    code: u16,
}

impl Status {
    /// A failure without details.
    pub(crate) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None }
    }

    /// 410: the resourceVersion is older than what is remembered.
    pub(crate) fn expired() -> Self {
        Self::new(410, "Expired", "The resourceVersion for the provided watch is too old.")
    }

    /// Encodes it as a response body.
    pub(crate) fn encode(&self, encoding: Encoding) -> Bytes {
        if encoding.is_protobuf() {
            proto::envelope(&TypeMeta::new("v1", "Status"), &self.to_proto())
        } else {
            let mut text = self.to_json();
            text.push(b'\n');
            text.into()
        }
    }

    /// Reads a Status response body.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is none.
    pub(crate) fn decode(encoding: Encoding, body: &Bytes) -> Result<Self, WireError> {
        if encoding.is_protobuf() {
            let (kind, raw) = proto::open_envelope(body)?;
            if kind.kind != "Status" {
                return Err(WireError::malformed("Status", format!("it is a {}", kind.kind)));
            }
            Self::from_proto(&raw)
        } else {
            serde_json::from_slice(body).map_err(|error| WireError::malformed("Status", error))
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let document = Document {
            kind: "Status",
            api_version: "v1",
            metadata: serde_json::Map::new(),
            status: "Failure",
            message: &self.message,
            reason: &self.reason,
            details: self.details.as_ref(),
            code: self.code,
        };
        // Strings and numbers alone: this cannot fail.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Status{metadata 1, status 2, message 3, reason 4, details 5, code 6}.
    fn to_proto(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(1, &[]);
        out.bytes(2, b"Failure");
        out.bytes(3, self.message.as_bytes());
        out.bytes(4, self.reason.as_bytes());
        if let Some(details) = &self.details {
            out.bytes(5, &details.to_proto());
        }
        out.varint(6, u64::from(self.code));
        out.finish()
    }

    fn from_proto(raw: &[u8]) -> Result<Self, WireError> {
        let mut status = Self::default();
        for field in proto::fields("Status", raw) {
            match field? {
                (3, proto::Value::Bytes(text)) => status.message = proto::text("Status", text)?.to_owned(),
                (4, proto::Value::Bytes(text)) => status.reason = proto::text("Status", text)?.to_owned(),
                (5, proto::Value::Bytes(raw)) => status.details = Some(StatusDetails::from_proto(raw)?),
                (6, proto::Value::Number(code)) => status.code = u16::try_from(code).unwrap_or(500),
                _ => {}
            }
        }
        Ok(status)
    }
}

impl StatusDetails {
    /// StatusDetails{name 1, group 2, kind 3, causes 4, retryAfterSeconds 5, uid 6}.
    fn to_proto(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(1, self.name.as_bytes());
        out.bytes(2, self.group.as_bytes());
        out.bytes(3, self.kind.as_bytes());
        for cause in &self.causes {
            // StatusCause{reason 1, message 2, field 3}
            let mut inner = Writer::default();
            inner.bytes(1, cause.reason.as_bytes());
            inner.bytes(2, cause.message.as_bytes());
            inner.bytes(3, cause.field.as_bytes());
            out.bytes(4, &inner.finish());
        }
        out.varint(5, u64::try_from(self.retry_after_seconds).unwrap_or(0));
        out.bytes(6, self.uid.as_bytes());
        out.finish()
    }

    fn from_proto(raw: &[u8]) -> Result<Self, WireError> {
        let mut details = Self::default();
        let text = |raw| proto::text("StatusDetails", raw).map(str::to_owned);
        for field in proto::fields("StatusDetails", raw) {
            match field? {
                (1, proto::Value::Bytes(raw)) => details.name = text(raw)?,
                (2, proto::Value::Bytes(raw)) => details.group = text(raw)?,
                (3, proto::Value::Bytes(raw)) => details.kind = text(raw)?,
                (4, proto::Value::Bytes(raw)) => details.causes.push(StatusCause::from_proto(raw)?),
                (5, proto::Value::Number(seconds)) => {
                    details.retry_after_seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
                }
                (6, proto::Value::Bytes(raw)) => details.uid = text(raw)?,
                _ => {}
            }
        }
        Ok(details)
    }
}

impl StatusCause {
    fn from_proto(raw: &[u8]) -> Result<Self, WireError> {
        let mut cause = Self::default();
        let text = |raw| proto::text("StatusCause", raw).map(str::to_owned);
        for field in proto::fields("StatusCause", raw) {
            match field? {
                (1, proto::Value::Bytes(raw)) => cause.reason = text(raw)?,
                (2, proto::Value::Bytes(raw)) => cause.message = text(raw)?,
                (3, proto::Value::Bytes(raw)) => cause.field = text(raw)?,
                _ => {}
            }
        }
        Ok(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn too_large() -> Status {
        Status {
            details: Some(StatusDetails {
                kind: "pods".into(),
                causes: vec![StatusCause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".into(),
                    field: String::new(),
                }],
                retry_after_seconds: 1,
                ..StatusDetails::default()
            }),
            ..Status::new(504, "Timeout", "Too large resource version: 9, current: 5")
        }
    }

    #[test]
    fn a_status_survives_both_encodings() {
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let body = too_large().encode(encoding);
            assert_eq!(Status::decode(encoding, &body).unwrap(), too_large(), "{encoding:?}");
        }
    }

    #[test]
    fn a_json_status_is_laid_out_as_the_api_server_does() {
        let text =
            String::from_utf8(Status::new(404, "NotFound", "no").encode(Encoding::Json).to_vec()).unwrap();
        assert_eq!(
            text,
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"no\",\"reason\":\"NotFound\",\"code\":404}\n"
        );
    }
}
