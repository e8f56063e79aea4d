//! The node's own Node, whose kubelet may be found at another port than it listens on.
//!
//! Where two nodes have one address the controller gives one of them a kubelet port, on a label
//! ([`yurt_api::kubelet_port`]). The API server finds it in the Node's status, and kubelet knows nothing of it:
//!
//! ```text
//! API server: Port 40000 ──── as it comes in: [`OwnNode::seen`] ───► views, answers: Port 10250 ──► kubelet, pods
//!             Port 40000 ◄─── as it goes out: [`OwnNode::sent`] ──── status patches: Port 10250 ◄── kubelet, pods
//! ```
//!
//! Everything on this side, the store and the journal too, has kubelet's own port. Pods of the node see it as kubelet does:
//! they connect to it at the node, where nobody listens on the other one.
//!
//! What comes in is changed only if status and label say the same port. So when the label goes, kubelet sees that its
//! status has a port that is not its own, and says so with its next sync, in ten seconds at most: it always fills in its
//! own (`nodestatus.DaemonEndpoints`), and compares all of the status (`nodeStatusHasChanged`, `pkg/kubelet`). It does the
//! same when it talks to the API server itself, after a revert.
//!
//! kubelet patches what has changed as it sees it, which the port never has. So the hub says it itself once ([`publish`]),
//! and with every status patch of kubelet's that passes, one in five minutes at least: whoever changes it, it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names::KUBELET_PORT;
use yurt_node::link::LinkState;

use crate::caller::Permit;
use crate::link::Link;
use crate::node_client::NodeClient;
use crate::offline::patch::PatchType;
use crate::request::RequestInfo;
use crate::request::classify::Verb;
use crate::wire::frame::{decode_event, encode_event};
use crate::wire::node::{self, KubeletPort};
use crate::wire::object::{decode_object, encode_object};
use crate::wire::{Encoding, Event, ListPage, Resource, WireError, list, proto};

/// How a kubelet's user begins; the node's name follows.
const USER: &str = "system:node:";
/// Between two attempts to publish a port; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The port that was given to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    port: u16,
    /// Of the Node: one that was made anew under its name is another.
    uid: String,
}

#[derive(Debug)]
struct Inner {
    name: String,
    /// Where kubelet listens.
    own: AtomicU16,
    given: watch::Sender<Option<Given>>,
}

/// What is known of the node's own Node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OwnNode {
    inner: Arc<Inner>,
}

/// What of an answer may be the own Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// It.
    Object,
    /// A list of it alone.
    List,
    /// A watch of it alone.
    Watch,
}

impl OwnNode {
    /// That of this kubelet.
    pub(crate) fn of(kubelet: &Permit) -> Self {
        let user = kubelet.identity().as_str();
        let name = user.strip_prefix(USER).unwrap_or(user).to_owned();
        let (own, given) = (AtomicU16::new(KUBELET_PORT), watch::Sender::default());
        Self { inner: Arc::new(Inner { name, own, given }) }
    }

