//! What anybody on the node may do to the hub, and kubelet does not notice.

use super::*;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A token that looks like one and is nobody's.
fn rubbish(connection: usize, stream: usize) -> String {
    jwt(
        &json!({"iss": "https://kubernetes.default.svc", "sub": format!("{connection}/{stream}"), "exp": 4_000_000_000_i64}),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_tokens_of_nobodys_wait_for_no_review_and_kubelet_is_answered() {
    const CONNECTIONS: usize = 20;
    const STREAMS: usize = 1024;
    let cluster = Cluster::new().await;
    let hub = cluster.boot().await;
    cluster.api.fault(When::path(REVIEWS), Fault::Stall);
    let began = tokio::time::Instant::now();
    let answered = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut strangers = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = Arc::new(cluster.client(&hub, &As::Nobody).await);
        for stream in 0..STREAMS {
            let (client, answered) = (client.clone(), answered.clone());
            strangers.spawn(async move {
                let token = format!("Bearer {}", rubbish(connection, stream));
                let headers = [("authorization", token.as_str())];
                let response = client.try_open(Method::GET, "/version", &headers, Bytes::new());
                // After half a minute of rubbish the connection is closed.
                let answer = match response.await {
                    Ok(response) => {
                        (response.status().as_u16(), response.headers().contains_key("retry-after"))
                    }
                    Err(_) => (0, false),
                };
                answered.lock().unwrap().push(answer);
            });
        }
    }
    // All but a few are told to come again.
    let all = CONNECTIONS * STREAMS;
    let answers = || answered.lock().unwrap().len();
    while answers() < all - 256 {
        let before = answers();
        until("more answers", async || (answers() > before).then_some(())).await;
    }
    // The few that are reviewed learn that nothing is decided about them.
    let expected = [(429, true), (503, true), (0, false)];
    assert!(answered.lock().unwrap().iter().all(|answer| expected.contains(answer)));
    assert_eq!(answered.lock().unwrap()[0], (429, true));
    // One address has so many at once, and so many a second.
    assert!(cluster.api.seen("POST", REVIEWS).len() as u64 <= 20 + 2 * began.elapsed().as_secs());
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let list = kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200).json();
    assert_eq!(names(&list), ["web-0", "web-1"]);
    // And those that wait are told so before long.
    until("all are answered", async || (answers() == all).then_some(())).await;
    cluster.api.no_faults();
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_as_long_as_a_url_may_be_is_answered() {
    let cluster = Cluster::new().await;
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let selector = |length: usize| format!("app%20in%20%28{}%29", "web,".repeat(length / 4) + "web");
    for who in [cluster.kubelet(), As::Token(token)] {
        let client = cluster.client(&hub, &who).await;
        for length in [17_000, 60_000] {
            client
                .get(&format!("{PODS}?resourceVersion=0&labelSelector={}", selector(length)))
                .await
                .expect(200);
            let request = Request::get(format!("{PODS}?labelSelector={}", selector(length)))
                .header("host", "127.0.0.1");
            let request = match &who {
                As::Token(token) => request.header("authorization", format!("Bearer {token}")),
                _ => request,
            };
            let request = request.body(Full::new(Bytes::new())).unwrap();
            assert_eq!(
                client::http1(hub.address, hub.trust.clone(), &who, request).await.status(),
                200,
                "{length}"
            );
        }
    }
    // kubelet is known before its first request: it may send as much as net/http takes.
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    let long = "x".repeat(500_000);
    kubelet.send(Method::GET, "/version", &[("x-long", &long)], Bytes::new()).await.expect(200);
    hub.stop().await;
}

/// Bytes of memory that this process has for itself alone.
fn own_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Whether this is the process of this one test, in which memory can be measured; if not, runs it there.
fn alone(test: &str) -> bool {
    if std::env::var_os("YURT_TEST_ALONE").is_some() {
        return true;
    }
    let own = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("YURT_TEST_ALONE", "1")
        .envs([
            ("MALLOC_ARENA_MAX", "2"),
            ("MALLOC_TRIM_THRESHOLD_", "131072"),
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ])
        .status();
    assert!(own.unwrap().success(), "{test}, in its own process");
    false
}

/// A connection of HTTP/2 that asks and never reads.
struct Deaf(tokio_rustls::client::TlsStream<tokio::net::TcpStream>);

impl Deaf {
    /// With windows that hold everything.
    async fn connect(hub: &Hub) -> Self {
        let mut stream = client::tls(hub.address, &hub.trust, &As::Nobody, "h2").await.unwrap();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS_INITIAL_WINDOW_SIZE of 1 GiB, and the same for the connection.
        hello.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0]);
        hello.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]);
        stream.write_all(&hello).await.unwrap();
        Self(stream)
    }

    /// The request `number`, by HPACK without a table.
    async fn ask(&mut self, number: u32, path: &str, token: &str) {
        fn literal(block: &mut Vec<u8>, name: &[u8], value: &str) {
            block.extend(name);
            let mut rest = value.len();
            if rest < 127 {
                block.push(rest as u8);
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend(value.as_bytes());
        }
        let mut block = vec![0x82, 0x87];
        literal(&mut block, &[0x04], path);
        literal(&mut block, &[0x01], "127.0.0.1");
        literal(&mut block, &[0x0f, 0x04], "application/json");
        literal(&mut block, &[0x0f, 0x08], &format!("Bearer {token}"));
        let mut frame = (block.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([1, 5]);
        frame.extend((2 * number + 1).to_be_bytes());
        frame.extend(block);
        self.0.write_all(&frame).await.unwrap();
    }
}

/// Waits until the hub does nothing more.
async fn settled() -> usize {
    let mut last = own_memory();
    let mut quiet = 0;
    while quiet < 10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = own_memory();
        quiet = if now.abs_diff(last) < 256 << 10 { quiet + 1 } else { 0 };
        last = now;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_and_two_hundred_lists_that_nobody_reads_keep_the_hub_small() {
    if !alone("budgets::a_thousand_watches_and_two_hundred_lists_that_nobody_reads_keep_the_hub_small") {
        return;
    }
    let cluster = Cluster::new().await;
    let put = |name: &str, data: &str| {
        let map =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"x": data}});
        cluster.api.put("/api/v1/namespaces/shop/configmaps", map);
    };
    for number in 0..300 {
        put(&format!("map-{number}"), &"x".repeat(10_000));
    }
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    let hub = cluster.boot().await;
    let maps = "/api/v1/namespaces/shop/configmaps?resourceVersion=0";
    let pod = cluster.client(&hub, &As::Token(token.clone())).await;
    pod.get(maps).await.expect(200);
    let before = settled().await;
    let mut deaf: Vec<Deaf> = Vec::new();
    for number in 0..20 {
        let mut connection = Deaf::connect(&hub).await;
        for watch in 0..50 {
            connection.ask(watch, &format!("{maps}&watch=1"), &token).await;
        }
        for list in 50..60 {
            connection.ask(list, maps, &token).await;
        }
        // No two connections are sent the same list.
        put("changes", &number.to_string());
        deaf.push(connection);
    }
    let after = settled().await;
    let grown = after.saturating_sub(before) >> 20;
    println!("readers that do not read: {grown} MiB more than {} MiB", before >> 20);
    assert!(grown < 40, "{grown} MiB");
    let kubelet = cluster.client(&hub, &cluster.kubelet()).await;
    kubelet.get(&format!("{NODE_PODS}&resourceVersion=0")).await.expect(200);
    // They were answered, and are as soon as they read.
    let mut data = vec![0; 2 << 20];
    let read = deaf[0].0.read_exact(&mut data);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("nothing comes").unwrap();
    drop(deaf);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_list_of_ten_megabytes_passes_through_a_small_hub() {
    if !alone("budgets::one_list_of_ten_megabytes_passes_through_a_small_hub") {
        return;
    }
    let cluster = Cluster::new().await;
    for number in 0..100 {
        let data = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("map-{number}")},
            "data": {"x": "x".repeat(100_000)}});
        cluster.api.put("/api/v1/namespaces/shop/configmaps", data);
    }
    let token = jwt(&json!({"sub": "system:serviceaccount:shop:web"}));
    cluster.api.accept_token(&token, "system:serviceaccount:shop:web");
    // Its own pages are this process', too.
    cluster.api.page_size(8);
    let hub = cluster.boot().await;
    let before = settled().await;
    let pod = cluster.client(&hub, &As::Token(token)).await;
    let accept = [("accept", "application/json")];
    let maps = "/api/v1/namespaces/shop/configmaps?resourceVersion=0";
    let listing = async {
        let mut lengths = Vec::new();
        for _ in 0..2 {
            let response = pod.try_open(Method::GET, maps, &accept, Bytes::new()).await.unwrap();
            assert_eq!(response.status(), 200);
            let (mut body, mut length) = (response.into_body(), 0);
            while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
                length += frame.unwrap().into_data().unwrap().len();
            }
            lengths.push(length);
        }
        lengths
    };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let watching = tokio::spawn(async move {
        let mut peak = 0;
        while !stopped.is_cancelled() {
            peak = peak.max(own_memory());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peak
    });
    let lengths = listing.await;
    stop.cancel();
    let grown = watching.await.unwrap().saturating_sub(before) >> 20;
    let kept = settled().await.saturating_sub(before) >> 20;
    println!("lists of {lengths:?} bytes: {grown} MiB more than {} MiB, {kept} of them kept", before >> 20);
    assert!(lengths.iter().all(|length| *length > 10_000_000), "{lengths:?}");
    assert_eq!(lengths[0], lengths[1]);
    assert!(grown < 8 && kept < 6, "{grown} MiB, {kept} kept");
    hub.stop().await;
}
