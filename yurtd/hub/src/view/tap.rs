//! What upstream tells a view, for views within it: every event as it came, before anything is laid over it here.
//!
//! A tap has a bound. Whoever does not keep up loses it, and takes the state instead ([`View::pages`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::table::Change;
use super::{Client, View};

/// Bursts that may wait in a tap.
const BURSTS: usize = 64;
/// And their bytes, beyond the first. Taps of one view share them.
const BYTES: usize = 1 << 20;

/// A burst, which the view has stored.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) changes: Arc<[Change]>,
    /// The collection's resourceVersion behind them.
    pub(crate) version: u64,
}

impl Told {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.item.body.len()).sum()
    }
}

#[derive(Debug)]
struct Sender {
    queue: mpsc::Sender<Told>,
    waiting: Arc<AtomicUsize>,
}

/// The taps of a view.
#[derive(Debug, Default)]
pub(super) struct Taps {
    all: Mutex<Vec<Sender>>,
}

impl Taps {
    fn open(&self) -> (mpsc::Receiver<Told>, Arc<AtomicUsize>) {
        let ((queue, receiver), waiting) = (mpsc::channel(BURSTS), Arc::new(AtomicUsize::new(0)));
        let sender = Sender { queue, waiting: Arc::clone(&waiting) };
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        (receiver, waiting)
    }

    fn tell(&self, changes: &Arc<[Change]>, version: u64) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        let told = Told { changes: Arc::clone(changes), version };
        let bytes = told.bytes();
        all.retain(|sender| {
            let waiting = sender.waiting.fetch_add(bytes, Ordering::Relaxed);
            (waiting == 0 || waiting + bytes <= BYTES) && sender.queue.try_send(told.clone()).is_ok()
        });
    }

    fn close(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// One of them. While there is one, the view is in use.
pub(crate) struct Tap {
    queue: mpsc::Receiver<Told>,
    waiting: Arc<AtomicUsize>,
    _client: Client,
}

impl Tap {
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
        self.waiting.fetch_sub(told.bytes(), Ordering::Relaxed);
    }
}

impl View {
    /// Everything that upstream tells from now on. What is in the store by now is not told.
    pub(crate) fn tap(self: &Arc<Self>) -> Tap {
        let (queue, waiting) = self.taps.open();
        Tap { queue, waiting, _client: Client::new(self) }
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

    #[test]
    fn a_tap_that_is_not_emptied_is_lost_and_others_are_not() {
        let taps = Taps::default();
        let (slow, _) = taps.open();
        let (mut quick, waiting) = taps.open();
        for version in 0..=BURSTS as u64 {
            taps.tell(&changes(1), version);
            assert_eq!(quick.try_recv().unwrap().version, version);
            waiting.store(0, Ordering::Relaxed);
        }
        assert_eq!((told(&taps), slow.len()), (1, BURSTS));
        assert!(slow.is_closed());
    }

    #[test]
    fn a_tap_has_a_bound_of_bytes_and_one_burst_is_never_too_much() {
        let taps = Taps::default();
        let (mut tap, waiting) = taps.open();
        taps.tell(&changes(3 * BYTES), 1);
        assert_eq!(tap.try_recv().unwrap().version, 1);
        waiting.store(0, Ordering::Relaxed);
        taps.tell(&changes(BYTES), 2);
        assert_eq!(told(&taps), 1);
        taps.tell(&changes(1), 3);
        assert_eq!(told(&taps), 0);
        assert_eq!(tap.try_recv().unwrap().version, 2);
        assert!(tap.try_recv().is_err(), "what is behind a gap is not told");
    }
}
