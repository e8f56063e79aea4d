//! How sessions replace each other, end, and come back.

use super::*;

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
