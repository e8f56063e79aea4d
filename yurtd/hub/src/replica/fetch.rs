//! The two requests of a reflector, and their answers as data.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, USER_AGENT,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::caller::Credential;
use crate::limits::{PageSize, SMALL_PAGE};
use crate::upstream::{RequestBody, ResponseBody, Upstream, chain};
use crate::view::{UpstreamResponse, ViewSpec};
use crate::wire::query::QueryString;
use crate::wire::{ListPage, WireError, split_list};

pub(super) const AGENT: &str = concat!("yurtd/", env!("CARGO_PKG_VERSION"), " (hub)");
/// The API server gives up after a minute itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);
/// An answer to a GET of a watch comes at once, whatever the collection does.
const WATCH_WITHIN: Duration = Duration::from_secs(30);
/// Error bodies are Status objects.
const MAX_ERROR: usize = 1 << 20;

/// What to list.
#[derive(Debug, Clone)]
pub(super) struct ListParameters {
    /// Exactly this resourceVersion.
    pub(super) at: Option<u64>,
    /// The next page.
    pub(super) continue_token: Option<String>,
    /// How much to ask for.
    pub(super) size: PageSize,
}

/// One page, and how long it was.
pub(super) struct Page {
    pub(super) list: ListPage,
    pub(super) bytes: usize,
    /// Its place among the large pages, if it is one.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// Why there is no page and no watch.
#[derive(Debug)]
pub(super) enum FetchError {
    Unreachable(String),
    Refused(Arc<UpstreamResponse>),
    Unreadable(WireError),
    /// The page has more bytes than it may have.
    TooBig,
}

/// Asks for one page.
pub(super) async fn list(
    upstream: &Upstream,
    credential: &Credential,
    spec: &ViewSpec,
    parameters: &ListParameters,
    large: &Arc<Semaphore>,
) -> Result<Page, FetchError> {
    let mut query = selectors(spec);
    query.add("limit", &parameters.size.objects().to_string());
    if let Some(token) = &parameters.continue_token {
        query.add("continue", token);
    } else if let Some(version) = parameters.at {
        query.add("resourceVersion", &version.to_string());
        query.add("resourceVersionMatch", "Exact");
    }
    let request = request(spec, &query, spec.encoding().accept_list(), true)?;
    let limit = parameters.size.bytes();
    let exchange = async {
        let (parts, mut body) = send(upstream, credential, request).await?.into_parts();
        let mut place = None;
        let mut data = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| FetchError::Unreachable(chain(&error)))?;
            let Ok(more) = frame.into_data() else { continue };
            if data.len() + more.len() > limit {
                return Err(FetchError::TooBig);
            }
            if data.len() + more.len() > SMALL_PAGE && place.is_none() {
                place = large.clone().acquire_owned().await.ok();
            }
            data.extend_from_slice(&more);
        }
        let plain = decompress(&parts.headers, data.freeze(), limit).map_err(|error| match error {
            FetchError::Unreadable(WireError::TooLarge { .. }) => FetchError::TooBig,
            other => other,
        })?;
        Ok((plain, place))
    };
    let (body, place) = within(ANSWER_WITHIN, exchange).await.unwrap_or_else(|| Err(late()))?;
    let bytes = body.len();
    let list = split_list(spec.encoding(), &body).map_err(FetchError::Unreadable)?;
    Ok(Page { list, bytes, _place: place })
}

/// Starts a watch.
pub(super) async fn watch(
    upstream: &Upstream,
    credential: &Credential,
    spec: &ViewSpec,
    version: u64,
    jitter: f64,
) -> Result<ResponseBody, FetchError> {
    let mut query = selectors(spec);
    query.add("watch", "true");
    query.add("allowWatchBookmarks", "true");
    query.add("resourceVersion", &version.to_string());
    // Half an hour to an hour, so that the watches of a node do not end together.
    query.add("timeoutSeconds", &format!("{}", 1800 + (1800.0 * jitter) as u32));
    let request = request(spec, &query, spec.encoding().accept_watch(), false)?;
    let response = within(WATCH_WITHIN, send(upstream, credential, request)).await;
    Ok(response.unwrap_or_else(|| Err(late()))?.into_body())
}

pub(super) fn late() -> FetchError {
    FetchError::Unreachable("no answer in time".to_owned())
}

fn selectors(spec: &ViewSpec) -> QueryString {
    let mut query = QueryString::default();
    if !spec.label_selector().is_empty() {
        query.add("labelSelector", spec.label_selector());
    }
    if !spec.field_selector().is_empty() {
        query.add("fieldSelector", spec.field_selector());
    }
    query
}

fn request(
    spec: &ViewSpec,
    query: &QueryString,
    accept: &str,
    gzip: bool,
) -> Result<Request<RequestBody>, FetchError> {
    let uri = format!("{}?{}", spec.resource().path(spec.namespace()), query.as_str());
    let mut builder = Request::get(uri).header(ACCEPT, accept).header(USER_AGENT, AGENT);
    if gzip {
        builder = builder.header(ACCEPT_ENCODING, "gzip");
    }
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    builder.body(body).map_err(|error| FetchError::Unreachable(error.to_string()))
}

/// Sends; any status but success is an answer of its own.
pub(super) async fn send(
    upstream: &Upstream,
    credential: &Credential,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, FetchError> {
    let response = upstream
        .send(credential, request)
        .await
        .map_err(|error| FetchError::Unreachable(error.to_string()))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let code = response.status();
    let (headers, body) = collect(response, MAX_ERROR).await?;
    let body = decompress(&headers, body, MAX_ERROR)?;
    Err(FetchError::Refused(Arc::new(UpstreamResponse { code, headers: end_to_end(headers), body })))
}

/// Headers of an answer whose body was decoded.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [CONTENT_ENCODING, CONTENT_LENGTH, http::header::TRANSFER_ENCODING, http::header::CONNECTION]
    {
        headers.remove(name);
    }
    headers
}

pub(super) async fn collect(
    response: Response<ResponseBody>,
    limit: usize,
) -> Result<(HeaderMap, Bytes), FetchError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|error| FetchError::Unreachable(chain(&*error)))?;
    Ok((parts.headers, body.to_bytes()))
}

fn decompress(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, FetchError> {
    let malformed =
        |reason: String| FetchError::Unreadable(WireError::Malformed { what: "response body", reason });
    match headers.get(CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(body),
        Some(b"gzip") => {
            let mut plain = Vec::with_capacity((body.len() * 6).min(limit));
            let read = MultiGzDecoder::new(&*body).take(limit as u64 + 1).read_to_end(&mut plain);
            match read {
                Ok(size) if size > limit => {
                    Err(FetchError::Unreadable(WireError::TooLarge { what: "response body", size, limit }))
                }
                Ok(_) => Ok(plain.into()),
                Err(error) => Err(malformed(error.to_string())),
            }
        }
        Some(other) => {
            let kind = headers.get(CONTENT_TYPE);
            Err(malformed(format!("its encoding is {:?}, its type {kind:?}", String::from_utf8_lossy(other))))
        }
    }
}

/// At most `limit` for an answer.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_compressed_body_beyond_the_bound_is_refused() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![0; 100_000]).unwrap();
        let body = Bytes::from(encoder.finish().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(decompress(&headers, body.clone(), 100_000).unwrap().len(), 100_000);
        assert!(matches!(
            decompress(&headers, body.clone(), 99_999),
            Err(FetchError::Unreadable(WireError::TooLarge { .. }))
        ));
        assert!(decompress(&headers, body.slice(..body.len() / 2), 100_000).is_err());
    }
}
