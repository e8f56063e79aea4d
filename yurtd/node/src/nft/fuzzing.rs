//! The writer of netlink messages and the reader of the kernel's answers, for a fuzzer.

use std::net::{IpAddr, SocketAddr};

use super::dump::{Seen, generation, get_elements, get_generation, get_rules, get_table};
use super::message::NLA_F_NESTED as NESTED;
use super::socket::verdict;
use super::table::{Action, Chain, Family, Hook, Match, Rule, Set, Table, remove, replace};

/// A table of any addresses, in any number: every length is that of what follows, and nothing is left out.
pub fn nft_table(input: &[u8]) {
    let [repeat, rest @ ..] = input else { return };
    let (chunks, rest) = rest.as_chunks::<19>();
    // Beyond what one message holds.
    let many = if *repeat > 128 { 2500 } else { 0 };
    let many = (0..many).map(|at: u32| SocketAddr::from((at.to_be_bytes(), 443)));
    let addresses: Vec<SocketAddr> = chunks.iter().map(address).chain(many).collect();
    let past = || addresses.iter().map(SocketAddr::ip);
    let action = if repeat % 2 == 0 {
        Action::Redirect(10264)
    } else {
        Action::Dnat(([169, 254, 2, 1], 10268).into())
    };
    let table = Table {
        name: "yurt",
        sets: vec![
            Set::of_endpoints("to4", Family::V4, addresses.iter().copied()),
            Set::of_endpoints("to6", Family::V6, addresses.iter().copied()),
            Set::of_addresses("from4", Family::V4, past()),
            Set::of_addresses("from6", Family::V6, past()),
        ],
        chains: vec![Chain {
            hook: Hook::Prerouting,
            rules: vec![Rule {
                family: Family::V4,
                matches: vec![Match::DestinationIn("to4"), Match::SourceNotIn("from4")],
                action,
            }],
        }],
    };
    let (bytes, acknowledged) = replace(&table).numbered(u32::from(*repeat));
    let mut elements = 0;
    let messages = walk(&bytes, &mut elements);
    assert_eq!(elements, table.sets.iter().map(|set| set.elements.len()).sum::<usize>());
    assert_eq!(acknowledged, u32::from(*repeat) + messages - 2);
    let name = std::str::from_utf8(rest).unwrap_or("yurt");
    for messages in
        [remove(name), get_table(name), get_rules(name), get_elements(name, name), get_generation()]
    {
        let count = messages.len();
        assert_eq!(walk(&messages.numbered(u32::MAX).0, &mut elements), count);
    }
}

fn address(chunk: &[u8; 19]) -> SocketAddr {
    let [family, octets @ .., high, low] = chunk;
    let port = u16::from_be_bytes([*high, *low]);
    let [a, b, c, d, ..] = *octets;
    if family % 2 == 0 { ([a, b, c, d], port).into() } else { (IpAddr::from(*octets), port).into() }
}

/// Walks over messages; gives how many there are and counts the elements of sets among them.
fn walk(mut bytes: &[u8], elements: &mut usize) -> u32 {
    let mut count = 0;
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        assert!(length >= 20 && length.is_multiple_of(4));
        let (message, rest) = bytes.split_at(length);
        let is_elements = message[4..6] == (10_u16 << 8 | 12).to_ne_bytes();
        attributes(&message[20..], &mut |path| {
            // NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
            *elements += usize::from(is_elements && path == [3, 1, 1, 1]);
        });
        bytes = rest;
        count += 1;
    }
    assert!(bytes.is_empty());
    count
}

/// Walks over attributes, the nested ones too, and gives the path to every leaf.
fn attributes(bytes: &[u8], leaf: &mut dyn FnMut(&[u16])) {
    fn below(mut bytes: &[u8], path: &mut Vec<u16>, leaf: &mut dyn FnMut(&[u16])) {
        while let Some([length_low, length_high, kind_low, kind_high]) = bytes.first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([*length_low, *length_high]));
            let kind = u16::from_ne_bytes([*kind_low, *kind_high]);
            assert!(length >= 4);
            path.push(kind & !NESTED);
            if kind & NESTED == 0 {
                leaf(path)
            } else {
                below(&bytes[4..length], path, leaf)
            }
            path.pop();
            bytes = &bytes[length.next_multiple_of(4)..];
        }
        assert!(bytes.is_empty());
    }
    below(bytes, &mut Vec::new(), leaf);
}

/// What the kernel answers.
pub fn nft_answer(input: &[u8]) {
    let Some((numbers, datagram)) = input.split_first_chunk::<2>() else { return };
    let (first, last) = (u32::from(numbers[0]), u32::from(numbers[0].wrapping_add(numbers[1])));
    let mut seen = Seen::default();
    let mut bytes = 0;
    let mut take = |message: &[u8]| {
        bytes += message.len();
        let _ = generation(message);
        seen.take("yurt", message)
    };
    if let Ok(Some(Ok(()))) = verdict(datagram, first, last, &mut take) {
        assert!(datagram.windows(4).any(|word| word == last.to_ne_bytes()));
    }
    assert!(bytes <= datagram.len());
    // Nothing is seen that was not said.
    let elements = seen.elements.values().flatten().map(Vec::len).sum::<usize>();
    let rules = seen.rules.values().flatten().map(|(handle, rule)| handle.len() + rule.len()).sum::<usize>();
    assert!(elements + rules <= bytes);
}
