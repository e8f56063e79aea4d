//! Requests that the API server answers: forwarded as they are, both bodies streamed, hop-by-hop headers left out.

use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, SizeHint};
use hyper_util::rt::TokioIo;

use super::respond::Failure;
use super::{Body, BoxError, Hub};
use crate::caller::Permit;
use crate::filter::{Filter, FilterError};
use crate::limits::Collected;
use crate::offline::observe::Observer;
use crate::own_node::Shape;
use crate::upstream::{self, RequestBody, UpstreamError};
use crate::wire::{Encoding, FrameDecoder};
use yurt_node::link::LinkState;

/// Bound of an answer that the hub changes. A list of ten thousand Services in JSON is half of it.
const MAX_FILTERED: usize = 48 << 20;
/// An answer up to that is looked at in passing: most often it is the same as before. To look at a longer one takes a
/// while, for which the client does not wait.
const SMALL: usize = 16 << 10;
const JSON: &[u8] = b"application/json";

/// Sends a request upstream; returns when the head of the response is there, or as soon as the link is lost.
pub(crate) async fn send(
    hub: &Hub,
    permit: &Permit,
    parts: &Parts,
    body: RequestBody,
) -> Result<Response<upstream::ResponseBody>, UpstreamError> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = end_to_end(&parts.headers);
    let share = hub.upstream.share(permit.identity(), permit.credential())?;
    Ok(hub.upstream.send(permit.credential(), request).await?.map(|body| body.holding(share)))
}

/// The response for the local client; the observer gets the whole of it once it has passed.
pub(crate) fn relay(
    hub: &Hub,
    response: Response<upstream::ResponseBody>,
    observer: Option<Observer>,
) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let headers = end_to_end(&parts.headers);
    let body = match observer {
        Some(observer) if observer.refutes(parts.status) => {
            hub.tasks.passing(observer.forget(parts.status));
            Body::new(body.map_err(Into::into))
        }
        Some(observer) if observer.wants(parts.status) => {
            let (limit, seen, tasks) = (observer.limit(), headers.clone(), hub.tasks.clone());
            let done = Box::new(move |whole: Bytes| {
                if whole.len() <= SMALL {
                    tasks.at_once(observer.seen(seen, whole));
                } else {
                    tasks.passing(observer.seen(seen, whole));
                }
            });
            let kept = Some((hub.observed.collect(), done as Done));
            Body::new(Tee { inner: body, kept, limit })
        }
        _ => Body::new(body.map_err(Into::into)),
    };
    let mut relayed = Response::new(body);
    *relayed.status_mut() = parts.status;
    *relayed.headers_mut() = headers;
    relayed
}

/// The same for an answer that the hub changes: it has to be there as a whole. The observer gets it as it was.
pub(crate) async fn relay_filtered(
    hub: &Hub,
    response: Response<upstream::ResponseBody>,
    observer: Option<Observer>,
    filter: impl FnOnce(Bytes) -> Result<Bytes, FilterError>,
) -> Result<Response<Body>, Failure> {
    let json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(JSON));
    let readable = matches!(
        response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes),
        None | Some(b"identity" | b"gzip")
    );
    if response.status() != StatusCode::OK || !json || !readable {
        return Ok(relay(hub, response, observer));
    }
    let (headers, body) = whole(hub, response).await?;
    if let Some(observer) = observer.filter(|observer| body.len() <= observer.limit()) {
        hub.tasks.passing(observer.seen(headers.clone(), body.clone()));
    }
    let mut relayed = Response::new(super::respond::full(filter(body)?));
    *relayed.headers_mut() = headers;
    Ok(relayed)
}

/// An answer's headers and all of its body, without its compression.
async fn whole(
    hub: &Hub,
    response: Response<upstream::ResponseBody>,
) -> Result<(HeaderMap, Bytes), UpstreamError> {
    let (parts, body) = response.into_parts();
    let broken = |reason: String| UpstreamError::Broken(reason);
    let mut link = hub.link.subscribe();
    let body = tokio::select! {
        body = Limited::new(body, MAX_FILTERED).collect() => body,
        _ = link.wait_for(|state| *state == LinkState::Offline) => {
            return Err(broken("the link went down under the answer".to_owned()));
        }
    };
    let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
    let body = unpack(&parts.headers, body, MAX_FILTERED).map_err(broken)?;
    let mut headers = end_to_end(&parts.headers);
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    Ok((headers, body))
}

