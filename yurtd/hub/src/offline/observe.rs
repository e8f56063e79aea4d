//! While the link is up: what of the answers that pass through is kept for the time without one.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::object::key;
use super::remember::{Keep, Key, Owner};
use super::row::Row;
use super::{
    Answer, IGNORED_PARAMETERS, Offline, discovery, names, parse_token_request, prewarm, token_request,
};
use crate::caller::{Caller, Credential, Identity, Permit, authorise};
use crate::replica::Views;
use crate::request::RequestInfo;
use crate::request::classify::{ResourceTarget, Target};
use crate::request::tokens::Tokens;
use crate::wire::Resource;
use yurt_node::token::BearerToken;

/// Bound of answers to TokenRequests and of Leases.
const MAX_SMALL: usize = 64 << 10;

/// Takes one answer of the API server, whole, when it has passed.
pub(crate) struct Observer {
    offline: Arc<Offline>,
    tokens: Tokens,
    what: What,
}

enum What {
    Lease,
    /// A write of somebody else's.
    OthersLease(Identity, ResourceTarget),
    Token(token_request::Request),
    Answer(Key, Keep, Subject),
    Discovery(discovery::Place, Permit),
}

/// Whom an answer tells something, and of what.
struct Subject {
    permit: Permit,
    resource: Resource,
    row: Row,
    /// Namespace and name of the Lease that it is.
    lease: Option<(String, String)>,
}

impl Offline {
    /// What to keep of the answer to this request; `None` for nothing.
    pub(crate) fn observer(
        self: &Arc<Self>,
        tokens: &Tokens,
        permit: &Permit,
        info: &RequestInfo,
        row: Row,
        parts: &Parts,
        body: Option<&Bytes>,
    ) -> Option<Observer> {
        let what = match (&info.target, row) {
            (Target::Resource(_), Row::Lease) => What::Lease,
            (Target::Resource(target), Row::OthersLease | Row::OfflineLease) => {
                What::OthersLease(permit.identity().clone(), target.clone())
            }
            (Target::Resource(target), Row::Token) => {
                // A request that cannot be read is the API server's to refuse.
                What::Token(parse_token_request(target, parts, body?).ok()?)
            }
            (Target::Resource(target), Row::Object | Row::List) => What::Answer(
                key(Owner::of(permit), info, parts),
                Keep::of(target),
                Subject::of(permit, target, row),
            ),
            // One that anybody could make up another of drives out those that people need.
            (Target::NonResource { .. }, Row::Discovery)
                if info.query.keys().all(|name| IGNORED_PARAMETERS.contains(&name)) =>
            {
                What::Discovery(discovery::Place::of(info, parts), permit.clone())
            }
            _ => return None,
        };
        Some(Observer { offline: self.clone(), tokens: tokens.clone(), what })
    }

    /// Has the views of the identities whose tokens are known followed, after a restart of the hub.
    pub(crate) fn prewarm(&self) {
        match self.replies.tokens() {
            Ok(tokens) => {
                for (request, token) in tokens {
                    self.warm(&request, token);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "stored tokens cannot be read; nothing is followed with them")
            }
        }
    }

    /// Tells what is remembered who has a pod on the node, when that has changed.
    fn let_stay(&self) {
        let mut told = self.told_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pods) = self.views.pods_unless(&told) {
            self.answers.stay(pods.accounts.iter().map(|account| Owner::Other(account)));
            *told = Arc::downgrade(&pods);
        }
    }

    /// Forgets the tokens of pods that are gone.
    async fn purge_tokens(&self) {
        let Some(pods) = self.views.live_pods() else { return };
        if let Err(error) = self.replies.purge(&pods.uids, Instant::now()).await {
            tracing::warn!(%error, "tokens of pods that are gone could not be forgotten");
        }
    }

    fn warm(&self, request: &token_request::Request, token: BearerToken) {
        let identity = Identity::new(&request.user());
        let permit = authorise(Caller { identity, credential: Credential::Bearer(token) });
        self.views.lend(&permit);
        for spec in prewarm::specs(request, &self.node_name, &self.kubelet_version) {
            self.views.warm(&permit, &spec);
        }
    }
}

impl Subject {
    fn of(permit: &Permit, target: &ResourceTarget, row: Row) -> Self {
        let lease = (row == Row::Object && target.is("coordination.k8s.io", "leases", None))
            .then(|| names(target))
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        Self { permit: permit.clone(), resource: target.resource.clone(), row, lease }
    }

