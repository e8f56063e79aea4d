//! What hub and holder of the address tell each other: two small files, each replaced by a rename, so that nobody reads
//! half of one.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use yurt_api::names::{HUB_POD_ADDRESS, HUB_POD_IPV6, HUB_POD_PORT, NFT_EDGE_TABLE};
use yurt_node::nft::{Action, Chain, Family, Hook, Match, Rule, Set, Table};

/// Format of both.
const VERSION: u32 = 1;
/// A file that is longer is none of ours.
const MOST_BYTES: u64 = 1 << 20;
/// A Service has an address a family, and `default/kubernetes` one port.
const MOST_SERVICES: usize = 16;
/// A node has some hundred pods.
const MOST_PAST: usize = 10_000;

/// What the table has for a family: the names of its sets, and where new connections are led.
struct Parts {
    family: Family,
    services: &'static str,
    past: &'static str,
    hub: IpAddr,
}

/// For both families.
fn parts() -> [Option<Parts>; 2] {
    let ipv4 = HUB_POD_ADDRESS.parse::<Ipv4Addr>().ok();
    [
        ipv4.map(|hub| Parts { family: Family::V4, services: "services4", past: "past4", hub: hub.into() }),
        Some(Parts { family: Family::V6, services: "services6", past: "past6", hub: HUB_POD_IPV6.into() }),
    ]
}

/// What the hub wants: who is sent to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Wanted {
    version: u32,
    /// Tells one word of the hub's from the next, whatever they say.
    #[serde(default)]
    pub(crate) revision: u64,
    /// New connections to these come to the hub; without any there is no table.
    pub(crate) services: BTreeSet<SocketAddr>,
    /// But not those of these pods.
    pub(crate) past: BTreeSet<IpAddr>,
    /// Those of the host itself, too.
    pub(crate) host: bool,
    /// The node is to have the hub's IPv6 address, in either way in. Where it is not, the file is as holders of before
    /// know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ipv6: bool,
}

/// What the holder says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Told {
    /// Why the kernel cannot have such a table at all: seen before anything was wanted.
    pub(crate) unable: Option<String>,
    /// Why it cannot have one for IPv6, or no IPv6 address.
    pub(crate) unable_ipv6: Option<String>,
    /// What is in place.
    pub(crate) in_place: Option<Wanted>,
    /// Why what is wanted is not.
    pub(crate) error: Option<String>,
}

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// It says so of this moment alone.
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error("it cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Unusable(String),
}

impl Wanted {
    pub(crate) fn new(services: BTreeSet<SocketAddr>, past: BTreeSet<IpAddr>, host: bool) -> Self {
        let ipv6 = services.iter().any(SocketAddr::is_ipv6);
        Self { version: VERSION, revision: 0, services, past, host, ipv6 }
    }

    /// The same, with the hub's IPv6 address on the node whoever is led there.
    pub(crate) fn with_ipv6(self, ipv6: bool) -> Self {
        Self { ipv6: self.ipv6 || ipv6, ..self }
    }

    /// The same, as this word of the hub's.
    pub(crate) fn revised(self, revision: u64) -> Self {
        Self { revision, ..self }
    }

    /// Whether both say the same.
    pub(crate) fn says(&self, other: &Self) -> bool {
        *self == Self { revision: self.revision, ..other.clone() }
    }

    /// Whether a Service of this family is led to the hub.
    pub(crate) fn leads(&self, family: Family) -> bool {
        self.services.iter().any(|service| Family::of(service.ip()) == family)
    }

    /// Nobody is sent to the hub.
    pub(crate) fn nothing() -> Self {
        Self::new(BTreeSet::new(), BTreeSet::new(), false)
    }

