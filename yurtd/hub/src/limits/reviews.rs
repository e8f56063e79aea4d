//! TokenReviews: who may wait for one, and how many may be asked for.
//!
//! Anybody who reaches the hub's sockets can come with tokens that nobody has seen. Each costs memory while it waits and
//! the link when it is reviewed, so both are counted by peer address, and for all together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{
    REVIEW_RATE, REVIEW_RATE_OF_A_PEER, REVIEWED_PEERS, REVIEWS_AT_ONCE, REVIEWS_WAITING,
    REVIEWS_WAITING_OF_A_PEER,
};

/// The queue before the API server.
pub(crate) struct Reviews {
    turns: Semaphore,
    queue: Mutex<Queue>,
}

struct Queue {
    waiting: usize,
    credit: Credit,
    peers: HashMap<IpAddr, Peer>,
}

struct Peer {
    waiting: usize,
    credit: Credit,
}

/// So many a second, and so many at once after a pause.
struct Credit {
    rate: (f64, f64),
    left: f64,
    at: Instant,
}

impl Credit {
    fn new(rate: (f64, f64), now: Instant) -> Self {
        Self { rate, left: rate.1, at: now }
    }

    fn refill(&mut self, now: Instant) -> f64 {
        let (a_second, most) = self.rate;
        self.left = (self.left + a_second * now.saturating_duration_since(self.at).as_secs_f64()).min(most);
        self.at = now;
        self.left
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now) >= self.rate.1
    }
}

/// A request's place in the queue, given back when it is dropped.
pub(crate) struct Waiting<'r> {
    reviews: &'r Reviews,
    address: IpAddr,
}

impl Reviews {
    /// Nobody waits.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let queue = Queue { waiting: 0, credit: Credit::new(REVIEW_RATE, now), peers: HashMap::new() };
        Self { turns: Semaphore::new(REVIEWS_AT_ONCE), queue: Mutex::new(queue) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Counters alone: whole after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the queue for a request from this address; `None` when there is none.
    pub(crate) fn enter(&self, from: IpAddr) -> Option<Waiting<'_>> {
        let (address, now) = (from.to_canonical(), Instant::now());
        let mut queue = self.lock();
        if queue.waiting >= REVIEWS_WAITING {
            return None;
        }
        if queue.peers.len() >= REVIEWED_PEERS {
            queue.peers.retain(|_, peer| peer.waiting > 0 || !peer.credit.is_full(now));
        }
        if queue.peers.len() >= REVIEWED_PEERS && !queue.peers.contains_key(&address) {
            return None;
        }
        let new = || Peer { waiting: 0, credit: Credit::new(REVIEW_RATE_OF_A_PEER, now) };
        let peer = queue.peers.entry(address).or_insert_with(new);
        if peer.waiting >= REVIEWS_WAITING_OF_A_PEER {
            return None;
        }
        peer.waiting += 1;
        queue.waiting += 1;
        Some(Waiting { reviews: self, address })
    }
}

impl<'r> Waiting<'r> {
    /// Waits for its turn. Nothing when the hub ends.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'r>> {
        self.reviews.turns.acquire().await.ok()
    }

    /// Whether this address may have another review now, and takes it.
    pub(crate) fn spend(&self) -> bool {
        let now = Instant::now();
        let mut queue = self.reviews.lock();
        let queue = &mut *queue;
        let Some(peer) = queue.peers.get_mut(&self.address) else { return false };
        let may = peer.credit.refill(now) >= 1.0 && queue.credit.refill(now) >= 1.0;
        if may {
            peer.credit.left -= 1.0;
            queue.credit.left -= 1.0;
        }
        may
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queue = self.reviews.lock();
        queue.waiting -= 1;
        if let Some(peer) = queue.peers.get_mut(&self.address) {
            peer.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 244, 0, last].into()
    }

    #[tokio::test]
    async fn one_address_has_a_share_of_the_queue_and_all_have_the_whole() {
        let reviews = Reviews::new();
        let mut all = Vec::new();
        while let Some(waiting) = reviews.enter(address(1)) {
            all.push(waiting);
        }
        assert_eq!(all.len(), REVIEWS_WAITING_OF_A_PEER);
        for other in 2..200 {
            all.extend(reviews.enter(address(other)));
        }
        assert_eq!(all.len(), REVIEWS_WAITING);
        all.clear();
        assert!(reviews.enter(address(1)).is_some(), "places come back");
    }

    #[tokio::test(start_paused = true)]
    async fn reviews_are_spent_and_come_back_with_time() {
        let reviews = Reviews::new();
        let spent = |from, times: usize| {
            let waiting = reviews.enter(from).unwrap();
            (0..times).filter(|_| waiting.spend()).count()
        };
        assert_eq!(spent(address(1), 1000), REVIEW_RATE_OF_A_PEER.1 as usize);
        assert_eq!(spent(address(1), 10), 0);
        assert_eq!(spent(address(2), 10), 10, "somebody else's are his own");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(spent(address(1), 10), 2 * REVIEW_RATE_OF_A_PEER.0 as usize);
        let of_many: usize = (10..100).map(|last| spent(address(last), 20)).sum();
        assert!(of_many <= REVIEW_RATE.1 as usize, "{of_many}");
    }

    #[tokio::test]
    async fn addresses_that_are_counted_have_a_bound() {
        let reviews = Reviews::new();
        for number in 0..3 * REVIEWED_PEERS as u32 {
            if let Some(waiting) = reviews.enter(std::net::Ipv4Addr::from_bits(number << 1).into()) {
                waiting.spend();
            }
        }
        assert!(reviews.lock().peers.len() <= REVIEWED_PEERS);
    }
}
