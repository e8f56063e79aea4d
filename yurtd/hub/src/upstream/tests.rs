use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio_util::sync::CancellationToken;
use yurt_node::supervise::Tasks;

use super::*;
use yurt_fakes::api_server::{FakeApi, Fault, When};
use yurt_fakes::link::{Mode, Wire};
use yurt_node::token::BearerToken;

impl UpstreamConfig {
    /// As the node of a stand-in.
    pub(crate) fn of(api: &FakeApi) -> Self {
        Self {
            servers: vec![api.url()],
            ca_file: api.ca_file(),
            client_certificate: api.client_file(),
            client_key: api.client_file(),
        }
    }

    /// The same, over a wire.
    pub(crate) fn over(wire: &Wire, api: &FakeApi) -> Self {
        Self { servers: vec![format!("https://{}", wire.address)], ..Self::of(api) }
    }
}

/// The wire is a black hole for what there is, and nothing new comes about. The first connection, the link's probe,
/// ends, as the kernel at this end of a wire acknowledges whatever it is given.
pub(crate) fn lose(wire: &Wire) {
    wire.set(Mode::BlackHole);
    wire.refuse(true);
    wire.end_first(1);
}

/// The opposite.
pub(crate) fn find(wire: &Wire) {
    wire.refuse(false);
    wire.set(Mode::Pass);
}

pub(crate) fn no_body() -> RequestBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn started(api: &FakeApi) -> (Upstream, Link, CancellationToken) {
    let stop = CancellationToken::new();
    let (upstream, link) = Upstream::start(&UpstreamConfig::of(api), &Tasks::new(stop.clone())).unwrap();
    assert_eq!(link.settled(Duration::from_secs(5)).await, LinkState::Online);
    (upstream, link, stop)
}

fn get(path: &str) -> Request<RequestBody> {
    Request::get(path).header("authorization", "Bearer smuggled").body(no_body()).unwrap()
}

fn bearer(token: &str) -> Credential {
    Credential::Bearer(BearerToken::new(token))
}

async fn reaches(link: &Link, state: LinkState) {
    let mut states = link.subscribe();
    let reached = states.wait_for(|now| *now == state);
    tokio::time::timeout(Duration::from_secs(5), reached).await.expect("the link changes in time").unwrap();
}

#[tokio::test]
async fn a_connection_of_the_node_never_carries_a_token() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    for credential in [Credential::Node, bearer("t"), Credential::Node] {
        let response = upstream.send(&credential, get("/api/v1/pods")).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    let seen: Vec<_> = api.requests().into_iter().map(|seen| (seen.certificate, seen.token)).collect();
    assert_eq!(seen, [(true, None), (false, Some("t".to_owned())), (true, None)]);
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn the_hundred_and_first_watch_gets_a_connection_of_its_own() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    let mut open = Vec::new();
    for _ in 0..150 {
        open.push(upstream.send(&Credential::Node, get("/api/v1/pods?watch=true")).await.unwrap());
    }
    assert_eq!(api.connections(), 2);
    drop(open);
    let response = upstream.send(&Credential::Node, get("/api/v1/pods")).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn readers_that_stand_still_hold_up_nobody_else() {
    let api = FakeApi::start().await;
    api.put_data("pods", "n", "big", "a", &"x".repeat(8 << 20));
    let (upstream, _, _stop) = started(&api).await;
    let watch = upstream.send(&bearer("t"), get("/api/v1/configmaps?watch=true")).await.unwrap();
    let mut watch = watch.into_body();
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut body = upstream.send(&bearer("t"), get("/api/v1/pods")).await.unwrap().into_body();
        // It has begun, and is never read to its end.
        body.frame().await.unwrap().unwrap();
        stalled.push(body);
    }
    // What arrives before the windows are full is not the question.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for number in 0..10 {
        api.put_data("configmaps", "n", "c", "a", &format!("{number}{}", "y".repeat(64 << 10)));
        let frame = tokio::time::timeout(Duration::from_secs(5), watch.frame()).await;
        frame.expect("the watch goes on").unwrap().unwrap();
    }
    assert_eq!(api.connections(), 2, "the link's probe, and one for the token");
    let mut next = upstream.send(&bearer("t"), get("/api/v1/configmaps")).await.unwrap().into_body();
    let answer = tokio::time::timeout(Duration::from_secs(5), next.frame()).await;
    answer.expect("so do new requests").unwrap().unwrap();
}

