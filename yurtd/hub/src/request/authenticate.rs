//! Who asks: kubelet by the node's client certificate, everybody else by a bearer token. Pure but for the clock that
//! is handed in, and for the tokens, which [`super::tokens`] knows.
//!
//! A certificate is checked after the TLS handshake, not in it: TLS proves that the peer holds the key, this module
//! decides what the certificate is worth. So an unknown certificate is a 401 with a reason and not a broken
//! connection, and an expired one of the node may still be served while the link is down (the API server, and not
//! the hub, refuses it while the link is up).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::AuthError;
use super::tokens::Tokens;
use crate::caller::{Caller, Credential, Identity};
use crate::clock::unix_seconds;
use crate::link::Link;
use yurt_node::certificate::node_of;
use yurt_node::token::BearerToken;

/// Longest bearer token.
const MAX_TOKEN: usize = 16 << 10;

/// What a connection's client certificate says, decided once a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// No certificate.
    Anonymous,
    /// This node, from and until (seconds since 1970).
    Node {
        /// Start of validity.
        not_before: u64,
        /// End of validity.
        not_after: u64,
    },
    /// Any other certificate, with the reason why it is none of the node's.
    Stranger(String),
}

/// Tells the node's certificate from all others. Whose it is is read by [`node_of`]; that its time is no reason to turn
/// it away before it is known whether the link is up is the hub's own rule.
pub(crate) struct NodeVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    node: String,
    user: String,
}