/// An answer about the node's own Node, as it is seen here. The observer gets that, too.
pub(crate) async fn relay_own_node(
    hub: &Hub,
    response: Response<upstream::ResponseBody>,
    observer: Option<Observer>,
    shape: Shape,
) -> Result<Response<Body>, Failure> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let kind = text(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    let encoding =
        [Encoding::Json, Encoding::Protobuf].into_iter().find(|encoding| encoding.content_type() == kind);
    let packed = text(CONTENT_ENCODING).is_some_and(|packed| packed != "identity");
    let readable = !packed || (shape != Shape::Watch && text(CONTENT_ENCODING) == Some("gzip"));
    let Some(encoding) = encoding.filter(|_| readable && response.status() == StatusCode::OK) else {
        return Ok(relay(hub, response, observer));
    };
    let own_node = hub.views.own_node().clone();
    if shape == Shape::Watch {
        let change = move |event: Bytes| {
            let changed = own_node.seen_of(Shape::Watch, encoding, &event);
            Ok(changed.unwrap_or_else(|| framed(encoding, event)))
        };
        return Ok(relay_changed_watch(response, encoding, change));
    }
    let (headers, body) = whole(hub, response).await?;
    let body = own_node.seen_of(shape, encoding, &body).unwrap_or(body);
    if let Some(observer) = observer.filter(|observer| body.len() <= observer.limit()) {
        hub.tasks.passing(observer.seen(headers.clone(), body.clone()));
    }
    let mut relayed = Response::new(super::respond::full(body));
    *relayed.headers_mut() = headers;
    Ok(relayed)
}

/// A frame as it is on the wire.
fn framed(encoding: Encoding, frame: Bytes) -> Bytes {
    if encoding.is_protobuf() {
        let length = u32::try_from(frame.len()).unwrap_or_default().to_be_bytes();
        return [&length[..], &frame[..]].concat().into();
    }
    if frame.ends_with(b"\n") { frame } else { [&frame[..], b"\n"].concat().into() }
}

/// A body without its compression, if it has no more than `limit` bytes then.
fn unpack(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, String> {
    if headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding != "gzip") {
        return Ok(body);
    }
    let mut plain = Vec::new();
    let read = MultiGzDecoder::new(&*body).take(limit as u64 + 1).read_to_end(&mut plain);
    match read {
        Ok(length) if length > limit => Err(format!("the answer has more than {limit} bytes")),
        Ok(_) => Ok(plain.into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The same for a watch, event by event.
pub(crate) fn relay_filtered_watch(
    hub: &Hub,
    response: Response<upstream::ResponseBody>,
    filter: Filter,
) -> Response<Body> {
    let json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(JSON));
    let plain = response.headers().get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
    if response.status() != StatusCode::OK || !json || !plain {
        return relay(hub, response, None);
    }
    let change = move |event: Bytes| {
        filter.event(event).map(|event| framed(Encoding::Json, event)).map_err(BoxError::from)
    };
    relay_changed_watch(response, Encoding::Json, change)
}

/// A watch whose frames are changed one by one.
fn relay_changed_watch(
    response: Response<upstream::ResponseBody>,
    encoding: Encoding,
    change: impl FnMut(Bytes) -> Result<Bytes, BoxError> + Send + 'static,
) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let watch = ChangedWatch { body, frames: FrameDecoder::new(encoding), change };
    let events = futures::stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        let event = watch.next().await?;
        let next = if event.is_ok() { Some(watch) } else { None };
        Some((event.map(Frame::data), next))
    });
    let mut relayed = Response::new(Body::new(StreamBody::new(events)));
    *relayed.headers_mut() = end_to_end(&parts.headers);
    relayed.headers_mut().remove(CONTENT_LENGTH);
    relayed
}

struct ChangedWatch<F> {
    body: upstream::ResponseBody,
    frames: FrameDecoder,
    change: F,
}

