//! Several servers: who does not have a node asks those that may.

use yurt_api::tunnel::{NodeName, PEER_PATH};

use super::handshake::knock;
use super::redirected::{KUBELET, intercept, quiet_kubelet, reset};
use super::*;
use crate::mux::session;
use crate::mux::{OpenFailure, Session};

const ANY: &str = "127.0.0.1:0";

impl World {
    /// Servers that know of each other, each of whom has a session with each.
    async fn servers<const N: usize>(&self, names: [&str; N]) -> [Server; N] {
        let servers =
            futures::future::join_all(names.map(|name| self.server_of(name, ANY.parse().unwrap()))).await;
        let servers: [Server; N] = servers.try_into().map_err(|_| "as many").unwrap();
        name_all(&servers.iter().collect::<Vec<_>>());
        for server in &servers {
            server.asks(N - 1).await;
        }
        servers
    }

    /// A session as a peer that nobody has heard of has it.
    async fn ask(&self, server: &Server) -> Asking {
        let serving = self.tunnel_ca.server(names::TUNNEL_SERVER_NAME);
        let stream = knock(self, server.address, &serving, to_peer_path).await.unwrap();
        let id = ServerId::new("master-9").unwrap();
        let greeting = session::greet_peer(stream, id, Settings::peer()).await.unwrap();
        assert_eq!(greeting.server(), server.registry.server());
        let (session, _requests, driver) = greeting.begin().await.unwrap();
        let driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(driver.run().await) }));
        Asking { session, _driver: driver }
    }
}

struct Asking {
    session: Session,
    _driver: AbortOnDropHandle<()>,
}

/// Tells each of them of all.
fn name_all(servers: &[&Server]) {
    let id = |server: &Server| server.registry.server().clone();
    let found: Found = servers.iter().map(|server| (id(server), vec![server.address])).collect();
    for server in servers {
        server.found.send_replace(found.clone());
    }
}

fn to_peer_path(request: &mut http::Request<()>) {
    *request.uri_mut() = format!("wss://x{PEER_PATH}").parse().unwrap();
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

impl Server {
    /// Waits until there are so many peers to ask.
    async fn asks(&self, count: usize) {
        eventually("it has sessions with its peers", || self.peers.connected() == count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_another_server_has_is_reached_as_if_it_were_here() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let _agent = start(world.agent("edge-1", b.address, address));
    b.connected("edge-1").await;
    assert_eq!(a.registry.statuses(), []);

    // The way of plain kubectl, and the one of the endpoint.
    let entry = intercept(&a, |_| Ok(KUBELET)).await;
    let data = noise(3_000_000, 5);
    let tcp = TcpStream::connect(entry).await.unwrap();
    let (length, sum) = soon("everything is back", exchange(tcp, &data)).await.unwrap();
    assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
    let streams = (0..50u8).map(|number| {
        let ways = a.ways.clone();
        async move {
            let data = noise(100_000 + usize::from(number), number);
            let (length, sum) = exchange(ways.dial("edge-1").await.unwrap(), &data).await.unwrap();
            assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
        }
    });
    soon("fifty at once", futures::future::join_all(streams)).await;
    eventually("no stream is left", || b.registry.streams() == 0).await;
}

#[tokio::test]
async fn a_caller_who_goes_ends_kubelets_connection_behind_another_server() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(true).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let _agent = start(world.agent("edge-1", b.address, address));
    b.connected("edge-1").await;
    let entry = intercept(&a, |_| Ok(KUBELET)).await;
    // A log that is followed, and a copy to a container that reads nothing, until nothing more can be sent.
    for (number, fill) in [false, true].into_iter().enumerate() {
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');
        let block = vec![7; 64 * 1024];
        let stuck = Duration::from_millis(300);
        while fill && tokio::time::timeout(stuck, tcp.write_all(&block)).await.is_ok() {}
        reset(tcp);
        eventually("no stream is left", || b.registry.streams() == 0).await;
        eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) == number + 1).await;
    }
}

