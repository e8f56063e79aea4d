//! The certificate that a hub of before had from the cluster's CA (`serving.pem`).
//!
//! On a node that was upgraded, kubelet, kube-proxy and pods run that believe the cluster's CA alone, and most of them
//! read theirs at their start only. Everybody believes that CA, those who know the node's as well. So whoever comes
//! without a name, to an address, is shown this certificate for as long as it is valid; it is not renewed, and the file
//! stays for the release of before, which may be swapped back.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use yurt_node::pki;

use super::names::{Name, names_of};
use crate::clock::unix_seconds;

const FILE: &str = "serving.pem";

/// Key, chain, and when it is valid.
#[derive(Debug)]
pub(crate) struct Former {
    certified: Arc<CertifiedKey>,
    names: BTreeSet<Name>,
    not_before: u64,
    not_after: u64,
}

impl Former {
    /// Reads the file; nothing when there is none or it cannot be used.
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
        Ok(Self { certified: Arc::new(certified), names, not_before, not_after })
    }

    /// The certificate, for a client that asks for this name (RFC 6066), if it may be shown it now.
    pub(super) fn for_client(&self, name: Option<&str>, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let asked = name.is_none_or(|name| self.names.contains(&Name::Dns(name.to_ascii_lowercase())));
        let valid = (self.not_before..self.not_after).contains(&unix_seconds(now));
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
        let issued = TestCa::new("kubernetes").serving("edge", &["127.0.0.1", "169.254.2.1", "edge"]);
        let file = dir.path().join(FILE);
        std::fs::write(&file, format!("{}{}", issued.key_pem, issued.pem)).unwrap();
        let former = Former::load(dir.path()).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
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
}
