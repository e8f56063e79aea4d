//! JSON objects as text: what the hub reads of them, and `kind`/`apiVersion` off and on.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Encoding, Item, ObjectMeta, TypeMeta, WireError, parse_resource_version};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
}

impl Metadata<'_> {
    fn checked(self) -> Result<ObjectMeta, WireError> {
        let resource_version = match &*self.resource_version {
            "" => 0,
            version => parse_resource_version(version)?,
        };
        if self.name.is_empty() {
            return Err(WireError::malformed("object", "it has no name"));
        }
        Ok(ObjectMeta {
            namespace: self.namespace.into_owned(),
            name: self.name.into_owned(),
            uid: self.uid.into_owned(),
            resource_version,
        })
    }
}

fn parse(text: &str) -> Result<Object<'_>, WireError> {
    serde_json::from_str(text).map_err(|error| WireError::malformed("object", error))
}

/// Takes an object apart, into its stored form.
///
/// # Errors
///
/// [`WireError`] when it is no object with a name.
pub(crate) fn decode_item(encoding: Encoding, text: &str) -> Result<(TypeMeta, Item), WireError> {
    let object = parse(text)?;
    let kind = TypeMeta::new(&object.api_version, &object.kind);
    let meta = object.metadata.checked()?;
    let body = stored(encoding, text, !(kind.kind.is_empty() && kind.api_version.is_empty()))?;
    Ok((kind, Item { meta, body }))
}

/// What is read of a stored object.
///
/// # Errors
///
/// [`WireError`] when it is no object with a name.
pub(crate) fn object_meta(stored: &[u8]) -> Result<ObjectMeta, WireError> {
    let object: Object<'_> =
        serde_json::from_slice(stored).map_err(|error| WireError::malformed("object", error))?;
    object.metadata.checked()
}

/// Takes the body of a GET apart.
///
/// # Errors
///
/// [`WireError`] when it is no object with a name.
pub(crate) fn decode_object(encoding: Encoding, body: &[u8]) -> Result<(TypeMeta, Item), WireError> {
    let text = std::str::from_utf8(body).map_err(|error| WireError::malformed("object", error))?;
    decode_item(encoding, text)
}

/// resourceVersion of a bookmark's object.
///
/// # Errors
///
/// [`WireError`] when it has none.
pub(crate) fn bookmark_version(text: &str) -> Result<u64, WireError> {
    parse_resource_version(&parse(text)?.metadata.resource_version)
}

/// The stored form of an object: on one line, without the `kind` and `apiVersion` that Go puts first. Others that carry
/// them have them first, where [`write_typed`] looks.
fn stored(encoding: Encoding, text: &str, has_type: bool) -> Result<Bytes, WireError> {
    let text = compact(text.trim());
    // Items of a PartialObjectMetadataList carry both.
    let rest = if encoding.is_partial() { None } else { strip_type(&text) };
    Ok(match rest {
        Some(rest) => {
            let mut out = Vec::with_capacity(rest.len() + 1);
            out.push(b'{');
            out.extend_from_slice(rest.as_bytes());
            out.into()
        }
        None if has_type && !carries_type(text.as_bytes()) => type_first(&text)?,
        None => match text {
            Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        },
    })
}

