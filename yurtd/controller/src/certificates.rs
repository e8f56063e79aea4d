//! Applies the tunnel's CA and serving certificate: two Secrets and a ConfigMap.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use yurt_api::names;
use yurt_api::status::ClusterConfig;

use super::context::{Context, Unwritten, label_ours, within};
use super::tunnel_ca::{self, Ca, CaError, Pair};

/// Key of the CA's certificate in its ConfigMap.
const PUBLISHED: &str = "ca.crt";

/// Why the certificates are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificatesError {
    /// The API server.
    #[error("{what}: {why}")]
    Unwritten {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        why: Unwritten,
    },
    /// The CA's Secret exists and cannot be used. It is never overwritten: every agent trusts what is, or was, in it.
    #[error(
        "Secret {namespace}/{} cannot be used: {source}. Restore it from a backup; or delete it, then a new CA \
         is made and every agent has to get its certificate",
        names::TUNNEL_CA_SECRET
    )]
    BrokenCa {
        /// Where it is.
        namespace: String,
        /// What is wrong.
        source: CaError,
    },
    /// Making a key or a certificate.
    #[error(transparent)]
    Issue(#[from] CaError),
    /// The configuration.
    #[error("{path} cannot be used: {source}; the certificate stays as it is")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The configuration.
    #[error("cannot read {path}: {source}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
}

/// Keeps CA, its publication and the serving certificate.
pub(super) struct Certificates {
    context: Arc<Context>,
    config_file: PathBuf,
    /// The last error that was told.
    told: String,
}

impl Certificates {
    /// `config_file` is the mounted configuration; without one there are no further names.
    pub(super) fn new(context: Arc<Context>, config_file: PathBuf) -> Self {
        Self { context, config_file, told: String::new() }
    }

    /// One pass; repeated passes write nothing. An error is told once until it changes.
    pub(super) async fn reconcile(&mut self) {
        match self.try_reconcile().await {
            Ok(()) => self.told.clear(),
            Err(error) => {
                let text = error.to_string();
                if text != self.told {
                    tracing::error!(error = text, "the tunnel's certificates");
                    self.told = text;
                }
            }
        }
    }

    async fn try_reconcile(&self) -> Result<(), CertificatesError> {
        let now = Timestamp::now();
        let ca = self.ca(now).await?;
        self.publish(&ca).await?;
        let config = self.config().await?;
        let nodes = self.context.nodes.all();
        let wanted = tunnel_ca::wanted(nodes.iter().map(Arc::as_ref), &config);
        let name = names::TUNNEL_SERVER_SECRET;
        let found = self.secret(name).await?;
        let present = found.as_ref().and_then(|secret| Pair::from_secret(secret).ok());
        let Some(objection) = ca.objection(present.as_ref(), &wanted, now) else { return Ok(()) };
        let data = ca.issue(&wanted, now)?.into_data();
        let exists = found.is_some();
        let mut secret = found.unwrap_or_default();
        secret.metadata.name = Some(name.into());
        label_ours(&mut secret.metadata);
        secret.data = Some(data);
        if !exists {
            secret.type_ = Some("kubernetes.io/tls".into());
        }
        let api: Api<Secret> = self.api();
        let what = "cannot write the tunnel server's certificate";
        if exists {
            unwritten(what, within(api.replace(name, &PostParams::default(), &secret)).await)?;
        } else {
            unwritten(what, within(api.create(&PostParams::default(), &secret)).await)?;
        }
        tracing::info!(names = ?wanted, because = objection, "issued the tunnel server's certificate");
        Ok(())
    }

    /// The CA, made if there is none. Two leaders at once (there should never be) get the same one: the
    /// second create fails, and the next pass reads what is there.
    async fn ca(&self, now: Timestamp) -> Result<Ca, CertificatesError> {
        let broken =
            |source| CertificatesError::BrokenCa { namespace: self.context.namespace.clone(), source };
        if let Some(secret) = self.secret(names::TUNNEL_CA_SECRET).await? {
            let pair = Pair::from_secret(&secret).map_err(broken)?;
            return Ca::read(&pair, now).map_err(broken);
        }
        let pair = Ca::create(now)?;
        let mut secret = Secret {
            data: Some(pair.clone().into_data()),
            type_: Some("kubernetes.io/tls".into()),
            ..Secret::default()
        };
        secret.metadata.name = Some(names::TUNNEL_CA_SECRET.into());
        label_ours(&mut secret.metadata);
        let api: Api<Secret> = self.api();
        unwritten("cannot create the tunnel CA", within(api.create(&PostParams::default(), &secret)).await)?;
        tracing::info!("made the tunnel CA");
        Ca::read(&pair, now).map_err(broken)
    }

