//! The same where the Service has an IPv6 address.

use super::*;
use crate::address;

const SERVICE: &str = "[fd00:10:96::1]:443";

/// The Service is led to the hub, but for pods from before.
fn wanted(past: &[&str], host: bool) -> Wanted {
    let past = past.iter().map(|ip| ip.parse().unwrap()).collect();
    Wanted::new(BTreeSet::from([SERVICE.parse().unwrap()]), past, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network namespace of its own, root, ip and nft"]
async fn kernel_pods_and_the_host_come_to_the_hub_at_an_ipv6_address_whatever_somebody_does() {
    let node = node();
    let places = node.places.clone();
    says("[fd00:10:80::2]:6443", "api").await;
    let hub = crate::serve::sockets::bind((names::HUB_POD_IPV6, names::HUB_POD_PORT).into()).unwrap();
    serve(TcpListener::from_std(hub).unwrap(), "hub");
    let (new, old) = (Pod::new(7), Pod::new(8));
    until("api", "a pod, before anything is wanted", async || new.asks(SERVICE).await).await;
    assert_eq!(asks(&[], SERVICE).await, "api");

    try_out(&places, None).await;
    assert_eq!(Told::read(&places.told()).unwrap(), Some(Told::default()), "the kernel can");
    let stop = CancellationToken::new();
    let (ipv6, said) = watch::channel(false);
    let (there, end) = (places.clone(), stop.clone());
    let table = tokio::spawn(async move { super::super::run(&there, ipv6, end).await });
    let addresses = tokio::spawn(address::hold_addresses(said, stop.clone()));
    wanted(&["fd00:10:244:1::8"], false).write(&places.wanted()).unwrap();
    until("hub", "a new pod", async || new.asks(SERVICE).await).await;
    assert_eq!(old.asks(SERVICE).await, "api", "one from before");
    assert_eq!(asks(&[], SERVICE).await, "api", "the host keeps to the API server");
    assert_eq!(new.asks("[fd00:10:96::1]:80").await, "api", "another port");
    assert!(!run("nft", &["list", "table", "inet", "yurt-edge"]).contains("ipv4"), "nobody wants that");
    wanted(&["fd00:10:244:1::8"], true).write(&places.wanted()).unwrap();
    until("hub", "the host", async || asks(&[], SERVICE).await).await;
    let told = Told::read(&places.told()).unwrap().unwrap();
    assert_eq!(told.in_place, Some(wanted(&["fd00:10:244:1::8"], true)));

    for change in [
        "flush ruleset",
        "flush chain inet yurt-edge prerouting",
        "flush set inet yurt-edge services6",
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
    nft("flush set inet yurt-edge past6");
    until("api", "one from before, after its set was flushed", async || old.asks(SERVICE).await).await;
    for change in ["address del fd6b:7975:7274::1/128 dev lo", "-6 address flush dev lo scope global"] {
        ip(change);
        until("hub", &format!("a new pod, after {change}"), async || new.asks(SERVICE).await).await;
        assert_eq!(old.asks(SERVICE).await, "api", "{change}");
    }

    // A cluster that has both.
    says("169.254.2.1:10268", "hub").await;
    says("10.80.0.2:6443", "api").await;
    let mut both = wanted(&["10.244.1.8", "fd00:10:244:1::8"], true);
    both.services.insert(super::SERVICE.parse().unwrap());
    both.write(&places.wanted()).unwrap();
    until("hub", "a new pod over IPv4", async || new.asks(super::SERVICE).await).await;
    assert_eq!((&*new.asks(SERVICE).await, &*asks(&[], SERVICE).await), ("hub", "hub"));
    assert_eq!((&*old.asks(SERVICE).await, &*old.asks(super::SERVICE).await), ("api", "api"));

    stop.cancel();
    table.await.unwrap();
    addresses.await.unwrap().unwrap();
    assert_eq!(new.asks(SERVICE).await, "api", "they go with the holder");
    assert!(!run("nft", &["list", "ruleset"]).contains("yurt"));
    assert!(!run("ip", &["-6", "address", "show", "lo"]).contains("fd6b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a network namespace of its own, root, ip and nft"]
async fn kernel_a_node_without_ipv6_says_so_and_leads_ipv4_all_the_same() {
    let node = node();
    let places = node.places.clone();
    try_out(&places, Some("no IPv6 here".into())).await;
    let told = Told { unable_ipv6: Some("no IPv6 here".into()), ..Told::default() };
    assert_eq!(Told::read(&places.told()).unwrap(), Some(told));
    let mut holder = new_holder(&places);
    super::wanted(&[], true).write(&places.wanted()).unwrap();
    holder.turn().await;
    let told = Told::read(&places.told()).unwrap().unwrap();
    assert_eq!(told.unable_ipv6.as_deref(), Some("no IPv6 here"), "IPv4 says nothing of it");
    wanted(&[], true).write(&places.wanted()).unwrap();
    holder.turn().await;
    assert_eq!(Told::read(&places.told()).unwrap().unwrap().unable_ipv6, None, "it is in place");
}
