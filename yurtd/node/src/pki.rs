//! Certificates, keys and CAs in PEM files that somebody else rotates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_util::sync::CancellationToken;

use crate::certificate;

/// How often files are compared with what is in use. kubelet writes a mounted Secret once a minute at most.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Why certificate, key or CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, perhaps because it is not there yet.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has not what it should have.
    #[error("{path} has no usable {what}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not fit, or rustls refuses them.
    #[error("certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The crypto provider of the whole program.
pub fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// The CA certificates of a PEM file.
///
/// # Errors
///
/// [`TlsError`]; a file without any is one.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| content(path, "CA certificate", &error))?;
    }
    Ok(roots)
}

/// The certificates of a PEM file, in their order; keys in it are skipped.
///
/// # Errors
///
/// [`TlsError`]; a file without any is one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| content(path, "certificate", &error))?;
    if certificates.is_empty() {
        Err(content(path, "certificate", &"there is none"))
    } else {
        Ok(certificates)
    }
}

/// The private key of a PEM file; certificates in it are skipped.
///
/// # Errors
///
/// [`TlsError`].
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| content(path, "private key", &error))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })
}

fn content(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Content { path: path.into(), what, reason: reason.to_string() }
}

/// TLS 1.3 with a client certificate, read from the files now: kubelet replaces its own while we run.
///
/// # Errors
///
/// [`TlsError`].
pub fn client_config(ca: &Path, certificate: &Path, key: &Path) -> Result<ClientConfig, TlsError> {
    let roots = read_roots(ca)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A serving certificate in a mounted Secret, which may appear late and change at any time.
#[derive(Debug)]
pub struct MountedCertificate {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwapOption<CertifiedKey>,
}

impl MountedCertificate {
    /// The certificate in `tls.crt` and `tls.key` of a folder (a mounted Secret); nothing is read yet.
    pub fn in_folder(folder: &Path) -> Arc<Self> {
        Arc::new(Self {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            current: ArcSwapOption::empty(),
        })
    }

    /// Reads the files; says whether there is something new in them.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; what was in use stays in use. Files that are half replaced do not fit and are such an error.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let chain = read_certificates(&self.certificate)?;
        if self.current.load().as_ref().is_some_and(|current| current.cert == chain) {
            return Ok(false);
        }
        let key = provider().key_provider.load_private_key(read_key(&self.key)?)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        self.current.store(Some(Arc::new(certified)));
        Ok(true)
    }

    /// Until when what is in use is valid; nothing before there is one.
    pub fn not_after(&self) -> Option<SystemTime> {
        let current = self.current.load();
        let leaf = current.as_ref()?.cert.first()?;
        certificate::validity(leaf).map(|validity| validity.not_after)
    }

    /// Waits until there is a certificate; `false` when `stop` came first.
    pub async fn wait(&self, stop: &CancellationToken) -> bool {
        let mut told = false;
        loop {
            match self.reload() {
                Ok(_) => return true,
                Err(error) if !told => {
                    tracing::info!(%error, "waiting for the serving certificate");
                    told = true;
                }
                Err(error) => tracing::debug!(%error, "still no serving certificate"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Takes over new files until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RELOAD_EVERY) => {}
            }
            match self.reload() {
                Ok(true) => tracing::info!(file = %self.certificate.display(), "new serving certificate"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot reload the serving certificate; the old one stays")
                }
            }
        }
    }
}

impl ResolvesServerCert for MountedCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// For those to whom it proves itself with the certificate that it serves with.
impl ResolvesClientCert for MountedCertificate {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use yurt_fakes::pki::TestCa;

    use super::*;

    #[test]
    fn a_serving_certificate_is_replaced_when_both_files_fit() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate_file, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let serving = MountedCertificate::in_folder(folder.path());
        assert!(matches!(serving.reload(), Err(TlsError::Read { .. })));
        let ca = TestCa::new("tunnel");
        let (first, second) = (ca.server("a"), ca.server("a"));
        std::fs::write(&certificate_file, &first.pem).unwrap();
        std::fs::write(&key_file, &first.key_pem).unwrap();
        assert!(serving.reload().unwrap());
        assert!(!serving.reload().unwrap());
        std::fs::write(&certificate_file, &second.pem).unwrap();
        assert!(matches!(serving.reload(), Err(TlsError::Rustls(_))));
        assert_eq!(serving.current.load().as_ref().unwrap().cert, [first.der]);
        std::fs::write(&key_file, &second.key_pem).unwrap();
        assert!(serving.reload().unwrap());
        assert_eq!(serving.current.load().as_ref().unwrap().cert, [second.der]);
    }

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello").unwrap();
        assert!(matches!(read_roots(file.path()), Err(TlsError::Content { .. })));
        assert!(matches!(read_key(file.path()), Err(TlsError::Content { .. })));
    }
}
