//! What a fuzzer may call: one function a parser of what comes over a wire.
//!
//! Each takes any bytes and panics when what must hold of every input does not: what was accepted can be written and
//! read again, nothing is made up, and an answer is no larger than its question allows. `fuzz/` calls them; nothing
//! else does, and a program that does not call them does not contain them.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde_json::Value;

use crate::caller::jwt;
use crate::filter::Filter;
use crate::offline::patch::{self, PatchType};
use crate::offline::{leases, strategic, token_request};
use crate::request::accept::Accept;
use crate::request::authenticate::bearer_token;
use crate::request::classify::{RequestInfo, Verb};
use crate::request::issuer::claims_of;
use crate::request::jwks::{Keys, MAX_KEYS, Signature};
use crate::wire::endpoint_slice::{self, Edit};
use crate::wire::frame::{decode_event, encode_event};
use crate::wire::list::{ListSize, ListWriter};
use crate::wire::node;
use crate::wire::object::{decode_object, encode_object, with_resource_version};
use crate::wire::query::Query;
use crate::wire::selectable::Selectable;
use crate::wire::{Encoding, Event, FrameDecoder, MAX_FRAME, Status, split_list};

const NODE_CA: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const ENCODINGS: [Encoding; 4] =
    [Encoding::Protobuf, Encoding::Json, Encoding::PartialProtobuf, Encoding::PartialJson];

/// Takes the first byte off, as a choice of the fuzzer's.
fn choice(input: &[u8]) -> Option<(usize, &[u8])> {
    input.split_first().map(|(first, rest)| (usize::from(*first), rest))
}

fn encoding(input: &[u8]) -> Option<(Encoding, &[u8])> {
    choice(input).map(|(choice, rest)| (ENCODINGS[choice % ENCODINGS.len()], rest))
}

/// A request's head as text: `METHOD PATH?QUERY`, then `name: value` lines.
fn head(input: &[u8]) -> Option<Parts> {
    let text = std::str::from_utf8(input).ok()?;
    let mut lines = text.lines();
    let (method, uri) = lines.next()?.split_once(' ')?;
    let mut request = http::Request::builder().method(method).uri(uri);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name.trim(), value.trim());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// The request classifier. A view is only ever used for a plain GET of a whole collection, and what it asks the API
/// server for is that collection.
pub fn request(input: &[u8]) {
    let Some(parts) = head(input) else { return };
    let info = RequestInfo::of(&parts);
    let _ = (info.is_long_running(), info.is_dry_run(), bearer_token(&parts.headers).is_ok());
    let Some(collection) = &info.collection else { return };
    let Some(target) = info.resource() else { panic!("a collection of no resource") };
    assert_eq!(parts.method, Method::GET);
    assert!(!info.impersonates && matches!(target.verb, Verb::List | Verb::Watch));
    assert!(target.name.is_none() && target.subresource.is_none() && !collection.encodings.is_empty());
    let path = collection.resource.path(collection.namespace.as_deref());
    let Ok(again) = http::Request::builder().uri(&path).body(()) else {
        panic!("a view of {path:?}, which is no path")
    };
    assert_eq!(again.uri().query(), None, "a view's path has no query");
    let again = RequestInfo::of(&again.into_parts().0);
    let Some(again) = again.resource() else { panic!("a view of {path:?}, which is no resource") };
    assert_eq!((&again.resource, &again.namespace), (&collection.resource, &collection.namespace));
    assert_eq!((again.verb, &again.name), (Verb::List, &None));
}

/// The query string: its canonical form means the same.
pub fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let query = Query::parse(text);
    let canonical = query.canonical(&[]);
    // An escaped byte that is no UTF-8 is replaced by one of three bytes, each of which takes three.
    assert!(canonical.len() <= 9 * text.len() + 1);
    let again = Query::parse(&canonical);
    for key in query.keys() {
        assert_eq!(again.get(key), query.get(key), "{key:?} in {canonical:?}");
    }
    assert_eq!(again.canonical(&[]), canonical);
}

/// Content negotiation: what is chosen is accepted, and once.
pub fn accept(input: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(input) else { return };
    let headers = http::HeaderMap::from_iter([(http::header::ACCEPT, value)]);
    let accept = Accept::from_headers(&headers);
    let encodings = accept.view_encodings();
    for (at, encoding) in encodings.iter().enumerate() {
        assert!(!encodings[..at].contains(encoding));
        assert!(encoding.is_partial() || accept.accepts(encoding.content_type()));
    }
    assert!(!accept.status_encoding().is_partial());
}

/// One page of a list: what was taken apart is put together to the same.
pub fn list(input: &[u8]) {
    let Some((encoding, body)) = encoding(input) else { return };
    let Ok(mut page) = split_list(encoding, &Bytes::copy_from_slice(body)) else { return };
    for item in &page.items {
        if let Ok(seen) = Selectable::read(encoding, &item.body) {
            assert_eq!((&*seen.name, &*seen.namespace), (&*item.meta.name, &*item.meta.namespace));
        }
    }
    let mut size = ListSize::new(encoding);
    page.items.iter().for_each(|item| size.add(item.body.len()));
    let mut writer = ListWriter::new(&page.kind, page.resource_version, &size);
    page.items.iter().for_each(|item| writer.item(&item.body));
    page.continue_token = None;
    assert_eq!(split_list(encoding, &writer.finish()), Ok(page));
}

