//! Answers while the link is down: the truth as last known, or an honest error. Never a success for something that
//! did not happen, unless the hub has made it durable and will replay it.
//!
//! [`row`] says which rule a request falls under (pure), this module has it carried out:
//!
//! | row | answer |
//! |---|---|
//! | POST nodes | 409 when the Node is known |
//! | GET of an object | [`object`]: from views and the last answer seen, whichever is newest; 404 where a view proves it |
//! | PATCH of a status | [`status_patch`]: applied to the stored object, in the [`journal`], replayed by [`rebase`] |
//! | the node's Lease | [`lease`] |
//! | the Lease of a leader election on this node that asked for it | [`leases`] |
//! | TokenRequest of kubelet | the stored real reply: [`token_request`] |
//! | PUT or PATCH that changes nothing of the CSINode | 200 |
//! | POST of an Event by kubelet | queued: [`events`]; a PATCH of one is 404, upon which kubelet posts it |
//! | lists that no view knows better, discovery | the last answer seen: [`remember`] |
//! | everything else | 503, without `Retry-After` (client-go would sleep and try ten times) |
//!
//! [`overlay`] shows the node's own pods in EndpointSlices as they are here.
//!
//! While the link is up the module watches what passes by ([`Offline::observer`]) and keeps what it will need.

pub(crate) mod answer;
pub(crate) mod change;
pub(crate) mod discovery;
mod error;
pub(crate) mod events;
pub(crate) mod journal;
pub(crate) mod lease;
pub(crate) mod leases;
mod object;
pub(crate) mod observe;
pub(crate) mod overlay;
pub(crate) mod patch;
pub(crate) mod prewarm;
pub(crate) mod rebase;
pub(crate) mod remember;
mod renewal;
pub(crate) mod row;
mod status_patch;
pub(crate) mod strategic;
pub(crate) mod token_request;
mod write_back;

use std::sync::{Mutex, Weak};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use tokio_util::sync::CancellationToken;

pub(crate) use answer::Answer;
pub(crate) use error::OfflineError;
pub(crate) use row::Row;
pub(crate) use token_request::Request as TokenRequest;

use crate::caller::Permit;
use crate::limits::{ANSWERS, DISCOVERY};
use crate::link::Link;
use crate::replica::Views;
use crate::replica::needs::NodePods;
use crate::request::RequestInfo;
use crate::request::classify::{ResourceTarget, Target};
use crate::store::{Bucket, Store};
use crate::view::{Question, ViewSpec};
use crate::wire::Resource;
use events::EventQueue;
use journal::{Journal, ObjectKey};
use lease::NodeLease;
use leases::OfflineLeases;
use remember::{Key, Owner, Remembered};
use token_request::{Replies, TokenError, is_protobuf};

/// Query parameters that do not change what is asked for.
const IGNORED_PARAMETERS: [&str; 3] = ["timeout", "resourceVersion", "timeoutSeconds"];

/// What kubelet accepts of a GET, and what the hub makes of that where it has to read the answer.
const KUBELET_ACCEPTS: [&str; 2] =
    ["application/vnd.kubernetes.protobuf,application/json", "application/json"];

/// What the hub knows for the time without a link.
pub(crate) struct Offline {
    node_name: String,
    kubelet_version: String,
    views: Views,
    journal: Journal,
    events: EventQueue,
    lease: NodeLease,
    leases: OfflineLeases,
    replies: Replies,
    answers: Remembered,
    /// The node's pods whose accounts' answers stay.
    told_of: Mutex<Weak<NodePods>>,
    discovery: Remembered,
}

impl Offline {
    /// Reads what earlier processes left. What cannot be read is missing, and logged: the hub starts all the same.
    /// `boot` names this boot of the node.
    pub(crate) async fn open(
        store: Store,
        views: Views,
        node_name: &str,
        kubelet_version: &str,
        boot: &str,
    ) -> Self {
        let journal = Journal::open(store.clone(), boot).await;
        forget_locals(&views, &journal.objects()).await;
        Self {
            node_name: node_name.to_owned(),
            kubelet_version: kubelet_version.to_owned(),
            views,
            journal,
            events: EventQueue::open(store.clone()).await,
            lease: NodeLease::open(store.clone(), node_name),
            leases: OfflineLeases::default(),
            replies: Replies::open(store.clone()).await,
            answers: Remembered::open(store.clone(), Bucket::Answers, ANSWERS),
            told_of: Mutex::default(),
            discovery: Remembered::open(store, Bucket::Discovery, DISCOVERY),
        }
    }

