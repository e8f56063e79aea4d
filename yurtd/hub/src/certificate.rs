//! The hub's serving certificate: requested from the cluster, kept on the disk, renewed in time.
//!
//! kubelet and pods verify the hub with the cluster CA that they have already, so the certificate comes from a
//! CertificateSigningRequest with the signer `kubernetes.io/kubelet-serving`, created with the node's own
//! credential (the signer demands the subject of the node) and approved by our controller after strict checks.
//!
//! ```text
//! no certificate ──request──▶ CSR created ──poll──▶ approved, issued ──check──▶ on the disk ──▶ in use
//!        ▲                        │ denied, failed, not in time                                 │ 80 % of its life
//!        └───────── pause ◀───────┴──────────────────────────────────────────────◀─────────────┘
//! ```
//!
//! Key and certificate are one file, 0600, replaced by a rename, so that they always belong together. An expired
//! certificate stays in use: without a link there is no better one.

mod installed;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use yurt_api::names::{HUB_POD_ADDRESS, LABEL_PART_OF, PART_OF};

use crate::clock::unix_seconds;
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use yurt_node::link::LinkState;
use yurt_node::pki;

pub(crate) use installed::InstalledCertificate;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "kubernetes.io/kubelet-serving";
const FILE: &str = "serving.pem";
/// Between two looks at the CSR.
const POLL: Duration = Duration::from_secs(1);
/// A CSR that is not issued in this time is given up, and another made: the old one may have been collected.
const PATIENCE: Duration = Duration::from_secs(600);
/// First pause after a failure; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The API server.
    #[error("the certificate signing request: {0}")]
    Call(#[from] CallError),
    /// The approver or the signer said no.
    #[error("the certificate signing request {name} was {verdict}: {message}")]
    Refused {
        /// Name of the CSR.
        name: String,
        /// `Denied` or `Failed`.
        verdict: String,
        /// Why.
        message: String,
    },
    /// Nobody decided.
    #[error("the certificate signing request {name} was not issued within {} s; is yurt-controller running?", PATIENCE.as_secs())]
    Patience {
        /// Name of the CSR.
        name: String,
    },
    /// Key or request cannot be made.
    #[error("cannot make the key or the request: {0}")]
    Key(#[from] rcgen::Error),
    /// What was issued is not what was asked for.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    /// The disk.
    #[error("cannot keep the certificate in {path}: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The process ends.
    #[error("the hub is stopping")]
    Stopped,
}

/// What the health port shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CertificateState {
    /// End of the certificate in use, RFC 3339.
    pub(crate) expires: Option<String>,
    /// The last failure since the last success.
    pub(crate) error: Option<String>,
}

/// Key and certificate, checked to belong together and to this hub.
pub(crate) struct Serving {
    pem: String,
    certified: CertifiedKey,
    not_before: u64,
    not_after: u64,
}

impl Serving {
    /// Reads PEM with one key and the certificate chain, and checks it against what the hub needs.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Unusable`].
    pub(crate) fn parse(pem: String, node_name: &str) -> Result<Self, CertificateError> {
        let unusable = |reason: String| CertificateError::Unusable(reason);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let leaf = chain.first().ok_or_else(|| unusable("there is none".into()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| unusable(error.to_string()))?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let (not_before, not_after) = (
            seconds(parsed.validity().not_before.timestamp()),
            seconds(parsed.validity().not_after.timestamp()),
        );
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| unusable(error.to_string()))?
            .map(|names| names.value.general_names.as_slice())
            .unwrap_or_default();
        for wanted in subject_alternative_names(node_name)? {
            let found = names.iter().any(|name| match (name, &wanted) {
                (GeneralName::DNSName(name), SanType::DnsName(wanted)) => *name == wanted.as_str(),
                (GeneralName::IPAddress(octets), SanType::IpAddress(IpAddr::V4(wanted))) => {
                    **octets == wanted.octets()
                }
                _ => false,
            });
            if !found {
                return Err(unusable(format!("it is not for {wanted:?}")));
            }
        }
        let key =
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let certified = CertifiedKey::from_der(chain, key, &pki::provider())
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { pem, certified, not_before, not_after })
    }

    /// How long it need not be renewed: until 80 % of its life.
    pub(crate) fn good_for(&self, now: SystemTime) -> Duration {
        let due = self.not_before + (self.not_after.saturating_sub(self.not_before)) / 5 * 4;
        Duration::from_secs(due.saturating_sub(unix_seconds(now)))
    }

    fn expires(&self) -> Option<String> {
        jiff::Timestamp::from_second(i64::try_from(self.not_after).ok()?).ok().map(|time| time.to_string())
    }
}

