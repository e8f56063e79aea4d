//! Watches: what happened since a version, then whatever happens, until the connection or the watch's time ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::encode::{self, Encoding, Failure};
use super::faults::{Fault, Line};
use super::kinds::Kind;
use super::resource::{Selector, Target};
use super::store::{Change, Store};

/// What a watch asks for.
pub(super) struct Asked {
    pub(super) target: Target,
    pub(super) selector: Selector,
    pub(super) kind: Kind,
    pub(super) encoding: Encoding,
    /// 0 is any version: first the state, then what follows.
    pub(super) since: u64,
    /// WatchList: the state, a bookmark, then what follows.
    pub(super) initial_events: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
    /// It ends with this before it has begun.
    pub(super) error: Option<u16>,
    pub(super) line: Line,
}

struct Watcher {
    asked: Asked,
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    first: VecDeque<Bytes>,
    /// In the history.
    at: usize,
    generation: u64,
    ends_at: Option<Instant>,
}

/// Starts a watch.
pub(super) fn start(
    shared: &Arc<Shared>,
    store: &Store,
    asked: Asked,
) -> Result<impl Stream<Item = Bytes> + use<>, Failure> {
    let state = asked.initial_events || asked.since == 0;
    if !state && asked.since < store.oldest {
        return Err(Failure::new(
            410,
            &format!("too old resource version: {} ({})", asked.since, store.oldest),
        ));
    }
    let mut first = VecDeque::new();
    let mut at = store.history.len();
    if let Some(code) = asked.error {
        first.push_back(encode::error(asked.encoding, &Failure::new(code, "no")));
    } else if state {
        for object in store.list(&asked.target, &asked.selector) {
            first.push_back(encode::event(asked.encoding, "ADDED", object));
        }
        if asked.initial_events {
            let api_version = asked.target.resource.api_version();
            first.push_back(encode::bookmark(asked.encoding, &asked.kind, api_version, store.version, true));
        }
    } else {
        at = store.history.iter().position(|change| change.version > asked.since).unwrap_or(at);
    }
    let watcher = Watcher {
        first,
        at,
        generation: store.generation,
        ends_at: asked.timeout.map(|timeout| Instant::now() + timeout),
        changed: shared.changed.subscribe(),
        shared: Arc::clone(shared),
        asked,
    };
    Ok(futures::stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) }))
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        let ends_at = self.ends_at;
        let end = async {
            match ends_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            frame = self.frame() => frame,
            () = end => None,
        }
    }

    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            self.shared.faults.without(&self.asked.line, &Fault::Silent).await;
            if let Some(frame) = self.first.pop_front() {
                return Some(frame);
            }
            if self.asked.error.is_some() {
                return None;
            }
            self.changed.mark_unchanged();
            let change = {
                let state = self.shared.state.lock().unwrap();
                if state.store.generation != self.generation {
                    return None;
                }
                state.store.history.get(self.at).cloned()
            };
            let Some(change) = change else {
                self.changed.changed().await.ok()?;
                continue;
            };
            self.at += 1;
            if let Some(frame) = self.event(&change) {
                return Some(frame);
            }
        }
    }

    fn event(&self, change: &Change) -> Option<Bytes> {
        let asked = &self.asked;
        // As a watch cache does: what is not newer than what was asked for is not sent, also when that is of another
        // history and never comes.
        if change.version <= asked.since {
            return None;
        }
        let Some(changed) = &change.object else {
            let api_version = asked.target.resource.api_version();
            return asked
                .bookmarks
                .then(|| encode::bookmark(asked.encoding, &asked.kind, api_version, change.version, false));
        };
        if !asked.target.covers(&changed.key) {
            return None;
        }
        let fits = |object: &&serde_json::Value| asked.selector.fits(object);
        let (before, after) = (changed.before.as_ref().filter(fits), changed.after.as_ref().filter(fits));
        Some(match (before, after) {
            (None, None) => return None,
            (None, Some(object)) => encode::event(asked.encoding, "ADDED", object),
            (Some(_), Some(object)) => encode::event(asked.encoding, "MODIFIED", object),
            (Some(object), None) => {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = change.version.to_string().into();
                encode::event(asked.encoding, "DELETED", &object)
            }
        })
    }
}
