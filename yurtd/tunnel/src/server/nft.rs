//! The server's nftables table: connections to edge kubelets → the intercept port.
//!
//! ```text
//! table inet yurt {
//!   set kubelets4 { type ipv4_addr . inet_service; elements = { 192.168.0.100 . 10250, … } }
//!   set kubelets6 { type ipv6_addr . inet_service; … }
//!   chain output     { type nat hook output priority -110; RULES }      # the API server, host network
//!   chain prerouting { type nat hook prerouting priority -110; RULES }  # pods on this node: metrics-server, Prometheus
//! }
//! RULES: meta nfproto ipv4 meta l4proto tcp ip daddr . tcp dport @kubelets4 redirect to :10264
//!        meta nfproto ipv6 meta l4proto tcp ip6 daddr . tcp dport @kubelets6 redirect to :10264
//! ```
//!
//! The priority is before kube-proxy's and everybody else's NAT. The table is replaced in one transaction: at
//! no time is there half of it. What somebody else took away of it (firewall managers flush everything when they
//! reload), the table, a rule, an address, is put back within [`CHECK_EVERY`].

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_node::nft::{Action, Chain, Family, Held, Hook, Match, NftError, Rule, Set, Table};

use super::nodes::Endpoints;

/// How often to look whether the table is still there, and to try again after a failure.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// The table in the kernel.
pub(super) struct Redirect {
    held: Held,
    name: &'static str,
    port: u16,
}

impl Redirect {
    /// A table that redirects to `port`; nothing is in the kernel yet.
    ///
    /// # Errors
    ///
    /// [`NftError`].
    pub(super) fn new(name: &'static str, port: u16) -> Result<Self, NftError> {
        Ok(Self { held: Held::open(name)?, name, port })
    }

    /// Puts the table with exactly these addresses in the place of the one that is there.
    ///
    /// # Errors
    ///
    /// [`NftError`], without `CAP_NET_ADMIN` for example.
    async fn replace(&mut self, endpoints: &Endpoints) -> Result<(), NftError> {
        let addresses = endpoints.addresses();
        let set = |name, family| Set::of_endpoints(name, family, addresses.iter().copied());
        let rule = |family, set| Rule {
            family,
            matches: vec![Match::DestinationIn(set)],
            action: Action::Redirect(self.port),
        };
        let rules = vec![rule(Family::V4, "kubelets4"), rule(Family::V6, "kubelets6")];
        let table = Table {
            name: self.name,
            sets: vec![set("kubelets4", Family::V4), set("kubelets6", Family::V6)],
            chains: [Hook::Output, Hook::Prerouting].map(|hook| Chain { hook, rules: rules.clone() }).into(),
        };
        self.held.put(table).await
    }
}

/// Keeps the table equal to the endpoints until `stop`, then takes it away.
pub(super) async fn keep(
    mut table: Redirect,
    mut endpoints: watch::Receiver<Option<Endpoints>>,
    stop: CancellationToken,
) {
    // What a server before this one has left stays in place until the nodes are known.
    let mut in_place: Option<Endpoints> = None;
    loop {
        if in_place.is_some() {
            match table.held.is_whole().await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("somebody changed the redirect rules; putting them back");
                    in_place = None;
                }
                Err(error) => tracing::warn!(%error, "cannot see whether the redirect rules are in place"),
            }
        }
        let wanted = endpoints.borrow_and_update().clone();
        if let Some(wanted) = wanted
            && in_place.as_ref() != Some(&wanted)
        {
            in_place = match table.replace(&wanted).await {
                Ok(()) => {
                    tracing::info!(kubelets = wanted.addresses().len(), "redirect rules in place");
                    Some(wanted)
                }
                Err(error) => {
                    tracing::error!(%error, "cannot set the redirect rules; trying again");
                    None
                }
            };
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = endpoints.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
    match table.held.remove().await {
        Ok(()) => tracing::info!("redirect rules removed"),
        Err(error) => tracing::error!(%error, "cannot remove the redirect rules"),
    }
}

