//! Gets, lists and watches.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::answer::{Call, Reply};
use super::encode::{self, Encoding, Failure};
use super::kinds::Kind;
use super::resource::{Selector, Target};
use super::{Shared, State, watch};

pub(super) fn answer(shared: &Arc<Shared>, call: Call) -> Result<Reply, Failure> {
    let state = shared.state.lock().unwrap();
    let (target, kind) = state.target(&call.path)?;
    let encoding = encoding(&call.accept, &kind)?;
    let verb = match (&target.name, call.wants_watch()) {
        (Some(_), false) => "get",
        (_, true) => "watch",
        (None, false) => "list",
    };
    state.authorise(&call.user, verb, &target)?;
    if verb == "get" {
        let object = target.key().and_then(|key| state.store.get(&key));
        let object = object.ok_or_else(|| not_found(&target))?;
        return Ok(Reply::Body(encoding, encode::object(encoding, object)));
    }
    let since = match call.parameter("resourceVersion") {
        "" => 0,
        text => text.parse().map_err(|_| Failure::new(400, "invalid resourceVersion"))?,
    };
    let mut selector = Selector::new(call.parameter("labelSelector"), call.parameter("fieldSelector"));
    if verb == "watch" {
        let mut target = target;
        // An old way to watch one object.
        if let Some(name) = target.name.take() {
            selector = Selector::new("", &format!("metadata.name={name}"));
        }
        let timeout = call.parameter("timeoutSeconds").parse().ok().map(Duration::from_secs);
        let asked = watch::Asked {
            target,
            selector,
            kind,
            encoding,
            since,
            initial_events: call.parameter("sendInitialEvents") == "true",
            bookmarks: call.parameter("allowWatchBookmarks") == "true",
            timeout,
            error: call.error,
            line: call.line,
        };
        return Ok(Reply::Stream(encoding, watch::start(shared, &state.store, asked)?.boxed()));
    }
    list(&state, &call, &target, &selector, &kind, encoding, since)
}

fn list(
    state: &State,
    call: &Call,
    target: &Target,
    selector: &Selector,
    kind: &Kind,
    encoding: Encoding,
    at: u64,
) -> Result<Reply, Failure> {
    let version = state.store.version();
    match call.parameter("resourceVersionMatch") {
        // There is one version to be had here.
        "Exact" if at != version => return Err(Failure::new(410, "the provided resource version is gone")),
        _ if at > version => {
            let mut failure =
                Failure::new(504, &format!("Too large resource version: {at}, current: {version}"));
            failure.cause = Some("ResourceVersionTooLarge");
            return Err(failure);
        }
        _ => {}
    }
    let all = state.store.list(target, selector);
    // The token is `version.index`.
    let from: usize = match call.parameter("continue").split_once('.') {
        Some((of, _)) if of.parse().is_ok_and(|of: u64| of < state.store.oldest) => {
            return Err(Failure::new(410, "the continue token is too old"));
        }
        Some((_, index)) => index.parse().map_err(|_| Failure::new(400, "continue key is not valid"))?,
        None => 0,
    };
    let limit = call.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let to = from.saturating_add(limit.min(state.page)).min(all.len());
    let next = (to < all.len()).then(|| format!("{version}.{to}"));
    let version = if kind.numberless { String::new() } else { version.to_string() };
    let items = &all[from.min(to)..to];
    let api_version = target.resource.api_version();
    Ok(Reply::Body(encoding, encode::list(encoding, kind, api_version, &version, next.as_deref(), items)))
}

/// Protobuf where it is asked for and there is some.
fn encoding(accept: &str, kind: &Kind) -> Result<Encoding, Failure> {
    match accept.contains("protobuf") {
        true if !kind.json_only => Ok(Encoding::Protobuf),
        true if !accept.contains("json") => {
            Err(Failure::new(406, "only the following media types are accepted: application/json"))
        }
        _ => Ok(Encoding::Json),
    }
}

pub(super) fn not_found(target: &Target) -> Failure {
    let name = target.name.as_deref().unwrap_or_default();
    Failure::new(404, &format!("{} {name:?} not found", target.resource.plural))
}
