//! Query strings: decoded once ([`Query`]; repeated keys keep their first value, as the API server reads them) and
//! written ([`QueryString`]).

use std::borrow::Cow;

/// A decoded query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Decodes `a=b&c=%20`. What is not valid percent-encoding is kept as it stands.
    pub fn parse(query: &str) -> Self {
        let pairs = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(key, true).into_owned(), decode(value, true).into_owned())
            })
            .collect();
        Self { pairs }
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A boolean as Kubernetes decodes it from a query: present and neither `false` nor `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(key, _)| key.as_str())
    }

    /// The pairs in a canonical order, encoded again: equal for queries that mean the same.
    pub fn canonical(&self, skip: &[&str]) -> String {
        let mut pairs: Vec<_> = self.pairs.iter().filter(|(key, _)| !skip.contains(&key.as_str())).collect();
        // Stable: of a repeated key the first value counts.
        pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
        pairs
            .iter()
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect::<Vec<_>>()
            .join("&")
    }
}

/// A query string that is being written.
#[derive(Debug, Default)]
pub struct QueryString {
    text: String,
}

impl QueryString {
    /// Adds a pair; the value is percent-encoded.
    pub fn add(&mut self, name: &str, value: &str) {
        if !self.text.is_empty() {
            self.text.push('&');
        }
        self.text.push_str(name);
        self.text.push('=');
        self.text.push_str(&encode(value));
    }

    /// Without the question mark.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Percent-encodes what a query string does not take as it is (RFC 3986 §3.4, without `&`, `=`, `+` and `;`).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:!,".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Percent-decodes; `plus` for query strings, where `+` is a space.
pub fn decode(text: &str, plus: bool) -> Cow<'_, str> {
    let encoded = |character| character == '%' || (plus && character == '+');
    if !text.contains(encoded) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = || {
            let digits = bytes.get(at + 1..at + 3)?;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        match byte {
            b'%' => match escaped() {
                Some(value) => {
                    decoded.push(value);
                    at += 2;
                }
                None => decoded.push(b'%'),
            },
            b'+' if plus => decoded.push(b' '),
            other => decoded.push(other),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_decoded() {
        let query = Query::parse("fieldSelector=metadata.name%3Dedge&labelSelector=a+in+%28b%2Cc%29&watch");
        assert_eq!(query.get("fieldSelector"), Some("metadata.name=edge"));
        assert_eq!(query.get("labelSelector"), Some("a in (b,c)"));
        assert_eq!(query.get("watch"), Some(""));
    }

    #[test]
    fn flags_are_true_unless_they_say_no() {
        let query = Query::parse("a&b=true&c=false&d=0&e=FALSE&f=1");
        let flags: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].map(|key| query.flag(key)).into();
        assert_eq!(flags, [true, true, false, false, false, true, false]);
    }

    #[test]
    fn selectors_are_escaped() {
        let mut query = QueryString::default();
        query.add("labelSelector", "a in (x,y),!b");
        query.add("limit", "5");
        assert_eq!(query.as_str(), "labelSelector=a%20in%20%28x,y%29,!b&limit=5");
        assert_eq!(Query::parse(query.as_str()).get("labelSelector"), Some("a in (x,y),!b"));
    }

    #[test]
    fn broken_escapes_are_kept() {
        assert_eq!(Query::parse("a=%zz%4").get("a"), Some("%zz%4"));
    }

    #[test]
    fn the_canonical_form_ignores_order_and_spelling() {
        let one = Query::parse("b=x%2Cy&a=1&timeout=10s").canonical(&["timeout"]);
        let two = Query::parse("a=1&b=x,y").canonical(&["timeout"]);
        assert_eq!(one, two);
        assert_eq!(one, "a=1&b=x,y");
    }

    #[test]
    fn the_canonical_form_tells_apart_whose_first_values_differ() {
        let one = Query::parse("a=2&a=1").canonical(&[]);
        assert_eq!(one, "a=2&a=1");
        assert_ne!(one, Query::parse("a=1&a=2").canonical(&[]));
    }
}
