//! What goes over the wire: JSON as Go writes it, with `kind` and `apiVersion` in front, and Kubernetes' protobuf.
//!
//! In protobuf the metadata is real and the rest is not: the entries of `data` are field 2, as they are in a ConfigMap,
//! and everything else is JSON text in a field that no kind has. EndpointSlices are real but for their ports, and of a
//! Service what is asked for by selectors and addresses, of a Node its kubelet's port.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::kinds::Kind;

/// How an answer is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    pub(super) fn watch_content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}

/// Holds the JSON of what has no field here.
const REST: u32 = 1000;

/// A failure, as a `Status` says it.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    /// Reason of a cause, for those who look there.
    pub(super) cause: Option<&'static str>,
}

impl Failure {
    pub(super) fn new(code: u16, message: &str) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 => "Conflict",
            410 => "Expired",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self { code, reason: reason.to_owned(), message: message.to_owned(), cause: None }
    }

    pub(super) fn body(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => {
                let mut status = serde_json::json!({
                    "metadata": {}, "status": "Failure", "message": self.message, "reason": self.reason,
                    "code": self.code
                });
                if let Some(cause) = self.cause {
                    status["details"] = serde_json::json!({
                        "causes": [{"reason": cause, "message": self.message}], "retryAfterSeconds": 1});
                }
                format!("{}\n", typed("Status", "v1", &status)).into()
            }
            Encoding::Protobuf => {
                let mut status = Message::default();
                status.bytes(1, &[]).text(2, "Failure").text(3, &self.message).text(4, &self.reason);
                if let Some(cause) = self.cause {
                    let mut one = Message::default();
                    one.text(1, cause).text(2, &self.message);
                    let mut details = Message::default();
                    details.bytes(4, &one.0).varint(5, 1);
                    status.bytes(5, &details.0);
                }
                status.varint(6, u64::from(self.code));
                envelope("v1", "Status", &status.0).into()
            }
        }
    }
}

/// An object with kind and version in front.
fn typed(kind: &str, api_version: &str, object: &Value) -> String {
    let text = untyped(object);
    let rest = if text.len() > 2 { format!(",{}", &text[1..]) } else { "}".to_owned() };
    format!("{{\"kind\":{},\"apiVersion\":{}{rest}", Value::from(kind), Value::from(api_version))
}

/// An item of a typed list: it has neither.
pub(super) fn untyped(object: &Value) -> String {
    let mut fields = object.as_object().cloned().unwrap_or_default();
    fields.remove("kind");
    fields.remove("apiVersion");
    Value::Object(fields).to_string()
}

fn kind_of(object: &Value) -> (&str, &str) {
    (object["kind"].as_str().unwrap_or_default(), object["apiVersion"].as_str().unwrap_or_default())
}

/// The answer of a GET.
pub(super) fn object(encoding: Encoding, object: &Value) -> Bytes {
    match encoding {
        Encoding::Json => format!("{}\n", embedded_json(object)).into(),
        Encoding::Protobuf => embedded_protobuf(object).into(),
    }
}

fn embedded_json(object: &Value) -> String {
    let (kind, api_version) = kind_of(object);
    if kind.is_empty() { object.to_string() } else { typed(kind, api_version, object) }
}

fn embedded_protobuf(object: &Value) -> Vec<u8> {
    let (kind, api_version) = kind_of(object);
    envelope(api_version, kind, &protobuf(object).0)
}

