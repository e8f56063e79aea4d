//! `yurtd address`: the hub's pod addresses on `lo`, for as long as their unit runs.
//!
//! Pods find the hub at 169.254.2.1, an address that exists on every edge node and on no network. A process of its own
//! holds it, so that it is there before the hub's socket and stays while the hub restarts, and so that the hub, which
//! strangers talk to, needs no right to change the node's network. Whoever takes the address away (a network manager that
//! sets `lo` up anew, a person), the kernel tells of it, and it is put back at once. The unit puts it there before the
//! process starts and takes it away after it has ended, by calls of their own: a release of before knows nothing else.
//!
//! Its IPv6 twin is there while the hub wants it, which is where the Service has an IPv6 address: there is no IPv6 address
//! that programs would not take for the node's own when they look for one on `lo`. It is deprecated from the start
//! (RFC 4862, 5.5.4), so that the kernel does not prefer it as the source of anything. Without IPv6 in the kernel the rest
//! is as it was.
//!
//! The same process holds the table that leads pods to these addresses ([`crate::way_in::hold`]).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use yurt_api::names;

use crate::way_in::{Places, hold as way_in};

/// Whoever flushes addresses makes several changes; they count as one, and whoever keeps taking ours away does not make
/// us spin.
const TOGETHER: Duration = Duration::from_millis(200);
/// A change of which the kernel's message was lost (its queue was full) is found by looking.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const IPV6: IpAddr = IpAddr::V6(names::HUB_POD_IPV6);

/// Puts the address on `lo`, and tries whether the kernel can lead pods there.
///
/// # Errors
///
/// When the kernel refuses it.
pub async fn add() -> anyhow::Result<()> {
    let address = address()?;
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let lo = Link::of(&handle, "lo").await?;
    let outcome = lo.put(address).await.map(drop);
    let places = Places::default();
    let no_ipv6 = match lo.put(IPV6).await {
        Ok(true) if !way_in::wants_ipv6(&places) => lo.take(IPV6).await.err(),
        Ok(_) => None,
        Err(error) => Some(error),
    };
    way_in::try_out(&places, no_ipv6.map(|error| format!("{error:#}"))).await;
    outcome
}

/// Takes the addresses off `lo`, and before that the table that leads there.
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
    let lo = Link::of(&handle, "lo").await?;
    let ipv6 = lo.take(IPV6).await;
    lo.take(address).await?;
    ipv6
}

/// Puts addresses and table back whenever they are gone, until `stop`, which leaves the IPv4 address there and takes the
/// rest away: the program that is called for that may be one of before, which knows this address alone.
///
/// # Errors
///
/// When it cannot be put on `lo`, or the kernel cannot be listened to.
pub async fn hold(stop: CancellationToken) -> anyhow::Result<()> {
    let places = Places::default();
    let (ipv6, wanted) = watch::channel(way_in::wants_ipv6(&places));
    let (outcome, ()) = tokio::join!(
        async {
            let outcome = hold_addresses(wanted, stop.clone()).await;
            stop.cancel();
            outcome
        },
        way_in::run(&places, ipv6, stop.clone())
    );
    outcome
}

pub(crate) async fn hold_addresses(
    mut ipv6: watch::Receiver<bool>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let address = address()?;
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Link];
    let (connection, handle, mut changes) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let lo = Link::of(&handle, "lo").await?;
    lo.put(address).await?;
    tracing::info!(%address, "held on lo");
    let mut second = Second::default();
    loop {
        let wanted = *ipv6.borrow_and_update();
        second.turn(&lo, wanted).await;
        tokio::select! {
            () = stop.cancelled() => break,
            change = changes.next() => anyhow::ensure!(change.is_some(), "the netlink socket was closed"),
            // At once: the table that leads there comes next. Whoever says it ends with this process.
            Ok(()) = ipv6.changed() => continue,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(TOGETHER) => {}
        }
        while changes.try_recv().is_ok() {}
        if lo.put(address).await? {
            tracing::warn!(%address, "was taken off lo, put back");
        }
    }
    second.turn(&lo, false).await;
    Ok(())
}

/// The IPv6 address. Pods of IPv4 do not depend on it, so nothing ends because of it.
#[derive(Default)]
struct Second {
    held: bool,
    /// Why it cannot be put there or taken away, as it was last said.
    error: Option<String>,
}

impl Second {
    async fn turn(&mut self, lo: &Link<'_>, wanted: bool) {
        let outcome = match (wanted, self.held) {
            (true, _) => lo.put(IPV6).await,
            (false, true) => lo.take(IPV6).await.map(|()| true),
            (false, false) => return,
        };
        match outcome {
            Ok(changed) => {
                match (wanted, self.held) {
                    (true, false) => tracing::info!(address = %IPV6, "held on lo"),
                    (true, true) if changed => tracing::warn!(address = %IPV6, "was taken off lo, put back"),
                    _ => {}
                }
                *self = Self { held: wanted, error: None };
            }
            Err(error) => {
                let error = Some(format!("{error:#}"));
                if self.error != error {
                    tracing::error!(error, "trying again");
                }
                self.error = error;
            }
        }
    }
}

fn address() -> anyhow::Result<IpAddr> {
    let address: Ipv4Addr = names::HUB_POD_ADDRESS.parse().context("the hub's pod address is not one")?;
    Ok(address.into())
}

/// A network interface.
struct Link<'a> {
    handle: &'a Handle,
    name: &'static str,
    index: u32,
}

