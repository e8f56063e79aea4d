//! Answers as HTTP. The only place where errors get a status code: every refusal is a `metav1.Status` in the
//! encoding that the client negotiated.

use bytes::Bytes;
use futures::Stream;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use super::{Body, BoxError};
use crate::filter::FilterError;
use crate::offline::events::EventError;
use crate::offline::patch::PatchError;
use crate::offline::token_request::TokenError;
use crate::offline::{Answer, OfflineError};
use crate::request::AuthError;
use crate::store::StoreError;
use crate::upstream::UpstreamError;
use crate::view::{ViewError, WatchError};
use crate::wire::status::{StatusCause, StatusDetails};
use crate::wire::{Encoding, Status};

/// Why a request is not answered as it asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody we know.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// No view.
    #[error(transparent)]
    View(#[from] ViewError),
    /// No watch.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// No answer without the API server.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// No answer from the API server.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object in the store is not what it should be.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The view has not reached the resourceVersion that the client has seen.
    #[error("Too large resource version: {wanted}, current: {current}")]
    TooLarge {
        /// What the client asked for.
        wanted: u64,
        /// What the view has.
        current: u64,
    },
    /// The request's body is longer than any the API server takes.
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The bound.
        limit: usize,
    },
    /// The request's body broke off.
    #[error("the request body could not be read: {0}")]
    Body(String),
    /// The caller has more under way than its share.
    #[error("too many requests and watches of this user are under way; try again")]
    Busy,
    /// An upgrade on a connection that cannot be upgraded.
    #[error("upgrades need HTTP/1.1")]
    Upgrade,
}

/// A whole answer.
pub(crate) fn answer(answer: Answer) -> Response<Body> {
    let mut response = Response::new(full(answer.body));
    *response.status_mut() = answer.code;
    let headers = response.headers_mut();
    let mut set = |name, value: Option<&str>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    };
    set(CONTENT_TYPE, Some(&answer.content_type));
    set(CONTENT_ENCODING, answer.content_encoding.as_deref());
    set(ETAG, answer.etag.as_deref());
    set(VARY, answer.etag.is_some().then_some("Accept"));
    set(CACHE_CONTROL, Some("no-cache, private"));
    response
}