/// The answer of a LIST. `version` is empty where the collection has none.
pub(super) fn list(
    encoding: Encoding,
    kind: &Kind,
    api_version: &str,
    version: &str,
    next: Option<&str>,
    items: &[&Value],
) -> Bytes {
    match encoding {
        Encoding::Json => {
            let next = next.map(|next| format!(",\"continue\":{}", Value::from(next))).unwrap_or_default();
            // Items of custom resources keep kind and version.
            let item = if kind.json_only { embedded_json } else { untyped };
            let items: Vec<String> = items.iter().map(|object| item(object)).collect();
            format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{{\"resourceVersion\":\"{version}\"\
                 {next}}},\"items\":[{}]}}\n",
                kind.name,
                items.join(",")
            )
            .into()
        }
        Encoding::Protobuf => {
            let mut meta = Message::default();
            meta.text(1, "").text(2, version).text(3, next.unwrap_or_default());
            let mut raw = Message::default();
            raw.bytes(1, &meta.0);
            for item in items {
                raw.bytes(2, &protobuf(item).0);
            }
            envelope(api_version, &format!("{}List", kind.name), &raw.0).into()
        }
    }
}

/// A frame of a watch about an object.
pub(super) fn event(encoding: Encoding, event_type: &str, object: &Value) -> Bytes {
    match encoding {
        Encoding::Json => json_frame(event_type, &embedded_json(object)),
        Encoding::Protobuf => protobuf_frame(event_type, &embedded_protobuf(object)),
    }
}

/// An object with nothing but a version; the last of the initial events says so.
pub(super) fn bookmark(
    encoding: Encoding,
    kind: &Kind,
    api_version: &str,
    version: u64,
    initial_events_end: bool,
) -> Bytes {
    let mut metadata = serde_json::json!({"resourceVersion": version.to_string()});
    if initial_events_end {
        metadata["annotations"] = serde_json::json!({"k8s.io/initial-events-end": "true"});
    }
    let object = serde_json::json!({"kind": kind.name, "apiVersion": api_version, "metadata": metadata});
    event(encoding, "BOOKMARK", &object)
}

/// The frame that ends a watch.
pub(super) fn error(encoding: Encoding, failure: &Failure) -> Bytes {
    let status = failure.body(encoding);
    match encoding {
        Encoding::Json => json_frame("ERROR", std::str::from_utf8(&status).unwrap().trim_end()),
        Encoding::Protobuf => protobuf_frame("ERROR", &status),
    }
}

fn json_frame(event_type: &str, object: &str) -> Bytes {
    format!("{{\"type\":\"{event_type}\",\"object\":{object}}}\n").into()
}

/// WatchEvent{type 1, object 2: RawExtension{raw 1}} behind its length.
fn protobuf_frame(event_type: &str, object: &[u8]) -> Bytes {
    let mut extension = Message::default();
    extension.bytes(1, object);
    let mut event = Message::default();
    event.text(1, event_type).bytes(2, &extension.0);
    let mut frame = u32::try_from(event.0.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(event.0);
    frame.into()
}

/// Magic and runtime.Unknown{typeMeta 1 {apiVersion 1, kind 2}, raw 2, contentEncoding 3, contentType 4}.
fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Message::default();
    type_meta.text(1, api_version).text(2, kind);
    let mut unknown = Message::default();
    unknown.bytes(1, &type_meta.0).bytes(2, raw).text(3, "").text(4, "");
    [b"k8s\0".as_slice(), &unknown.0].concat()
}

fn protobuf(object: &Value) -> Message {
    let mut out = Message::default();
    out.bytes(1, &meta(&object["metadata"]).0);
    let mut rest: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    for field in ["kind", "apiVersion", "metadata"] {
        rest.remove(field);
    }
    if rest.get("data").and_then(Value::as_object).is_some_and(|data| data.values().all(Value::is_string)) {
        entries(&mut out, 2, rest.remove("data").as_ref());
    }
    if object["kind"] == "EndpointSlice" {
        for endpoint in rest.remove("endpoints").iter().filter_map(Value::as_array).flatten() {
            out.bytes(2, &self::endpoint(endpoint).0);
        }
        out.text(4, rest.remove("addressType").as_ref().and_then(Value::as_str).unwrap_or_default());
    }
    if object["kind"] == "Service" && object["spec"].is_object() {
        out.bytes(2, &service_spec(&object["spec"]).0);
    }
    if object["kind"] == "Node"
        && let Some(port) =
            object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64)
    {
        out.bytes(3, &node_status(port).0);
    }
    if !rest.is_empty() {
        out.text(REST, &Value::Object(rest).to_string());
    }
    out
}

