//! Who calls: client certificate or bearer token, as the API server would know the caller.
//!
//! A certificate is checked at every request and not in the handshake: a caller with a certificate of
//! another cluster gets a `401` that says so instead of a TLS alert, and a long connection ends with
//! its certificate or with the CA that issued it. The handshake proves that the caller holds the key.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Api;
use kube::api::PostParams;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};

use super::status::{self, ApiError};
use crate::server::client_ca::ClientCa;
use yurt_node::token::BearerToken;

/// How long the answer about a token is used again.
const TOKEN_TTL: Duration = Duration::from_secs(10);
/// How many answers are kept.
const TOKENS: usize = 1024;
/// How long the API server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Group of everybody who is known.
pub(super) const AUTHENTICATED: &str = "system:authenticated";

/// A caller that the cluster knows, in the terms of `UserInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    /// User name.
    pub name: String,
    /// UID, where the authenticator has one.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator says (`authentication.kubernetes.io/pod-name` and the like).
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What the cache says about a token.
type Reviewed = (Instant, Option<User>);

/// Finds out who calls.
pub(super) struct Authenticator {
    client: kube::Client,
    ca: Arc<ClientCa>,
    /// By SHA-256 of the token, so that a core dump of this process holds no token it need not hold.
    tokens: Mutex<HashMap<[u8; 32], Reviewed>>,
}

impl Authenticator {
    /// `ca` is kept up to date by somebody else.
    pub(super) fn new(client: kube::Client, ca: Arc<ClientCa>) -> Self {
        Self { client, ca, tokens: Mutex::default() }
    }

    /// The caller of a request. `certificates` are those of its connection.
    ///
    /// # Errors
    ///
    /// [`ApiError::Unauthorized`], and [`ApiError::Unavailable`] when it cannot be found out.
    pub(super) async fn authenticate(
        &self,
        certificates: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Result<User, ApiError> {
        let token = bearer(headers)?;
        if let Some((end_entity, intermediates)) = certificates.split_first() {
            match self.ca.verify(end_entity, intermediates, UnixTime::now()) {
                Ok(()) => return certificate_user(end_entity),
                Err(error) if token.is_none() => {
                    tracing::info!(%error, "client certificate refused");
                    return Err(error.into());
                }
                Err(error) => tracing::debug!(%error, "client certificate refused, the token decides"),
            }
        }
        match token {
            Some(token) => self.review(&token).await,
            None => Err(ApiError::Unauthorized),
        }
    }

    async fn review(&self, token: &BearerToken) -> Result<User, ApiError> {
        let key: [u8; 32] = Sha256::digest(token.expose().as_bytes()).into();
        if let Some(known) = self.remembered(&key) {
            return known.ok_or(ApiError::Unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.expose().to_owned(), ..Default::default() },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review)).await {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => return Err(status::api_server_error("review the caller's token", &error)),
            Err(_) => return Err(status::api_server_silent("review the caller's token")),
        };
        let user = match (status.authenticated, status.user) {
            (Some(true), Some(user)) if user.username.as_deref().is_some_and(|name| !name.is_empty()) => {
                Some(User {
                    name: user.username.unwrap_or_default(),
                    uid: user.uid.filter(|uid| !uid.is_empty()),
                    groups: user.groups.unwrap_or_default(),
                    extra: user.extra.unwrap_or_default(),
                })
            }
            _ => None,
        };
        self.remember(key, user.clone());
        user.ok_or(ApiError::Unauthorized)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Option<User>> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(key).filter(|(since, _)| since.elapsed() < TOKEN_TTL).map(|(_, user)| user.clone())
    }

    fn remember(&self, key: [u8; 32], user: Option<User>) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS {
            tokens.retain(|_, (since, _)| since.elapsed() < TOKEN_TTL);
        }
        // Still full: so many callers within ten seconds do without the cache.
        if tokens.len() < TOKENS {
            tokens.insert(key, (Instant::now(), user));
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<BearerToken>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| ApiError::Unauthorized)?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(BearerToken::new(token.trim())))
        }
        // Basic, Negotiate and the rest: no authenticator knows them, as in the API server.
        _ => Ok(None),
    }
}

/// CN is the user, every O a group.
fn certificate_user(certificate: &CertificateDer<'_>) -> Result<User, ApiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| ApiError::Unauthorized)?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Err(ApiError::Unauthorized);
    }
    let mut groups = Vec::new();
    for group in subject.iter_organization() {
        // A group that cannot be read could be the one that denies something.
        groups.push(group.as_str().map_err(|_| ApiError::Unauthorized)?.to_owned());
    }
    groups.push(AUTHENTICATED.to_owned());
    Ok(User { name: name.to_owned(), groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_its_scheme() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "bearer  abc ".parse().unwrap());
        assert_eq!(bearer(&headers).unwrap().unwrap().expose(), "abc");
        headers.insert(header::AUTHORIZATION, "Basic abc".parse().unwrap());
        assert!(bearer(&headers).unwrap().is_none());
        headers.insert(header::AUTHORIZATION, "Bearer ".parse().unwrap());
        assert!(bearer(&headers).unwrap().is_none());
    }

    #[test]
    fn the_subject_of_a_certificate_names_user_and_groups() {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "shop");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let user = certificate_user(certificate.der()).unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["shop", "system:authenticated"]);
    }

    #[test]
    fn a_certificate_without_a_name_is_nobody() {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert!(matches!(certificate_user(certificate.der()), Err(ApiError::Unauthorized)));
    }
}
