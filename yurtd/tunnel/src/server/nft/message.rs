//! Netlink messages for nftables, as bytes. Pure.
//!
//! A message is a `nlmsghdr` (length, type, flags, sequence, port; native byte order), a `nfgenmsg` (family, version,
//! resource id in network order) and attributes: length and type in native order, payload padded to four
//! bytes; numbers inside nftables' attributes are big-endian. Names as in the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`. A batch is a transaction: all of it happens, or nothing.

use std::net::{IpAddr, SocketAddr};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
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
const NFT_META_L4PROTO: u32 = 16;
const NFT_META_NFPROTO: u32 = 15;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const IPPROTO_TCP: u8 = 6;

/// `nft`'s numbers of data types; the kernel only hands them back to `nft list`.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;

/// Set elements in one message: its list is one attribute, whose length is a `u16`.
const ELEMENTS: usize = 1000;

/// IPv4 or IPv6: what differs between the two sets and their rules.
#[derive(Clone, Copy)]
struct Family {
    set: &'static str,
    id: u32,
    nfproto: u8,
    address_type: u32,
    address_length: u32,
    /// Of the destination address in the IP header.
    offset: u32,
    /// The register behind the one the address fills, for the port.
    port_register: u32,
}

const V4: Family = Family {
    set: "kubelets4",
    id: 1,
    nfproto: NFPROTO_IPV4,
    address_type: TYPE_IPV4_ADDR,
    address_length: 4,
    offset: 16,
    port_register: NFT_REG32_01,
};
const V6: Family = Family {
    set: "kubelets6",
    id: 2,
    nfproto: NFPROTO_IPV6,
    address_type: TYPE_IPV6_ADDR,
    address_length: 16,
    offset: 24,
    port_register: NFT_REG_2,
};

impl Family {
    fn contains(self, address: &SocketAddr) -> bool {
        address.is_ipv4() == (self.nfproto == NFPROTO_IPV4)
    }

    /// Address and port as in a concatenated key: each padded to four bytes.
    fn key(self, address: &SocketAddr) -> Vec<u8> {
        let mut key = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        key.extend(address.port().to_be_bytes());
        key.extend([0, 0]);
        key
    }
}

/// One or more messages with consecutive sequence numbers, the first of which is set when it is sent.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// Index of the message whose acknowledgement tells that everything has happened.
    acknowledged: usize,
}

impl Messages {
    /// The bytes with sequence numbers from `first`, and the number that is acknowledged.
    pub(super) fn numbered(mut self, first: u32) -> (Vec<u8>, u32) {
        let mut sequence = first;
        for start in &self.starts {
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
        }
        (self.bytes, first.wrapping_add(self.acknowledged as u32))
    }

    /// How many sequence numbers they use.
    pub(super) fn len(&self) -> u32 {
        self.starts.len() as u32
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        build: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        build(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn nft(&mut self, kind: u16, flags: u16, build: impl FnOnce(&mut Attributes<'_>)) {
        self.message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_INET, 0, build);
    }

    /// A transaction; its last message is acknowledged.
    fn transaction(build: impl FnOnce(&mut Self)) -> Self {
        let mut messages = Self::default();
        messages.message(NFNL_MSG_BATCH_BEGIN, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, |_| {});
        build(&mut messages);
        messages.acknowledged = messages.starts.len() - 1;
        if let Some(last) = messages.starts.last() {
            let flags = last + 6..last + 8;
            let with_ack = u16::from_ne_bytes([messages.bytes[flags.start], messages.bytes[flags.start + 1]])
                | NLM_F_ACK;
            messages.bytes[flags].copy_from_slice(&with_ack.to_ne_bytes());
        }
        messages.message(NFNL_MSG_BATCH_END, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, |_| {});
        messages
    }
}

/// Appends attributes to a message.
struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn put(&mut self, kind: u16, payload: &[u8]) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.close(start);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.put(kind, &payload);
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, build: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        build(&mut Attributes(self.0));
        self.close(start);
    }

    fn close(&mut self, start: usize) {
        // Below 2^16: texts are short, and ELEMENTS bounds the only long list.
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// `NFTA_DATA_VALUE` inside `kind`.
    fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.put(1, value));
    }

    /// One expression of a rule.
    fn expression(&mut self, name: &str, build: impl FnOnce(&mut Attributes<'_>)) {
        const NFTA_LIST_ELEM: u16 = 1;
        self.nested(NFTA_LIST_ELEM, |expression| {
            expression.text(1, name);
            expression.nested(2, build);
        });
    }
}

