//! Protobuf without schemas: a bounded cursor over fields, the envelope of Kubernetes, and what the hub reads of
//! `ObjectMeta`. Everything that is not read is copied.

use bytes::Bytes;

use super::{ObjectMeta, TypeMeta, WireError, parse_resource_version};

/// What every protobuf body of Kubernetes starts with.
const MAGIC: &[u8; 4] = b"k8s\0";

/// Value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Wire type 0.
    Number(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire types 1 and 5, as they are.
    Fixed(&'a [u8]),
}

/// Fields of one message in order.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
    failed: bool,
}

/// Reads the fields of a message; `what` names it in errors.
pub(crate) fn fields<'a>(what: &'static str, raw: &'a [u8]) -> Fields<'a> {
    Fields { what, rest: raw, failed: false }
}

impl<'a> Fields<'a> {
    /// What has not been read yet.
    fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(WireError::Truncated { what: self.what })?;
            self.rest = rest;
            // The tenth byte holds the last bit.
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::malformed(self.what, "a number has more than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(length).map_err(|_| WireError::Truncated { what: self.what })?;
        let (taken, rest) =
            self.rest.split_at_checked(length).ok_or(WireError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 || number >= 1 << 29 {
            return Err(WireError::malformed(self.what, "a field number is out of range"));
        }
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Fixed(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed(self.take(4)?),
            other => return Err(WireError::malformed(self.what, format!("wire type {other}"))),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.failed = field.is_err();
        Some(field)
    }
}

/// A field as it lies there, its number, its value.
pub(crate) type Part<'a> = (&'a [u8], u32, Value<'a>);

/// Reads the fields of a message with the bytes that each one takes, so that it can be written again without some.
pub(crate) fn parts<'a>(
    what: &'static str,
    raw: &'a [u8],
) -> impl Iterator<Item = Result<Part<'a>, WireError>> {
    let mut all = fields(what, raw);
    std::iter::from_fn(move || {
        let before = all.rest();
        let field = all.next()?;
        let whole = &before[..before.len() - all.rest().len()];
        Some(field.map(|(number, value)| (whole, number, value)))
    })
}

/// A string field.
///
/// # Errors
///
/// [`WireError::Malformed`] when it is not UTF-8.
pub(crate) fn text<'a>(what: &'static str, raw: &'a [u8]) -> Result<&'a str, WireError> {
    std::str::from_utf8(raw).map_err(|error| WireError::malformed(what, error))
}

