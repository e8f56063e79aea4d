//! Netlink messages for nftables, as bytes. Pure.
//!
//! A message is a `nlmsghdr` (length, type, flags, sequence, port; native byte order), a `nfgenmsg` (family, version,
//! resource id in network order) and attributes: length and type in native order, payload padded to four
//! bytes; numbers inside nftables' attributes are big-endian. Names as in the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`. A batch is a transaction: all of it happens, or nothing.

pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;

const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// Attributes that hold others carry this bit.
pub(super) const NLA_F_NESTED: u16 = 0x8000;
/// What is left of an attribute's type without the bits for its form.
pub(super) const NLA_TYPE_MASK: u16 = 0x3fff;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;

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

    /// A message to nftables, about tables of family `inet`.
    pub(super) fn nft(&mut self, kind: u16, flags: u16, build: impl FnOnce(&mut Attributes<'_>)) {
        self.message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_INET, 0, build);
    }

    /// A question: answered by what was asked for, and an acknowledgement.
    pub(super) fn question(kind: u16, build: impl FnOnce(&mut Attributes<'_>)) -> Self {
        let mut messages = Self::default();
        messages.nft(kind, NLM_F_ACK, build);
        messages
    }

    /// A question for all that there is of a kind: answered by many messages and one that says it is the last.
    pub(super) fn dump(kind: u16, build: impl FnOnce(&mut Attributes<'_>)) -> Self {
        let mut messages = Self::default();
        messages.nft(kind, NLM_F_DUMP, build);
        messages
    }

    /// A transaction; its last message is acknowledged.
    pub(super) fn transaction(build: impl FnOnce(&mut Self)) -> Self {
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
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn put(&mut self, kind: u16, payload: &[u8]) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.close(start);
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.put(kind, &payload);
    }

    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    pub(super) fn nested(&mut self, kind: u16, build: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        build(&mut Attributes(self.0));
        self.close(start);
    }

    fn close(&mut self, start: usize) {
        // Below 2^16: texts are short, and whoever writes a long list cuts it (`table::ELEMENTS`).
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// `NFTA_DATA_VALUE` inside `kind`.
    pub(super) fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.put(1, value));
    }

    /// One expression of a rule.
    pub(super) fn expression(&mut self, name: &str, build: impl FnOnce(&mut Attributes<'_>)) {
        const NFTA_LIST_ELEM: u16 = 1;
        self.nested(NFTA_LIST_ELEM, |expression| {
            expression.text(1, name);
            expression.nested(2, build);
        });
    }
}
