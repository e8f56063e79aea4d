//! A queue of bytes that keeps large pieces as they came and gathers small ones, so that a peer which sends
//! single bytes costs at most about twice their number in memory.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces smaller than this are copied together.
const GATHER: usize = 4 * 1024;
/// Pieces at least this large may be kept without a copy. Each then holds on to the whole buffer it was cut from, some
/// tens of KiB: whoever keeps them bounds how many there are.
const KEEP: usize = 8 * 1024;

#[derive(Debug, Default)]
pub(super) struct Chunks {
    queue: VecDeque<Bytes>,
    /// Small pieces, behind everything in `queue`.
    tail: BytesMut,
    length: usize,
}

impl Chunks {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends a piece that owns its memory alone.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.len() < GATHER { self.gather(&piece) } else { self.keep(piece) }
    }

    /// Appends a copy of a piece.
    pub(super) fn push_copy(&mut self, piece: &[u8]) {
        if piece.len() < GATHER { self.gather(piece) } else { self.keep(Bytes::copy_from_slice(piece)) }
    }

    /// Appends a piece that was cut from a larger buffer.
    pub(super) fn push_shared(&mut self, piece: Bytes) {
        if piece.len() < KEEP { self.push_copy(&piece) } else { self.keep(piece) }
    }

    fn keep(&mut self, piece: Bytes) {
        self.seal();
        self.length += piece.len();
        self.queue.push_back(piece);
    }

    fn gather(&mut self, piece: &[u8]) {
        if self.tail.len() + piece.len() > GATHER {
            self.seal();
        }
        if self.tail.capacity() == 0 {
            self.tail.reserve(GATHER);
        }
        self.length += piece.len();
        self.tail.extend_from_slice(piece);
    }

    fn seal(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        if tail.len() >= GATHER / 2 {
            self.queue.push_back(tail.freeze());
        } else if !tail.is_empty() {
            // Not with the room for what did not come.
            self.queue.push_back(Bytes::copy_from_slice(&tail));
        }
    }

    /// Takes the first piece, whatever its length.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.queue.is_empty() {
            self.seal();
        }
        let piece = self.queue.pop_front()?;
        self.length -= piece.len();
        Some(piece)
    }

    /// Takes everything.
    pub(super) fn take(&mut self) -> Pieces {
        self.seal();
        let Self { queue, length, .. } = std::mem::take(self);
        Pieces { queue, length }
    }

    /// Moves up to `limit` bytes to the end of `out`; says how many.
    pub(super) fn take_into(&mut self, limit: usize, out: &mut BytesMut) -> usize {
        let mut left = limit.min(self.length);
        let taken = left;
        while left > 0 {
            if self.queue.is_empty() {
                self.seal();
            }
            let Some(first) = self.queue.front_mut() else { break };
            let count = left.min(first.len());
            out.extend_from_slice(&first[..count]);
            left -= count;
            if count == first.len() {
                self.queue.pop_front();
            } else {
                first.advance(count);
            }
        }
        self.length -= taken;
        taken
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Bytes that were taken out of a queue, ready for one vectored write.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    queue: VecDeque<Bytes>,
    length: usize,
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.queue.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.queue);
        filled.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.length, "advanced past the end");
        self.length -= count;
        while count > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_in_the_order_they_went_in(
            pieces in proptest::collection::vec((0..20_000usize, 0..3u8), 0..12),
            limit in 1..30_000usize,
        ) {
            let mut chunks = Chunks::default();
            let mut expected = Vec::new();
            for (index, (length, way)) in pieces.into_iter().enumerate() {
                let piece: Bytes = (0..length).map(|at| (at + index) as u8).collect();
                expected.extend_from_slice(&piece);
                match way {
                    0 => chunks.push(piece),
                    1 => chunks.push_shared(piece),
                    _ => chunks.push_copy(&piece),
                }
            }
            prop_assert_eq!(chunks.len(), expected.len());
            let mut out = BytesMut::new();
            while chunks.take_into(limit, &mut out) > 0 {}
            prop_assert!(chunks.is_empty());
            prop_assert_eq!(&out[..], &expected[..]);
        }
    }

    #[test]
    fn pieces_are_one_buffer_however_far_each_write_gets() {
        for step in [1, 7, 4096, 9000, 100_000] {
            let mut chunks = Chunks::default();
            let expected: Vec<u8> = (0..60_000).map(|at| at as u8).collect();
            for piece in expected.chunks(9001) {
                chunks.push(Bytes::copy_from_slice(piece));
            }
            let mut pieces = chunks.take();
            assert!(chunks.is_empty());
            let mut written: Vec<u8> = Vec::new();
            while pieces.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = pieces.chunks_vectored(&mut slices);
                let before = written.len();
                written.extend(slices[..filled].iter().flat_map(|slice| slice.iter()).take(step));
                pieces.advance(written.len() - before);
            }
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn single_bytes_are_gathered() {
        let mut chunks = Chunks::default();
        for _ in 0..64 * 1024 {
            chunks.push_shared(Bytes::from_static(b"x"));
        }
        assert_eq!(chunks.queue.len(), 15);
        let mut read = 0;
        while let Some(piece) = chunks.pop() {
            read += piece.len();
        }
        assert_eq!((read, chunks.len()), (64 * 1024, 0));
    }
}
