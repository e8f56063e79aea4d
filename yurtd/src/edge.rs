//! `yurtd edge`: the hub and the tunnel agent, two roles in one process because a small node has room for one.
//!
//! systemd is told READY when the sockets are served; whether kubelet may be sent here is what `/readyz` says.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names;
use yurt_hub::serve::sockets;
use yurt_hub::{Came, Places, Surroundings};
use yurt_node::config::EdgeConfig;
use yurt_node::stamp::Stamp;
use yurt_node::supervise::Tasks;
use yurt_tunnel::agent::{self, AgentConfig, Found};

use crate::cli::EdgeArgs;
use crate::doctor::desk::{self, Desk};

/// Connections and watches have this long to end when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How soon it shows that kubelet came to the hub.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the roles until `stop`.
pub(crate) async fn run(args: &EdgeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let config = EdgeConfig::load(&args.config)?;
    let sockets = sockets::open()?;
    let tasks = Tasks::new(stop);
    let (said, came) = watch::channel(came());
    tasks.part("the look at the keeper's journal", follow_came(said, tasks.stop().clone()));
    let places = Places { hub: args.runtime_dir.clone(), ..Places::default() };
    let ipv6 = (names::HUB_POD_IPV6, names::HUB_POD_PORT).into();
    let given = AgentConfig::from(&config);
    let tunnel = given.connections.clone();
    let told = tunnel.clone();
    let around = Surroundings { places, came, ipv6, tunnel: Arc::new(move || told.sessions()) };
    let hub = yurt_hub::Server::start(&config, &args.state_dir, around, sockets, &tasks).await?;
    if !config.tunnel_servers.is_empty() {
        let found = Found { api_servers: hub.api_servers(), port: names::TUNNEL_AGENT_PORT };
        let agent = AgentConfig { link: Some(hub.link()), found: Some(found), ..given };
        tasks.part("the tunnel agent", agent::run(agent, tasks.stop().clone()));
    }
    match desk::open(&args.runtime_dir) {
        Ok(socket) => {
            let desk = Desk { hub: hub.doctor(), tunnel };
            tasks.part("the socket for `yurtd doctor`", desk::serve(socket, desk, tasks.stop().clone()));
        }
        // Nothing else depends on it.
        Err(error) => tracing::warn!(%error, "`yurtd doctor` cannot be answered"),
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

/// When kubelet came to the hub, as the node's keeper has written it down.
pub(crate) fn came() -> Came {
    yurt_keeper::came::read(Path::new(names::KEEPER_JOURNAL)).map_err(|error| error.to_string())
}

/// Looks whether the keeper has written it down anew.
async fn follow_came(said: watch::Sender<Came>, stop: CancellationToken) {
    follow(Path::new(names::KEEPER_JOURNAL), came, said, stop).await;
}

async fn follow(
    journal: &Path,
    mut read: impl FnMut() -> Came,
    said: watch::Sender<Came>,
    stop: CancellationToken,
) {
    let mut seen = None;
    loop {
        let written = Stamp::of(journal);
        if written.is_none() || written != seen {
            let now = read();
            // What could not be read, for want of descriptors perhaps, is read again.
            seen = written.filter(|_| now.is_ok());
            said.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use yurt_api::agent::Course;

    use super::*;

    #[tokio::test]
    async fn a_journal_that_could_not_be_read_once_is_read_again_and_one_that_was_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal.json");
        std::fs::write(&journal, "{}").unwrap();
        let (said, mut heard) = watch::channel(Err("not yet".to_owned()));
        let stop = CancellationToken::new();
        let end = stop.clone();
        let following = tokio::spawn(async move {
            let mut times = 0;
            let read = || {
                times += 1;
                if times == 1 { Err("too many open files".to_owned()) } else { Ok(Course::default()) }
            };
            follow(&journal, read, said, end).await;
            times
        });
        let limit = 3 * LOOK;
        tokio::time::timeout(limit, heard.wait_for(Result::is_ok)).await.unwrap().unwrap();
        tokio::time::sleep(3 * LOOK).await;
        stop.cancel();
        assert_eq!(following.await.unwrap(), 2);
    }
}