    async fn publish(&self, ca: &Ca) -> Result<(), CertificatesError> {
        let name = names::TUNNEL_CA_CONFIG_MAP;
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        let what = "cannot publish the tunnel CA";
        let found = unwritten(what, within(api.get_opt(name)).await)?;
        let exists = found.is_some();
        let mut map = found.unwrap_or_default();
        let labelled = label_ours(&mut map.metadata);
        let data = map.data.get_or_insert_default();
        let before = data.insert(PUBLISHED.to_owned(), ca.pem().to_owned());
        if exists && labelled && before.as_deref() == Some(ca.pem()) {
            return Ok(());
        }
        map.metadata.name = Some(name.into());
        if exists {
            unwritten(what, within(api.replace(name, &PostParams::default(), &map)).await)?;
        } else {
            unwritten(what, within(api.create(&PostParams::default(), &map)).await)?;
        }
        tracing::info!("published the tunnel CA");
        Ok(())
    }

    async fn config(&self) -> Result<ClusterConfig, CertificatesError> {
        let path = self.config_file.clone();
        match tokio::fs::read(&path).await {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| CertificatesError::Config { path, source })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ClusterConfig::default()),
            Err(source) => Err(CertificatesError::ConfigFile { path, source }),
        }
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), &self.context.namespace)
    }

    async fn secret(&self, name: &str) -> Result<Option<Secret>, CertificatesError> {
        unwritten("cannot read the tunnel's Secrets", within(self.api().get_opt(name)).await)
    }
}

fn unwritten<T>(what: &'static str, outcome: Result<T, Unwritten>) -> Result<T, CertificatesError> {
    outcome.map_err(|why| CertificatesError::Unwritten { what, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use crate::testing::FakeCluster;

    const CA: &str = "/api/v1/namespaces/kube-system/secrets/yurt-tunnel-ca";
    const PUBLISHED_CA: &str = "/api/v1/namespaces/kube-system/configmaps/yurt-tunnel-ca";
    const SERVING: &str = "/api/v1/namespaces/kube-system/secrets/yurt-tunnel-server-tls";

    fn decoded(secret: &Value, key: &str) -> String {
        String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
    }

    async fn certificates(cluster: &FakeCluster, folder: &tempfile::TempDir) -> Certificates {
        Certificates::new(cluster.context().await, folder.path().join("config.json"))
    }

    #[tokio::test]
    async fn everything_is_made_once_and_stays() {
        let (cluster, folder) = (FakeCluster::start().await, tempfile::tempdir().unwrap());
        let mut certificates = certificates(&cluster, &folder).await;
        certificates.try_reconcile().await.unwrap();
        let (ca, serving) = (cluster.get(CA).unwrap(), cluster.get(SERVING).unwrap());
        assert_eq!(cluster.get(PUBLISHED_CA).unwrap()["data"]["ca.crt"], decoded(&ca, "tls.crt"));
        for object in [&ca, &serving, &cluster.get(PUBLISHED_CA).unwrap()] {
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "kubectl-yurt");
        }
        let writes = cluster.writes();
        certificates.reconcile().await;
        assert_eq!(cluster.writes(), writes);

        // An address that agents are given later is in the next certificate, of the same CA.
        let config = json!({"tunnelAddresses": ["203.0.113.9:10262"], "tunnelApiAddresses": []});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        certificates.try_reconcile().await.unwrap();
        assert_ne!(cluster.get(SERVING).unwrap()["data"], serving["data"]);
        assert_eq!(cluster.get(CA).unwrap()["data"], ca["data"]);
    }

    #[tokio::test]
    async fn a_broken_ca_is_reported_and_never_overwritten() {
        let (cluster, folder) = (FakeCluster::start().await, tempfile::tempdir().unwrap());
        let certificates = certificates(&cluster, &folder).await;
        cluster.put(
            CA,
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {}, "data": {"tls.crt": "cnViYmlzaA=="}}),
        );
        let error = certificates.try_reconcile().await.unwrap_err().to_string();
        assert!(
            error.starts_with("Secret kube-system/yurt-tunnel-ca cannot be used: it has no tls.key."),
            "{error}"
        );
        assert_eq!(cluster.writes(), 0);
    }

    #[tokio::test]
    async fn a_lost_publication_and_a_lost_certificate_come_back() {
        let (cluster, folder) = (FakeCluster::start().await, tempfile::tempdir().unwrap());
        let certificates = certificates(&cluster, &folder).await;
        certificates.try_reconcile().await.unwrap();
        let published = cluster.get(PUBLISHED_CA).unwrap();
        cluster.delete(PUBLISHED_CA);
        cluster.delete(SERVING);
        certificates.try_reconcile().await.unwrap();
        assert_eq!(cluster.get(PUBLISHED_CA).unwrap()["data"], published["data"]);
        assert!(cluster.get(SERVING).is_some());
    }

    #[tokio::test]
    async fn an_unreadable_configuration_leaves_the_certificate_alone() {
        let (cluster, folder) = (FakeCluster::start().await, tempfile::tempdir().unwrap());
        let certificates = certificates(&cluster, &folder).await;
        certificates.try_reconcile().await.unwrap();
        let before = cluster.get(SERVING).unwrap();
        std::fs::write(folder.path().join("config.json"), "{\"tunnelAddr").unwrap();
        let error = certificates.try_reconcile().await.unwrap_err().to_string();
        assert!(error.contains("config.json cannot be used"), "{error}");
        assert_eq!(cluster.get(SERVING).unwrap(), before);
    }
}
