//! The issuer of a cluster's ServiceAccount tokens: a key that signs them as an API server with an elliptic curve does.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

/// What Kubernetes calls itself by default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// One of its keys.
pub struct SigningKey {
    kid: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    pub fn new(kid: &str) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self { kid: kid.to_owned(), pair }
    }

    /// Its public half, as it is published.
    pub fn public(&self) -> Value {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.kid, "x": part(x), "y": part(y)})
    }

    /// A signed token.
    pub fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": self.kid})), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The claims of a token for a pod (`pkg/serviceaccount/claims.go`), good for a long time.
pub fn claims_of_pod(namespace: &str, account: &str, pod: (&str, &str), node: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": [ISSUER], "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "iat": 1_700_000_000, "nbf": 1_700_000_000, "exp": 4_000_000_000_u64,
        "kubernetes.io": {
            "namespace": namespace, "serviceaccount": {"name": account, "uid": "s-1"},
            "pod": {"name": pod.0, "uid": pod.1}, "node": {"name": node, "uid": "n-1"},
        },
    })
}
