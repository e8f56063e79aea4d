//! kubelet's kubeconfig: what it says, and a copy that differs in its `server:` alone.

use base64::Engine as _;
use serde::Deserialize;

/// Why a kubeconfig of kubelet cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    #[error("is not YAML: {0}")]
    Yaml(String),
    #[error("{0}")]
    Unsupported(String),
}

/// What the keeper reads out of kubelet's kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kubeconfig {
    /// `https://host:port`
    pub server: String,
    pub ca: CaSource,
    /// Host paths of kubelet's client certificate and key; one file with kubeadm.
    pub client_certificate: String,
    pub client_key: String,
}

/// Where the CA of the API server's certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CaSource {
    /// PEM inside the kubeconfig.
    Inline(Vec<u8>),
    /// A file on the host.
    File(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
    contexts: Vec<NamedContext>,
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_key: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

fn unsupported(text: impl Into<String>) -> KubeconfigError {
    KubeconfigError::Unsupported(text.into())
}

/// Reads a kubeconfig and refuses whatever a hub could not stand in for.
pub(crate) fn parse(text: &str) -> Result<Kubeconfig, KubeconfigError> {
    let document: Document = serde_saphyr::from_str(text)
        .map_err(|error| KubeconfigError::Yaml(first_line(&error.to_string())))?;
    let context = document
        .contexts
        .iter()
        .find(|named| named.name == document.current_context)
        .map(|named| &named.context)
        .ok_or_else(|| unsupported("its current-context does not exist"))?;
    let cluster = document
        .clusters
        .iter()
        .find(|named| named.name == context.cluster)
        .map(|named| &named.cluster)
        .ok_or_else(|| unsupported("its cluster does not exist"))?;
    let user = document
        .users
        .iter()
        .find(|named| named.name == context.user)
        .map(|named| &named.user)
        .ok_or_else(|| unsupported("its user does not exist"))?;

    if cluster.insecure_skip_tls_verify {
        return Err(unsupported("it switches the check of the API server's certificate off"));
    }
    if cluster.proxy_url.is_some() {
        return Err(unsupported("it reaches the API server through a proxy"));
    }
    if cluster.tls_server_name.is_some() {
        return Err(unsupported("it sets tls-server-name, which the hub's certificate would not have"));
    }
    let ca = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => CaSource::Inline(
            base64::engine::general_purpose::STANDARD
                .decode(data.trim())
                .map_err(|_| unsupported("its certificate-authority-data is not base64"))?,
        ),
        (None, Some(file)) if file.starts_with('/') => CaSource::File(file.clone()),
        (None, Some(_)) => return Err(unsupported("its certificate-authority is not an absolute path")),
        (None, None) => return Err(unsupported("it names no certificate authority")),
    };
    let client_path = |path: &Option<String>, what: &str| match path {
        Some(path) if path.starts_with('/') => Ok(path.clone()),
        Some(_) => Err(unsupported(format!("its {what} is not an absolute path"))),
        None => Err(unsupported(format!(
            "it has no {what} file (exec plugins, tokens and inline keys are not supported)"
        ))),
    };
    Ok(Kubeconfig {
        server: base_url(&cluster.server)?,
        ca,
        client_certificate: client_path(&user.client_certificate, "client-certificate")?,
        client_key: client_path(&user.client_key, "client-key")?,
    })
}

/// `https://host:port`, the port written out.
fn base_url(server: &str) -> Result<String, KubeconfigError> {
    let uri: http::Uri =
        server.parse().map_err(|_| unsupported(format!("its server {server:?} is not a URL")))?;
    if uri.scheme_str() != Some("https") {
        return Err(unsupported(format!("its server {server:?} is not https")));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(unsupported(format!("its server {server:?} has a path")));
    }
    let host = uri.host().ok_or_else(|| unsupported(format!("its server {server:?} has no host")))?;
    Ok(format!("https://{host}:{}", uri.port_u16().unwrap_or(443)))
}

/// The same text with another server; everything else, comments included, stays as it is.
pub(crate) fn with_server(text: &str, server: &str) -> Result<String, KubeconfigError> {
    let mut replaced = 0;
    let mut changed: String = text
        .lines()
        .map(|line| {
            let body = line.trim_start();
            if !body.starts_with("server:") {
                return format!("{line}\n");
            }
            replaced += 1;
            format!("{}server: {server}\n", &line[..line.len() - body.len()])
        })
        .collect();
    if !text.ends_with('\n') {
        changed.pop();
    }
    if replaced != 1 {
        return Err(unsupported(format!("it has {replaced} `server:` lines instead of one")));
    }
    // The edit was textual: whether it meant what it should is for a parser to say.
    let before = parse(text)?;
    let after = parse(&changed)?;
    if after == (Kubeconfig { server: base_url(server)?, ..before }) {
        Ok(changed)
    } else {
        Err(unsupported("its `server:` line is not where it is expected"))
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const KUBEADM: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Y2VydGlmaWNhdGU=
    server: https://10.80.0.2:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:node:edge-node
  name: system:node:edge-node@kubernetes
current-context: system:node:edge-node@kubernetes
kind: Config
preferences: {}
users:
- name: system:node:edge-node
  user:
    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem
    client-key: /var/lib/kubelet/pki/kubelet-client-current.pem
";

    #[test]
    fn kubeadms_kubeconfig_is_understood() {
        let found = parse(KUBEADM).unwrap();
        assert_eq!(found.server, "https://10.80.0.2:6443");
        assert_eq!(found.ca, CaSource::Inline(b"certificate".to_vec()));
        assert_eq!(found.client_key, "/var/lib/kubelet/pki/kubelet-client-current.pem");
    }

    #[test]
    fn the_copy_differs_in_one_line() {
        let copy = with_server(KUBEADM, "https://127.0.0.1:10261").unwrap();
        let differing: Vec<_> = KUBEADM.lines().zip(copy.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(
            differing,
            [("    server: https://10.80.0.2:6443", "    server: https://127.0.0.1:10261")]
        );
        assert_eq!(KUBEADM.lines().count(), copy.lines().count());
    }

    #[test]
    fn a_missing_port_is_443() {
        let text = KUBEADM.replace(":6443", "");
        assert_eq!(parse(&text).unwrap().server, "https://10.80.0.2:443");
    }

    #[test]
    fn what_a_hub_cannot_stand_in_for_is_refused() {
        for (from, to) in [
            ("server: https://10.80.0.2:6443", "server: http://10.80.0.2:8080"),
            ("server: https://10.80.0.2:6443", "server: https://rancher/k8s/clusters/c-1"),
            (
                "server: https://10.80.0.2:6443",
                "insecure-skip-tls-verify: true\n    server: https://10.80.0.2:6443",
            ),
            (
                "server: https://10.80.0.2:6443",
                "proxy-url: http://proxy:3128\n    server: https://10.80.0.2:6443",
            ),
            ("client-key: /var/lib/kubelet/pki/kubelet-client-current.pem", "token: secret"),
            ("client-key: /", "client-key: "),
            ("certificate-authority-data: Y2VydGlmaWNhdGU=", "extensions: []"),
            ("current-context: system", "current-context: other"),
        ] {
            let text = KUBEADM.replace(from, to);
            assert_ne!(text, KUBEADM);
            assert!(parse(&text).is_err(), "{to}");
        }
        assert!(parse("{ not yaml").is_err());
    }

    #[test]
    fn two_clusters_are_refused() {
        let text = KUBEADM
            .replace("contexts:", "- cluster:\n    server: https://other:6443\n  name: other\ncontexts:");
        assert!(with_server(&text, "https://127.0.0.1:10261").is_err());
    }
}
