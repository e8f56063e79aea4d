//! What is remembered, without the store: how much there is, what waits to be written, and what has to go.
//!
//! Every answer is on somebody's account: on that of the caller whose answer it is, and what everybody may read on
//! those of all who have asked for it. Whoever has more than a quarter loses its own claims, and an answer goes with
//! its last one.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::key::Prefix;
use super::{Bounds, Keep};
use crate::clock::today;

/// Those who claim an answer that is everybody's; who comes later has it for nothing.
const CLAIMS: usize = 8;

#[derive(Default)]
pub(super) struct Index {
    pub(super) entries: HashMap<Vec<u8>, Entry>,
    total: usize,
    clock: u64,
    /// Bytes that wait to be written, or are kept in memory alone.
    pub(super) unwritten: usize,
    /// Keys whose value in the store is to be removed.
    pub(super) removed: HashSet<Vec<u8>>,
    /// Since when something waits to be written.
    pub(super) waiting: Option<Instant>,
    /// Those who have a pod on the node.
    pub(super) stay: HashSet<Prefix>,
    /// What an older release has left.
    pub(super) older: Older,
}

/// Answers with the keys of an older release. They are told until the API server has given another one. That release
/// did not write down when it was given them: they count as confirmed on the day on which they were found first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Older {
    pub(super) day: u64,
    /// The day is still to be written.
    pub(super) is_new: bool,
}

impl Older {
    /// First found on this day, if that is known.
    pub(super) fn since(day: Option<u64>) -> Self {
        Self { day: day.unwrap_or_else(today), is_new: day.is_none() }
    }
}

pub(super) struct Entry {
    size: usize,
    /// Of the value; not known of what an earlier process left.
    pub(super) digest: Option<[u8; 32]>,
    seen: u64,
    /// The value, if the store has none or an older one.
    pub(super) unwritten: Option<Vec<u8>>,
    pub(super) keep: Keep,
    /// Whether the store has a value for the key.
    stored: bool,
    /// On whose account it is; on nobody's if an earlier process has left it and everybody may read it.
    claims: Vec<Prefix>,
}

impl Entry {
    /// Whether it is on the account of somebody, and not on kubelet's.
    fn is_others(&self) -> bool {
        !self.claims.is_empty() && !self.claims.iter().any(|by| by.is_node())
    }
}

impl Index {
    /// An answer that the store has.
    pub(super) fn found(&mut self, key: Vec<u8>, size: usize) {
        self.clock += 1;
        self.total += size;
        let claims = Prefix::of_key(&key).filter(|by| !by.is_everybody()).into_iter().collect();
        let (seen, keep) = (self.clock, Keep::Stored);
        let entry = Entry { size, digest: None, seen, unwritten: None, keep, stored: true, claims };
        self.entries.insert(key, entry);
    }

    /// Whether somebody has a pod on the node.
    pub(super) fn stays(&self, by: Prefix) -> bool {
        self.stay.contains(&by)
    }

