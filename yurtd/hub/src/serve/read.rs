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
use crate::offline::{Answer, OfflineError};
use crate::request::classify::{Collection, Freshness, Read, Watch};
use crate::store::StoreError;
use crate::upstream::jitter;
use crate::view::{
    self, Patience, Piece, Question, Since, View, ViewError, ViewSpec, WatchError, WatchOptions,
};
use crate::wire::Encoding;
use crate::wire::frame::encode_error;
use yurt_node::link::LinkState;

/// How long a list waits for a resourceVersion that the view has not reached, as the API server does.
const TOO_LARGE_WAIT: Duration = Duration::from_secs(3);
/// A watch without `timeoutSeconds` lasts a random time between this and twice this.
const WATCH_AT_LEAST: Duration = Duration::from_secs(30 * 60);
/// A watch lasts at most this long, whatever the client asks for.
const WATCH_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Nothing that a kubelet from before has ended is final to one that asks for the state of its pods: it hears so before
/// it is answered, whoever answers.
pub(crate) async fn begins(hub: &Hub, permit: &Permit, collection: &Collection) {
    if permit.is_node() && begins_anew(&collection.read) {
        for spec in &specs(permit, collection) {
            hub.offline.kubelet_begins(permit, spec).await;
        }
    }
}

/// Answers from a view; `None` when there is none, or it cannot be used.
pub(crate) async fn view(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
) -> Result<Option<Response<Body>>, Failure> {
    let specs = specs(permit, collection);
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
        Err(ViewError::NeverCached) => {
            best(hub, permit, collection, &specs, &collection.encodings).ok_or(ViewError::NeverCached)?
        }
        Err(error) => return Err(error.into()),
    };
    let read = match &collection.read {
        Read::List(freshness) => list(hub, permit, &view, *freshness).await,
        Read::Watch(watch) => self::watch(hub, permit, &view, watch).await,
    };
    match read {
        Err(Failure::Store(error) | Failure::Watch(WatchError::Store(error))) if hub.link.is_online() => {
            tracing::warn!(%error, view = %view.name(), "a view cannot be read; forwarding");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Whether the client asks for the state and not for what follows something that it knows.
fn begins_anew(read: &Read) -> bool {
    match read {
        Read::List(_) => true,
        Read::Watch(watch) => watch.send_initial_events.unwrap_or(watch.since.is_none()),
    }
}

async fn open(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
    spec: &ViewSpec,
) -> Result<Arc<View>, ViewError> {
    match &collection.read {
        Read::Watch(Watch { since: Some(since), send_initial_events, .. })
            if *send_initial_events != Some(true) =>
        {
            hub.views.open_at(permit, spec, *since).await
        }
        Read::Watch(_) => hub.views.open_watch(permit, spec).await,
        Read::List(_) => hub.views.open(permit, spec).await,
    }
}

/// The list as last known, in place of the API server: client-go lists this way after errors. `passed_by` is the list as
/// it passed by, if that was after some version: of it and a view that nobody has followed the newer one is it.
pub(crate) async fn last_known(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
    takes: &[Encoding],
    passed_by: impl Fn(u64) -> Result<Option<Answer>, OfflineError>,
) -> Result<Option<LastKnown>, Failure> {
    let Read::List(freshness) = collection.read else { return Ok(None) };
    let specs = specs(permit, collection);
    let wanted = match freshness {
        Freshness::NotOlderThan(wanted) => wanted,
        Freshness::Consistent | Freshness::Any => 0,
    };
    match best(hub, permit, collection, &specs, takes) {
        Some(view) => {
            // One that an older release has left is not fetched again.
            if specs.contains(view.spec()) {
                hub.views.resume(permit, &view);
            }
            let version = view.resource_version().max(wanted.saturating_sub(1));
            if !view.state().was_followed()
                && let Some(newer) = passed_by(version)?
            {
                return Ok(Some(LastKnown::Answer(newer)));
            }
            list(hub, permit, &view, freshness).await.map(LastKnown::Response).map(Some)
        }
        None if specs.iter().any(|spec| hub.views.is_refused(permit, spec)) => Err(ViewError::Refused.into()),
        None if wanted > 0 => {
            let answer = passed_by(wanted - 1)?.ok_or(ViewError::NeverCached)?;
            Ok(Some(LastKnown::Answer(answer)))
        }
        None => Ok(None),
    }
}

/// A list as last known.
pub(crate) enum LastKnown {
    /// Out of a view.
    Response(Response<Body>),
    /// As it passed by.
    Answer(Answer),
}

/// Whether a view that is followed has what this list asks for: then nothing else has to remember it.
pub(crate) fn is_followed(hub: &Hub, permit: &Permit, collection: &Collection) -> bool {
    newest(hub, permit, &specs(permit, collection)).is_some_and(|view| view.is_followed())
}

/// The views that would do, best first. What the hub changes for kubelet it keeps in JSON.
fn specs(permit: &Permit, collection: &Collection) -> Vec<ViewSpec> {
    let namespace = collection.namespace.as_deref();
    if permit.is_node()
        && collection.encodings.contains(&Encoding::Json)
        && json_for_kubelet(&collection.resource, namespace, &collection.field_selector)
    {
        return specs_in(collection, &[Encoding::Json]);
    }
    specs_in(collection, &collection.encodings)
}

fn specs_in(collection: &Collection, encodings: &[Encoding]) -> Vec<ViewSpec> {
    let of = |encoding: &Encoding| {
        ViewSpec::new(
            collection.resource.clone(),
            collection.namespace.as_deref(),
            &collection.label_selector,
            &collection.field_selector,
            *encoding,
        )
    };
    encodings.iter().map(of).collect()
}

/// The newest of these views. Without a link, when there is none, what an older release has left in an encoding that
/// kubelet takes as well: as the API server has it is better than nothing.
fn best(
    hub: &Hub,
    permit: &Permit,
    collection: &Collection,
    specs: &[ViewSpec],
    takes: &[Encoding],
) -> Option<Arc<View>> {
    newest(hub, permit, specs).or_else(|| {
        let older = !hub.link.is_online() && !specs.iter().any(|spec| hub.views.is_refused(permit, spec));
        older.then(|| newest(hub, permit, &specs_in(collection, takes))).flatten()
    })
}

/// Of these views that which knows most; of equal ones the first.
fn newest(hub: &Hub, permit: &Permit, specs: &[ViewSpec]) -> Option<Arc<View>> {
    let views = specs.iter().rev().filter_map(|spec| hub.views.find(permit, spec, Question::AsLastKnown));
    views.max_by_key(|view| (view.state().was_followed(), view.resource_version()))
}

async fn list(
    hub: &Hub,
    permit: &Permit,
    view: &Arc<View>,
    freshness: Freshness,
) -> Result<Response<Body>, Failure> {
    if let Freshness::NotOlderThan(wanted) = freshness {
        reached(view, wanted).await?;
    }
    list_now(hub, permit, view)
}

/// Waits until the view is not older than this.
async fn reached(view: &View, wanted: u64) -> Result<(), Failure> {
    let question = Question::NotOlderThan(wanted);
    if view.may_answer(question) || view.wait_for(wanted, Instant::now() + TOO_LARGE_WAIT).await {
        return Ok(());
    }
    Err(Failure::TooLarge { wanted, current: view.resource_version() })
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

async fn watch(
    hub: &Hub,
    permit: &Permit,
    view: &Arc<View>,
    watch: &Watch,
) -> Result<Response<Body>, Failure> {
    // The API server reads 0 as unset.
    let asked = watch.timeout_seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let lasts = asked.unwrap_or_else(random_watch).min(WATCH_AT_MOST);
    let initial_events = watch.send_initial_events == Some(true);
    if initial_events
        && let Some(wanted) = watch.since
        && let Err(too_large) = reached(view, wanted).await
    {
        // The state that ends with a bookmark must not be older than what the client has seen. The API server tells
        // that within the watch.
        let encoding = view.spec().encoding();
        let frame = encode_error(encoding, &respond::status_of(&too_large));
        return Ok(watch_response(encoding, respond::full(frame)));
    }
    let since = match (watch.since, watch.send_initial_events) {
        (Some(since), _) => Since::Exactly(since),
        (None, Some(false)) => Since::Exactly(view.resource_version()),
        (None, _) => Since::Any,
    };
    let options = WatchOptions {
        since,
        send_initial_events: initial_events,
        bookmarks: watch.bookmarks,
        ends_at: Instant::now() + lasts,
    };
    let mut frames = view.watch(options)?;
    let account = hub.accounts.of_permit(permit);
    let first = Arc::clone(&account);
    let first = async move { first.watch_reader_soon().await.map(|held| Box::new(held) as _) };
    let readers = Box::new(move || account.watch_reader().map(|held| Box::new(held) as _));
    frames.read_by(first, readers, options).await;
    let frames = Frames {
        frames,
        filter: FilterFor::of(hub, permit, view),
        stop: Box::pin(hub.stop.clone().cancelled_owned()),
        failed: false,
    };
    let body = Body::new(StreamBody::new(frames.map(|frame| frame.map(Frame::data))));
    Ok(watch_response(view.spec().encoding(), body))
}

fn watch_response(encoding: Encoding, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(encoding.watch_content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
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
                filters: hub.filters.clone(),
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

    /// Puts the events of a link that has come or gone into the queue, when the watcher has been sent exactly the state
    /// that they are made of.
    fn poll_transition(
        &mut self,
        frames: &view::WatchStream,
        context: &mut Context<'_>,
    ) -> Result<(), BoxError> {
        while let Poll::Ready(Some(_)) = self.changes.poll_next_unpin(context) {}
        let now = self.now().is_some();
        let touched = self.filters.for_kubelet(self.view.spec().resource(), true);
        if let Some(filter) = touched.filter(|filter| filter.depends_on_link() && now != self.shown)
            && let Some(list) = frames.state()?
        {
            self.events.extend(filter.transition(&list.body, now)?);
            self.shown = now;
        }
        Ok(())
    }
}

/// The frames of one watch, filtered, until the hub stops.
struct Frames {
    frames: view::WatchStream,
    filter: Option<FilterFor>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    failed: bool,
}

impl Frames {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        let Some(filter) = &mut self.filter else {
            return self.frames.poll_next_unpin(context).map(|frame| frame.map(Ok));
        };
        if let Some(event) = filter.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        match self.frames.poll_next_unpin(context) {
            Poll::Ready(Some(frame)) => {
                return Poll::Ready(Some(match filter.now() {
                    Some(filter) => filter.event(frame).map_err(Into::into),
                    None => Ok(frame),
                }));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if let Err(error) = filter.poll_transition(&self.frames, context) {
            return Poll::Ready(Some(Err(error)));
        }
        let Some(event) = filter.events.pop_front() else { return Poll::Pending };
        self.frames.went_back();
        Poll::Ready(Some(Ok(event)))
    }
}

impl Stream for Frames {
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
