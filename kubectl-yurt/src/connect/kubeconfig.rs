//! The kubeconfig and the connection flags on top of it, with kubectl's precedence: `--kubeconfig`, then the
//! files of `KUBECONFIG` merged (missing ones skipped), then `~/.kube/config`, then a pod's service account.
//!
//! kube's own way from a kubeconfig to a `Config` reads the proxies of the environment and is wrong about them
//! ([`super::proxy`]), so the `Config` is put together here.

use std::{ffi::OsString, path::PathBuf};

use http::{HeaderName, HeaderValue};
use kube::{
    Config,
    config::{AuthInfo, Cluster, ExecAuthCluster, Kubeconfig, KubeconfigError},
};
use serde_json::json;

use crate::{
    connect::{
        pem::certificates,
        proxy::{Environment, Proxies},
    },
    error::{Error, chain},
    options::connection::{Connection, Impersonation},
};

/// How to reach the API server, and others of the cluster.
pub struct Resolved {
    /// The client configuration.
    pub config: Config,
    /// Which proxy leads to which server.
    pub proxies: Proxies,
}

/// What the environment says about the way to the cluster.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `KUBECONFIG`: files, separated as paths are here.
    pub kubeconfig: Option<OsString>,
    /// The home folder.
    pub home: Option<PathBuf>,
    /// The proxies.
    pub proxies: Environment,
}

impl Surroundings {
    /// Reads the environment.
    pub fn read() -> Self {
        Self {
            kubeconfig: std::env::var_os("KUBECONFIG"),
            home: std::env::home_dir(),
            proxies: Environment::read(),
        }
    }

    /// The kubeconfig files, the first one being the one that decides.
    fn kubeconfigs(&self) -> Vec<PathBuf> {
        match self.kubeconfig.as_ref().filter(|listed| !listed.is_empty()) {
            Some(listed) => {
                std::env::split_paths(listed).filter(|path| !path.as_os_str().is_empty()).collect()
            }
            None => self.home.iter().map(|home| home.join(".kube").join("config")).collect(),
        }
    }
}

/// Builds the client configuration.
///
/// # Errors
///
/// [`Error::Failed`] when no configuration is found or it cannot be used.
pub fn load(options: &Connection, surroundings: Surroundings) -> Result<Resolved, Error> {
    let merged = read(options, &surroundings)?;
    let no_file = merged.is_none();
    let mut proxies = Proxies { configured: None, environment: surroundings.proxies };
    let mut config = match (merged, &options.server) {
        (None, None) => match Config::incluster() {
            Ok(config) => config,
            Err(_) => {
                return Err(Error::Failed(
                    "no configuration has been provided: set KUBECONFIG, or pass --kubeconfig or --server"
                        .into(),
                ));
            }
        },
        (merged, _) => {
            let selected = override_with(select(merged.unwrap_or_default(), options)?, options);
            proxies.configured.clone_from(&selected.cluster.proxy_url);
            client_config(selected)?
        }
    };
    if no_file {
        override_incluster(&mut config, options)?;
    }
    finish(&mut config, options)?;
    config.proxy_url = proxies.of(&config.cluster_url)?;
    Ok(Resolved { config, proxies })
}

/// What kube makes of a kubeconfig, without a look at the environment.
fn client_config(selected: Selected) -> Result<Config, Error> {
    let Selected { cluster, mut user, namespace } = selected;
    let unusable = |error: KubeconfigError| Error::Failed(chain(&error));
    // Reads the authority's certificate, from the kubeconfig or from its file.
    let described = ExecAuthCluster::try_from(&cluster).map_err(unusable)?;
    let server = cluster.server.ok_or_else(|| unusable(KubeconfigError::MissingClusterUrl))?;
    let url = server
        .parse()
        .map_err(|error| Error::Failed(format!("server {server:?} is not an address: {error}")))?;
    let mut config = Config::new(url);
    if let Some(pem) = &described.certificate_authority_data {
        let found = certificates(pem).ok_or_else(|| {
            Error::Failed("the kubeconfig's certificate authority holds no certificate".into())
        })?;
        config.root_cert = Some(found);
    }
    if let Some(exec) = user.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some(described);
    }
    if let Some(namespace) = namespace {
        config.default_namespace = namespace;
    }
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name;
    config.auth_info = user;
    Ok(config)
}

/// The merged kubeconfig files; `None` if there is none.
fn read(options: &Connection, surroundings: &Surroundings) -> Result<Option<Kubeconfig>, Error> {
    if let Some(path) = &options.kubeconfig {
        return Kubeconfig::read_from(path).map(Some).map_err(unreadable);
    }
    let mut merged: Option<Kubeconfig> = None;
    for path in surroundings.kubeconfigs().iter().filter(|path| path.exists()) {
        let next = Kubeconfig::read_from(path).map_err(unreadable)?;
        merged = Some(match merged {
            Some(merged) => merged.merge(next).map_err(|error| Error::Failed(chain(&error)))?,
            None => next,
        });
    }
    Ok(merged)
}