impl<'a> Link<'a> {
    async fn of(handle: &'a Handle, name: &'static str) -> anyhow::Result<Self> {
        let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        let found = found.with_context(|| format!("cannot look for the link {name}"))?;
        let index = found.with_context(|| format!("there is no link {name}"))?.header.index;
        Ok(Self { handle, name, index })
    }

    /// Whether it had to be put there.
    async fn put(&self, address: IpAddr) -> anyhow::Result<bool> {
        // In a fresh network namespace `lo` is down, and an address on it leads nowhere.
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(self.index).up().build())
            .execute()
            .await
            .with_context(|| format!("cannot bring {} up", self.name))?;
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(self.index, address, prefix);
        if address.is_ipv6() {
            let mut life = CacheInfo::default();
            (life.ifa_preferred, life.ifa_valid) = (0, u32::MAX);
            request.message_mut().attributes.push(AddressAttribute::CacheInfo(life));
        }
        match request.execute().await {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::EXIST) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot put {address} on {}", self.name)),
        }
    }

    async fn take(&self, address: IpAddr) -> anyhow::Result<()> {
        let held = self.handle.address().get().set_link_index_filter(self.index).execute();
        let held: Vec<AddressMessage> = held
            .try_collect()
            .await
            .with_context(|| format!("cannot list the addresses of {}", self.name))?;
        for message in held.into_iter().filter(|message| holds(message, address)) {
            match self.handle.address().del(message).execute().await {
                Err(error) if !is(&error, Errno::ADDRNOTAVAIL) => {
                    return Err(error).with_context(|| format!("cannot take {address} off {}", self.name));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The kernel says `IFA_LOCAL` of IPv4, and of IPv6 `IFA_ADDRESS` alone.
fn holds(message: &AddressMessage, address: IpAddr) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Local(local) => *local == address,
        AddressAttribute::Address(local) => address.is_ipv6() && *local == address,
        _ => false,
    })
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

    /// How often the node has both of them.
    fn held() -> [usize; 2] {
        let count =
            |family: &str, address: &str| ip(&[family, "address", "show", "lo"]).matches(address).count();
        [count("-4", "169.254.2.1/32"), count("-6", "fd6b:7975:7274::1/128 scope global deprecated")]
    }

    async fn until_held(expected: [usize; 2]) {
        let there = async {
            while held() != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(LOOK_EVERY / 2, there).await;
        assert!(outcome.is_ok(), "{:?}, not {expected:?}", held());
    }

    fn disable_ipv6(disabled: bool) {
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", u8::from(disabled).to_string()).unwrap();
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_the_address_is_put_back_whoever_takes_it_away_and_goes_when_it_is_removed() {
        add().await.unwrap();
        assert_eq!(held(), [1, 0], "nobody wants the second one");
        let stop = CancellationToken::new();
        let ipv6 = watch::Sender::new(false);
        let holder = tokio::spawn(hold_addresses(ipv6.subscribe(), stop.clone()));
        // Whether it listens already or not.
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held([1, 0]).await;
        ip(&["address", "flush", "dev", "lo", "scope", "global"]);
        until_held([1, 0]).await;
        // Killed or stopped, the address stays, and the next one finds it.
        holder.abort();
        assert!(holder.await.unwrap_err().is_cancelled());
        assert_eq!(held(), [1, 0]);
        let holder = tokio::spawn(hold_addresses(ipv6.subscribe(), stop.clone()));
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held([1, 0]).await;
        stop.cancel();
        holder.await.unwrap().unwrap();
        assert_eq!(held(), [1, 0]);
        for _ in 0..2 {
            remove().await.unwrap();
            assert_eq!(held(), [0, 0]);
        }
        assert!(ip(&["-4", "address", "show", "lo"]).contains("127.0.0.1/8"));
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_the_ipv6_address_is_there_while_it_is_wanted_and_comes_back_like_the_other() {
        add().await.unwrap();
        let (stop, ipv6) = (CancellationToken::new(), watch::Sender::new(false));
        let holder = tokio::spawn(hold_addresses(ipv6.subscribe(), stop.clone()));
        ipv6.send_replace(true);
        until_held([1, 1]).await;
        ip(&["address", "del", "fd6b:7975:7274::1/128", "dev", "lo"]);
        until_held([1, 1]).await;
        ip(&["-6", "address", "flush", "dev", "lo", "scope", "global"]);
        until_held([1, 1]).await;
        // The kernel takes IPv6 addresses along, and does not give them back.
        ip(&["link", "set", "lo", "down"]);
        until_held([1, 1]).await;
        // One that is not allowed any is none of IPv4's business.
        disable_ipv6(true);
        until_held([1, 0]).await;
        ip(&["address", "del", "169.254.2.1/32", "dev", "lo"]);
        until_held([1, 0]).await;
        disable_ipv6(false);
        let back = tokio::time::timeout(2 * LOOK_EVERY, async {
            while held() != [1, 1] {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        back.await.expect("it is found by looking");
        ipv6.send_replace(false);
        until_held([1, 0]).await;
        ipv6.send_replace(true);
        until_held([1, 1]).await;
        stop.cancel();
        holder.await.unwrap().unwrap();
        assert_eq!(held(), [1, 0], "the program that is called next may know one alone");
        ip(&["address", "add", "fd6b:7975:7274::1/128", "dev", "lo"]);
        remove().await.unwrap();
        assert_eq!(held(), [0, 0], "of one that was killed");
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root and ip"]
    async fn kernel_without_ipv6_the_ipv4_address_is_held_all_the_same() {
        disable_ipv6(true);
        add().await.unwrap();
        assert_eq!(held(), [1, 0]);
        remove().await.unwrap();
        disable_ipv6(false);
        assert_eq!(held(), [0, 0]);
    }
}
