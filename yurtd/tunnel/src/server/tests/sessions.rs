//! How sessions replace each other, end, and come back.

use bytes::BytesMut;
use yurt_api::tunnel::{self, Capabilities, Frame, Hello, INITIAL_WINDOW, Sender};

use super::handshake::knock;
use super::*;
use crate::mux::websocket::{self, Side};

/// Another way to the same server: the address, and what carries it.
async fn uplink(server: SocketAddr) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn two_addresses_of_one_server_are_one_session_and_each_takes_over_from_the_other() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let mut ways = vec![uplink(server.address).await, uplink(server.address).await];
    let servers: Vec<_> = ways.iter().map(|(address, _)| address.to_string()).collect();
    let connections = agent::Connections::of(&servers);
    let config = AgentConfig {
        servers,
        connections: connections.clone(),
        ..world.agent("edge-1", server.address, address)
    };
    let _agent = start(config);
    let settled = || {
        let sessions = connections.sessions();
        let connected = sessions.iter().find(|session| session.connected)?.server.clone();
        sessions.iter().any(|session| session.stands_by_for.as_ref() == Some(&connected)).then_some(connected)
    };
    eventually("one is connected and the other stands by", || settled().is_some()).await;
    // The agent's last word before its session is on its way yet.
    eventually("the server knows it", || server.registry.registrations() == 1).await;
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');

    let first = settled().unwrap();
    ways.retain(|(address, _)| address.to_string() != first);
    let second = ways[0].0.to_string();
    eventually("the other way is taken", || {
        connections.sessions().iter().any(|session| session.connected && session.server == second)
    })
    .await;
    eventually("the server knows it", || server.registry.registrations() == 2).await;
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(exchange(stream, b"again").await.unwrap().0, 5);
    assert_eq!(server.registry.statuses()[0].duplicate, None);
}

#[tokio::test]
async fn a_copied_machine_is_shown_and_the_two_leave_each_others_streams_alone() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let original = world.agent("edge-1", server.address, address);
    let copied = AgentConfig {
        connections: agent::Connections::of(&original.servers),
        ..world.agent("edge-1", server.address, address)
    };
    let (told, of_copy) = (original.connections.clone(), copied.connections.clone());
    let _original = start(original);
    server.connected("edge-1").await;
    let older = server.registry.statuses()[0].remote_address.clone();
    let _copy = start(copied);
    let duplicate = || server.registry.statuses().first().and_then(|status| status.duplicate.clone());
    eventually("the server has noticed", || duplicate().is_some()).await;
    let (duplicate, newer) = (duplicate().unwrap(), server.registry.statuses()[0].remote_address.clone());
    assert_eq!(duplicate.times, 1);
    assert_eq!((duplicate.older_address, duplicate.newer_address), (older, newer));

    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    eventually("the first agent knows why", || {
        let error = told.sessions().remove(0).error.unwrap_or_default();
        error == "replaced by a newer connection of the same node"
    })
    .await;
    // Longer than it takes an agent that only lost its server to be back.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(of_copy.sessions()[0].connected);
    assert_eq!(server.registry.registrations(), 2);
}

#[tokio::test]
async fn a_node_whose_last_session_does_not_answer_any_more_is_no_copy() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    // Its link is gone: nobody reads what the server says, and nobody has told the server.
    let mut silent = knock(&world, server.address, &world.cluster_ca.node("edge-1"), |_| {}).await.unwrap();
    let hello = Hello {
        sender: Sender::Agent { max_streams: 1 },
        capabilities: Capabilities::default(),
        initial_window: INITIAL_WINDOW,
        software: "silent".into(),
    };
    let mut message = BytesMut::zeroed(websocket::MAX_HEADER);
    tunnel::encode(&Frame::Hello(hello), &mut message);
    tunnel::encode(&Frame::Begin, &mut message);
    websocket::frame(Side::Client, [1, 2, 3, 4], &mut message);
    silent.write_all(&message).await.unwrap();
    server.connected("edge-1").await;
    let _agent = start(world.agent("edge-1", server.address, address));
    let mut unanswered = Vec::new();
    soon("the old session is closed", silent.read_to_end(&mut unanswered)).await.unwrap();
    let status = server.registry.statuses().remove(0);
    assert!(status.version.starts_with("yurtd/"), "{status:?}");
    assert_eq!(server.registry.statuses()[0].duplicate, None);
}

#[tokio::test]
async fn the_newer_connection_of_a_node_replaces_the_older_and_outlives_its_end() {
    let world = World::new();
    let (old_kubelet, _kubelet) =
        kubelet(|mut tcp| async move { tcp.write_all(b"old").await.unwrap() }).await;
    let (new_kubelet, _kubelet2) =
        kubelet(|mut tcp| async move { tcp.write_all(b"new").await.unwrap() }).await;
    let server = world.server().await;
    let (old_stop, old) = start(world.agent("edge-1", server.address, old_kubelet));
    server.connected("edge-1").await;
    let since = server.registry.statuses()[0].remote_address.clone();
    // The old one does not come back by itself while the new one is looked at.
    old_stop.cancel();
    let (_stop, _new) = start(world.agent("edge-1", server.address, new_kubelet));
    eventually("the new one is registered", || {
        server.registry.statuses().first().is_some_and(|status| status.remote_address != since)
    })
    .await;
    soon("the old agent has ended", old).await.unwrap();
    let mut answer = String::new();
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    soon("the new kubelet answers", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "new");
}

