//! The way of one request through the hub, in one function.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::connection::Connection;
use super::metered::Metered;
use super::metrics::Source;
use super::read::{self, LastKnown};
use super::respond::{self, Failure};
use super::{Body, Hub, forward};
use crate::caller::Permit;
use crate::filter::Filter;
use crate::offline::journal::{Claim, ObjectKey};
use crate::offline::leases::MAX_LEASE;
use crate::offline::{Answer, OfflineError, Row};
use crate::request::accept::Accept;
use crate::request::classify::Verb;
use crate::request::{RequestInfo, authorise};
use crate::upstream::{RequestBody, UpstreamError};
use crate::wire::Encoding;
use yurt_node::link::LinkState;

/// Bound of a request body that the hub has to know; the API server takes no more either.
const MAX_BODY: usize = 3 << 20;
/// How long a request waits at the start of the process until it is known whether there is a link: a little longer than
/// the first round of attempts.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a status patch waits for the replay of older ones.
const CLAIM: Duration = Duration::from_secs(5);

/// Answers a request; what goes wrong becomes a Status.
pub(crate) async fn handle(
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let info = RequestInfo::of(&parts);
    let encoding = info.accept.status_encoding();
    tracing::trace!(method = %parts.method, uri = %parts.uri, "request");
    let answered = async {
        // Just started: what the store has may be days old, and the API server a round trip away. Whoever had a
        // connection to the process before comes right now. Without a link that is known as soon, at a reboot at once.
        if hub.link.settled(SETTLE).await == LinkState::Online {
            hub.cluster.settled(SETTLE).await;
        }
        let caller =
            hub.authenticator.authenticate(&connection.peer, connection.from, &parts.headers).await?;
        let flow = connection.admit(&hub.accounts, &caller)?;
        let permit = authorise(caller);
        let (source, answer) = match answer(&hub, &permit, parts, body, info).await {
            Ok(answered) => answered,
            Err(failure) => (Source::None, respond::failure(failure, encoding)),
        };
        Ok((source, answer.map(|body| Body::new(Metered::new(body, flow)))))
    };
    let (source, response) =
        answered.await.unwrap_or_else(|failure| (Source::None, respond::failure(failure, encoding)));
    hub.metrics.answered(source, response.status());
    response
}

