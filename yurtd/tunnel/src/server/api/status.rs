//! Errors become HTTP here and nowhere else: `metav1.Status` in JSON, worded as the API server does.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::server::client_ca::CertificateError;
use crate::server::registry::DialError;

/// A response's body: a document, or what kubelet says as it says it.
pub(super) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody that the cluster knows.
    #[error("Unauthorized")]
    Unauthorized,
    /// Somebody who may not.
    #[error("{message}")]
    Forbidden {
        /// As the API server words it.
        message: String,
        /// Name of the object, empty for a collection.
        name: String,
        /// API group of the resource.
        group: String,
        /// Plural of the resource.
        resource: String,
    },
    /// Refused because of how it was asked, whoever asks.
    #[error("{0}")]
    Refused(String),
    /// No object of that name.
    #[error("{resource} {name:?} not found")]
    NotFound {
        /// API group of the resource.
        group: &'static str,
        /// `plural`, or `plural.group`.
        resource: &'static str,
        /// Name of the object.
        name: String,
    },
    /// The endpoint does not serve that path.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// The path is served, with other methods.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// The request cannot be understood or fulfilled as it is.
    #[error("{0}")]
    BadRequest(String),
    /// The tunnel to the node gave no stream.
    #[error("{}", dial_message(.0))]
    Dial(#[from] DialError),
    /// Something that the endpoint needs does not answer: kubelet at the end of the tunnel, or the API server.
    #[error("{0}")]
    Unavailable(String),
    /// kubelet answered with an error of its own.
    #[error("{message}")]
    Kubelet {
        /// kubelet's status code.
        code: StatusCode,
        /// kubelet's text.
        message: String,
    },
    /// A fault on this side.
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

/// What happened, and what a person can do.
fn dial_message(error: &DialError) -> String {
    match error {
        DialError::NotConnected(node) => format!(
            "the tunnel agent of node {node:?} is not connected: the node is offline, or it is not an edge node \
             (then use kubectl itself); see 'kubectl yurt tunnel status'"
        ),
        DialError::SessionEnded(node) => {
            format!("the tunnel to node {node:?} was lost while it was opening a connection; try again")
        }
        DialError::NoAnswer(node) => format!(
            "the tunnel agent of node {node:?} did not answer in time: its link is lost or very slow; try again"
        ),
        other => other.to_string(),
    }
}

impl From<CertificateError> for ApiError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::NoCa => Self::Unavailable(error.to_string()),
            CertificateError::Invalid(_) => Self::Unauthorized,
        }
    }
}

impl ApiError {
    /// The status code of the answer.
    pub(super) fn code(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } | Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::NotFound { .. } | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Dial(_) | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Kubelet { code, .. } => *code,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// `metav1.StatusReason` of a status code.
    fn reason(code: StatusCode) -> &'static str {
        match code {
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            _ => "InternalError",
        }
    }

    fn details(&self) -> Option<Value> {
        let (group, resource, name) = match self {
            Self::Forbidden { group, resource, name, .. } => (group.as_str(), resource.as_str(), name),
            Self::NotFound { group, resource, name } => {
                (*group, resource.split('.').next().unwrap_or_default(), name)
            }
            _ => return None,
        };
        let mut details = serde_json::Map::new();
        if !name.is_empty() {
            details.insert("name".into(), name.as_str().into());
        }
        if !group.is_empty() {
            details.insert("group".into(), group.into());
        }
        details.insert("kind".into(), resource.into());
        Some(Value::Object(details))
    }

    /// The `metav1.Status`.
    pub(super) fn to_status(&self) -> Value {
        let code = self.code();
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": Self::reason(code),
            "code": code.as_u16(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }

    /// The whole answer.
    pub(super) fn into_response(self) -> Response<Body> {
        json_response(self.code(), &self.to_status())
    }
}

/// An answer in JSON.
pub(super) fn json_response(code: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(full(document.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is all there.
pub(super) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The API server refused the tunnel server, or could not be asked.
pub(super) fn api_server_error(what: &str, error: &kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => ApiError::Internal(format!("cannot {what}: {}", status.message)),
        other => {
            tracing::warn!(error = %other, "the API server did not {what}");
            ApiError::Unavailable(format!("the tunnel server cannot reach the API server to {what}"))
        }
    }
}

/// The API server did not answer in time.
pub(super) fn api_server_silent(what: &str) -> ApiError {
    ApiError::Unavailable(format!("the API server did not answer in time when asked to {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_pod_reads_as_the_api_server_says_it() {
        let error = ApiError::NotFound { group: "", resource: "pods", name: "till-0".into() };
        assert_eq!(
            error.to_status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "pods \"till-0\" not found", "reason": "NotFound",
                "details": {"name": "till-0", "kind": "pods"}, "code": 404
            })
        );
    }

    #[test]
    fn an_agent_that_is_away_is_said_with_what_to_do() {
        let status = ApiError::from(DialError::NotConnected("edge-1".into())).to_status();
        assert_eq!(status["code"], 503);
        assert_eq!(status["reason"], "ServiceUnavailable");
        let message = status["message"].as_str().unwrap();
        assert!(
            message.contains("\"edge-1\"") && message.contains("kubectl yurt tunnel status"),
            "{message}"
        );
    }

    #[test]
    fn an_unauthorized_caller_learns_nothing() {
        let status = ApiError::Unauthorized.to_status();
        assert_eq!((&status["message"], &status["code"]), (&json!("Unauthorized"), &json!(401)));
        assert!(status.get("details").is_none());
    }
}
