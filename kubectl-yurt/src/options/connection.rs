//! kubectl's connection flags. The kubeconfig that they are laid over is read later.

use std::{path::PathBuf, time::Duration};

use yurt_api::names;

use crate::args::ConnectionArgs;

/// How to reach the cluster, as far as the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Path of the kubeconfig, instead of those that the environment names.
    pub kubeconfig: Option<PathBuf>,
    /// Context, instead of the current one.
    pub context: Option<String>,
    /// Cluster, instead of the context's.
    pub cluster: Option<String>,
    /// User, instead of the context's.
    pub user: Option<String>,
    /// Namespace of the workloads, instead of the context's.
    pub namespace: Option<String>,
    /// Address of the API server, with its scheme.
    pub server: Option<String>,
    /// Bearer token.
    pub token: Option<String>,
    /// As whom to act.
    pub impersonation: Option<Impersonation>,
    /// File with the certificate of the API server's authority.
    pub certificate_authority: Option<PathBuf>,
    /// File with the client certificate.
    pub client_certificate: Option<PathBuf>,
    /// File with its key.
    pub client_key: Option<PathBuf>,
    /// Name to verify in the API server's certificate.
    pub tls_server_name: Option<String>,
    /// Whether not to verify the API server's certificate.
    pub insecure_skip_tls_verify: Option<bool>,
    /// How long a request may take; `None` for ever.
    pub request_timeout: Option<Duration>,
    /// Namespace of our own components.
    pub yurt_namespace: String,
}

/// Somebody to act as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonation {
    /// The user.
    pub user: String,
    /// His groups; `None` to leave them to the server.
    pub groups: Option<Vec<String>>,
    /// His UID.
    pub uid: Option<String>,
}

impl From<ConnectionArgs> for Connection {
    fn from(args: ConnectionArgs) -> Self {
        let (groups, uid) = (args.impersonate_groups, args.impersonate_uid);
        Self {
            kubeconfig: args.kubeconfig,
            context: args.context,
            cluster: args.cluster,
            user: args.user,
            namespace: args.namespace,
            server: args.server.map(with_scheme),
            token: args.token,
            impersonation: args.impersonate.map(|user| Impersonation {
                user,
                groups: Some(groups).filter(|groups| !groups.is_empty()),
                uid,
            }),
            certificate_authority: args.certificate_authority,
            client_certificate: args.client_certificate,
            client_key: args.client_key,
            tls_server_name: args.tls_server_name,
            insecure_skip_tls_verify: args.insecure_skip_tls_verify,
            request_timeout: args.request_timeout.filter(|timeout| !timeout.is_zero()),
            yurt_namespace: args.yurt_namespace,
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        let yurt_namespace = names::DEFAULT_NAMESPACE.to_owned();
        ConnectionArgs { yurt_namespace, ..ConnectionArgs::default() }.into()
    }
}

/// kubectl takes `host:port` for `https://host:port`.
fn with_scheme(server: String) -> String {
    if server.contains("://") { server } else { format!("https://{server}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_scheme_is_https() {
        let server = |text: &str| {
            let args = ConnectionArgs { server: Some(text.into()), ..ConnectionArgs::default() };
            Connection::from(args).server
        };
        assert_eq!(server("10.0.0.1:6443").as_deref(), Some("https://10.0.0.1:6443"));
        assert_eq!(server("http://localhost:8080").as_deref(), Some("http://localhost:8080"));
    }

    #[test]
    fn a_timeout_of_zero_is_none() {
        let args = ConnectionArgs { request_timeout: Some(Duration::ZERO), ..ConnectionArgs::default() };
        assert_eq!(Connection::from(args).request_timeout, None);
    }
}