#[tokio::test]
async fn nobody_has_more_than_a_share_of_the_requests_and_kubelet_is_not_counted() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    let share = |user: &str, credential: Credential| upstream.share(&Identity::new(user), &credential);
    let greedy = || share("greedy", bearer("t"));
    let mut open: Vec<_> = (0..FORWARDED_OF_ONE).map(|_| greedy().unwrap()).collect();
    assert!(matches!(greedy(), Err(UpstreamError::Busy(_))));
    assert!(share("other", bearer("u")).unwrap().is_some());
    assert!(share("node", Credential::Node).unwrap().is_none());
    open.pop();
    // A place is free when the answer's body is gone, not before.
    let place = greedy().unwrap();
    let answer =
        upstream.send(&bearer("t"), get("/api/v1/pods")).await.unwrap().map(|body| body.holding(place));
    assert!(greedy().is_err());
    answer.into_body().collect().await.unwrap();
    assert!(greedy().is_ok());
    // Who has nothing under way is not remembered for ever.
    for number in 0..2 * COUNTED {
        drop(share(&number.to_string(), bearer("t")).unwrap());
    }
    assert!(upstream.shares.lock().unwrap().len() <= COUNTED);
    assert!(greedy().is_ok());
    assert_eq!(open.len(), FORWARDED_OF_ONE - 1);
}

#[tokio::test]
async fn views_have_connections_of_their_own() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    let mut open = Vec::new();
    for upstream in [upstream.clone(), upstream.for_views(), upstream.for_views()] {
        for credential in [Credential::Node, bearer("t")] {
            open.push(upstream.send(&credential, get("/api/v1/pods?watch=true")).await.unwrap());
        }
    }
    assert_eq!(api.connections(), 4);
}

#[tokio::test]
async fn a_lost_link_fails_everything_at_once_and_comes_back() {
    let api = FakeApi::start().await;
    let (upstream, link, _stop) = started(&api).await;
    let watch = upstream.send(&Credential::Node, get("/api/v1/pods?watch=true")).await.unwrap();
    api.cut();
    assert!(watch.into_body().collect().await.is_err());
    reaches(&link, LinkState::Offline).await;
    let error = upstream.send(&Credential::Node, get("/api/v1/pods")).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable(_)), "{error}");
    api.restore();
    let restored = tokio::time::Instant::now();
    reaches(&link, LinkState::Online).await;
    assert!(restored.elapsed() < Duration::from_secs(2), "{:?}", restored.elapsed());
    assert_eq!(upstream.send(&Credential::Node, get("/api/v1/pods")).await.unwrap().status(), 200);
}

async fn over_a_wire(api: &FakeApi) -> (Wire, Upstream, Link, CancellationToken) {
    let wire = Wire::to(api.address).await;
    let stop = CancellationToken::new();
    let config = UpstreamConfig::over(&wire, api);
    let (upstream, link) = Upstream::start(&config, &Tasks::new(stop.clone())).unwrap();
    assert_eq!(link.settled(Duration::from_secs(5)).await, LinkState::Online);
    (wire, upstream, link, stop)
}

#[tokio::test]
async fn a_lost_link_answers_who_waits_and_ends_no_stream_that_goes_on() {
    let api = FakeApi::start().await;
    let (wire, upstream, link, _stop) = over_a_wire(&api).await;
    let views = upstream.for_views();
    let watch = views.send(&Credential::Node, get("/api/v1/pods?watch=true")).await.unwrap();
    api.fault(When::path("/api/v1/nodes"), Fault::Stall);
    let waiting = {
        let upstream = upstream.clone();
        tokio::spawn(async move { upstream.send(&bearer("t"), get("/api/v1/nodes")).await })
    };
    yurt_fakes::until("the request", async || (!api.seen("GET", "/api/v1/nodes").is_empty()).then_some(()))
        .await;
    lose(&wire);
    reaches(&link, LinkState::Offline).await;
    let error = tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, UpstreamError::Broken(_)), "{error}");
    api.put_data("pods", "n", "p", "a", "1");
    find(&wire);
    reaches(&link, LinkState::Online).await;
    let mut body = watch.into_body();
    let event = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap();
    assert!(event.unwrap().is_ok());
    // New requests find it good, too, once it is.
    let mut proven = body.proven();
    if api.seen("HEAD", "/livez").is_empty() {
        tokio::time::timeout(Duration::from_secs(5), proven.changed()).await.unwrap().unwrap();
    }
    let next = views.send(&Credential::Node, get("/api/v1/pods?watch=true")).await;
    assert!(next.is_ok());
}