#[tokio::test]
async fn a_server_that_dies_takes_its_streams_along_and_the_next_one_goes_through_a_third() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b, c] = world.servers(["cp-a", "cp-b", "cp-c"]).await;
    let _agent = start(world.agent("edge-1", b.address, address));
    let (of_c, _agent_of_c) = start(world.agent("edge-2", c.address, address));
    b.connected("edge-1").await;
    c.connected("edge-2").await;
    let mut through_b = a.ways.dial("edge-1").await.unwrap();
    let mut through_c = a.ways.dial("edge-2").await.unwrap();
    for stream in [&mut through_b, &mut through_c] {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    }

    b.kill().await;
    let killed = Instant::now();
    assert!(soon("the stream through it ends", through_b.read_u8()).await.is_err());
    let error = soon("an answer", a.ways.dial("edge-1")).await.unwrap_err();
    assert!(matches!(error, DialError::NotConnected(_)), "{error}");
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    // The agent comes to the third one.
    let _agent = start(world.agent("edge-1", c.address, address));
    c.connected("edge-1").await;
    let stream = soon("an answer", a.ways.dial("edge-1")).await.unwrap();
    assert_eq!(exchange(stream, b"again").await.unwrap().0, 5);
    // Nobody else's streams have noticed.
    through_c.write_all(b"y").await.unwrap();
    assert_eq!(soon("the echo", through_c.read_u8()).await.unwrap(), b'y');
    of_c.cancel();
    assert!(soon("the stream ends", through_c.read_u8()).await.is_err());
}

#[tokio::test]
async fn what_the_agent_behind_another_server_answers_is_what_the_caller_hears() {
    let world = World::new();
    let (address, kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let _agent = start(world.agent("edge-1", b.address, address));
    b.connected("edge-1").await;
    kubelet.abort();
    let _ = kubelet.await;
    let error = soon("an answer", a.ways.dial("edge-1")).await.unwrap_err();
    assert!(matches!(error, DialError::Rejected { code: OpenErrorCode::Refused, .. }), "{error}");
    assert!(matches!(a.ways.dial("edge-2").await.unwrap_err(), DialError::NotConnected(_)));
    // Nor is a name asked for that no node can have.
    assert!(matches!(a.ways.dial("../edge-1").await.unwrap_err(), DialError::NotConnected(_)));
}

#[tokio::test]
async fn a_stream_is_handed_on_once_and_a_peer_that_hands_it_back_is_refused() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let _agent = start(world.agent("edge-1", b.address, address));
    b.connected("edge-1").await;
    // A itself reaches the node through B, and leads nobody else there.
    a.ways.dial("edge-1").await.unwrap();
    let asking = world.ask(&a).await;
    for target in [Target::Session(node("edge-1")), Target::KubeletOf(node("edge-1"))] {
        let refused = soon("an answer", asking.session.open(target)).await.unwrap_err();
        assert!(matches!(refused, OpenFailure::Rejected { code: OpenErrorCode::NotHere, .. }), "{refused}");
    }
    // Nor is a server an agent, and an agent no server.
    let refused = asking.session.open(Target::Kubelet).await.unwrap_err();
    assert!(matches!(refused, OpenFailure::Rejected { code: OpenErrorCode::NotServed, .. }), "{refused}");
    let refused = b.registry.dial("edge-1", Target::KubeletOf(node("edge-2"))).await.unwrap_err();
    assert!(matches!(refused, DialError::Rejected { code: OpenErrorCode::NotServed, .. }), "{refused}");
    let asking = world.ask(&b).await;
    let stream = asking.session.open(Target::KubeletOf(node("edge-1"))).await.unwrap();
    assert_eq!(exchange(stream, b"once").await.unwrap().0, 4);
}

