//! The views of the identities that have a pod on the node: followed although nobody watches them right now, also after
//! a restart of the hub, for as long as the pod is there. An agent or an operator finds after an offline reboot what it
//! asks for at its start.
//!
//! Each identity's views are followed with credentials of its own: those that it came with last, and after a restart
//! the tokens in stored replies to TokenRequests for its pods ([`Views::lend`]). Nothing is read across identities.
//!
//! What is kept has bounds, an identity's share and that of all of them; the views that were used last come first. What is
//! beyond is a view like any other: followed while somebody uses it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::needs::NodePods;
use super::{Start, Views};
use crate::caller::{Identity, Permit};
use crate::store::StoreError;
use crate::view::{State, View, Why};

/// Bounds of what is kept of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    views: usize,
    bytes: u64,
}

/// One identity's. flannel has one view, Calico's agent a dozen.
const OF_ONE: Share = Share { views: 64, bytes: 8 << 20 };
/// All of them together.
const OF_ALL: Share = Share { views: 512, bytes: 64 << 20 };

impl Share {
    /// Takes a view of this size out of it, if there is room for it.
    fn has_room(self, bytes: u64) -> bool {
        self.views > 0 && bytes <= self.bytes
    }

    fn take(&mut self, bytes: u64) {
        self.views -= 1;
        self.bytes -= bytes;
    }
}

/// A view that may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// When it was used last.
    used: u64,
    bytes: u64,
}

/// Which of an identity's views are kept.
fn choose(candidates: &[Candidate], all: &mut Share) -> Vec<bool> {
    let mut own = OF_ONE;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(candidates[*index].used));
    let mut kept = vec![false; candidates.len()];
    for index in order {
        let bytes = candidates[index].bytes;
        if own.has_room(bytes) && all.has_room(bytes) {
            own.take(bytes);
            all.take(bytes);
            kept[index] = true;
        }
    }
    kept
}

/// Whether a reflector of it would do more than list it once and end. An identity that may list and not watch would pay
/// for that with whole lists at every look.
fn can_be_followed(view: &View) -> bool {
    let sync = view.sync.borrow();
    let unwatchable = matches!(sync.state, State::Behind { why: Why::CannotBeWatched, .. });
    !unwatchable && sync.no_view_until.is_none_or(|until| until <= Instant::now())
}

impl Views {
    /// Decides which views of others than kubelet are kept, and follows those for which there is a credential.
    pub(super) fn follow_accounts(&self, pods: &NodePods) {
        let mut views: BTreeMap<String, Vec<Arc<View>>> = BTreeMap::new();
        for view in self.inner.catalogue.all() {
            if view.identity == *self.inner.node.identity() {
                continue;
            }
            if pods.accounts.contains(view.identity.as_str()) && view.is_stored() && can_be_followed(&view) {
                views.entry(view.identity.as_str().to_owned()).or_default().push(view);
            } else {
                view.set_kept(false);
            }
        }
        let mut all = OF_ALL;
        for (identity, views) in views {
            let candidates: Result<Vec<Candidate>, StoreError> = views
                .iter()
                .map(|view| Ok(Candidate { used: view.used(), bytes: view.stored_bytes(OF_ONE.bytes)? }))
                .collect();
            let candidates = match candidates {
                Ok(candidates) => candidates,
                Err(error) => {
                    tracing::warn!(%error, identity, "views cannot be measured; what is kept of them stays so");
                    continue;
                }
            };
            let permit = self.inner.followers.permit_of(&Identity::new(&identity));
            for (view, kept) in views.iter().zip(choose(&candidates, &mut all)) {
                view.set_kept(kept);
                if kept && let Some(permit) = &permit {
                    self.inner.followers.start(permit, view, Start::Resume);
                }
            }
        }
    }

    /// A credential of an identity that has not come with one: what is kept for it is followed with it.
    pub(crate) fn lend(&self, permit: &Permit) {
        let Some(pods) = self.node_pods() else { return };
        if pods.accounts.contains(permit.identity().as_str()) {
            self.inner.followers.show(permit);
            self.follow_accounts(&pods);
        }
    }

    /// The node's pods, as last known, if they are others than `before`; nothing while that cannot be known.
    pub(crate) fn pods_unless(&self, before: &Weak<NodePods>) -> Option<Arc<NodePods>> {
        self.node_pods().filter(|pods| !std::ptr::eq(Arc::as_ptr(pods), before.as_ptr()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(all: &[(u64, u64)]) -> Vec<Candidate> {
        all.iter().map(|(used, bytes)| Candidate { used: *used, bytes: *bytes }).collect()
    }

    #[test]
    fn an_identity_keeps_what_it_used_last_within_its_share() {
        let mib = 1 << 20;
        let mut all = OF_ALL;
        let kept =
            choose(&views(&[(1, 3 * mib), (4, 4 * mib), (3, 276 * mib), (2, 2 * mib), (0, mib)]), &mut all);
        assert_eq!(kept, [false, true, false, true, true]);
        assert_eq!(all, Share { views: 509, bytes: 57 << 20 });
        let many = choose(&views(&[(7, 1); 100]), &mut OF_ALL.clone());
        assert_eq!(many.iter().filter(|kept| **kept).count(), OF_ONE.views);
    }

    #[test]
    fn all_identities_together_have_a_bound() {
        let mut all = OF_ALL;
        for _ in 0..8 {
            assert_eq!(choose(&views(&[(1, OF_ONE.bytes)]), &mut all), [true]);
        }
        assert_eq!(choose(&views(&[(1, 1)]), &mut all), [false]);
    }
}
