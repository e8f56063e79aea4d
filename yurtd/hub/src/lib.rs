//! The edge hub: everything on an edge node that talks to Kubernetes talks to it.
//!
//! While the link is up it is a faithful proxy that costs less uplink than none; while it is down it is the API server,
//! as far as it can honestly be one. A LIST that kubelet sends travels
//! `serve::listener → request::classify → request::authorise → view → store → serve::respond` and never turns back.
//!
//! Order at start: what needs no network first, so that after a reboot without a link the hub answers from its store
//! within milliseconds.

pub mod address;
mod api_servers;
mod caller;
mod certificate;
mod clock;
mod cluster;
mod doctor;
mod filter;
#[doc(hidden)]
pub mod fuzzing;
mod last_read;
mod limits;
mod link;
mod node_client;
mod offline;
mod own_node;
mod replica;
mod request;
mod routes;
pub mod serve;
mod service_addresses;
mod store;
mod upstream;
mod view;
mod way_in;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::doctor::TunnelSession;
use yurt_node::config::EdgeConfig;
use yurt_node::link::LinkState;
use yurt_node::pki;
use yurt_node::supervise::Tasks;

use self::api_servers::ApiServers;
use self::caller::Permit;
use self::certificate::Certificates;
use self::clock::Boot;
use self::filter::Filters;
use self::last_read::LastRead;
use self::limits::{Accounts, Observed};
use self::link::Link;
use self::node_client::NodeClient;
use self::offline::events::replay;
use self::offline::{Offline, discovery, overlay, rebase};
use self::replica::Views;
use self::request::Authenticator;
use self::request::authenticate::NodeVerifier;
use self::request::issuer::Issuer;
use self::request::tokens::Tokens;
use self::serve::health::{self, Health};
use self::serve::ipv6::{self, Ipv6Listener};
use self::serve::listener::Admission;
use self::serve::metrics::Metrics;
use self::serve::sockets::Sockets;
use self::serve::{Hub, listener, server_tls};
use self::service_addresses::ServiceAddresses;
use self::store::{Opened, Store};
use self::upstream::{Upstream, UpstreamConfig};
use self::view::Lookup;
use self::way_in::{Grounds, Keeper as WayInKeeper, State};
use self::wire::{Encoding, Resource};

pub use self::doctor::{Came, Doctor};
pub use self::serve::health::Readiness;
pub use self::way_in::Places;

/// Names this boot of the node: from the unit, which may not read the kernel's own file.
const BOOT_VARIABLE: &str = "YURT_BOOT_ID";
const BOOT_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Says how the sessions of the tunnel agent fare.
pub type TellSessions = Arc<dyn Fn() -> Vec<TunnelSession> + Send + Sync>;

/// What is around the hub on its node, beside its state.
pub struct Surroundings {
    /// Where the holder of its address is told who is to be led there.
    pub places: Places,
    /// When kubelet came to the hub.
    pub came: watch::Receiver<Came>,
    /// Where pods come to the hub in a cluster whose Service has an IPv6 address.
    pub ipv6: SocketAddr,
    /// How the sessions of the tunnel agent fare, which is none of the hub's; `/readyz` shows it.
    pub tunnel: TellSessions,
}

/// The running hub. Its tasks belong to whoever started it.
pub struct Server {
    health: Arc<Health>,
    /// Names this boot of the node.
    boot: Arc<str>,
    api_servers: watch::Receiver<Vec<SocketAddr>>,
}

