//! Who the tunnel server is to kubelets: a client certificate of the cluster's own CA.
//!
//! A bearer token would be shown to whoever is at the end of the tunnel, and kubeadm's kubelets cannot prove who
//! they are: one compromised node could take it and use it on every other. The proof in a TLS 1.3 handshake is about
//! that one handshake and leads nowhere else.
//!
//! ```text
//! key in memory ──▶ CSR created with the ServiceAccount ──poll──▶ approved by our controller, issued ──▶ in use
//!       ▲                  │ denied, failed, deleted, not in time                                         │ two
//!       └──── pause ◀──────┴──────────────────────────────────────────────◀── thirds of its life ─────────┘
//! ```
//!
//! The key is never written; a server that starts again asks again, and every replica has its own. The old
//! certificate is used until the new one is there. Requests are left to kube-controller-manager, which collects them
//! an hour after they were issued: the right to delete them could not be bound to ours.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;
use yurt_api::names::{LABEL_PART_OF, PART_OF, TUNNEL_SERVER, TUNNEL_SERVER_USER};

use super::status::ApiError;
use yurt_node::pki;
use yurt_node::random::random;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Life that is asked for, seconds: a day, which is also the most that our controller approves.
const EXPIRATION: i32 = 24 * 60 * 60;
/// Between the first looks at the request; controller and signer need some tens of milliseconds.
const FIRST_POLL: Duration = Duration::from_millis(100);
const LONGEST_POLL: Duration = Duration::from_secs(2);
/// How long the API server may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A request that is not issued in this time is given up, and another made.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// First pause after a failure; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The wall clock may jump: look again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(15 * 60);
/// However short a life the signer gives, certificates are not asked for faster than this.
const AT_LEAST: Duration = Duration::from_secs(60);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum IssueError {
    /// The API server refuses.
    #[error("the certificate signing request: {}", api_message(.0))]
    Api(#[from] kube::Error),
    /// The API server says nothing.
    #[error("the certificate signing request: the API server did not answer within {TIMEOUT:?}")]
    Silent,
    /// The approver or the signer said no.
    #[error("the certificate signing request {name} was {verdict}: {message}")]
    Refused { name: String, verdict: String, message: String },
    /// Nobody decided.
    #[error("the certificate signing request {name} was not issued within {PATIENCE:?}")]
    Patience { name: String },
    /// Key or request cannot be made.
    #[error("cannot make the key or the request: {0}")]
    Key(#[from] rcgen::Error),
    /// What was issued is not what was asked for.
    #[error("what was issued for {name} cannot be used: {reason}")]
    Unusable { name: String, reason: String },
}

fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A certificate that was issued.
#[derive(Debug)]
struct Issued {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Issued {
    fn parse(pem: &[u8], key: &KeyPair) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("there is no certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        if parsed.subject().iter_common_name().next().map(|name| name.as_str())
            != Some(Ok(TUNNEL_SERVER_USER))
        {
            return Err(format!("its subject is {}", parsed.subject()));
        }
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let (not_before, not_after) = (time(parsed.validity().not_before), time(parsed.validity().not_after));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Refuses a key that is not the certificate's.
        let certified =
            CertifiedKey::from_der(chain, key, &pki::provider()).map_err(|error| error.to_string())?;
        Ok(Self { certified: Arc::new(certified), not_before, not_after })
    }

    /// When to ask for another: after two thirds of its life, give or take a twentieth, so that replicas that
    /// started together do not ask together for ever. `random` is uniform over all `u32`.
    fn renewal(&self, random: u32) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let part = 2.0 / 3.0 - 0.05 + 0.1 * f64::from(random) / f64::from(u32::MAX);
        self.not_before + life.mul_f64(part)
    }
}

/// The client certificate in use. Where a kubelet asks for one, this answers.
#[derive(Debug, Default)]
pub(in crate::server) struct ClientCertificate {
    issued: ArcSwapOption<Issued>,
    /// What [`Self::follow`] is waiting for, or what went wrong last.
    state: RwLock<String>,
}

impl ClientCertificate {
    /// Says whether there is a certificate that is valid at `now`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Unavailable`] with what is missing.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), ApiError> {
        let issued = self.issued.load();
        let what = match issued.as_deref() {
            Some(issued) if now < issued.not_after => return Ok(()),
            Some(_) => "the tunnel server's client certificate for kubelets has expired",
            None => "the tunnel server has no client certificate for kubelets yet",
        };
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Err(ApiError::Unavailable(format!(
            "{what} ({state}); yurt-controller approves it and kube-controller-manager signs it: try again, and if it \
             stays so, see 'kubectl get csr' and their logs"
        )))
    }

    /// Has a certificate issued, and another when its time has come, until `stop`.
    pub(in crate::server) async fn follow(self: Arc<Self>, client: kube::Client, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.renew(client) => {}
        }
    }

    async fn renew(&self, client: kube::Client) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.obtain(&client).await {
                Ok(issued) => {
                    let renewal = issued.renewal(random());
                    tracing::info!(
                        user = TUNNEL_SERVER_USER,
                        expires = %seconds(issued.not_after),
                        renewal = %seconds(renewal),
                        "client certificate for kubelets in use"
                    );
                    self.issued.store(Some(Arc::new(issued)));
                    pause = FIRST_PAUSE;
                    tokio::time::sleep(AT_LEAST).await;
                    while let Ok(left) = renewal.duration_since(SystemTime::now()) {
                        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no client certificate for kubelets; trying again");
                    self.say(error.to_string());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn say(&self, state: String) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    async fn obtain(&self, client: &kube::Client) -> Result<Issued, IssueError> {
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        let key = KeyPair::generate()?;
        let (request, params) = (request(&key)?, PostParams::default());
        let created = tokio::time::timeout(TIMEOUT, api.create(&params, &request)).await;
        let name = created.map_err(|_| IssueError::Silent)??.name_any();
        self.say(format!("certificate signing request {name} is not issued"));
        let pem = tokio::time::timeout(PATIENCE, issued(&api, &name)).await;
        let pem = pem.map_err(|_| IssueError::Patience { name: name.clone() })??;
        Issued::parse(&pem.0, &key).map_err(|reason| IssueError::Unusable { name, reason })
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.issued.load().as_ref().map(|issued| issued.certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What is asked for; the controller approves this and nothing else.
///
/// # Errors
///
/// When the key cannot sign.
pub fn request(key: &KeyPair) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, TUNNEL_SERVER_USER);
    let pem = params.serialize_request(key)?.pem()?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("{TUNNEL_SERVER}-")),
            // By which revert finds it.
            labels: Some([(LABEL_PART_OF.to_owned(), PART_OF.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.to_owned(),
            // ECDSA: key encipherment is for RSA.
            usages: Some(vec!["digital signature".to_owned(), "client auth".to_owned()]),
            expiration_seconds: Some(EXPIRATION),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// Waits for the certificate.
async fn issued(api: &Api<CertificateSigningRequest>, name: &str) -> Result<ByteString, IssueError> {
    let mut poll = FIRST_POLL;
    loop {
        tokio::time::sleep(poll).await;
        poll = poll.mul_f32(1.5).min(LONGEST_POLL);
        match tokio::time::timeout(TIMEOUT, api.get(name)).await {
            Ok(Ok(request)) => {
                if let Some(pem) = verdict(name, request.status.unwrap_or_default())? {
                    return Ok(pem);
                }
            }
            // Deleted, or the right was taken away. Anything else is the API server's moment of weakness.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                return Err(kube::Error::Api(status).into());
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot look at the certificate signing request"),
            Err(_) => tracing::debug!("the API server does not answer about the certificate signing request"),
        }
    }
}

/// The certificate if it is there, nothing while it is undecided.
fn verdict(name: &str, status: CertificateSigningRequestStatus) -> Result<Option<ByteString>, IssueError> {
    for condition in status.conditions.into_iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            return Err(IssueError::Refused {
                name: name.to_owned(),
                verdict: condition.type_,
                message: condition.message.unwrap_or_default(),
            });
        }
    }
    Ok(status.certificate.filter(|pem| !pem.0.is_empty()))
}

/// For the log.
fn seconds(time: SystemTime) -> jiff::Timestamp {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;

    use super::*;
    use rcgen::ExtendedKeyUsagePurpose::ClientAuth;
    use yurt_fakes::pki::TestCa;

    fn issue(key: &KeyPair) -> String {
        let request = request(key).unwrap();
        TestCa::new("cluster").sign(std::str::from_utf8(&request.spec.request.0).unwrap(), ClientAuth)
    }

    fn message(certificate: &ClientCertificate, now: SystemTime) -> String {
        match certificate.check(now) {
            Err(ApiError::Unavailable(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_renewed_around_two_thirds_of_its_life() {
        let key = KeyPair::generate().unwrap();
        let mut issued = Issued::parse(issue(&key).as_bytes(), &key).unwrap();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        (issued.not_before, issued.not_after) = (start, start + Duration::from_secs(86_400));
        let hours = |random| issued.renewal(random).duration_since(start).unwrap().as_secs_f64() / 3600.0;
        assert!((14.7..14.9).contains(&hours(0)), "{}", hours(0));
        assert!((17.1..17.3).contains(&hours(u32::MAX)), "{}", hours(u32::MAX));
    }

    #[test]
    fn another_key_or_another_name_is_not_used() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let pem = issue(&key);
        assert!(Issued::parse(pem.as_bytes(), &key).is_ok());
        assert!(Issued::parse(pem.as_bytes(), &other).is_err());
        assert!(Issued::parse(b"", &key).is_err());
        let stranger = TestCa::new("cluster").node("edge-1");
        let key = KeyPair::from_pem(&stranger.key_pem).unwrap();
        let error = Issued::parse(stranger.pem.as_bytes(), &key).unwrap_err();
        assert!(error.contains("system:node:edge-1"), "{error}");
    }

    #[test]
    fn the_old_certificate_is_used_until_it_expires_whatever_goes_wrong() {
        let now = SystemTime::now();
        let identity = ClientCertificate::default();
        identity.say("certificate signing request yurt-tunnel-server-x is not issued".into());
        let waiting = message(&identity, now);
        assert!(waiting.contains("yet") && waiting.contains("yurt-tunnel-server-x"), "{waiting}");
        assert!(identity.resolve(&[], &[]).is_none());

        let key = KeyPair::generate().unwrap();
        let mut issued = Issued::parse(issue(&key).as_bytes(), &key).unwrap();
        issued.not_after = now + Duration::from_secs(60);
        identity.issued.store(Some(Arc::new(issued)));
        identity.say("the signer is away".into());
        identity.check(now).unwrap();
        assert!(identity.resolve(&[], &[]).is_some());
        let expired = message(&identity, now + Duration::from_secs(60));
        assert!(expired.contains("expired") && expired.contains("the signer is away"), "{expired}");
    }

    #[test]
    fn the_requests_status_decides() {
        let status = |kind: &str, certificate: &[u8]| CertificateSigningRequestStatus {
            certificate: Some(ByteString(certificate.to_vec())),
            conditions: Some(vec![CertificateSigningRequestCondition {
                type_: kind.into(),
                ..CertificateSigningRequestCondition::default()
            }]),
        };
        assert!(verdict("a", CertificateSigningRequestStatus::default()).unwrap().is_none());
        assert!(verdict("a", status("Approved", b"")).unwrap().is_none());
        assert_eq!(verdict("a", status("Approved", b"pem")).unwrap().unwrap().0, b"pem");
        for kind in ["Denied", "Failed"] {
            assert!(matches!(verdict("a", status(kind, b"pem")), Err(IssueError::Refused { .. })), "{kind}");
        }
    }
}