/// A watch stream: frames and events are the same however the stream is cut, and events can be passed on.
pub fn watch(input: &[u8]) {
    let Some((encoding, rest)) = encoding(input) else { return };
    let Some((step, stream)) = choice(rest) else { return };
    let whole = events(encoding, stream, stream.len().max(1));
    assert_eq!(events(encoding, stream, step + 1), whole);
    for event in whole {
        let Event::Object { event_type, kind, item } = &event else { continue };
        let frame = encode_event(encoding, *event_type, kind, &item.body);
        assert_eq!(events(encoding, &frame, frame.len()), [event]);
    }
}

fn events(encoding: Encoding, stream: &[u8], step: usize) -> Vec<Event> {
    let mut decoder = FrameDecoder::new(encoding);
    let mut events = Vec::new();
    for chunk in stream.chunks(step) {
        decoder.push(chunk);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.len() <= MAX_FRAME.min(stream.len()));
            events.extend(decode_event(encoding, &frame));
        }
        assert!(decoder.buffered() <= stream.len());
    }
    events
}

/// One object: it can be passed on, also with another resourceVersion, and a Node with another kubelet port.
pub fn object(input: &[u8]) {
    let Some((encoding, body)) = encoding(input) else { return };
    let Ok((kind, item)) = decode_object(encoding, &Bytes::copy_from_slice(body)) else { return };
    let again = decode_object(encoding, &encode_object(encoding, &kind, &item.body));
    assert_eq!(again.as_ref(), Ok(&(kind.clone(), item.clone())));
    if let Ok(changed) = with_resource_version(encoding, &item.body, u64::MAX) {
        assert!(changed.len() <= item.body.len() + 40);
        let changed = decode_object(encoding, &encode_object(encoding, &kind, &changed));
        let meta = changed.map(|(_, changed)| (changed.meta.name, changed.meta.namespace));
        assert_eq!(meta, Ok((item.meta.name, item.meta.namespace)));
    }
    if let Ok(changed) = node::with_port(encoding, &item.body, 40_000) {
        let read = |body| node::read(encoding, body).map(|node| (node.name, node.uid, node.given));
        assert_eq!(read(&changed), read(&item.body));
        assert_eq!(node::read(encoding, &changed).ok().and_then(|node| node.published), Some(40_000));
    }
}

/// A Status of the API server.
pub fn status(input: &[u8]) {
    let Some((encoding, body)) = encoding(input) else { return };
    let Ok(status) = Status::decode(encoding, &Bytes::copy_from_slice(body)) else { return };
    assert_eq!(Status::decode(encoding, &status.encode(encoding)), Ok(status));
}

/// A patch of a status: two JSON documents, the object and the patch, apart by a line of `---`. Whatever the patch
/// says, nothing but status, labels and annotations changes, and the object does not grow without bound.
pub fn status_patch(input: &[u8]) {
    let Some((choice, rest)) = choice(input) else { return };
    let Some(at) = rest.windows(5).position(|window| window == b"\n---\n") else { return };
    let Ok(object) = serde_json::from_slice::<Value>(&rest[..at]) else { return };
    let patch = &rest[at + 5..];
    if !object.get("metadata").is_some_and(Value::is_object) {
        return;
    }
    let schema = if choice & 4 == 0 { &strategic::POD } else { &strategic::NODE };
    let patch_type = [PatchType::StrategicMerge, PatchType::Merge, PatchType::Json][choice % 3];
    let _ = patch::changes_nothing(&object, patch_type, patch);
    let Ok(mut patched) = patch::apply_to_status(&object, patch_type, patch, schema) else { return };
    // JSON patches may copy within the object, up to their bound.
    assert!(patched.to_string().len() <= 2 * rest.len() + patch::MAX_COPIED);
    let mut before = object;
    for document in [&mut before, &mut patched] {
        if let Some(document) = document.as_object_mut() {
            document.remove("status");
        }
        if let Some(metadata) = document["metadata"].as_object_mut() {
            metadata.retain(|field, _| field != "labels" && field != "annotations");
        }
    }
    assert_eq!(patched, before);
}

