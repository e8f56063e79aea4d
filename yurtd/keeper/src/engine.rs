//! The level-triggered engine: compares what the node should be with what the journal says it is, and goes on from
//! there. Killed anywhere, the next run finishes or undoes the work.
//!
//! This file is the order of things; what each step does and how it is undone is in `parts`, keeping a converted
//! node as it should be in `maintain`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use yurt_api::agent::Moment;
use yurt_api::status::{Agents, ConversionState, ConversionStatus, NodeWayIn};

use super::cluster::{Access, Cluster, ClusterError, OwnNode};
use super::host::{Host, HostError};
use super::journal::{Failure, Journal, JournalError, Phase, Release, Step};
use super::look::{self, Facts, LookError, Original};
use super::systemd::{Systemd, SystemdError};
use super::tunnel::Words;

/// Which state the node is to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Edge,
    Vanilla,
    /// Nobody wants this node to be an edge node, nor to be brought back: go on with what was begun, begin nothing.
    Unchanged,
}

/// Why a pass ended before the node was what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeeperError {
    #[error(transparent)]
    Look(#[from] LookError),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the hub is not ready after {} s: {last}", limit.as_secs())]
    HubNotReady { limit: Duration, last: String },
    #[error("kubelet is not back after {} s: {last}", limit.as_secs())]
    KubeletNotBack { limit: Duration, last: String },
    #[error("containers changed when kubelet was restarted: {}", containers.join(", "))]
    ContainersChanged { containers: Vec<String> },
    #[error("there was no time left for it")]
    NoTimeLeft,
    #[error("it is not back after {} s: {last}", limit.as_secs())]
    AgentNotBack { limit: Duration, last: String },
    /// The conversion failed and was undone; reported already.
    #[error("{} failed: {}", failure.step.name(), failure.message)]
    Undone { failure: Failure },
    /// The link is down; what was begun stays as it is until it is back.
    #[error("waiting for the API server: {0}")]
    Offline(ClusterError),
}

/// Where the keeper finds what it installs.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// Our own program, static.
    pub executable: PathBuf,
    /// Mounted ConfigMap with the cluster configuration.
    pub config_dir: PathBuf,
    /// Mounted ConfigMap with the tunnel CA.
    pub tunnel_ca_dir: PathBuf,
}

/// Limits.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How long the hub may take to become ready and serve.
    pub hub_limit: Duration,
    /// How long a new release may take to become ready before the old one is put back.
    pub upgrade_limit: Duration,
    /// How long kubelet may take to be back after a restart.
    pub kubelet_limit: Duration,
    /// How long containers are watched after kubelet is back.
    pub settle: Duration,
    /// How long one agent may take to be back after a restart.
    pub agent_limit: Duration,
    /// How long it has to be well.
    pub agent_settle: Duration,
    /// How long all of them may take.
    pub agents_limit: Duration,
    /// For the hub to lead agents to itself, or no longer.
    pub way_in_limit: Duration,
    /// Between two looks at a condition.
    pub poll: Duration,
    /// Addresses that must be free before conversion.
    pub ports: Vec<SocketAddr>,
    /// Bytes that must be free for the program.
    pub free_bytes: u64,
    /// Largest difference between the node's clock and the API server's, seconds.
    pub clock_skew: i64,
    /// The node's clock.
    pub now: fn() -> Timestamp,
}

/// The keeper of one node.
pub(crate) struct Engine<S, C> {
    pub(super) host: Host,
    pub(super) systemd: S,
    pub(super) cluster: C,
    pub(super) node: String,
    pub(super) sources: Sources,
    pub(super) settings: Settings,
    /// The release that this program is.
    pub(super) release: Release,
    /// What the Node's annotation says, as far as we know.
    pub(super) reported: Option<ConversionStatus>,
    /// `Reverted` was reported since the node was last asked to be vanilla.
    reverted: bool,
    /// What became of the agents in the revert that has ended.
    reverted_agents: Agents,
    /// The Node asks to leave its agents as they are.
    keep_agents: bool,
    /// Stamp of the installed program when its digest was last right.
    pub(super) verified: Option<[i64; 4]>,
    /// State, automatic restarts and last words of the hub when they were last shown.
    pub(super) hub_said: Option<(String, u32, String)>,
    /// Why pods come to the hub by another way than the hub was told.
    pub(super) way_in_why: Option<String>,
    /// Somebody else has stopped kubelet.
    pub(super) kubelet_stopped: bool,
    /// What the tunnel agent says.
    pub(super) tunnel: Words,
}

