//! Streams through a session: whole, apart from each other, and refused where kubelet is not there.

use super::*;

#[tokio::test]
async fn bytes_reach_kubelet_and_come_back_and_each_direction_ends_by_itself() {
    let world = World::new();
    // Answers only when everything has been said, like tar under `kubectl cp`.
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await.unwrap();
        tcp.write_all(format!("got {}", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;

    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "got 5");
    assert!(stream.write_all(b"more").await.is_err());

    let status = &server.registry.statuses()[0];
    assert_eq!((status.node.as_str(), status.server.as_str()), ("edge-1", "master-node"));
    assert!(status.version.starts_with("yurtd/"));
    drop(stream);
    eventually("no stream is left", || server.registry.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_both_ways_arrive_as_they_were_sent() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let data = noise(20_000_000, 1);
    let stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    let (length, sum) = soon("everything is back", exchange(stream, &data)).await.unwrap();
    assert_eq!(length, data.len());
    assert_eq!(sum, Sha256::digest(&data).to_vec());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_at_once_do_not_mix() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    let streams: Vec<_> = (0..100u8)
        .map(|number| {
            let registry = server.registry.clone();
            tokio::spawn(async move {
                let data = noise(200_000 + usize::from(number), number);
                let stream = registry.dial("edge-1", Target::Kubelet).await.unwrap();
                let (length, sum) = exchange(stream, &data).await.unwrap();
                assert_eq!(length, data.len());
                assert_eq!(sum, Sha256::digest(&data).to_vec());
            })
        })
        .collect();
    for stream in streams {
        soon("every stream is done", stream).await.unwrap();
    }
    eventually("no stream is left", || server.registry.streams() == 0).await;
}

#[tokio::test]
async fn a_reader_that_stalls_stops_nobody_else() {
    let world = World::new();
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    // The first byte says what the connection is for.
    let (address, _kubelet) = kubelet(|mut tcp| async move {
        if tcp.read_u8().await.unwrap() == b'e' {
            return echo(tcp).await;
        }
        let block = vec![7; 64 * 1024];
        while let Ok(count) = tcp.write(&block).await {
            WRITTEN.fetch_add(count, Ordering::Relaxed);
        }
    })
    .await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;

    // Ten streams that nobody reads, until kubelet itself is held back.
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
        stream.write_all(b"s").await.unwrap();
        stalled.push(stream);
    }
    let mut before = usize::MAX;
    while WRITTEN.load(Ordering::Relaxed) != before || before == 0 {
        before = WRITTEN.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let data = noise(1_000_000, 3);
    let mut stream = server.registry.dial("edge-1", Target::Kubelet).await.unwrap();
    stream.write_all(b"e").await.unwrap();
    let (length, sum) = soon("the other stream is served", exchange(stream, &data)).await.unwrap();
    assert_eq!((length, sum), (data.len(), Sha256::digest(&data).to_vec()));
    assert_eq!(WRITTEN.load(Ordering::Relaxed), before);

    // What waited is still whole.
    let mut block = vec![0; 500_000];
    soon("the stalled stream goes on", stalled[0].read_exact(&mut block)).await.unwrap();
    assert!(block.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn a_kubelet_that_is_down_is_an_answer_and_not_a_wait() {
    let world = World::new();
    let (address, kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let _agent = start(world.agent("edge-1", server.address, address));
    server.connected("edge-1").await;
    kubelet.abort();
    let _ = kubelet.await;
    let error = soon("an answer", server.registry.dial("edge-1", Target::Kubelet)).await.unwrap_err();
    assert!(matches!(error, DialError::Rejected { code: OpenErrorCode::Refused, .. }), "{error}");
    let error = server.registry.dial("edge-2", Target::Kubelet).await.unwrap_err();
    assert!(matches!(error, DialError::NotConnected(_)), "{error}");
}