fn unreadable(error: KubeconfigError) -> Error {
    Error::Failed(match error {
        KubeconfigError::ReadConfig(error, path) => format!("cannot read {}: {error}", path.display()),
        other => chain(&other),
    })
}

/// The parts of a kubeconfig that one connection uses.
struct Selected {
    cluster: Cluster,
    user: AuthInfo,
    namespace: Option<String>,
}

fn select(kubeconfig: Kubeconfig, options: &Connection) -> Result<Selected, Error> {
    let context_name = options.context.clone().or(kubeconfig.current_context).filter(|name| !name.is_empty());
    let context = match &context_name {
        Some(name) => {
            let found =
                kubeconfig.contexts.into_iter().find(|entry| &entry.name == name).and_then(|e| e.context);
            match found {
                Some(context) => Some(context),
                None => return Err(Error::Failed(format!("context {name:?} does not exist"))),
            }
        }
        None => None,
    };
    let cluster_name =
        options.cluster.clone().or_else(|| context.as_ref().map(|context| context.cluster.clone()));
    let cluster = match cluster_name.filter(|name| !name.is_empty()) {
        Some(name) => kubeconfig
            .clusters
            .into_iter()
            .find(|entry| entry.name == name)
            .and_then(|entry| entry.cluster)
            .ok_or_else(|| Error::Failed(format!("cluster {name:?} does not exist")))?,
        None => Cluster::default(),
    };
    let user_name =
        options.user.clone().or_else(|| context.as_ref().and_then(|context| context.user.clone()));
    let user = match user_name.filter(|name| !name.is_empty()) {
        Some(name) => kubeconfig
            .auth_infos
            .into_iter()
            .find(|entry| entry.name == name)
            .and_then(|entry| entry.auth_info)
            .ok_or_else(|| Error::Failed(format!("auth info {name:?} does not exist")))?,
        None => AuthInfo::default(),
    };
    Ok(Selected { cluster, user, namespace: context.and_then(|context| context.namespace) })
}

/// Lays the flags over what the kubeconfig says.
fn override_with(selected: Selected, options: &Connection) -> Selected {
    let Selected { mut cluster, mut user, namespace } = selected;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    if let Some(server) = &options.server {
        cluster.server = Some(server.clone());
    }
    if let Some(path) = &options.certificate_authority {
        cluster.certificate_authority = Some(text(path));
        cluster.certificate_authority_data = None;
    }
    if let Some(name) = &options.tls_server_name {
        cluster.tls_server_name = Some(name.clone());
    }
    if let Some(insecure) = options.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(insecure);
        if insecure {
            cluster.certificate_authority = None;
            cluster.certificate_authority_data = None;
        }
    }
    if let Some(path) = &options.client_certificate {
        user.client_certificate = Some(text(path));
        user.client_certificate_data = None;
    }
    if let Some(path) = &options.client_key {
        user.client_key = Some(text(path));
        user.client_key_data = None;
    }
    if let Some(token) = &options.token {
        set_token(&mut user, token);
        user.exec = None;
        user.auth_provider = None;
    }
    if let Some(somebody) = &options.impersonation {
        impersonate(&mut user, somebody);
        user.impersonate_user_extra = None;
    }
    Selected { cluster, user, namespace }
}

/// In a pod there is no kubeconfig to lay the flags over.
fn override_incluster(config: &mut Config, options: &Connection) -> Result<(), Error> {
    if let Some(token) = &options.token {
        set_token(&mut config.auth_info, token);
        config.auth_info.token_file = None;
    }
    if let Some(somebody) = &options.impersonation {
        impersonate(&mut config.auth_info, somebody);
    }
    if options.certificate_authority.is_some() || options.client_certificate.is_some() {
        if options.server.is_some() {
            return Ok(());
        }
        return Err(Error::Failed("certificate flags need a kubeconfig or --server".into()));
    }
    Ok(())
}

/// What kube's `Config` does not take from a kubeconfig.
fn finish(config: &mut Config, options: &Connection) -> Result<(), Error> {
    if let Some(namespace) = &options.namespace {
        config.default_namespace = namespace.clone();
    }
    if let Some(uid) = &config.auth_info.impersonate_uid {
        let value = HeaderValue::from_str(uid)
            .map_err(|_| Error::Failed(format!("--as-uid {uid:?} cannot be sent in a header")))?;
        config.headers.push((HeaderName::from_static("impersonate-uid"), value));
    }
    if let Some(timeout) = options.request_timeout {
        config.read_timeout = Some(timeout);
        config.reset_reader_on_write = true;
        config.connect_timeout = Some(config.connect_timeout.map_or(timeout, |own| own.min(timeout)));
    }
    Ok(())
}

/// kube keeps tokens in a type of its own that only its deserialiser makes.
fn set_token(user: &mut AuthInfo, token: &str) {
    if let Ok(parsed) = serde_json::from_value::<AuthInfo>(json!({ "token": token })) {
        user.token = parsed.token;
    }
}

