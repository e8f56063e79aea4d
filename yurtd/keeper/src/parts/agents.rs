//! The node's infrastructure agents change to kubelet's new way to the API server, one at a time: their containers are
//! ended, and kubelet starts them again in the same pods.
//!
//! In place, and not by deleting the pods: whatever happens to the link meanwhile, kubelet starts the container again; a
//! DaemonSet that is updated `OnDelete` is not updated by us; and what an agent does once when its pod goes (a CNI's
//! uninstallation) is not done.
//!
//! Which ones are left follows from when their containers began, so a keeper that is killed goes on with the rest. That
//! one does not come back is reported and undoes nothing. That nobody can say which there are, because hub or link is not
//! there, is reported as well, and their turn is when somebody can.

use jiff::Timestamp;
use tokio::time::Instant;
use yurt_api::agent::{Moment, Turn as Announced};
use yurt_api::names;
use yurt_api::status::{AgentFailure, ConversionState};
use yurt_api::way_in::WayIn;

use super::drop_in::uses_hub;
use crate::agents::{Agent, began_through_hub};
use crate::cluster::{Cluster, HubWayIn, Route};
use crate::engine::{Engine, KeeperError};
use crate::journal::{Journal, Phase, Step};
use crate::systemd::Systemd;

/// Where a turn of agents is shown, and by which way they are looked at.
struct Turn {
    route: Route,
    state: ConversionState,
    step: Step,
}

impl<S: Systemd, C: Cluster> Engine<S, C> {
    /// This moment, by the node's clock.
    pub(crate) fn moment(&self) -> Moment {
        Moment { boot_id: self.boot_id(), second: (self.settings.now)().as_second() }
    }

    /// Restarts those that began before kubelet worked through the hub.
    pub(crate) async fn agents_to_hub(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        // Whether kubelet left its containers alone has been seen; from here on some are replaced on purpose.
        if journal.before.take().is_some() {
            journal.save(&self.host)?;
        }
        let Some(before) =
            journal.agents_before.clone().or(journal.came.clone()).filter(|_| journal.agents_due)
        else {
            return self.no_turn(journal);
        };
        // What begins while kubelet does not work through the hub does not either: their turn is when it does.
        if !uses_hub(self.kubelet().await?.1.as_ref()) {
            return self.no_turn(journal);
        }
        let boot_id = self.boot_id();
        journal.agents.failed.retain(|failure| !failure.pod.is_empty());
        // Seen through the hub they cost no uplink, and a cut link is no obstacle.
        let state = match journal.phase {
            Phase::Converted => ConversionState::Converted,
            _ => ConversionState::Converting,
        };
        let turn = Turn { route: Route::Hub, state, step: Step::Agents };
        let is_stale = |started: Timestamp| before.is_after(started.as_second(), boot_id.as_deref());
        self.announce(journal, is_stale).await?;
        self.turn(journal, turn, is_stale).await?;
        journal.turn = None;
        journal.agents_before = None;
        journal.agents_due = false;
        journal.save(&self.host)?;
        Ok(())
    }

    /// What cannot be done with the agents is reported and undoes nothing: the node works without. What may pass by itself
    /// is tried again in the next pass.
    pub(crate) fn report_agents(
        &self,
        journal: &mut Journal,
        error: &KeeperError,
    ) -> Result<(), KeeperError> {
        tracing::warn!(%error, "the node's agents were not restarted");
        journal.agents.failed.push(AgentFailure { pod: String::new(), message: error.to_string() });
        journal.agents_due = matches!(error, KeeperError::Cluster(error) if error.is_transient());
        // Nobody was restarted because of it: whoever began before did.
        journal.turn = None;
        journal.save(&self.host)?;
        Ok(())
    }

    /// Restarts those that began while kubelet worked through the hub, which is about to go.
    pub(crate) async fn agents_to_api_server(&mut self, journal: &mut Journal) -> Result<(), KeeperError> {
        let Some(left) = journal.left.clone() else { return Ok(()) };
        // An agent that begins anew must not be led to the hub, which is about to go and which it does not believe.
        self.way_in_is(|way_in| !way_in.open).await;
        let (came, boot_id) = (journal.came.clone(), self.boot_id());
        let turn = Turn { route: Route::Direct, state: ConversionState::Reverting, step: Step::Kubelet };
        self.turn(journal, turn, |started| {
            began_through_hub(started, came.as_ref(), &left, boot_id.as_deref())
        })
        .await
    }

    /// Whom a keeper that was killed has named is not restarted now: whoever of them began before did.
    fn no_turn(&self, journal: &mut Journal) -> Result<(), KeeperError> {
        if journal.turn.take().is_some() {
            journal.save(&self.host)?;
        }
        Ok(())
    }

    /// Names all of them before the first is restarted, and waits until the hub's way in is as if they had been: what
    /// an agent asks for when it begins, it asks once, and those on the host's network are led to the hub together.
    async fn announce(
        &mut self,
        journal: &mut Journal,
        is_stale: impl Fn(Timestamp) -> bool,
    ) -> Result<(), KeeperError> {
        if journal.keep_agents {
            return self.no_turn(journal);
        }
        let deadline = Instant::now() + self.settings.agent_limit;
        let found = self.ask(deadline, async |cluster| cluster.agents(Route::Hub).await).await?;
        let failed = |name: &str| journal.agents.failed.iter().any(|failure| failure.pod == name);
        let next = found.iter().filter(|agent| !agent.stale(&is_stale).is_empty() && !failed(&agent.name));
        let pods: Vec<String> = next.map(|agent| agent.name.clone()).collect();
        if pods.is_empty() {
            return self.no_turn(journal);
        }
        let second = self.moment().second;
        journal.turn = Some(Announced { second, pods });
        journal.save(&self.host)?;
        self.way_in_is(|way_in| way_in.turn == Some(second)).await;
        Ok(())
    }

