//! `yurtd address`: the hub's pod address on `lo`, for as long as its unit runs.
//!
//! Pods find the hub at 169.254.2.1, an address that exists on every edge node and on no network. A process of its own
//! holds it, so that it is there before the hub's socket and stays while the hub restarts, and so that the hub, which
//! strangers talk to, needs no right to change the node's network. Whoever takes the address away (a network manager that
//! sets `lo` up anew, a person), the kernel tells of it, and it is put back at once. The unit puts it there before the
//! process starts and takes it away after it has ended, by calls of their own: a release of before knows nothing else.
//!
//! The same process holds the table that leads pods to that address ([`crate::way_in::hold`]).

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

use crate::way_in::{Places, hold as way_in};

const PREFIX: u8 = 32;
/// Whoever flushes addresses makes several changes; they count as one, and whoever keeps taking ours away does not make
/// us spin.
const TOGETHER: Duration = Duration::from_millis(200);
/// A change of which the kernel's message was lost (its queue was full) is found by looking.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Puts the address on `lo`, and tries whether the kernel can lead pods there.
///
/// # Errors
///
/// When the kernel refuses it.
pub async fn add() -> anyhow::Result<()> {
    let address = address()?;
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let index = index_of(&handle, "lo").await.context("there is no link lo")?;
    let outcome = put(&handle, index, "lo", address).await.map(drop);
    way_in::try_out(&Places::default()).await;
    outcome
}

/// Takes the address off `lo`, and before that the table that leads there.
///
/// # Errors
///
/// When the kernel refuses it.
pub async fn remove() -> anyhow::Result<()> {
    // On a kernel that knows no tables there is none.
    if let Err(error) = way_in::remove().await {
        tracing::warn!(%error, "the table {} cannot be taken away", names::NFT_EDGE_TABLE);
    }
    let address = address()?;
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let index = index_of(&handle, "lo").await.context("there is no link lo")?;
    take(&handle, index, "lo", address).await
}

/// Puts address and table back whenever they are gone, until `stop`, which leaves the address there and takes the table
/// away: the program that is called for the rest may be one of before, which knows no table.
///
/// # Errors
///
/// When it cannot be put on `lo`, or the kernel cannot be listened to.
pub async fn hold(stop: CancellationToken) -> anyhow::Result<()> {
    let places = Places::default();
    let (outcome, ()) = tokio::join!(
        async {
            let outcome = hold_address(stop.clone()).await;
            stop.cancel();
            outcome
        },
        way_in::run(&places, stop.clone())
    );
    outcome
}

async fn hold_address(stop: CancellationToken) -> anyhow::Result<()> {
    let address = address()?;
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Link];
    let (connection, handle, mut changes) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let index = index_of(&handle, "lo").await.context("there is no link lo")?;
    put(&handle, index, "lo", address).await?;
    tracing::info!(%address, "held on lo");
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = changes.next() => anyhow::ensure!(change.is_some(), "the netlink socket was closed"),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(TOGETHER) => {}
        }
        while changes.try_recv().is_ok() {}
        if put(&handle, index, "lo", address).await? {
            tracing::warn!(%address, "was taken off lo, put back");
        }
    }
}

fn address() -> anyhow::Result<Ipv4Addr> {
    names::HUB_POD_ADDRESS.parse().context("the hub's pod address is not one")
}

/// Whether it had to be put there.
async fn put(handle: &Handle, index: u32, link: &str, address: Ipv4Addr) -> anyhow::Result<bool> {
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

async fn take(handle: &Handle, index: u32, link: &str, address: Ipv4Addr) -> anyhow::Result<()> {
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
    async fn kernel_the_address_is_put_back_whoever_takes_it_away_and_goes_when_it_is_removed() {
        add().await.unwrap();
        assert_eq!(held(), 1);
        let stop = CancellationToken::new();
        let holder = tokio::spawn(hold_address(stop.clone()));
        // Whether it listens already or not.
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held().await;
        ip(&["address", "flush", "dev", "lo", "scope", "global"]);
        until_held().await;
        // Killed or stopped, the address stays, and the next one finds it.
        holder.abort();
        assert!(holder.await.unwrap_err().is_cancelled());
        assert_eq!(held(), 1);
        let holder = tokio::spawn(hold_address(stop.clone()));
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held().await;
        stop.cancel();
        holder.await.unwrap().unwrap();
        assert_eq!(held(), 1);
        for _ in 0..2 {
            remove().await.unwrap();
            assert_eq!(held(), 0);
        }
        assert!(ip(&["-4", "address", "show", "lo"]).contains("127.0.0.1/8"));
    }
}