    /// Where kubelet listens, as the keeper has found it: `host:port`.
    pub(crate) fn listens_at(&self, address: &str) {
        if let Some(port) = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
            self.inner.own.store(port, Ordering::Relaxed);
        }
    }

    /// The Node as the store has it from an earlier process.
    pub(crate) fn known(&self, stored: &[u8]) {
        if let Ok(node) = node::read(Encoding::Json, stored) {
            self.learn(&node, false);
        }
    }

    fn learn(&self, node: &KubeletPort<'_>, gone: bool) {
        let given = node.given.filter(|_| !gone).map(|port| Given { port, uid: node.uid.to_string() });
        self.inner.given.send_if_modified(|known| {
            let changed = *known != given;
            *known = given;
            changed
        });
    }

    /// A stored Node that comes from the API server as it is seen on the node; `None` when it is as it came. What
    /// kubelet's own views are told counts (`is_kubelets`): others' may be behind.
    pub(crate) fn seen(
        &self,
        encoding: Encoding,
        stored: &[u8],
        is_kubelets: bool,
        gone: bool,
    ) -> Option<Bytes> {
        if encoding.is_partial() {
            return None;
        }
        let node = node::read(encoding, stored).ok().filter(|node| node.name == self.inner.name)?;
        if is_kubelets {
            self.learn(&node, gone);
        }
        node.given.filter(|given| node.published == Some(*given))?;
        node::with_port(encoding, stored, self.inner.own.load(Ordering::Relaxed)).ok()
    }

    /// The same for a page of a list.
    pub(crate) fn seen_in(
        &self,
        resource: &Resource,
        encoding: Encoding,
        page: &mut ListPage,
        is_kubelets: bool,
    ) {
        if !node::is_node(resource) {
            return;
        }
        for item in &mut page.items {
            if let Some(seen) = self.seen(encoding, &item.body, is_kubelets, false) {
                item.body = seen;
            }
        }
    }

    /// What of the answer to this request may be the own Node. Lists of all Nodes are the API server's word.
    pub(crate) fn shape(&self, info: &RequestInfo) -> Option<Shape> {
        let target = info.resource().filter(|target| node::is_node(&target.resource))?;
        let own = target.name.as_deref() == Some(&*self.inner.name);
        match (target.verb, target.subresource.as_deref()) {
            (Verb::Get | Verb::Update | Verb::Patch, None | Some("status")) if own => Some(Shape::Object),
            (Verb::List | Verb::Watch, None) => {
                // What no view can answer has no collection.
                let selector = info.query.get("fieldSelector")?;
                let alone = selector.strip_prefix("metadata.name=") == Some(&*self.inner.name);
                alone.then_some(if target.verb == Verb::List { Shape::List } else { Shape::Watch })
            }
            _ => None,
        }
    }

    /// An answer, or an event of a watch without its frame's end, as it is seen on the node; `None` when it is as it came.
    pub(crate) fn seen_of(&self, shape: Shape, encoding: Encoding, body: &Bytes) -> Option<Bytes> {
        self.edit(shape, encoding, body).unwrap_or_else(|error| {
            tracing::debug!(%error, "an answer about the own Node is passed on as it came");
            None
        })
    }

    fn edit(&self, shape: Shape, encoding: Encoding, body: &Bytes) -> Result<Option<Bytes>, WireError> {
        Ok(match shape {
            Shape::Object => {
                let (kind, item) = decode_object(encoding, body)?;
                let seen = self.seen(encoding, &item.body, false, false);
                seen.map(|seen| encode_object(encoding, &kind, &seen))
            }
            Shape::List => {
                let mut page = list::split_list(encoding, body)?;
                let items: Vec<_> =
                    page.items.iter().map(|item| self.seen(encoding, &item.body, false, false)).collect();
                // One object is never on two pages.
                if page.continue_token.is_some() || items.iter().all(Option::is_none) {
                    return Ok(None);
                }
                for (item, seen) in page.items.iter_mut().zip(items) {
                    item.body = seen.unwrap_or_else(|| item.body.clone());
                }
                let mut size = list::ListSize::new(encoding);
                page.items.iter().for_each(|item| size.add(item.body.len()));
                let mut out = list::ListWriter::new(&page.kind, page.resource_version, &size);
                page.items.iter().for_each(|item| out.item(&item.body));
                Some(out.finish())
            }
            Shape::Watch => match decode_event(encoding, body)? {
                Event::Object { event_type, kind, item } => {
                    let seen = self.seen(encoding, &item.body, false, false);
                    seen.map(|seen| encode_event(encoding, event_type, &kind, &seen))
                }
                Event::Bookmark { .. } | Event::Error(_) => None,
            },
        })
    }

    /// Whether a request writes the own Node's status, in which the port is.
    pub(crate) fn is_status_write(&self, info: &RequestInfo) -> bool {
        info.resource().is_some_and(|target| {
            matches!(target.verb, Verb::Update | Verb::Patch)
                && target.is("", "nodes", Some("status"))
                && target.name.as_deref() == Some(&*self.inner.name)
        })
    }

    /// The body of such a request as the API server is to have it; `None` when it is as it came. To kubelet's words the
    /// port is added where they do not name it.
    pub(crate) fn sent(&self, parts: &Parts, body: &Bytes, is_kubelet: bool) -> Option<Bytes> {
        let content_type = parts.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        self.sent_as(content_type, body, is_kubelet)
    }

    /// The same for a patch of the hub's own.
    pub(crate) fn sent_as(&self, content_type: &str, body: &Bytes, is_kubelet: bool) -> Option<Bytes> {
        let port = self.inner.given.borrow().as_ref().map(|given| given.port)?;
        let text = |value: Value| Bytes::from(value.to_string());
        match content_type.split(';').next()?.trim() {
            "application/vnd.kubernetes.protobuf" => {
                let (kind, raw) = proto::open_envelope(body).ok()?;
                let names = node::read(Encoding::Protobuf, &raw).ok()?.published.is_some();
                let node = (names || is_kubelet).then(|| node::with_port(Encoding::Protobuf, &raw, port));
                Some(proto::envelope(&kind, &node?.ok()?))
            }
            "application/json" | "application/apply-patch+yaml" => {
                let mut object = serde_json::from_slice(body).ok()?;
                // What is applied names what its applier wants to own.
                let add = is_kubelet && content_type.starts_with("application/json");
                put_port(&mut object, port, add).then(|| text(object))
            }
            other => match PatchType::from_content_type(other)? {
                PatchType::StrategicMerge | PatchType::Merge => {
                    let mut patch = serde_json::from_slice(body).ok()?;
                    put_port(&mut patch, port, is_kubelet).then(|| text(patch))
                }
                PatchType::Json => {
                    let mut steps: Vec<Value> = serde_json::from_slice(body).ok()?;
                    let touches = |step: &Value| {
                        let path = step["path"].as_str().unwrap_or_default();
                        ["", "/status"].contains(&path) || path.starts_with("/status/daemonEndpoints")
                    };
                    if !is_kubelet && !steps.iter().any(touches) {
                        return None;
                    }
                    steps.push(
                        json!({"op": "add", "path": "/status/daemonEndpoints", "value": endpoints(port)}),
                    );
                    Some(text(steps.into()))
                }
            },
        }
    }
}

