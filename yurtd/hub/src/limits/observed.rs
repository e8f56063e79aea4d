//! Copies of answers that are made while they pass. How long that takes is up to whoever reads them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::OBSERVED;

/// Bytes of all copies that are being made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed(Arc<AtomicUsize>);

/// One copy.
#[derive(Debug)]
pub(crate) struct Collected {
    all: Observed,
    bytes: Vec<u8>,
}

impl Observed {
    /// A copy with nothing in it yet.
    pub(crate) fn collect(&self) -> Collected {
        Collected { all: self.clone(), bytes: Vec::new() }
    }
}

impl Collected {
    /// Appends; `false` when it would be longer than `limit`, or all together too long.
    pub(crate) fn push(&mut self, data: &[u8], limit: usize) -> bool {
        let counted = self.all.0.fetch_add(data.len(), Ordering::Relaxed);
        let fits = self.bytes.len() + data.len() <= limit && counted + data.len() <= OBSERVED;
        if fits {
            self.bytes.extend_from_slice(data);
        } else {
            self.all.0.fetch_sub(data.len(), Ordering::Relaxed);
        }
        fits
    }

    /// The whole copy, no longer counted.
    pub(crate) fn finish(mut self) -> Bytes {
        self.all.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        std::mem::take(&mut self.bytes).into()
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded_alone_and_together() {
        let observed = Observed::default();
        let mut one = observed.collect();
        assert!(one.push(b"12345", 5));
        assert!(!one.push(b"6", 5));
        let mut many: Vec<_> = std::iter::repeat_with(|| observed.collect()).take(100).collect();
        let kept =
            many.iter_mut().filter_map(|copy| copy.push(&[0; OBSERVED / 10], OBSERVED).then_some(())).count();
        assert_eq!(kept, 9);
        drop(many);
        assert_eq!(one.finish(), "12345");
        assert_eq!(observed.0.load(Ordering::Relaxed), 0);
    }
}
