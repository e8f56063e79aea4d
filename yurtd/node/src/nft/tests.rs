use std::net::SocketAddr;

use super::message::*;
use super::table::*;
use super::{Action, Chain, Family, Hook, Match, Rule, Set, Table};

const NFT_MSG_DELTABLE: u16 = 2;

fn endpoints(all: &[SocketAddr]) -> Table {
    let rule = |family, set| Rule {
        family,
        matches: vec![Match::DestinationIn(set)],
        action: Action::Redirect(10264),
    };
    let rules = vec![rule(Family::V4, "kubelets4"), rule(Family::V6, "kubelets6")];
    Table {
        name: "yurt",
        sets: vec![
            Set::of_endpoints("kubelets4", Family::V4, all.iter().copied()),
            Set::of_endpoints("kubelets6", Family::V6, all.iter().copied()),
        ],
        chains: [Hook::Output, Hook::Prerouting].map(|hook| Chain { hook, rules: rules.clone() }).into(),
    }
}

/// Splits messages; checks lengths and alignment on the way.
fn split(mut bytes: &[u8]) -> Vec<(u16, u16, u32, &[u8])> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        assert_eq!(length % 4, 0);
        let message = &bytes[..length];
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let sequence = u32::from_ne_bytes(message[8..12].try_into().unwrap());
        messages.push((kind, flags, sequence, &message[20..]));
        bytes = &bytes[length..];
    }
    messages
}

/// Walks attributes, the nested ones too; gives (path of kinds, payload) of every leaf.
fn leaves(mut bytes: &[u8], path: &[u16], found: &mut Vec<(Vec<u16>, Vec<u8>)>) {
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]);
        let payload = &bytes[4..length];
        let mut here = path.to_vec();
        here.push(kind & !NLA_F_NESTED);
        if kind & NLA_F_NESTED == 0 {
            found.push((here, payload.to_vec()));
        } else {
            leaves(payload, &here, found);
        }
        bytes = &bytes[length.next_multiple_of(4)..];
    }
}

fn leaves_of(bytes: &[u8]) -> Vec<(Vec<u16>, Vec<u8>)> {
    let mut found = Vec::new();
    leaves(bytes, &[], &mut found);
    found
}

fn addresses(count: u32) -> Vec<SocketAddr> {
    (0..count).map(|number| SocketAddr::from(((0x0a00_0000 + number).to_be_bytes(), 10250))).collect()
}

