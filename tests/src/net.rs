//! The network: one wide-area bridge, the host's foot in it, and sites behind NAT.
//!
//! ```text
//! host 10.80.0.1 ──┐
//! master 10.80.0.2 ┤ wan (its own namespace, 10.80.0.254 routes nothing)
//! site router .11 ─┘──nat── lan 192.168.0.1 ── edge nodes 192.168.0.100 …
//! ```
//!
//! Nothing outside reaches a site: its router masquerades what leaves and lets in only answers. Two
//! sites may use the same subnet, as real ones do.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths::PREFIX;
use crate::run::{self, sh};
use crate::wait::until_true;

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
pub const MASTER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 2);
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 254);

/// The host's interface on the wide-area network.
const HOST_INTERFACE: &str = "yurt-host";
/// What a node that is left alone has over its uplink in that time, and a little.
const QUIET: u64 = 6 << 10;
const LOOK: Duration = Duration::from_secs(5);

fn wan() -> String {
    format!("{PREFIX}wan")
}

/// Makes the wide-area network and gives the host an address on it.
pub fn create_wan() -> Result<()> {
    let wan = wan();
    add_namespace(&wan)?;
    ip(&["-n", &wan, "link", "add", "wan", "type", "bridge"])?;
    ip(&["-n", &wan, "addr", "add", &format!("{NOWHERE}/24"), "dev", "wan"])?;
    ip(&["-n", &wan, "link", "set", "wan", "up"])?;
    ip(&["link", "add", HOST_INTERFACE, "type", "veth", "peer", "name", "host", "netns", &wan])?;
    ip(&["-n", &wan, "link", "set", "host", "master", "wan", "up"])?;
    ip(&["addr", "add", &format!("{HOST}/24"), "dev", HOST_INTERFACE])?;
    ip(&["link", "set", HOST_INTERFACE, "up"])?;
    Ok(())
}

/// The namespace of a machine that stands on the wide-area network itself.
pub fn attach_to_wan(machine: &str, address: Ipv4Addr) -> Result<String> {
    let namespace = machine_namespace(machine)?;
    plug(&namespace, "eth0", &wan(), "wan", machine)?;
    configure(&namespace, "eth0", address, NOWHERE)?;
    Ok(namespace)
}

fn machine_namespace(machine: &str) -> Result<String> {
    let namespace = format!("{PREFIX}m-{machine}");
    add_namespace(&namespace)?;
    Ok(namespace)
}

/// What is wrong with a site's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Packets vanish, both ways: a lost radio link.
    BlackHole,
    /// Connections are refused and reset, as by a router that lost its uplink and says so.
    Reset,
}

/// A place behind NAT: a router, and a network for edge nodes behind it.
#[derive(Debug, Clone)]
pub struct Site {
    name: String,
    /// The router's address on the wide-area network.
    pub outside: Ipv4Addr,
    /// The router's address on the site's own network.
    pub inside: Ipv4Addr,
}

impl Site {
    /// Makes a site. `inside` is the router's address in the site's /24.
    pub fn create(name: &str, outside: Ipv4Addr, inside: Ipv4Addr) -> Result<Self> {
        let site = Self { name: name.to_owned(), outside, inside };
        let router = site.namespace();
        add_namespace(&router)?;
        plug(&router, "uplink", &wan(), "wan", name)?;
        configure(&router, "uplink", outside, NOWHERE)?;
        ip(&["-n", &router, "link", "add", "lan", "type", "bridge"])?;
        ip(&["-n", &router, "addr", "add", &format!("{inside}/24"), "dev", "lan"])?;
        ip(&["-n", &router, "link", "set", "lan", "up"])?;
        sh("ip", &["netns", "exec", &router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        site.nft(
            "table ip site {
                chain outgoing {
                    type nat hook postrouting priority srcnat;
                    oifname \"uplink\" masquerade
                }
                chain passing {
                    type filter hook forward priority filter; policy drop;
                    ct state established,related accept
                    iifname \"lan\" accept
                }
                chain incoming {
                    type filter hook input priority filter; policy accept;
                    iifname \"uplink\" ct state new drop
                }
            }",
        )?;
        Ok(site)
    }

    /// A site that an earlier run made.
    pub fn find(name: &str) -> Result<Self> {
        let namespace = format!("{PREFIX}s-{name}");
        let address = |interface: &str| -> Result<Ipv4Addr> {
            let text = ip(&["-n", &namespace, "-4", "-j", "addr", "show", "dev", interface])?;
            let links: serde_json::Value = serde_json::from_str(&text)?;
            links[0]["addr_info"][0]["local"]
                .as_str()
                .and_then(|address| address.parse().ok())
                .with_context(|| format!("no address in {text}"))
        };
        Ok(Self { name: name.to_owned(), outside: address("uplink")?, inside: address("lan")? })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> String {
        format!("{PREFIX}s-{}", self.name)
    }

    /// The namespace of a machine in this site.
    pub fn attach(&self, machine: &str, address: Ipv4Addr) -> Result<String> {
        let namespace = machine_namespace(machine)?;
        plug(&namespace, "eth0", &self.namespace(), "lan", machine)?;
        configure(&namespace, "eth0", address, self.inside)?;
        Ok(namespace)
    }

    /// Takes the site off the network, in the router: the machines' own interfaces stay up.
    pub fn cut(&self, fault: Fault) -> Result<()> {
        self.restore()?;
        let verdict = match fault {
            Fault::BlackHole => "drop",
            Fault::Reset => "meta l4proto tcp reject with tcp reset\nreject",
        };
        self.nft(&format!(
            "table ip outage {{
                chain passing {{
                    type filter hook forward priority -10; policy accept;
                    {verdict}
                }}
            }}"
        ))
        .with_context(|| format!("cutting the link of {}", self.name))
    }

