//! The time between being elected and not being so any more: the reconcilers as parts of one term.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use tokio_util::sync::CancellationToken;
use yurt_node::supervise::{Ended, Tasks};

use super::certificates::Certificates;
use super::context::{Context, follow_nodes};
use super::nodes::{Nodes, Pass};
use super::ports::KubeletPorts;
use super::requests::Requests;

/// How often everything is looked at although nothing seems to have changed.
const AGAIN: Duration = Duration::from_secs(10);
/// Kubelet ports are looked at no more often than that: nodes change all the time, and mostly by a heartbeat.
const PORTS_PAUSE: Duration = Duration::from_secs(1);
/// A reconciler is dropped where it waits; there is nothing that could take this long.
const LAST: Duration = Duration::from_secs(5);

/// What the role needs besides a client.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) namespace: String,
    pub(super) identity: String,
    pub(super) config_file: PathBuf,
}

/// The reconcilers at work. They end when it is dropped.
pub(super) struct Term {
    tasks: Tasks,
}

impl Term {
    /// Starts them.
    pub(super) fn begin(client: kube::Client, settings: Settings) -> Self {
        let term = Self { tasks: Tasks::new(CancellationToken::new()) };
        let (nodes, follow) = follow_nodes(client.clone(), term.tasks.stop().clone());
        let Settings { namespace, identity, config_file } = settings;
        let context = Arc::new(Context { client, namespace, identity, nodes });
        term.tasks.part("the watch on nodes", follow);
        term.part("the reconciler of autonomy", autonomy(context.clone()));
        let ports = kubelet_ports(context.clone(), config_file.clone());
        term.part("the reconciler of kubelet ports", ports);
        term.part("the reconciler of certificates", certificates(context.clone(), config_file));
        term.part("the reconciler of certificate requests", approvals(context));
        term
    }

    /// Between two writes it can end: each is whole by itself, and the next leader continues.
    fn part(&self, name: &'static str, reconciler: impl Future<Output = ()> + Send + 'static) {
        let stop = self.tasks.stop().clone();
        self.tasks.part(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reconciler => {}
            }
        });
    }

    /// Which of them ended without having been asked.
    pub(super) async fn ended(&self) -> Ended {
        self.tasks.ended().await
    }

    /// Returns when they write nothing more.
    pub(super) async fn end(self) {
        let left = self.tasks.finish(LAST).await;
        if left > 0 {
            tracing::error!(tasks = left, "some reconcilers did not end");
        }
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

async fn autonomy(context: Arc<Context>) {
    let mut changes = context.nodes.changes();
    context.nodes.ready().await;
    let mut reconciler = Nodes::new(context);
    let mut again = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            _ = again.tick() => reconciler.reconcile(Pass::Full).await,
            changed = changes.changed() => match changed {
                Ok(()) => reconciler.reconcile(Pass::Changed).await,
                // Nobody follows the nodes any more.
                Err(_) => return,
            },
        }
    }
}

async fn kubelet_ports(context: Arc<Context>, config_file: PathBuf) {
    let mut changes = context.nodes.changes();
    context.nodes.ready().await;
    let mut reconciler = KubeletPorts::new(context, config_file);
    let mut again = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            _ = again.tick() => reconciler.reconcile(Pass::Full).await,
            changed = changes.changed() => match changed {
                Ok(()) => reconciler.reconcile(Pass::Changed).await,
                // Nobody follows the nodes any more.
                Err(_) => return,
            },
        }
        tokio::time::sleep(PORTS_PAUSE).await;
    }
}

async fn certificates(context: Arc<Context>, config_file: PathBuf) {
    // Without all nodes the certificate would lack names.
    context.nodes.ready().await;
    let mut reconciler = Certificates::new(context, config_file);
    let mut again = tokio::time::interval(AGAIN);
    loop {
        again.tick().await;
        reconciler.reconcile().await;
    }
}

async fn approvals(context: Arc<Context>) {
    let (mut reconciler, events) = Requests::new(context);
    pin_mut!(events);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot follow certificate requests; trying again");
                    continue;
                }
                None => return,
            },
            () = tokio::time::sleep(AGAIN) => {}
        }
        reconciler.reconcile().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeCluster;

    #[tokio::test]
    async fn a_term_whose_reconciler_ends_is_over() {
        let cluster = FakeCluster::start().await;
        let settings = Settings {
            namespace: "kube-system".into(),
            identity: "a".into(),
            config_file: "/nonexistent/config.json".into(),
        };
        let term = Term::begin(cluster.client(), settings);
        term.part("the reconciler of nothing", async {});
        let ended = tokio::time::timeout(Duration::from_secs(20), term.ended()).await.unwrap();
        assert_eq!(ended.part, "the reconciler of nothing");
    }
}
