//! Creates, updates, patches and deletes; reviews and token requests, which are writes in form alone.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::answer::{Call, Reply};
use super::encode::Failure;
use super::faults::Fault;
use super::read::not_found;
use super::resource::{Key, Selector, Target};
use super::{Shared, State, patch};

pub(super) fn answer(shared: &Arc<Shared>, call: &Call) -> Result<Reply, Failure> {
    let mut state = shared.state.lock().unwrap();
    let target = Target::parse(&call.path).ok_or_else(|| Failure::new(404, "404 page not found"))?;
    if let Some(reply) = review(&mut state, call, &target) {
        return Ok(reply);
    }
    let (target, _) = state.target(&call.path)?;
    let verb = match (&call.method, &target.name) {
        (&Method::POST, None) => "create",
        (&Method::PUT, Some(_)) => "update",
        (&Method::PATCH, Some(_)) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        (&Method::DELETE, None) => "deletecollection",
        _ => {
            return Err(Failure::new(405, "the server does not allow this method on the requested resource"));
        }
    };
    state.authorise(&call.user, verb, &target)?;
    let unseen = shared.faults.has(&call.line, &Fault::Unseen);
    let write = |state: &mut State, key: &Key, object: Value| match (call.dry_run(), unseen) {
        (true, _) => object,
        (false, true) => state.store.store(key, object),
        (false, false) => state.store.set(key, object),
    };
    match verb {
        "create" => {
            let name = match &call.body["metadata"] {
                meta if meta["name"].is_string() => meta["name"].as_str().unwrap().to_owned(),
                meta => match meta["generateName"].as_str() {
                    Some(prefix) => generated(&state, &target, prefix),
                    None => return Err(Failure::new(422, "name or generateName is required")),
                },
            };
            let key = target.named(&name);
            if state.store.get(&key).is_some() {
                let mut failure = Failure::new(409, &format!("{} {name:?} already exists", key.plural()));
                failure.reason = "AlreadyExists".to_owned();
                return Err(failure);
            }
            let mut object = call.body.clone();
            object["metadata"]["name"] = name.into();
            Ok(Reply::Object(201, write(&mut state, &key, object)))
        }
        "deletecollection" => {
            let selector = Selector::new(call.parameter("labelSelector"), call.parameter("fieldSelector"));
            let all: Vec<Key> = state
                .store
                .objects()
                .filter(|(key, object)| target.covers(key) && selector.fits(object))
                .map(|(key, _)| key.clone())
                .collect();
            if !call.dry_run() {
                all.iter().for_each(|key| drop(state.store.remove(key)));
            }
            Ok(Reply::Object(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
        }
        _ => {
            let key = target.key().ok_or_else(|| not_found(&target))?;
            let live = state.store.get(&key).cloned();
            let applied = verb == "patch" && call.content_type.starts_with("application/apply-patch");
            let mut next = match live {
                Some(live) => live,
                // Server-side apply makes what does not exist.
                None if applied => json!({"metadata": {"name": key.name(), "generation": 1}}),
                None => return Err(not_found(&target)),
            };
            preconditions(&call.body, &next, verb)?;
            match verb {
                "update" => Ok(Reply::Object(200, write(&mut state, &key, call.body.clone()))),
                "patch" => {
                    patch::apply(&call.content_type, &mut next, &call.body)?;
                    Ok(Reply::Object(200, write(&mut state, &key, next)))
                }
                _ => {
                    if !call.dry_run() {
                        state.store.remove(&key);
                    }
                    Ok(Reply::Object(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
                }
            }
        }
    }
}

/// uid and resourceVersion, where they are given, are those of the object.
fn preconditions(body: &Value, live: &Value, verb: &str) -> Result<(), Failure> {
    let given = if verb == "delete" { &body["preconditions"] } else { &body["metadata"] };
    for field in ["uid", "resourceVersion"] {
        if !given[field].is_null() && given[field] != "" && given[field] != live["metadata"][field] {
            return Err(Failure::new(
                409,
                "the object has been modified; please apply your changes to the latest version",
            ));
        }
    }
    Ok(())
}

fn generated(state: &State, target: &Target, prefix: &str) -> String {
    let taken = |number: &usize| state.store.get(&target.named(&format!("{prefix}{number}"))).is_some();
    format!("{prefix}{}", (0..).find(|number| !taken(number)).unwrap())
}

/// Questions, and tokens.
fn review(state: &mut State, call: &Call, target: &Target) -> Option<Reply> {
    if call.method != Method::POST {
        return None;
    }
    let body = call.body.clone();
    let answered = match (target.resource.plural.as_str(), target.sub.as_deref()) {
        ("tokenreviews", None) => state.people.review_token(body),
        ("subjectaccessreviews" | "selfsubjectaccessreviews" | "localsubjectaccessreviews", None) => {
            state.people.review_access(body, &call.user)
        }
        ("serviceaccounts", Some("token")) => {
            let account = target.name.as_deref().unwrap_or_default();
            state.people.token(target.namespace.as_deref().unwrap_or_default(), account, body)
        }
        _ => return None,
    };
    Some(Reply::Object(201, answered))
}