#[tokio::test]
async fn two_live_agents_of_one_node_leave_exactly_one_session() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _first = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let session = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    let _second = start(world.agent("edge-1", server.address, address));
    // The old session's streams end with it.
    let (mut reader, _writer) = tokio::io::split(session);
    let mut buffer = [0; 8];
    assert!(soon("the old stream ends", reader.read(&mut buffer)).await.is_err());
    assert_eq!(server.registry.statuses().len(), 1);
    let data = noise(100_000, 9);
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(soon("the new one serves", exchange(stream, &data)).await.unwrap().0, data.len());
}

#[tokio::test]
async fn the_agent_comes_back_when_its_server_was_killed() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let port = server.address;
    let _agent = start(world.agent("edge-1", port, address));
    server.connected("edge-1").await;
    server.kill().await;
    let server = world.server_on(port).await;
    server.connected("edge-1").await;
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(exchange(stream, b"again").await.unwrap().0, 5);
}

#[tokio::test]
async fn a_session_that_still_answers_survives_the_loss_of_the_link() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (link, state) = watch::channel(LinkState::Online);
    let config = AgentConfig { link: Some(state), ..world.agent("edge-1", server.address, address) };
    let connections = config.connections.clone();
    let _agent = start(config);
    server.connected("edge-1").await;
    eventually("the agent says that it is connected", || connections.sessions()[0].connected).await;
    let before = server.registry.statuses()[0].remote_address.clone();
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    for state in [LinkState::Offline, LinkState::Online] {
        link.send(state).unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    }
    assert_eq!(server.registry.statuses()[0].remote_address, before);
}

#[tokio::test]
async fn open_streams_end_at_once_when_the_agent_is_killed() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let config = world.agent("edge-1", server.address, address);
    // In a runtime of its own, which can end as abruptly as a process.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(agent::run(config, CancellationToken::new()));
    server.connected("edge-1").await;
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut buffer = [0; 1];
    stream.read_exact(&mut buffer).await.unwrap();

    runtime.shutdown_background();
    let killed = Instant::now();
    assert!(soon("the stream fails", stream.read(&mut buffer)).await.is_err());
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    eventually("the session is gone", || server.registry.statuses().is_empty()).await;
}

#[tokio::test]
async fn the_agent_says_goodbye_when_it_stops() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (stop, agent) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stop.cancel();
    soon("the agent ends", agent).await.unwrap();
    let error = soon("the stream ends", stream.read_u8()).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    eventually("the session is gone", || server.registry.statuses().is_empty()).await;
}

#[tokio::test]
async fn the_agent_comes_to_servers_that_the_cluster_names_and_leaves_one_that_it_names_no_more() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let given = world.server_of("cp-1", "127.0.0.1:0".parse().unwrap()).await;
    // All listen on one port, as in a cluster.
    let on = |ip: &str| SocketAddr::new(ip.parse().unwrap(), given.address.port());
    let (second, third) =
        (world.server_of("cp-2", on("127.0.0.2")).await, world.server_of("cp-3", on("127.0.0.3")).await);
    let api_server = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 6443);
    // Known from the disk: the one that was given, one more, and one behind which nobody is.
    let (named, api_servers) =
        watch::channel(["127.0.0.1", "127.0.0.2", "127.0.0.9"].map(api_server).to_vec());
    let found = agent::Found { api_servers, port: given.address.port() };
    let config = AgentConfig { found: Some(found), ..world.agent("edge-1", given.address, address) };
    let connections = config.connections.clone();
    let _agent = start(config);
    given.connected("edge-1").await;
    second.connected("edge-1").await;
    let told = || -> Vec<_> {
        let sessions = connections.sessions().into_iter();
        sessions.map(|session| (session.server, session.found, session.connected)).collect()
    };
    let is = |ip: &str, found: bool, connected: bool| (on(ip).to_string(), found, connected);
    let all = [is("127.0.0.1", false, true), is("127.0.0.2", true, true), is("127.0.0.9", true, false)];
    eventually("it is told so", || told() == all).await;
    let mut stream = second.registry.dial("edge-1", Target::Kubelet).await.unwrap();

    // A new one comes, and two are gone.
    named.send_replace(["127.0.0.1", "127.0.0.3"].map(api_server).to_vec());
    third.connected("edge-1").await;
    let before = (given.registry.registrations(), second.registry.registrations());
    assert_eq!(before, (1, 1), "nobody else's session is disturbed");
    // What runs goes on: perhaps only an API server restarts.
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    second.kill().await;
    let all = [is("127.0.0.1", false, true), is("127.0.0.3", true, true)];
    eventually("those that are gone are left", || told() == all).await;
    assert_eq!(given.registry.registrations(), 1);
}

/// Long before the minute for which it leaves one alone that stays.
#[tokio::test]
async fn a_copied_machine_that_is_gone_again_does_not_keep_the_original_away() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let original = world.agent("edge-1", server.address, address);
    let told = original.connections.clone();
    let _original = start(original);
    server.connected("edge-1").await;
    let (stop, copy) = start(world.agent("edge-1", server.address, address));
    eventually("the server has noticed", || {
        server.registry.statuses().first().is_some_and(|status| status.duplicate.is_some())
    })
    .await;
    eventually("the original is replaced", || !told.sessions()[0].connected).await;
    stop.cancel();
    soon("the copy ends", copy).await.unwrap();
    eventually("the original is back", || told.sessions()[0].connected).await;
    server.connected("edge-1").await;
    assert_eq!(server.registry.registrations(), 3);
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    assert_eq!(exchange(stream, b"again").await.unwrap().0, 5);
}
