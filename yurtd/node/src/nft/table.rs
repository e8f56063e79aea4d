//! What a table of ours is made of, and the messages that make it. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::message::{Attributes, Messages, NLM_F_APPEND, NLM_F_CREATE};

pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_NEWSET: u16 = 9;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_OUT: u32 = 3;
/// Before `NF_IP_PRI_NAT_DST` (-100), where kube-proxy is.
const PRIORITY: i32 = -110;
const NF_ACCEPT: u32 = 1;

const NFT_SET_CONCAT: u32 = 0x80;
const NFT_REG_1: u32 = 1;
const NFT_REG_2: u32 = 2;
const NFT_REG32_01: u32 = 9;
const NFT_META_MARK: u32 = 3;
const NFT_META_L4PROTO: u32 = 16;
const NFT_META_NFPROTO: u32 = 15;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFT_NAT_DNAT: u32 = 1;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const IPPROTO_TCP: u8 = 6;

/// `nft`'s numbers of data types; the kernel only hands them back to `nft list`.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;

/// Set elements in one message: its list is one attribute, whose length is a `u16`.
const ELEMENTS: usize = 1000;

/// A table of family `inet`, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its sets, each with a name of its own.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A set of addresses, or of addresses with ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub(super) name: &'static str,
    family: Family,
    with_ports: bool,
    pub(super) elements: BTreeSet<Vec<u8>>,
}

/// A chain of type `nat`, before everybody else's: the first that says where a connection goes is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where connections come from.
    pub hook: Hook,
    /// What is done with them.
    pub rules: Vec<Rule>,
}

/// Where a chain sees connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// From this network namespace: the host itself.
    Output,
    /// From elsewhere: pods, the network.
    Prerouting,
}

/// What is done with new TCP connections of a family. It is done in the direction of the connection, so its own answers
/// need no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// All of them must hold.
    pub matches: Vec<Match>,
    /// What is done then.
    pub action: Action,
}

/// What a connection may be chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// Destination and its port are in the set of this name (`ip daddr . tcp dport @SET`).
    DestinationIn(&'static str),
    /// Its source is not in the set of this name (`ip saddr != @SET`).
    SourceNotIn(&'static str),
    /// Its packets do not carry this mark (`meta mark != MARK`).
    MarkIsNot(u32),
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes to this port of the host, at the address of the interface by which it came.
    Redirect(u16),
    /// It goes there.
    Dnat(SocketAddr),
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What differs between the families.
struct Facts {
    nfproto: u8,
    address_type: u32,
    address_length: u32,
    /// In the IP header.
    source: u32,
    destination: u32,
    /// The register behind the one that the address fills.
    port_register: u32,
}

impl Family {
    fn facts(self) -> &'static Facts {
        match self {
            Self::V4 => &Facts {
                nfproto: NFPROTO_IPV4,
                address_type: TYPE_IPV4_ADDR,
                address_length: 4,
                source: 12,
                destination: 16,
                port_register: NFT_REG32_01,
            },
            Self::V6 => &Facts {
                nfproto: NFPROTO_IPV6,
                address_type: TYPE_IPV6_ADDR,
                address_length: 16,
                source: 8,
                destination: 24,
                port_register: NFT_REG_2,
            },
        }
    }

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Set {
    /// Those of these that are of the family, with their ports.
    pub fn of_endpoints(
        name: &'static str,
        family: Family,
        all: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let key = |endpoint: SocketAddr| {
            // As in a concatenated key: each padded to four bytes.
            let mut key = octets(endpoint.ip());
            key.extend(endpoint.port().to_be_bytes());
            key.extend([0, 0]);
            key
        };
        let all = all.into_iter().filter(|endpoint| Family::of(endpoint.ip()) == family);
        Self { name, family, with_ports: true, elements: all.map(key).collect() }
    }

    /// Those of these that are of the family.
    pub fn of_addresses(name: &'static str, family: Family, all: impl IntoIterator<Item = IpAddr>) -> Self {
        let all = all.into_iter().filter(|address| Family::of(*address) == family);
        Self { name, family, with_ports: false, elements: all.map(octets).collect() }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Hook {
    /// The chain is named after it.
    pub(super) fn chain(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Output => NF_INET_LOCAL_OUT,
            Self::Prerouting => NF_INET_PRE_ROUTING,
        }
    }
}

/// Replaces the table of this name, if there is one, by this one.
pub(super) fn replace(table: &Table) -> Messages {
    Messages::transaction(|messages| {
        delete(messages, table.name);
        messages.nft(NFT_MSG_NEWTABLE, NLM_F_CREATE, |attributes| attributes.text(1, table.name));
        for (at, set) in table.sets.iter().enumerate() {
            new_set(messages, table.name, set, at as u32 + 1);
            let members: Vec<&Vec<u8>> = set.elements.iter().collect();
            for members in members.chunks(ELEMENTS) {
                new_elements(messages, table.name, set.name, at as u32 + 1, members);
            }
        }
        for chain in &table.chains {
            new_chain(messages, table.name, chain.hook);
            for rule in &chain.rules {
                new_rule(messages, table, chain.hook, rule);
            }
        }
    })
}

/// Removes the table if it is there.
pub(super) fn remove(table: &str) -> Messages {
    Messages::transaction(|messages| delete(messages, table))
}

/// Deleting needs a table; without flags the first message changes nothing about one that is there.
fn delete(messages: &mut Messages, table: &str) {
    messages.nft(NFT_MSG_NEWTABLE, NLM_F_CREATE, |attributes| attributes.text(1, table));
    messages.nft(NFT_MSG_DELTABLE, 0, |attributes| attributes.text(1, table));
}

fn new_set(messages: &mut Messages, table: &str, set: &Set, id: u32) {
    let facts = set.family.facts();
    messages.nft(NFT_MSG_NEWSET, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(2, set.name);
        attributes.number(3, if set.with_ports { NFT_SET_CONCAT } else { 0 });
        let (kind, length) = if set.with_ports {
            (facts.address_type << TYPE_BITS | TYPE_INET_SERVICE, facts.address_length + 4)
        } else {
            (facts.address_type, facts.address_length)
        };
        attributes.number(4, kind);
        attributes.number(5, length);
        attributes.number(10, id);
        attributes.nested(9, |description| {
            // Of a set with a size the kernel makes a hash table that stays as it is. One without grows behind the
            // back of who reads it, who is then told of elements twice, or of some never.
            description.number(1, u32::try_from(set.elements.len().max(1)).unwrap_or(u32::MAX));
            if set.with_ports {
                // The length of each field, so that concatenation is understood.
                description.nested(2, |fields| {
                    for length in [facts.address_length, 2] {
                        fields.nested(1, |field| field.number(1, length));
                    }
                });
            }
        });
    });
}

fn new_elements(messages: &mut Messages, table: &str, set: &str, id: u32, members: &[&Vec<u8>]) {
    messages.nft(NFT_MSG_NEWSETELEM, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(2, set);
        attributes.number(4, id);
        attributes.nested(3, |list| {
            for member in members {
                list.nested(1, |element| element.data(1, member));
            }
        });
    });
}

fn new_chain(messages: &mut Messages, table: &str, hook: Hook) {
    messages.nft(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(3, hook.chain());
        attributes.nested(4, |hooks| {
            hooks.number(1, hook.number());
            hooks.put(2, &PRIORITY.to_be_bytes());
        });
        attributes.number(5, NF_ACCEPT);
        attributes.text(7, "nat");
    });
}

