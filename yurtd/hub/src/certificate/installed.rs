//! The serving certificate that handshakes use. It may come late and change at any time.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The serving certificate in use. Empty until the first one has been issued: handshakes fail until then.
#[derive(Default)]
pub(crate) struct InstalledCertificate {
    current: ArcSwapOption<CertifiedKey>,
}

impl InstalledCertificate {
    /// From now on handshakes use this certificate.
    pub(crate) fn install(&self, certified: CertifiedKey) {
        self.current.store(Some(Arc::new(certified)));
    }

    /// Whether there is one.
    pub(crate) fn is_present(&self) -> bool {
        self.current.load().is_some()
    }
}

impl fmt::Debug for InstalledCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstalledCertificate").field("present", &self.is_present()).finish()
    }
}

impl ResolvesServerCert for InstalledCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}
