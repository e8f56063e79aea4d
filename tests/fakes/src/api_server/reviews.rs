//! What the API server says about people and gives to them: reviews, tokens, certificates.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};

use super::resource::Resource;
use super::rights::{Rights, User};
use super::store::Store;
use crate::issuer::ISSUER;
use crate::pki::TestCa;

/// The signer of client certificates.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// Where certificate signing requests are.
pub(super) const REQUESTS: &str = "/apis/certificates.k8s.io/v1";

/// A JWT whose signature is worth nothing.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(claims))
}

/// The people.
#[derive(Default)]
pub(super) struct People {
    pub(super) tokens: HashMap<String, User>,
    pub(super) refused_tokens: HashSet<String>,
    /// Whoever has a token that is not refused is somebody.
    pub(super) any_token: bool,
    /// Who comes with nothing at all.
    pub(super) anonymous: Option<User>,
    pub(super) rights: Rights,
    pub(super) signers: HashMap<String, Arc<TestCa>>,
    /// The keys of its tokens, if they are published.
    pub(super) keys: Option<Value>,
}

impl People {
    /// Who sends a request.
    pub(super) fn user(&self, headers: &HeaderMap, certificate: Option<&User>) -> Option<User> {
        let Some(token) = bearer(headers) else { return certificate.or(self.anonymous.as_ref()).cloned() };
        assert!(certificate.is_none(), "a bearer token on a connection with a client certificate");
        self.known(&token)
    }

    fn known(&self, token: &str) -> Option<User> {
        if self.refused_tokens.contains(token) {
            return None;
        }
        let any = self.any_token.then(|| User::new(token, &[]));
        self.tokens.get(token).cloned().or(any)
    }

    /// A TokenReview with its status.
    pub(super) fn review_token(&self, mut review: Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        review["status"] = match self.known(token) {
            Some(user) => {
                json!({"authenticated": true, "user": {"username": user.name, "groups": user.groups},
                    "audiences": [ISSUER]})
            }
            None => json!({"authenticated": false, "error": "unknown token"}),
        };
        review
    }

    /// A SubjectAccessReview of somebody, or of the caller, with its status.
    pub(super) fn review_access(&self, mut review: Value, caller: &User) -> Value {
        let asked = &review["spec"]["resourceAttributes"];
        let part = |name: &str| asked[name].as_str().unwrap_or_default();
        let resource = match part("subresource") {
            "" => part("resource").to_owned(),
            sub => format!("{}/{sub}", part("resource")),
        };
        let user = review["spec"]["user"].as_str().unwrap_or(&caller.name);
        let allowed = self.rights.allows(user, part("verb"), &resource);
        review["status"] = json!({"allowed": allowed});
        review
    }

    /// A TokenRequest with its token, which is good from now on.
    pub(super) fn token(&mut self, namespace: &str, account: &str, mut request: Value) -> Value {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let bound = &request["spec"]["boundObjectRef"]["uid"];
        let token = jwt(&json!({"sub": user, "exp": 4_000_000_000_i64, "pod": bound}));
        request["status"] = json!({"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"});
        self.tokens.insert(token, User::new(&user, &["system:serviceaccounts"]));
        request
    }

    /// Approves and signs what waits for a certificate and has a signer.
    pub(super) fn sign(&self, store: &mut Store) {
        let resource = Resource::new(REQUESTS, "certificatesigningrequests");
        let waiting = store
            .objects()
            .filter(|(key, request)| key.resource == resource && request["status"]["certificate"].is_null());
        let waiting: Vec<_> = waiting.map(|(key, request)| (key.clone(), request.clone())).collect();
        for (key, mut request) in waiting {
            let name = request["spec"]["signerName"].as_str().unwrap_or_default();
            let Some(ca) = self.signers.get(name) else { continue };
            let pem = STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap();
            let certificate =
                ca.sign(std::str::from_utf8(&pem).unwrap(), ExtendedKeyUsagePurpose::ClientAuth);
            request["status"] = json!({
                "conditions": [{"type": "Approved", "status": "True"}],
                "certificate": STANDARD.encode(certificate)
            });
            store.put(&key, request);
        }
    }
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?.to_owned())
}