    /// Reads it; nothing when there is none.
    ///
    /// # Errors
    ///
    /// [`DocumentError`].
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, DocumentError> {
        let Some(wanted) = read::<Self>(path)? else { return Ok(None) };
        wanted.check()?;
        Ok(Some(wanted))
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// [`DocumentError`], also when it is nothing that the other side would believe.
    pub(crate) fn write(&self, path: &Path) -> Result<(), DocumentError> {
        self.check()?;
        write(path, self)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let unusable = |text: String| Err(DocumentError::Unusable(text));
        if self.version != VERSION {
            return unusable(format!("its version is {}", self.version));
        }
        if self.services.len() > MOST_SERVICES || self.past.len() > MOST_PAST {
            return unusable(format!("{} Services, {} pods", self.services.len(), self.past.len()));
        }
        if self.leads(Family::V6) && !self.ipv6 {
            return unusable("IPv6 leads to an address that is not wanted".to_owned());
        }
        for service in &self.services {
            let ip = service.ip();
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            let nobodys = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast;
            // What the hub listens on must not lead to itself, nor what it asks there to any other.
            let hubs = parts().iter().flatten().any(|parts| parts.hub == ip);
            if nobodys || hubs || service.port() == 0 {
                return unusable(format!("{service} is no Service's"));
            }
        }
        Ok(())
    }

    /// The table; nothing when nobody is sent to the hub.
    pub(crate) fn table(&self) -> Option<Table> {
        if self.services.is_empty() {
            return None;
        }
        let (mut sets, mut pods, mut host) = (Vec::new(), Vec::new(), Vec::new());
        // A family without a Service has no part: the kernel may not know it.
        for Parts { family, services, past, hub } in parts().into_iter().flatten() {
            if !self.leads(family) {
                continue;
            }
            sets.push(Set::of_endpoints(services, family, self.services.iter().copied()));
            sets.push(Set::of_addresses(past, family, self.past.iter().copied()));
            let action = Action::Dnat(SocketAddr::new(hub, HUB_POD_PORT));
            let rule = |matches| Rule { family, matches, action };
            pods.push(rule(vec![Match::DestinationIn(services), Match::SourceNotIn(past)]));
            host.push(rule(vec![Match::DestinationIn(services)]));
        }
        let mut chains = vec![Chain { hook: Hook::Prerouting, rules: pods }];
        if self.host {
            chains.push(Chain { hook: Hook::Output, rules: host });
        }
        Some(Table { name: NFT_EDGE_TABLE, sets, chains })
    }
}

impl Told {
    /// Reads it; nothing when there is none.
    ///
    /// # Errors
    ///
    /// [`DocumentError`].
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, DocumentError> {
        read(path)
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// [`DocumentError`].
    pub(crate) fn write(&self, path: &Path) -> Result<(), DocumentError> {
        write(path, self)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DocumentError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(DocumentError::Unusable("it is too long".into()));
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

/// In memory (`/run`), so nothing has to reach a disk.
fn write(path: &Path, document: &impl Serialize) -> Result<(), DocumentError> {
    let text = serde_json::to_vec(document)?;
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&text)?;
    std::fs::rename(&beside, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::new(
            BTreeSet::from(["10.96.0.1:443".parse().unwrap()]),
            BTreeSet::from(["10.244.1.5".parse().unwrap()]),
            true,
        )
    }

    #[test]
    fn both_survive_the_disk_and_what_is_damaged_or_lies_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("way-in.json");
        assert_eq!(Wanted::read(&path).unwrap(), None);
        wanted().write(&path).unwrap();
        assert_eq!(Wanted::read(&path).unwrap(), Some(wanted()));
        let text = std::fs::read_to_string(&path).unwrap();
        let lies = [
            text[..text.len() / 2].to_owned(),
            String::new(),
            text.replace("443", "0"),
            text.replace("10.96.0.1", "169.254.2.1"),
            text.replace("10.96.0.1", "127.0.0.1"),
            text.replace("10.96.0.1", "0.0.0.0"),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("10.244.1.5", "everybody"),
            text.replace("\"host\"", "\"hosts\""),
            format!("{text}{}", " ".repeat(MOST_BYTES as usize)),
        ];
        for lie in lies {
            assert_ne!(lie, text);
            std::fs::write(&path, &lie).unwrap();
            assert!(Wanted::read(&path).is_err(), "{:.100}", lie);
        }
        let many = (0..=MOST_PAST as u32).map(|at| Ipv4Addr::from(at).into()).collect();
        assert!(Wanted::new(wanted().services, many, true).write(&path).is_err());
        let told = Told { in_place: Some(wanted()), error: Some("why".into()), ..Told::default() };
        told.write(&path).unwrap();
        assert_eq!(Told::read(&path).unwrap(), Some(told));
    }

    #[test]
    fn an_ipv6_service_is_led_to_the_ipv6_address_of_the_hub_and_a_family_without_one_has_no_part() {
        let service: SocketAddr = "[fd00:10:96::1]:443".parse().unwrap();
        let past = ["10.244.1.5", "fd00:10:244:1::5"].map(|ip| ip.parse().unwrap());
        let six = Wanted::new([service].into(), past.into(), true);
        let ipv4 = |table: &Table| {
            table
                .chains
                .iter()
                .flat_map(|chain| &chain.rules)
                .filter(|rule| rule.family == Family::V4)
                .count()
        };
        let table = six.table().unwrap();
        let hub = SocketAddr::from((HUB_POD_IPV6, HUB_POD_PORT));
        assert_eq!((table.sets.len(), table.chains.len(), ipv4(&table)), (2, 2, 0));
        assert_eq!(table.sets[1], Set::of_addresses("past6", Family::V6, past));
        for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
            assert_eq!((rule.family, rule.action), (Family::V6, Action::Dnat(hub)));
        }
        let only = wanted().table().unwrap();
        assert_eq!((only.sets.len(), ipv4(&only)), (2, 2));
        let both = Wanted::new(&six.services | &wanted().services, six.past.clone(), true).table().unwrap();
        assert_eq!((both.sets.len(), both.chains[0].rules.len(), ipv4(&both)), (4, 2, 2));
    }