#[tokio::test]
async fn a_connection_that_the_link_did_not_come_back_for_holds_nobody_up() {
    let api = FakeApi::start().await;
    let (wire, upstream, link, _stop) = over_a_wire(&api).await;
    let views = upstream.for_views();
    let watch = views.send(&Credential::Node, get("/api/v1/pods?watch=true")).await.unwrap();
    lose(&wire);
    reaches(&link, LinkState::Offline).await;
    wire.forget();
    find(&wire);
    reaches(&link, LinkState::Online).await;
    let answer = views.send(&Credential::Node, get("/api/v1/pods"));
    let answer = tokio::time::timeout(Duration::from_secs(2), answer).await.expect("on a new connection");
    assert_eq!(answer.unwrap().status(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(2), watch.into_body().collect()).await;
    assert!(ended.expect("soon").is_err());
}

/// What a server that speaks HTTP/2 by hand does with the next request.
#[derive(Debug, Clone, Copy)]
enum Rude {
    /// GOAWAY before it.
    GoAway,
    /// GOAWAY behind it, and the connection ends: it may have been carried out.
    GoAwayAfter,
    Refuse,
    Reset,
    Answer,
}

/// A server that treats requests as scripted; says what it answered: the bodies.
async fn rude(ca: &yurt_fakes::pki::TestCa, script: &[Rude]) -> (String, Arc<Mutex<Vec<String>>>) {
    let tls = yurt_fakes::tls::acceptor(&ca.server("127.0.0.1"), ca, true, &["h2"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let answered = Arc::<Mutex<Vec<String>>>::default();
    let bodies = Arc::clone(&answered);
    let script = Arc::new(Mutex::new(std::collections::VecDeque::from(script.to_vec())));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (tls, script, bodies) = (tls.clone(), Arc::clone(&script), Arc::clone(&bodies));
            tokio::spawn(async move {
                let mut stream = tls.accept(tcp).await.ok()?;
                let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
                    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
                    [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
                };
                stream.read_exact(&mut [0; 24]).await.ok()?;
                stream.write_all(&frame(4, 0, 0, &[])).await.ok()?;
                let mut body = Vec::new();
                let mut now = Rude::Answer;
                loop {
                    let mut head = [0; 9];
                    stream.read_exact(&mut head).await.ok()?;
                    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                    stream.read_exact(&mut payload).await.ok()?;
                    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let (headers, data) = (head[3] == 1, head[3] == 0);
                    if headers {
                        now = script.lock().unwrap().pop_front().unwrap_or(Rude::Answer);
                    }
                    let ends = head[4] & 1 == 1;
                    if data {
                        body.extend_from_slice(&payload);
                    }
                    // Once the body has come, so that it has been read.
                    if !((headers || data) && ends) {
                        continue;
                    }
                    let goaway = |last: u32| [last.to_be_bytes(), 0_u32.to_be_bytes()].concat();
                    let answer = match now {
                        Rude::GoAway => frame(7, 0, 0, &goaway(id - 1)),
                        Rude::GoAwayAfter => frame(7, 0, 0, &goaway(id)),
                        Rude::Refuse => frame(3, 0, id, &7_u32.to_be_bytes()),
                        Rude::Reset => frame(3, 0, id, &2_u32.to_be_bytes()),
                        Rude::Answer => frame(1, 5, id, &[0x88]),
                    };
                    if let Rude::Answer = now {
                        bodies.lock().unwrap().push(String::from_utf8(body.clone()).unwrap());
                    }
                    body.clear();
                    stream.write_all(&answer).await.ok()?;
                    if let Rude::GoAwayAfter = now {
                        stream.shutdown().await.ok()?;
                        return Some(());
                    }
                }
            });
        }
    });
    (url, answered)
}

#[tokio::test]
async fn what_the_server_has_certainly_not_looked_at_is_sent_again_once() {
    use Rude::{Answer, GoAway, GoAwayAfter, Refuse, Reset};
    let api = FakeApi::start().await;
    for (script, works) in [
        (&[Answer][..], true),
        (&[GoAway, Answer], true),
        (&[Refuse, Answer], true),
        (&[GoAway, GoAway, Answer], false),
        (&[Refuse, Refuse, Answer], false),
        (&[GoAwayAfter, Answer], false),
        (&[Reset, Answer], false),
    ] {
        let (url, answered) = rude(&api.ca, script).await;
        let config = UpstreamConfig { servers: vec![url], ..UpstreamConfig::of(&api) };
        let stop = CancellationToken::new();
        let (upstream, link) = Upstream::start(&config, &Tasks::new(stop.clone())).unwrap();
        assert_eq!(link.settled(Duration::from_secs(5)).await, LinkState::Online);
        let body = http_body_util::Full::new(Bytes::from_static(b"once")).map_err(|never| match never {});
        let request = Request::post("/api/v1/namespaces/n/pods").body(body.boxed_unsync()).unwrap();
        let outcome = upstream.send(&bearer("t"), request).await;
        match outcome {
            Ok(response) => assert!(works && response.status() == 200, "{script:?}"),
            Err(UpstreamError::Broken(error)) => assert!(!works, "{script:?}: {error}"),
            Err(error) => panic!("{script:?}: {error}"),
        }
        let expected: &[&str] = if works { &["once"] } else { &[] };
        assert_eq!(*answered.lock().unwrap(), expected, "{script:?}");
        stop.cancel();
    }
}