/// An entry of a map of texts: key 1, value 2.
///
/// # Errors
///
/// [`WireError`] when it is none.
pub(crate) fn entry<'a>(what: &'static str, raw: &'a [u8]) -> Result<(&'a str, &'a str), WireError> {
    let (mut key, mut value) = ("", "");
    for field in fields(what, raw) {
        match field? {
            (1, Value::Bytes(raw)) => key = text(what, raw)?,
            (2, Value::Bytes(raw)) => value = text(what, raw)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Builds a message field by field.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// With room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity) }
    }

    /// A field of wire type 2, also when empty: Go's encoder writes empty strings.
    pub(crate) fn bytes(&mut self, number: u32, value: &[u8]) {
        self.header(number, value.len());
        self.out.extend_from_slice(value);
    }

    /// Only tag and length of a field of wire type 2: its bytes follow by [`Self::raw`].
    pub(crate) fn header(&mut self, number: u32, length: usize) {
        self.number(u64::from(number) << 3 | 2);
        self.number(length as u64);
    }

    /// A field of wire type 0.
    pub(crate) fn varint(&mut self, number: u32, value: u64) {
        self.number(u64::from(number) << 3);
        self.number(value);
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// What was written.
    pub(crate) fn written(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    /// The message.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Bytes of a field of wire type 2 with a field number below 16.
pub(crate) fn field_size(length: usize) -> usize {
    1 + varint_size(length as u64) + length
}

fn varint_size(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// TypeMeta{apiVersion 1, kind 2}.
fn type_meta(kind: &TypeMeta) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(1, kind.api_version.as_bytes());
    out.bytes(2, kind.kind.as_bytes());
    out.finish()
}

/// Starts a body: magic, typeMeta and the header of `raw`, whose `length` bytes follow, then
/// [`finish_envelope`]. There is room for `room` of them. runtime.Unknown{typeMeta 1, raw 2, contentEncoding 3, contentType 4}.
pub(crate) fn start_envelope(kind: &TypeMeta, length: usize, room: usize) -> Writer {
    let meta = type_meta(kind);
    let mut out =
        Writer::with_capacity(MAGIC.len() + field_size(meta.len()) + field_size(length) - length + room + 4);
    out.raw(MAGIC);
    out.bytes(1, &meta);
    out.header(2, length);
    out
}

/// Ends what [`start_envelope`] began.
pub(crate) fn finish_envelope(mut out: Writer) -> Bytes {
    out.bytes(3, &[]);
    out.bytes(4, &[]);
    out.finish().into()
}

/// A body with its envelope.
pub(crate) fn envelope(kind: &TypeMeta, raw: &[u8]) -> Bytes {
    let mut out = start_envelope(kind, raw.len(), raw.len());
    out.raw(raw);
    finish_envelope(out)
}

/// Takes the envelope off.
///
/// # Errors
///
/// [`WireError`] when there is none, or its content is encoded in a way that we do not know.
pub(crate) fn open_envelope(body: &Bytes) -> Result<(TypeMeta, Bytes), WireError> {
    let what = "protobuf envelope";
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| WireError::malformed(what, "it lacks the magic"))?;
    let mut kind = TypeMeta::new("", "");
    let mut raw = Bytes::new();
    for field in fields(what, unknown) {
        match field? {
            (1, Value::Bytes(meta)) => {
                for field in fields(what, meta) {
                    match field? {
                        (1, Value::Bytes(value)) => kind.api_version = text(what, value)?.to_owned(),
                        (2, Value::Bytes(value)) => kind.kind = text(what, value)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(value)) => raw = body.slice_ref(value),
            (3, Value::Bytes(value)) if !value.is_empty() => {
                return Err(WireError::malformed(what, "its content is encoded"));
            }
            _ => {}
        }
    }
    Ok((kind, raw))
}

/// ObjectMeta{name 1, namespace 3, uid 5, resourceVersion 6} of an object, whose metadata is field 1.
///
/// # Errors
///
/// [`WireError`] when the object is malformed or has no name.
pub(crate) fn object_meta(object: &[u8]) -> Result<ObjectMeta, WireError> {
    let what = "object";
    let mut meta = ObjectMeta::default();
    for field in fields(what, object) {
        let (1, Value::Bytes(raw)) = field? else { continue };
        for field in fields("object metadata", raw) {
            match field? {
                (1, Value::Bytes(value)) => meta.name = text(what, value)?.to_owned(),
                (3, Value::Bytes(value)) => meta.namespace = text(what, value)?.to_owned(),
                (5, Value::Bytes(value)) => meta.uid = text(what, value)?.to_owned(),
                (6, Value::Bytes([])) => {}
                (6, Value::Bytes(value)) => {
                    meta.resource_version = parse_resource_version(text(what, value)?)?
                }
                _ => {}
            }
        }
    }
    if meta.name.is_empty() { Err(WireError::malformed(what, "it has no name")) } else { Ok(meta) }
}

/// resourceVersion of an object that may lack everything else: that of a bookmark.
///
/// # Errors
///
/// [`WireError`] when it has none.
pub(crate) fn bookmark_version(object: &[u8]) -> Result<u64, WireError> {
    for field in fields("bookmark", object) {
        let (1, Value::Bytes(raw)) = field? else { continue };
        for field in fields("bookmark", raw) {
            if let (6, Value::Bytes(value)) = field? {
                return parse_resource_version(text("bookmark", value)?);
            }
        }
    }
    Err(WireError::malformed("bookmark", "it has no resourceVersion"))
}

/// The object with another resourceVersion.
///
/// # Errors
///
/// [`WireError`] when the object is malformed.
pub(crate) fn with_resource_version(object: &[u8], version: u64) -> Result<Bytes, WireError> {
    let metadata = replace_field("object", object, 1, |meta| {
        replace_field("object metadata", meta, 6, |_| Ok(version.to_string().into_bytes()))
    })?;
    Ok(metadata.into())
}

/// Copies a message with the first field `number` replaced; all others stay byte for byte.
fn replace_field(
    what: &'static str,
    raw: &[u8],
    number: u32,
    replacement: impl Fn(&[u8]) -> Result<Vec<u8>, WireError>,
) -> Result<Vec<u8>, WireError> {
    let mut all = fields(what, raw);
    loop {
        let start = raw.len() - all.rest().len();
        let Some(field) = all.next() else {
            return Err(WireError::malformed(what, format!("field {number} is missing")));
        };
        let (found, Value::Bytes(old)) = field? else { continue };
        if found == number {
            let new = replacement(old)?;
            let mut out = Writer::with_capacity(raw.len() + new.len());
            out.raw(&raw[..start]);
            out.bytes(number, &new);
            out.raw(all.rest());
            return Ok(out.finish());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod() -> Vec<u8> {
        let mut meta = Writer::default();
        meta.bytes(1, b"web");
        meta.bytes(2, b"");
        meta.bytes(3, b"default");
        meta.bytes(5, b"uid-1");
        meta.bytes(6, b"41");
        meta.varint(7, 300);
        let mut out = Writer::default();
        out.bytes(1, &meta.finish());
        out.bytes(2, b"spec of a type that nobody compiled in");
        out.finish()
    }

    #[test]
    fn metadata_is_read_in_place() {
        let meta = object_meta(&pod()).unwrap();
        assert_eq!(
            (&*meta.namespace, &*meta.name, &*meta.uid, meta.resource_version),
            ("default", "web", "uid-1", 41)
        );
    }

    #[test]
    fn another_resource_version_changes_nothing_else() {
        let changed = with_resource_version(&pod(), 1_000_000).unwrap();
        assert_eq!(object_meta(&changed).unwrap().resource_version, 1_000_000);
        assert_eq!(with_resource_version(&changed, 41).unwrap(), pod());
    }

    #[test]
    fn an_envelope_opens_to_what_was_put_in() {
        let kind = TypeMeta::new("v1", "Pod");
        let body = envelope(&kind, &pod());
        assert_eq!(&body[..4], b"k8s\0");
        assert_eq!(open_envelope(&body).unwrap(), (kind, Bytes::from(pod())));
        assert!(open_envelope(&body.slice(1..)).is_err());
    }

    #[test]
    fn sizes_are_what_the_writer_writes() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 3_000_000] {
            let mut out = Writer::default();
            out.bytes(2, &vec![0; length]);
            assert_eq!(out.finish().len(), field_size(length));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = object_meta(&raw);
            let _ = with_resource_version(&raw, 1);
            let mut body = MAGIC.to_vec();
            body.extend(&raw);
            let _ = open_envelope(&body.into());
        }

        #[test]
        fn an_object_cut_anywhere_is_an_error_or_shorter(cut in 0..pod().len()) {
            let whole = pod();
            // Between two fields the rest is a valid, shorter message; inside one it is an error.
            if let Ok(meta) = object_meta(&whole[..cut]) {
                prop_assert_eq!(meta, object_meta(&whole).unwrap());
            }
        }
    }
}
