//! EndpointSlices, edited where they lie: what endpoints say of the addresses and the readiness of their pods, in either
//! encoding. Everything else stays byte for byte, fields of tomorrow included.
//!
//! `discovery.k8s.io/v1`, `generated.proto`: EndpointSlice{metadata 1, endpoints 2, addressType 4}, Endpoint{addresses
//! 1, conditions 2, targetRef 4}, EndpointConditions{ready 1, serving 2, terminating 3}; `core/v1`: ObjectReference{kind
//! 1, namespace 2, name 3, uid 4}; ObjectMeta{namespace 3, labels 11}.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::proto::{self, Value, Writer};
use super::{Encoding, Resource, WireError, json};

const WHAT: &str = "EndpointSlice";
/// Names the Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What an endpoint's meaning depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Slice<'a> {
    pub(crate) namespace: Cow<'a, str>,
    /// Name of its Service; empty if it belongs to none.
    pub(crate) service: Cow<'a, str>,
    /// `IPv4`, `IPv6`, `FQDN`
    pub(crate) address_type: Cow<'a, str>,
}

/// The object behind an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Target<'a> {
    #[serde(borrow)]
    pub(crate) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) uid: Cow<'a, str>,
}

/// What is known of an endpoint's state; what is not said is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

/// An endpoint, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Endpoint<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) addresses: Vec<Cow<'a, str>>,
    pub(crate) conditions: Conditions,
}

/// What becomes of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It stays as it is.
    Keep,
    /// The slice has no such endpoint.
    Remove,
    /// Its pod is there, and like this.
    Show { addresses: Vec<String>, ready: bool, serving: bool },
}

impl Edit {
    /// An edit that would change nothing is none.
    fn of(self, endpoint: &Endpoint<'_>) -> Self {
        match &self {
            Self::Show { addresses, ready, serving }
                if *addresses == endpoint.addresses
                    && (endpoint.conditions.ready, endpoint.conditions.serving)
                        == (Some(*ready), Some(*serving)) =>
            {
                Self::Keep
            }
            _ => self,
        }
    }
}

/// Whether objects of this resource are what [`edit`] reads.
pub(crate) fn is_slice(resource: &Resource) -> bool {
    (&*resource.group, &*resource.version, &*resource.plural) == ("discovery.k8s.io", "v1", "endpointslices")
}

/// Edits a stored slice; `None` when nothing changes.
///
/// # Errors
///
/// [`WireError`] when it is no EndpointSlice.
pub(crate) fn edit(
    encoding: Encoding,
    stored: &[u8],
    decide: impl Fn(&Slice<'_>, &Endpoint<'_>) -> Edit,
) -> Result<Option<Bytes>, WireError> {
    if encoding.is_partial() {
        Ok(None)
    } else if encoding.is_protobuf() {
        edit_protobuf(stored, decide)
    } else {
        edit_json(stored, decide)
    }
}

fn text(raw: &[u8]) -> Result<Cow<'_, str>, WireError> {
    proto::text(WHAT, raw).map(Cow::Borrowed)
}

fn edit_protobuf(
    stored: &[u8],
    decide: impl Fn(&Slice<'_>, &Endpoint<'_>) -> Edit,
) -> Result<Option<Bytes>, WireError> {
    // The address type comes behind the endpoints.
    let slice = protobuf_slice(stored)?;
    let mut out = Writer::with_capacity(stored.len() + 64);
    let mut changed = false;
    for part in proto::parts(WHAT, stored) {
        let (whole, number, value) = part?;
        let (2, Value::Bytes(raw)) = (number, value) else {
            out.raw(whole);
            continue;
        };
        let endpoint = protobuf_endpoint(raw)?;
        match decide(&slice, &endpoint).of(&endpoint) {
            Edit::Keep => out.raw(whole),
            Edit::Remove => changed = true,
            Edit::Show { addresses, ready, serving } => {
                changed = true;
                out.bytes(2, &shown_protobuf(raw, &addresses, ready, serving)?);
            }
        }
    }
    Ok(changed.then(|| out.finish().into()))
}