#[tokio::test]
async fn a_server_that_comes_back_at_once_was_never_lost() {
    let api = FakeApi::start().await;
    let (upstream, link, _stop) = started(&api).await;
    let mut states = link.subscribe();
    states.borrow_and_update();
    api.cut_connections();
    let response = upstream.send(&Credential::Node, get("/api/v1/pods")).await;
    // The request may have been on the old connection; the next is not.
    if response.is_err() {
        assert_eq!(upstream.send(&Credential::Node, get("/api/v1/pods")).await.unwrap().status(), 200);
    }
    assert!(!states.has_changed().unwrap());
}

#[tokio::test]
async fn one_dead_server_of_two_is_no_offline_link() {
    let (dead, api) = (FakeApi::start().await, FakeApi::start().await);
    let mut config = UpstreamConfig::of(&api);
    dead.cut();
    config.servers.insert(0, format!("https://{}", dead.address));
    let (upstream, link) = Upstream::start(&config, &Tasks::new(CancellationToken::new())).unwrap();
    assert_eq!(link.settled(Duration::from_secs(5)).await, LinkState::Online);
    assert_eq!(upstream.send(&bearer("t"), get("/api/v1/pods")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_rotated_certificate_is_used_for_the_next_request() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    let watch = upstream.send(&Credential::Node, get("/api/v1/pods?watch=true")).await.unwrap();
    assert_eq!(api.connections(), 1);
    api.rotate_client_certificate();
    assert_eq!(upstream.send(&Credential::Node, get("/api/v1/pods")).await.unwrap().status(), 200);
    assert_eq!(api.connections(), 2);
    // The watch stays where it is.
    api.put_data("pods", "n", "p", "a", "1");
    let mut body = watch.into_body();
    assert!(body.frame().await.unwrap().is_ok());
}

#[tokio::test]
async fn upgrades_have_a_connection_of_their_own() {
    let api = FakeApi::start().await;
    let (upstream, _, _stop) = started(&api).await;
    let mut request = get("/api/v1/namespaces/n/pods/p/exec");
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    let mut response = upstream.upgrade(&Credential::Node, request).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"both ways").await.unwrap();
    let mut echo = [0; 9];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"both ways");
}

#[tokio::test]
async fn nothing_starts_with_a_ca_that_is_none() {
    let api = FakeApi::start().await;
    let mut config = UpstreamConfig::of(&api);
    std::fs::write(&config.ca_file, "no certificate").unwrap();
    assert!(Upstream::start(&config, &Tasks::new(CancellationToken::new())).is_err());
    config.servers = vec!["http://127.0.0.1:1".to_owned()];
    assert!(Upstream::start(&config, &Tasks::new(CancellationToken::new())).is_err());
}

/// Needs a network namespace of its own:
/// `unshare -n sh -c 'ip link set lo up && cargo test -p yurt-hub --lib -- --ignored black_hole'`.
#[tokio::test]
#[ignore = "drops packets on lo: for a network namespace of its own"]
async fn a_black_hole_is_found_within_five_seconds_and_its_end_within_two() {
    let nft = |rules: &str| {
        let status = std::process::Command::new("nft").arg(rules).status().unwrap();
        assert!(status.success(), "{rules}");
    };
    let api = FakeApi::start().await;
    let (upstream, link, _stop) = started(&api).await;
    nft("add table inet hole");
    nft("add chain inet hole out { type filter hook output priority 0; }");
    for traffic in [false, true] {
        // Idle, or with a request every second that nobody answers.
        let requests = upstream.clone();
        let busy = tokio::spawn(async move {
            if traffic {
                loop {
                    let _ = requests.send(&Credential::Node, get("/api/v1/pods")).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(link.is_online());
        nft("add rule inet hole out oifname lo tcp sport != 0 drop");
        let cut = tokio::time::Instant::now();
        let mut states = link.subscribe();
        states.wait_for(|state| *state == LinkState::Offline).await.unwrap();
        let found = cut.elapsed();
        nft("flush chain inet hole out");
        let restored = tokio::time::Instant::now();
        states.wait_for(|state| *state == LinkState::Online).await.unwrap();
        println!("traffic {traffic}: offline after {found:?}, online after {:?}", restored.elapsed());
        assert!(found < Duration::from_secs(5), "{found:?}");
        assert!(restored.elapsed() < Duration::from_secs(2), "{:?}", restored.elapsed());
        busy.abort();
    }
}
