//! What the hub proves itself with: the node's own CA, and a certificate of it under every name by which a process of
//! the node knows the API server.
//!
//! ```text
//! ca.pem ──whole?──▶ NodeCa ──signs──▶ hub.pem ──of this CA, these names, not nearly over?──▶ in use
//!   │ no: set aside, made anew            ▲ no: made anew; also when the Service's addresses change, or the clock
//!   ▼                                     └ jumps; looked at every half minute
//! ```
//!
//! A CA that cannot be read, because the disk fails or somebody has taken the right to, is not damaged: the process
//! ends and is started again until it can. Another one in its place is believed by nobody.
//!
//! Nobody is asked, so all of this works without a link, and the first handshake need not wait. Who believes it:
//! kubelet by the kubeconfig that the keeper writes with [`Certificates::ca`], pods by their `ca.crt`
//! ([`crate::filter`]).
//!
//! Key and certificate are one file each, 0600, replaced by a rename, so that they always belong together; a file that
//! vanishes or is damaged under a running hub is put back.

mod ca;
mod files;
mod former;
mod installed;
mod names;
mod serving;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::ca::NodeCa;
use self::former::Former;
pub(crate) use self::installed::InstalledCertificate;
use self::names::Names;
use self::serving::Serving;

const CA_FILE: &str = "ca.pem";
const SERVING_FILE: &str = "hub.pem";
/// Between two looks: a clock that jumps is nobody's event.
const LOOK: Duration = Duration::from_secs(30);

/// Why there is no certificate, or none on the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// Key or certificate cannot be made.
    #[error("cannot make a key or a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It is not what it should be.
    #[error("it cannot be used: {0}")]
    Unusable(String),
    /// It is there, perhaps whole.
    #[error(
        "cannot read {path}: {source}; it is kept, and no other one is made: look at the disk and its mount"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk.
    #[error("cannot keep the certificate in {path}: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What the health port shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CertificateState {
    /// End of the certificate in use, RFC 3339.
    pub(crate) expires: Option<String>,
    /// Why it is not on the disk.
    pub(crate) error: Option<String>,
}

/// The node's CA and the hub's certificate, in use and on the disk.
pub(crate) struct Certificates {
    state_dir: PathBuf,
    /// File of the cluster's CA.
    cluster_ca: PathBuf,
    names: Names,
    ca: NodeCa,
    /// Text of the CA's file.
    ca_text: String,
    serving: Serving,
    installed: Arc<InstalledCertificate>,
    state: watch::Sender<CertificateState>,
}

impl Certificates {
    /// Reads both or makes them, for a node of this name in a cluster of this domain. What cannot be written now is
    /// tried again by [`Self::run`]. `cluster_ca` is the file of the cluster's CA.
    ///
    /// # Errors
    ///
    /// When there is a CA and it cannot be read, and when there is no randomness.
    pub(crate) fn open(
        state_dir: &Path,
        cluster_ca: &Path,
        node: &str,
        domain: Option<&str>,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let read =
            read(&state_dir.join(CA_FILE), |text| NodeCa::parse(text).map(|ca| (ca, text.to_owned())))?;
        let (ca, ca_text) = match read {
            Some(read) => read,
            None => NodeCa::make()?,
        };
        let names = Names::new(node, domain);
        let found = read_serving(state_dir, &ca);
        let service = found.as_ref().map(|found| names.service_addresses(&found.names)).unwrap_or_default();
        let wanted = names.with(&service);
        let serving = match found.filter(|found| found.objection(&wanted, now).is_none()) {
            Some(found) => found,
            None => Serving::issue(&ca, &wanted, now)?,
        };
        let installed = Arc::new(InstalledCertificate::with_former(Former::load(state_dir)));
        installed.compare_former(cluster_ca);
        let state = watch::Sender::default();
        let (state_dir, cluster_ca) = (state_dir.to_owned(), cluster_ca.to_owned());
        let opened = Self { state_dir, cluster_ca, names, ca, ca_text, serving, installed, state };
        opened.install();
        opened.kept(keep(&opened.files()));
        Ok(opened)
    }

    /// The CA's certificate in PEM.
    pub(crate) fn ca(&self) -> Arc<str> {
        self.ca.pem().into()
    }