    /// Writes remembered answers, now and then, when the link is lost and when the hub stops.
    pub(crate) async fn keep_written(&self, link: &Link, stop: &CancellationToken) {
        write_back::keep_written(link, stop, || self.write_due(), || self.write_back()).await;
    }

    async fn write_due(&self) {
        tokio::select! {
            () = self.answers.due() => {}
            () = self.discovery.due() => {}
        }
    }

    async fn write_back(&self) -> bool {
        let mut written = true;
        for memory in [&self.answers, &self.discovery] {
            if let Err(error) = memory.write_back().await {
                tracing::warn!(%error, "remembered answers could not be written");
                written = false;
            }
        }
        written
    }

    /// The journal of status patches.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The queue of Events.
    pub(crate) fn events(&self) -> &EventQueue {
        &self.events
    }

    /// Whether the answer of a GET of the node's is remembered, as kubelet asks where it does not watch.
    pub(crate) fn has_answer(&self, node: &Permit, resource: &Resource, namespace: &str, name: &str) -> bool {
        let subject = format!("{}/{}", resource.group, resource.plural);
        let path = format!("{}/{name}", resource.path(Some(namespace)));
        KUBELET_ACCEPTS.iter().any(|accept| {
            let key = Key::new(Owner::of(node), &subject, &path, "", accept);
            self.answers
                .recall(&key)
                .is_ok_and(|answer| answer.is_some_and(|answer| answer.code.is_success()))
        })
    }

    /// The replies to TokenRequests.
    pub(crate) fn replies(&self) -> &Replies {
        &self.replies
    }

    /// The views.
    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    /// A list of kubelet's own pods while it watches none: it is a new kubelet, or one that has lost track, to which
    /// nothing that an earlier one has ended is final.
    pub(crate) async fn kubelet_begins(&self, node: &Permit, spec: &ViewSpec) {
        let own = spec.field_selector().strip_prefix("spec.nodeName=") == Some(&*self.node_name);
        let pods = (&*spec.resource().group, &*spec.resource().plural) == ("", "pods");
        let begins = pods && own && spec.namespace().is_none() && !self.journal.ended(false).is_empty();
        if begins && self.views.find(node, spec, Question::Any).is_some_and(|view| !view.is_watched()) {
            self.take_back_ends(node, false).await;
        }
    }

    /// The row of a request.
    pub(crate) fn row(&self, info: &RequestInfo, parts: &Parts, permit: &Permit) -> Row {
        let row = row::row(info, &parts.method, permit.is_node(), &self.node_name);
        let renews = |target: &ResourceTarget| {
            let (namespace, name) = names(target);
            self.leases.may_renew(permit.identity(), namespace, name)
        };
        match row {
            Row::OthersLease if info.resource().is_some_and(renews) => Row::OfflineLease,
            row => row,
        }
    }

    /// Answers without the API server. `body` is there when [`Row::needs_body`] says so.
    ///
    /// # Errors
    ///
    /// [`OfflineError`].
    pub(crate) async fn answer(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        row: Row,
        parts: &Parts,
        body: Option<&Bytes>,
    ) -> Result<Answer, OfflineError> {
        let nothing = Bytes::new();
        let body = body.unwrap_or(&nothing);
        match (&info.target, row) {
            (Target::Resource(target), row) => match row {
                Row::RegisterNode => self.register_node(permit, target),
                Row::Object => self.object(permit, info, target, parts),
                Row::PatchStatus => self.patch_status(permit, info, target, parts, body).await,
                Row::Lease => self.lease(target, info, parts, body),
                Row::Token => self.token(target, info, parts, body),
                Row::Unchanged => self.unchanged(permit, info, target, parts, body),
                Row::Event => self.event(target, info, parts, body).await,
                Row::EventAgain => Err(not_found(target)),
                Row::List => self
                    .recall(&self.answers, Owner::of(permit), info, parts)?
                    .filter(|answer| !answer.is_page())
                    .map(|answer| self.remembered(target, answer))
                    .ok_or_else(|| never_cached(&describe(target))),
                Row::OfflineLease => self.renew(permit, target, info, parts, body),
                Row::Discovery | Row::OthersLease | Row::None => Err(OfflineError::Unavailable(format!(
                    "{} {} needs the API server",
                    parts.method,
                    describe(target)
                ))),
            },
            (Target::NonResource { path }, Row::Discovery) => {
                let accept_encoding = header(&parts.headers, ACCEPT_ENCODING);
                let answer = self
                    .discovered(info, parts)?
                    .and_then(|answer| answer.decompressed(accept_encoding, 16 * self.discovery.limit()))
                    .ok_or_else(|| never_cached(path))?;
                let known = parts.headers.get(IF_NONE_MATCH).and_then(|etag| etag.to_str().ok());
                if known.is_some() && known == answer.etag.as_deref() {
                    return Ok(Answer { code: StatusCode::NOT_MODIFIED, body: Bytes::new(), ..answer });
                }
                Ok(answer)
            }
            (Target::NonResource { path }, _) => {
                Err(OfflineError::Unavailable(format!("{} {path} needs the API server", parts.method)))
            }
        }
    }