    #[test]
    fn the_file_of_a_cluster_with_ipv4_is_as_holders_of_before_know_it() {
        let text = serde_json::to_value(wanted()).unwrap();
        let fields: Vec<&String> = text.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["host", "past", "revision", "services", "version"]);
        let nothing = Wanted::nothing();
        assert!(!nothing.ipv6 && nothing.clone().with_ipv6(true).ipv6);
        assert!(!nothing.says(&nothing.clone().with_ipv6(true)), "the address alone is a change");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("way-in.json");
        let six = Wanted::new(["[fd00:10:96::1]:443".parse().unwrap()].into(), BTreeSet::new(), true);
        six.write(&path).unwrap();
        assert_eq!(Wanted::read(&path).unwrap(), Some(six.clone()));
        let text = std::fs::read_to_string(&path).unwrap();
        let hub = HUB_POD_IPV6.to_string();
        for other in ["::", "::1", "ff02::1", &hub] {
            std::fs::write(&path, text.replace("fd00:10:96::1", other)).unwrap();
            assert!(Wanted::read(&path).is_err(), "{other}");
        }
        assert!(Wanted { ipv6: false, ..six }.write(&path).is_err(), "it leads to nobody");
    }

    #[test]
    fn the_host_is_sent_to_the_hub_only_if_that_is_wanted_and_without_a_service_nobody_is() {
        let hooks = |wanted: &Wanted| {
            let table = wanted.table().unwrap();
            table.chains.iter().map(|chain| chain.hook).collect::<Vec<_>>()
        };
        assert_eq!(hooks(&wanted()), [Hook::Prerouting, Hook::Output]);
        assert_eq!(hooks(&Wanted { host: false, ..wanted() }), [Hook::Prerouting]);
        assert_eq!(Wanted::nothing().table(), None);
    }
}