/// Replaces the table by one with these addresses.
pub(super) fn replace(table: &str, port: u16, addresses: &[SocketAddr]) -> Messages {
    Messages::transaction(|messages| {
        delete(messages, table);
        messages.nft(NFT_MSG_NEWTABLE, NLM_F_CREATE, |attributes| attributes.text(1, table));
        for family in [V4, V6] {
            set(messages, table, family);
            let members: Vec<_> = addresses.iter().filter(|address| family.contains(address)).collect();
            for members in members.chunks(ELEMENTS) {
                elements(messages, table, family, members);
            }
        }
        for (chain_name, hook) in [("output", NF_INET_LOCAL_OUT), ("prerouting", NF_INET_PRE_ROUTING)] {
            chain(messages, table, chain_name, hook);
            for family in [V4, V6] {
                rule(messages, table, chain_name, family, port);
            }
        }
    })
}

/// Removes the table if it is there.
pub(super) fn remove(table: &str) -> Messages {
    Messages::transaction(|messages| delete(messages, table))
}

/// Asks for the table.
pub(super) fn get(table: &str) -> Messages {
    let mut messages = Messages::default();
    messages.nft(NFT_MSG_GETTABLE, NLM_F_ACK, |attributes| attributes.text(1, table));
    messages
}

/// Deleting needs a table; without flags the first message changes nothing about one that is there.
fn delete(messages: &mut Messages, table: &str) {
    messages.nft(NFT_MSG_NEWTABLE, NLM_F_CREATE, |attributes| attributes.text(1, table));
    messages.nft(NFT_MSG_DELTABLE, 0, |attributes| attributes.text(1, table));
}

fn set(messages: &mut Messages, table: &str, family: Family) {
    messages.nft(NFT_MSG_NEWSET, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(2, family.set);
        attributes.number(3, NFT_SET_CONCAT);
        attributes.number(4, family.address_type << TYPE_BITS | TYPE_INET_SERVICE);
        attributes.number(5, family.address_length + 4);
        attributes.number(10, family.id);
        // NFTA_SET_DESC with the length of each field, so that concatenation is understood.
        attributes.nested(9, |description| {
            description.nested(2, |fields| {
                for length in [family.address_length, 2] {
                    fields.nested(1, |field| field.number(1, length));
                }
            });
        });
    });
}

fn elements(messages: &mut Messages, table: &str, family: Family, members: &[&SocketAddr]) {
    messages.nft(NFT_MSG_NEWSETELEM, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(2, family.set);
        attributes.number(4, family.id);
        attributes.nested(3, |list| {
            for member in members {
                list.nested(1, |element| element.data(1, &family.key(member)));
            }
        });
    });
}

fn chain(messages: &mut Messages, table: &str, name: &str, hook: u32) {
    messages.nft(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |attributes| {
        attributes.text(1, table);
        attributes.text(3, name);
        attributes.nested(4, |hooks| {
            hooks.number(1, hook);
            hooks.put(2, &PRIORITY.to_be_bytes());
        });
        attributes.number(5, NF_ACCEPT);
        attributes.text(7, "nat");
    });
}

fn rule(messages: &mut Messages, table: &str, chain: &str, family: Family, port: u16) {
    messages.nft(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |attributes| {
        attributes.text(1, table);
        attributes.text(2, chain);
        attributes.nested(4, |rule| {
            for (key, value) in [(NFT_META_NFPROTO, family.nfproto), (NFT_META_L4PROTO, IPPROTO_TCP)] {
                rule.expression("meta", |meta| {
                    meta.number(1, NFT_REG_1);
                    meta.number(2, key);
                });
                rule.expression("cmp", |cmp| {
                    cmp.number(1, NFT_REG_1);
                    cmp.number(2, NFT_CMP_EQ);
                    cmp.data(3, &[value]);
                });
            }
            let loads = [
                (NFT_REG_1, NFT_PAYLOAD_NETWORK_HEADER, family.offset, family.address_length),
                (family.port_register, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
            ];
            for (register, base, offset, length) in loads {
                rule.expression("payload", |payload| {
                    payload.number(1, register);
                    payload.number(2, base);
                    payload.number(3, offset);
                    payload.number(4, length);
                });
            }
            rule.expression("lookup", |lookup| {
                lookup.text(1, family.set);
                lookup.number(2, NFT_REG_1);
                lookup.number(4, family.id);
            });
            rule.expression("immediate", |immediate| {
                immediate.number(1, NFT_REG_1);
                immediate.data(2, &port.to_be_bytes());
            });
            rule.expression("redir", |redir| {
                redir.number(1, NFT_REG_1);
                redir.number(3, NF_NAT_RANGE_PROTO_SPECIFIED);
            });
        });
    });
}

#[cfg(test)]
mod tests;
