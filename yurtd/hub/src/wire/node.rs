//! Nodes, edited where they lie: which port their kubelet is found at, in either encoding. Everything else stays byte for
//! byte, fields of tomorrow included.
//!
//! `core/v1`, `generated.proto`: Node{metadata 1, status 3}, NodeStatus{daemonEndpoints 6},
//! NodeDaemonEndpoints{kubeletEndpoint 1}, DaemonEndpoint{Port 1}; ObjectMeta{name 1, uid 5, labels 11}.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use yurt_api::kubelet_port;
use yurt_api::names::LABEL_KUBELET_PORT;

use super::proto::{self, Value, Writer};
use super::{Encoding, Resource, WireError};

const WHAT: &str = "Node";
/// Where the port is.
const PATH: [u32; 3] = [3, 6, 1];

/// What is read of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KubeletPort<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) uid: Cow<'a, str>,
    /// The port that the controller has given to it.
    pub(crate) given: Option<u16>,
    /// The one in its status.
    pub(crate) published: Option<u16>,
}

/// Whether objects of this resource are Nodes.
pub(crate) fn is_node(resource: &Resource) -> bool {
    (&*resource.group, &*resource.version, &*resource.plural) == ("", "v1", "nodes")
}

/// Reads a stored Node.
///
/// # Errors
///
/// [`WireError`] when it is none.
pub(crate) fn read(encoding: Encoding, stored: &[u8]) -> Result<KubeletPort<'_>, WireError> {
    if encoding.is_protobuf() { read_protobuf(stored) } else { Ok(read_json(stored)?.0) }
}

/// The Node with another port in its status. In JSON there has to be one.
///
/// # Errors
///
/// [`WireError`] when it is no Node, or has no port.
pub(crate) fn with_port(encoding: Encoding, stored: &[u8], port: u16) -> Result<Bytes, WireError> {
    if encoding.is_protobuf() {
        return Ok(with_protobuf_port(stored, &PATH, port)?.into());
    }
    let (_, Some(old)) = read_json(stored)? else {
        return Err(WireError::malformed(WHAT, "it has no kubelet port"));
    };
    // `old` borrows from `stored`.
    let start = old.as_ptr() as usize - stored.as_ptr() as usize;
    let mut out = Vec::with_capacity(stored.len() + 5);
    out.extend_from_slice(&stored[..start]);
    out.extend_from_slice(port.to_string().as_bytes());
    out.extend_from_slice(&stored[start + old.len()..]);
    Ok(out.into())
}

fn text(raw: &[u8]) -> Result<Cow<'_, str>, WireError> {
    proto::text(WHAT, raw).map(Cow::Borrowed)
}

fn read_protobuf(stored: &[u8]) -> Result<KubeletPort<'_>, WireError> {
    let mut read = KubeletPort::default();
    for field in proto::fields(WHAT, stored) {
        match field? {
            (1, Value::Bytes(meta)) => {
                for field in proto::fields(WHAT, meta) {
                    match field? {
                        (1, Value::Bytes(value)) => read.name = text(value)?,
                        (5, Value::Bytes(value)) => read.uid = text(value)?,
                        (11, Value::Bytes(entry)) => {
                            if let (LABEL_KUBELET_PORT, value) = proto::entry(WHAT, entry)? {
                                read.given = kubelet_port::parse(value);
                            }
                        }
                        _ => {}
                    }
                }
            }
            (3, Value::Bytes(status)) => read.published = protobuf_port(status, &PATH[1..])?,
            _ => {}
        }
    }
    Ok(read)
}

fn protobuf_port(raw: &[u8], path: &[u32]) -> Result<Option<u16>, WireError> {
    let mut port = None;
    for field in proto::fields(WHAT, raw) {
        match (field?, path) {
            ((1, Value::Number(value)), []) => port = u16::try_from(value).ok(),
            ((number, Value::Bytes(inner)), [first, rest @ ..]) if number == *first => {
                port = protobuf_port(inner, rest)?;
            }
            _ => {}
        }
    }
    Ok(port)
}

fn with_protobuf_port(raw: &[u8], path: &[u32], port: u16) -> Result<Vec<u8>, WireError> {
    let mut out = Writer::with_capacity(raw.len() + 16);
    let mut written = false;
    for part in proto::parts(WHAT, raw) {
        match (part?, path) {
            ((_, 1, _), []) => {}
            ((_, number, Value::Bytes(inner)), [first, rest @ ..]) if number == *first => {
                out.bytes(number, &with_protobuf_port(inner, rest, port)?);
                written = true;
            }
            ((whole, ..), _) => out.raw(whole),
        }
    }
    match path {
        [] => out.varint(1, port.into()),
        [first, rest @ ..] if !written => out.bytes(*first, &with_protobuf_port(&[], rest, port)?),
        _ => {}
    }
    Ok(out.finish())
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    labels: Option<Labels<'a>>,
}

