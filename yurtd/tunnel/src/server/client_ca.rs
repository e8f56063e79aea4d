//! The CA that issues client certificates in this cluster.
//!
//! The API server publishes it for servers like this one in the ConfigMap
//! `kube-system/extension-apiserver-authentication`; a RoleBinding to the Role
//! `extension-apiserver-authentication-reader` lets them read it. It is followed, so that a rotated CA
//! counts at once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_util::sync::CancellationToken;
use yurt_node::pki;

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";

/// Why a certificate proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    /// The CA has not been read yet.
    #[error(
        "the cluster's client CA is not known to the tunnel server (yet): it may not read ConfigMap {NAMESPACE}/{CONFIG_MAP}, or the API server does not answer"
    )]
    NoCa,
    /// The chain does not hold.
    #[error("{0}")]
    Invalid(rustls::Error),
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    /// Not PEM.
    #[error("not a PEM bundle of certificates: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// Empty, or unusable as a whole.
    #[error("no verifier can be made of it: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The client CA as last published.
#[derive(Default)]
pub(super) struct ClientCa {
    verifier: ArcSwap<Option<Arc<dyn ClientCertVerifier>>>,
}

impl ClientCa {
    /// Checks a chain against the CA at a time, for use as a client certificate.
    ///
    /// # Errors
    ///
    /// [`CertificateError`].
    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let verifier = self.verifier.load();
        let verifier = verifier.as_ref().as_ref().ok_or(CertificateError::NoCa)?;
        verifier
            .verify_client_cert(end_entity, intermediates, now)
            .map(|_verified| ())
            .map_err(CertificateError::Invalid)
    }

    /// What verifies client certificates now; `None` before the CA was read.
    pub(super) fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.verifier.load().as_ref().clone()
    }

    /// Takes a new PEM bundle.
    ///
    /// # Errors
    ///
    /// [`BundleError`]; the old one goes on being used.
    pub(super) fn set(&self, pem: &str) -> Result<(), BundleError> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?;
        let mut roots = RootCertStore::empty();
        // One that rustls cannot use (an old version, an odd extension) must not cost the others.
        let (_, ignored) = roots.add_parsable_certificates(certificates);
        if ignored > 0 {
            tracing::warn!(ignored, "certificates in the client CA's bundle cannot be used");
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, pki::provider()).build()?;
        self.verifier.store(Arc::new(Some(verifier)));
        Ok(())
    }

    /// Follows the ConfigMap until `stop`.
    pub(super) async fn follow(self: Arc<Self>, client: kube::Client, stop: CancellationToken) {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let changes = watch_object(api, CONFIG_MAP).default_backoff();
        pin_mut!(changes);
        let mut last = String::new();
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.next() => change,
            };
            match change {
                Some(Ok(Some(map))) => {
                    let bundle = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
                    if bundle == last {
                        continue;
                    }
                    match self.set(&bundle) {
                        Ok(()) => tracing::info!("client CA of the cluster taken over"),
                        Err(error) => tracing::error!(
                            %error,
                            "{NAMESPACE}/{CONFIG_MAP} has a {KEY} that cannot be used; the old one stays"
                        ),
                    }
                    last = bundle;
                }
                // Deleting it takes nobody's certificate away; the API server writes it again.
                Some(Ok(None)) => tracing::warn!("{NAMESPACE}/{CONFIG_MAP} does not exist"),
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot follow {NAMESPACE}/{CONFIG_MAP}; trying again");
                }
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_fakes::pki::TestCa;

    #[test]
    fn without_a_ca_nobody_is_refused_for_good() {
        let authority = TestCa::new("cluster");
        let chain = authority.client("jane", &[]).der;
        let error = ClientCa::default().verify(&chain, &[], UnixTime::now()).unwrap_err();
        assert!(matches!(error, CertificateError::NoCa));
    }

    #[test]
    fn an_unusable_certificate_in_the_bundle_does_not_cost_the_others() {
        let authority = TestCa::new("cluster");
        let ca = ClientCa::default();
        let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        ca.set(&format!("{odd}{}", authority.pem)).unwrap();
        let chain = authority.client("jane", &[]).der;
        ca.verify(&chain, &[], UnixTime::now()).unwrap();
    }

    #[test]
    fn only_certificates_of_the_cluster_count_and_a_broken_bundle_changes_nothing() {
        let (ours, theirs) = (TestCa::new("ours"), TestCa::new("theirs"));
        let ca = ClientCa::default();
        ca.set(&ours.pem).unwrap();
        assert!(ca.set("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(ca.set("").is_err());
        let good = ours.client("jane", &[]).der;
        let bad = theirs.client("jane", &[]).der;
        ca.verify(&good, &[], UnixTime::now()).unwrap();
        assert!(matches!(ca.verify(&bad, &[], UnixTime::now()), Err(CertificateError::Invalid(_))));
    }

    #[test]
    fn a_certificate_counts_only_while_it_is_valid() {
        let authority = TestCa::new("cluster");
        let ca = ClientCa::default();
        ca.set(&authority.pem).unwrap();
        let chain = authority.client("jane", &[]).der;
        let far = UnixTime::since_unix_epoch(std::time::Duration::from_secs(32_503_680_000));
        assert!(ca.verify(&chain, &[], far).is_err());
    }
}
