//! The certificate that a hub of before had from the cluster's CA (`serving.pem`).
//!
//! On a node that was upgraded, kubelet, kube-proxy and pods run that believe the cluster's CA alone, and most of them
//! read theirs at their start only. Everybody believes that CA, those who know the node's as well. So whoever comes
//! without a name, to an address, is shown this certificate for as long as it is valid and the cluster has the CA that
//! signed it: of a CA that was replaced nobody believes it any more. It is not renewed, and the file stays for the
//! release of before, which may be swapped back.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use yurt_node::pki;

use super::names::{Name, names_of};
use crate::clock::unix_seconds;

const FILE: &str = "serving.pem";

/// Key, chain, when it is valid, and whether it is believed.
#[derive(Debug)]
pub(crate) struct Former {
    certified: Arc<CertifiedKey>,
    names: BTreeSet<Name>,
    not_before: u64,
    not_after: u64,
    /// The cluster's CA signed it, the present one.
    is_of_cluster: AtomicBool,
}

impl Former {
    /// Reads the file; nothing when there is none or it cannot be used. Nobody is shown it before [`Self::compare`].
    pub(super) fn load(state_dir: &Path) -> Option<Self> {
        let pem = std::fs::read(state_dir.join(FILE)).ok()?;
        Self::parse(&pem)
            .inspect_err(|error| {
                tracing::warn!(error, "the certificate of the release before cannot be used")
            })
            .ok()
    }

    fn parse(pem: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("there is none")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let names = names_of(&parsed);
        let not_before = seconds(parsed.validity().not_before.timestamp());
        let not_after = seconds(parsed.validity().not_after.timestamp());
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
        let certified =
            CertifiedKey::from_der(chain, key, &pki::provider()).map_err(|error| error.to_string())?;
        let (certified, is_of_cluster) = (Arc::new(certified), AtomicBool::new(false));
        Ok(Self { certified, names, not_before, not_after, is_of_cluster })
    }

    /// Finds out whether the cluster's CA, as it is now in this file, signed it. A file that cannot be read, which is
    /// perhaps being replaced right now, changes nothing.
    pub(super) fn compare(&self, cluster_ca: &Path) {
        let roots = match pki::read_certificates(cluster_ca) {
            Ok(roots) => roots,
            Err(error) => {
                tracing::warn!(%error, "the cluster's CA cannot be compared with what the release before has left");
                return;
            }
        };
        let is_signed = self.is_signed_by(&roots);
        if self.is_of_cluster.swap(is_signed, Ordering::Relaxed) && !is_signed {
            tracing::info!(
                "the cluster has another CA: the certificate of the release before is shown to nobody"
            );
        }
    }

    fn is_signed_by(&self, roots: &[CertificateDer<'static>]) -> bool {
        let Some((leaf, intermediates)) = self.certified.cert.split_first() else { return false };
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        let anchors = roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok());
        let anchors: Vec<_> = anchors.collect();
        // At a moment at which it was valid: whether it is now is asked at every handshake.
        let moment = UnixTime::since_unix_epoch(Duration::from_secs(self.not_before));
        let (algorithms, usage) = (webpki::ALL_VERIFICATION_ALGS, KeyUsage::server_auth());
        leaf.verify_for_usage(algorithms, &anchors, intermediates, moment, usage, None, None).is_ok()
    }

    /// The certificate, for a client that asks for this name (RFC 6066), if it may be shown it now.
    pub(super) fn for_client(&self, name: Option<&str>, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let asked = name.is_none_or(|name| self.names.contains(&Name::Dns(name.to_ascii_lowercase())));
        let valid = (self.not_before..self.not_after).contains(&unix_seconds(now))
            && self.is_of_cluster.load(Ordering::Relaxed);
        (asked && valid).then(|| self.certified.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use yurt_fakes::pki::TestCa;

    use super::*;

    #[test]
    fn whoever_comes_to_an_address_is_shown_it_while_it_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Former::load(dir.path()).is_none());
        let ca = TestCa::new("kubernetes");
        let issued = ca.serving("edge", &["127.0.0.1", "169.254.2.1", "edge"]);
        let file = dir.path().join(FILE);
        std::fs::write(&file, format!("{}{}", issued.key_pem, issued.pem)).unwrap();
        let former = Former::load(dir.path()).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        assert!(former.for_client(None, now).is_none(), "nobody knows yet whose it is");
        let cluster_ca = dir.path().join("ca.crt");
        std::fs::write(&cluster_ca, &ca.pem).unwrap();
        former.compare(&cluster_ca);
        for name in [None, Some("edge"), Some("EDGE")] {
            let shown = former.for_client(name, now).unwrap();
            assert_eq!(shown.cert, std::slice::from_ref(&issued.der), "{name:?}");
        }
        for name in ["kubernetes.default.svc", "kubernetes", "localhost"] {
            assert!(former.for_client(Some(name), now).is_none(), "{name}");
        }
        // A clock that says 1970, and one after its end (the test's CA signs from 1975 on).
        for other in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 10)] {
            assert!(former.for_client(None, other).is_none());
        }
        let text = std::fs::read(&file).unwrap();
        std::fs::write(&file, &text[..text.len() / 2]).unwrap();
        assert!(Former::load(dir.path()).is_none());
    }
    #[test]
    fn nobody_is_shown_it_when_the_cluster_has_another_ca() {
        let dir = tempfile::tempdir().unwrap();
        // Of the same name, as kubeadm makes it.
        let (ca, another) = (TestCa::new("kubernetes"), TestCa::new("kubernetes"));
        let issued = ca.serving("edge", &["127.0.0.1"]);
        std::fs::write(dir.path().join(FILE), format!("{}{}", issued.key_pem, issued.pem)).unwrap();
        let former = Former::load(dir.path()).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let cluster_ca = dir.path().join("ca.crt");
        let shown_with = |pem: Option<&str>| {
            match pem {
                Some(pem) => std::fs::write(&cluster_ca, pem).unwrap(),
                None => std::fs::remove_file(&cluster_ca).unwrap(),
            }
            former.compare(&cluster_ca);
            former.for_client(None, now).is_some()
        };
        assert!(shown_with(Some(&ca.pem)));
        // While a CA is replaced both are in the bundle.
        assert!(shown_with(Some(&format!("{}{}", another.pem, ca.pem))));
        assert!(shown_with(Some("half of a fi")), "it is being written");
        assert!(shown_with(None));
        assert!(!shown_with(Some(&another.pem)));
        assert!(!shown_with(None));
        assert!(shown_with(Some(&ca.pem)), "it was swapped back");
    }
}
