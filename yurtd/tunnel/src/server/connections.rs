//! What goes on for a while after the server was told to stop: connections, sessions, upgraded streams.
//!
//! A stop has two steps. First nothing new is taken, and what runs may end by itself; then it is cut.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yurt_node::supervise::Tasks;

/// Connections with a common end.
#[derive(Clone)]
pub(super) struct Connections {
    tasks: Tasks,
    kill: CancellationToken,
}

impl Connections {
    /// They are tasks of `tasks`, and are cut at `kill`.
    pub(super) fn new(tasks: Tasks, kill: CancellationToken) -> Self {
        Self { tasks, kill }
    }

    /// Their tasks; from the stop of these on nothing new is taken.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Cancelled when nothing new may be taken.
    pub(super) fn stop(&self) -> &CancellationToken {
        self.tasks.stop()
    }

    /// Cancelled when those that run are cut.
    pub(super) fn kill(&self) -> &CancellationToken {
        &self.kill
    }

    /// Starts one.
    pub(super) fn start(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        self.tasks.passing(async move {
            tokio::select! {
                () = kill.cancelled() => {}
                () = connection => {}
            }
        });
    }

    /// Waits at most `limit` until all have ended by themselves, then cuts the others. Says how many those were.
    pub(super) async fn drain(&self, limit: Duration) -> usize {
        let left = self.tasks.finish(limit).await;
        self.kill.cancel();
        left
    }
}