impl<S: Systemd, C: Cluster> Engine<S, C> {
    pub(crate) fn new(
        host: Host,
        systemd: S,
        cluster: C,
        node: &str,
        sources: Sources,
        settings: Settings,
        release: Release,
    ) -> Self {
        Self {
            host,
            systemd,
            cluster,
            node: node.into(),
            sources,
            settings,
            release,
            reported: None,
            reverted: false,
            reverted_agents: Agents::default(),
            keep_agents: false,
            verified: None,
            hub_said: None,
            way_in_why: None,
            kubelet_stopped: false,
            tunnel: Words::default(),
        }
    }

    pub(crate) fn cluster(&mut self) -> &mut C {
        &mut self.cluster
    }

    /// Whether kubelet is known to use the hub, which then is the cheap way to follow the Node.
    pub(crate) fn is_converted(&self) -> bool {
        Journal::load(&self.host)
            .is_ok_and(|journal| journal.is_some_and(|found| found.phase == Phase::Converted))
    }

    /// Whether a conversion was begun on this node.
    pub(crate) fn has_begun(&self) -> bool {
        Journal::load(&self.host).is_ok_and(|journal| journal.is_some())
    }

    /// Finds the API server and the node's credentials. A node that cannot be converted can still report why, as
    /// long as its kubeconfig is where kubeadm puts it.
    pub(crate) async fn identify(&mut self) -> Result<(), KeeperError> {
        let original = match Journal::load(&self.host)? {
            Some(journal) => journal.original,
            None => match look::look(&self.host, &mut self.systemd).await {
                Ok(original) => original,
                Err(error) => {
                    let assumed = Original {
                        kubeconfig: look::DEFAULT_KUBECONFIG.into(),
                        config: None,
                        client_ca_file: None,
                        port: None,
                        folders: Vec::new(),
                        other_flags: Vec::new(),
                    };
                    if self.take_access(&assumed).is_ok() {
                        return Ok(());
                    }
                    return Err(error.into());
                }
            },
        };
        self.take_access(&original)?;
        Ok(())
    }

    /// Reads the node's files and tells the cluster client. kubelet rotates its certificate: read again every time.
    pub(super) fn take_access(&mut self, original: &Original) -> Result<Facts, KeeperError> {
        let facts = look::facts(&self.host, original)?;
        let read = |path: &String| {
            self.host.read(path)?.ok_or_else(|| KeeperError::Look(LookError::Missing { path: path.clone() }))
        };
        let access = Access {
            server: facts.kubeconfig.server.clone(),
            ca: facts.ca.clone(),
            certificate: read(&facts.kubeconfig.client_certificate)?,
            key: read(&facts.kubeconfig.client_key)?,
        };
        self.cluster.set_access(access);
        Ok(facts)
    }

    /// One pass towards the target. `seen` is the Node as last seen, if it was.
    ///
    /// # Errors
    ///
    /// Whatever kept the node from reaching its target in this pass. Run it again.
    pub(crate) async fn reconcile(
        &mut self,
        target: Target,
        seen: Option<&OwnNode>,
    ) -> Result<(), KeeperError> {
        if let Some(seen) = seen {
            // The plugin may have removed our report; then it is to be written again.
            self.reported = seen.conversion.as_deref().and_then(|text| serde_json::from_str(text).ok());
            self.keep_agents = seen.keep_agents;
        }
        if target != Target::Vanilla {
            self.reverted = false;
            self.reverted_agents = Agents::default();
        }
        let mut journal = Journal::load(&self.host)?;
        if let Some(journal) = &mut journal
            && seen.is_some()
            && journal.keep_agents != self.keep_agents
        {
            journal.keep_agents = self.keep_agents;
            journal.save(&self.host)?;
        }
        match (journal, target) {
            (None, Target::Unchanged) => Ok(()),
            (None, Target::Edge) => self.begin(seen).await,
            (None, Target::Vanilla) => self.rest().await,
            (Some(journal), Target::Vanilla) => self.revert(journal).await,
            (Some(journal), _) => match journal.phase {
                Phase::Converting => self.convert(journal).await,
                Phase::Converted => self.maintain(journal, seen).await,
                Phase::Undoing { .. } => self.undo(journal).await,
            },
        }
    }

