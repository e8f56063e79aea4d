//! Whose answer one is, and under which key it is kept.

use sha2::{Digest, Sha256};

use crate::caller::Permit;

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner<'i> {
    /// kubelet.
    Node(&'i str),
    /// Somebody else, by user name.
    Other(&'i str),
    /// Every authenticated user may read it.
    Everybody,
}

/// What keys begin with: a byte for the kind of owner, and for [`Owner::Other`] a digest of its name.
pub(super) const OWNER: usize = 9;
/// The owner, and a digest of what the answer is about.
pub(super) const SUBJECT: usize = OWNER + 8;
/// The whole key: these, a digest of everything.
pub(super) const KEY: usize = SUBJECT + 32;
/// A key of the releases that had no subject in it: the owner, and the digest of everything.
pub(super) const OLDER_KEY: usize = OWNER + 32;
const NODE: u8 = 0;
const OTHER: u8 = 1;
const EVERYBODY: u8 = 2;

/// Somebody, as keys begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Prefix([u8; OWNER]);

impl Prefix {
    /// Whose key it is; nobody's when it is none.
    pub(super) fn of_key(key: &[u8]) -> Option<Self> {
        key.first_chunk().copied().map(Self)
    }

    /// Kubelet.
    pub(super) fn is_node(self) -> bool {
        self.0[0] == NODE
    }

    /// Not one: whoever is authenticated.
    pub(super) fn is_everybody(self) -> bool {
        self.0[0] == EVERYBODY
    }
}

impl<'i> Owner<'i> {
    /// The caller.
    pub(crate) fn of(permit: &'i Permit) -> Self {
        let identity = permit.identity().as_str();
        if permit.is_node() { Self::Node(identity) } else { Self::Other(identity) }
    }

    fn parts(self) -> (u8, &'i str) {
        match self {
            Self::Node(identity) => (NODE, identity),
            Self::Other(identity) => (OTHER, identity),
            Self::Everybody => (EVERYBODY, ""),
        }
    }

    /// What its keys begin with.
    pub(super) fn prefix(self) -> Prefix {
        let (kind, identity) = self.parts();
        let mut prefix = [kind; OWNER];
        prefix[1..].copy_from_slice(&Sha256::digest(identity.as_bytes())[..OWNER - 1]);
        Prefix(prefix)
    }
}

/// Under which key an answer is kept, and on whose account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(super) bytes: Vec<u8>,
    pub(super) by: Prefix,
}

impl Key {
    /// The answer's key. `subject`: the resource, `group/plural`.
    pub(crate) fn new(
        owner: Owner<'_>,
        subject: &str,
        path: &str,
        canonical_query: &str,
        accept: &str,
    ) -> Self {
        let text = [owner.parts().1, path, canonical_query, accept].join("\0");
        // LMDB keys are short; digests keep them so, and distinct.
        let by = owner.prefix();
        let mut bytes = by.0.to_vec();
        bytes.extend_from_slice(&Sha256::digest(subject.as_bytes())[..SUBJECT - OWNER]);
        bytes.extend_from_slice(&Sha256::digest(text.as_bytes()));
        Self { bytes, by }
    }

    /// The same, asked for by somebody in particular, whose share it is taken from.
    pub(crate) fn asked_by(self, owner: Owner<'_>) -> Self {
        Self { by: owner.prefix(), ..self }
    }

    /// The key that an older release kept the answer under.
    pub(super) fn older(&self) -> Vec<u8> {
        [&self.bytes[..OWNER], &self.bytes[SUBJECT..]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_two_identities_never_meet() {
        let (node, other) = (Owner::Node("a"), Owner::Other("a"));
        let key = |owner, path, query, accept| Key::new(owner, "", path, query, accept).bytes;
        assert_ne!(key(node, "/b", "", ""), key(Owner::Everybody, "a/b", "", ""));
        assert_ne!(key(node, "/b", "", ""), key(other, "/b", "", ""));
        assert_ne!(key(node, "/b", "x=1", "j"), key(node, "/b", "x=1", "p"));
    }

    #[test]
    fn who_asks_for_what_is_everybodys_does_not_make_it_another_answer() {
        let of_all = Key::new(Owner::Everybody, "", "/apis", "", "");
        let asked = of_all.clone().asked_by(Owner::Other("a"));
        assert_eq!(asked.bytes, of_all.bytes);
        assert_ne!(asked.by, of_all.by);
    }
}