    fn token(
        &self,
        target: &ResourceTarget,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let request = parse_token_request(target, parts, body)?;
        let answer =
            self.replies.recall(&request)?.filter(|answer| info.accept.accepts(&answer.content_type));
        // The API server answers 201.
        answer.map(|answer| Answer { code: StatusCode::CREATED, ..answer }).ok_or_else(|| {
            OfflineError::Unavailable(format!(
                "no token of service account {}/{} for this pod is stored",
                request.namespace, request.service_account
            ))
        })
    }

    async fn event(
        &self,
        target: &ResourceTarget,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Answer, OfflineError> {
        let content_type = header(&parts.headers, CONTENT_TYPE);
        if !info.accept.accepts(content_type) {
            let reason = format!("{} are answered as they were sent alone", describe(target));
            return Err(OfflineError::Unavailable(reason));
        }
        self.events.push(parts.uri.path(), content_type, body).await?;
        Ok(Answer::new(StatusCode::CREATED, content_type, body.clone()))
    }
}

/// Forgets local versions of objects that the journal does not have, because it could not be read or an older release
/// wrote it: nothing would ever take them off again, and kubelet would never see what it has to put right.
async fn forget_locals(views: &Views, journal: &[ObjectKey]) {
    for plural in ["pods", "nodes"] {
        let changed = journal.iter().filter(|object| object.plural == plural);
        let keep = changed.map(|object| (object.namespace.as_deref(), &*object.name));
        match views.drop_locals_but(&Resource::new("", "v1", plural), keep).await {
            Ok(0) => {}
            Ok(_) => tracing::warn!(plural, "local versions that the journal does not know of are forgotten"),
            Err(error) => tracing::warn!(%error, plural, "local versions cannot be looked through"),
        }
    }
}

fn parse_token_request(
    target: &ResourceTarget,
    parts: &Parts,
    body: &Bytes,
) -> Result<token_request::Request, TokenError> {
    token_request::Request::parse(
        target.namespace.as_deref().unwrap_or_default(),
        target.name.as_deref().unwrap_or_default(),
        is_protobuf(header(&parts.headers, CONTENT_TYPE)),
        body,
    )
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn never_cached(what: &str) -> OfflineError {
    OfflineError::Unavailable(format!("{what} was never cached"))
}

fn not_found(target: &ResourceTarget) -> OfflineError {
    OfflineError::NotFound {
        group: target.resource.group.clone(),
        plural: target.resource.plural.clone(),
        name: target.name.clone().unwrap_or_default(),
    }
}

/// Namespace and name, empty where there is none.
fn names(target: &ResourceTarget) -> (&str, &str) {
    (target.namespace.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default())
}

/// `pods shop/web-0`, for people.
fn describe(target: &ResourceTarget) -> String {
    let mut text = target.resource.plural.clone();
    if let Some(subresource) = &target.subresource {
        text.push('/');
        text.push_str(subresource);
    }
    match (&target.namespace, &target.name) {
        (Some(namespace), Some(name)) => format!("{text} {namespace}/{name}"),
        (None, Some(name)) => format!("{text} {name}"),
        (Some(namespace), None) => format!("{text} in {namespace}"),
        (None, None) => text,
    }
}
