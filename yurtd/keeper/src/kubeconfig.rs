//! kubelet's kubeconfig: what it says, and a copy that leads to the hub and believes it, and differs in nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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
            STANDARD
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

/// The same text with another server and, if there is one, another bundle of CAs (PEM); everything else, comments
/// included, stays as it is.
pub(crate) fn for_hub(text: &str, server: &str, bundle: Option<&[u8]>) -> Result<String, KubeconfigError> {
    let mut changed = with_line(text, &["server"], &format!("server: {server}"))?;
    // The edit was textual: whether it meant what it should is for a parser to say.
    let mut wanted = Kubeconfig { server: base_url(server)?, ..parse(text)? };
    if let Some(bundle) = bundle {
        let data = STANDARD.encode(bundle);
        let line = format!("certificate-authority-data: {data}");
        // The data count, if there is a file as well.
        changed = with_line(&changed, &["certificate-authority-data", "certificate-authority"], &line)?;
        wanted.ca = CaSource::Inline(bundle.to_vec());
    }
    if parse(&changed)? == wanted {
        Ok(changed)
    } else {
        Err(unsupported("its `server:` or its certificate authority is not where it is expected"))
    }
}

/// Puts `line` in the place of the line of the first of these keys that is there; it has to be there once.
fn with_line(text: &str, keys: &[&str], line: &str) -> Result<String, KubeconfigError> {
    let is_of = |text: &str, key: &str| text.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
    let count = |key: &str| text.lines().filter(|line| is_of(line.trim_start(), key)).count();
    let found = keys.iter().map(|key| (*key, count(key))).find(|(_, count)| *count > 0);
    let (key, count) = found.unwrap_or((keys.first().copied().unwrap_or_default(), 0));
    if count != 1 {
        return Err(unsupported(format!("it has {count} `{key}:` lines instead of one")));
    }
    let mut changed: String = text
        .lines()
        .map(|old| {
            let body = old.trim_start();
            if is_of(body, key) {
                format!("{}{line}\n", &old[..old.len() - body.len()])
            } else {
                format!("{old}\n")
            }
        })
        .collect();
    if !text.ends_with('\n') {
        changed.pop();
    }
    Ok(changed)
}

/// What kubelet is to believe: the CA of the cluster, which a hub of a release before is vouched for by, and the
/// node's.
pub(crate) fn bundle(cluster_ca: &[u8], node_ca: &str) -> Vec<u8> {
    let mut bundle = cluster_ca.trim_ascii_end().to_vec();
    bundle.push(b'\n');
    bundle.extend_from_slice(node_ca.trim_ascii_end().as_bytes());
    bundle.push(b'\n');
    bundle
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
        let copy = for_hub(KUBEADM, "https://127.0.0.1:10261", None).unwrap();
        let differing: Vec<_> = KUBEADM.lines().zip(copy.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(
            differing,
            [("    server: https://10.80.0.2:6443", "    server: https://127.0.0.1:10261")]
        );
        assert_eq!(KUBEADM.lines().count(), copy.lines().count());
    }

    #[test]
    fn with_a_bundle_it_differs_in_two_whether_the_ca_was_inside_or_in_a_file() {
        let file = KUBEADM.replace(
            "certificate-authority-data: Y2VydGlmaWNhdGU=",
            "certificate-authority: /etc/kubernetes/pki/ca.crt",
        );
        for text in [KUBEADM, &file, file.trim_end()] {
            let bundle = bundle(b"certificate", "node\n");
            let copy = for_hub(text, "https://127.0.0.1:10261", Some(&bundle)).unwrap();
            let differing: Vec<_> =
                text.lines().zip(copy.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
            let expected = [
                "    certificate-authority-data: Y2VydGlmaWNhdGUKbm9kZQo=",
                "    server: https://127.0.0.1:10261",
            ];
            assert_eq!(differing, expected);
            assert_eq!(parse(&copy).unwrap().ca, CaSource::Inline(b"certificate\nnode\n".to_vec()));
            assert_eq!(copy.ends_with('\n'), text.ends_with('\n'));
        }
        // The data count; whoever wrote both is left with both.
        let both = KUBEADM.replace("    server:", "    certificate-authority: /ca.crt\n    server:");
        let copy = for_hub(&both, "https://127.0.0.1:10261", Some(b"x")).unwrap();
        assert!(copy.contains("    certificate-authority: /ca.crt\n"), "{copy}");
        assert_eq!(parse(&copy).unwrap().ca, CaSource::Inline(b"x".to_vec()));
        // A value over several lines would be cut in half.
        let folded = KUBEADM.replace("data: Y2VydGlmaWNhdGU=", "data: >-\n      Y2VydGlm\n      aWNhdGU=");
        assert!(for_hub(&folded, "https://127.0.0.1:10261", Some(b"x")).is_err());
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
        assert!(for_hub(&text, "https://127.0.0.1:10261", Some(b"x")).is_err());
    }
}