fn subject_alternative_names(node_name: &str) -> Result<Vec<SanType>, CertificateError> {
    let pods: Ipv4Addr = HUB_POD_ADDRESS.parse().unwrap_or(Ipv4Addr::LOCALHOST);
    Ok(vec![
        SanType::DnsName(node_name.try_into()?),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        SanType::IpAddress(pods.into()),
    ])
}

/// PEM of the signing request for a key.
fn signing_request(node_name: &str, key: &KeyPair) -> Result<String, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node_name}"));
    params.subject_alt_names = subject_alternative_names(node_name)?;
    Ok(params.serialize_request(key)?.pem()?)
}

/// Where a CSR stands.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Pending,
    Issued(String),
    Refused { verdict: String, message: String },
}

fn decision(csr: &Value) -> Decision {
    for condition in csr["status"]["conditions"].as_array().into_iter().flatten() {
        let kind = condition["type"].as_str().unwrap_or_default();
        if matches!(kind, "Denied" | "Failed") {
            return Decision::Refused {
                verdict: kind.to_owned(),
                message: condition["message"].as_str().unwrap_or_default().to_owned(),
            };
        }
    }
    let issued = csr["status"]["certificate"].as_str().and_then(|text| STANDARD.decode(text).ok());
    match issued.and_then(|pem| String::from_utf8(pem).ok()) {
        Some(pem) if !pem.is_empty() => Decision::Issued(pem),
        _ => Decision::Pending,
    }
}

/// Reads the certificate that an earlier process left; `None` when there is none that can be used.
pub(crate) fn load(state_dir: &Path, node_name: &str) -> Option<Serving> {
    let path = state_dir.join(FILE);
    let pem = match std::fs::read_to_string(&path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the serving certificate cannot be read; getting another");
            return None;
        }
    };
    Serving::parse(pem, node_name)
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "the serving certificate is set aside; getting another");
        })
        .ok()
}

/// Writes it so that the file is always a whole one.
fn save(state_dir: &Path, serving: &Serving) -> Result<(), CertificateError> {
    let path = state_dir.join(FILE);
    let write = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let new = path.with_extension("pem.new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(serving.pem.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(state_dir)?.sync_all()
    };
    write().map_err(|source| CertificateError::Disk { path: path.clone(), source })
}

/// Keeps the hub's serving certificate.
pub(crate) struct Manager {
    /// Where the file is.
    pub(crate) state_dir: PathBuf,
    /// The node.
    pub(crate) node_name: String,
    /// Creates and reads the CSR.
    pub(crate) client: NodeClient,
    /// A pause ends early when the link comes up.
    pub(crate) link: Link,
    /// Where handshakes find it.
    pub(crate) installed: Arc<InstalledCertificate>,
    /// What the health port shows.
    pub(crate) state: watch::Sender<CertificateState>,
    /// Ends the manager.
    pub(crate) stop: CancellationToken,
}

