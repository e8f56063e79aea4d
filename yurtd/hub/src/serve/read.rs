//! Lists and watches out of views.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::respond::{self, Failure};
use super::{Body, BoxError, Hub};
use crate::caller::Permit;
use crate::filter::{Filter, Filters, json_for_kubelet};
use crate::limits;
use crate::link::Link;
use crate::offline::Answer;
use crate::request::classify::{Collection, Freshness, Read, Watch};
use crate::store::StoreError;
use crate::upstream::jitter;
use crate::view::{Patience, Piece, Since, View, ViewError, ViewSpec, WatchOptions};
use crate::wire::Encoding;
use yurt_node::link::LinkState;

/// How long a list waits for a resourceVersion that the view has not reached, as the API server does.
const TOO_LARGE_WAIT: Duration = Duration::from_secs(3);
/// A watch without `timeoutSeconds` lasts a random time between this and twice this.
const WATCH_AT_LEAST: Duration = Duration::from_secs(30 * 60);
/// A watch lasts at most this long, whatever the client asks for.
const WATCH_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers from a view; `None` when the request has to be forwarded.
pub(crate) async fn collection(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
) -> Result<Option<Response<Body>>, Failure> {
    if collection.label_selector.len() + collection.field_selector.len() > limits::SELECTOR {
        return Ok(None);
    }
    let specs = specs(permit, collection);
    if collection.read == Read::List(Freshness::Consistent) {
        // As last known when it has to be: client-go lists this way after errors.
        let view = if hub.link.is_online() { None } else { find(hub, permit, &specs) };
        return view.map(|view| list_now(hub, permit, &view)).transpose();
    }
    let mut opened = Err(ViewError::NotAView);
    for spec in &specs {
        opened = open(hub, permit, collection, spec).await;
        // An aggregated API server may not speak every encoding.
        if !matches!(&opened, Err(ViewError::Upstream(status)) if matches!(status.code.as_u16(), 406 | 415)) {
            break;
        }
    }
    let view = match opened {
        Ok(view) => view,
        Err(ViewError::NotAView) => return Ok(None),
        // A cache that fails must not break what needs no cache.
        Err(ViewError::Store(error)) if hub.link.is_online() => {
            tracing::warn!(%error, "a view cannot be used; forwarding");
            return Ok(None);
        }
        // Another encoding of the same collection may be there.
        Err(ViewError::NeverCached) => find(hub, permit, &specs).ok_or(ViewError::NeverCached)?,
        Err(error) => return Err(error.into()),
    };
    match &collection.read {
        Read::List(freshness) => list(hub, permit, &view, *freshness).await.map(Some),
        Read::Watch(watch) => self::watch(hub, permit, &view, watch).map(Some),
    }
}

async fn open(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
    spec: &ViewSpec,
) -> Result<Arc<View>, ViewError> {
    match &collection.read {
        Read::Watch(Watch { since: Some(since), send_initial_events: false, .. }) => {
            hub.views.open_at(permit, spec, *since).await
        }
        Read::List(_) | Read::Watch(_) => hub.views.open(permit, spec).await,
    }
}

/// The list as last known, for a list that should have been forwarded and could not be.
pub(crate) fn last_known(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
) -> Result<Option<Response<Body>>, Failure> {
    let specs = specs(permit, collection);
    match (&collection.read, find(hub, permit, &specs)) {
        (Read::List(_), Some(view)) => list_now(hub, permit, &view).map(Some),
        (_, None) if specs.iter().any(|spec| hub.views.is_refused(permit, spec)) => {
            Err(ViewError::Refused.into())
        }
        _ => Ok(None),
    }
}

/// Whether a view has what this list asks for.
pub(crate) fn has_view(hub: &Hub, permit: &Permit, collection: &Collection) -> bool {
    find(hub, permit, &specs(permit, collection)).is_some()
}

/// The views that would do, best first. What the hub changes for kubelet it keeps in JSON.
fn specs(permit: &Permit, collection: &Collection) -> Vec<ViewSpec> {
    let namespace = collection.namespace.as_deref();
    let mut encodings = collection.encodings.clone();
    if permit.is_node()
        && encodings.contains(&Encoding::Json)
        && json_for_kubelet(&collection.resource, namespace, &collection.field_selector)
    {
        encodings = vec![Encoding::Json];
    }
    encodings
        .into_iter()
        .map(|encoding| {
            ViewSpec::new(
                collection.resource.clone(),
                namespace,
                &collection.label_selector,
                &collection.field_selector,
                encoding,
            )
        })
        .collect()
}

fn find(hub: &Hub, permit: &Permit, specs: &[ViewSpec]) -> Option<Arc<View>> {
    specs.iter().find_map(|spec| hub.views.find(permit, spec))
}

async fn list(
    hub: &Hub,
    permit: &Permit,
    view: &Arc<View>,
    freshness: Freshness,
) -> Result<Response<Body>, Failure> {
    if let Freshness::NotOlderThan(wanted) = freshness
        && !view.wait_for(wanted, Instant::now() + TOO_LARGE_WAIT).await
    {
        return Err(Failure::TooLarge { wanted, current: view.resource_version() });
    }
    list_now(hub, permit, view)
}