/// The object with `apiVersion` and `kind` in front. Go writes a custom resource's fields in the order of the alphabet,
/// and a few begin before `apiVersion`.
fn type_first(text: &str) -> Result<Bytes, WireError> {
    let mut fields: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| WireError::malformed("object", error))?;
    let mut out = Vec::with_capacity(text.len());
    let first = ["apiVersion", "kind"].map(|name| fields.remove_entry(name));
    for (name, value) in first.into_iter().flatten().chain(fields) {
        out.push(if out.is_empty() { b'{' } else { b',' });
        write_string(&mut out, &name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Ok(out.into())
}

/// What follows `{"kind":"K","apiVersion":"V",`.
fn strip_type(text: &str) -> Option<&str> {
    let (kind, rest) = text.strip_prefix("{\"kind\":\"")?.split_once('"')?;
    let (version, rest) = rest.strip_prefix(",\"apiVersion\":\"")?.split_once('"')?;
    let plain = !kind.is_empty() && !kind.contains('\\') && !version.contains('\\');
    if plain { rest.strip_prefix(',') } else { None }
}

/// Without white space between tokens. Watch events are cut at line ends, and no API server of Go writes any.
fn compact(text: &str) -> Cow<'_, str> {
    if !text.contains(['\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let (mut in_string, mut escaped) = (false, false);
    let keep = |character: &char| {
        if in_string {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            return true;
        }
        in_string = *character == '"';
        !matches!(character, ' ' | '\t' | '\n' | '\r')
    };
    Cow::Owned(text.chars().filter(keep).collect())
}

/// A stored object with its `kind` and `apiVersion` in front, unless it carries them itself.
pub(crate) fn typed(kind: &TypeMeta, stored: &[u8], newline: bool) -> Bytes {
    let mut out = Vec::with_capacity(stored.len() + kind.kind.len() + kind.api_version.len() + 32);
    write_typed(&mut out, kind, stored);
    if newline {
        out.push(b'\n');
    }
    out.into()
}

fn carries_type(stored: &[u8]) -> bool {
    stored.starts_with(b"{\"kind\":") || stored.starts_with(b"{\"apiVersion\":")
}

/// Appends [`typed`].
pub(crate) fn write_typed(out: &mut Vec<u8>, kind: &TypeMeta, stored: &[u8]) {
    if carries_type(stored) || kind.kind.is_empty() {
        out.extend_from_slice(stored);
        return;
    }
    out.push(b'{');
    write_type_fields(out, kind);
    match stored.strip_prefix(b"{") {
        Some(b"}") | None => out.push(b'}'),
        Some(rest) => {
            out.push(b',');
            out.extend_from_slice(rest);
        }
    }
}

/// `"kind":"K","apiVersion":"V"`.
pub(crate) fn write_type_fields(out: &mut Vec<u8>, kind: &TypeMeta) {
    out.extend_from_slice(b"\"kind\":");
    write_string(out, &kind.kind);
    out.extend_from_slice(b",\"apiVersion\":");
    write_string(out, &kind.api_version);
}

/// A JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    out.extend_from_slice(&serde_json::to_vec(text).unwrap_or_default());
}

/// The object with another resourceVersion.
///
/// # Errors
///
/// [`WireError`] when it has none.
pub(crate) fn with_resource_version(stored: &[u8], version: u64) -> Result<Bytes, WireError> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Inner<'a> {
        #[serde(borrow)]
        resource_version: &'a RawValue,
    }
    let malformed = |error| WireError::malformed("object", error);
    let outer: Outer<'_> = serde_json::from_slice(stored).map_err(malformed)?;
    let inner: Inner<'_> = serde_json::from_str(outer.metadata.get()).map_err(malformed)?;
    let old = inner.resource_version.get();
    // `old` borrows from `stored`.
    let start = old.as_ptr() as usize - stored.as_ptr() as usize;
    let mut out = Vec::with_capacity(stored.len() + 20);
    out.extend_from_slice(&stored[..start]);
    out.extend_from_slice(format!("\"{version}\"").as_bytes());
    out.extend_from_slice(&stored[start + old.len()..]);
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","uid":"u","resourceVersion":"7"},"spec":{"x":" \"\n"}}"#;
    const FOO: &str =
        r#"{"apiVersion":"example.com/v1","kind":"Foo","metadata":{"name":"a","resourceVersion":"7"}}"#;

    fn kind() -> TypeMeta {
        TypeMeta::new("v1", "Pod")
    }

    #[test]
    fn kind_and_version_come_off_and_go_on_again() {
        let (found, item) = decode_item(Encoding::Json, POD).unwrap();
        assert_eq!(found, kind());
        assert!(item.body.starts_with(br#"{"metadata":"#));
        assert_eq!(typed(&kind(), &item.body, false), POD.as_bytes());
        assert_eq!(item.meta.key(), "default/web");
    }

    #[test]
    fn an_object_without_them_is_stored_as_it_is() {
        let bare = POD.replace(r#""kind":"Pod","apiVersion":"v1","#, "");
        assert_eq!(decode_item(Encoding::Json, &bare).unwrap().1.body, bare.as_bytes());
    }

    #[test]
    fn a_custom_resource_keeps_them() {
        let (_, item) = decode_item(Encoding::Json, FOO).unwrap();
        assert_eq!(item.body, FOO.as_bytes());
        assert_eq!(typed(&TypeMeta::new("example.com/v1", "Foo"), &item.body, false), FOO.as_bytes());
    }

    #[test]
    fn kind_and_version_are_never_written_twice() {
        let early = r#"{ "active":1.50,"apiVersion":"example.com/v1","kind":"Foo","metadata":{"name":"a"}}"#;
        let (kind, item) = decode_item(Encoding::Json, early).unwrap();
        let typed = typed(&kind, &item.body, false);
        assert_eq!(
            typed,
            r#"{"apiVersion":"example.com/v1","kind":"Foo","active":1.50,"metadata":{"name":"a"}}"#
        );
        assert_eq!(decode_object(Encoding::Json, &typed), Ok((kind, item)));
    }

    #[test]
    fn a_pretty_object_becomes_one_line_and_strings_stay() {
        let pretty = POD.replace(',', " ,\n\t").replace("{", "{ \n");
        let (_, item) = decode_item(Encoding::Json, &pretty).unwrap();
        assert_eq!(typed(&kind(), &item.body, false), POD.as_bytes());
    }

    #[test]
    fn another_resource_version_changes_nothing_else() {
        let changed = with_resource_version(POD.as_bytes(), 1234).unwrap();
        assert_eq!(changed, POD.replace("\"7\"", "\"1234\"").as_bytes());
        assert!(with_resource_version(b"{\"metadata\":{}}", 1).is_err());
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for bad in
            ["", "[]", "{}", r#"{"metadata":{}}"#, r#"{"metadata":{"name":"a","resourceVersion":"x"}}"#]
        {
            assert!(decode_item(Encoding::Json, bad).is_err(), "{bad}");
        }
    }
}