    /// Waits until the hub's way in is so, if it has one that can be.
    async fn way_in_is(&mut self, expected: impl Fn(&HubWayIn) -> bool) {
        let deadline = Instant::now() + self.settings.way_in_limit;
        loop {
            match self.cluster.hub_way_in().await {
                // By their environment what begins is led there at once.
                Ok(way_in) if way_in.way == WayIn::Environment || expected(&way_in) => return,
                answer => {
                    if Instant::now() >= deadline {
                        tracing::warn!(
                            ?answer,
                            "the way to the hub is not as it should be; going on without it"
                        );
                        return;
                    }
                }
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    async fn turn(
        &mut self,
        journal: &mut Journal,
        turn: Turn,
        is_stale: impl Fn(Timestamp) -> bool,
    ) -> Result<(), KeeperError> {
        let deadline = Instant::now() + self.settings.agent_limit;
        let end = Instant::now() + self.settings.agents_limit;
        let found = self.ask(deadline, async |cluster| cluster.agents(turn.route).await).await?;
        for agent in found {
            let stale = agent.stale(&is_stale);
            let begun = journal.agents.restarted.contains(&agent.name);
            let failed = journal.agents.failed.iter().any(|failure| failure.pod == agent.name);
            if failed || (stale.is_empty() && (!begun || agent.ready)) {
                continue;
            }
            if journal.keep_agents {
                if !journal.agents.kept.contains(&agent.name) {
                    journal.agents.kept.push(agent.name);
                    journal.save(&self.host)?;
                }
                continue;
            }
            if Instant::now() >= end {
                self.agent_failed(journal, agent.name, &KeeperError::NoTimeLeft)?;
                continue;
            }
            if !begun {
                journal.agents.restarted.push(agent.name.clone());
                journal.save(&self.host)?;
            }
            let message = format!("restarting {}", agent.name);
            if turn.state == ConversionState::Converted {
                self.say_converted(journal, &message).await;
            } else {
                self.say(turn.state, Some(turn.step), &message).await;
            }
            tracing::info!(agent = %agent.name, containers = stale.len(), "restarting an agent");
            match self.restart_agent(&agent, &stale, turn.route, end).await {
                Ok(()) => {}
                // The link was lost: the rest when it is back.
                Err(KeeperError::Cluster(error)) if error.is_unreachable() => return Err(error.into()),
                Err(error) => self.agent_failed(journal, agent.name, &error)?,
            }
        }
        Ok(())
    }

    fn agent_failed(
        &self,
        journal: &mut Journal,
        pod: String,
        error: &KeeperError,
    ) -> Result<(), KeeperError> {
        tracing::warn!(agent = %pod, %error, "an agent was not restarted");
        journal.agents.restarted.retain(|name| *name != pod);
        if let Some(turn) = &mut journal.turn {
            turn.pods.retain(|name| *name != pod);
        }
        journal.agents.failed.push(AgentFailure { pod, message: error.to_string() });
        journal.save(&self.host)?;
        Ok(())
    }

    /// Ends these containers of an agent and waits until others run in their place, and go on running.
    async fn restart_agent(
        &mut self,
        agent: &Agent,
        stale: &[String],
        route: Route,
        end: Instant,
    ) -> Result<(), KeeperError> {
        let begin = Instant::now();
        let deadline = end.min(begin + self.settings.agent_limit);
        // A release of before, which may have been swapped back, does not know how.
        let own = self.release.program();
        let program = if self.host.exists(&own) { own } else { format!("{}/yurtd", names::CURRENT_LINK) };
        for id in stale {
            if Instant::now() >= deadline {
                break;
            }
            let short = id.get(..12).unwrap_or(id);
            let grace = agent.grace.to_string();
            let command = [&program, "end-container", id, "--grace-seconds", &grace].map(str::to_owned);
            self.systemd.run(&format!("yurt-end-container-{short}.service"), &command).await?;
        }
        // Since when it has been well, with which containers.
        let mut well: Option<(Instant, Vec<String>)> = None;
        let mut ends = false;
        loop {
            let mut settling = false;
            let last = match self.cluster.agents(route).await {
                Ok(agents) => match agents.iter().find(|now| now.uid == agent.uid) {
                    // Somebody deleted the pod; the next one begins with the new way.
                    None => return Ok(()),
                    Some(now) if now.has_any(stale) => "its container still runs".to_owned(),
                    Some(now) if now.containers.len() < agent.containers.len().max(1) => {
                        "its container does not run".to_owned()
                    }
                    // One that was not ready before may have its own reasons.
                    Some(now) if now.ready || !agent.ready && !stale.is_empty() => {
                        let ids = now.stale(|_| true);
                        match &well {
                            Some((since, known)) if *known == ids => {
                                if since.elapsed() >= self.settings.agent_settle {
                                    return Ok(());
                                }
                            }
                            known => {
                                ends |= known.is_some();
                                well = Some((Instant::now(), ids));
                            }
                        }
                        // One that ends again and again looks well each time, which has an end.
                        settling = !ends;
                        "it has only just begun to run".to_owned()
                    }
                    Some(_) => "it is not Ready".to_owned(),
                },
                Err(error) if error.is_unreachable() && route == Route::Direct => return Err(error.into()),
                Err(error) if error.is_transient() => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= deadline && !settling {
                let limit = begin.elapsed();
                let last = if ends { "its container ends again and again".to_owned() } else { last };
                return Err(KeeperError::AgentNotBack { limit, last });
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }
}