fn list_now(hub: &Hub, permit: &Permit, view: &Arc<View>) -> Result<Response<Body>, Failure> {
    if let Some(filter) = FilterFor::of(hub, permit, view).and_then(|filter| filter.now()) {
        let list = view.list()?;
        let body = filter.list(list.body)?;
        return Ok(respond::answer(Answer::new(StatusCode::OK, list.content_type, body)));
    }
    let account = hub.accounts.of_permit(permit);
    let list = view.list_if(|bytes| account.list(bytes).map(|held| Box::new(held) as _))?;
    if let Some(list) = list {
        return Ok(respond::answer(Answer::new(StatusCode::OK, list.content_type, list.body)));
    }
    // No room for all of it at a time.
    let room = account.reader().ok_or(Failure::Busy)?;
    let patience = Patience { piece: limits::STALLED, all: limits::LIST_WITHIN };
    let pieces = view.list_in_pieces(Box::new(room), limits::PIECE, patience);
    Ok(respond::pieces(view.spec().encoding().content_type(), whole(pieces)))
}

/// The pieces of a list, and an error where they break off.
fn whole(
    pieces: mpsc::Receiver<Result<Piece, StoreError>>,
) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static {
    futures::stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Ok(Piece::Bytes(piece))) => Some((Ok(Frame::data(piece)), Some(pieces))),
            Some(Ok(Piece::End)) => None,
            Some(Err(error)) => Some((Err(error.into()), None)),
            None => Some((Err("the list was not taken in time".into()), None)),
        }
    })
}

fn watch(hub: &Hub, permit: &Permit, view: &Arc<View>, watch: &Watch) -> Result<Response<Body>, Failure> {
    // The API server reads 0 as unset.
    let asked = watch.timeout_seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let lasts = asked.unwrap_or_else(random_watch).min(WATCH_AT_MOST);
    let options = WatchOptions {
        since: watch.since.map_or(Since::Any, Since::Exactly),
        send_initial_events: watch.send_initial_events,
        bookmarks: watch.bookmarks,
        ends_at: Instant::now() + lasts,
    };
    let frames = Frames {
        frames: view.watch(options)?,
        filter: FilterFor::of(hub, permit, view),
        stop: Box::pin(hub.stop.clone().cancelled_owned()),
        failed: false,
    };
    let content_type = view.spec().encoding().watch_content_type();
    let mut response = Response::new(Body::new(StreamBody::new(frames.map(|frame| frame.map(Frame::data)))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// Between half an hour and an hour, so that the clients of a hub do not all come back at once.
fn random_watch() -> Duration {
    WATCH_AT_LEAST + WATCH_AT_LEAST.mul_f64(jitter())
}

/// The filter of one of kubelet's views.
struct FilterFor {
    filters: Filters,
    view: Arc<View>,
    link: Link,
    /// Turns when the link comes or goes.
    changes: WatchStream<LinkState>,
    /// Whether the watcher has seen the objects with the filter, for one that depends on the link.
    shown: bool,
    /// What it has to see because the link has come or gone.
    events: VecDeque<Bytes>,
}

impl FilterFor {
    /// `None` when no filter can ever touch the objects of this view.
    fn of(hub: &Hub, permit: &Permit, view: &Arc<View>) -> Option<Self> {
        let json = view.spec().encoding() == Encoding::Json;
        let any = hub.filters.for_kubelet(view.spec().resource(), true).is_some();
        (permit.is_node() && json && any).then(|| {
            let mut filter = Self {
                filters: hub.filters,
                view: view.clone(),
                link: hub.link.clone(),
                changes: WatchStream::from_changes(hub.link.subscribe()),
                shown: false,
                events: VecDeque::new(),
            };
            filter.shown = filter.now().is_some();
            filter
        })
    }

    /// The filter as things are.
    fn now(&self) -> Option<Filter> {
        self.filters.for_kubelet(self.view.spec().resource(), !self.link.is_online())
    }

    /// Puts the events of a link that has come or gone into the queue.
    fn poll_transition(&mut self, context: &mut Context<'_>) -> Result<(), BoxError> {
        while let Poll::Ready(Some(_)) = self.changes.poll_next_unpin(context) {
            let now = self.now().is_some();
            let touched = self.filters.for_kubelet(self.view.spec().resource(), true);
            if let Some(filter) = touched.filter(|filter| filter.depends_on_link() && now != self.shown) {
                self.events.extend(filter.transition(&self.view.list()?.body, now)?);
                self.shown = now;
            }
        }
        Ok(())
    }
}

/// The frames of one watch, filtered, until the hub stops.
struct Frames<S> {
    frames: S,
    filter: Option<FilterFor>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    failed: bool,
}

impl<S: Stream<Item = Bytes> + Unpin> Frames<S> {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        let Some(filter) = &mut self.filter else {
            return self.frames.poll_next_unpin(context).map(|frame| frame.map(Ok));
        };
        if let Err(error) = filter.poll_transition(context) {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(event) = filter.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        let Some(frame) = std::task::ready!(self.frames.poll_next_unpin(context)) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match filter.now() {
            Some(filter) => filter.event(frame).map_err(Into::into),
            None => Ok(frame),
        }))
    }
}

impl<S: Stream<Item = Bytes> + Unpin> Stream for Frames<S> {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed || self.stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(self.poll_frame(context));
        if let Some(Err(error)) = &frame {
            tracing::error!(%error, "a watch ends: its events cannot be filtered");
            self.failed = true;
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_without_a_timeout_last_half_an_hour_to_an_hour() {
        for _ in 0..100 {
            let lasts = random_watch();
            assert!((WATCH_AT_LEAST..=2 * WATCH_AT_LEAST).contains(&lasts), "{lasts:?}");
        }
    }
}
