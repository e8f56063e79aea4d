//! Tasks by what they are for: each that is wanted runs once, and one that is not wanted any more is told to stop.

use std::collections::{BTreeMap, BTreeSet};

use tokio_util::sync::{CancellationToken, DropGuard};

/// All of them are told to stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Kept<K>(BTreeMap<K, DropGuard>);

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Kept<K> {
    /// Tells those to stop that are not in `wanted`, and has those started that do not run yet.
    pub(crate) fn set(&mut self, wanted: &BTreeSet<K>, mut start: impl FnMut(K, CancellationToken)) {
        self.0.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if !self.0.contains_key(key) {
                let stop = CancellationToken::new();
                start(key.clone(), stop.clone());
                self.0.insert(key.clone(), stop.drop_guard());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_runs_once_and_what_is_not_is_stopped() {
        let mut kept = Kept::default();
        let mut started: Vec<(&str, CancellationToken)> = Vec::new();
        for wanted in [["a", "b"].as_slice(), &["b", "c"]] {
            kept.set(&wanted.iter().copied().collect(), |key, stop| started.push((key, stop)));
        }
        let state: Vec<_> = started.iter().map(|(key, stop)| (*key, stop.is_cancelled())).collect();
        assert_eq!(state, [("a", true), ("b", false), ("c", false)]);
        drop(kept);
        assert!(started.iter().all(|(_, stop)| stop.is_cancelled()));
    }
}
