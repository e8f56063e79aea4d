//! The keeper's journal: what has been begun on this node, on disk before it is begun.
//!
//! State machine, one file, replaced whole:
//!
//! ```text
//! (no journal: vanilla) ──► Converting ──► Converted
//!        ▲                      │              │
//!        └────── Undoing ◄──────┴──────────────┘
//! ```
//!
//! `begun` grows before a step acts and shrinks after the step is undone, so whatever a killed keeper left is inside
//! the steps that the journal names. The journal is written first and removed last.

use serde::{Deserialize, Serialize};
use yurt_api::agent::{Believed, Moment, Turn};
use yurt_api::names;
use yurt_api::status::Agents;
use yurt_api::way_in::WayIn;

use super::containers::Before;
use super::host::{Host, HostError};
use super::look::Original;

/// Format of the file; a keeper refuses what a newer one wrote rather than guess.
const FORMAT: u32 = 2;

/// A step of a conversion, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Find kubelet, its arguments, its files.
    Look,
    /// Refuse what would fail later.
    Preflight,
    /// Program and configuration.
    Install,
    /// Units; the hub runs and is ready.
    Service,
    /// The hub has served the node's own views.
    Warm,
    /// kubelet uses the hub.
    Kubelet,
    /// kubelet works through the hub, containers are as they were.
    Verify,
    /// The node's agents use the hub.
    Agents,
}

impl Step {
    pub(crate) const ALL: [Self; 8] = [
        Self::Look,
        Self::Preflight,
        Self::Install,
        Self::Service,
        Self::Warm,
        Self::Kubelet,
        Self::Verify,
        Self::Agents,
    ];

    /// Position, from 1.
    pub(crate) fn number(self) -> u32 {
        self as u32 + 1
    }

    /// Name for a person.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Preflight => "preflight",
            Self::Install => "install",
            Self::Service => "service",
            Self::Warm => "warm",
            Self::Kubelet => "kubelet",
            Self::Verify => "verify",
            Self::Agents => "agents",
        }
    }
}

/// A build of `yurtd`: the same version may be built twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Release {
    pub version: String,
    /// SHA-256 of the program, hexadecimal.
    pub digest: String,
}

impl Release {
    /// Folder in [`names::INSTALL_DIR`].
    pub(crate) fn folder(&self) -> String {
        format!("{}-{}", self.version, self.digest.get(..12).unwrap_or(&self.digest))
    }

    /// Path of the program on the host.
    pub(crate) fn program(&self) -> String {
        format!("{}/{}/yurtd", names::INSTALL_DIR, self.folder())
    }
}

/// Why a conversion is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub step: Step,
    pub message: String,
}

/// Where the node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Converting,
    Converted,
    /// Back to vanilla: because it was asked for, or because a step failed.
    Undoing {
        failure: Option<Failure>,
    },
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Journal {
    format: u32,
    pub original: Original,
    pub phase: Phase,
    /// Steps whose action has begun and is not undone, in order.
    pub begun: Vec<Step>,
    /// The release in use or being installed.
    pub release: Release,
    /// The release in use while another one is tried.
    #[serde(default)]
    pub previous: Option<Release>,
    /// A release that was tried and swapped back; not tried again.
    #[serde(default)]
    pub rejected: Option<Release>,
    /// Digest of what the running service was started with.
    #[serde(default)]
    pub applied_service: Option<String>,
    /// Digest of what the running kubelet was started with.
    #[serde(default)]
    pub applied_kubelet: Option<String>,
    /// What ran before kubelet was restarted, until the conversion is verified.
    #[serde(default)]
    pub before: Option<Before>,
    /// When kubelet had last been restarted to come to the hub.
    #[serde(default)]
    pub came: Option<Moment>,
    /// By which CA it believes the hub since.
    #[serde(default)]
    pub believed: Option<Believed>,
    /// When it had been restarted to work without it again.
    #[serde(default)]
    pub left: Option<Moment>,
    /// Agents that began before this are due, if not those that began before kubelet came: the hub has another CA since.
    #[serde(default)]
    pub agents_before: Option<Moment>,
    /// The node's agents have not followed it yet.
    #[serde(default)]
    pub agents_due: bool,
    /// By which way kubelet has pods come to the hub; not known of one that a keeper of before has restarted: by their
    /// environment.
    #[serde(default)]
    pub way_in: Option<WayIn>,
    /// When it was restarted to have them come another way than by their environment.
    #[serde(default)]
    pub environment_until: Option<Moment>,
    /// The agents that are being restarted for the hub, named before the first is.
    #[serde(default)]
    pub turn: Option<Turn>,
    /// The node's agents stay as they are.
    #[serde(default)]
    pub keep_agents: bool,
    /// What was done with them on the way to where the node is, or is going. One is named before it is restarted.
    #[serde(default)]
    pub agents: Agents,
    /// kubelet's version, as its Node says.
    #[serde(default)]
    pub kubelet_version: String,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the journal {path} is damaged: {0}; nothing is changed on this node until it is repaired or removed", path = names::KEEPER_JOURNAL)]
    Damaged(serde_json::Error),
    #[error("{path} was written by a newer keeper (format {0})", path = names::KEEPER_JOURNAL)]
    Newer(u32),
}

