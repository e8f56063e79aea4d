//! What is sent next, and how much of it at once.
//!
//! Control frames come first, then interactive streams, then bulk streams, round robin in each class. A stream
//! is interactive until it has moved [`BULK_AFTER`] bytes faster than [`LEAK`] takes them away: keystrokes, small
//! answers and log lines never wait behind a copy.
//!
//! Priority means nothing behind a long queue. What has been handed to the socket cannot be overtaken, so it is
//! kept short: the kernel holds little unsent data (`TCP_NOTSENT_LOWAT`, [`super::socket`]), and a batch is what the
//! link carried in about [`BATCH_TIME`] when it was last measured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use yurt_api::tunnel::{MAX_FRAME, StreamId};

/// Bytes after which a stream counts as bulk.
const BULK_AFTER: u64 = 256 * 1024;
/// Bytes a second that a stream may move for ever without counting as bulk.
const LEAK: u64 = 32 * 1024;

/// How long the link should need for one batch.
const BATCH_TIME: Duration = Duration::from_millis(5);
/// A batch that took less than this met no resistance.
const UNHINDERED: Duration = Duration::from_millis(1);
/// The largest batch, bytes.
const MAX_BATCH: usize = 64 * 1024;

/// How much a stream has moved lately: a bucket that leaks.
#[derive(Debug)]
pub(super) struct Load {
    level: u64,
    at: Instant,
}

impl Load {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: 0, at: now }
    }

    pub(super) fn moved(&mut self, bytes: usize, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let leaked = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(LEAK) / 1000;
        if leaked > 0 {
            self.level = self.level.saturating_sub(leaked);
            self.at = now;
        }
        // Twice the threshold is as bulky as it gets: eight seconds of silence later it is interactive again.
        self.level = (self.level + bytes as u64).min(2 * BULK_AFTER);
    }

    fn is_bulk(&self) -> bool {
        self.level > BULK_AFTER
    }
}

/// The streams that have something to send, each at most once.
#[derive(Debug, Default)]
pub(super) struct Ready {
    interactive: VecDeque<StreamId>,
    bulk: VecDeque<StreamId>,
}

impl Ready {
    pub(super) fn push(&mut self, stream: StreamId, load: &Load) {
        if load.is_bulk() {
            self.bulk.push_back(stream);
        } else {
            self.interactive.push_back(stream);
        }
    }

    pub(super) fn pop(&mut self) -> Option<StreamId> {
        self.interactive.pop_front().or_else(|| self.bulk.pop_front())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }
}

/// The size of the next batch after one of `sent` bytes with this limit took `took` to leave.
pub(super) fn next_batch(limit: usize, sent: usize, took: Duration) -> usize {
    if took < UNHINDERED {
        return if sent >= limit / 2 { (limit * 2).min(MAX_BATCH) } else { limit };
    }
    let fits = sent as u128 * BATCH_TIME.as_micros() / took.as_micros().max(1);
    usize::try_from(fits).unwrap_or(MAX_BATCH).clamp(MAX_FRAME, MAX_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> StreamId {
        StreamId::new(number).unwrap()
    }

    #[test]
    fn a_stream_turns_bulk_by_a_quick_copy_and_interactive_again_by_silence() {
        let start = Instant::now();
        let mut load = Load::new(start);
        load.moved(256 * 1024, start);
        assert!(!load.is_bulk());
        load.moved(1, start);
        assert!(load.is_bulk());
        load.moved(0, start + Duration::from_secs(2));
        assert!(!load.is_bulk());
    }

    #[test]
    fn a_log_at_twenty_kilobytes_a_second_never_turns_bulk() {
        let start = Instant::now();
        let mut load = Load::new(start);
        for millis in (0..3_600_000).step_by(10) {
            load.moved(200, start + Duration::from_millis(millis));
            assert!(!load.is_bulk());
        }
    }

    #[test]
    fn interactive_streams_go_before_bulk_and_take_turns() {
        let now = Instant::now();
        let quiet = Load::new(now);
        let mut busy = Load::new(now);
        busy.moved(300 * 1024, now);
        let mut ready = Ready::default();
        ready.push(id(1), &busy);
        ready.push(id(2), &quiet);
        ready.push(id(3), &quiet);
        assert_eq!([ready.pop(), ready.pop()], [Some(id(2)), Some(id(3))]);
        ready.push(id(2), &quiet);
        assert_eq!([ready.pop(), ready.pop(), ready.pop()], [Some(id(2)), Some(id(1)), None]);
    }

    #[test]
    fn batches_shrink_on_a_slow_link_and_grow_on_a_fast_one() {
        // 20 Mbit/s: 64 KiB take 26 ms.
        assert_eq!(next_batch(64 * 1024, 64 * 1024, Duration::from_millis(26)), MAX_FRAME);
        let mut limit = MAX_FRAME;
        for _ in 0..3 {
            limit = next_batch(limit, limit, Duration::from_micros(100));
        }
        assert_eq!(limit, MAX_BATCH);
        assert_eq!(next_batch(limit, limit, Duration::ZERO), MAX_BATCH);
        // A keystroke says nothing about the link.
        assert_eq!(next_batch(MAX_FRAME, 20, Duration::ZERO), MAX_FRAME);
        // 50 Mbit/s: 64 KiB take 10 ms.
        assert_eq!(next_batch(MAX_BATCH, MAX_BATCH, Duration::from_millis(10)), MAX_BATCH / 2);
    }
}