/// An EndpointSlice of this node's pods: what was decided of an endpoint is what is read of it afterwards, whatever else
/// the slice says stays, and nothing is left to do.
pub fn endpoint_slice(input: &[u8]) {
    let Some((choice, stored)) = choice(input) else { return };
    let encoding = if choice & 1 == 0 { Encoding::Protobuf } else { Encoding::Json };
    let wanted = match (choice >> 1) % 3 {
        0 => Edit::Keep,
        1 => Edit::Remove,
        _ => Edit::Show {
            addresses: vec!["10.0.0.9".to_owned()],
            ready: choice & 8 == 0,
            serving: choice & 16 == 0,
        },
    };
    let endpoints = |stored: &[u8]| {
        let seen = RefCell::new(Vec::new());
        let read = endpoint_slice::edit(encoding, stored, |slice, endpoint| {
            let target = &endpoint.target;
            let names = [&slice.namespace, &slice.service, &slice.address_type, &target.uid, &target.name];
            let addresses = endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
            seen.borrow_mut().push((names.map(ToString::to_string), addresses, endpoint.conditions));
            Edit::Keep
        });
        read.map(|changed| {
            assert_eq!(changed, None);
            seen.into_inner()
        })
    };
    let Ok(mut expected) = endpoints(stored) else { return };
    // Every other one: the ones between have to stay.
    let count = Cell::new(0);
    let edited = endpoint_slice::edit(encoding, stored, |_, _| {
        count.set(count.get() + 1);
        if count.get() % 2 == 1 { wanted.clone() } else { Edit::Keep }
    });
    let Ok(edited) = edited else { panic!("a slice that was read cannot be edited: {edited:?}") };
    let edited = edited.unwrap_or_else(|| Bytes::copy_from_slice(stored));
    let mut at = 0;
    expected.retain_mut(|(_, addresses, conditions)| {
        at += 1;
        match &wanted {
            Edit::Remove => return at % 2 == 0,
            Edit::Show { addresses: shown, ready, serving } if at % 2 == 1 => {
                addresses.clone_from(shown);
                (conditions.ready, conditions.serving) = (Some(*ready), Some(*serving));
            }
            _ => {}
        }
        true
    });
    assert_eq!(endpoints(&edited), Ok(expected));
}

/// What the hub changes in what kubelet reads: what comes out is JSON, and there is as much of it.
pub fn filter(input: &[u8]) {
    let Some((choice, body)) = choice(input) else { return };
    let body = Bytes::copy_from_slice(body);
    let filter = match choice % 4 {
        0 => Filter::HubAsService,
        1 => Filter::ConfigMaps(NODE_CA.into()),
        2 => Filter::PullIfNotPresent,
        _ => Filter::TokenSecrets(NODE_CA.into()),
    };
    let items = |list: &[u8]| {
        let list: Value = serde_json::from_slice(list).unwrap_or_default();
        list["items"].as_array().map(Vec::len)
    };
    if let Ok(filtered) = filter.list(body.clone()) {
        assert_eq!(items(&filtered), items(&body));
        assert_eq!(filter.list(filtered.clone()).ok(), Some(filtered), "a filter finds nothing left to do");
    }
    if let Ok(filtered) = filter.single(body.clone()) {
        assert!(serde_json::from_slice::<Value>(&filtered).is_ok());
    }
    if let Ok(filtered) = filter.event(body.clone()) {
        assert!(serde_json::from_slice::<Value>(&filtered).is_ok());
    }
    let _ = filter.transition(&body, true);
}

/// A key set and tokens that are verified by it, one a line: whatever is changed about a genuine token is not genuine
/// any more, and nothing is by keys that cannot be used.
pub fn token_keys(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (set, tokens) = text.split_once('\n').unwrap_or((text, ""));
    let keys = serde_json::from_str(set).map_or(Err(String::new()), |set| Keys::parse(&set));
    let Ok(keys) = keys else { return };
    assert!((1..=MAX_KEYS).contains(&keys.len()));
    for token in tokens.lines() {
        let signature = keys.verify(token);
        let _ = claims_of(token);
        let dots = token.matches('.').count();
        assert!(dots == 2 || signature == Signature::Forged, "{dots} dots in {token:?}");
        if signature == Signature::Genuine {
            assert!(token.len() <= jwt::MAX_TOKEN);
            let at = token.rfind('.').unwrap_or_default();
            let longer = format!("{}e30{}", &token[..at], &token[at..]);
            assert_ne!(keys.verify(&longer), Signature::Genuine);
            assert_ne!(keys.verify(&token[..=at]), Signature::Genuine);
        }
    }
}

/// A Lease of a leader election, in either encoding, and a patch of it.
pub fn lease(input: &[u8]) {
    let Some((choice, body)) = choice(input) else { return };
    let encoding = if choice % 2 == 0 { Encoding::Protobuf } else { Encoding::Json };
    leases::fuzz(encoding.content_type(), &Bytes::copy_from_slice(body));
}

/// TokenRequests, the token in a reply, and the claims in a token.
pub fn token(input: &[u8]) {
    let Some((choice, body)) = choice(input) else { return };
    let bytes = Bytes::copy_from_slice(body);
    let request = token_request::Request::parse("namespace", "account", choice % 2 == 0, &bytes);
    if let Ok(request) = request {
        assert_eq!(request.user(), "system:serviceaccount:namespace:account");
    }
    if let Ok(token) = token_request::token_in(choice % 2 == 0, &bytes) {
        assert!(token.expose().len() <= body.len());
        let _ = jwt::claims(token.expose());
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = jwt::claims(text);
    }
    if let Ok(value) = http::HeaderValue::from_bytes(body) {
        let headers = http::HeaderMap::from_iter([(AUTHORIZATION, value)]);
        if let Ok(Some(token)) = bearer_token(&headers) {
            assert!(!token.expose().is_empty() && !token.expose().contains(char::is_whitespace));
        }
    }
}