impl Manager {
    /// Runs until stopped. `current` is what [`load`] found.
    pub(crate) async fn run(self, mut current: Option<Serving>) {
        if let Some(serving) = &current {
            self.install(serving);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = current.as_ref().map_or(Duration::ZERO, |serving| serving.good_for(SystemTime::now()));
            // The wall clock may jump (no battery-backed clock): look again every hour.
            let wait = wait.min(Duration::from_secs(3600));
            if !wait.is_zero() {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => continue,
                }
            }
            match self.obtain().await {
                Ok(serving) => {
                    self.install(&serving);
                    tracing::info!(expires = serving.expires(), "a new serving certificate is in use");
                    current = Some(serving);
                    pause = FIRST_PAUSE;
                }
                Err(CertificateError::Stopped) => return,
                Err(error) => {
                    tracing::warn!(%error, "no new serving certificate; trying again");
                    self.state.send_modify(|state| state.error = Some(error.to_string()));
                    if !self.rest(pause).await {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn install(&self, serving: &Serving) {
        self.installed.install(serving.certified.clone());
        self.state.send_replace(CertificateState { expires: serving.expires(), error: None });
    }

    /// A pause that ends when the link comes up; `false` when the process ends.
    async fn rest(&self, pause: Duration) -> bool {
        let mut link = self.link.subscribe();
        let was_online = *link.borrow_and_update() == LinkState::Online;
        let comes_up = async {
            if was_online || link.wait_for(|state| *state == LinkState::Online).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
            () = comes_up => true,
        }
    }

    async fn obtain(&self) -> Result<Serving, CertificateError> {
        let key = KeyPair::generate()?;
        let request = signing_request(&self.node_name, &key)?;
        let csr = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "yurt-hub-", "labels": {LABEL_PART_OF: PART_OF}},
            "spec": {
                "request": STANDARD.encode(request),
                "signerName": SIGNER,
                // ECDSA: key encipherment is for RSA.
                "usages": ["digital signature", "server auth"],
            },
        });
        let created = tokio::select! {
            () = self.stop.cancelled() => return Err(CertificateError::Stopped),
            created = self.client.create(CSRS, &csr) => created?,
        };
        let name = created["metadata"]["name"]
            .as_str()
            .ok_or_else(|| CertificateError::Unusable("the API server gave the request no name".into()))?
            .to_owned();
        tracing::info!(name, "waiting for the serving certificate to be approved and issued");
        let certificate = match tokio::time::timeout(PATIENCE, self.issued(&name)).await {
            Ok(issued) => issued?,
            Err(_) => return Err(CertificateError::Patience { name }),
        };
        let serving = Serving::parse(format!("{}{certificate}", key.serialize_pem()), &self.node_name)?;
        save(&self.state_dir, &serving)?;
        Ok(serving)
    }

    async fn issued(&self, name: &str) -> Result<String, CertificateError> {
        let path = format!("{CSRS}/{name}");
        loop {
            match self.client.get(&path).await {
                Ok(csr) => match decision(&csr) {
                    Decision::Issued(pem) => return Ok(pem),
                    Decision::Refused { verdict, message } => {
                        return Err(CertificateError::Refused { name: name.to_owned(), verdict, message });
                    }
                    Decision::Pending => {}
                },
                // The link may come and go while somebody approves.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(CertificateError::Stopped),
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::UNIX_EPOCH;

    use rcgen::{BasicConstraints, CertificateSigningRequestParams, CertifiedIssuer, IsCa};

    use super::*;

    fn issue(request: &str) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        request.params.not_after = rcgen::date_time_ymd(2026, 1, 11);
        request.signed_by(&ca).unwrap().pem()
    }

    fn serving() -> Serving {
        let key = KeyPair::generate().unwrap();
        let certificate = issue(&signing_request("edge", &key).unwrap());
        Serving::parse(format!("{}{certificate}", key.serialize_pem()), "edge").unwrap()
    }

    #[test]
    fn the_request_has_the_subject_and_names_that_the_signer_and_our_controller_want() {
        let key = KeyPair::generate().unwrap();
        let pem = signing_request("edge", &key).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        use x509_parser::prelude::FromDer;
        let (_, csr) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(csr.certification_request_info.subject.to_string(), "O=system:nodes, CN=system:node:edge");
        let names = csr
            .requested_extensions()
            .unwrap()
            .find_map(|extension| match extension {
                x509_parser::extensions::ParsedExtension::SubjectAlternativeName(names) => {
                    Some(names.general_names.iter().map(ToString::to_string).collect::<Vec<_>>())
                }
                _ => None,
            })
            .unwrap();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].contains("edge"), "{names:?}");
    }

    #[test]
    fn it_is_renewed_at_four_fifths_of_its_life() {
        let serving = serving();
        let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let day = Duration::from_secs(86_400);
        assert_eq!(serving.good_for(start), 8 * day);
        assert_eq!(serving.good_for(start + 7 * day), day);
        assert_eq!(serving.good_for(start + 9 * day), Duration::ZERO);
        assert_eq!(serving.expires().as_deref(), Some("2026-01-11T00:00:00Z"));
    }

    #[test]
    fn another_nodes_certificate_or_another_key_is_not_used() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let certificate = issue(&signing_request("edge", &key).unwrap());
        let parse = |key: &KeyPair, node: &str| {
            Serving::parse(format!("{}{certificate}", key.serialize_pem()), node).map(|_| ())
        };
        assert!(parse(&key, "edge").is_ok());
        assert!(matches!(parse(&key, "other"), Err(CertificateError::Unusable(_))));
        assert!(matches!(parse(&other, "edge"), Err(CertificateError::Unusable(_))));
    }

    #[test]
    fn the_file_is_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        assert!(load(&state_dir, "edge").is_none());
        save(&state_dir, &serving()).unwrap();
        let path = state_dir.join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(load(&state_dir, "edge").is_some());
        assert!(load(&state_dir, "other").is_none());
        // Half a file: another certificate is requested, and the hub starts.
        let pem = std::fs::read(&path).unwrap();
        std::fs::write(&path, &pem[..pem.len() / 2]).unwrap();
        assert!(load(&state_dir, "edge").is_none());
    }

    #[test]
    fn the_csrs_status_decides() {
        assert_eq!(decision(&json!({"status": {}})), Decision::Pending);
        let approved = json!({"status": {"conditions": [{"type": "Approved"}]}});
        assert_eq!(decision(&approved), Decision::Pending);
        let denied =
            json!({"status": {"conditions": [{"type": "Denied", "message": "no"}], "certificate": "eA=="}});
        assert!(matches!(decision(&denied), Decision::Refused { .. }));
        let issued =
            json!({"status": {"conditions": [{"type": "Approved"}], "certificate": STANDARD.encode("pem")}});
        assert_eq!(decision(&issued), Decision::Issued("pem".into()));
    }
}
