//! The holder of the way in: keeps the table `inet yurt-edge` in the kernel as the hub wants it.
//!
//! It runs in `yurtd address`, with the hub's address, and has no other input than the hub's file and the kernel's
//! messages. What was wanted last stays wanted: while the hub restarts or comes back from a crash systemd holds its
//! sockets, and connections wait there. The table goes with the holder when that is told to stop, and with the unit when it
//! was killed (`yurtd address remove`).
//!
//! ```text
//! table inet yurt-edge {
//!   set services4 { type ipv4_addr . inet_service; elements = { 10.96.0.1 . 443 } }
//!   set past4     { type ipv4_addr; elements = { 10.244.1.5, … } }
//!   set services6, past6: the same of IPv6; each family's where the Service has an address of it
//!   chain prerouting { type nat hook prerouting priority -110;  # pods
//!     meta nfproto ipv4 meta l4proto tcp ip daddr . tcp dport @services4 ip saddr != @past4 dnat ip to 169.254.2.1:10268
//!     meta nfproto ipv6 … @services6 ip6 saddr != @past6 dnat ip6 to [fd6b:7975:7274::1]:10268 }
//!   chain output     { type nat hook output priority -110;      # the host itself, if all of it may
//!     the same but for the sources }
//! }
//! ```
//!
//! `dnat`, not `redirect`: that takes the address of the interface by which a connection came, and a bridge or a veth may
//! have none. The priority is before kube-proxy's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names;
use yurt_node::nft::{Family, Held, NftError};
use yurt_node::stamp::Stamp;

use super::Places;
use super::document::{DocumentError, Told, Wanted};

/// How soon a change of the hub's file is followed, and what somebody did to the table put right. A look costs one
/// message while nobody's rules change.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the kernel is tried in each family, and tried again when what went wrong says nothing of it. The unit has ten
/// seconds to start.
const TRIED_WITHIN: Duration = Duration::from_secs(3);
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Addresses for documentation (RFC 5737, RFC 3849), to which nobody connects.
const NOBODYS_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODYS_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Tries whether the kernel can have the table at all, and says so to the hub, which starts afterwards. `no_ipv6` is why
/// the node can have no IPv6 address, if so.
pub(crate) async fn try_out(places: &Places, no_ipv6: Option<String>) {
    let unable = tried(NOBODYS_IPV4.into()).await;
    let unable_ipv6 = match no_ipv6 {
        None => tried(NOBODYS_IPV6.into()).await,
        why => why,
    };
    if let Some(error) = &unable {
        tracing::warn!(error, "the kernel cannot lead pods to the hub at the Service's address");
    }
    if let Some(error) = &unable_ipv6 {
        // Most clusters have no use for it.
        tracing::info!(error, "nor could it at an IPv6 address");
    }
    tell(places, &Told { unable, unable_ipv6, ..Told::default() });
}