#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(borrow, default, rename = "openyurt.io.node-restriction.kubernetes.io/kubelet-port")]
    kubelet_port: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(borrow, default)]
    daemon_endpoints: Option<DaemonEndpoints<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DaemonEndpoints<'a> {
    #[serde(borrow, default)]
    kubelet_endpoint: Option<Endpoint<'a>>,
}

#[derive(Deserialize)]
struct Endpoint<'a> {
    #[serde(borrow, default, rename = "Port")]
    port: Option<&'a RawValue>,
}

/// What is read, and the text of the port.
fn read_json(stored: &[u8]) -> Result<(KubeletPort<'_>, Option<&str>), WireError> {
    let node: Outer<'_> =
        serde_json::from_slice(stored).map_err(|error| WireError::malformed(WHAT, error))?;
    let endpoint = node.status.and_then(|status| status.daemon_endpoints?.kubelet_endpoint);
    let port = endpoint.and_then(|endpoint| endpoint.port).map(RawValue::get);
    let Metadata { name, uid, labels } = node.metadata;
    let given = labels.and_then(|labels| kubelet_port::parse(&labels.kubelet_port));
    let published = port.and_then(|port| port.parse().ok());
    Ok((KubeletPort { name, uid, given, published }, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(port: &str) -> String {
        format!(
            r#"{{"metadata":{{"name":"edge","uid":"u-1","labels":{{"a":"b","{LABEL_KUBELET_PORT}":"40000"}}}},"status":{{"phase":"x","daemonEndpoints":{{"kubeletEndpoint":{{"Port":{port},"new":1}}}},"nodeInfo":{{}}}}}}"#
        )
    }

    fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Writer::default();
        fields.iter().for_each(|(number, value)| out.bytes(*number, value));
        out.finish()
    }

    fn protobuf(port: Option<u16>) -> Vec<u8> {
        let label = message(&[(1, LABEL_KUBELET_PORT.as_bytes()), (2, b"40000")]);
        let meta =
            message(&[(1, b"edge"), (5, b"u-1"), (11, &message(&[(1, b"a"), (2, b"b")])), (11, &label)]);
        let endpoint = port.map(|port| {
            let mut endpoint = Writer::default();
            endpoint.varint(1, port.into());
            endpoint.bytes(9, b"new");
            message(&[(1, &endpoint.finish()), (7, b"new")])
        });
        let status = match &endpoint {
            Some(endpoints) => message(&[(3, b"x"), (6, endpoints), (7, b"info")]),
            None => message(&[(3, b"x"), (7, b"info")]),
        };
        message(&[(1, &meta), (2, b"spec"), (3, &status), (99, b"new")])
    }

    #[test]
    fn label_and_port_are_read_in_both_encodings() {
        let expected = KubeletPort {
            name: "edge".into(),
            uid: "u-1".into(),
            given: Some(40_000),
            published: Some(10250),
        };
        assert_eq!(read(Encoding::Json, json("10250").as_bytes()).unwrap(), expected);
        assert_eq!(read(Encoding::Protobuf, &protobuf(Some(10250))).unwrap(), expected);
        for text in [r#"{"metadata":{"labels":null},"status":null}"#, r#"{"metadata":{}}"#] {
            assert_eq!(read(Encoding::Json, text.as_bytes()).unwrap(), KubeletPort::default());
        }
        assert!(read(Encoding::Json, b"[]").is_err() && read(Encoding::Protobuf, b"\x0a\xff").is_err());
    }

    #[test]
    fn the_port_and_nothing_else_is_another_one() {
        let changed = with_port(Encoding::Json, json("10250").as_bytes(), 40_000).unwrap();
        assert_eq!(changed, json("40000").as_bytes());
        let changed = with_port(Encoding::Protobuf, &protobuf(Some(10250)), 40_000).unwrap();
        let read = read(Encoding::Protobuf, &changed).unwrap();
        assert_eq!((read.published, &*read.uid), (Some(40_000), "u-1"));
        let back = with_port(Encoding::Protobuf, &changed, 10250).unwrap();
        // The field has moved to the end of its message.
        assert_eq!(with_port(Encoding::Protobuf, &protobuf(Some(10250)), 10250).unwrap(), back);
        assert_eq!(back.len(), protobuf(Some(10250)).len());
        let made = with_port(Encoding::Protobuf, &protobuf(None), 40_000).unwrap();
        assert_eq!(super::read(Encoding::Protobuf, &made).unwrap().published, Some(40_000));
    }
}
