//! `yurtd edge`: the hub and the tunnel agent, two roles in one process because a small node has room for one.
//!
//! systemd is told READY when the sockets are served; whether kubelet may be sent here is what `/readyz` says.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use yurt_hub::serve::sockets;
use yurt_node::config::EdgeConfig;
use yurt_node::supervise::Tasks;
use yurt_tunnel::agent::{self, AgentConfig};

/// Connections and watches have this long to end when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the roles until `stop`.
pub(crate) async fn run(config: &Path, state_dir: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let config = EdgeConfig::load(config)?;
    let sockets = sockets::open()?;
    let tasks = Tasks::new(stop);
    let hub = yurt_hub::Server::start(&config, state_dir, sockets, &tasks).await?;
    if !config.tunnel_servers.is_empty() {
        let agent = AgentConfig { link: Some(hub.link()), ..AgentConfig::from(&config) };
        tasks.part("the tunnel agent", agent::run(agent, tasks.stop().clone()));
    }
    notify(&[NotifyState::Ready]);
    tasks.part("the watchdog", watchdog(tasks.stop().clone()));
    let outcome = tasks.until_stopped().await;
    notify(&[NotifyState::Stopping]);
    let left = tasks.finish(DRAIN).await;
    if left > 0 {
        tracing::warn!(tasks = left, "some connections did not end in time");
    }
    hub.save().await;
    Ok(outcome?)
}

/// Tells systemd that the runtime turns, twice as often as it wants to hear it.
async fn watchdog(stop: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return stop.cancelled().await };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => notify(&[NotifyState::Watchdog]),
        }
    }
}

/// Tells systemd, which may not be there.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
