//! A small client of the API server, for what the edge runs.
//!
//! It does what a process of a few megabytes needs: GET, LIST, merge patches of metadata, a watch; HTTP/1.1 over TLS
//! with a node's client certificate. Nothing is held that need not be: of a list one object at a time ([`items`]), of
//! a watch one line, of connections the one that was used last. What objects look like is the caller's business; it
//! names the fields that it reads and no others.
//!
//! ```text
//! ApiClient ─► Connection (TLS, one request at a time) ─► whole answer: get, list, patch ─► kept for the next request
//!                                                      └► endless answer: Watch ─► closed with it
//! ```

mod connection;
pub(crate) mod fuzzing;
mod items;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{DATE, HeaderMap, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::connection::{Connection, Server};
use self::items::{Items, ListMetadata};
pub use self::watch::{Event, Watch};

/// How long one request may take, from the look-up of the name to the last byte of the answer (of a watch: the head).
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Bound of an object: etcd keeps none beyond 1.5 MiB, and JSON is longer than protobuf.
const MAX_OBJECT: usize = 4 << 20;
/// Bound of what is read of a refusal.
const MAX_REFUSAL: usize = 64 << 10;
/// Objects in a page of a list.
const PAGE: u32 = 500;
/// For how long a connection that is not in use is worth a try: loops ask every half second.
const IDLE: Duration = Duration::from_secs(5);

const JSON: &str = "application/json";
const METADATA_ALONE: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5";

/// Where an API server is and who asks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// `https://host:port`
    pub server: String,
    /// The CA of the server's certificate, PEM.
    pub ca: Vec<u8>,
    /// The client certificate, PEM; other sections are skipped, as kubelet keeps certificate and key in one file.
    pub certificate: Vec<u8>,
    /// Its key, PEM; other sections are skipped.
    pub key: Vec<u8>,
}

/// Why an [`Access`] is none.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The server's address is not one.
    #[error("{0:?} is no https:// address of a server")]
    Server(String),
    /// Certificate, key or CA is missing or not PEM.
    #[error("there is no usable {what}: {reason}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// rustls refuses them.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Nobody was reached, or the answer broke off.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Whoever answered said no.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP status.
        code: StatusCode,
        /// The Status' message, or what else was said.
        message: String,
        /// When asking again was suggested.
        retry_after: Option<Duration>,
    },
    /// The answer is not what was asked for.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl ApiError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == StatusCode::NOT_FOUND)
    }
}

/// A client of one API server (or of a hub that stands in for it) with one certificate.
#[derive(Debug, Clone)]
pub struct ApiClient {
    server: Arc<Server>,
    /// The connection that was used last, if its answer was read to the end.
    idle: Arc<Mutex<Option<(Connection, Instant)>>>,
}

impl ApiClient {
    /// Makes a client; nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`AccessError`].
    pub fn new(access: &Access) -> Result<Self, AccessError> {
        Ok(Self { server: Arc::new(Server::new(access)?), idle: Arc::default() })
    }