impl NodeVerifier {
    /// `ca` are the certificates of the cluster's client CA.
    ///
    /// # Errors
    ///
    /// When one of them is no CA certificate.
    pub(crate) fn new(ca: &[CertificateDer<'static>], node_name: &str) -> Result<Self, webpki::Error> {
        let anchors = ca
            .iter()
            .map(|certificate| webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()?;
        Ok(Self { anchors, node: node_name.to_owned(), user: format!("system:node:{node_name}") })
    }

    /// The node's user name.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Decides what a certificate chain, the peer's own first, is worth.
    pub(crate) fn identify(&self, chain: Option<&[CertificateDer<'_>]>, now: SystemTime) -> Peer {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else { return Peer::Anonymous };
        match self.check(leaf, intermediates, now) {
            Ok(peer) => peer,
            Err(reason) => Peer::Stranger(reason),
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Peer, String> {
        let claimed = node_of(leaf).map_err(|error| error.to_string())?;
        let (not_before, not_after) = (unix_seconds(claimed.not_before), unix_seconds(claimed.not_after));
        // The chain is checked at a moment at which the certificate was valid: whether it is now is decided by
        // every request.
        let moment = unix_seconds(now).clamp(not_before, not_after.max(not_before));
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors,
                intermediates,
                UnixTime::since_unix_epoch(Duration::from_secs(moment)),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|error| format!("the cluster's client CA did not sign it ({error})"))?;
        if claimed.node != self.node {
            return Err(format!("it is for the node {}, this node is {}", claimed.node, self.node));
        }
        Ok(Peer::Node { not_before, not_after })
    }
}

/// Decides who sent a request.
pub(crate) struct Authenticator {
    node: NodeVerifier,
    tokens: Tokens,
    link: Link,
}

impl Authenticator {
    /// Puts the two ways together.
    pub(crate) fn new(node: NodeVerifier, tokens: Tokens, link: Link) -> Self {
        Self { node, tokens, link }
    }

    /// What a connection's certificate is worth.
    pub(crate) fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        self.node.identify(chain, SystemTime::now())
    }

    /// The tokens that are known.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The caller of a request. The node's certificate counts before a token, as in the API server.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub(crate) async fn authenticate(
        &self,
        peer: &Peer,
        from: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Caller, AuthError> {
        if let Peer::Node { not_before, not_after } = peer {
            let valid = (*not_before..=*not_after).contains(&unix_seconds(SystemTime::now()));
            if !valid && self.link.is_online() {
                return Err(AuthError::CertificateTime);
            }
            return Ok(Caller { identity: Identity::new(self.node.user()), credential: Credential::Node });
        }
        match bearer_token(headers)? {
            Some(token) => {
                let identity = self.tokens.identity_of(&token, from).await?;
                Ok(Caller { identity, credential: Credential::Bearer(token) })
            }
            None => Err(match peer {
                Peer::Stranger(reason) => AuthError::Certificate(reason.clone()),
                _ => AuthError::Nobody,
            }),
        }
    }
}

pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<Option<BearerToken>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| AuthError::Header)?;
    let (scheme, token) = text.trim().split_once(' ').ok_or(AuthError::Header)?;
    let token = token.trim();
    let valid = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN;
    if values.next().is_some() || !valid || token.contains(char::is_whitespace) {
        return Err(AuthError::Header);
    }
    Ok(Some(BearerToken::new(token)))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    use super::*;

    fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(
        ca: &CertifiedIssuer<'static, KeyPair>,
        user: &str,
        group: &str,
        years: (i32, i32),
        usage: ExtendedKeyUsagePurpose,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![usage];
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    const AUTH: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

    fn now() -> SystemTime {
        // 2026-01-01
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn verifier(ca: &CertifiedIssuer<'static, KeyPair>) -> NodeVerifier {
        NodeVerifier::new(&[ca.der().clone()], "edge").unwrap()
    }

    #[test]
    fn the_nodes_certificate_is_the_node() {
        let ca = ca("kubernetes");
        let certificate = client(&ca, "system:node:edge", "system:nodes", (2025, 2027), AUTH);
        let peer = verifier(&ca).identify(Some(&[certificate]), now());
        assert!(matches!(peer, Peer::Node { .. }), "{peer:?}");
        assert_eq!(verifier(&ca).identify(None, now()), Peer::Anonymous);
    }

    #[test]
    fn any_other_certificate_is_a_stranger() {
        let (ours, other) = (ca("kubernetes"), ca("kubernetes"));
        let strangers = [
            client(&ours, "system:node:other", "system:nodes", (2025, 2027), AUTH),
            client(&ours, "system:node:edge ", "system:nodes", (2025, 2027), AUTH),
            client(&ours, "kubernetes-admin", "system:masters", (2025, 2027), AUTH),
            client(&ours, "system:node:edge", "system:masters", (2025, 2027), AUTH),
            client(
                &ours,
                "system:node:edge",
                "system:nodes",
                (2025, 2027),
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            client(&other, "system:node:edge", "system:nodes", (2025, 2027), AUTH),
            CertificateDer::from(vec![1, 2, 3]),
        ];
        for (at, certificate) in strangers.into_iter().enumerate() {
            let peer = verifier(&ours).identify(Some(&[certificate]), now());
            assert!(matches!(peer, Peer::Stranger(_)), "{at}: {peer:?}");
        }
    }

    #[test]
    fn an_expired_certificate_still_says_who_it_was() {
        let ca = ca("kubernetes");
        let certificate = client(&ca, "system:node:edge", "system:nodes", (2020, 2021), AUTH);
        assert!(matches!(verifier(&ca).identify(Some(&[certificate]), now()), Peer::Node { .. }));
    }

    #[test]
    fn the_authorization_header_is_one_bearer_token() {
        let parse = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            bearer_token(&headers).map(|token| token.map(|token| token.expose().to_owned()))
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["Bearer abc"]), Ok(Some("abc".into())));
        assert_eq!(parse(&["bearer  abc "]), Ok(Some("abc".into())));
        for bad in
            [&["Basic YTpi"][..], &["Bearer"], &["Bearer "], &["Bearer a b"], &["Bearer a", "Bearer b"]]
        {
            assert_eq!(parse(bad), Err(AuthError::Header), "{bad:?}");
        }
    }
}
