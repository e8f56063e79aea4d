//! The first step: what is this node, and can it be converted? Nothing is touched here.

use serde::{Deserialize, Serialize};
use yurt_api::names;

use super::arguments::{Arguments, command_line};
use super::flags::{self, FlagsError};
use super::host::{Host, HostError};
use super::kubeconfig::{self, CaSource, KubeconfigError};
use super::systemd::{self, Systemd, SystemdError};
use super::units;

/// The oldest systemd whose units can do what ours need (`CleanUnit`, `FreeBind=`, `TriggerLimitIntervalSec=`).
const OLDEST_SYSTEMD: u32 = 245;
/// kubeadm's place, when kubelet's arguments name none.
pub(crate) const DEFAULT_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
/// Services of distributions that run kubelet inside a process of their own.
const OTHER_LAYOUTS: [(&str, &str); 8] = [
    ("k3s-agent.service", "k3s"),
    ("k3s.service", "k3s"),
    ("rke2-agent.service", "RKE2"),
    ("rke2-server.service", "RKE2"),
    ("snap.microk8s.daemon-kubelite.service", "MicroK8s"),
    ("snap.microk8s.daemon-kubelet.service", "MicroK8s"),
    ("k0sworker.service", "k0s"),
    ("k0scontroller.service", "k0s"),
];

/// Why a node is not converted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error("this node runs {0}, which is not supported yet: its kubelet is configured by {0} itself")]
    OtherLayout(&'static str),
    #[error("systemd {found} is too old: {OLDEST_SYSTEMD} or later is needed")]
    OldSystemd { found: String },
    #[error("there is no running kubelet.service on this node (state: {0})")]
    NoKubelet(String),
    #[error(
        "kubelet.service does not take its kubeconfig from ${}, so a drop-in cannot point it at the hub; kubeadm's unit does",
        units::KUBECONFIG_VARIABLE
    )]
    OtherUnit,
    #[error("kubelet's arguments name no kubeconfig file")]
    NoKubeconfig,
    #[error(transparent)]
    Flags(#[from] FlagsError),
    #[error("kubelet already uses {ours}, but there is no journal of a conversion; remove {drop_in} and restart kubelet first", ours = names::KUBELET_KUBECONFIG, drop_in = names::KUBELET_DROP_IN)]
    AlreadyOurs,
    #[error("{path} is not mounted or does not exist")]
    Missing { path: String },
    #[error("kubelet's kubeconfig {path} {source}")]
    Kubeconfig { path: String, source: KubeconfigError },
    #[error("kubelet's configuration {path} is not YAML: {message}")]
    Configuration { path: String, message: String },
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

/// How the node was before anything of ours was on it. Kept in the journal: once kubelet uses our kubeconfig, its
/// arguments no longer tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Original {
    /// kubelet's kubeconfig.
    pub kubeconfig: String,
    /// kubelet's configuration file (`--config`).
    pub config: Option<String>,
    /// `--client-ca-file`, which has precedence over the configuration file.
    pub client_ca_file: Option<String>,
    /// `--port`, which has precedence over the configuration file.
    pub port: Option<u16>,
    /// Folders for systemd that existed before; others are removed again when they are empty.
    pub folders: Vec<String>,
    /// What the variable for the kubeconfig carries besides.
    #[serde(default)]
    pub other_flags: Vec<String>,
}

/// Finds kubelet and how it is configured, or says why this node cannot be converted.
pub(crate) async fn look<S: Systemd>(host: &Host, systemd: &mut S) -> Result<Original, LookError> {
    let version = systemd.version().await?;
    if systemd::major(&version).is_none_or(|major| major < OLDEST_SYSTEMD) {
        return Err(LookError::OldSystemd { found: version });
    }
    for (unit, layout) in OTHER_LAYOUTS {
        if systemd.unit(unit).await?.is_active() {
            return Err(LookError::OtherLayout(layout));
        }
    }
    let kubelet = systemd.unit(units::KUBELET).await?;
    let command_line = command_line(host, kubelet.service.main_pid)?;
    let (true, Some(command_line)) = (kubelet.is_active(), command_line) else {
        let state = if kubelet.is_loaded() { kubelet.active_state } else { kubelet.load_state };
        return Err(LookError::NoKubelet(state));
    };
    let variable = units::KUBECONFIG_VARIABLE;
    // Not `${…}`: that is one word, whatever is in it.
    if !kubelet.service.exec_start.iter().any(|word| *word == format!("${variable}")) {
        return Err(LookError::OtherUnit);
    }
    let arguments = Arguments::of(&command_line);
    let kubeconfig = arguments.kubeconfig.ok_or(LookError::NoKubeconfig)?;
    if kubeconfig == names::KUBELET_KUBECONFIG {
        return Err(LookError::AlreadyOurs);
    }
    let other_flags = flags::check(host, &kubelet, &command_line)?;
    let original = Original {
        kubeconfig,
        config: arguments.config,
        client_ca_file: arguments.client_ca_file,
        port: arguments.port,
        folders: shared_folders().into_iter().filter(|folder| host.exists(folder)).collect(),
        other_flags,
    };
    // Refuse now what would fail later.
    facts(host, &original)?;
    Ok(original)
}