fn new_rule(messages: &mut Messages, table: &Table, hook: Hook, rule: &Rule) {
    let facts = rule.family.facts();
    messages.nft(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |attributes| {
        attributes.text(1, table.name);
        attributes.text(2, hook.chain());
        attributes.nested(4, |list| {
            for (key, value) in [(NFT_META_NFPROTO, facts.nfproto), (NFT_META_L4PROTO, IPPROTO_TCP)] {
                compare(list, key, NFT_CMP_EQ, &[value]);
            }
            for condition in &rule.matches {
                matching(list, table, facts, *condition);
            }
            acting(list, facts, rule.action);
        });
    });
}

/// What the kernel knows of a packet under `key`, against a value.
fn compare(list: &mut Attributes<'_>, key: u32, how: u32, value: &[u8]) {
    list.expression("meta", |meta| {
        meta.number(1, NFT_REG_1);
        meta.number(2, key);
    });
    list.expression("cmp", |cmp| {
        cmp.number(1, NFT_REG_1);
        cmp.number(2, how);
        cmp.data(3, value);
    });
}

fn matching(list: &mut Attributes<'_>, table: &Table, facts: &Facts, condition: Match) {
    let load = |list: &mut Attributes<'_>, register, base, offset, length| {
        list.expression("payload", |payload| {
            payload.number(1, register);
            payload.number(2, base);
            payload.number(3, offset);
            payload.number(4, length);
        });
    };
    let (set, flags) = match condition {
        Match::DestinationIn(set) => {
            load(list, NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, facts.destination, facts.address_length);
            load(list, facts.port_register, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
            (set, 0)
        }
        Match::SourceNotIn(set) => {
            load(list, NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, facts.source, facts.address_length);
            (set, NFT_LOOKUP_F_INV)
        }
        Match::MarkIsNot(mark) => {
            // In the byte order of the host, as the kernel has it in the register.
            return compare(list, NFT_META_MARK, NFT_CMP_NEQ, &mark.to_ne_bytes());
        }
    };
    list.expression("lookup", |lookup| {
        lookup.text(1, set);
        lookup.number(2, NFT_REG_1);
        // By its number in this transaction; one that there is not, the kernel refuses.
        let id = table.sets.iter().position(|known| known.name == set).map_or(0, |at| at as u32 + 1);
        lookup.number(4, id);
        if flags != 0 {
            lookup.number(5, flags);
        }
    });
}

fn acting(list: &mut Attributes<'_>, facts: &Facts, action: Action) {
    let mut load = |register, value: &[u8]| {
        list.expression("immediate", |immediate| {
            immediate.number(1, register);
            immediate.data(2, value);
        });
    };
    match action {
        Action::Redirect(port) => {
            load(NFT_REG_1, &port.to_be_bytes());
            list.expression("redir", |redir| {
                redir.number(1, NFT_REG_1);
                redir.number(3, NF_NAT_RANGE_PROTO_SPECIFIED);
            });
        }
        Action::Dnat(to) => {
            load(NFT_REG_1, &octets(to.ip()));
            load(NFT_REG_2, &to.port().to_be_bytes());
            list.expression("nat", |nat| {
                nat.number(1, NFT_NAT_DNAT);
                nat.number(2, facts.nfproto.into());
                nat.number(3, NFT_REG_1);
                nat.number(5, NFT_REG_2);
            });
        }
    }
}
