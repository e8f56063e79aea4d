//! The way of one request through the hub, in one function: what is to be done is a [`plan`](mod@super::plan), which is
//! carried out here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::connection::Connection;
use super::metered::Metered;
use super::metrics::Source;
use super::plan::{Asked, Change, Facts, Forward, Observe, Plan, Shape, plan};
use super::respond::{self, Failure};
use super::{Body, Hub, forward, local, read};
use crate::caller::Permit;
use crate::offline::journal::{Claim, ObjectKey};
use crate::offline::leases::MAX_LEASE;
use crate::offline::{OfflineError, Row};
use crate::request::{RequestInfo, authorise};
use crate::upstream::{RequestBody, ResponseBody, UpstreamError};
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

/// Makes plans and carries them out until one of them leads to an answer.
async fn answer(
    hub: &Hub,
    permit: &Permit,
    parts: Parts,
    body: Incoming,
    info: RequestInfo,
) -> Result<(Source, Response<Body>), Failure> {
    let row = hub.offline.row(&info, &parts, permit);
    let asked = Asked { parts, info, row };
    let limit = if row == Row::OfflineLease && !hub.link.is_online() { MAX_LEASE } else { MAX_BODY };
    let needs_body = row.needs_body() || hub.views.own_node().is_status_write(&asked.info);
    let mut body = if needs_body { Sent::Whole(whole(body, limit).await?) } else { Sent::Stream(Some(body)) };
    if let Some(collection) = asked.info.collection.as_ref().filter(|_| !asked.info.upgrade) {
        read::begins(hub, permit, collection).await;
    }
    let mut facts = Facts { online: hub.link.is_online(), ..Facts::default() };
    let mut unanswered = None;
    loop {
        match plan(&asked, permit.is_node(), &hub.filters, facts) {
            Plan::Upgrade => {
                let response = forward::upgrade(hub, permit, asked.parts, body.take()).await?;
                return Ok((Source::Upstream, response));
            }
            Plan::View(collection) => match read::view(hub, permit, collection).await? {
                Some(response) => return Ok((Source::View, response)),
                None => facts = Facts { no_view: true, online: hub.link.is_online(), ..facts },
            },
            Plan::Forward(forward) => match ask(hub, permit, &asked, &forward, &mut body).await {
                Ok(response) => {
                    let response = relay(hub, permit, &asked, forward, response, body.bytes()).await?;
                    return Ok((Source::Upstream, response));
                }
                Err(error @ (UpstreamError::Unreachable(_) | UpstreamError::Broken(_))) => {
                    facts.unanswered = true;
                    unanswered = Some(error);
                }
                Err(error) => return Err(error.into()),
            },
            Plan::Local(change) => {
                let answered = local::answer(hub, permit, &asked, change.as_ref(), body.bytes()).await;
                return match (answered, unanswered) {
                    // The link may be up again already: then the reason says more.
                    (Err(Failure::Offline(OfflineError::Unavailable(_))), Some(error))
                        if hub.link.is_online() =>
                    {
                        Err(error.into())
                    }
                    (answered, _) => answered.map(|response| (Source::Offline, response)),
                };
            }
        }
    }
}

/// Asks the API server, after whoever replays older patches of the same object; returns when the head of its answer is
/// there.
async fn ask(
    hub: &Hub,
    permit: &Permit,
    asked: &Asked,
    forward: &Forward,
    body: &mut Sent,
) -> Result<Response<ResponseBody>, UpstreamError> {
    let older = forward.claim.as_ref().filter(|object| hub.offline.journal().has(object));
    // One of the replay at the same time could overtake it.
    let claimed = match older {
        Some(object) => claim(hub, object).await.map(|claim| (object, claim)),
        None => None,
    };
    let asked = asked.for_change(forward.change.as_ref());
    let own_node = hub.views.own_node();
    let sent = match body.bytes() {
        Some(bytes) if own_node.is_status_write(&asked.info) => {
            own_node.sent(&asked.parts, bytes, permit.is_node())
        }
        _ => None,
    };
    let (mut parts, mut body) = (Cow::Borrowed(&asked.parts), body);
    let mut other;
    if let Some(sent) = sent {
        parts.to_mut().headers.insert(CONTENT_LENGTH, sent.len().into());
        other = Sent::Whole(sent);
        body = &mut other;
    }
    let parts = &*parts;
    let response = match forward::send(hub, permit, parts, body.take()).await {
        Err(UpstreamError::Unreachable(_) | UpstreamError::Broken(_))
            if forward.twice && hub.link.is_online() =>
        {
            forward::send(hub, permit, parts, body.take()).await
        }
        outcome => outcome,
    };
    if let (Some((object, _)), Ok(response)) = (&claimed, &response)
        && response.status().is_success()
    {
        hub.offline.superseded(permit, object).await;
    }
    // The patch may have to be answered without the API server, which claims the object, too.
    drop(claimed);
    response
}

/// The API server's answer for the client.
async fn relay(
    hub: &Hub,
    permit: &Permit,
    asked: &Asked,
    forward: Forward,
    response: Response<ResponseBody>,
    body: Option<&Bytes>,
) -> Result<Response<Body>, Failure> {
    let asked = asked.for_change(forward.change.as_ref());
    let is_kept = match forward.observe {
        Observe::Nothing => false,
        Observe::UnlessFollowed => !is_followed(hub, permit, &asked.info),
        Observe::Always => true,
    };
    let observer = if is_kept {
        let tokens = hub.authenticator.tokens();
        hub.offline.observer(tokens, permit, &asked.info, asked.row, &asked.parts, body)
    } else {
        None
    };
    match forward.change {
        None => match hub.views.own_node().shape(&asked.info) {
            Some(shape) => forward::relay_own_node(hub, response, observer, shape).await,
            None => Ok(forward::relay(hub, response, observer)),
        },
        Some(Change { filter, of: Shape::Watch }) => Ok(forward::relay_filtered_watch(hub, response, filter)),
        Some(Change { filter, of: Shape::List }) => {
            forward::relay_filtered(hub, response, observer, |body| filter.list(body)).await
        }
        Some(Change { filter, of: Shape::Object }) => {
            forward::relay_filtered(hub, response, observer, |body| filter.single(body)).await
        }
    }
}

/// Whether a view that is followed has what this asks for, and will know it better: then nothing else has to remember
/// it.
fn is_followed(hub: &Hub, permit: &Permit, info: &RequestInfo) -> bool {
    if let Some(collection) = &info.collection {
        return read::is_followed(hub, permit, collection);
    }
    let Some(target) = info.resource() else { return false };
    let Some(name) = &target.name else { return false };
    let accept = info.accept.view_encodings();
    hub.offline.views().follows(permit, &target.resource, target.namespace.as_deref(), name, &accept)
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
