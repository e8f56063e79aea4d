//! What selectors look at in an object: its labels, and the few fields that the API server selects by.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::proto::{self, Value};
use super::{Encoding, WireError};

/// What was read of a stored object. Fields that it does not have are empty, as the API server takes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Selectable<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) namespace: Cow<'a, str>,
    labels: HashMap<Cow<'a, str>, Cow<'a, str>>,
    /// `spec.clusterIP` of a Service.
    pub(crate) cluster_ip: Cow<'a, str>,
    /// `spec.type` of a Service.
    pub(crate) service_type: Cow<'a, str>,
}

impl<'a> Selectable<'a> {
    /// Reads an object in its stored form.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is no object.
    pub(crate) fn read(encoding: Encoding, stored: &'a [u8]) -> Result<Self, WireError> {
        if encoding.is_protobuf() { protobuf(stored) } else { json(stored) }
    }

    /// The value of a label, if it has it.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(|value| &**value)
    }
}

/// ObjectMeta{name 1, namespace 3, labels 11 {key 1, value 2}}, ServiceSpec{clusterIP 3, type 4}.
fn protobuf(stored: &[u8]) -> Result<Selectable<'_>, WireError> {
    let what = "object";
    let text = |value| proto::text(what, value).map(Cow::Borrowed);
    let mut object = Selectable::default();
    for field in proto::fields(what, stored) {
        match field? {
            (1, Value::Bytes(metadata)) => {
                for field in proto::fields(what, metadata) {
                    match field? {
                        (1, Value::Bytes(value)) => object.name = text(value)?,
                        (3, Value::Bytes(value)) => object.namespace = text(value)?,
                        (11, Value::Bytes(entry)) => {
                            let (mut key, mut label) = (Cow::default(), Cow::default());
                            for field in proto::fields(what, entry) {
                                match field? {
                                    (1, Value::Bytes(value)) => key = text(value)?,
                                    (2, Value::Bytes(value)) => label = text(value)?,
                                    _ => {}
                                }
                            }
                            object.labels.insert(key, label);
                        }
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(spec)) => service(spec, &mut object),
            _ => {}
        }
    }
    Ok(object)
}

/// The spec of a Service. Of any other kind what is field 2 may be anything, and nobody asks for these of it.
fn service<'a>(spec: &'a [u8], object: &mut Selectable<'a>) {
    for field in proto::fields("spec", spec) {
        let (number @ (3 | 4), Value::Bytes(value)) = (match field {
            Ok(field) => field,
            Err(_) => return,
        }) else {
            continue;
        };
        let Ok(text) = std::str::from_utf8(value) else { return };
        let field = if number == 3 { &mut object.cluster_ip } else { &mut object.service_type };
        *field = Cow::Borrowed(text);
    }
}

fn json(stored: &[u8]) -> Result<Selectable<'_>, WireError> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
        #[serde(borrow, default)]
        spec: Option<&'a serde_json::value::RawValue>,
    }
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow, default)]
        name: Cow<'a, str>,
        #[serde(borrow, default)]
        namespace: Cow<'a, str>,
        #[serde(borrow, default)]
        labels: Option<HashMap<Cow<'a, str>, Cow<'a, str>>>,
    }
    #[derive(Deserialize, Default)]
    struct Spec<'a> {
        #[serde(borrow, default, rename = "clusterIP")]
        cluster_ip: Cow<'a, str>,
        #[serde(borrow, default, rename = "type")]
        service_type: Cow<'a, str>,
    }
    let object: Object<'_> =
        serde_json::from_slice(stored).map_err(|error| WireError::malformed("object", error))?;
    let spec = object.spec.and_then(|spec| serde_json::from_str::<Spec<'_>>(spec.get()).ok());
    let Spec { cluster_ip, service_type } = spec.unwrap_or_default();
    let Metadata { name, namespace, labels } = object.metadata;
    Ok(Selectable { name, namespace, labels: labels.unwrap_or_default(), cluster_ip, service_type })
}

#[cfg(test)]
mod tests {
    use super::proto::Writer;
    use super::*;

    #[test]
    fn both_encodings_show_the_same() {
        let text = br#"{"metadata":{"name":"dns","namespace":"kube-system","labels":{"a":"1","b":""}},"spec":{"ports":[{"port":53}],"clusterIP":"None","type":"ClusterIP"}}"#;
        let mut metadata = Writer::default();
        metadata.bytes(1, b"dns");
        metadata.bytes(3, b"kube-system");
        for (key, value) in [("a", "1"), ("b", "")] {
            let mut entry = Writer::default();
            entry.bytes(1, key.as_bytes());
            entry.bytes(2, value.as_bytes());
            metadata.bytes(11, &entry.finish());
        }
        let mut spec = Writer::default();
        spec.bytes(1, b"");
        spec.bytes(3, b"None");
        spec.bytes(4, b"ClusterIP");
        let mut object = Writer::default();
        object.bytes(1, &metadata.finish());
        object.bytes(2, &spec.finish());
        let object = object.finish();
        let protobuf = Selectable::read(Encoding::Protobuf, &object).unwrap();
        assert_eq!(protobuf, Selectable::read(Encoding::Json, text).unwrap());
        assert_eq!(
            (protobuf.label("a"), protobuf.label("b"), protobuf.label("c"), &*protobuf.cluster_ip),
            (Some("1"), Some(""), None, "None")
        );
    }

    #[test]
    fn what_is_no_object_is_an_error_and_what_is_missing_is_empty() {
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            assert!(Selectable::read(encoding, &[0x0a, 9, 1]).is_err());
        }
        let bare = Selectable::read(Encoding::Json, br#"{"metadata":{"name":"a","labels":null},"spec":7}"#);
        assert_eq!(bare.unwrap(), Selectable { name: "a".into(), ..Selectable::default() });
    }
}