#[tokio::test]
async fn only_who_can_be_the_server_for_agents_may_ask_as_a_server() {
    let world = World::new();
    let server = world.server().await;
    let knock = |certificate: TestCertificate| {
        let (world, address) = (&world, server.address);
        async move { soon("an answer", knock(world, address, &certificate, to_peer_path)).await }
    };
    let name = names::TUNNEL_SERVER_NAME;
    assert!(knock(world.tunnel_ca.server(name)).await.is_ok());
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    for (what, certificate) in [
        ("another name", world.tunnel_ca.server("yurt-tunnel-server.default.svc")),
        ("the cluster's CA", world.cluster_ca.server(name)),
        ("somebody's CA", TestCa::new("tunnel").server(name)),
        ("no server's", world.tunnel_ca.issue(name, &[], &[name], client.clone())),
        (
            "expired",
            world.tunnel_ca.issue_until(name, &[], &[name], ExtendedKeyUsagePurpose::ServerAuth, 2020),
        ),
        ("an administrator", world.cluster_ca.issue("admin", &["system:masters"], &[name], client)),
    ] {
        assert!(knock(certificate).await.is_err(), "{what}");
    }
    // A node is let in, for what nodes do.
    assert_eq!(knock(world.cluster_ca.node("edge-1")).await.map(drop), Err("404 Not Found".into()));
    // What reads like a node's certificate is the cluster's to issue, and no tunnel CA's.
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let node = world.tunnel_ca.issue("system:node:edge-1", &["system:nodes"], &[name], serving);
    assert!(knock(node).await.is_err());
    // And a server is no node.
    let serving = world.tunnel_ca.server(name);
    let as_agent = handshake::knock(&world, server.address, &serving, |_| {}).await;
    assert_eq!(as_agent.map(drop), Err("404 Not Found".into()));
}

#[tokio::test]
async fn a_server_is_asked_at_its_own_address_alone() {
    let world = World::new();
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    // An address that leads to another server than the cluster says, to one of another CA, and to nobody.
    let other = World::new().server_of("cp-d", ANY.parse().unwrap()).await;
    let nobody = TcpListener::bind(ANY).await.unwrap().local_addr().unwrap();
    let id = |name: &str| ServerId::new(name).unwrap();
    let mut found = a.found.borrow().clone();
    found.insert(id("cp-c"), vec![b.address]);
    found.insert(id("cp-d"), vec![other.address]);
    found.insert(id("cp-e"), vec![nobody]);
    a.found.send_replace(found);
    for (name, why) in [("cp-c", "it is the server of node"), ("cp-d", "TLS"), ("cp-e", "cannot connect")] {
        eventually("it says why", || a.peers.fault(&id(name)).is_some_and(|fault| fault.contains(why))).await;
    }
    assert_eq!(a.peers.connected(), 1);
    assert_eq!(other.peers.connected(), 0);
}

#[tokio::test]
async fn servers_come_and_go() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let c = world.server_of("cp-c", ANY.parse().unwrap()).await;
    let _agent = start(world.agent("edge-1", c.address, address));
    c.connected("edge-1").await;
    assert!(matches!(a.ways.dial("edge-1").await.unwrap_err(), DialError::NotConnected(_)));
    name_all(&[&a, &b, &c]);
    a.asks(2).await;
    let stream = a.ways.dial("edge-1").await.unwrap();
    assert_eq!(exchange(stream, b"here").await.unwrap().0, 4);
    name_all(&[&a, &b]);
    a.asks(1).await;
    assert!(matches!(a.ways.dial("edge-1").await.unwrap_err(), DialError::NotConnected(_)));
    // One that is started again is asked again.
    let at = b.address;
    b.kill().await;
    a.asks(0).await;
    let b = world.server_of("cp-b", at).await;
    name_all(&[&a, &b]);
    a.asks(1).await;
    b.asks(1).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_holds_nobody_up() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let (silent, _silent) = silent_peer(&world, "cp-c").await;
    let mut found = a.found.borrow().clone();
    found.insert(ServerId::new("cp-c").unwrap(), vec![silent]);
    a.found.send_replace(found);
    a.asks(2).await;
    let asked = Instant::now();
    assert!(matches!(a.ways.dial("edge-1").await.unwrap_err(), DialError::NotConnected(_)));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    let _agent = start(world.agent("edge-1", b.address, address));
    b.connected("edge-1").await;
    let asked = Instant::now();
    a.ways.dial("edge-1").await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

