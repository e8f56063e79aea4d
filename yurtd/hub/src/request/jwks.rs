//! The keys of the cluster's issuer of ServiceAccount tokens ([RFC 7517](https://www.rfc-editor.org/rfc/rfc7517)), and
//! what a token's signature is worth by them ([RFC 7515](https://www.rfc-editor.org/rfc/rfc7515)). Pure.
//!
//! The algorithms are those that an API server verifies, as far as `ring` has them: RS256, RS384, RS512, PS256, PS384,
//! PS512, ES256, ES384. It signs with RS256, ES256, ES384 or ES512 itself and takes no other from an external signer
//! (`pkg/serviceaccount/jwt.go`, `externaljwt/plugin`); what is compiled in may do otherwise. A key decides what its
//! tokens may be signed with, never the token: neither `none` nor an HMAC is ever right. Of keys that cannot be used here (P-521, RSA of less than 2048 bits) nothing is said.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

use crate::caller::jwt::MAX_TOKEN;

/// Keys of one issuer. An API server has one or two, while they are being rotated.
pub(crate) const MAX_KEYS: usize = 32;

/// What a token's signature is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signature {
    /// One of the keys has made it.
    Genuine,
    /// The key that it names has not made it.
    Forged,
    /// It names a key that is not among these.
    UnknownKey,
    /// It may have been made by a key that cannot be used here.
    CannotTell,
}

enum Key {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Ec {
        name: &'static str,
        algorithm: &'static signature::EcdsaVerificationAlgorithm,
        /// Uncompressed (SEC 1).
        point: Vec<u8>,
    },
    /// Of a kind that cannot be used here.
    Other,
}

/// The issuer's public keys.
#[derive(Default)]
pub(crate) struct Keys {
    keys: Vec<(String, Key)>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Jwk {
    kty: String,
    kid: String,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    crit: Option<Value>,
}

impl Keys {
    /// Reads a key set; keys that cannot be read count as ones that cannot be used.
    ///
    /// # Errors
    ///
    /// When it is no key set, or one with too many keys.
    pub(crate) fn parse(set: &Value) -> Result<Self, String> {
        let set = Set::deserialize(set).map_err(|error| error.to_string())?;
        if set.keys.is_empty() || set.keys.len() > MAX_KEYS {
            return Err(format!("it has {} keys, not 1 to {MAX_KEYS}", set.keys.len()));
        }
        let keys = set.keys.iter().map(|key| {
            let Ok(jwk) = Jwk::deserialize(key) else { return (String::new(), Key::Other) };
            (jwk.kid.clone(), Key::of(&jwk).unwrap_or(Key::Other))
        });
        Ok(Self { keys: keys.collect() })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// What the signature of a JWT in compact form is worth. What is no such thing was signed by nobody.
    pub(crate) fn verify(&self, token: &str) -> Signature {
        if token.len() > MAX_TOKEN {
            return Signature::Forged;
        }
        let Some((signed, signature)) = token.rsplit_once('.') else { return Signature::Forged };
        let header = signed.split('.').next().and_then(|header| URL_SAFE_NO_PAD.decode(header).ok());
        let header = header.and_then(|header| serde_json::from_slice::<Header>(&header).ok());
        let (Some(header), Ok(signature)) = (header, URL_SAFE_NO_PAD.decode(signature)) else {
            return Signature::Forged;
        };
        if header.crit.is_some() || signed.split('.').count() != 2 {
            return Signature::Forged;
        }
        // Like the API server: a token that names no key may be of any.
        let mut named = self.keys.iter().filter(|(kid, _)| header.kid.is_empty() || *kid == header.kid);
        let mut found = Signature::UnknownKey;
        loop {
            match named.next() {
                None => return found,
                Some((_, Key::Other)) => found = Signature::CannotTell,
                Some((_, key)) if key.verifies(&header.alg, signed.as_bytes(), &signature) => {
                    return Signature::Genuine;
                }
                Some(_) if found == Signature::UnknownKey => found = Signature::Forged,
                Some(_) => {}
            }
        }
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        match (&*jwk.kty, &*jwk.crv) {
            ("RSA", _) => {
                let (n, e) = (unsigned(bytes(&jwk.n)?), unsigned(bytes(&jwk.e)?));
                ((256..=1024).contains(&n.len()) && !e.is_empty()).then_some(Self::Rsa { n, e })
            }
            ("EC", curve @ ("P-256" | "P-384")) => {
                let (size, name, algorithm) = if curve == "P-256" {
                    (32_usize, "ES256", &signature::ECDSA_P256_SHA256_FIXED)
                } else {
                    (48, "ES384", &signature::ECDSA_P384_SHA384_FIXED)
                };
                let mut point = vec![4];
                for coordinate in [bytes(&jwk.x)?, bytes(&jwk.y)?] {
                    let missing = size.checked_sub(coordinate.len())?;
                    point.extend(std::iter::repeat_n(0, missing).chain(coordinate));
                }
                Some(Self::Ec { name, algorithm, point })
            }
            _ => None,
        }
    }

    fn verifies(&self, algorithm: &str, signed: &[u8], made: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let parameters: &RsaParameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, signed, made).is_ok()
            }
            Self::Ec { name, algorithm: by, point } => {
                *name == algorithm && UnparsedPublicKey::new(*by, point).verify(signed, made).is_ok()
            }
            Self::Other => false,
        }
    }
}

