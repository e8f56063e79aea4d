//! How much a peer may send on one stream before somebody has read it.
//!
//! HELLO promises every stream a small window, so small that all streams that there may be can have it. What windows
//! have beyond that comes out of a budget of the session: together they bound what a session holds, and no stream can be
//! starved by another one's unread data.
//!
//! From the budget a stream first gets [`START`], as long as there is any. Whenever its reader then empties half of the
//! window within two round trips, the window was what held the sender back, and it doubles: it ends between two and
//! four times the product of bandwidth and round trip. (Below [`SHORTEST`] it is not the link that delays but the two
//! programs.) A reader that stalls never makes its window grow. Growth leaves [`RESERVE`] for the start of others.

use std::time::{Duration, Instant};

/// The window that a stream starts with while there is budget, bytes.
pub(super) const START: u32 = 64 * 1024;

/// The largest window of one stream, bytes.
const MAX_STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// What growth leaves of the budget: one part in this.
const RESERVE: u32 = 4;

/// Round trips shorter than this count as this long.
const SHORTEST: Duration = Duration::from_millis(1);

/// What the windows of a session may have in total beyond what HELLO promised.
#[derive(Debug)]
pub(super) struct Budget {
    total: u32,
    left: u32,
}

impl Budget {
    pub(super) fn new(bytes: u32) -> Self {
        Self { total: bytes, left: bytes }
    }

    /// For a stream that starts.
    fn start(&mut self, wanted: u32) -> u32 {
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }

    /// For one that grows.
    fn grow(&mut self, wanted: u32) -> u32 {
        self.start(wanted.min(self.left.saturating_sub(self.total / RESERVE)))
    }

    fn give_back(&mut self, bytes: u32) {
        self.left += bytes;
    }

    /// What windows have of it.
    pub(super) fn spent(&self) -> u32 {
        self.total - self.left
    }
}

/// The peer sent more than it was allowed to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// One stream's window, at the receiver.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// What HELLO promised.
    promised: u32,
    size: u32,
    /// What the peer may still send.
    allowed: u32,
    /// What its reader is done with and was not given back yet.
    read: u32,
    since: Instant,
}

impl ReceiveWindow {
    /// What HELLO promised, and no more.
    pub(super) fn new(promised: u32, now: Instant) -> Self {
        Self { promised, size: promised, allowed: promised, read: 0, since: now }
    }

    /// Widens a new window to [`START`] if the budget has it; the credit to give to the peer.
    pub(super) fn start(&mut self, budget: &mut Budget) -> u32 {
        let more = budget.start(START.saturating_sub(self.size));
        self.size += more;
        self.allowed += more;
        more
    }

    /// `bytes` have arrived.
    pub(super) fn received(&mut self, bytes: usize) -> Result<(), Overrun> {
        let left = usize::try_from(self.allowed).ok().and_then(|allowed| allowed.checked_sub(bytes));
        // What is left is at most what was allowed.
        self.allowed = left.ok_or(Overrun)? as u32;
        Ok(())
    }

    /// The reader is done with `bytes`; the credit to give to the peer, once it is worth a frame.
    pub(super) fn consumed(
        &mut self,
        bytes: usize,
        now: Instant,
        round_trip: Option<Duration>,
        budget: &mut Budget,
    ) -> Option<u32> {
        // Never more than was received, which is at most the window.
        self.read = self.read.saturating_add(bytes as u32);
        if self.read < self.size / 2 {
            return None;
        }
        let mut increment = self.read;
        if round_trip.is_some_and(|round_trip| now.duration_since(self.since) < 2 * round_trip.max(SHORTEST))
        {
            let growth = budget.grow(self.size.min(MAX_STREAM_WINDOW.saturating_sub(self.size)));
            self.size += growth;
            increment += growth;
        }
        self.read = 0;
        self.since = now;
        self.allowed += increment;
        Some(increment)
    }

    /// The stream is over; what its window had grown by is free again.
    pub(super) fn release(&mut self, budget: &mut Budget) {
        budget.give_back(self.beyond_promise());
        self.size = self.promised;
    }