    /// Puts the site back on the network; does nothing if it was on it.
    pub fn restore(&self) -> Result<()> {
        self.nft("table ip outage {}\ndelete table ip outage")
            .with_context(|| format!("restoring the link of {}", self.name))
    }

    /// Bytes that have gone (out of, into) the site over its uplink so far.
    pub fn uplink_bytes(&self) -> Result<(u64, u64)> {
        let text = ip(&["-n", &self.namespace(), "-s", "-j", "link", "show", "dev", "uplink"])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let count = |way: &str| {
            links[0]["stats64"][way]["bytes"].as_u64().with_context(|| format!("no {way} counter in {text}"))
        };
        Ok((count("tx")?, count("rx")?))
    }

    /// Waits until the uplink carries no more than that of a node that is left alone. After a cut, or when many objects
    /// were made, it is busy for a while: every pod's status, Events, controllers that write at a bounded rate.
    ///
    /// # Errors
    ///
    /// When it does not become quiet.
    pub fn wait_quiet(&self) -> Result<()> {
        until_true("the uplink to be quiet", Duration::from_secs(180), || {
            let before = self.uplink_bytes()?;
            std::thread::sleep(LOOK);
            let after = self.uplink_bytes()?;
            let moved = (after.0 - before.0) + (after.1 - before.1);
            Ok((moved > QUIET).then(|| format!("{} KiB in {} s", moved >> 10, LOOK.as_secs())))
        })?;
        Ok(())
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", &self.namespace(), "nft", "-f", "-"]);
        run::run_with(command, Some(rules.as_bytes()), run::DEFAULT_TIMEOUT)?.success()?;
        Ok(())
    }
}

/// Names of all namespaces that a testbed made.
pub fn namespaces() -> Result<Vec<String>> {
    Ok(sh("ip", &["netns", "list"])?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with(PREFIX))
        .map(str::to_owned)
        .collect())
}

/// Removes every namespace of a testbed, and with them the links that end in them.
pub fn remove_all() -> Result<()> {
    for namespace in namespaces()? {
        sh("ip", &["netns", "delete", &namespace])?;
    }
    // A namespace dies when its last user does, its links a moment later.
    until_true("the host's link to be gone", Duration::from_secs(10), || {
        let links = ip(&["-j", "link", "show"])?;
        if !links.contains(&format!("\"{HOST_INTERFACE}\"")) {
            return Ok(None);
        }
        ip(&["link", "delete", HOST_INTERFACE]).ok();
        Ok(Some(format!("{HOST_INTERFACE} is there")))
    })?;
    Ok(())
}

/// What a kernel forgets without power: rules, connections, addresses and interfaces that programs made.
/// The machine's own cable stays in.
pub fn forget(namespace: &str) -> Result<()> {
    let text = ip(&["-n", namespace, "-j", "link", "show"])?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    for name in
        links.iter().filter_map(|link| link["ifname"].as_str()).filter(|name| !["lo", "eth0"].contains(name))
    {
        // The other end of one that is gone already, or one that the kernel owns.
        ip(&["-n", namespace, "link", "delete", name]).ok();
    }
    ip(&["-n", namespace, "addr", "flush", "dev", "lo"])?;
    ip(&["-n", namespace, "link", "set", "lo", "down"])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])?;
    sh("ip", &["netns", "exec", namespace, "nft", "flush", "ruleset"])?;
    Ok(())
}

fn add_namespace(name: &str) -> Result<()> {
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    Ok(())
}

/// A cable from an interface of one namespace to a bridge of another.
fn plug(namespace: &str, interface: &str, bridge_namespace: &str, bridge: &str, port: &str) -> Result<()> {
    // Interface names have at most 15 characters.
    let port: String = port.chars().take(15).collect();
    ip(&[
        "-n",
        namespace,
        "link",
        "add",
        interface,
        "type",
        "veth",
        "peer",
        "name",
        &port,
        "netns",
        bridge_namespace,
    ])?;
    ip(&["-n", bridge_namespace, "link", "set", &port, "master", bridge, "up"])?;
    Ok(())
}

fn configure(namespace: &str, interface: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
    ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", interface])?;
    ip(&["-n", namespace, "link", "set", interface, "up"])?;
    ip(&["-n", namespace, "route", "add", "default", "via", &gateway.to_string()])?;
    Ok(())
}

fn ip(args: &[&str]) -> Result<String> {
    sh("ip", args)
}