impl Server {
    /// Wires the hub and starts serving, as parts of `tasks`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or a socket not be used.
    pub async fn start(
        config: &EdgeConfig,
        state_dir: &Path,
        around: Surroundings,
        sockets: Sockets,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let stop = tasks.stop().clone();
        let node = &config.node_name;
        let client_ca = pki::read_certificates(&config.client_ca_file)?;
        let verifier = NodeVerifier::new(&client_ca, node)
            .with_context(|| format!("{} is no CA", config.client_ca_file.display()))?;
        let node_permit = Permit::of_node(verifier.user());

        let (store, opened) = Store::open(state_dir).context("cannot open the store")?;
        if let Opened::Replaced { set_aside, reason } = opened {
            tracing::error!(reason, set_aside = %set_aside.display(), "the store could not be used and was set aside");
        }
        // What answers from a damaged store must not go on: systemd starts the process again, which sets the store
        // aside and fills a new one.
        let (broken, writer_ended, stopped) = (store.broken(), store.writer_ended(), stop.clone());
        tasks.part("the store", async move {
            tokio::select! {
                () = stopped.cancelled() => Ok(()),
                () = broken.cancelled() => Err("it is damaged, or of another cluster; the next start sets it aside"),
                () = writer_ended.cancelled() => Err("its writer panicked"),
            }
        });
        let upstream_config = UpstreamConfig {
            servers: config.api_servers.clone(),
            ca_file: config.ca_file.clone(),
            client_certificate: config.client_certificate.clone(),
            client_key: config.client_key.clone(),
        };
        let (upstream, link) = Upstream::start(&upstream_config, tasks)?;
        // Without a name every boot is the same, and no kubelet is known to have ended with one.
        let boot = std::env::var(BOOT_VARIABLE).or_else(|_| std::fs::read_to_string(BOOT_FILE));
        let boot = boot.unwrap_or_default();
        let this_boot = Boot::new(&boot);
        let views = Views::load(&store, &upstream, &link, &node_permit, &this_boot, tasks)?;
        let own_node = views.own_node().clone();
        own_node.listens_at(&config.kubelet_address);
        let nodes = Resource::new("", "v1", "nodes");
        if let Lookup::Found { body, .. } = views.lookup(&node_permit, &nodes, None, node, &[Encoding::Json])
        {
            own_node.known(&body);
        }
        let client = NodeClient::new(upstream.clone());
        let publish = own_node::publish(own_node, client.clone(), link.clone(), stop.clone());
        tasks.part("the kubelet port in the Node's status", publish);
        let (for_client, for_link) = (client.clone(), link.clone());
        let servers =
            ApiServers::open(store.clone(), for_client, upstream.clone(), for_link, this_boot.clone());
        let api_servers = servers.known();
        tasks.part("the look for other API servers", servers.run(stop.clone()));
        let issuer = Issuer::open(store.clone(), client.clone(), link.clone(), node, &this_boot);
        let (keys, ended) = (issuer.clone(), stop.clone());
        tasks.part("the keys of the cluster's tokens", async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = keys.run() => {}
            }
        });
        let pods = views.clone();
        let has_pod = Box::new(move |uid: &str, user: &str| pods.has_pod(uid, user));
        let tokens =
            Tokens::open(store.clone(), client.clone(), link.clone(), tasks.clone(), issuer, has_pod).await;
        let ca = pki::read_certificates(&config.ca_file)?;
        let ca = ca.iter().map(|certificate| certificate.as_ref());
        let (guard, cluster) = cluster::Guard::new(store.clone(), client.clone(), link.clone(), node, ca);
        let guarded = stop.clone();
        tasks.part("the look at the cluster", async move {
            tokio::select! {
                () = guarded.cancelled() => {}
                () = guard.run() => {}
            }
        });
        let last_read = LastRead::of(store.clone(), this_boot, discovery::READ);
        let offline = Offline::open(store, views.clone(), node, &config.kubelet_version, boot.trim()).await;
        let offline = Arc::new(offline);
        let domain = config.cluster_domain.as_deref();
        let certificates = Certificates::open(state_dir, &config.ca_file, node, domain, SystemTime::now())
            .context("the hub has nothing to prove itself with")?;
        // Before anybody reads the Service.
        let seen = around.came.borrow().as_ref().ok().and_then(|course| course.way_in);
        let grounds = Grounds { asked: config.way_in, seen, boot: boot.trim(), state_dir };
        let last_known = certificates.service_addresses();
        let find = async || {
            let addresses = match last_known.is_empty() {
                true => service_addresses::find(&views, &node_permit, &client).await,
                false => last_known.clone(),
            };
            ipv6::reachable(addresses)
        };
        let chosen = way_in::choose(grounds, &around.places, find).await;
        let hub = Arc::new(Hub {
            authenticator: Authenticator::new(verifier, tokens, link.clone()),
            accounts: Accounts::new(),
            observed: Observed::default(),
            views,
            upstream: upstream.clone(),
            link: link.clone(),
            cluster,
            offline: offline.clone(),
            filters: Filters::new(&config.kubelet_version, certificates.ca(), chosen.way),
            metrics: Metrics::default(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });

        let known = watch::Sender::new(last_known);
        let service = known.subscribe();
        let ipv6 = Ipv6Listener::open(around.ipv6, known.subscribe());
        let learning = ServiceAddresses {
            views: hub.views.clone(),
            node: node_permit.clone(),
            client: client.clone(),
            link: link.clone(),
            known,
            endpoints: watch::Sender::default(),
            stop: stop.clone(),
        };
        let boot: Arc<str> = boot.trim().into();
        let way_in = WayInKeeper {
            views: hub.views.clone(),
            services: learning.endpoints.subscribe(),
            listening: ipv6.state(),
            came: around.came,
            ca: certificates.ca(),
            upstream,
            boot: boot.clone(),
            places: around.places,
            state: watch::Sender::new(State::new(chosen)),
            stop: stop.clone(),
        };
        let way_in_state = way_in.state.subscribe();
        tasks.part("the way in", way_in.run());
        tasks.part("the API server's addresses for pods", learning.run());
        let addresses = sockets.hub.iter().map(|socket| socket.local_addr().map(|address| address.ip()));
        let addresses: Vec<IpAddr> =
            addresses.collect::<Result<_, _>>().context("a hub socket has no address")?;
        let health = Arc::new(Health {
            hub: hub.clone(),
            node_ca: certificates.ca(),
            certificate: certificates.installed(),
            certificate_state: certificates.state(),
            node: (node_permit.clone(), node.clone()),
            addresses: addresses.clone(),
            listening: ipv6.state(),
            way_in: way_in_state,
            tunnel: around.tunnel,
        });
        let tls = Arc::new(server_tls::server_config(certificates.installed())?);
        tasks.part("the serving certificate", certificates.run(service, stop.clone()));
        let events = replay::run(offline.clone(), client.clone(), link.clone(), stop.clone());
        tasks.part("the queue of Events", events);
        let user = node_permit.identity().as_str().to_owned();
        let (online, end) = (link.clone(), stop.clone());
        let reading = discovery::run(offline.clone(), client.clone(), user, online, last_read, end);
        tasks.part("the reading of discovery", reading);
        let rebase = rebase::run(offline.clone(), client, link.clone(), node_permit.clone(), stop.clone());
        tasks.part("the replay of status patches", rebase);
        let overlay = overlay::run(offline.clone(), node_permit, stop.clone());
        tasks.part("the node's pods in EndpointSlices", overlay);
        let (writing, lost, end) = (offline.clone(), link.clone(), stop.clone());
        tasks.part("the writing of remembered answers", async move {
            writing.keep_written(&lost, &end).await;
        });
        tasks.passing(prewarm(offline, link.clone(), stop.clone()));
        tasks.passing(routes::watch(link, stop));

        // Of pods, whichever address they come to.
        let of_pods = Admission::new(false);
        for (socket, address) in sockets.hub.into_iter().zip(addresses) {
            let listener = TcpListener::from_std(socket).context("a hub socket cannot be used")?;
            let admission = if address.is_loopback() { Admission::new(true) } else { of_pods.clone() };
            tasks.part("the hub's listener", listener::serve(hub.clone(), listener, tls.clone(), admission));
        }
        tasks.part("the hub's IPv6 listener", ipv6.run(hub.clone(), tls, of_pods));
        if let Some(socket) = sockets.health {
            let listener = TcpListener::from_std(socket).context("the health socket cannot be used")?;
            tasks.part("the health port", health::serve(health.clone(), listener));
        }
        Ok(Self { health, boot, api_servers })
    }

    /// Whether the API servers can be reached, now and whenever it changes.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.health.hub.link.subscribe()
    }

    /// Where the cluster's API servers are, as it names them itself: what is on the disk, and then whenever it changes.
    pub fn api_servers(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.api_servers.clone()
    }

    /// Who looks at it for a person.
    pub fn doctor(&self) -> Doctor {
        Doctor { health: self.health.clone(), boot: self.boot.clone() }
    }

    /// What `/readyz` shows now.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Stores what is kept in memory for a while: the views' bookmarks. For when the tasks have ended.
    pub async fn save(&self) {
        if let Err(error) = self.health.hub.views.save().await {
            tracing::warn!(%error, "the last bookmarks could not be stored");
        }
    }
}

/// The views of kube-proxy, CoreDNS and of every identity with a pod on the node, followed again with their stored tokens
/// when the hub has restarted and the link is there.
async fn prewarm(offline: Arc<Offline>, link: Link, stop: CancellationToken) {
    let mut state = link.subscribe();
    let online = tokio::select! {
        () = stop.cancelled() => return,
        online = state.wait_for(|state| *state == LinkState::Online) => online.is_ok(),
    };
    if online {
        offline.prewarm();
    }
}