    /// GET of an object.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let body = self.call(Method::GET, path, JSON, None).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Unreadable(error.to_string()))
    }

    /// GET of an object that need not be there.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Merge patch (RFC 7386) of an object. Of the answer nobody reads more than whether it was a yes.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn merge_patch(&self, path: &str, patch: &serde_json::Value) -> Result<(), ApiError> {
        let patch = ("application/merge-patch+json", Bytes::from(patch.to_string()));
        self.call(Method::PATCH, path, METADATA_ALONE, Some(patch)).await?;
        Ok(())
    }

    /// What the server's clock says (`Date`, as it was sent); whatever else it answers.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn date(&self) -> Result<Option<String>, ApiError> {
        let request = self.server.request(Method::GET, "/version", JSON, None)?;
        let headers = within(DEADLINE, async { Ok(self.send(request).await?.0.headers().clone()) }).await?;
        Ok(headers.get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned))
    }

    /// LIST of the objects that a field selector (`spec.nodeName=edge-1`) chooses, of any age (`resourceVersion=0`: the
    /// API server answers from memory). `each` gets one object after the other. Returns the list's resource version.
    ///
    /// # Errors
    ///
    /// [`ApiError`]; `each` may have got some objects before.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        field_selector: &str,
        mut each: impl FnMut(T),
    ) -> Result<String, ApiError> {
        let selector: String = form_urlencoded::byte_serialize(field_selector.as_bytes()).collect();
        let mut page = format!("{path}?fieldSelector={selector}&limit={PAGE}&resourceVersion=0");
        within(DEADLINE, async {
            loop {
                let metadata = self.page(&page, &mut each).await?;
                let Some(token) = metadata.next.filter(|token| !token.is_empty()) else {
                    return Ok(metadata.resource_version);
                };
                let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
                page = format!("{path}?fieldSelector={selector}&limit={PAGE}&continue={token}");
            }
        })
        .await
    }

    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        each: &mut impl FnMut(T),
    ) -> Result<ListMetadata, ApiError> {
        let (response, connection) =
            self.accepted(self.server.request(Method::GET, path, JSON, None)?).await?;
        let mut body = response.into_body();
        let mut items = Items::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::Unreachable(chain(&error)))?;
            if let Ok(data) = frame.into_data() {
                items.feed(&data, |item| serde_json::from_slice(item).map(&mut *each)).map_err(unreadable)?;
            }
        }
        let metadata = items.finish().map_err(unreadable)?;
        self.keep(connection);
        Ok(metadata)
    }

    /// Watch of the objects that a field selector chooses, from a resource version on; the server ends it after
    /// `lasting`. Its connection is its own.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn watch<T: DeserializeOwned>(
        &self,
        path: &str,
        field_selector: &str,
        resource_version: &str,
        lasting: Duration,
    ) -> Result<Watch<T>, ApiError> {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let path = format!(
            "{path}?watch=true&fieldSelector={}&resourceVersion={}&timeoutSeconds={}&allowWatchBookmarks=true",
            encoded(field_selector),
            encoded(resource_version),
            lasting.as_secs(),
        );
        let request = self.server.request(Method::GET, &path, JSON, None)?;
        let (response, connection) = within(DEADLINE, self.accepted(request)).await?;
        Ok(Watch::new(response.into_body(), connection))
    }

    /// One request and its whole answer, within the deadline.
    async fn call(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes, ApiError> {
        let request = self.server.request(method, path, accept, body)?;
        within(DEADLINE, async {
            let (response, connection) = self.accepted(request).await?;
            let body = collect(response.into_body(), MAX_OBJECT).await?;
            self.keep(connection);
            Ok(body)
        })
        .await
    }

    /// Sends a request; an answer that is a no becomes an error.
    async fn accepted(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), ApiError> {
        let (response, connection) = self.send(request).await?;
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let (head, body) = response.into_parts();
        let retry_after = retry_after(&head.headers);
        // A no that breaks off is a no.
        let message = match collect(body, MAX_REFUSAL).await {
            Ok(body) => {
                self.keep(connection);
                refusal(&body)
            }
            Err(_) => String::new(),
        };
        let message = if message.is_empty() { head.status.to_string() } else { message };
        Err(ApiError::Refused { code: head.status, message, retry_after })
    }

    /// Sends a request over the connection that is there, or a new one.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), ApiError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut connection, since)) = idle
            && since.elapsed() < IDLE
        {
            match connection.try_send(request).await {
                Ok(response) => return Ok((response, connection)),
                Err((Some(unsent), _)) => request = unsent,
                Err((None, error)) => return Err(ApiError::Unreachable(chain(&error))),
            }
        }
        let mut connection = self.server.connect().await?;
        match connection.try_send(request).await {
            Ok(response) => Ok((response, connection)),
            Err((_, error)) => Err(ApiError::Unreachable(chain(&error))),
        }
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(&self, connection: Connection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some((connection, Instant::now()));
    }
}

/// What somebody who said no says: the message of a Status, or the beginning of whatever it is.
pub fn refusal(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
    }
}

/// `Retry-After` in seconds, the only form that the API server uses.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::time::timeout(limit, request)
        .await
        .unwrap_or_else(|_| Err(ApiError::Unreachable(format!("no answer within {} s", limit.as_secs()))))
}

async fn collect(body: Incoming, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::Unreadable(format!("it is longer than {limit} bytes")))
        }
        Err(error) => Err(ApiError::Unreachable(chain(&*error))),
    }
}

fn unreadable(error: impl ToString) -> ApiError {
    ApiError::Unreadable(error.to_string())
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
