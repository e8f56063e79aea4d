//! Run in a network namespace of its own, as in the tunnel server's kernel tests. Pods are namespaces beside it.

mod ipv6;

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};

use super::*;

const SERVICE: &str = "10.96.0.1:443";
/// Nobody's table but kube-proxy's.
const KUBE_PROXY: &str = "table ip6 kube {
    chain prerouting { type nat hook prerouting priority -100; jump services; }
    chain output { type nat hook output priority -100; jump services; }
    chain services { ip6 daddr fd00:10:96::1 tcp dport { 443, 80 } dnat to [fd00:10:80::2]:6443; }
}
table ip kube {
    chain prerouting { type nat hook prerouting priority -100; jump services; }
    chain output { type nat hook output priority -100; jump services; }
    chain services {
        ip daddr 10.96.0.1 tcp dport { 443, 80 } dnat to 10.80.0.2:6443
        ip daddr 10.96.0.1 udp dport 443 dnat to 10.80.0.2:6443
    }
}";

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(words: &str) {
    run("ip", &words.split(' ').collect::<Vec<_>>());
}

fn nft(script: &str) {
    run("nft", &[script]);
}

/// A pod: a namespace with an interface in the bridge.
struct Pod(Child);

impl Pod {
    fn new(number: u8) -> Self {
        let child =
            Command::new("unshare").args(["--net", "sleep", "300"]).stdout(Stdio::null()).spawn().unwrap();
        let pod = Self(child);
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = || std::fs::read_link(format!("/proc/{}/ns/net", pod.0.id()));
        while theirs().is_ok_and(|theirs| theirs == ours) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (outside, id) = (format!("pod{number}"), pod.0.id().to_string());
        ip(&format!("link add {outside} type veth peer name eth0 netns {id}"));
        ip(&format!("link set {outside} master cni0 up"));
        for words in [
            format!("address add 10.244.1.{number}/24 dev eth0"),
            // No need to find out whether somebody has it.
            format!("address add fd00:10:244:1::{number}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "route add default via 10.244.1.1".to_owned(),
            "route add default via fd00:10:244:1::1".to_owned(),
        ] {
            run("nsenter", &[&["--net", "-t", &id, "ip"], &*words.split(' ').collect::<Vec<_>>()].concat());
        }
        pod
    }

    /// Who answers there.
    async fn asks(&self, service: &str) -> String {
        asks(&["nsenter", "--net", "-t", &self.0.id().to_string()], service).await
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is read from a new connection, made behind these words.
async fn asks(before: &[&str], service: &str) -> String {
    let (address, port) = service.rsplit_once(':').unwrap();
    let address = address.trim_matches(['[', ']']);
    let script = format!("exec 3<>/dev/tcp/{address}/{port} && cat <&3");
    let words = [before, &["timeout", "3", "bash", "-c", &script]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stderr(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Says its name to whoever connects.
async fn says(address: &str, name: &'static str) {
    serve(TcpListener::bind(address).await.unwrap(), name);
}

fn serve(listener: TcpListener, name: &'static str) {
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
}

fn wanted(past: &[&str], host: bool) -> Wanted {
    let past = past.iter().map(|ip| ip.parse().unwrap()).collect();
    Wanted::new(BTreeSet::from([SERVICE.parse().unwrap()]), past, host)
}

/// Waits for an answer, no longer than a node may be without what was taken away.
async fn until(expected: &str, what: &str, answer: impl AsyncFn() -> String) {
    let begin = std::time::Instant::now();
    loop {
        let answer = answer().await;
        if answer == expected {
            println!("{what}: after {:?}", begin.elapsed());
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}: {answer:?}, not {expected:?}");
    }
}

fn node() -> Node {
    ip("link set lo up");
    ip("address add 169.254.2.1/32 dev lo");
    ip("link add uplink0 type veth peer name uplink1");
    ip("link set uplink1 up");
    ip("address add 10.80.0.2/24 dev uplink0");
    ip("address add fd00:10:80::2/64 dev uplink0 nodad");
    ip("link set uplink0 up");
    ip("route add default dev uplink0");
    ip("-6 route add default dev uplink0");
    ip("link add cni0 type bridge");
    ip("address add 10.244.1.1/24 dev cni0");
    ip("address add fd00:10:244:1::1/64 dev cni0 nodad");
    ip("link set cni0 up");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    nft(KUBE_PROXY);
    let dir = tempfile::tempdir().unwrap();
    let places = Places { hub: dir.path().join("hub"), holder: dir.path().join("holder") };
    std::fs::create_dir(&places.hub).unwrap();
    std::fs::create_dir(&places.holder).unwrap();
    Node { _dir: dir, places }
}

/// Goes with its interfaces and tables: the tests are in one namespace.
struct Node {
    _dir: TempDir,
    places: Places,
}

impl Drop for Node {
    fn drop(&mut self) {
        for words in ["link del uplink0", "link del cni0", "address del 169.254.2.1/32 dev lo"] {
            let _ = Command::new("ip").args(words.split(' ')).status();
        }
        let _ = Command::new("nft").arg("flush ruleset").status();
    }
}

/// Nobody asks for the address that it is to hold.
fn new_holder(places: &Places) -> Holder<'_> {
    Holder::new(places, watch::Sender::default())
}

#[test]
fn a_file_that_could_not_be_read_once_is_read_again_and_one_that_lies_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { hub: dir.path().to_owned(), holder: dir.path().join("holder") };
    let path = places.wanted();
    wanted(&[], true).write(&path).unwrap();
    let mut holder = new_holder(&places);
    let short = || DocumentError::Disk(std::io::Error::other("too many open files"));
    holder.take(Stamp::of(&path).unwrap(), Err(short()));
    assert_eq!(holder.wanted, None);
    holder.read();
    assert_eq!(holder.wanted, Some(wanted(&[], true)), "the file is as it was");
    std::fs::write(&path, "{").unwrap();
    holder.read();
    assert_eq!((holder.wanted.clone(), holder.read.clone()), (Some(wanted(&[], true)), Stamp::of(&path)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network namespace of its own, root, ip and nft"]
async fn kernel_that_somebody_flushes_the_rules_while_the_kernel_is_tried_says_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { hub: dir.path().join("hub"), holder: dir.path().to_owned() };
    for _ in 0..10 {
        let stop = CancellationToken::new();
        let end = stop.clone();
        let somebody = tokio::spawn(async move {
            let begin = std::time::Instant::now();
            let mut times = 0;
            while !end.is_cancelled() && begin.elapsed() < Duration::from_millis(200) {
                remove().await.unwrap();
                times += 1;
            }
            times
        });
        try_out(&places, None).await;
        stop.cancel();
        println!("flushed {} times", somebody.await.unwrap());
        assert_eq!(Told::read(&places.told()).unwrap(), Some(Told::default()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network namespace of its own, root, ip and nft"]
async fn kernel_new_pods_and_the_host_come_to_the_hub_whatever_somebody_does_to_the_table() {
    let node = node();
    let places = node.places.clone();
    says("169.254.2.1:10268", "hub").await;
    says("10.80.0.2:6443", "api").await;
    let udp = UdpSocket::bind("10.80.0.2:6443").await.unwrap();
    let (new, old) = (Pod::new(5), Pod::new(6));
    assert_eq!((&*new.asks(SERVICE).await, &*asks(&[], SERVICE).await), ("api", "api"));

    try_out(&places, None).await;
    assert_eq!(Told::read(&places.told()).unwrap(), Some(Told::default()), "the kernel can");
    let stop = CancellationToken::new();
    let (there, end) = (places.clone(), stop.clone());
    let holder = tokio::spawn(async move { super::run(&there, watch::Sender::default(), end).await });
    wanted(&["10.244.1.6"], false).write(&places.wanted()).unwrap();
    until("hub", "a new pod", async || new.asks(SERVICE).await).await;
    assert_eq!(old.asks(SERVICE).await, "api", "one from before");
    assert_eq!(asks(&[], SERVICE).await, "api", "the host keeps to the API server");
    wanted(&["10.244.1.6"], true).write(&places.wanted()).unwrap();
    until("hub", "the host", async || asks(&[], SERVICE).await).await;
    assert_eq!(Told::read(&places.told()).unwrap().unwrap().in_place, Some(wanted(&["10.244.1.6"], true)));

    // Other ports and protocols are none of ours.
    assert_eq!((&*new.asks("10.96.0.1:80").await, &*asks(&[], "10.96.0.1:80").await), ("api", "api"));
    let id = new.0.id().to_string();
    run("nsenter", &["--net", "-t", &id, "bash", "-c", "echo x > /dev/udp/10.96.0.1/443"]);
    let mut byte = [0; 1];
    tokio::time::timeout(Duration::from_secs(5), udp.recv(&mut byte)).await.unwrap().unwrap();

    for change in [
        "flush ruleset",
        "flush chain inet yurt-edge prerouting",
        "flush set inet yurt-edge services4",
        "add table inet yurt-edge { flags dormant; }",
        "delete table inet yurt-edge",
    ] {
        nft(change);
        if change == "flush ruleset" {
            nft(KUBE_PROXY);
        }
        until("hub", &format!("a new pod, after {change}"), async || new.asks(SERVICE).await).await;
        assert_eq!(asks(&[], SERVICE).await, "hub", "{change}");
        assert_eq!(old.asks(SERVICE).await, "api", "{change}");
    }
    nft("flush set inet yurt-edge past4");
    until("api", "one from before, after its set was flushed", async || old.asks(SERVICE).await).await;

    // A file that lies, one that is damaged, and none: what was wanted stays.
    for text in [r#"{"version":1,"services":["10.96.0.1:0"],"past":[],"host":true}"#, "{"] {
        std::fs::write(places.wanted(), text).unwrap();
        tokio::time::sleep(2 * LOOK_EVERY).await;
        assert_eq!((&*new.asks(SERVICE).await, &*old.asks(SERVICE).await), ("hub", "api"), "{text}");
    }
    std::fs::remove_file(places.wanted()).unwrap();
    nft("delete table inet yurt-edge");
    until("hub", "a new pod, without the hub", async || new.asks(SERVICE).await).await;

    stop.cancel();
    holder.await.unwrap();
    assert_eq!(new.asks(SERVICE).await, "api", "it goes with the holder");
    remove().await.unwrap();
    remove().await.unwrap();
    assert_eq!(new.asks(SERVICE).await, "api");
    assert!(!run("nft", &["list", "ruleset"]).contains("yurt"));
}
