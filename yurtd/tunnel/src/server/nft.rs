//! The server's nftables table: connections to edge kubelets → the intercept port.
//!
//! ```text
//! table inet yurt {
//!   set kubelets4 { type ipv4_addr . inet_service; elements = { 192.168.0.100 . 10250, … } }
//!   set kubelets6 { type ipv6_addr . inet_service; … }
//!   chain output     { type nat hook output priority -110; … }      # the API server, host network
//!     meta nfproto ipv4 meta l4proto tcp meta mark != 0x2000 ip daddr . tcp dport @kubelets4 redirect to :10264
//!   chain prerouting { type nat hook prerouting priority -110; … }  # pods on this node: metrics-server, Prometheus
//!     meta nfproto ipv4 meta l4proto tcp ip daddr . tcp dport @kubelets4 dnat ip to 10.80.0.2:10264
//! }                                                                  # and the same for IPv6
//! ```
//!
//! The priority is before kube-proxy's and everybody else's NAT. What comes from elsewhere is not `redirect`ed: that takes
//! the address of the interface by which it came, which a pod's end of Calico, Cilium or AWS does not have, and the kernel
//! then drops it. The mark is that of the server's [own connections](super::direct).
//!
//! The table is replaced in one transaction: at no time is there half of it. What somebody else took away of it (firewall
//! managers flush everything when they reload), the table, a rule, an address, is put back within [`CHECK_EVERY`]. How it
//! stands decides whether the server is ready.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::status::{RedirectState, RedirectStatus};
use yurt_node::nft::{Action, Chain, Family, Held, Hook, Match, NftError, Rule, Set, Table};

use super::direct::{self, source_towards};
use super::nodes::Endpoints;

/// How often to look whether the table is still there, and to try again after a failure.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// The table in the kernel.
pub(super) struct Redirect {
    held: Held,
    name: &'static str,
    port: u16,
}

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    endpoints: Endpoints,
    /// This host's address as edge nodes of a family would see it, where a way leads to them: where pods' connections go.
    host: [Option<SocketAddr>; 2],
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
    async fn replace(&mut self, wanted: &Wanted) -> Result<(), NftError> {
        let addresses = wanted.endpoints.addresses();
        let families = [(Family::V4, "kubelets4"), (Family::V6, "kubelets6")];
        let sets = families.map(|(family, name)| Set::of_endpoints(name, family, addresses.iter().copied()));
        let output = families.map(|(family, set)| Rule {
            family,
            matches: vec![Match::MarkIsNot(direct::MARK), Match::DestinationIn(set)],
            action: Action::Redirect(self.port),
        });
        let here = |host: SocketAddr| Action::Dnat(SocketAddr::new(host.ip(), self.port));
        let prerouting = [0, 1].map(|at| Rule {
            family: families[at].0,
            matches: vec![Match::DestinationIn(families[at].1)],
            action: wanted.host[at].map_or(Action::Redirect(self.port), here),
        });
        let chains = vec![
            Chain { hook: Hook::Output, rules: output.into() },
            Chain { hook: Hook::Prerouting, rules: prerouting.into() },
        ];
        self.held.put(Table { name: self.name, sets: sets.into(), chains }).await
    }
}

impl Wanted {
    fn now(endpoints: &Endpoints) -> Self {
        let some = |is_family: fn(&SocketAddr) -> bool| endpoints.all().find(is_family);
        let host = [some(SocketAddr::is_ipv4), some(SocketAddr::is_ipv6)]
            .map(|kubelet| source_towards(kubelet?).ok().map(|host| SocketAddr::new(host.ip(), 0)));
        Self { endpoints: endpoints.clone(), host }
    }
}

/// How a redirect stands that nobody has tried to put into the kernel yet.
pub(super) fn waiting(server: &str) -> RedirectStatus {
    RedirectStatus {
        server: server.to_owned(),
        state: RedirectState::Waiting,
        kubelets: 0,
        repaired: 0,
        since: now(),
        message: "the cluster's nodes are not known yet".to_owned(),
    }
}

