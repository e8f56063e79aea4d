//! What all rings together may have in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Ring;

/// The rings that share a bound: kubelet's, or everybody else's.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    pub(super) bytes: AtomicUsize,
    /// Bytes that watches have read before they could send them.
    pub(super) ahead: AtomicUsize,
    all: Mutex<Vec<Weak<Ring>>>,
}

impl Rings {
    pub(super) fn enter(&self, ring: &Arc<Ring>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|ring| ring.strong_count() > 0);
        }
        all.push(Arc::downgrade(ring));
    }

    /// When all together have more than they may, none keeps more than its part of it: first of what was taken by those
    /// who keep up, and if that is not enough, of everything.
    pub(super) fn make_room(&self, bound: usize) {
        for taken in [true, false] {
            if self.bytes.load(Ordering::Relaxed) > bound {
                self.shrink(bound, taken);
            }
        }
    }

    fn shrink(&self, bound: usize, taken: bool) {
        let mut rings: Vec<Arc<Ring>> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        rings.retain(|ring| ring.bytes.load(Ordering::Relaxed) > 0);
        let part = bound / rings.len().max(1);
        for ring in rings {
            if ring.bytes.load(Ordering::Relaxed) > part {
                ring.shrink_to(part, taken);
            }
        }
    }
}

/// Room for what a watch has read before it can send it, until it is dropped.
pub(crate) struct Ahead {
    pub(super) rings: Arc<Rings>,
    pub(super) bytes: usize,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.rings.ahead.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