/// Why the kernel cannot have the table for a Service of this address.
async fn tried(service: IpAddr) -> Option<String> {
    let mut last = None;
    let tries = async {
        loop {
            match trial(service).await {
                // Somebody changed the rules meanwhile, or something is short.
                Err(error) if error.is_passing() => last = Some(error.to_string()),
                outcome => return outcome.err().map(|error| error.to_string()),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    };
    match tokio::time::timeout(TRIED_WITHIN, tries).await {
        Ok(unable) => unable,
        Err(_) => Some(last.unwrap_or_else(|| "the kernel does not answer".to_owned())),
    }
}

async fn trial(service: IpAddr) -> Result<(), NftError> {
    let nobodys = BTreeSet::from([SocketAddr::new(service, names::HUB_POD_PORT)]);
    let mut held = Held::open(names::NFT_EDGE_TABLE)?;
    if let Some(table) = Wanted::new(nobodys, BTreeSet::new(), true).table() {
        held.put(table).await?;
    }
    held.remove().await
}

/// Whether the hub last wanted its IPv6 address on the node.
pub(crate) fn wants_ipv6(places: &Places) -> bool {
    matches!(Wanted::read(&places.wanted()), Ok(Some(wanted)) if wanted.ipv6)
}

/// Takes the table away; nothing to do when there is none.
///
/// # Errors
///
/// When the kernel refuses that.
pub(crate) async fn remove() -> Result<(), NftError> {
    Held::open(names::NFT_EDGE_TABLE)?.remove().await
}

/// Keeps the table until `stop`, and takes it away then; says whether the hub wants its IPv6 address on the node.
pub(crate) async fn run(places: &Places, ipv6: watch::Sender<bool>, stop: CancellationToken) {
    let mut holder = Holder::new(places, ipv6);
    loop {
        holder.turn().await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    // The address goes with the unit, and by now the program that takes it away may be one that knows no table.
    if let Err(error) = remove().await {
        tracing::error!(%error, "the table could not be removed");
    }
}

struct Holder<'a> {
    places: &'a Places,
    held: Option<Held>,
    read: Option<Stamp>,
    wanted: Option<Wanted>,
    /// Nothing is wanted, and nothing is there.
    cleared: bool,
    told: Told,
    /// Who holds the addresses is told by this.
    ipv6: watch::Sender<bool>,
}

impl<'a> Holder<'a> {
    fn new(places: &'a Places, ipv6: watch::Sender<bool>) -> Self {
        let told = Told::read(&places.told()).ok().flatten().unwrap_or_default();
        Self { places, held: None, read: None, wanted: None, cleared: false, told, ipv6 }
    }

    async fn turn(&mut self) {
        self.read();
        let Some(wanted) = self.wanted.clone() else { return };
        self.ipv6.send_if_modified(|ipv6| std::mem::replace(ipv6, wanted.ipv6) != wanted.ipv6);
        let outcome = self.place(&wanted).await;
        let error = outcome.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| self.told.error != error) {
            tracing::error!(error, "pods are not led to the hub as they should be; trying again");
        }
        let in_place = if error.is_none() { Some(wanted) } else { None };
        // That nothing could be taken away says nothing of what the kernel can do.
        let holds = |family| in_place.as_ref().is_some_and(|wanted: &Wanted| wanted.leads(family));
        let unable = self.told.unable.clone().filter(|_| !holds(Family::V4));
        let unable_ipv6 = self.told.unable_ipv6.clone().filter(|_| !holds(Family::V6));
        let told = Told { unable, unable_ipv6, in_place, error };
        if told != self.told {
            tell(self.places, &told);
            self.told = told;
        }
    }

    /// Takes what the hub wants now. What it wanted stays when there is no file (it was stopped) or none that can be
    /// understood.
    fn read(&mut self) {
        let path = self.places.wanted();
        let Some(stamp) = Stamp::of(&path).filter(|stamp| self.read.as_ref() != Some(stamp)) else { return };
        self.take(stamp, Wanted::read(&path));
    }

    /// Takes what was read of the file when it was this one.
    fn take(&mut self, stamp: Stamp, read: Result<Option<Wanted>, DocumentError>) {
        match read {
            Ok(Some(wanted)) => {
                if !self.wanted.as_ref().is_some_and(|before| before.says(&wanted)) {
                    tracing::info!(
                        services = ?wanted.services, excluded = wanted.past.len(), host = wanted.host, ipv6 = wanted.ipv6,
                        "the way in"
                    );
                }
                self.wanted = Some(wanted);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "what the hub wants is not followed, what it wanted stays");
                if matches!(error, DocumentError::Disk(_)) {
                    // Of this moment; the file may be good.
                    return;
                }
            }
        }
        self.read = Some(stamp);
    }

    /// The kernel has what is wanted, or the reason why not.
    async fn place(&mut self, wanted: &Wanted) -> Result<(), NftError> {
        if self.held.is_none() {
            self.held = Some(Held::open(names::NFT_EDGE_TABLE)?);
        }
        let Some(held) = &mut self.held else { return Ok(()) };
        let Some(table) = wanted.table() else {
            if !self.cleared {
                held.remove().await?;
                self.cleared = true;
            }
            return Ok(());
        };
        self.cleared = false;
        if held.placed() == Some(&table) {
            if held.is_whole().await? {
                return Ok(());
            }
            tracing::warn!("somebody changed the table {}; putting it back", names::NFT_EDGE_TABLE);
        }
        held.put(table).await
    }
}

fn tell(places: &Places, told: &Told) {
    if let Err(error) = told.write(&places.told()) {
        tracing::warn!(%error, "the hub cannot be told how the way in is");
    }
}

#[cfg(test)]
mod tests;