fn now() -> String {
    let now = Timestamp::now();
    // Fractions of a second say nothing to a reader.
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Says how it stands, if that is something new.
pub(super) fn say(
    told: &watch::Sender<RedirectStatus>,
    state: RedirectState,
    message: &str,
    kubelets: usize,
) {
    let kubelets = u32::try_from(kubelets).unwrap_or(u32::MAX);
    told.send_if_modified(|status| {
        let changed = (status.state, &*status.message) != (state, message);
        if changed {
            (status.state, status.message, status.since) = (state, message.to_owned(), now());
        }
        let other = std::mem::replace(&mut status.kubelets, kubelets) != kubelets;
        changed || other
    });
}

/// Keeps the table equal to the endpoints until `stop`, then takes it away. `told` says how it stands.
pub(super) async fn keep(
    mut table: Redirect,
    mut endpoints: watch::Receiver<Option<Endpoints>>,
    told: watch::Sender<RedirectStatus>,
    stop: CancellationToken,
) {
    // What a server before this one has left stays in place until the nodes are known.
    let mut in_place: Option<Wanted> = None;
    loop {
        if let Some(placed) = &in_place {
            match table.held.is_whole().await {
                Ok(true) => {
                    say(&told, RedirectState::InPlace, "", placed.endpoints.len());
                }
                Ok(false) => {
                    tracing::warn!("somebody changed the redirect rules; putting them back");
                    told.send_modify(|status| status.repaired += 1);
                    in_place = None;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot see whether the redirect rules are in place");
                    let message = format!("whether the rules are in place cannot be seen: {error}");
                    say(&told, RedirectState::Failing, &message, placed.endpoints.len());
                }
            }
        }
        let wanted = endpoints.borrow_and_update().as_ref().map(Wanted::now);
        if let Some(wanted) = wanted
            && in_place.as_ref() != Some(&wanted)
        {
            in_place = match table.replace(&wanted).await {
                Ok(()) => {
                    tracing::info!(kubelets = wanted.endpoints.len(), "redirect rules in place");
                    say(&told, RedirectState::InPlace, "", wanted.endpoints.len());
                    Some(wanted)
                }
                Err(error) => {
                    tracing::error!(%error, "cannot set the redirect rules; trying again");
                    say(&told, RedirectState::Failing, &error.to_string(), 0);
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
        table.replace(&Wanted::now(&endpoints())).await.unwrap();
        table.replace(&Wanted::now(&endpoints())).await.unwrap();
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
            table.replace(&Wanted::now(&endpoints())).await.unwrap();
            assert!(table.held.is_whole().await.unwrap(), "{change}");
        }
        // What somebody else does elsewhere is none of ours.
        assert!(std::process::Command::new("nft").arg("add table ip other").status().unwrap().success());
        assert!(table.held.is_whole().await.unwrap());
        assert!(std::process::Command::new("nft").arg("delete table ip other").status().unwrap().success());

        table.replace(&Wanted::now(&Endpoints::default())).await.unwrap();
        assert!(!ruleset().contains("192.168.0.100"));
        table.held.remove().await.unwrap();
        assert_eq!(ruleset(), "");
    }

    /// A peer in a namespace of its own, behind a veth whose end here has no address, as Calico makes them.
    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root, ip and nft"]
    async fn kernel_leads_what_comes_by_an_interface_without_an_address() {
        let peer = format!("yurt-peer-{}", std::process::id());
        ip("link set lo up");
        ip("address add 10.99.0.1/32 dev lo");
        ip("link add host0 type veth peer name pod0");
        ip(&format!("netns add {peer}"));
        ip(&format!("link set pod0 netns {peer}"));
        let inside = |arguments: &str| ip(&format!("netns exec {peer} ip {arguments}"));
        ip("link set host0 up");
        for arguments in [
            "link set lo up",
            "link set pod0 up",
            "address add 10.99.0.2/32 dev pod0",
            "route add 169.254.1.1 dev pod0 scope link",
            "route add default via 169.254.1.1 dev pod0",
        ] {
            inside(arguments);
        }
        ip("route add 10.99.0.2/32 dev host0");
        // The way to the node; here it leads nowhere.
        ip("route add 192.168.0.0/24 dev lo src 10.99.0.1");
        let shown = std::process::Command::new("ip").args(["-br", "link", "show", "host0"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let hardware = shown.split_whitespace().nth(2).unwrap();
        inside(&format!("neigh add 169.254.1.1 lladdr {hardware} dev pod0"));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut table = Redirect::new("yurt", port).unwrap();
        table.replace(&Wanted::now(&endpoints())).await.unwrap();
        println!("{}", ruleset());
        let connect = format!("netns exec {peer} timeout 3 bash -c exec</dev/tcp/192.168.0.100/10250");
        let caller = tokio::task::spawn_blocking(move || {
            std::process::Command::new("ip").args(connect.split(' ')).status().unwrap()
        });
        let accepted = tokio::time::timeout(Duration::from_secs(3), listener.accept()).await;
        let stream = accepted.expect("the kernel dropped it").unwrap().0;
        assert_eq!(original_destination(&stream).unwrap(), V4.parse().unwrap());
        assert!(caller.await.unwrap().success());
        table.held.remove().await.unwrap();
        ip(&format!("netns del {peer}"));
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root, ip and nft"]
    async fn kernel_lets_our_own_connections_by() {
        ip("link set lo up");
        ip("address add 192.168.0.100/32 dev lo");
        let kubelet = TcpListener::bind(V4).await.unwrap();
        let intercept = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let mut table = Redirect::new("yurt", intercept.local_addr().unwrap().port()).unwrap();
        table.replace(&Wanted::now(&endpoints())).await.unwrap();
        let direct = std::sync::Arc::<direct::Direct>::default();
        let (dialled, accepted) = tokio::join!(direct.dial(V4.parse().unwrap()), kubelet.accept());
        let (stream, peer) = accepted.unwrap();
        assert!(direct.is_ours(peer));
        drop((dialled.unwrap(), stream));
        assert!(!direct.is_ours(peer));
        // Everybody else's are led.
        let (client, accepted) = tokio::join!(TcpStream::connect(V4), intercept.accept());
        client.unwrap();
        assert_eq!(original_destination(&accepted.unwrap().0).unwrap(), V4.parse().unwrap());
        table.held.remove().await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own, root, ip and nft"]
    async fn kernel_takes_a_hundred_thousand_nodes_in_one_transaction() {
        let mut table = Redirect::new("yurt-many", 10264).unwrap();
        let address = |n: u32| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 10250));
        let all: Endpoints = (0..100_000).map(|n| (address(n), "a")).collect();
        table.replace(&Wanted::now(&all)).await.unwrap();
        assert_eq!(ruleset().matches(". 10250").count(), 100_000);
        assert!(table.held.is_whole().await.unwrap());
        table.held.remove().await.unwrap();
    }
}