/// These change the network namespace they run in, so they are run in one of their own:
/// `ip netns add NS; ip netns exec NS TEST-BINARY --ignored kernel_`.
#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::server::intercept::original_destination;

    const V4: &str = "192.168.0.100:10250";
    const V6: &str = "[fd00::100]:10350";

    fn endpoints() -> Endpoints {
        Endpoints::from([(V4.parse().unwrap(), "a"), (V6.parse().unwrap(), "b")])
    }

    fn ip(arguments: &str) {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    fn ruleset() -> String {
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root, ip and nft"]
    async fn kernel_redirects_the_set_and_nothing_else_and_owns_the_table() {
        ip("link set lo up");
        ip("link add lan0 type veth peer name lan1");
        ip("link set lan1 up");
        ip("link set lan0 up");
        ip("address add 192.168.0.1/24 dev lan0");
        ip("address add fd00::1/64 dev lan0 nodad");
        let v4 = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = crate::server::listeners::bind(SocketAddr::from(([0; 16], port)), true).unwrap();

        let mut table = Redirect::new("yurt", port).unwrap();
        assert!(!table.held.is_whole().await.unwrap());
        table.held.remove().await.unwrap();
        table.replace(&endpoints()).await.unwrap();
        table.replace(&endpoints()).await.unwrap();
        assert!(table.held.is_whole().await.unwrap());
        println!("{}", ruleset());

        for (listener, address) in [(&v4, V4), (&v6, V6)] {
            let address: SocketAddr = address.parse().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            client.unwrap();
            assert_eq!(original_destination(&accepted.unwrap().0).unwrap(), address);
        }
        // Another port of the same address, another address with the same port: not ours.
        for other in ["192.168.0.100:22", "192.168.0.101:10250"] {
            let connect = TcpStream::connect(other);
            assert!(!matches!(tokio::time::timeout(Duration::from_millis(300), connect).await, Ok(Ok(_))));
        }
        // Somebody who found the port.
        let (client, accepted) = tokio::join!(TcpStream::connect(("127.0.0.1", port)), v4.accept());
        client.unwrap();
        let found = original_destination(&accepted.unwrap().0);
        assert!(found.is_err() || found.is_ok_and(|to| endpoints().node(to).is_none()));

        // Firewall managers flush everything when they reload; a person may take away less.
        for change in [
            "flush ruleset",
            "flush chain inet yurt output",
            "flush set inet yurt kubelets4",
            "add table inet yurt { flags dormant; }",
            "insert rule inet yurt output accept",
        ] {
            let changed = std::process::Command::new("nft").arg(change).status().unwrap();
            assert!(changed.success());
            assert!(!table.held.is_whole().await.unwrap(), "{change}");
            table.replace(&endpoints()).await.unwrap();
            assert!(table.held.is_whole().await.unwrap(), "{change}");
        }
        // What somebody else does elsewhere is none of ours.
        assert!(std::process::Command::new("nft").arg("add table ip other").status().unwrap().success());
        assert!(table.held.is_whole().await.unwrap());
        assert!(std::process::Command::new("nft").arg("delete table ip other").status().unwrap().success());

        table.replace(&Endpoints::default()).await.unwrap();
        assert!(!ruleset().contains("192.168.0.100"));
        table.held.remove().await.unwrap();
        assert_eq!(ruleset(), "");
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root, ip and nft"]
    async fn kernel_takes_ten_thousand_nodes_in_one_transaction() {
        let mut table = Redirect::new("yurt-many", 10264).unwrap();
        let address = |n: u32| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 10250));
        let all: Endpoints = (0..10_000).map(|n| (address(n), "a")).collect();
        table.replace(&all).await.unwrap();
        assert_eq!(ruleset().matches(". 10250").count(), 10_000);
        assert!(table.held.is_whole().await.unwrap());
        table.held.remove().await.unwrap();
    }
}