    /// Views that are not followed learn that there is something newer.
    async fn heard(&self, views: &Views, answer: &Answer) {
        if !views.stands_still(&self.permit, &self.resource) {
            return;
        }
        let version = if self.row == Row::List { answer.page_version() } else { answer.version() };
        if let Some(version) = version {
            views.heard(&self.permit, &self.resource, version).await;
        }
    }
}

impl Keep {
    fn of(target: &ResourceTarget) -> Self {
        if target.is("coordination.k8s.io", "leases", None) { Self::InMemory } else { Self::Stored }
    }
}

impl Observer {
    /// How much of an answer is taken; longer ones are not kept.
    pub(crate) fn limit(&self) -> usize {
        match &self.what {
            What::Lease | What::OthersLease(..) | What::Token(_) => MAX_SMALL,
            What::Answer(..) => self.offline.answers.limit(),
            What::Discovery(..) => self.offline.discovery.limit(),
        }
    }

    /// Whether an answer with this status is worth keeping.
    pub(crate) fn wants(&self, code: StatusCode) -> bool {
        match &self.what {
            What::Lease | What::OthersLease(..) | What::Token(_) => code.is_success(),
            What::Answer(..) | What::Discovery(..) => code == StatusCode::OK,
        }
    }

    /// Whether an answer with this status says that an earlier one no longer holds.
    pub(crate) fn refutes(&self, code: StatusCode) -> bool {
        let gone = matches!(code, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN);
        match &self.what {
            What::Answer(..) => gone,
            What::OthersLease(..) => gone || code == StatusCode::CONFLICT,
            What::Lease | What::Token(_) | What::Discovery(..) => false,
        }
    }

    /// Forgets the earlier answer, that was refuted with `code`. Who is refused one object of a resource may have lost the
    /// right to all of them: what is remembered of them goes, and comes back with the next GET. Not for kubelet, which is
    /// refused what no pod of its node refers to any more.
    pub(crate) async fn forget(self, code: StatusCode) {
        if let What::OthersLease(identity, target) = &self.what {
            let (namespace, name) = names(target);
            self.offline.leases.forget(identity, namespace, name);
        }
        let What::Answer(key, _, subject) = &self.what else { return };
        if let Some((namespace, name)) = &subject.lease {
            self.offline.leases.forget(subject.permit.identity(), namespace, name);
        }
        let answers = &self.offline.answers;
        let forgotten = if code == StatusCode::FORBIDDEN && !subject.permit.is_node() {
            answers.forget_subject(key).await
        } else {
            answers.forget(key).await
        };
        if let Err(error) = forgotten {
            tracing::warn!(%error, "an answer that no longer holds could not be forgotten");
        }
    }

    /// Keeps the answer. Failures are logged: they are not the client's.
    pub(crate) async fn seen(self, headers: HeaderMap, body: Bytes) {
        let Some(answer) = Answer::of_upstream(&headers, body) else { return };
        let kept = match self.what {
            What::Answer(key, keep, subject) => {
                // Whoever has a pod on the node will ask again when it starts.
                self.offline.let_stay();
                subject.heard(&self.offline.views, &answer).await;
                if subject.lease.is_some()
                    && let Some(answer) = answer.clone().decompressed("", MAX_SMALL)
                {
                    self.offline.leases.seen(subject.permit.identity(), false, answer);
                }
                // The rest of it is asked for by a token that nobody knows here.
                if !(subject.row == Row::List && answer.is_page()) {
                    self.offline.answers.remember(&key, &answer, keep);
                }
                Ok(())
            }
            What::Discovery(place, permit) => {
                let key = place.key(&answer.content_type).asked_by(Owner::of(&permit));
                self.offline.discovery.remember(&key, &answer, Keep::Stored);
                Ok(())
            }
            What::OthersLease(identity, _) => {
                if let Some(answer) = answer.decompressed("", MAX_SMALL) {
                    self.offline.leases.seen(&identity, true, answer);
                }
                Ok(())
            }
            What::Lease => match answer.decompressed("", MAX_SMALL) {
                Some(answer) => self.offline.lease.seen(answer).await.map_err(|error| error.to_string()),
                None => Ok(()),
            },
            What::Token(request) => {
                let Some(answer) = answer.decompressed("", MAX_SMALL) else { return };
                let kept = self.offline.replies.store_reply(&request, &answer).await;
                self.offline.purge_tokens().await;
                match kept {
                    Ok(token) if request.is_for_api_server() => {
                        self.tokens.learn(&token, &request.user()).await;
                        self.offline.warm(&request, token);
                        Ok(())
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            }
        };
        if let Err(error) = kept {
            tracing::warn!(error, "an answer could not be kept for the time without a link");
        }
    }
}
