//! The serving certificate that handshakes use. It may change at any time.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::former::Former;

/// The serving certificate in use. Empty until there is one: handshakes fail until then.
#[derive(Default)]
pub(crate) struct InstalledCertificate {
    current: ArcSwapOption<CertifiedKey>,
    former: Option<Former>,
}

impl InstalledCertificate {
    /// None yet, but perhaps one of a release before.
    pub(super) fn with_former(former: Option<Former>) -> Self {
        Self { current: ArcSwapOption::empty(), former }
    }

    /// Whether anybody is shown that of the release before depends on the cluster's CA, which may be replaced.
    pub(super) fn compare_former(&self, cluster_ca: &Path) {
        if let Some(former) = &self.former {
            former.compare(cluster_ca);
        }
    }

    /// From now on handshakes use this certificate.
    pub(super) fn install(&self, certified: CertifiedKey) {
        self.current.store(Some(Arc::new(certified)));
    }

    /// Whether there is one.
    pub(crate) fn is_present(&self) -> bool {
        self.current.load().is_some()
    }
}

impl fmt::Debug for InstalledCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstalledCertificate").field("present", &self.is_present()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for InstalledCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let former = self.former.as_ref();
        former
            .and_then(|former| former.for_client(hello.server_name(), SystemTime::now()))
            .or_else(|| self.current.load_full())
    }
}