fn protobuf_slice(stored: &[u8]) -> Result<Slice<'_>, WireError> {
    let mut slice = Slice::default();
    for field in proto::fields(WHAT, stored) {
        match field? {
            (1, Value::Bytes(meta)) => {
                for field in proto::fields(WHAT, meta) {
                    match field? {
                        (3, Value::Bytes(value)) => slice.namespace = text(value)?,
                        (11, Value::Bytes(entry)) => {
                            if let (SERVICE_NAME, value) = proto::entry(WHAT, entry)? {
                                slice.service = Cow::Borrowed(value);
                            }
                        }
                        _ => {}
                    }
                }
            }
            (4, Value::Bytes(value)) => slice.address_type = text(value)?,
            _ => {}
        }
    }
    Ok(slice)
}

fn protobuf_endpoint(raw: &[u8]) -> Result<Endpoint<'_>, WireError> {
    let mut endpoint = Endpoint::default();
    for field in proto::fields(WHAT, raw) {
        match field? {
            (1, Value::Bytes(value)) => endpoint.addresses.push(text(value)?),
            (2, Value::Bytes(conditions)) => {
                for field in proto::fields(WHAT, conditions) {
                    match field? {
                        (1, Value::Number(value)) => endpoint.conditions.ready = Some(value != 0),
                        (2, Value::Number(value)) => endpoint.conditions.serving = Some(value != 0),
                        (3, Value::Number(value)) => endpoint.conditions.terminating = Some(value != 0),
                        _ => {}
                    }
                }
            }
            (4, Value::Bytes(target)) => {
                for field in proto::fields(WHAT, target) {
                    match field? {
                        (1, Value::Bytes(value)) => endpoint.target.kind = text(value)?,
                        (2, Value::Bytes(value)) => endpoint.target.namespace = text(value)?,
                        (3, Value::Bytes(value)) => endpoint.target.name = text(value)?,
                        (4, Value::Bytes(value)) => endpoint.target.uid = text(value)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(endpoint)
}

/// The endpoint with other addresses and conditions, its other fields as they were.
fn shown_protobuf(
    raw: &[u8],
    addresses: &[String],
    ready: bool,
    serving: bool,
) -> Result<Vec<u8>, WireError> {
    let mut conditions = Writer::default();
    conditions.varint(1, ready.into());
    conditions.varint(2, serving.into());
    let mut rest = Writer::with_capacity(raw.len());
    for part in proto::parts(WHAT, raw) {
        match part? {
            (_, 1, Value::Bytes(_)) => {}
            (_, 2, Value::Bytes(old)) => {
                for part in proto::parts(WHAT, old) {
                    if let (whole, number, _) = part?
                        && !matches!(number, 1 | 2)
                    {
                        conditions.raw(whole);
                    }
                }
            }
            (whole, ..) => rest.raw(whole),
        }
    }
    let mut out = Writer::with_capacity(raw.len() + 32);
    addresses.iter().for_each(|address| out.bytes(1, address.as_bytes()));
    out.bytes(2, &conditions.finish());
    out.raw(&rest.finish());
    Ok(out.finish())
}

fn malformed(error: serde_json::Error) -> WireError {
    WireError::malformed(WHAT, error)
}

fn edit_json(
    stored: &[u8],
    decide: impl Fn(&Slice<'_>, &Endpoint<'_>) -> Edit,
) -> Result<Option<Bytes>, WireError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outer<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
        #[serde(borrow, default)]
        address_type: Cow<'a, str>,
        #[serde(borrow, default)]
        endpoints: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow, default)]
        namespace: Cow<'a, str>,
        #[serde(borrow, default)]
        labels: Option<Labels<'a>>,
    }
    #[derive(Deserialize)]
    struct Labels<'a> {
        #[serde(borrow, default, rename = "kubernetes.io/service-name")]
        service: Cow<'a, str>,
    }
    let outer: Outer<'_> = serde_json::from_slice(stored).map_err(malformed)?;
    let Some(raw) = outer.endpoints else { return Ok(None) };
    let slice = Slice {
        namespace: outer.metadata.namespace,
        service: outer.metadata.labels.map(|labels| labels.service).unwrap_or_default(),
        address_type: outer.address_type,
    };
    let endpoints: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(malformed)?;
    let mut kept: Vec<Cow<'_, str>> = Vec::with_capacity(endpoints.len());
    let mut changed = false;
    for raw in endpoints {
        let endpoint = json_endpoint(raw.get())?;
        match decide(&slice, &endpoint).of(&endpoint) {
            Edit::Keep => kept.push(raw.get().into()),
            Edit::Remove => changed = true,
            Edit::Show { addresses, ready, serving } => {
                changed = true;
                kept.push(shown_json(raw.get(), &addresses, ready, serving)?.into());
            }
        }
    }
    if !changed {
        return Ok(None);
    }
    // `raw` borrows from `stored`.
    let start = raw.get().as_ptr() as usize - stored.as_ptr() as usize;
    let mut out = Vec::with_capacity(stored.len() + 64);
    out.extend_from_slice(&stored[..start]);
    out.push(b'[');
    out.extend_from_slice(kept.join(",").as_bytes());
    out.push(b']');
    out.extend_from_slice(&stored[start + raw.get().len()..]);
    Ok(Some(out.into()))
}