impl<F: FnMut(Bytes) -> Result<Bytes, BoxError>> ChangedWatch<F> {
    /// The next frame.
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            match self.frames.next_frame() {
                Ok(Some(event)) => return Some((self.change)(event)),
                Ok(None) => {}
                Err(error) => return Some(Err(error.into())),
            }
            match self.body.frame().await? {
                Ok(frame) => self.frames.push(&frame.into_data().unwrap_or_default()),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

/// Forwards an upgrade (exec, attach, port-forward in SPDY or WebSocket) and then copies both ways until one side ends.
pub(crate) async fn upgrade(
    hub: &Hub,
    permit: &Permit,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, Failure> {
    let protocol = parts.headers.get(UPGRADE).cloned().ok_or(Failure::Upgrade)?;
    let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>().ok_or(Failure::Upgrade)?;
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = upgrading(&parts.headers, protocol);
    let share = hub.upstream.share(permit.identity(), permit.credential())?;
    let mut link = hub.link.subscribe();
    let mut response = tokio::select! {
        response = hub.upstream.upgrade(permit.credential(), request) => response?,
        _ = link.wait_for(|state| *state == LinkState::Offline) => {
            return Err(UpstreamError::Broken("the link went down under the request".into()).into());
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        let mut relayed = Response::new(Body::new(body.map_err(Into::into)));
        *relayed.status_mut() = parts.status;
        *relayed.headers_mut() = end_to_end(&parts.headers);
        return Ok(relayed);
    }
    let protocol = response.headers().get(UPGRADE).cloned().ok_or(Failure::Upgrade)?;
    let server = hyper::upgrade::on(&mut response);
    let stop = hub.stop.clone();
    hub.tasks.passing(async move {
        let _share = share;
        let copy = async {
            let (client, server) = tokio::try_join!(client, server)?;
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            Ok::<_, BoxError>(())
        };
        tokio::select! {
            () = stop.cancelled() => {}
            outcome = copy => if let Err(error) = outcome {
                tracing::debug!(%error, "an upgraded connection ended with an error");
            },
        }
    });
    let mut relayed = Response::new(super::respond::full(Bytes::new()));
    *relayed.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *relayed.headers_mut() = upgrading(response.headers(), protocol);
    Ok(relayed)
}

/// Headers that concern one connection (RFC 9110 §7.6.1), those that upstream sets itself, and `Expect`, which the
/// hub has already answered.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    UPGRADE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    EXPECT,
    HOST,
    AUTHORIZATION,
];

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        kept.remove(name);
    }
    kept.remove("keep-alive");
    kept.remove("proxy-connection");
    kept
}

fn upgrading(headers: &HeaderMap, protocol: HeaderValue) -> HeaderMap {
    let mut kept = end_to_end(headers);
    kept.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    kept.insert(UPGRADE, protocol);
    kept
}

type Done = Box<dyn FnOnce(Bytes) + Send>;

/// A body that passes through and is handed on as a whole at its end, unless it is longer than `limit` or breaks off.
struct Tee<B> {
    inner: B,
    /// The copy so far, and whose it is.
    kept: Option<(Collected, Done)>,
    limit: usize,
}

impl<B> Tee<B> {
    fn finish(&mut self) {
        if let Some((kept, done)) = self.kept.take() {
            done(kept.finish());
        }
    }
}

impl<B> hyper::body::Body for Tee<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let limit = self.limit;
                if let Some(data) = frame.data_ref()
                    && let Some((kept, _)) = &mut self.kept
                    && !kept.push(data, limit)
                {
                    self.kept = None;
                }
                // A server that knows this was the last frame does not ask for another.
                if self.inner.is_end_stream() {
                    self.finish();
                }
            }
            Some(Err(_)) => self.kept = None,
            None => self.finish(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // An empty body is never polled: it has to be, for its end to be seen.
        self.inner.is_end_stream() && self.kept.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::{Full, StreamBody};

    use super::*;
    use crate::limits::Observed;

    fn tee<B>(inner: B, limit: usize) -> (Tee<B>, Arc<Mutex<Option<Bytes>>>) {
        let seen = Arc::new(Mutex::new(None));
        let slot = seen.clone();
        let done: Done = Box::new(move |whole| *slot.lock().unwrap() = Some(whole));
        (Tee { inner, kept: Some((Observed::default().collect(), done)), limit }, seen)
    }

    #[tokio::test]
    async fn a_whole_body_is_handed_on() {
        let (body, seen) = tee(Full::new(Bytes::from_static(b"hello")), 5);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(seen.lock().unwrap().as_deref(), Some(&b"hello"[..]));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_passes_and_is_not_kept() {
        let (body, seen) = tee(Full::new(Bytes::from_static(b"hello!")), 5);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello!");
        assert_eq!(*seen.lock().unwrap(), None);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_kept() {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> =
            vec![Ok(Frame::data(Bytes::from_static(b"hel"))), Err("reset".into())];
        let (body, seen) = tee(StreamBody::new(futures::stream::iter(frames)), 5);
        assert!(body.collect().await.is_err());
        assert_eq!(*seen.lock().unwrap(), None);
    }

    #[test]
    fn headers_of_one_connection_stay_on_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer t"),
            ("host", "127.0.0.1:10261"),
            ("impersonate-user", "alice"),
            ("accept", "application/json"),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        let mut kept: Vec<_> = end_to_end(&headers).keys().map(ToString::to_string).collect();
        kept.sort();
        assert_eq!(kept, ["accept", "impersonate-user"]);
        let upgrade = upgrading(&headers, HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(upgrade["connection"], "Upgrade");
        assert_eq!(upgrade["upgrade"], "SPDY/3.1");
    }
}
