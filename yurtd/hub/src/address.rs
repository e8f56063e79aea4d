//! `yurtd address`: the hub's pod address on `lo`, for as long as the process runs.
//!
//! Pods find the hub at 169.254.2.1, an address that exists on every edge node and on no network. A process of its own
//! holds it, so that it is there before the hub's socket and stays while the hub restarts, and so that the hub, which
//! strangers talk to, needs no right to change the node's network. Whoever takes the address away (a network manager that
//! sets `lo` up anew, a person), the kernel tells of it, and it is put back at once. It goes with a polite stop alone: a
//! crash leaves it where it is.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::names;

const PREFIX: u8 = 32;
/// Whoever flushes addresses makes several changes; they count as one, and whoever keeps taking ours away does not make
/// us spin.
const TOGETHER: Duration = Duration::from_millis(200);
/// A change of which the kernel's message was lost (its queue was full) is found by looking.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Holds the address until `stop`, then takes it away. `ready` is called once it is there.
///
/// # Errors
///
/// When it cannot be put on `lo` or taken away.
pub async fn hold(stop: CancellationToken, ready: impl FnOnce()) -> anyhow::Result<()> {
    let address: Ipv4Addr = names::HUB_POD_ADDRESS.parse().context("the hub's pod address is not one")?;
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Link];
    let (connection, handle, mut changes) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let index = index_of(&handle, "lo").await.context("there is no link lo")?;
    add(&handle, index, "lo", address).await?;
    tracing::info!(%address, "held on lo");
    ready();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            change = changes.next() => anyhow::ensure!(change.is_some(), "the netlink socket was closed"),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::time::sleep(TOGETHER).await;
        while changes.try_recv().is_ok() {}
        if add(&handle, index, "lo", address).await? {
            tracing::warn!(%address, "was taken off lo, put back");
        }
    }
    remove(&handle, index, "lo", address).await
}

/// Whether it had to be put there.
async fn add(handle: &Handle, index: u32, link: &str, address: Ipv4Addr) -> anyhow::Result<bool> {
    // In a fresh network namespace `lo` is down, and an address on it leads nowhere.
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .with_context(|| format!("cannot bring {link} up"))?;
    match handle.address().add(index, IpAddr::V4(address), PREFIX).execute().await {
        Ok(()) => Ok(true),
        Err(error) if is(&error, Errno::EXIST) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot put {address} on {link}")),
    }
}

async fn remove(handle: &Handle, index: u32, link: &str, address: Ipv4Addr) -> anyhow::Result<()> {
    let held = handle.address().get().set_link_index_filter(index).execute();
    let held: Vec<AddressMessage> =
        held.try_collect().await.with_context(|| format!("cannot list the addresses of {link}"))?;
    for message in held.into_iter().filter(|message| holds(message, address)) {
        match handle.address().del(message).execute().await {
            Err(error) if !is(&error, Errno::ADDRNOTAVAIL) => {
                return Err(error).with_context(|| format!("cannot take {address} off {link}"));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn index_of(handle: &Handle, link: &str) -> anyhow::Result<u32> {
    let found = handle.link().get().match_name(link.to_owned()).execute().try_next().await?;
    Ok(found.context("not found")?.header.index)
}

fn holds(message: &AddressMessage, address: Ipv4Addr) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Local(local) if *local == IpAddr::V4(address)))
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.code.is_some_and(|code| code.get() == -errno.raw_os_error()))
}

/// Run in a network namespace of its own, as in the tunnel server's kernel tests.
#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    fn ip(words: &[&str]) -> String {
        let output = Command::new("ip").args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn held() -> usize {
        ip(&["-4", "address", "show", "lo"]).matches("169.254.2.1/32").count()
    }

    async fn until_held() {
        let there = async {
            while held() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LOOK_EVERY / 2, there).await.expect("the address was not put back");
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_the_address_is_put_back_whoever_takes_it_away_and_goes_with_a_polite_stop_alone() {
        let (stop, ready) = (CancellationToken::new(), Arc::new(Notify::new()));
        let started = Arc::clone(&ready);
        let holder = tokio::spawn(hold(stop.clone(), move || started.notify_one()));
        ready.notified().await;
        until_held().await;
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held().await;
        ip(&["address", "flush", "dev", "lo", "scope", "global"]);
        until_held().await;
        // Killed: the address stays, and the next one finds it.
        holder.abort();
        assert!(holder.await.unwrap_err().is_cancelled());
        assert_eq!(held(), 1);
        let started = Arc::clone(&ready);
        let holder = tokio::spawn(hold(stop.clone(), move || started.notify_one()));
        ready.notified().await;
        assert_eq!(held(), 1);
        stop.cancel();
        holder.await.unwrap().unwrap();
        assert_eq!(held(), 0);
        assert!(ip(&["-4", "address", "show", "lo"]).contains("127.0.0.1/8"));
    }
}