    /// What the window has of the budget.
    pub(super) fn beyond_promise(&self) -> u32 {
        self.size - self.promised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u32 = 1024;

    /// A sender that always uses its credit at `rate` bytes a second over a link with this round trip.
    fn settle(rate: u64, round_trip: Duration, budget: &mut Budget) -> u32 {
        let mut now = Instant::now();
        let mut window = ReceiveWindow::new(64 * KIB, now);
        for _ in 0..200 {
            let half = window.size / 2;
            // At best the link's rate, at worst one window a round trip.
            let by_rate = Duration::from_secs_f64(f64::from(half) / rate as f64);
            now += by_rate.max(round_trip / 2);
            window.received(half as usize).unwrap();
            assert!(window.consumed(half as usize, now, Some(round_trip), budget).is_some());
        }
        window.size
    }

    #[test]
    fn a_window_grows_to_the_product_of_bandwidth_and_round_trip() {
        // 20 Mbit/s at 40 ms: 100 kB.
        let size = settle(2_500_000, Duration::from_millis(40), &mut Budget::new(u32::MAX));
        assert!((200_000..=800_000).contains(&size), "{size}");
        // 1 Gbit/s at 30 ms: 3.75 MB; the cap.
        let size = settle(125_000_000, Duration::from_millis(30), &mut Budget::new(u32::MAX));
        assert_eq!(size, MAX_STREAM_WINDOW);
        // 1 Mbit/s at 20 ms: 2.5 kB; nothing to grow for.
        assert_eq!(settle(125_000, Duration::from_millis(20), &mut Budget::new(u32::MAX)), 64 * KIB);
    }

    #[test]
    fn growth_ends_with_the_budget_and_comes_back_with_the_stream() {
        let mut budget = Budget::new(100 * KIB);
        let now = Instant::now();
        let mut window = ReceiveWindow::new(64 * KIB, now);
        let rtt = Some(Duration::from_millis(50));
        window.received(32 * 1024).unwrap();
        assert_eq!(window.consumed(32 * 1024, now, rtt, &mut budget), Some(32 * KIB + 64 * KIB));
        window.received(64 * 1024).unwrap();
        assert_eq!(window.consumed(64 * 1024, now, rtt, &mut budget), Some(64 * KIB + 11 * KIB));
        assert_eq!(budget.left, 25 * KIB);
        window.release(&mut budget);
        assert_eq!(budget.left, 100 * KIB);
    }

    #[test]
    fn a_new_stream_starts_wide_as_long_as_there_is_budget_and_has_what_was_promised_in_any_case() {
        let mut budget = Budget::new(100 * KIB);
        let now = Instant::now();
        let mut windows: Vec<_> = (0..3).map(|_| ReceiveWindow::new(8 * KIB, now)).collect();
        let starts: Vec<_> = windows.iter_mut().map(|window| window.start(&mut budget)).collect();
        assert_eq!(starts, [56 * KIB, 44 * KIB, 0]);
        assert_eq!(windows[2].received(8 * 1024), Ok(()));
        assert_eq!(windows[2].received(1), Err(Overrun));
        for window in &mut windows {
            window.release(&mut budget);
        }
        assert_eq!(budget.left, 100 * KIB);
    }

    #[test]
    fn a_slow_reader_gets_back_what_it_read_and_no_more() {
        let mut budget = Budget::new(u32::MAX);
        let start = Instant::now();
        let mut window = ReceiveWindow::new(64 * KIB, start);
        window.received(64 * 1024).unwrap();
        let later = start + Duration::from_secs(1);
        let rtt = Some(Duration::from_millis(50));
        assert_eq!(window.consumed(1000, later, rtt, &mut budget), None);
        assert_eq!(window.consumed(32 * 1024, later, rtt, &mut budget), Some(32 * KIB + 1000));
    }

    #[test]
    fn more_than_allowed_is_an_overrun() {
        let mut window = ReceiveWindow::new(64 * KIB, Instant::now());
        window.received(64 * 1024).unwrap();
        assert_eq!(window.received(1), Err(Overrun));
    }
}
