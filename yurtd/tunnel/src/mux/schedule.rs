//! What is sent next, and how much of it at once.
//!
//! Control frames come first, then interactive streams, then bulk streams, round robin in each class. A stream
//! is interactive until it has moved [`BULK_AFTER`] bytes faster than [`LEAK`] takes them away: keystrokes, small
//! answers and log lines never wait behind a copy. Which it is, is judged when it has something to send, so that silence
//! counts: a shell that printed a file is interactive again at the next keystroke.
//!
//! Many interactive streams together can fill a thin link. A copy still moves: behind [`FLOOR_AFTER`] bytes that went
//! before it, it has a frame.
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

/// Bytes of interactive streams that may go before one frame of a waiting bulk stream. Bulk so has an eighth of the link
/// at least, and a keystroke waits for one of its frames at most once in as many bytes.
const FLOOR_AFTER: usize = 7 * MAX_FRAME;

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
        let leaked = self.leaked(now);
        if leaked > 0 {
            self.level = self.level.saturating_sub(leaked);
            self.at = now;
        }
        // Twice the threshold is as bulky as it gets: eight seconds of silence later it is interactive again.
        self.level = (self.level + bytes as u64).min(2 * BULK_AFTER);
    }

    /// What the stream is now.
    pub(super) fn class(&self, now: Instant) -> Class {
        if self.level.saturating_sub(self.leaked(now)) > BULK_AFTER {
            Class::Bulk
        } else {
            Class::Interactive
        }
    }

    fn leaked(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(LEAK) / 1000
    }
}

/// What a stream has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// For others like it.
    Interactive,
    /// For all interactive ones, down to a floor.
    Bulk,
}

/// The streams that have something to send, each at most once.
#[derive(Debug, Default)]
pub(super) struct Ready {
    interactive: VecDeque<StreamId>,
    bulk: VecDeque<StreamId>,
    /// Bytes that went before the first of `bulk`.
    before_bulk: usize,
}

impl Ready {
    pub(super) fn push(&mut self, stream: StreamId, class: Class) {
        match class {
            Class::Interactive => self.interactive.push_back(stream),
            Class::Bulk => self.bulk.push_back(stream),
        }
    }

    /// The stream whose turn it is. Say [`Self::sent`] afterwards.
    pub(super) fn pop(&mut self) -> Option<(StreamId, Class)> {
        let bulk = |stream| (stream, Class::Bulk);
        if self.before_bulk >= FLOOR_AFTER
            && let Some(stream) = self.bulk.pop_front()
        {
            return Some(bulk(stream));
        }
        let interactive = self.interactive.pop_front().map(|stream| (stream, Class::Interactive));
        interactive.or_else(|| self.bulk.pop_front().map(bulk))
    }

    /// What came of a turn, bytes.
    pub(super) fn sent(&mut self, class: Class, bytes: usize) {
        self.before_bulk = match class {
            Class::Interactive if !self.bulk.is_empty() => self.before_bulk.saturating_add(bytes),
            _ => 0,
        };
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
        assert_eq!(load.class(start), Class::Interactive);
        load.moved(1, start);
        assert_eq!(load.class(start), Class::Bulk);
        // Nothing was written in the meantime: the keystroke that comes now does not wait.
        assert_eq!(load.class(start + Duration::from_secs(2)), Class::Interactive);
        load.moved(10 * 1024 * 1024, start);
        assert_eq!(load.class(start + Duration::from_secs(7)), Class::Bulk);
        assert_eq!(load.class(start + Duration::from_secs(8)), Class::Interactive);
    }

    #[test]
    fn a_log_at_twenty_kilobytes_a_second_never_turns_bulk() {
        let start = Instant::now();
        let mut load = Load::new(start);
        for millis in (0..3_600_000).step_by(10) {
            let now = start + Duration::from_millis(millis);
            load.moved(200, now);
            assert_eq!(load.class(now), Class::Interactive);
        }
    }

    #[test]
    fn interactive_streams_go_before_bulk_and_take_turns() {
        let mut ready = Ready::default();
        ready.push(id(1), Class::Bulk);
        ready.push(id(2), Class::Interactive);
        ready.push(id(3), Class::Interactive);
        let turn = |ready: &mut Ready| {
            let (stream, class) = ready.pop()?;
            ready.sent(class, 100);
            Some(stream)
        };
        assert_eq!([turn(&mut ready), turn(&mut ready)], [Some(id(2)), Some(id(3))]);
        ready.push(id(2), Class::Interactive);
        assert_eq!([turn(&mut ready), turn(&mut ready), turn(&mut ready)], [Some(id(2)), Some(id(1)), None]);
    }

    #[test]
    fn a_copy_has_an_eighth_of_the_link_however_many_others_go_before_it() {
        let mut ready = Ready::default();
        let (mut copied, mut sent) = (0, 0);
        ready.push(id(1), Class::Bulk);
        // Just below bulk, each with something to send all the time.
        (2..100).for_each(|number| ready.push(id(number), Class::Interactive));
        while sent < 100 * MAX_FRAME {
            let (stream, class) = ready.pop().unwrap();
            let bytes = if class == Class::Bulk { MAX_FRAME } else { 1000 };
            ready.sent(class, bytes);
            ready.push(stream, class);
            sent += bytes;
            copied += if class == Class::Bulk { bytes } else { 0 };
        }
        let share = copied as f64 / sent as f64;
        assert!((0.11..=0.13).contains(&share), "{share}");
    }

    #[test]
    fn what_was_sent_while_no_copy_waited_does_not_count() {
        let mut ready = Ready::default();
        ready.push(id(1), Class::Interactive);
        let (_, class) = ready.pop().unwrap();
        ready.sent(class, 10 * FLOOR_AFTER);
        ready.push(id(2), Class::Bulk);
        ready.push(id(1), Class::Interactive);
        assert_eq!(ready.pop(), Some((id(1), Class::Interactive)));
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
