//! What upstream tells a view, for views within it: every event as it came, before anything is laid over it here.
//!
//! A tap has a bound. Upstream's next events wait a moment for whoever follows it, as they do for watchers; who does not
//! keep up all the same loses the tap, and asks upstream itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::table::Change;
use super::{Client, View};
use crate::limits;

/// Bursts that may wait in a tap.
const BURSTS: usize = 64;
/// And their bytes, beyond the first.
const BYTES: usize = limits::TAP;

/// A burst, which the view has stored.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) changes: Arc<[Change]>,
    /// The collection's resourceVersion behind them.
    pub(crate) version: u64,
}

impl Told {
    /// A bookmark takes a place, too.
    fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.item.body.len()).sum::<usize>().max(1)
    }
}

/// How full a tap is.
#[derive(Debug, Default)]
struct Level {
    /// Bytes that wait in it.
    bytes: AtomicUsize,
    /// Whether somebody takes what comes.
    followed: AtomicBool,
}

#[derive(Debug)]
struct Sender {
    queue: mpsc::Sender<Told>,
    level: Arc<Level>,
}

impl Sender {
    fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.level.bytes.load(Ordering::Relaxed);
        waiting == 0 || (waiting + bytes <= BYTES && self.queue.capacity() > 0)
    }
}

/// The taps of a view.
#[derive(Debug, Default)]
pub(super) struct Taps {
    all: Mutex<Vec<Sender>>,
    /// Somebody has taken something.
    taken: Arc<Notify>,
}

impl Taps {
    fn open(&self) -> (mpsc::Receiver<Told>, Arc<Level>) {
        let ((queue, receiver), level) = (mpsc::channel(BURSTS), Arc::<Level>::default());
        let sender = Sender { queue, level: Arc::clone(&level) };
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        (receiver, level)
    }

    /// Waits until so many bytes more find room in every tap that is followed, and not long.
    pub(super) async fn make_way(&self, bytes: usize) {
        let until = Instant::now() + limits::KEEPS_UP;
        loop {
            let taken = self.taken.notified();
            if self.has_way(bytes) || timeout_at(until, taken).await.is_err() {
                return;
            }
        }
    }

    fn has_way(&self, bytes: usize) -> bool {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().all(|sender| {
            !sender.level.followed.load(Ordering::Relaxed)
                || sender.queue.is_closed()
                || sender.has_room(bytes)
        })
    }

    fn tell(&self, changes: &Arc<[Change]>, version: u64) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        let told = Told { changes: Arc::clone(changes), version };
        let bytes = told.bytes();
        all.retain(|sender| {
            let room = sender.has_room(bytes);
            sender.level.bytes.fetch_add(bytes, Ordering::Relaxed);
            room && sender.queue.try_send(told.clone()).is_ok()
        });
    }

    fn close(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// One of them. While there is one, the view is in use.
pub(crate) struct Tap {
    queue: mpsc::Receiver<Told>,
    level: Arc<Level>,
    taken: Arc<Notify>,
    _client: Client,
}

impl Tap {
    /// From now on what comes is taken.
    pub(crate) fn follow(&self) {
        self.level.followed.store(true, Ordering::Relaxed);
    }

    /// The next burst; nothing when what comes next cannot be told in bursts.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        let told = self.queue.recv().await?;
        self.taken(&told);
        Some(told)
    }

    /// The same, if there is one already.
    pub(crate) fn next_now(&mut self) -> Option<Told> {
        let told = self.queue.try_recv().ok()?;
        self.taken(&told);
        Some(told)
    }

    /// Whether something was not told any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.queue.is_closed()
    }

    fn taken(&self, told: &Told) {
        self.level.bytes.fetch_sub(told.bytes(), Ordering::Relaxed);
        self.taken.notify_waiters();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.queue.close();
        self.taken.notify_waiters();
    }
}

impl View {
    /// Everything that upstream tells from now on. What is in the store by now is not told.
    pub(crate) fn tap(self: &Arc<Self>) -> Tap {
        let (queue, level) = self.taps.open();
        Tap { queue, level, taken: Arc::clone(&self.taps.taken), _client: Client::new(self) }
    }

    /// Whether there is a tap.
    #[cfg(test)]
    pub(crate) fn is_tapped(&self) -> bool {
        !self.taps.all.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Upstream has told this, and it is stored.
    pub(crate) fn tell_taps(&self, changes: &Arc<[Change]>, version: u64) {
        self.taps.tell(changes, version);
    }

    /// The state has changed in another way than by events.
    pub(crate) fn close_taps(&self) {
        self.taps.close();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{EventType, Item, ObjectMeta};

    fn changes(bytes: usize) -> Arc<[Change]> {
        let item = Item { meta: ObjectMeta::default(), body: Bytes::from(vec![b'x'; bytes]) };
        Arc::new([Change { event_type: EventType::Modified, item }])
    }

    fn told(taps: &Taps) -> usize {
        taps.all.lock().unwrap().len()
    }

    fn take(taps: &Taps, queue: &mut mpsc::Receiver<Told>, level: &Level) -> u64 {
        let told = queue.try_recv().unwrap();
        level.bytes.fetch_sub(told.bytes(), Ordering::Relaxed);
        taps.taken.notify_waiters();
        told.version
    }

    #[test]
    fn a_tap_that_is_not_emptied_is_lost_and_others_are_not() {
        let taps = Taps::default();
        let (slow, _) = taps.open();
        let (mut quick, level) = taps.open();
        for version in 0..=BURSTS as u64 {
            taps.tell(&changes(1), version);
            assert_eq!(take(&taps, &mut quick, &level), version);
        }
        assert_eq!((told(&taps), slow.len()), (1, BURSTS));
        assert!(slow.is_closed());
    }

    #[test]
    fn a_tap_has_a_bound_of_bytes_and_one_burst_is_never_too_much() {
        let taps = Taps::default();
        let (mut tap, level) = taps.open();
        taps.tell(&changes(3 * BYTES), 1);
        assert_eq!(take(&taps, &mut tap, &level), 1);
        taps.tell(&changes(BYTES), 2);
        assert_eq!(told(&taps), 1);
        taps.tell(&changes(1), 3);
        assert_eq!(told(&taps), 0);
        assert_eq!(take(&taps, &mut tap, &level), 2);
        assert!(tap.try_recv().is_err(), "what is behind a gap is not told");
    }

    #[tokio::test(start_paused = true)]
    async fn upstream_waits_a_moment_for_who_follows_and_for_nobody_else() {
        let taps = Arc::new(Taps::default());
        let (mut tap, level) = taps.open();
        taps.tell(&changes(BYTES), 1);
        let begin = Instant::now();
        taps.make_way(1).await;
        assert_eq!(begin.elapsed(), std::time::Duration::ZERO, "nobody takes it yet");
        level.followed.store(true, Ordering::Relaxed);
        let waits = tokio::spawn({
            let taps = Arc::clone(&taps);
            async move { taps.make_way(1).await }
        });
        tokio::time::sleep(limits::KEEPS_UP / 2).await;
        assert!(!waits.is_finished());
        assert_eq!(take(&taps, &mut tap, &level), 1);
        waits.await.unwrap();
        assert_eq!(begin.elapsed(), limits::KEEPS_UP / 2);
        // And then no longer.
        taps.tell(&changes(BYTES), 2);
        taps.make_way(1).await;
        assert_eq!(begin.elapsed(), limits::KEEPS_UP * 3 / 2);
        drop(tap);
        taps.make_way(1).await;
        assert_eq!(begin.elapsed(), limits::KEEPS_UP * 3 / 2);
    }
}
