//! Changes of the node's addresses and routes: when one comes or goes, the API server may be within reach again, and the
//! link is looked at at once instead of at its next try.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio_util::sync::CancellationToken;

use crate::link::Link;

const GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];
/// A CNI plugin makes a dozen changes a pod; they count as one.
const TOGETHER: Duration = Duration::from_millis(200);

/// Kicks the link at every change, until `stop`. Without it the link is found by its own tries, so a failure is no reason
/// to end.
pub(crate) async fn watch(link: Link, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        outcome = follow(&link) => if let Err(error) = outcome {
            tracing::warn!("changes of addresses and routes cannot be followed: {error:#}");
        }
    }
}

async fn follow(link: &Link) -> anyhow::Result<()> {
    let (connection, _handle, mut changes) =
        rtnetlink::new_multicast_connection(&GROUPS).context("cannot open a netlink socket")?;
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    while changes.next().await.is_some() {
        tokio::time::sleep(TOGETHER).await;
        while changes.try_recv().is_ok() {}
        link.kick();
    }
    drop(connection);
    anyhow::bail!("the netlink socket was closed")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use tokio::sync::{Notify, watch as channel};

    use super::*;
    use yurt_node::link::LinkState;

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_an_address_that_comes_or_goes_kicks_the_link() {
        let kicked = Arc::new(Notify::new());
        let (_state, receiver) = channel::channel(LinkState::Offline);
        let stop = CancellationToken::new();
        let watching = tokio::spawn(watch(Link::new(receiver, Arc::clone(&kicked)), stop.clone()));
        let ip = |verb: &'static str| async move {
            let words = ["address", verb, "192.0.2.7/32", "dev", "lo"];
            let status = tokio::task::spawn_blocking(move || Command::new("ip").args(words).status());
            assert!(status.await.unwrap().unwrap().success());
        };
        let noticed = |within: Duration| {
            let kicked = &kicked;
            async move { tokio::time::timeout(within, kicked.notified()).await.is_ok() }
        };
        // Changes from before the socket listens are nobody's: until one has been noticed there is another one.
        let mut verbs = ["add", "del"].into_iter().cycle();
        yurt_fakes::until("a change of addresses to be noticed", async || {
            ip(verbs.next()?).await;
            noticed(Duration::from_millis(500)).await.then_some(())
        })
        .await;
        // All that came together is one kick, and what is left of it is told now.
        while noticed(TOGETHER * 3).await {}
        ip(verbs.next().unwrap()).await;
        assert!(noticed(yurt_fakes::PATIENCE).await, "a change of addresses was not noticed");
        stop.cancel();
        watching.await.unwrap();
    }
}
