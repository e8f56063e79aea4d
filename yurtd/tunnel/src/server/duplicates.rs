//! Nodes whose certificate two agents show at the same time: machines that were copied.
//!
//! Each agent takes the other one's place when it connects. That alone says little, as an agent whose link broke comes
//! back before the server has missed it; but its old session does not answer any more, and a copy's does.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use yurt_api::status::DuplicateAgent;

/// Two copies take turns every two minutes at most, so after this long there is one left.
const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How often people are told about one node.
const TELL_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// How many nodes are remembered; names come from certificates of the cluster, so there are never many more.
const MAX: usize = 1024;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Duplicates(BTreeMap<String, Duplicate>);

#[derive(Debug)]
struct Duplicate {
    times: u32,
    last: Timestamp,
    told: Timestamp,
    older: SocketAddr,
    newer: SocketAddr,
}

impl Duplicates {
    /// An agent of `node` at `newer` took the place of one at `older` that was alive. Says how often that has happened
    /// now, if people should be told.
    pub(super) fn saw(
        &mut self,
        node: &str,
        older: SocketAddr,
        newer: SocketAddr,
        now: Timestamp,
    ) -> Option<u32> {
        self.0.retain(|_, duplicate| duplicate.is_recent(now));
        if !self.0.contains_key(node) && self.0.len() >= MAX {
            let oldest = self.0.iter().min_by_key(|(_, duplicate)| duplicate.last);
            if let Some(oldest) = oldest.map(|(node, _)| node.clone()) {
                self.0.remove(&oldest);
            }
        }
        let first = Duplicate { times: 0, last: now, told: now, older, newer };
        let duplicate = self.0.entry(node.to_owned()).or_insert(first);
        duplicate.times = duplicate.times.saturating_add(1);
        (duplicate.last, duplicate.older, duplicate.newer) = (now, older, newer);
        let tell = duplicate.times == 1 || now.duration_since(duplicate.told) >= TELL_EVERY;
        if !tell {
            return None;
        }
        duplicate.told = now;
        Some(duplicate.times)
    }

    /// What to show of a node.
    pub(super) fn of(&self, node: &str, now: Timestamp) -> Option<DuplicateAgent> {
        let duplicate = self.0.get(node).filter(|duplicate| duplicate.is_recent(now))?;
        // Fractions of a second say nothing to a reader of the status.
        let last = Timestamp::from_second(duplicate.last.as_second()).unwrap_or(duplicate.last);
        Some(DuplicateAgent {
            times: duplicate.times,
            last: last.to_string(),
            older_address: duplicate.older.to_string(),
            newer_address: duplicate.newer.to_string(),
        })
    }
}

impl Duplicate {
    fn is_recent(&self, now: Timestamp) -> bool {
        now.duration_since(self.last) < FORGET_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minutes).unwrap()
    }

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 40_000).into()
    }

    #[test]
    fn each_time_counts_people_are_told_now_and_then_and_an_hour_of_peace_ends_it() {
        let mut duplicates = Duplicates::default();
        let mut told = Vec::new();
        for minute in 0..25 {
            let (older, newer) = (address(minute % 2), address((minute + 1) % 2));
            told.extend(duplicates.saw("edge-1", older, newer, at(minute.into())));
        }
        assert_eq!(told, [1, 11, 21]);
        let shown = duplicates.of("edge-1", at(30)).unwrap();
        assert_eq!((shown.times, shown.last.as_str()), (25, "2027-01-15T08:24:00Z"));
        assert_eq!(
            (shown.older_address.as_str(), shown.newer_address.as_str()),
            ("192.0.2.0:40000", "192.0.2.1:40000")
        );
        assert_eq!(duplicates.of("edge-2", at(30)), None);
        assert_eq!(duplicates.of("edge-1", at(84)), None);
        assert_eq!(duplicates.saw("edge-1", address(0), address(1), at(84)), Some(1));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut duplicates = Duplicates::default();
        for node in 0..=MAX {
            let now = at(0) + SignedDuration::from_secs(node as i64);
            duplicates.saw(&format!("edge-{node}"), address(1), address(2), now);
        }
        assert_eq!(duplicates.0.len(), MAX);
        assert_eq!(duplicates.of("edge-0", at(1)), None);
        assert!(duplicates.of("edge-1", at(1)).is_some());
    }
}