fn endpoints(port: u16) -> Value {
    json!({"kubeletEndpoint": {"Port": port}})
}

/// Puts the port into an object or a merge patch, where it names it, or in any case; whether it did.
fn put_port(object: &mut Value, port: u16, add: bool) -> bool {
    if !object.is_object() || !(add || object.pointer("/status/daemonEndpoints").is_some()) {
        return false;
    }
    let mut place = object;
    for field in ["status", "daemonEndpoints", "kubeletEndpoint"] {
        if !place[field].is_object() {
            place[field] = Map::new().into();
        }
        place = &mut place[field];
    }
    place["Port"] = port.into();
    true
}

/// Says in the Node's status which port it was given, once it was and whenever this process begins. Ends with `stop`.
pub(crate) async fn publish(own: OwnNode, client: NodeClient, link: Link, stop: CancellationToken) {
    let (mut given, mut state) = (own.inner.given.subscribe(), link.subscribe());
    let path = format!("/api/v1/nodes/{}/status", own.inner.name);
    let (mut said, mut pause) = (None, FIRST_PAUSE);
    loop {
        let wanted = given.borrow_and_update().clone();
        let online = *state.borrow_and_update() == LinkState::Online;
        let mut again = None;
        if said != wanted && wanted.is_none() {
            said = None;
        } else if let Some(Given { port, uid }) = wanted.as_ref().filter(|_| online && said != wanted) {
            let body = json!({"metadata": {"uid": uid}, "status": {"daemonEndpoints": endpoints(*port)}});
            let patch =
                client.patch(&path, PatchType::StrategicMerge.content_type(), body.to_string().into());
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = patch => outcome,
            };
            match outcome {
                Ok(_) => {
                    tracing::info!(
                        port,
                        "another node has this one's address: kubelet's port in its status is another"
                    );
                    (said, pause) = (wanted, FIRST_PAUSE);
                }
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the kubelet port could not be published; trying again");
                    again = Some(pause);
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    tracing::warn!(%error, "the kubelet port cannot be published; kubelet's next status will carry it");
                    said = wanted;
                }
            }
        }
        let rest = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = rest => {}
            changed = given.changed() => if changed.is_err() { return },
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests;