    /// Where handshakes find the certificate.
    pub(crate) fn installed(&self) -> Arc<InstalledCertificate> {
        self.installed.clone()
    }

    /// What the health port shows.
    pub(crate) fn state(&self) -> watch::Receiver<CertificateState> {
        self.state.subscribe()
    }

    /// The addresses of the Service `default/kubernetes` that the certificate is for: as last known.
    pub(crate) fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.names.service_addresses(&self.serving.names)
    }

    /// Keeps the certificate good, for these addresses of the Service, and both files in place, until stopped.
    pub(crate) async fn run(
        mut self,
        mut service: watch::Receiver<BTreeSet<IpAddr>>,
        stop: CancellationToken,
    ) {
        loop {
            let wanted = self.names.with(&service.borrow_and_update());
            self.renew(&wanted, SystemTime::now());
            let files = self.files();
            let (installed, cluster_ca) = (self.installed.clone(), self.cluster_ca.clone());
            let look = move || {
                installed.compare_former(&cluster_ca);
                keep(&files)
            };
            // A disk may take its time, handshakes must not.
            match tokio::task::spawn_blocking(look).await {
                Ok(outcome) => self.kept(outcome),
                Err(error) => tracing::error!(%error, "the certificate's files could not be looked at"),
            }
            let changed = async {
                if service.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                () = changed => {}
            }
        }
    }

    fn renew(&mut self, wanted: &BTreeSet<names::Name>, now: SystemTime) {
        let Some(reason) = self.serving.objection(wanted, now) else { return };
        match Serving::issue(&self.ca, wanted, now) {
            Ok(serving) => {
                tracing::info!(reason, expires = serving.expires(), "a new serving certificate is in use");
                self.serving = serving;
                self.install();
            }
            Err(error) => tracing::error!(%error, reason, "no new serving certificate; trying again"),
        }
    }

    fn install(&self) {
        self.installed.install(self.serving.certified.clone());
        self.state.send_modify(|state| state.expires = self.serving.expires());
    }

    fn files(&self) -> [(PathBuf, String); 2] {
        [
            (self.state_dir.join(CA_FILE), self.ca_text.clone()),
            (self.state_dir.join(SERVING_FILE), self.serving.pem.clone()),
        ]
    }

    fn kept(&self, outcome: Result<(), CertificateError>) {
        let error = outcome.err().map(|error| error.to_string());
        self.state.send_if_modified(|state| {
            let changed = state.error != error;
            if changed && let Some(error) = &error {
                tracing::error!(error, "trying again");
            }
            state.error = error;
            changed
        });
    }
}

/// Both files as they should be; the CA first, nothing is worth anything without it.
fn keep(files: &[(PathBuf, String)]) -> Result<(), CertificateError> {
    for (path, text) in files {
        let written = files::keep(path, text)
            .map_err(|source| CertificateError::Disk { path: path.clone(), source })?;
        if written {
            tracing::debug!(path = %path.display(), "written");
        }
    }
    Ok(())
}

/// What an earlier process left in a file. One whose content cannot be used is set aside.
fn read<T>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, CertificateError>,
) -> Result<Option<T>, CertificateError> {
    let read = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map_err(|error| CertificateError::Unusable(error.to_string()))
            .and_then(|text| parse(&text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // What is in its place has no content.
        Err(error) if error.kind() == ErrorKind::IsADirectory => {
            Err(CertificateError::Unusable(error.to_string()))
        }
        Err(source) => return Err(CertificateError::Unreadable { path: path.to_owned(), source }),
    };
    let usable = read.inspect_err(|error| {
        let set_aside = files::set_aside(path);
        tracing::error!(
            path = %path.display(), %error, set_aside = %set_aside.display(),
            "damaged; another one is made, and whoever believed this one has to be told"
        );
    });
    Ok(usable.ok())
}

/// The hub's certificate. One of another CA is no damage: this node's was made anew.
fn read_serving(state_dir: &Path, ca: &NodeCa) -> Option<Serving> {
    let pem = std::fs::read_to_string(state_dir.join(SERVING_FILE)).ok()?;
    Serving::parse(pem, ca)
        .inspect_err(|error| tracing::warn!(%error, "the hub's certificate is not used; making another"))
        .ok()
}

#[cfg(test)]
mod tests;