/// A big-endian number without leading zeros.
fn unsigned(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// Keys of every kind, and a token signed with each, made with another library than `ring`.
    pub(crate) fn vectors() -> (Value, Vec<(String, String)>) {
        let mut vectors: Value = serde_json::from_str(include_str!("jwks/vectors.json")).unwrap();
        let tokens = vectors["tokens"].as_object().unwrap().iter();
        let mut tokens: Vec<_> =
            tokens.map(|(name, token)| (name.clone(), token.as_str().unwrap().to_owned())).collect();
        tokens.sort();
        (vectors["jwks"].take(), tokens)
    }

    /// The token of the vectors that is signed so.
    pub(crate) fn signed_with(algorithm: &str) -> String {
        let found = vectors().1.into_iter().find(|(name, _)| name == algorithm);
        found.unwrap().1
    }

    fn with_header(token: &str, header: &Value) -> String {
        let (_, rest) = token.split_once('.').unwrap();
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    #[test]
    fn signatures_of_every_kind_of_key_are_verified() {
        let (set, tokens) = vectors();
        let keys = Keys::parse(&set).unwrap();
        assert_eq!((keys.len(), tokens.len()), (5, 9));
        for (name, token) in &tokens {
            // ring has no P-521.
            let expected = if name == "ES512" { Signature::CannotTell } else { Signature::Genuine };
            assert_eq!(keys.verify(token), expected, "{name}");
            if name == "ES512" {
                continue;
            }
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let (header, claims) = signed.split_once('.').unwrap();
            let mut other = URL_SAFE_NO_PAD.decode(signature).unwrap();
            other[10] ^= 1;
            let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
            let claims = String::from_utf8(claims).unwrap().replace("shop", "bank");
            for forged in [
                format!("{signed}.{}", URL_SAFE_NO_PAD.encode(other)),
                format!("{signed}."),
                format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(claims)),
                format!("{token}.{signature}"),
                signed.to_owned(),
                String::new(),
            ] {
                assert_eq!(keys.verify(&forged), Signature::Forged, "{name} {forged}");
            }
        }
    }

    #[test]
    fn the_key_and_not_the_token_says_what_it_is_signed_with() {
        let set = vectors().0;
        let keys = Keys::parse(&set).unwrap();
        for (key, name) in [(0, "RS256"), (1, "ES256"), (4, "PS256")] {
            let token = &signed_with(name);
            let kid = &set["keys"][key]["kid"];
            for alg in ["none", "None", "", "HS256", "HS512", "PS256", "PS384", "EdDSA", "RS256", "ES256"] {
                let forged = with_header(token, &json!({"alg": alg, "kid": kid}));
                // The same header is the same token.
                if alg != name {
                    assert_eq!(keys.verify(&forged), Signature::Forged, "{name} as {alg}");
                }
                let unsigned = format!("{}.", forged.rsplit_once('.').unwrap().0);
                assert_eq!(keys.verify(&unsigned), Signature::Forged, "{name} as {alg}");
            }
        }
        let crit = json!({"alg": "RS256", "kid": set["keys"][0]["kid"], "crit": ["b64"]});
        assert_eq!(keys.verify(&with_header(&signed_with("RS256"), &crit)), Signature::Forged);
    }

    #[test]
    fn a_token_of_another_key_says_nothing_until_the_keys_are_new() {
        let mut set = vectors().0;
        let without_a_name = with_header(&signed_with("RS256"), &json!({"alg": "RS256"}));
        assert_eq!(
            Keys::parse(&set).unwrap().verify(&without_a_name),
            Signature::CannotTell,
            "P-521 may be it"
        );
        let keys = set["keys"].as_array_mut().unwrap();
        keys.retain(|key| key["crv"] == "P-256");
        let keys = Keys::parse(&set).unwrap();
        assert_eq!(keys.verify(&signed_with("RS256")), Signature::UnknownKey);
        assert_eq!(keys.verify(&without_a_name), Signature::Forged);
    }

    #[test]
    fn what_is_no_key_set_is_an_error_and_what_is_no_key_is_not_used() {
        let many: Vec<_> = (0..=MAX_KEYS).map(|_| json!({"kty": "RSA"})).collect();
        for bad in [json!({}), json!([]), json!({"keys": []}), json!({"keys": many}), Value::Null] {
            assert!(Keys::parse(&bad).is_err(), "{bad}");
        }
        let set = vectors().0;
        let kid = set["keys"][0]["kid"].clone();
        for key in [
            json!(7),
            json!({"kty": "RSA", "kid": kid, "n": "AQAB", "e": "AQAB"}),
            json!({"kty": "RSA", "kid": kid, "n": "!", "e": "AQAB"}),
            json!({"kty": "oct", "kid": kid, "k": "AAAA"}),
            json!({"kty": "EC", "kid": kid, "crv": "P-256", "x": "A".repeat(80), "y": "AAAA"}),
        ] {
            let verdict = Keys::parse(&json!({"keys": [key]})).unwrap().verify(&signed_with("RS256"));
            assert!(matches!(verdict, Signature::CannotTell | Signature::UnknownKey), "{key}");
        }
    }
}