/// An answer whose body comes piece by piece, and whose length nobody knows.
pub(crate) fn pieces(
    content_type: &'static str,
    pieces: impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static,
) -> Response<Body> {
    let mut response = Response::new(Body::new(StreamBody::new(pieces)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A body in one piece.
pub(crate) fn full(body: Bytes) -> Body {
    Body::new(Full::new(body).map_err(|never| match never {}))
}

/// A refusal.
pub(crate) fn failure(failure: Failure, encoding: Encoding) -> Response<Body> {
    if let Failure::View(ViewError::Upstream(upstream)) = failure {
        // The API server's own words.
        let mut response = Response::new(full(upstream.body.clone()));
        *response.status_mut() = upstream.code;
        *response.headers_mut() = upstream.headers.clone();
        return response;
    }
    let status = status_of(&failure);
    if status.code >= 500 && status.code != 503 && status.code != 504 {
        tracing::error!(error = %failure, "a request failed in the hub");
    }
    let encoding = if encoding.is_protobuf() { Encoding::Protobuf } else { Encoding::Json };
    let mut response = answer(Answer::new(
        StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        encoding.content_type(),
        status.encode(encoding),
    ));
    let again = status.details.as_ref().is_some_and(|details| details.retry_after_seconds > 0);
    if status.code == 429 || (status.code == 503 && again) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status.code == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The Status of a refusal.
pub(super) fn status_of(failure: &Failure) -> Status {
    let text = || failure.to_string();
    let details = |name: &str, group: &str, kind: &str| {
        Some(StatusDetails {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..StatusDetails::default()
        })
    };
    match failure {
        // Nothing was decided, so it is worth to come again soon; without a link (below) it is not.
        Failure::Auth(AuthError::NotReviewed(_)) => Status {
            details: Some(StatusDetails { retry_after_seconds: 1, ..StatusDetails::default() }),
            ..Status::new(503, "ServiceUnavailable", text())
        },
        Failure::Auth(AuthError::Busy) | Failure::Busy => Status {
            details: Some(StatusDetails { retry_after_seconds: 1, ..StatusDetails::default() }),
            ..Status::new(429, "TooManyRequests", text())
        },
        Failure::Auth(_) => Status::new(401, "Unauthorized", text()),
        Failure::View(ViewError::Refused) => Status::new(403, "Forbidden", text()),
        Failure::View(ViewError::NeverCached) => Status::new(503, "ServiceUnavailable", text()),
        Failure::View(ViewError::Late) => Status::new(504, "Timeout", text()),
        Failure::View(ViewError::Store(error))
        | Failure::Store(error)
        | Failure::Watch(WatchError::Store(error)) => of_store(error, text()),
        // Both are handled before they can get here: by forwarding, and verbatim.
        Failure::View(ViewError::NotAView | ViewError::Upstream(_)) => {
            Status::new(500, "InternalError", text())
        }
        Failure::Watch(WatchError::Expired) => Status::expired(),
        Failure::TooLarge { .. } => Status {
            details: Some(StatusDetails {
                causes: vec![StatusCause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".into(),
                    field: String::new(),
                }],
                retry_after_seconds: 1,
                ..StatusDetails::default()
            }),
            ..Status::new(504, "Timeout", text())
        },
        Failure::Offline(error) => match error {
            OfflineError::Unavailable(_) => Status::new(503, "ServiceUnavailable", text()),
            OfflineError::Refused(_) => Status::new(403, "Forbidden", text()),
            OfflineError::AlreadyExists { plural, name } => {
                Status { details: details(name, "", plural), ..Status::new(409, "AlreadyExists", text()) }
            }
            OfflineError::Conflict { group, plural, name, .. } => {
                Status { details: details(name, group, plural), ..Status::new(409, "Conflict", text()) }
            }
            OfflineError::NotFound { group, plural, name } => {
                Status { details: details(name, group, plural), ..Status::new(404, "NotFound", text()) }
            }
            OfflineError::Patch(PatchError::Precondition { .. }) => Status::new(409, "Conflict", text()),
            OfflineError::Patch(PatchError::Json(_)) => Status::new(400, "BadRequest", text()),
            OfflineError::Patch(PatchError::Merge(_) | PatchError::JsonPatch(_) | PatchError::Copies) => {
                Status::new(422, "Invalid", text())
            }
            OfflineError::PatchType(_) => Status::new(415, "UnsupportedMediaType", text()),
            OfflineError::Token(TokenError::Wire(_) | TokenError::Json(_)) => {
                Status::new(400, "BadRequest", text())
            }
            OfflineError::Event(EventError::TooLarge) => Status::new(413, "RequestEntityTooLarge", text()),
            OfflineError::Event(_) => Status::new(400, "BadRequest", text()),
            OfflineError::Token(TokenError::Store(error)) | OfflineError::Store(error) => {
                of_store(error, text())
            }
            OfflineError::Damaged(_) => Status::new(500, "InternalError", text()),
        },
        Failure::Upstream(UpstreamError::Unreachable(_) | UpstreamError::Broken(_)) => {
            Status::new(503, "ServiceUnavailable", text())
        }
        Failure::Upstream(UpstreamError::Busy(_)) => Status {
            details: Some(StatusDetails { retry_after_seconds: 1, ..StatusDetails::default() }),
            ..Status::new(429, "TooManyRequests", text())
        },
        Failure::Upstream(UpstreamError::Request(_)) | Failure::Filter(_) => {
            Status::new(500, "InternalError", text())
        }
        Failure::BodyTooLarge { .. } => Status::new(413, "RequestEntityTooLarge", text()),
        Failure::Body(_) | Failure::Upgrade => Status::new(400, "BadRequest", text()),
    }
}

/// What is damaged is listed anew or removed, and a process whose store is of no use is followed by another one: whoever
/// comes again finds it otherwise. What fails to be read or written for another reason may fail again.
fn of_store(error: &StoreError, text: String) -> Status {
    match error {
        StoreError::Damaged(_) | StoreError::Broken(_) | StoreError::Unreadable(_) | StoreError::Closed => {
            Status {
                details: Some(StatusDetails { retry_after_seconds: 1, ..StatusDetails::default() }),
                ..Status::new(503, "ServiceUnavailable", text)
            }
        }
        StoreError::Full(_) | StoreError::Failed(_) => Status::new(500, "InternalError", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(failure: Failure, encoding: Encoding) -> (Response<()>, Status) {
        let (parts, body) = super::failure(failure, encoding).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(parts, ()), Status::decode(encoding, &body).unwrap())
    }

    #[tokio::test]
    async fn an_offline_refusal_is_503_without_retry_after() {
        let failure = || Failure::Offline(OfflineError::Unavailable("pods shop/web was never cached".into()));
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let (response, status) = refused(failure(), encoding).await;
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers().get(RETRY_AFTER), None);
            assert_eq!(response.headers()[CONTENT_TYPE], encoding.content_type());
            assert_eq!(status.reason, "ServiceUnavailable");
            assert_eq!(status.message, "the edge node is offline and pods shop/web was never cached");
            assert_eq!(status.details, None);
        }
    }

    #[tokio::test]
    async fn a_resource_version_from_the_future_is_a_timeout_with_its_cause() {
        let (response, status) = refused(Failure::TooLarge { wanted: 9, current: 5 }, Encoding::Json).await;
        assert_eq!(response.status(), 504);
        assert_eq!(status.reason, "Timeout");
        assert_eq!(status.details.unwrap().causes[0].reason, "ResourceVersionTooLarge");
    }

    #[tokio::test]
    async fn errors_have_the_reasons_that_clients_decide_by() {
        let node = || OfflineError::AlreadyExists { plural: "nodes".into(), name: "edge".into() };
        let (_, status) = refused(node().into(), Encoding::Protobuf).await;
        assert_eq!((status.code, &*status.reason), (409, "AlreadyExists"));
        assert_eq!(status.details.unwrap().name, "edge");
        let (response, status) = refused(UpstreamError::Busy("x".into()).into(), Encoding::Protobuf).await;
        assert_eq!((status.code, &*status.reason), (429, "TooManyRequests"));
        assert_eq!(
            (&response.headers()[RETRY_AFTER], response.status().as_u16()),
            (&"1".parse().unwrap(), 429)
        );
        let undecided = AuthError::NotReviewed("the API server answered 500".into());
        let (response, status) = refused(undecided.into(), Encoding::Json).await;
        assert_eq!((status.code, &*status.reason), (503, "ServiceUnavailable"));
        assert_eq!(&response.headers()[RETRY_AFTER], "1");
        let (response, status) = refused(AuthError::Nobody.into(), Encoding::Json).await;
        assert_eq!((status.code, &*status.reason), (401, "Unauthorized"));
        assert!(response.headers().contains_key(WWW_AUTHENTICATE));
        let (_, status) = refused(ViewError::Late.into(), Encoding::Json).await;
        assert_eq!((status.code, &*status.reason), (504, "Timeout"));
        assert!(!status.message.contains("offline"), "the link is there: {}", status.message);
        let (_, status) = refused(WatchError::Expired.into(), Encoding::Json).await;
        assert_eq!((status.code, &*status.reason), (410, "Expired"));
        let damaged = || StoreError::Damaged("bent".into());
        let failures: [Failure; 4] = [
            damaged().into(),
            ViewError::Store(damaged()).into(),
            WatchError::Store(damaged()).into(),
            OfflineError::Store(StoreError::Closed).into(),
        ];
        for failure in failures {
            let (response, status) = refused(failure, Encoding::Json).await;
            assert_eq!((status.code, &*status.reason), (503, "ServiceUnavailable"));
            assert_eq!(&response.headers()[RETRY_AFTER], "1");
        }
        let (response, status) = refused(StoreError::Failed("EIO".into()).into(), Encoding::Json).await;
        assert_eq!((status.code, response.headers().get(RETRY_AFTER)), (500, None));
    }
}
