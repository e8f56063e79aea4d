//! The writer of netlink messages and the reader of the kernel's answers, for a fuzzer.

use std::net::{IpAddr, SocketAddr};

use super::message::{get, remove, replace};
use super::socket::verdict;

/// Attributes that hold others carry this bit.
const NESTED: u16 = 0x8000;

/// A table of any addresses, in any number: every length is that of what follows, and nothing is left out.
pub fn nft_table(input: &[u8]) {
    let [repeat, rest @ ..] = input else { return };
    let (chunks, rest) = rest.as_chunks::<19>();
    let few = chunks.iter().map(address);
    // Beyond what one message holds.
    let addresses: Vec<_> = std::iter::repeat_n(few, 1 + usize::from(*repeat)).flatten().take(2500).collect();
    let name = std::str::from_utf8(rest).unwrap_or("yurt");
    let (bytes, acknowledged) = replace(name, 10264, &addresses).numbered(u32::from(*repeat));
    let mut elements = 0;
    let messages = walk(&bytes, &mut elements);
    assert_eq!(elements, addresses.len());
    assert_eq!(acknowledged, u32::from(*repeat) + messages - 2);
    for messages in [remove(name), get(name)] {
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
    if let Ok(Some(Ok(()))) = verdict(datagram, first, last) {
        assert!(datagram.windows(4).any(|word| word == last.to_ne_bytes()));
    }
}
