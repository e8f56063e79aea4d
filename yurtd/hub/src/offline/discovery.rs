//! What the API server can do. kubectl, and every client that finds resources by their kinds, reads `/api` and `/apis`
//! before it asks for anything, and keeps them for a while at most: without a link they have to be here. So the hub
//! reads both itself when the link has come up, and again some times a day (aggregated discovery, KEP-3352, which has
//! all resources in it and an ETag: unchanged it costs a head). It is everybody's, as `system:discovery` is.
//!
//! Answers are kept under what they are (`Content-Type`) and not under what was asked for: clients of different ages
//! write the same wish in different ways, and take several forms.

use std::sync::Arc;
use std::time::Duration;

use http::header::ACCEPT;
use http::request::Parts;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use yurt_node::link::LinkState;

use super::remember::{Keep, Key, Owner};
use super::{Answer, IGNORED_PARAMETERS, Offline, OfflineError, header};
use crate::last_read::LastRead;
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::request::RequestInfo;
use crate::request::accept::{media_type, media_types};

/// In the words of client-go.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
/// The groupless versions, and the groups.
const DOCUMENTS: [&str; 2] = ["/api", "/apis"];
/// Compressed bytes of one of them. A cluster with thousand kinds of custom resources has a quarter of that.
const LIMIT: usize = 1 << 20;
/// After the link has come up: whatever was waiting for it goes first.
const SETTLED: Duration = Duration::from_secs(3);
/// Somebody defines a new kind now and then.
const AGAIN: Duration = Duration::from_secs(6 * 3600);
/// When both were read: the key of a [`LastRead`].
pub(crate) const READ: &[u8] = b"discovery-read";
/// After a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(300);

/// Where an answer belongs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: String,
    query: String,
}

impl Place {
    /// What a request asks for.
    pub(super) fn of(info: &RequestInfo, parts: &Parts) -> Self {
        Self::new(parts.uri.path(), info.query.canonical(&IGNORED_PARAMETERS))
    }

    fn new(path: &str, query: String) -> Self {
        Self { path: path.trim_end_matches('/').to_owned(), query }
    }

    /// The key of an answer with this content type.
    pub(super) fn key(&self, content_type: &str) -> Key {
        self.key_of_form(&media_type(content_type))
    }

    fn key_of_form(&self, form: &str) -> Key {
        Key::new(Owner::Everybody, "", &self.path, &self.query, form)
    }
}

impl Offline {
    /// The answer as it was last seen, in the form that the client would rather have.
    pub(super) fn discovered(
        &self,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<Option<Answer>, OfflineError> {
        let (place, accept) = (Place::of(info, parts), header(&parts.headers, ACCEPT));
        for form in media_types(accept) {
            if let Some(answer) = self.discovery.recall(&place.key_of_form(&form))? {
                return Ok(Some(answer));
            }
        }
        // An older release kept it under what was asked for.
        let older = Key::new(Owner::Everybody, "", parts.uri.path(), &place.query, accept);
        Ok(self.discovery.recall(&older)?)
    }

    /// Reads a document again, unless it is what is here already.
    async fn discover(&self, client: &NodeClient, node: Owner<'_>, path: &str) -> Result<(), CallError> {
        let place = Place::new(path, String::new());
        let known = media_types(AGGREGATED).into_iter().find_map(|form| {
            let key = place.key_of_form(&form);
            self.discovery.recall(&key).ok().flatten().map(|answer| (key, answer))
        });
        let etag = known.as_ref().and_then(|(_, answer)| answer.etag.as_deref());
        let (key, answer) = match client.read(path, AGGREGATED, etag, LIMIT).await? {
            None => match known {
                Some(known) => known,
                None => return Ok(()),
            },
            Some((headers, body)) => {
                tracing::debug!(path, bytes = body.len(), "discovery is read for the time without a link");
                let answer = Answer::of_upstream(&headers, body)
                    .ok_or_else(|| CallError::Broken("it does not say what it is".into()))?;
                (place.key(&answer.content_type), answer)
            }
        };
        self.discovery.remember(&key.asked_by(node), &answer, Keep::Stored);
        Ok(())
    }
}

/// Keeps discovery for the time without a link. Ends with `stop`.
pub(crate) async fn run(
    offline: Arc<Offline>,
    client: NodeClient,
    user: String,
    link: Link,
    last_read: LastRead,
    stop: CancellationToken,
) {
    let mut state = link.subscribe();
    let mut due = Instant::now() + last_read.not_before(AGAIN);
    loop {
        let online = tokio::select! {
            () = stop.cancelled() => return,
            online = state.wait_for(|state| *state == LinkState::Online) => online.is_ok(),
        };
        if !online {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // The link is lost.
            _ = state.changed() => continue,
            () = sleep_until(due.max(Instant::now() + SETTLED)) => {}
        }
        let mut pause = AGAIN;
        for path in DOCUMENTS {
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = offline.discover(&client, Owner::Node(&user), path) => read,
            };
            if let Err(error) = read {
                tracing::debug!(%error, path, "discovery could not be read; trying again later");
                pause = AFTER_FAILURE;
            }
        }
        // Not before they are in the store themselves.
        if pause == AGAIN && offline.write_back().await {
            last_read.is_now().await;
        }
        due = Instant::now() + pause;
    }
}

#[cfg(test)]
mod tests {
    use yurt_fakes::api_server::FakeApi;
    use yurt_node::supervise::Tasks;

    use super::*;
    use crate::caller::Permit;
    use crate::clock::Boot;
    use crate::replica::Views;
    use crate::store::Store;
    use crate::upstream::{Upstream, UpstreamConfig};

    #[tokio::test]
    async fn what_has_not_changed_costs_a_head_in_the_next_boot() {
        let (api, dir) = (FakeApi::start().await, tempfile::tempdir().unwrap());
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let (store, _) = Store::open_with(dir.path(), 16 << 20).unwrap();
        let (upstream, link) = Upstream::start(&UpstreamConfig::of(&api), &tasks).unwrap();
        let node = Permit::of_node("system:node:edge");
        let views = Views::load(&store, &upstream, &link, &node, &Boot::new(""), &tasks).unwrap();
        for boot in ["one", "two"] {
            let offline = Offline::open(store.clone(), views.clone(), "edge", "v1.36.3", boot).await;
            let (offline, end) = (Arc::new(offline), CancellationToken::new());
            let client = NodeClient::new(upstream.clone());
            let last_read = || LastRead::of(store.clone(), Boot::new(boot), READ);
            let user = node.identity().as_str().to_owned();
            let reading = run(offline.clone(), client, user, link.clone(), last_read(), end.clone());
            let reading = tokio::spawn(reading);
            let read = async {
                while last_read().age().is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is read");
            end.cancel();
            reading.await.unwrap();
        }
        let asked = api.seen("GET", "/apis");
        let etags: Vec<_> = asked
            .iter()
            .map(|asked| asked.headers.get("if-none-match").is_some_and(|tag| !tag.is_empty()))
            .collect();
        assert_eq!(etags, [false, true]);
        stop.cancel();
    }
}
