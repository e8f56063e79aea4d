//! What the kernel has: the questions, and what its answers say. Pure.
//!
//! Answers are read with a bounded cursor: what does not hold together is [`NftError::Answer`], never a guess.

use std::collections::{BTreeMap, BTreeSet};

use super::NftError;
use super::message::{Messages, NFNL_SUBSYS_NFTABLES, NLA_TYPE_MASK};
use super::table::{NFT_MSG_NEWRULE, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, Table};

const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFT_TABLE_F_DORMANT: u32 = 1;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS: usize = 20;

/// Asks for the table.
pub(super) fn get_table(table: &str) -> Messages {
    Messages::question(NFT_MSG_GETTABLE, |attributes| attributes.text(1, table))
}

/// Asks for the number that every change of anybody's rules raises.
pub(super) fn get_generation() -> Messages {
    Messages::question(NFT_MSG_GETGEN, |_| {})
}

/// Asks for the rules of a table.
pub(super) fn get_rules(table: &str) -> Messages {
    Messages::dump(NFT_MSG_GETRULE, |attributes| attributes.text(1, table))
}

/// Asks for the elements of a set.
pub(super) fn get_elements(table: &str, set: &str) -> Messages {
    Messages::dump(NFT_MSG_GETSETELEM, |attributes| {
        attributes.text(1, table);
        attributes.text(2, set);
    })
}

/// The kernel's number of a rule, and what it does.
type SeenRule = (Vec<u8>, Vec<u8>);

/// What was seen of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is there, and not switched off (`flags dormant`).
    pub(super) awake: bool,
    /// By chain, in their order.
    pub(super) rules: BTreeMap<Vec<u8>, Vec<SeenRule>>,
    /// By set.
    pub(super) elements: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

impl Seen {
    /// Whether this can be the table: its sets have these elements, and its chains so many rules. What the rules do is
    /// not asked: the kernel adds to what it was told. That is compared with what was seen when they were made.
    pub(super) fn can_be(&self, table: &Table) -> bool {
        let chains = table.chains.iter().filter(|chain| !chain.rules.is_empty());
        let rules = chains.map(|chain| (chain.hook.chain().as_bytes(), chain.rules.len()));
        let sets = table.sets.iter().map(|set| (set.name.as_bytes(), &set.elements));
        self.awake
            && rules.collect::<BTreeMap<_, _>>()
                == self.rules.iter().map(|(chain, rules)| (&**chain, rules.len())).collect()
            && sets.collect::<BTreeMap<_, _>>()
                == self.elements.iter().map(|(set, elements)| (&**set, elements)).collect()
    }

    /// Takes what an answer says of the table of this name.
    pub(super) fn take(&mut self, table: &str, message: &[u8]) -> Result<(), NftError> {
        let Some(kind) = kind(message)? else { return Ok(()) };
        let attributes: BTreeMap<u16, &[u8]> = Cursor(&message[HEADERS..]).collect::<Result<_, _>>()?;
        if attributes.get(&1).copied().map(text) != Some(table.as_bytes()) {
            // Kernels that do not know how to choose tell of all tables.
            return Ok(());
        }
        match kind {
            NFT_MSG_NEWTABLE => {
                let flags = attributes.get(&2).map_or(Ok(0), |flags| number(flags))?;
                self.awake = flags & NFT_TABLE_F_DORMANT == 0;
            }
            NFT_MSG_NEWRULE => {
                let field = |at: u16| attributes.get(&at).copied().ok_or(NftError::Answer);
                let rules = self.rules.entry(text(field(2)?).to_vec()).or_default();
                rules.push((field(3)?.to_vec(), field(4)?.to_vec()));
            }
            NFT_MSG_NEWSETELEM => {
                let set = attributes.get(&2).copied().ok_or(NftError::Answer)?;
                let elements = self.elements.entry(text(set).to_vec()).or_default();
                for element in Cursor(attributes.get(&3).copied().unwrap_or_default()) {
                    elements.insert(key(element?.1)?.to_vec());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The number in an answer to [`get_generation`].
pub(super) fn generation(message: &[u8]) -> Result<Option<u32>, NftError> {
    if kind(message)? != Some(NFT_MSG_NEWGEN) {
        return Ok(None);
    }
    for attribute in Cursor(&message[HEADERS..]) {
        let (kind, payload) = attribute?;
        if kind == 1 {
            return number(payload).map(Some);
        }
    }
    Err(NftError::Answer)
}

/// Which of nftables' messages it is; nothing when it is of another subsystem.
fn kind(message: &[u8]) -> Result<Option<u16>, NftError> {
    if message.len() < HEADERS {
        return Err(NftError::Answer);
    }
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    Ok((kind >> 8 == NFNL_SUBSYS_NFTABLES).then_some(kind & 0xff))
}

/// `NFTA_SET_ELEM_KEY`, and `NFTA_DATA_VALUE` in it.
fn key(element: &[u8]) -> Result<&[u8], NftError> {
    inside(inside(element, 1)?, 1)
}

fn inside(attributes: &[u8], wanted: u16) -> Result<&[u8], NftError> {
    for attribute in Cursor(attributes) {
        let (kind, payload) = attribute?;
        if kind == wanted {
            return Ok(payload);
        }
    }
    Err(NftError::Answer)
}

/// Names end with a zero.
fn text(payload: &[u8]) -> &[u8] {
    payload.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(payload: &[u8]) -> Result<u32, NftError> {
    let bytes = <[u8; 4]>::try_from(payload).map_err(|_| NftError::Answer)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Reads attributes: kind and payload.
struct Cursor<'a>(&'a [u8]);

impl<'a> Iterator for Cursor<'a> {
    type Item = Result<(u16, &'a [u8]), NftError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.0.first_chunk::<4>().and_then(|[low, high, kind_low, kind_high]| {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let kind = u16::from_ne_bytes([*kind_low, *kind_high]) & NLA_TYPE_MASK;
            let payload = self.0.get(4..length)?;
            Some((kind, payload, self.0.get(length.next_multiple_of(4)..).unwrap_or_default()))
        });
        let Some((kind, payload, rest)) = read else {
            self.0 = &[];
            return Some(Err(NftError::Answer));
        };
        self.0 = rest;
        Some(Ok((kind, payload)))
    }
}