/// A peer with which there is a session, and who answers nothing.
async fn silent_peer(world: &World, name: &str) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (chain, key) = world.tunnel_ca.server(names::TUNNEL_SERVER_NAME).chain_and_key();
    let tls = rustls::ServerConfig::builder_with_provider(yurt_node::pki::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let id = ServerId::new(name).unwrap();
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let stream = acceptor.accept(tcp).await.unwrap();
            let stream = crate::upgrade::server(stream, PEER_PATH).await.unwrap();
            let (_, (_session, _unanswered, driver)) =
                session::accept_peer(stream, id.clone(), Settings::peer()).await.unwrap();
            driver.run().await;
        }
    });
    (address, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn a_server_that_drains_leads_new_streams_to_another_and_lets_old_ones_end() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let servers: Vec<_> = [&a, &b].map(|server| server.address.to_string()).into();
    let config = AgentConfig { servers, ..world.agent("edge-1", a.address, address) };
    let _agent = start(config);
    a.connected("edge-1").await;
    b.connected("edge-1").await;
    let mut old = a.ways.dial("edge-1").await.unwrap();
    old.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", old.read_u8()).await.unwrap(), b'x');
    assert_eq!((a.registry.streams(), b.registry.streams()), (1, 0));

    a.stop.cancel();
    let drain = Drain { registry: a.registry.clone(), asked: a.asked.clone(), peers: a.peers.clone() };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let draining = AbortOnDropHandle::new(tokio::spawn(async move { drain.hand_over(deadline).await }));
    eventually("it takes no new streams", || !a.registry.has("edge-1")).await;
    let mut new = soon("a way", a.ways.dial("edge-1")).await.unwrap();
    assert_eq!((a.registry.streams(), b.registry.streams()), (1, 1));
    // Its peer does not come to it.
    eventually("the peer knows", || !b.peers.any()).await;
    for stream in [&mut old, &mut new] {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'y');
    }
    assert!(!draining.is_finished());
    drop(old);
    soon("nothing is left to wait for", draining).await.unwrap();
    a.kill().await;
    // Whose caller is gone with the server.
    assert!(soon("the stream ends", new.read_u8()).await.is_err());
    eventually("no stream is left", || b.registry.streams() == 0).await;
}

#[tokio::test]
async fn a_server_that_drains_waits_no_longer_than_it_may_and_not_at_all_without_peers() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b] = world.servers(["cp-a", "cp-b"]).await;
    let alone = world.server().await;
    let servers: Vec<_> = [&a, &alone].map(|server| server.address.to_string()).into();
    let _agent = start(AgentConfig { servers, ..world.agent("edge-1", a.address, address) });
    let (short, long) = (Duration::from_millis(300), PATIENCE * 2);
    for (server, limit, least) in [(&a, short, short), (&alone, long, Duration::ZERO)] {
        server.connected("edge-1").await;
        let _stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
        let Server { registry, asked, peers, .. } = server;
        let drain = Drain { registry: registry.clone(), asked: asked.clone(), peers: peers.clone() };
        server.stop.cancel();
        let begin = tokio::time::Instant::now();
        soon("an end", drain.hand_over(begin + limit)).await;
        assert!(begin.elapsed() >= least);
    }
    b.kill().await;
}

#[tokio::test]
async fn every_server_knows_which_ones_hold_a_node_and_whom_it_could_not_ask() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let [a, b, c] = world.servers(["cp-a", "cp-b", "cp-c"]).await;
    let (silent, _silent) = silent_peer(&world, "cp-d").await;
    let mut found = a.found.borrow().clone();
    found.insert(ServerId::new("cp-d").unwrap(), vec![silent]);
    a.found.send_replace(found);
    a.asks(3).await;
    let servers: Vec<_> = [&b, &c].map(|server| server.address.to_string()).into();
    let _agent = start(AgentConfig { servers, ..world.agent("edge-1", b.address, address) });
    b.connected("edge-1").await;
    c.connected("edge-1").await;
    c.registry.dial("edge-1", Target::Kubelet).await.unwrap();

    let asked = Instant::now();
    let said = a.peers.agents().await;
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    let holders: Vec<_> =
        said.agents.iter().map(|agent| (agent.node.as_str(), agent.server.as_str())).collect();
    assert_eq!(holders, [("edge-1", "cp-b"), ("edge-1", "cp-c")]);
    assert_eq!(said.silent.keys().collect::<Vec<_>>(), ["cp-d"]);
    assert!(said.silent["cp-d"].contains("no answer within 2s"), "{:?}", said.silent);

    b.kill().await;
    a.asks(2).await;
    let said = a.peers.agents().await;
    assert_eq!((said.agents.len(), said.silent.len()), (1, 2));
}