    /// From a vanilla node: look and preflight, which touch nothing; then the journal, then the rest.
    async fn begin(&mut self, seen: Option<&OwnNode>) -> Result<(), KeeperError> {
        Journal::remove(&self.host)?;
        let mut step = Step::Look;
        let looked: Result<(Original, String), KeeperError> = async {
            let original = look::look(&self.host, &mut self.systemd).await?;
            let facts = self.take_access(&original)?;
            self.say(ConversionState::Converting, Some(Step::Look), "").await;
            step = Step::Preflight;
            self.say(ConversionState::Converting, Some(step), "").await;
            let node = self.preflight(&facts).await?;
            self.keep_agents = node.keep_agents;
            Ok((original, node.kubelet_version))
        }
        .await;
        let (original, kubelet_version) = match looked {
            Ok(found) => found,
            Err(KeeperError::Cluster(error)) if error.is_unreachable() => {
                return Err(KeeperError::Offline(error));
            }
            Err(error) => {
                let failure = Failure { step, message: error.to_string() };
                self.say(ConversionState::Failed, Some(step), &failure.message).await;
                return Err(KeeperError::Undone { failure });
            }
        };
        let version = seen.map_or(kubelet_version.clone(), |seen| seen.kubelet_version.clone());
        let version = if version.is_empty() { kubelet_version } else { version };
        let mut journal = Journal::new(original, self.release.clone(), version);
        journal.keep_agents = self.keep_agents;
        journal.save(&self.host)?;
        self.convert(journal).await
    }

    /// The remaining steps, each of which first looks whether it has been done.
    async fn convert(&mut self, mut journal: Journal) -> Result<(), KeeperError> {
        // A keeper of another release took over half-way: what it installs is its own.
        if journal.release != self.release {
            journal.release = self.release.clone();
            journal.save(&self.host)?;
        }
        for step in Step::ALL.into_iter().filter(|step| *step >= Step::Install) {
            journal.begin(&self.host, step)?;
            self.say(ConversionState::Converting, Some(step), "").await;
            tracing::info!(step = step.name(), "converting");
            if let Err(error) = self.forward(step, &mut journal).await {
                if step == Step::Agents {
                    self.report_agents(&mut journal, &error)?;
                    continue;
                }
                // A lost link is no reason to give up what was reached, nor could kubelet be verified after undoing.
                let error = match error {
                    KeeperError::Cluster(error) if error.is_unreachable() => {
                        return Err(KeeperError::Offline(error));
                    }
                    error => error,
                };
                if let Err(link) = self.cluster.node().await
                    && link.is_unreachable()
                {
                    return Err(KeeperError::Offline(link));
                }
                tracing::error!(step = step.name(), %error, "the conversion failed, undoing it");
                let failure = Failure { step, message: error.to_string() };
                journal.phase = Phase::Undoing { failure: Some(failure) };
                journal.agents = Agents::default();
                journal.save(&self.host)?;
                return self.undo(journal).await;
            }
        }
        journal.phase = Phase::Converted;
        journal.before = None;
        journal.save(&self.host)?;
        let status = ConversionStatus {
            agents: journal.agents.clone(),
            since: since(&journal),
            way_in: self.way_in(&journal),
            ..self.status(ConversionState::Converted, "")
        };
        self.say_status(status).await;
        tracing::info!(version = %journal.release.version, "converted");
        Ok(())
    }

