//! Where tunnel servers are: at the addresses that a person gave, and at those of the API servers that the cluster names,
//! since a tunnel server runs beside each of them.
//!
//! The two are kept apart. What was given is tried for ever; what was found is tried as well, comes and goes with the
//! control-plane nodes, and may be nothing that leads there from this node: such an address is tried rarely.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use http::uri::Authority;
use tokio::sync::watch;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    /// `host:port`
    pub(super) server: String,
    /// The cluster names it, and nobody gave it.
    pub(super) found: bool,
}

/// What the cluster says.
#[derive(Debug, Clone)]
pub struct Found {
    /// The API servers that it names now, or named when there was a link last.
    pub api_servers: watch::Receiver<Vec<SocketAddr>>,
    /// The port of the tunnel servers beside them.
    pub port: u16,
}

/// What was given, each once.
pub(super) fn given(servers: &[String]) -> Vec<String> {
    let mut known = BTreeSet::new();
    let mut once = Vec::new();
    for server in servers {
        if known.insert(same(server)) {
            once.push(server.clone());
        } else {
            tracing::warn!(
                server,
                "this tunnel server's address is configured twice; the second one changes nothing"
            );
        }
    }
    once
}

/// What was given, and what is found beside it.
pub(super) fn all(given: &[String], found: &[SocketAddr], port: u16) -> BTreeSet<Address> {
    let known: BTreeSet<_> = given.iter().map(|server| same(server)).collect();
    let beside = found.iter().map(|server| SocketAddr::new(server.ip(), port).to_string());
    let beside = beside.filter(|server| !known.contains(&same(server)));
    let of = |found: bool| move |server: String| Address { server, found };
    given.iter().cloned().map(of(false)).chain(beside.map(of(true))).collect()
}

/// Equal for two texts that say the same address.
fn same(server: &str) -> String {
    if let Ok(address) = server.parse::<SocketAddr>() {
        return address.to_string();
    }
    match server.parse::<Authority>() {
        Ok(authority) => authority.as_str().to_ascii_lowercase(),
        Err(_) => server.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(servers: &[&str]) -> Vec<String> {
        servers.iter().map(|server| (*server).to_owned()).collect()
    }

    #[test]
    fn an_address_that_is_given_twice_counts_once() {
        let servers =
            texts(&["Cloud.example.com:443", "[fd00::1]:1", "cloud.example.com:443", "[fd00:0::1]:1", "a:2"]);
        assert_eq!(given(&servers), ["Cloud.example.com:443", "[fd00::1]:1", "a:2"]);
    }

    #[test]
    fn what_is_found_is_beside_what_was_given_and_not_it_once_more() {
        let found: Vec<SocketAddr> = ["10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:6443"]
            .map(|address| address.parse().unwrap())
            .into();
        let all = all(&texts(&["10.0.0.1:10262", "cloud:443"]), &found, 10262);
        let all: Vec<_> = all.iter().map(|address| (address.server.as_str(), address.found)).collect();
        let expected = [
            ("10.0.0.1:10262", false),
            ("10.0.0.2:10262", true),
            ("[fd00::1]:10262", true),
            ("cloud:443", false),
        ];
        assert_eq!(all, expected);
    }
}