    /// Whether the same value is there already.
    pub(super) fn is_known(&self, key: &[u8], digest: &[u8; 32]) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.digest.as_ref() == Some(digest))
    }

    pub(super) fn insert(&mut self, key: Vec<u8>, by: Prefix, value: Vec<u8>, digest: [u8; 32], keep: Keep) {
        let claims = self.entries.get_mut(&key).map(|before| std::mem::take(&mut before.claims));
        self.remove(&key);
        let stored = self.removed.remove(&key);
        self.clock += 1;
        self.total += value.len();
        self.unwritten += value.len();
        if keep == Keep::Stored {
            self.waiting.get_or_insert_with(Instant::now);
        }
        let (size, digest, seen) = (value.len(), Some(digest), self.clock);
        let claims = claims.unwrap_or_default();
        let entry = Entry { size, digest, seen, unwritten: Some(value), keep, stored, claims };
        self.entries.entry(key).insert_entry(entry).get_mut().claim(by);
    }

    /// Somebody was given the answer by the API server, again.
    pub(super) fn confirm(&mut self, key: &[u8], by: Prefix) {
        self.see(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.claim(by);
        }
    }

    pub(super) fn see(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.clock += 1;
            entry.seen = self.clock;
        }
    }

    /// The store has no such value any more.
    pub(super) fn lose(&mut self, key: &[u8]) {
        if self.entries.get(key).is_some_and(|entry| entry.unwritten.is_none()) {
            self.remove(key);
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.total -= entry.size;
            self.unwritten -= entry.unwritten.map_or(0, |value| value.len());
            if entry.stored {
                self.removed.insert(key.to_vec());
                self.waiting.get_or_insert_with(Instant::now);
            }
        }
    }

    /// The store has this value now; if another one has come meanwhile, that waits.
    pub(super) fn is_written(&mut self, key: &[u8], value: &[u8]) {
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.stored = true;
                if entry.unwritten.as_deref() == Some(value) {
                    entry.unwritten = None;
                    self.unwritten -= value.len();
                }
            }
            // Removed meanwhile.
            None => {
                self.removed.insert(key.to_vec());
            }
        }
    }

    /// Drops what has waited longest, until no more than `limit` waits, or the newest alone.
    pub(super) fn drop_unwritten(&mut self, limit: usize) {
        while self.unwritten > limit {
            let waiting = || self.entries.iter().filter(|(_, entry)| entry.unwritten.is_some());
            let oldest = waiting().min_by_key(|(_, entry)| entry.seen).map(|(key, _)| key.clone());
            match oldest {
                Some(oldest) if waiting().count() > 1 => self.remove(&oldest),
                _ => return,
            }
        }
    }

    /// Takes out what was seen longest ago until the bounds hold; never the newest.
    pub(super) fn evict(&mut self, bounds: &Bounds) -> Vec<Vec<u8>> {
        let mut evicted = Vec::new();
        while self.entries.len() > 1 {
            let Some((key, greedy)) = self.victim(bounds) else { break };
            let others_claim = self.entries.get_mut(&key).is_some_and(|entry| entry.release(greedy));
            if !others_claim {
                self.remove(&key);
                evicted.push(key);
            }
        }
        evicted
    }

    /// What has to go next: of whoever has more than its share, who is named then, or else of those without a claim to
    /// theirs.
    fn victim(&self, bounds: &Bounds) -> Option<(Vec<u8>, Option<Prefix>)> {
        let newest = self.entries.iter().max_by_key(|(_, entry)| entry.seen)?.0;
        let quarter = Usage { count: bounds.count.div_ceil(4), size: bounds.total / 4 };
        let whole = Usage { count: bounds.count, size: bounds.total };
        let mut owners: HashMap<Prefix, Usage> = HashMap::new();
        let (mut all, mut all_others) = (Usage::default(), Usage::default());
        for entry in self.entries.values() {
            all.add(entry);
            if entry.is_others() {
                all_others.add(entry);
            }
            for by in &entry.claims {
                owners.entry(*by).or_default().add(entry);
            }
        }
        let exceeds = |by: &Prefix| owners.get(by).is_some_and(|usage| usage.exceeds(&quarter));
        let greedy = owners.keys().copied().find(|by| !by.is_node() && exceeds(by));
        // Three quarters together.
        let three = Usage { count: bounds.count - quarter.count, size: bounds.total - quarter.size };
        let may_go = |entry: &Entry| match greedy {
            Some(owner) => entry.claims.contains(&owner),
            None if all_others.exceeds(&three) => entry.is_others(),
            // Shares within the reserve stay.
            None => entry.is_others() || entry.claims.iter().all(exceeds),
        };
        if greedy.is_none() && !all_others.exceeds(&three) && !all.exceeds(&whole) {
            return None;
        }
        let stays = |entry: &Entry| entry.claims.iter().any(|by| self.stays(*by));
        self.entries
            .iter()
            .filter(|(key, entry)| *key != newest && may_go(entry))
            .min_by_key(|(_, entry)| (stays(entry), entry.seen))
            .map(|(key, _)| (key.clone(), greedy))
    }
}

impl Entry {
    fn claim(&mut self, by: Prefix) {
        if !by.is_everybody() && !self.claims.contains(&by) && self.claims.len() < CLAIMS {
            self.claims.push(by);
        }
    }

    /// Takes it off an account. Returns whether it is on another one.
    fn release(&mut self, by: Option<Prefix>) -> bool {
        let Some(by) = by else { return false };
        self.claims.retain(|claim| *claim != by);
        !self.claims.is_empty()
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    count: usize,
    size: usize,
}

impl Usage {
    fn add(&mut self, entry: &Entry) {
        self.count += 1;
        self.size += entry.size;
    }