    async fn revert(&mut self, mut journal: Journal) -> Result<(), KeeperError> {
        // Asked for now, whatever was being undone before.
        if journal.phase != (Phase::Undoing { failure: None }) {
            journal.phase = Phase::Undoing { failure: None };
            journal.agents = Agents::default();
            journal.save(&self.host)?;
        }
        self.undo(journal).await
    }

    /// The begun steps backwards, then the journal.
    async fn undo(&mut self, mut journal: Journal) -> Result<(), KeeperError> {
        let Phase::Undoing { failure } = journal.phase.clone() else { return Ok(()) };
        let why = failure.as_ref().map_or(String::new(), |failure| {
            format!("undoing the conversion: {} failed: {}", failure.step.name(), failure.message)
        });
        while let Some(step) = journal.begun.last().copied() {
            self.say(ConversionState::Reverting, Some(step), &why).await;
            tracing::info!(step = step.name(), "undoing");
            if let Err(error) = self.backward(step, &mut journal).await {
                let error = match error {
                    KeeperError::Cluster(error) if error.is_unreachable() => KeeperError::Offline(error),
                    error => error,
                };
                self.say(ConversionState::Reverting, Some(step), &format!("{error}; trying again")).await;
                return Err(error);
            }
            journal.begun.pop();
            journal.save(&self.host)?;
        }
        Journal::remove(&self.host)?;
        self.verified = None;
        match failure {
            None => {
                tracing::info!("the node is vanilla again");
                self.reverted_agents = journal.agents;
                self.rest().await
            }
            Some(failure) => {
                self.say(ConversionState::Failed, Some(failure.step), &failure.message).await;
                Err(KeeperError::Undone { failure })
            }
        }
    }

    /// Nothing of ours is on the node, and nothing should be.
    async fn rest(&mut self) -> Result<(), KeeperError> {
        Journal::remove(&self.host)?;
        if !self.reverted {
            let agents = self.reverted_agents.clone();
            self.reverted = self.say_of_agents(ConversionState::Reverted, "", agents).await;
        }
        Ok(())
    }

    /// Reports to the Node's annotation. That nobody hears it must not keep the node from its target.
    pub(super) async fn say(&mut self, state: ConversionState, step: Option<Step>, message: &str) -> bool {
        let status = ConversionStatus {
            step: step.map(|step| step.name().into()),
            step_index: step.map_or(0, Step::number),
            ..self.status(state, message)
        };
        self.say_status(status).await
    }

    /// The same at the end of a way, with what became of the agents on it.
    async fn say_of_agents(&mut self, state: ConversionState, message: &str, agents: Agents) -> bool {
        let status = ConversionStatus { agents, ..self.status(state, message) };
        self.say_status(status).await
    }

    /// By which way pods come to the hub, as it is reported.
    pub(super) fn way_in(&self, journal: &Journal) -> Option<NodeWayIn> {
        Some(NodeWayIn {
            way: journal.way_in?,
            why: self.way_in_why.clone(),
            environment_until: journal.environment_until.as_ref().and_then(reported),
        })
    }

    /// A state that has been entered now.
    pub(super) fn status(&self, state: ConversionState, message: &str) -> ConversionStatus {
        ConversionStatus {
            state,
            step: None,
            step_index: 0,
            steps: u32::try_from(Step::ALL.len()).unwrap_or_default(),
            message: message.into(),
            version: self.release.version.clone(),
            time: (self.settings.now)().to_string(),
            agents: Agents::default(),
            since: None,
            way_in: None,
            tunnel: Vec::new(),
        }
    }

    pub(super) async fn say_status(&mut self, mut status: ConversionStatus) -> bool {
        if let Some(last) = &self.reported {
            if last.state == status.state {
                status.time.clone_from(&last.time);
            }
            if *last == status {
                return true;
            }
        }
        match self.cluster.report(&status).await {
            Ok(()) => {
                self.reported = Some(status);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot report the conversion state");
                false
            }
        }
    }
}

/// When kubelet came to the hub, as it is reported.
pub(super) fn since(journal: &Journal) -> Option<String> {
    reported(journal.came.as_ref()?)
}

fn reported(moment: &Moment) -> Option<String> {
    Timestamp::from_second(moment.second).ok().map(|time| time.to_string())
}