impl Journal {
    pub(crate) fn new(original: Original, release: Release, kubelet_version: String) -> Self {
        Self {
            format: FORMAT,
            original,
            phase: Phase::Converting,
            begun: Vec::new(),
            release,
            previous: None,
            rejected: None,
            applied_service: None,
            applied_kubelet: None,
            before: None,
            came: None,
            believed: None,
            left: None,
            agents_before: None,
            agents_due: false,
            way_in: None,
            environment_until: None,
            turn: None,
            keep_agents: false,
            agents: Agents::default(),
            kubelet_version,
        }
    }

    /// Reads the journal; `None` on a vanilla node.
    pub(crate) fn load(host: &Host) -> Result<Option<Self>, JournalError> {
        #[derive(Deserialize)]
        struct Stamp {
            format: u32,
        }
        let Some(text) = host.read(names::KEEPER_JOURNAL)? else { return Ok(None) };
        let stamp: Stamp = serde_json::from_slice(&text).map_err(JournalError::Damaged)?;
        if stamp.format > FORMAT {
            return Err(JournalError::Newer(stamp.format));
        }
        let read = serde_json::from_slice::<Self>(&text).map_err(JournalError::Damaged)?;
        Ok(Some(Self { format: FORMAT, ..read }))
    }

    /// Puts the journal on disk; it is there when this returns.
    pub(crate) fn save(&self, host: &Host) -> Result<(), JournalError> {
        host.make_dir(names::INSTALL_DIR, 0o755)?;
        host.make_dir(keeper_dir(), 0o700)?;
        let text = serde_json::to_vec_pretty(self).map_err(JournalError::Damaged)?;
        host.write(names::KEEPER_JOURNAL, &text, 0o600)?;
        Ok(())
    }

    /// Says that a step is about to act.
    pub(crate) fn begin(&mut self, host: &Host, step: Step) -> Result<(), JournalError> {
        if self.begun.contains(&step) {
            return Ok(());
        }
        self.begun.push(step);
        self.save(host)
    }

    /// Removes the journal and the folders around it: the node is vanilla. Also sweeps up after a keeper that was
    /// killed while doing so, or before its first journal was complete.
    pub(crate) fn remove(host: &Host) -> Result<(), HostError> {
        host.remove(names::KEEPER_JOURNAL)?;
        host.remove_empty_dir(keeper_dir())?;
        host.remove_empty_dir(names::INSTALL_DIR)
    }
}

fn keeper_dir() -> &'static str {
    names::KEEPER_JOURNAL.rsplit_once('/').map_or(names::INSTALL_DIR, |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Fuse;

    fn journal() -> Journal {
        let original = Original {
            kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
            config: None,
            client_ca_file: None,
            port: None,
            folders: Vec::new(),
            other_flags: Vec::new(),
        };
        let release = Release { version: "0.1.0".into(), digest: "ab".repeat(32) };
        Journal::new(original, release, "v1.36.3".into())
    }

    #[test]
    fn others_on_the_node_read_when_kubelet_came() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("opt")).unwrap();
        let mut journal = journal();
        journal.came = Some(Moment { boot_id: Some("one".into()), second: 7 });
        journal.save(&Host::with_fuse(folder.path(), Fuse::default())).unwrap();
        let file = folder.path().join(names::KEEPER_JOURNAL.trim_start_matches('/'));
        assert_eq!(crate::came::read(&file).unwrap().came, journal.came);
        journal.turn = Some(Turn { second: 8, pods: vec!["kube-system/kube-proxy-x".into()] });
        journal.save(&Host::with_fuse(folder.path(), Fuse::default())).unwrap();
        assert_eq!(crate::came::read(&file).unwrap().turn, journal.turn);
    }

    #[test]
    fn a_journal_survives_the_disk_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("opt")).unwrap();
        let host = Host::with_fuse(folder.path(), Fuse::default());
        assert_eq!(Journal::load(&host).unwrap(), None);
        let mut written = journal();
        written.begin(&host, Step::Install).unwrap();
        assert_eq!(Journal::load(&host).unwrap(), Some(written));
        Journal::remove(&host).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("opt")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_or_newer_journal_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("opt")).unwrap();
        let host = Host::with_fuse(folder.path(), Fuse::default());
        journal().save(&host).unwrap();
        for text in ["", "{\"format\":1", "{\"format\":3}", "{\"format\":1}"] {
            host.write(names::KEEPER_JOURNAL, text.as_bytes(), 0o600).unwrap();
            assert!(Journal::load(&host).is_err(), "{text}");
            assert!(host.exists(names::KEEPER_JOURNAL));
        }
    }

    #[test]
    fn steps_are_numbered_from_one() {
        assert_eq!(Step::ALL.map(Step::number), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