async fn answer(
    hub: &Hub,
    permit: &Permit,
    mut parts: Parts,
    body: Incoming,
    mut info: RequestInfo,
) -> Result<(Source, Response<Body>), Failure> {
    let upstream = |response| (Source::Upstream, response);
    let without_link = |response| (Source::Offline, response);
    if info.upgrade {
        return forward::upgrade(hub, permit, parts, body).await.map(upstream);
    }
    if let Some(collection) = &info.collection
        && let Some(response) = read::collection(hub, permit, collection).await?
    {
        return Ok((Source::View, response));
    }

    let takes = info.accept.view_encodings();
    let filter = filter_of_forwarded(hub, permit, &info, &parts.method);
    if filter.is_some() {
        // What the hub is to change it has to read. It crosses the uplink compressed all the same.
        parts.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        info.accept = Accept::from_headers(&parts.headers);
    }
    let row = hub.offline.row(&info, &parts, permit);
    let limit = if row == Row::OfflineLease { MAX_LEASE } else { MAX_BODY };
    let mut body =
        if row.needs_body() { Sent::Whole(whole(body, limit).await?) } else { Sent::Stream(Some(body)) };
    if !hub.link.is_online() {
        return offline(hub, permit, &info, row, &parts, &body, &takes).await.map(without_link);
    }
    // One of the replay at the same time could overtake it.
    let patched = if row == Row::PatchStatus { patched_object(hub, &info) } else { None };
    let claim = match &patched {
        Some(object) => claim(hub, object).await,
        None => None,
    };
    let response = exchange(hub, permit, &parts, &mut body).await;
    if let (Some(object), Some(_), Ok(response)) = (&patched, &claim, &response)
        && response.status().is_success()
    {
        hub.offline.superseded(permit, object).await;
    }
    // The patch may have to be answered without the API server, which claims the object, too.
    drop(claim);
    match response {
        Ok(response) => {
            let known = info.collection.as_ref().is_some_and(|list| read::is_followed(hub, permit, list));
            let tokens = hub.authenticator.tokens();
            let observer = if known {
                None
            } else {
                hub.offline.observer(tokens, permit, &info, row, &parts, body.bytes())
            };
            match filter {
                Some(filter) if info.resource().is_some_and(|target| target.verb == Verb::Watch) => {
                    Ok(upstream(forward::relay_filtered_watch(hub, response, filter)))
                }
                Some(filter) => {
                    let filter =
                        |body| if row == Row::Object { filter.single(body) } else { filter.list(body) };
                    forward::relay_filtered(hub, response, observer, filter).await.map(upstream)
                }
                None => Ok(upstream(forward::relay(hub, response, observer))),
            }
        }
        Err(error @ (UpstreamError::Unreachable(_) | UpstreamError::Broken(_))) => {
            match offline(hub, permit, &info, row, &parts, &body, &takes).await {
                // The link may be up again already: then the reason says more.
                Err(Failure::Offline(OfflineError::Unavailable(_))) if hub.link.is_online() => {
                    Err(error.into())
                }
                other => other.map(without_link),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Sends the request; a read that breaks off while the link is up is tried once more.
async fn exchange(
    hub: &Hub,
    permit: &Permit,
    parts: &Parts,
    body: &mut Sent,
) -> Result<Response<crate::upstream::ResponseBody>, UpstreamError> {
    match forward::send(hub, permit, parts, body.take()).await {
        Err(UpstreamError::Unreachable(_) | UpstreamError::Broken(_))
            if matches!(parts.method, Method::GET | Method::HEAD) && hub.link.is_online() =>
        {
            forward::send(hub, permit, parts, body.take()).await
        }
        outcome => outcome,
    }
}

/// `takes`: the encodings that the client takes, whatever the API server would be asked for.
async fn offline(
    hub: &Hub,
    permit: &Permit,
    info: &RequestInfo,
    row: Row,
    parts: &Parts,
    body: &Sent,
    takes: &[Encoding],
) -> Result<Response<Body>, Failure> {
    let info = &info.without_api_server(parts);
    if let Some(collection) = &info.collection {
        let passed_by = |version| hub.offline.newer_list(permit, info, parts, version);
        match read::last_known(hub, permit, collection, takes, passed_by).await? {
            Some(LastKnown::Response(response)) => return Ok(response),
            Some(LastKnown::Answer(answer)) => {
                return Ok(respond::answer(filtered(hub, permit, info, Row::List, answer)?));
            }
            None => {}
        }
    }
    let answer = hub.offline.answer(permit, info, row, parts, body.bytes()).await?;
    Ok(respond::answer(filtered(hub, permit, info, row, answer)?))
}

/// The filter for a GET, list or watch of kubelet's that the API server answers; nothing when kubelet would not take JSON.
fn filter_of_forwarded(hub: &Hub, permit: &Permit, info: &RequestInfo, method: &Method) -> Option<Filter> {
    let target = info.resource()?;
    let read = *method == Method::GET
        && matches!(target.verb, Verb::Get | Verb::List | Verb::Watch)
        && target.subresource.is_none();
    let filterable = permit.is_node()
        && read
        && !info.impersonates
        && info.accept.view_encodings().contains(&Encoding::Json);
    if !filterable {
        return None;
    }
    hub.filters.for_forwarded(&target.resource, target.namespace.as_deref(), target.name.as_deref())
}

/// What kubelet is answered without the API server, changed like what it reads from views.
fn filtered(
    hub: &Hub,
    permit: &Permit,
    info: &RequestInfo,
    row: Row,
    answer: Answer,
) -> Result<Answer, Failure> {
    let Some(target) = info.resource() else { return Ok(answer) };
    let json = answer.content_type.starts_with("application/json") && answer.content_encoding.is_none();
    if !permit.is_node() || !json {
        return Ok(answer);
    }
    let Some(filter) = hub.filters.for_kubelet(&target.resource, !hub.link.is_online()) else {
        return Ok(answer);
    };
    let body = match row {
        Row::Object => filter.single(answer.body)?,
        Row::List => filter.list(answer.body)?,
        _ => return Ok(answer),
    };
    Ok(Answer { body, ..answer })
}

/// The object of a status patch that has older ones in the journal.
fn patched_object(hub: &Hub, info: &RequestInfo) -> Option<ObjectKey> {
    let target = info.resource()?;
    let object = ObjectKey {
        plural: target.resource.plural.clone(),
        namespace: target.namespace.clone(),
        name: target.name.clone().unwrap_or_default(),
    };
    hub.offline.journal().has(&object).then_some(object)
}

/// Waits while the object is being replayed right now, and keeps it from being replayed. Nothing if that takes too
/// long: kubelet compares and patches again, late is better than never.
async fn claim<'h>(hub: &'h Hub, object: &ObjectKey) -> Option<Claim<'h>> {
    let claim = tokio::time::timeout(CLAIM, hub.offline.journal().claim(object)).await;
    if claim.is_err() {
        tracing::warn!(
            path = object.status_path(),
            "a status patch overtakes those from the time without a link"
        );
    }
    claim.ok()
}

/// The body of the client's request.
enum Sent {
    /// Known as a whole: it can be sent again, and answered without the API server.
    Whole(Bytes),
    /// Passed through; `None` when it has been.
    Stream(Option<Incoming>),
}

impl Sent {
    fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Stream(_) => None,
        }
    }

    fn take(&mut self) -> RequestBody {
        let whole = |bytes| RequestBody::new(Full::new(bytes).map_err(|never| match never {}));
        match self {
            Self::Whole(bytes) => whole(bytes.clone()),
            Self::Stream(stream) => match stream.take() {
                Some(stream) => RequestBody::new(stream.map_err(Into::into)),
                None => whole(Bytes::new()),
            },
        }
    }
}

async fn whole(body: Incoming, limit: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::BodyTooLarge { limit }),
        Err(error) => Err(Failure::Body(error.to_string())),
    }
}
