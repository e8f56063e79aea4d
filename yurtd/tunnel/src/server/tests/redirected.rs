//! Redirected connections, from the API server's end to kubelet's.

use super::*;

pub(super) const KUBELET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 100)), 10250);

pub(super) async fn intercept(
    server: &Server,
    original: fn(&TcpStream) -> io::Result<SocketAddr>,
) -> SocketAddr {
    intercept_of(server, Endpoints::from([(KUBELET, "edge-1")]), original).await.0
}

async fn intercept_of(
    server: &Server,
    endpoints: Endpoints,
    original: fn(&TcpStream) -> io::Result<SocketAddr>,
) -> (SocketAddr, watch::Sender<Option<Endpoints>>) {
    let (sender, endpoints) = watch::channel(Some(endpoints));
    let intercept = Intercept::new(server.ways.clone(), endpoints, original);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = intercept.run(listener, server.connections.clone());
    server.tasks.part("the listener for redirected connections", serve);
    (address, sender)
}

#[tokio::test]
async fn a_redirected_connection_reaches_the_node_it_was_meant_for() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let data = noise(3_000_000, 5);
    let tcp = TcpStream::connect(entry).await.unwrap();
    let (length, sum) = soon("everything is back", exchange(tcp, &data)).await.unwrap();
    assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
}

/// kubectl top of the second shop must not be answered by the first, on a connection that the API server still has.
#[tokio::test]
async fn a_connection_ends_when_its_address_is_another_nodes() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let one = Endpoints::from([(KUBELET, "edge-1")]);
    let (entry, endpoints) = intercept_of(&server, one.clone(), |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    let mut speak = async |say: u8| {
        tcp.write_all(&[say]).await?;
        tcp.read_u8().await
    };
    assert_eq!(soon("the echo", speak(b'x')).await.unwrap(), b'x');

    // Another node comes; nothing changes for this one.
    let other = "192.168.0.101:10250".parse().unwrap();
    endpoints.send_replace(Some(Endpoints::from([(KUBELET, "edge-1"), (other, "edge-2")])));
    assert_eq!(soon("the echo", speak(b'y')).await.unwrap(), b'y');

    // It claims the same address, which is nobody's then.
    endpoints.send_replace(Some(Endpoints::default()));
    let error = soon("a reset", speak(b'z')).await.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    eventually("no stream is left", || server.registry.streams() == 0).await;

    // A server that stops follows no nodes any more, and lets streams end by themselves.
    endpoints.send_replace(Some(one));
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    tcp.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'a');
    drop(endpoints);
    tcp.write_all(b"b").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'b');
}

thread_local! {
    /// Where the next connection of this test was going, as the kernel would say it.
    static GOING: std::cell::Cell<SocketAddr> = const { std::cell::Cell::new(KUBELET) };
}