fn json_endpoint(raw: &str) -> Result<Endpoint<'_>, WireError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields<'a> {
        #[serde(default)]
        addresses: Option<Vec<String>>,
        #[serde(default)]
        conditions: Option<Conditions>,
        #[serde(borrow, default)]
        target_ref: Option<Target<'a>>,
    }
    let fields: Fields<'_> = serde_json::from_str(raw).map_err(malformed)?;
    Ok(Endpoint {
        target: fields.target_ref.unwrap_or_default(),
        addresses: fields.addresses.unwrap_or_default().into_iter().map(Cow::Owned).collect(),
        conditions: fields.conditions.unwrap_or_default(),
    })
}

fn shown_json(raw: &str, addresses: &[String], ready: bool, serving: bool) -> Result<String, WireError> {
    let boxed = |text: String| RawValue::from_string(text).map_err(malformed);
    let mut fields: BTreeMap<String, Cow<'_, RawValue>> = borrowed(raw)?;
    let mut conditions: BTreeMap<String, Cow<'_, RawValue>> = match fields.get("conditions") {
        Some(conditions) if conditions.get() != "null" => borrowed(conditions.get())?
            .into_iter()
            .map(|(name, value)| (name, Cow::Owned(value.into_owned())))
            .collect(),
        _ => BTreeMap::new(),
    };
    conditions.insert("ready".to_owned(), Cow::Owned(boxed(ready.to_string())?));
    conditions.insert("serving".to_owned(), Cow::Owned(boxed(serving.to_string())?));
    let addresses = serde_json::to_string(addresses).map_err(malformed)?;
    fields.insert("addresses".to_owned(), Cow::Owned(boxed(addresses)?));
    fields.insert("conditions".to_owned(), Cow::Owned(boxed(object(&conditions))?));
    Ok(object(&fields))
}

fn borrowed(raw: &str) -> Result<BTreeMap<String, Cow<'_, RawValue>>, WireError> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(raw).map_err(malformed)?;
    Ok(fields.into_iter().map(|(name, value)| (name, Cow::Borrowed(value))).collect())
}

fn object(fields: &BTreeMap<String, Cow<'_, RawValue>>) -> String {
    let mut out = vec![b'{'];
    for (name, value) in fields {
        if out.len() > 1 {
            out.push(b',');
        }
        json::write_string(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    // Every part was text.
    String::from_utf8(out).unwrap_or_default()
}

/// Whether a stored Service publishes endpoints that are not ready: `Service{spec 2}`,
/// `ServiceSpec{publishNotReadyAddresses 13}`.
///
/// # Errors
///
/// [`WireError`] when it is no Service.
pub(crate) fn publishes_not_ready(encoding: Encoding, stored: &[u8]) -> Result<bool, WireError> {
    if encoding.is_partial() {
        return Ok(false);
    }
    if encoding.is_protobuf() {
        let mut publishes = false;
        for field in proto::fields("Service", stored) {
            let (2, Value::Bytes(spec)) = field? else { continue };
            for field in proto::fields("Service", spec) {
                if let (13, Value::Number(value)) = field? {
                    publishes = value != 0;
                }
            }
        }
        return Ok(publishes);
    }
    #[derive(Deserialize)]
    struct Service {
        #[serde(default)]
        spec: Option<Spec>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        #[serde(default)]
        publish_not_ready_addresses: Option<bool>,
    }
    let service: Service = serde_json::from_slice(stored).map_err(malformed)?;
    Ok(service.spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default())
}

#[cfg(test)]
mod tests;