/// NodeStatus{daemonEndpoints 6 {kubeletEndpoint 1 {Port 1}}}.
fn node_status(port: u64) -> Message {
    let (mut endpoint, mut endpoints, mut out) = (Message::default(), Message::default(), Message::default());
    endpoint.varint(1, port);
    endpoints.bytes(1, &endpoint.0);
    out.bytes(6, &endpoints.0);
    out
}

/// ServiceSpec{ports 1 {name 1, port 3}, clusterIP 3, type 4, publishNotReadyAddresses 13, clusterIPs 18}.
fn service_spec(spec: &Value) -> Message {
    let mut out = Message::default();
    let text = |name: &str| spec[name].as_str().unwrap_or_default();
    for port in spec["ports"].as_array().into_iter().flatten() {
        let mut one = Message::default();
        one.text(1, port["name"].as_str().unwrap_or_default());
        one.varint(3, port["port"].as_u64().unwrap_or_default());
        out.bytes(1, &one.0);
    }
    out.text(3, text("clusterIP")).text(4, text("type"));
    out.varint(13, spec["publishNotReadyAddresses"].as_bool().unwrap_or_default().into());
    for address in spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.text(18, address);
    }
    out
}

/// Endpoint{addresses 1, conditions 2 {ready 1, serving 2, terminating 3}, targetRef 4 {kind 1, namespace 2, name 3, uid
/// 4}, nodeName 6}.
fn endpoint(endpoint: &Value) -> Message {
    let mut out = Message::default();
    for address in endpoint["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.text(1, address);
    }
    let mut conditions = Message::default();
    for (number, name) in [(1, "ready"), (2, "serving"), (3, "terminating")] {
        if let Some(value) = endpoint["conditions"][name].as_bool() {
            conditions.varint(number, value.into());
        }
    }
    out.bytes(2, &conditions.0);
    if endpoint["targetRef"].is_object() {
        let mut target = Message::default();
        for (number, name) in [(1, "kind"), (2, "namespace"), (3, "name"), (4, "uid")] {
            target.text(number, endpoint["targetRef"][name].as_str().unwrap_or_default());
        }
        out.bytes(4, &target.0);
    }
    if let Some(node) = endpoint["nodeName"].as_str() {
        out.text(6, node);
    }
    out
}

/// ObjectMeta, written as Go does: fields that are no pointers are there when they are empty.
fn meta(metadata: &Value) -> Message {
    let text = |name: &str| metadata[name].as_str().unwrap_or_default();
    let mut out = Message::default();
    out.text(1, text("name")).text(2, text("generateName")).text(3, text("namespace")).text(4, "");
    out.text(5, text("uid")).text(6, text("resourceVersion"));
    out.varint(7, metadata["generation"].as_u64().unwrap_or_default()).bytes(8, &[]);
    entries(&mut out, 11, metadata.get("labels"));
    entries(&mut out, 12, metadata.get("annotations"));
    out
}

/// A map of texts.
fn entries(out: &mut Message, number: u32, map: Option<&Value>) {
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        let mut entry = Message::default();
        entry.text(1, key).text(2, value.as_str().unwrap_or_default());
        out.bytes(number, &entry.0);
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, number: u32, value: u64) -> &mut Self {
        self.number(u64::from(number) << 3);
        self.number(value);
        self
    }

    fn bytes(&mut self, number: u32, value: &[u8]) -> &mut Self {
        self.number(u64::from(number) << 3 | 2);
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(&mut self, number: u32, value: &str) -> &mut Self {
        self.bytes(number, value.as_bytes())
    }
}