/// Two shops with the same private address.
#[tokio::test]
async fn two_nodes_of_one_address_are_told_apart_by_their_ports() {
    const SECOND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 100)), 40_000);
    /// What a kubelet of that name logs, for as long as it is asked.
    async fn log(name: u8, mut tcp: TcpStream) {
        while tcp.read_u8().await.is_ok() && tcp.write_u8(name).await.is_ok() {}
    }
    async fn say(tcp: &mut TcpStream) -> io::Result<u8> {
        tcp.write_all(b"?").await?;
        tcp.read_u8().await
    }
    let world = World::new();
    let (first, _first) = kubelet(|tcp| log(b'1', tcp)).await;
    let (second, _second) = kubelet(|tcp| log(b'2', tcp)).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, first));
    let other = start(world.agent("edge-2", server.address, second));
    server.connected("edge-1").await;
    server.connected("edge-2").await;
    let nodes = Endpoints::from([(KUBELET, "edge-1"), (SECOND, "edge-2")]).shared();
    let (entry, endpoints) = intercept_of(&server, nodes.clone(), |_| Ok(GOING.get())).await;
    let connect = async |to: SocketAddr, expected: u8| {
        // One at a time: where a connection was going is asked when it is accepted.
        GOING.set(to);
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        assert_eq!(soon("a log", say(&mut tcp)).await.unwrap(), expected);
        tcp
    };

    let mut open = Vec::new();
    for _ in 0..20 {
        open.push((b'1', connect(KUBELET, b'1').await));
        open.push((b'2', connect(SECOND, b'2').await));
    }
    for _ in 0..5 {
        let all = open.iter_mut().map(|(name, tcp)| async { (*name, say(tcp).await.unwrap()) });
        let all = soon("every log", futures::future::join_all(all)).await;
        assert!(all.iter().all(|(name, said)| name == said), "{all:?}");
    }

    // The second connects anew.
    other.0.cancel();
    soon("the agent ends", other.1).await.unwrap();
    for (name, tcp) in open.iter_mut().filter(|(name, _)| *name == b'2') {
        assert!(soon("a reset", say(tcp)).await.is_err(), "{name}");
    }
    // Meanwhile nobody answers for it, and who is at the address is not asked.
    GOING.set(SECOND);
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("a reset", tcp.read_u8()).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let other = start(world.agent("edge-2", server.address, second));
    server.connected("edge-2").await;
    open.retain(|(name, _)| *name == b'1');
    open.push((b'2', connect(SECOND, b'2').await));
    open.push((b'1', connect(KUBELET, b'1').await));

    // It leaves for good; nothing changes for the first.
    endpoints.send_replace(Some(Endpoints::from([(KUBELET, "edge-1")])));
    for (name, tcp) in &mut open {
        let said = soon("an answer", say(tcp)).await;
        assert!(if *name == b'1' { said.is_ok_and(|said| said == b'1') } else { said.is_err() });
    }
    GOING.set(SECOND);
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert!(soon("a reset", tcp.read_u8()).await.is_err());
    drop(other);
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_is_reset() {
    let world = World::new();
    let server = world.server().await;
    let cases: [fn(&TcpStream) -> io::Result<SocketAddr>; 3] = [
        // No agent is connected.
        |_| Ok(KUBELET),
        // Somebody who found the port.
        |tcp| tcp.local_addr(),
        |_| Err(io::ErrorKind::NotFound.into()),
    ];
    for original in cases {
        let entry = intercept(&server, original).await;
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_redirected_connection_is_reset_when_the_agent_dies() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let (stop, agent) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    tcp.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'x');
    stop.cancel();
    soon("the agent ends", agent).await.unwrap();
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A kubelet that says one byte, then `stalls` or reads until its connection ends, and counts the ends.
pub(super) async fn quiet_kubelet(stalls: bool) -> (SocketAddr, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let (address, task) = kubelet(move |mut tcp| {
        let ended = count.clone();
        async move {
            tcp.write_all(b"x").await.unwrap();
            if stalls {
                // Nothing is read; only the loss of the connection ends it.
                let _ = tcp.ready(tokio::io::Interest::ERROR).await;
            } else {
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    (address, ended, task)
}

/// Closes as a process does that is killed with data unread.
pub(super) fn reset(tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn a_followed_log_ends_at_kubelet_when_its_caller_goes() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(false).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let go: [fn(TcpStream); 2] = [drop, reset];
    for (number, go) in go.into_iter().enumerate() {
        let mut tcp = TcpStream::connect(entry).await.unwrap();
        assert_eq!(soon("the first line", tcp.read_u8()).await.unwrap(), b'x');
        go(tcp);
        eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) == number + 1).await;
        eventually("no stream is left", || server.registry.streams() == 0).await;
    }
}

#[tokio::test]
async fn a_caller_who_is_cut_off_ends_a_stream_that_is_full() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(true).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');
    // `kubectl cp` to a container that reads nothing: until nothing more can be sent.
    let block = vec![7; 64 * 1024];
    let stuck = Duration::from_millis(300);
    while tokio::time::timeout(stuck, tcp.write_all(&block)).await.is_ok() {}
    reset(tcp);
    eventually("no stream is left", || server.registry.streams() == 0).await;
    eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_caller_who_said_everything_and_is_cut_off_ends_the_stream() {
    let world = World::new();
    // Reads everything, and goes on for ever: an exec of `sleep` with its input closed.
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        tcp.read_to_end(&mut Vec::new()).await.unwrap();
        tcp.write_all(b"x").await.unwrap();
        let _ = tcp.ready(tokio::io::Interest::ERROR).await;
        ENDED.fetch_add(1, Ordering::Relaxed);
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    tcp.write_all(b"input").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(soon("the answer", tcp.read_u8()).await.unwrap(), b'x');
    reset(tcp);
    eventually("no stream is left", || server.registry.streams() == 0).await;
    eventually("kubelet's connection ends", || ENDED.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn an_agent_that_connects_anew_ends_open_streams_at_both_ends() {
    let world = World::new();
    let (address, ended, _kubelet) = quiet_kubelet(false).await;
    let server = world.server().await;
    let (_stop, _old) = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let entry = intercept(&server, |_| Ok(KUBELET)).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');

    // As after a change of the node's address: the server has not noticed that the old session is dead.
    let (_stop, _new) = start(world.agent("edge-1", server.address, address));
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    eventually("kubelet's connection ends", || ended.load(Ordering::Relaxed) >= 1).await;
    eventually("the node can be reached again", || !server.registry.statuses().is_empty()).await;
    let mut tcp = TcpStream::connect(entry).await.unwrap();
    assert_eq!(soon("the first byte", tcp.read_u8()).await.unwrap(), b'x');
}
