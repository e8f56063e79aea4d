//! The claims of a ServiceAccount's token, and whether they are good without the API server. Pure.
//!
//! # Time
//!
//! A board without a battery may say 1970. It is certainly not earlier than when the keys were fetched, and not earlier
//! than when a genuine token was made: that is the time by which such a board judges ends. Its own clock counts where it
//! is later, and then what is not valid yet is refused, but for [`LEEWAY`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Record;

/// How far clocks may be apart, in seconds; the API server's own bound.
const LEEWAY: u64 = 60;

/// A token's claims, whose signature is nobody's business here (RFC 7519; `pkg/serviceaccount/claims.go`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Claims {
    pub(super) iss: String,
    sub: String,
    pub(super) aud: Audience,
    exp: Option<u64>,
    nbf: u64,
    iat: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Bound>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audience {
    pub(super) fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Bound {
    namespace: String,
    serviceaccount: Reference,
    pod: Option<Reference>,
    node: Option<Reference>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Reference {
    name: String,
    uid: String,
}

impl Claims {
    pub(super) fn of(token: &str) -> Option<Self> {
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }
}

/// Whether claims can be read out of it: for fuzzing.
pub(crate) fn claims_of(token: &str) -> bool {
    Claims::of(token).is_some()
}

/// Why a token that nobody has seen is not good without the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotGood {
    /// Its signature is none of the issuer's.
    #[error("it is not signed by the cluster")]
    Forged,
    /// It is for somebody else.
    #[error("it is not for the API server")]
    Audience,
    /// It has ended, or has no end.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYet,
    /// It is of no ServiceAccount, or for no pod: nobody here can know whether it was revoked.
    #[error("it is bound to no pod")]
    Unbound,
    /// It is another node's.
    #[error("it is of a pod that is not on this node")]
    Elsewhere,
    /// The node's pods are not known.
    #[error("which pods this node has is not known")]
    PodsUnknown,
}

impl Claims {
    /// Whether they say that it is a pod's.
    pub(super) fn is_pods(&self) -> bool {
        self.kubernetes.as_ref().is_some_and(|bound| bound.pod.is_some())
    }

    /// The user that a genuine token stands for.
    pub(super) fn is_good(
        &self,
        known: &Record,
        now: u64,
        node_name: &str,
        has_pod: impl FnOnce(&str, &str) -> Option<bool>,
    ) -> Result<String, NotGood> {
        // Without any other word the API server's audience is the issuer's name (`--api-audiences`).
        let is_ours = |audience: &String| match &*known.audiences {
            [] => *audience == known.issuer,
            audiences => audiences.contains(audience),
        };
        if !self.aud.all().iter().any(is_ours) {
            return Err(NotGood::Audience);
        }
        let made = self.nbf.max(self.iat);
        let time = if now >= known.seen {
            if made > now.saturating_add(LEEWAY) {
                return Err(NotGood::NotYet);
            }
            now
        } else {
            known.seen.max(made)
        };
        if self.exp.is_none_or(|exp| exp <= time) {
            return Err(NotGood::Expired);
        }
        let Some(Bound { namespace, serviceaccount, pod: Some(pod), node }) = &self.kubernetes else {
            return Err(NotGood::Unbound);
        };
        let user = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if self.sub != user || namespace.is_empty() || serviceaccount.name.is_empty() || pod.uid.is_empty() {
            return Err(NotGood::Unbound);
        }
        if node.as_ref().is_some_and(|node| node.name != node_name) {
            return Err(NotGood::Elsewhere);
        }
        match has_pod(&pod.uid, &user) {
            Some(true) => Ok(user),
            Some(false) => Err(NotGood::Elsewhere),
            None => Err(NotGood::PodsUnknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::request::jwks::tests::signed_with;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
    /// When the token of the vectors was made.
    const MADE: u64 = 2_000_000_000;

    fn known(audiences: &[&str], seen: u64) -> Record {
        let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
        Record { issuer: ISSUER.to_owned(), keys: json!({}), audiences, seen }
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Claims {
        let payload = URL_SAFE_NO_PAD.decode(signed_with("RS256").split('.').nth(1).unwrap()).unwrap();
        let mut claims: Value = serde_json::from_slice(&payload).unwrap();
        change(&mut claims);
        serde_json::from_value(claims).unwrap()
    }

    type Change = fn(&mut Value);

    fn here(uid: &str, user: &str) -> Option<bool> {
        Some(uid == "p-1" && user == "system:serviceaccount:shop:web")
    }

    #[test]
    fn a_pods_token_is_good_on_its_node_in_its_time_for_the_api_server() {
        let now = MADE + 60;
        let verdict = |change: Change| claims(change).is_good(&known(&[], MADE), now, "edge", here);
        let user = || Ok("system:serviceaccount:shop:web".to_owned());
        assert_eq!(verdict(|_| {}), user());
        assert_eq!(verdict(|claims| claims["aud"] = json!(ISSUER)), user());
        assert_eq!(verdict(|claims| drop(claims["kubernetes.io"]["node"].take())), user());
        let table: [(Change, NotGood); 13] = [
            (|claims| claims["aud"] = json!(["vault"]), NotGood::Audience),
            (|claims| claims["aud"] = json!([]), NotGood::Audience),
            (|claims| drop(claims.as_object_mut().unwrap().remove("aud")), NotGood::Audience),
            (|claims| claims["exp"] = json!(MADE + 60), NotGood::Expired),
            (|claims| claims["exp"] = json!(null), NotGood::Expired),
            (|claims| claims["nbf"] = json!(MADE + 121), NotGood::NotYet),
            (|claims| claims["iat"] = json!(MADE + 121), NotGood::NotYet),
            (|claims| drop(claims["kubernetes.io"]["pod"].take()), NotGood::Unbound),
            (|claims| drop(claims["kubernetes.io"].take()), NotGood::Unbound),
            (|claims| claims["sub"] = json!("system:serviceaccount:shop:admin"), NotGood::Unbound),
            (|claims| claims["kubernetes.io"]["node"]["name"] = json!("other"), NotGood::Elsewhere),
            (|claims| claims["kubernetes.io"]["pod"]["uid"] = json!("p-2"), NotGood::Elsewhere),
            (|claims| claims["kubernetes.io"]["pod"]["uid"] = json!(""), NotGood::Unbound),
        ];
        for (number, (change, expected)) in table.into_iter().enumerate() {
            assert_eq!(verdict(change), Err(expected), "{number}");
        }
        let unknown = claims(|_| {}).is_good(&known(&[], MADE), now, "edge", |_, _| None);
        assert_eq!(unknown, Err(NotGood::PodsUnknown));
        // What the API server was seen to take counts before what it takes by default.
        let learnt = known(&["api"], MADE);
        assert_eq!(claims(|_| {}).is_good(&learnt, now, "edge", here), Err(NotGood::Audience));
        assert_eq!(claims(|claims| claims["aud"] = json!("api")).is_good(&learnt, now, "edge", here), user());
    }

    #[test]
    fn a_board_without_a_clock_knows_that_it_is_not_earlier_than_what_it_has_seen() {
        let at = |now, seen| claims(|_| {}).is_good(&known(&[], seen), now, "edge", here);
        assert!(at(0, MADE - 1000).is_ok(), "the token itself shows that its time has come");
        assert_eq!(at(0, MADE + 4000), Err(NotGood::Expired), "the keys were fetched after its end");
        assert_eq!(at(MADE + 4000, MADE), Err(NotGood::Expired));
        assert_eq!(at(MADE - 100, MADE - 1000), Err(NotGood::NotYet), "a clock that may be right");
        assert!(at(MADE - 30, MADE - 1000).is_ok(), "and is a little behind");
    }
}
