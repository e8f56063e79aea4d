//! The claims of a JSON Web Token, read without checking its signature: good enough to refuse a token that says it
//! has expired, and to know until when a stored one may be replayed. Never a reason to accept one: signatures are
//! [`jwks`](crate::request::jwks)' to verify.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Bound of a token's text.
pub(crate) const MAX_TOKEN: usize = 16 << 10;

/// The claims the hub looks at.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Claims {
    /// Seconds since 1970 at which the token ends; legacy tokens have none.
    #[serde(default)]
    pub(crate) exp: Option<i64>,
    /// `system:serviceaccount:NAMESPACE:NAME`
    #[serde(default)]
    pub(crate) sub: Option<String>,
}

/// Reads the claims; `None` for what is no JWT.
pub(crate) fn claims(token: &str) -> Option<Claims> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Whether this may be a token of an API server's: three parts, of which the first two are JSON objects.
pub(crate) fn is_plausible(token: &str) -> bool {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "alg")]
        _algorithm: String,
    }
    let mut parts = token.split('.');
    let header = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let signed = parts.nth(1).is_some_and(|signature| !signature.is_empty());
    let header = header.is_some_and(|header| serde_json::from_slice::<Header>(&header).is_ok());
    header && signed && claims(token).is_some()
}

/// A token that says what `claims` says; its signature is worth nothing.
#[cfg(test)]
pub(crate) fn for_test(claims: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&serde_json::json!({"alg": "RS256"})), part(claims))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_read() {
        let token = for_test(&json!({"exp": 17, "sub": "system:serviceaccount:a:b", "aud": ["x"]}));
        let expected = Claims { exp: Some(17), sub: Some("system:serviceaccount:a:b".into()) };
        assert_eq!(claims(&token), Some(expected));
        assert_eq!(claims(&for_test(&json!({}))), Some(Claims::default()));
    }

    #[test]
    fn what_is_no_jwt_has_no_claims() {
        for text in ["", "a.b", "a.!!.c", "a.b.c.d", "opaque-token"] {
            assert_eq!(claims(text), None, "{text}");
            assert!(!is_plausible(text), "{text}");
        }
        let token = for_test(&json!({}));
        assert!(is_plausible(&token));
        for part in 0..3 {
            let mut parts: Vec<_> = token.split('.').collect();
            parts[part] = "";
            assert!(!is_plausible(&parts.join(".")), "without part {part}");
        }
    }
}