    fn exceeds(&self, bound: &Self) -> bool {
        self.count > bound.count || self.size > bound.size
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::offline::remember::{Key, Owner};

    fn key(owner: Owner<'_>, path: &str) -> Key {
        Key::new(owner, "", path, "", "")
    }

    impl Index {
        /// `false` when the same value is there already.
        fn keep(&mut self, key: Key, value: &[u8]) -> bool {
            let digest = Sha256::digest(value).into();
            let known = self.is_known(&key.bytes, &digest);
            if known {
                self.confirm(&key.bytes, key.by);
            } else {
                self.insert(key.bytes, key.by, value.to_vec(), digest, Keep::Stored);
            }
            !known
        }

        fn has(&self, key: &Key) -> bool {
            self.entries.contains_key(&key.bytes)
        }

        fn others(&self) -> usize {
            self.entries.values().filter(|entry| entry.is_others()).count()
        }
    }

    #[test]
    fn the_index_stays_within_its_bounds_and_drops_what_was_seen_longest_ago() {
        let bounds = Bounds { answer: 100, total: 250, count: 100 };
        let node = |path: &str| key(Owner::Node("node"), path);
        let mut index = Index::default();
        assert!(index.keep(node("1"), &[1; 100]));
        assert!(index.keep(node("2"), &[2; 100]));
        assert!(!index.keep(node("1"), &[1; 100]), "unchanged, but seen again");
        assert!(index.evict(&bounds).is_empty());
        assert!(index.keep(node("3"), &[3; 90]));
        assert_eq!(index.evict(&bounds), [node("2").bytes]);
        assert_eq!(index.total, 190);
        index.see(&node("1").bytes);
        assert!(index.keep(node("4"), &[4; 100]));
        assert_eq!(index.evict(&bounds), [node("3").bytes]);
    }

    #[test]
    fn nobody_drives_out_kubelets_answers_or_has_more_than_a_quarter() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 40 };
        let mut index = Index::default();
        let insert = |index: &mut Index, owner: Owner<'_>, count: usize| {
            for number in 0..count {
                index.keep(key(owner, &number.to_string()), b"x");
                index.evict(&bounds);
            }
            index.entries.values().filter(|entry| entry.claims == [owner.prefix()]).count()
        };
        let node = Owner::Node("node");
        assert_eq!(insert(&mut index, node, 20), 20);
        for other in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(insert(&mut index, Owner::Other(other), 1000), 10);
            assert!(index.others() <= 30);
        }
        assert!(insert(&mut index, node, 0) >= 10, "a quarter is kubelet's whatever others do");
        let others = index.others();
        assert_eq!(insert(&mut index, node, 1000), 40 - index.others());
        assert!(index.others() <= others);
    }

    #[test]
    fn answers_of_those_who_have_a_pod_on_the_node_go_last() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 8 };
        let (agent, passer_by) = (Owner::Other("agent"), Owner::Other("passer-by"));
        let mut index = Index { stay: [agent.prefix()].into(), ..Index::default() };
        index.keep(key(agent, "own pod"), b"x");
        for number in 0..20 {
            for other in [passer_by, Owner::Other("second"), Owner::Other("third")] {
                index.keep(key(other, &number.to_string()), b"x");
                index.evict(&bounds);
            }
        }
        assert!(index.has(&key(agent, "own pod")));
        assert!(index.entries.len() <= 8);
        // Its own newer ones drive it out all the same: a share is a share.
        for number in 0..3 {
            index.keep(key(agent, &number.to_string()), b"x");
            index.evict(&bounds);
        }
        assert!(!index.has(&key(agent, "own pod")));
    }

    #[test]
    fn who_asks_for_much_that_everybody_may_read_takes_nothing_from_the_others() {
        let bounds = Bounds { answer: 10, total: 10_000, count: 40 };
        let discovery = |by: Owner<'_>, path: &str| key(Owner::Everybody, path).asked_by(by);
        let (node, client, rude) = (Owner::Node("node"), Owner::Other("client"), Owner::Other("rude"));
        let mut index = Index::default();
        // What an earlier process left.
        index.found(key(Owner::Everybody, "left").bytes, 1);
        for path in ["/api", "/apis"] {
            index.keep(discovery(node, path), b"x");
        }
        for path in ["/apis", "/openapi/v3"] {
            index.keep(discovery(client, path), b"x");
        }
        // He asks for the same as well, so that it would be his to drive out.
        for path in ["/api", "/apis", "/openapi/v3", "left"] {
            index.keep(discovery(rude, path), b"x");
        }
        for number in 0..1000 {
            index.keep(discovery(rude, &format!("/openapi/v2?{number}")), b"x");
            index.evict(&bounds);
        }
        for path in ["/api", "/apis", "/openapi/v3"] {
            assert!(index.has(&key(Owner::Everybody, path)), "{path}");
        }
        assert!(index.entries.len() <= 10 + 3, "{}", index.entries.len());
    }
}
