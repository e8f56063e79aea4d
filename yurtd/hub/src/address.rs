//! `yurtd address`: the hub's pod address on `lo`.
//!
//! Pods find the hub at 169.254.2.1, an address that exists on every edge node and on no network. A oneshot unit
//! of its own holds it, so that it is there before the hub's socket and stays while the hub restarts.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use yurt_api::names;

const PREFIX: u8 = 32;

/// What to do with the address.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Put it on `lo`; nothing to do if it is there.
    Add,
    /// Take it off `lo`; nothing to do if it is not there.
    Remove,
}

/// Runs the role until it is told to stop.
///
/// # Errors
///
/// When the role cannot start or cannot go on.
pub async fn run(action: Action) -> anyhow::Result<()> {
    let address: Ipv4Addr = names::HUB_POD_ADDRESS.parse().context("the hub's pod address is not one")?;
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let outcome = apply(&handle, action, "lo", address).await;
    connection.abort();
    outcome
}

async fn apply(handle: &Handle, action: Action, link: &str, address: Ipv4Addr) -> anyhow::Result<()> {
    let index = index_of(handle, link).await.with_context(|| format!("there is no link {link}"))?;
    match action {
        Action::Add => add(handle, index, link, address).await,
        Action::Remove => remove(handle, index, link, address).await,
    }
}

async fn add(handle: &Handle, index: u32, link: &str, address: Ipv4Addr) -> anyhow::Result<()> {
    // In a fresh network namespace `lo` is down, and an address on it leads nowhere.
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .with_context(|| format!("cannot bring {link} up"))?;
    match handle.address().add(index, IpAddr::V4(address), PREFIX).execute().await {
        Err(error) if !is(&error, Errno::EXIST) => {
            Err(error).with_context(|| format!("cannot put {address} on {link}"))
        }
        _ => Ok(()),
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
    use super::*;

    fn addresses() -> String {
        let output = std::process::Command::new("ip").args(["-4", "address", "show", "lo"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_holds_the_address_once_and_lets_go_of_it_alone() {
        for _ in 0..2 {
            run(Action::Add).await.unwrap();
            assert_eq!(addresses().matches("169.254.2.1/32").count(), 1);
        }
        for _ in 0..2 {
            run(Action::Remove).await.unwrap();
            assert!(!addresses().contains("169.254.2.1"));
            assert!(addresses().contains("127.0.0.1/8"));
        }
    }
}
