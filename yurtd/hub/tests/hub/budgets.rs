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
                if let Ok(response) = response.await {
                    let retry = response.headers().contains_key("retry-after");
                    answered.lock().unwrap().push((response.status().as_u16(), retry));
                }
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
    assert!(answered.lock().unwrap().iter().all(|answer| *answer == (429, true)));
    // Four at a time, eight seconds each.
    assert!(cluster.api.seen("POST", REVIEWS).len() <= 24);
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