fn impersonate(user: &mut AuthInfo, somebody: &Impersonation) {
    user.impersonate = Some(somebody.user.clone());
    user.impersonate_groups.clone_from(&somebody.groups);
    user.impersonate_uid.clone_from(&somebody.uid);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
apiVersion: v1
kind: Config
current-context: one
clusters:
- name: east
  cluster: { server: "https://east:6443", certificate-authority-data: Y2E= }
- name: west
  cluster: { server: "https://west:6443" }
users:
- name: alice
  user: { token: secret }
- name: bob
  user: { username: bob }
contexts:
- name: one
  context: { cluster: east, user: alice, namespace: shop }
- name: two
  context: { cluster: west, user: bob }
"#;

    fn resolve(options: &Connection) -> Result<Selected, Error> {
        let kubeconfig = Kubeconfig::from_yaml(FILE).unwrap();
        Ok(override_with(select(kubeconfig, options)?, options))
    }

    #[test]
    fn the_current_context_is_the_default() {
        let resolved = resolve(&Connection::default()).unwrap();
        assert_eq!(resolved.cluster.server.as_deref(), Some("https://east:6443"));
        assert_eq!(resolved.namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn context_cluster_and_user_are_chosen_independently() {
        let options = Connection {
            context: Some("two".into()),
            cluster: Some("east".into()),
            user: Some("alice".into()),
            ..Connection::default()
        };
        let resolved = resolve(&options).unwrap();
        assert_eq!(resolved.cluster.server.as_deref(), Some("https://east:6443"));
        assert!(resolved.user.token.is_some());
    }

    #[test]
    fn a_context_that_is_not_there_is_named() {
        let options = Connection { context: Some("three".into()), ..Connection::default() };
        assert_eq!(resolve(&options).err().unwrap().to_string(), "context \"three\" does not exist");
    }

    #[test]
    fn the_files_of_the_environment_are_merged_and_the_first_one_decides() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, current: &str| {
            let path = folder.path().join(name);
            let text = format!(
                "current-context: {current}\ncontexts: [{{ name: {name}, context: {{ cluster: c }} }}]"
            );
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = [write("a", "a"), folder.path().join("missing"), write("b", "b")];
        let kubeconfig = Some(std::env::join_paths(&files).unwrap());
        let surroundings = Surroundings { kubeconfig, ..Surroundings::default() };
        let merged = read(&Connection::default(), &surroundings).unwrap().unwrap();
        assert_eq!(merged.current_context.as_deref(), Some("a"));
        let names: Vec<&str> = merged.contexts.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);

        let options = Connection { kubeconfig: Some(files[2].clone()), ..Connection::default() };
        let named = read(&options, &surroundings).unwrap().unwrap();
        assert_eq!(named.current_context.as_deref(), Some("b"), "the flag goes before the environment");
        assert!(read(&Connection::default(), &Surroundings::default()).unwrap().is_none());
    }

    #[test]
    fn without_the_variable_the_file_is_in_the_home_folder() {
        let home = Some(PathBuf::from("/home/a"));
        let of = |kubeconfig: Option<&str>| {
            let kubeconfig = kubeconfig.map(OsString::from);
            Surroundings { kubeconfig, home: home.clone(), ..Surroundings::default() }.kubeconfigs()
        };
        assert_eq!(of(None), [PathBuf::from("/home/a/.kube/config")]);
        assert_eq!(of(Some("")), [PathBuf::from("/home/a/.kube/config")]);
        assert_eq!(of(Some("/x")), [PathBuf::from("/x")]);
    }

    #[test]
    fn skipping_verification_drops_the_authority() {
        let options = Connection { insecure_skip_tls_verify: Some(true), ..Connection::default() };
        let resolved = resolve(&options).unwrap();
        assert_eq!(resolved.cluster.certificate_authority_data, None);
        assert_eq!(resolved.cluster.insecure_skip_tls_verify, Some(true));
    }

    #[test]
    fn impersonation_replaces_what_the_kubeconfig_says() {
        let options = Connection {
            impersonation: Some(Impersonation {
                user: "eve".into(),
                groups: Some(vec!["dev".into()]),
                uid: None,
            }),
            ..Connection::default()
        };
        let resolved = resolve(&options).unwrap();
        let user = resolved.user;
        assert_eq!(user.impersonate.as_deref(), Some("eve"));
        assert_eq!(user.impersonate_groups, Some(vec!["dev".to_owned()]));
    }

    /// What kube would have made of it: [`client_config`] replaces that.
    #[tokio::test]
    async fn the_configuration_is_the_one_that_kube_makes() {
        let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCllXSmoKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
        let text = FILE
            .replace("Y2E=", pem)
            .replace("secret", "secret, exec: { command: x, provideClusterInfo: true }");
        let text =
            text.replace("east:6443\"", "east:6443\", tls-server-name: api, disable-compression: true");
        let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
        let selected = select(kubeconfig.clone(), &Connection::default()).unwrap();
        let ours = client_config(selected).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let mut theirs = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        theirs.proxy_url = None;
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        assert_eq!(ours.root_cert, Some(vec![b"abc".to_vec()]));
    }

    #[test]
    fn an_authority_that_is_no_certificate_is_refused() {
        let error = client_config(resolve(&Connection::default()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("holds no certificate"), "{error}");
    }
}
