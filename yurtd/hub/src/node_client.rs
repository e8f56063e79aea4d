//! Requests that the hub makes for itself, with the node's own credential: TokenReviews, the Service
//! `default/kubernetes`, the replay of status patches. Never on behalf of a caller.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, IF_NONE_MATCH, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use yurt_node::api_client::refusal;

use crate::caller::Credential;
use crate::upstream::{RequestBody, Upstream, UpstreamError};

/// An answer is waited for at most this long.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bound of an answer.
const MAX_ANSWER: usize = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The API server cannot be reached.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The answer did not come, or not to its end.
    #[error("the API server's answer broke off: {0}")]
    Broken(String),
    /// The API server said no.
    #[error("the API server answered {code}: {message}")]
    Refused {
        /// HTTP status.
        code: StatusCode,
        /// The Status' message.
        message: String,
    },
}

impl CallError {
    /// Whether asking again later may help: nothing was decided.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(_) | Self::Broken(_) => true,
            Self::Refused { code, .. } => {
                code.is_server_error()
                    || matches!(*code, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
        }
    }
}

/// The hub as a client of the API server.
#[derive(Clone)]
pub(crate) struct NodeClient {
    upstream: Upstream,
}

impl NodeClient {
    /// Uses the connections of `upstream`.
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self { upstream }
    }

    /// GET of a JSON object.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(Method::GET, path, "application/json", Bytes::new()).await
    }

    /// GET of JSON that has another type.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Result<Value, CallError> {
        self.json(Method::GET, path, accept, "application/json", Bytes::new()).await
    }

    /// POST of a JSON object.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        self.call(Method::POST, path, "application/json", Bytes::from(object.to_string())).await
    }

    /// PATCH with a body of the given type.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn patch(
        &self,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Value, CallError> {
        self.call(Method::PATCH, path, content_type, body).await
    }

    /// Any request whose answer is a JSON object.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Value, CallError> {
        self.json(method, path, "application/json", content_type, body).await
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Value, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .header(ACCEPT, accept);
        let (code, _, body) = self.exchange(request, body, MAX_ANSWER).await?;
        if code.is_success() {
            return serde_json::from_slice(&body).map_err(|error| CallError::Broken(error.to_string()));
        }
        Err(CallError::Refused { code, message: refusal(&body) })
    }

    /// GET of a document of at most `limit` bytes, as the API server sends it, perhaps compressed. Nothing when it is
    /// the one with this ETag.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(crate) async fn read(
        &self,
        path: &str,
        accept: &str,
        etag: Option<&str>,
        limit: usize,
    ) -> Result<Option<(HeaderMap, Bytes)>, CallError> {
        let mut request = Request::builder().uri(path).header(ACCEPT, accept).header(ACCEPT_ENCODING, "gzip");
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        match self.exchange(request, Bytes::new(), limit).await? {
            (StatusCode::NOT_MODIFIED, ..) => Ok(None),
            (StatusCode::OK, headers, body) => Ok(Some((headers, body))),
            (code, _, body) => Err(CallError::Refused { code, message: refusal(&body) }),
        }
    }

    async fn exchange(
        &self,
        request: http::request::Builder,
        body: Bytes,
        limit: usize,
    ) -> Result<(StatusCode, HeaderMap, Bytes), CallError> {
        let broken = |reason: String| CallError::Broken(reason);
        let request = request
            .header(USER_AGENT, concat!("yurtd/", env!("CARGO_PKG_VERSION")))
            .body(RequestBody::new(Full::new(body).map_err(|never| match never {})))
            .map_err(|error| UpstreamError::Request(error.to_string()))?;
        let exchange = async {
            let (parts, body) = self.upstream.send(&Credential::Node, request).await?.into_parts();
            let body =
                Limited::new(body, limit).collect().await.map_err(|error| broken(error.to_string()))?;
            Ok::<_, CallError>((parts.status, parts.headers, body.to_bytes()))
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .map_err(|_| broken(format!("no answer within {} s", DEADLINE.as_secs())))?
    }
}