/// Folders of systemd that the keeper may have to create.
pub(crate) fn shared_folders() -> Vec<String> {
    let mut folders: Vec<String> = units::ALL.iter().map(units::Unit::wants_dir).collect();
    folders.extend(names::KUBELET_DROP_IN.rsplit_once('/').map(|(folder, _)| folder.to_owned()));
    folders.sort();
    folders.dedup();
    folders
}

/// What the node's own files say now; read again on every pass, since people and kubeadm edit them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub kubeconfig: kubeconfig::Kubeconfig,
    /// The kubeconfig's text.
    pub kubeconfig_text: String,
    /// The CA of the API server's certificate, PEM.
    pub ca: Vec<u8>,
    /// Where that CA is on the host; `None` when the kubeconfig carries it.
    pub ca_file: Option<String>,
    /// The CA of client certificates, on the host; `None` when kubelet has none.
    pub client_ca_file: Option<String>,
    /// `host:port` of kubelet as a process on the node reaches it.
    pub kubelet_address: String,
    /// The cluster's domain, if kubelet is told one.
    pub cluster_domain: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KubeletConfiguration {
    address: Option<String>,
    cluster_domain: Option<String>,
    port: Option<u16>,
    authentication: Authentication,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Authentication {
    x509: X509,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<String>,
}

/// Reads kubelet's kubeconfig and configuration.
pub(crate) fn facts(host: &Host, original: &Original) -> Result<Facts, LookError> {
    let text = host
        .read_text(&original.kubeconfig)?
        .ok_or_else(|| LookError::Missing { path: original.kubeconfig.clone() })?;
    let refused = |source| LookError::Kubeconfig { path: original.kubeconfig.clone(), source };
    let kubeconfig = kubeconfig::parse(&text).map_err(refused)?;
    // Any bundle will do to see whether it could be put there.
    kubeconfig::for_hub(&text, &hub_url(), Some(b"any")).map_err(refused)?;
    let (ca, ca_file) = match &kubeconfig.ca {
        CaSource::Inline(pem) => (pem.clone(), None),
        CaSource::File(path) => {
            let pem = host.read(path)?.ok_or_else(|| LookError::Missing { path: path.clone() })?;
            (pem, Some(path.clone()))
        }
    };
    let configuration: KubeletConfiguration = match &original.config {
        None => KubeletConfiguration::default(),
        Some(path) => {
            let text = host.read_text(path)?.ok_or_else(|| LookError::Missing { path: path.clone() })?;
            serde_saphyr::from_str(&text).map_err(|error| LookError::Configuration {
                path: path.clone(),
                message: error.to_string().lines().next().unwrap_or_default().to_owned(),
            })?
        }
    };
    let address = match configuration.address.as_deref() {
        None | Some("" | "0.0.0.0" | "::") => "127.0.0.1".to_owned(),
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(address) => address.to_owned(),
    };
    let port = original.port.or(configuration.port).filter(|port| *port != 0).unwrap_or(names::KUBELET_PORT);
    Ok(Facts {
        kubeconfig,
        kubeconfig_text: text,
        ca,
        ca_file,
        client_ca_file: original.client_ca_file.clone().or(configuration.authentication.x509.client_ca_file),
        kubelet_address: format!("{address}:{port}"),
        cluster_domain: configuration.cluster_domain.filter(|domain| !domain.is_empty()),
    })
}

/// The hub as kubelet's kubeconfig names it.
pub(crate) fn hub_url() -> String {
    format!("https://127.0.0.1:{}", names::HUB_PORT)
}