#[test]
#[cfg(target_endian = "little")]
fn the_removal_of_a_table_byte_by_byte() {
    let (bytes, acknowledged) = remove("yurt").numbered(5);
    assert_eq!(acknowledged, 7);
    #[rustfmt::skip]
    let expected: &[u8] = &[
        // BATCH_BEGIN for nftables.
        20, 0, 0, 0,  0x10, 0,  1, 0,  5, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 10,
        // NEWTABLE inet "yurt", create.
        32, 0, 0, 0,  0, 10,  1, 4,  6, 0, 0, 0,  0, 0, 0, 0,  1, 0, 0, 0,
        9, 0, 1, 0, b'y', b'u', b'r', b't', 0, 0, 0, 0,
        // DELTABLE, acknowledged.
        32, 0, 0, 0,  2, 10,  5, 0,  7, 0, 0, 0,  0, 0, 0, 0,  1, 0, 0, 0,
        9, 0, 1, 0, b'y', b'u', b'r', b't', 0, 0, 0, 0,
        // BATCH_END.
        20, 0, 0, 0,  0x11, 0,  1, 0,  8, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 10,
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn a_replacement_is_one_transaction_acknowledged_at_its_end() {
    let messages = replace(&endpoints(&addresses(2)));
    assert_eq!(messages.len(), 14);
    let (bytes, acknowledged) = messages.numbered(100);
    let messages = split(&bytes);
    let kinds: Vec<u16> = messages.iter().map(|(kind, ..)| kind & 0xff).collect();
    let expected = [
        NFNL_MSG_BATCH_BEGIN,
        NFT_MSG_NEWTABLE,
        NFT_MSG_DELTABLE,
        NFT_MSG_NEWTABLE,
        NFT_MSG_NEWSET,
        NFT_MSG_NEWSETELEM,
        NFT_MSG_NEWSET,
        NFT_MSG_NEWCHAIN,
        NFT_MSG_NEWRULE,
        NFT_MSG_NEWRULE,
        NFT_MSG_NEWCHAIN,
        NFT_MSG_NEWRULE,
        NFT_MSG_NEWRULE,
        NFNL_MSG_BATCH_END,
    ];
    assert_eq!(kinds, expected);
    let sequences: Vec<u32> = messages.iter().map(|(.., sequence, _)| *sequence).collect();
    assert_eq!(sequences, (100..114).collect::<Vec<_>>());
    let with_ack: Vec<u32> = messages
        .iter()
        .filter(|(_, flags, ..)| flags & NLM_F_ACK != 0)
        .map(|(.., sequence, _)| *sequence)
        .collect();
    assert_eq!(with_ack, [112]);
    assert_eq!(acknowledged, 112);
}

#[test]
fn keys_are_address_and_port_padded_to_words() {
    let one = |set: Set| set.elements.into_iter().next().unwrap();
    let v4 = one(Set::of_endpoints("s", Family::V4, ["192.168.0.100:10250".parse().unwrap()]));
    assert_eq!(v4, [192, 168, 0, 100, 0x28, 0x0a, 0, 0]);
    let v6 = one(Set::of_endpoints("s", Family::V6, ["[fd00::1]:443".parse().unwrap()]));
    assert_eq!(v6, [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xbb, 0, 0]);
    let alone = one(Set::of_addresses("s", Family::V4, ["10.0.0.1".parse().unwrap()]));
    assert_eq!(alone, [10, 0, 0, 1]);
}

#[test]
fn every_address_is_in_exactly_one_set() {
    let mut all = addresses(2500);
    all.push("[fd00::1]:10250".parse().unwrap());
    let (bytes, _) = replace(&endpoints(&all)).numbered(1);
    let mut keys = Vec::new();
    for (kind, _, _, payload) in split(&bytes) {
        if kind & 0xff == NFT_MSG_NEWSETELEM {
            let leaves = leaves_of(payload);
            let set = leaves.iter().find(|(path, _)| path == &[2]).unwrap().1.clone();
            let here = leaves.into_iter().filter(|(path, _)| path == &[3, 1, 1, 1]).map(|(_, key)| key);
            keys.extend(here.map(|key| (set.clone(), key)));
        }
    }
    assert_eq!(keys.iter().filter(|(set, _)| set == b"kubelets4\0").count(), 2500);
    assert_eq!(keys.iter().filter(|(set, _)| set == b"kubelets6\0").count(), 1);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2501);
}

#[test]
fn a_rule_matches_family_protocol_and_set_and_redirects() {
    let (bytes, _) = replace(&endpoints(&[])).numbered(1);
    let messages = split(&bytes);
    let rule = messages.iter().find(|(kind, ..)| kind & 0xff == NFT_MSG_NEWRULE).unwrap();
    let leaves = leaves_of(rule.3);
    let names: Vec<&[u8]> =
        leaves.iter().filter(|(path, _)| path == &[4, 1, 1]).map(|(_, name)| &name[..]).collect();
    let expected: [&[u8]; 9] = [
        b"meta\0",
        b"cmp\0",
        b"meta\0",
        b"cmp\0",
        b"payload\0",
        b"payload\0",
        b"lookup\0",
        b"immediate\0",
        b"redir\0",
    ];
    assert_eq!(names, expected);
    // The port in network order.
    assert!(leaves.contains(&(vec![4, 1, 2, 2, 1], vec![0x28, 0x18])));
}
