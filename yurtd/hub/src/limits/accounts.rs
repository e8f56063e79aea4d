//! What each identity has under way: requests and watches, answers that are not sent, lists in memory.
//!
//! An account is two shares, its own and that of all others together; both have to have room. kubelet's is its own
//! alone. A [`Flow`] is one request: what is handed to HTTP of its answer counts until HTTP has sent it, and how long
//! ago anything of it was sent tells a reader that has stopped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{COUNTED, IDENTITY, KUBELET, OTHERS, READER_WITHIN, Share};
use crate::caller::{Caller, Credential, Identity, Permit};

/// Everybody's accounts.
pub(crate) struct Accounts {
    kubelet: Arc<Account>,
    others: Arc<Used>,
    of: Mutex<HashMap<Identity, Arc<Account>>>,
}

/// What is used of a share.
struct Used {
    share: Share,
    streams: AtomicUsize,
    unsent: AtomicUsize,
    lists: AtomicUsize,
    readers: AtomicUsize,
    /// Something that was held has been given back.
    freed: Notify,
}

impl Used {
    fn new(share: Share) -> Self {
        let none = || AtomicUsize::new(0);
        Self { share, streams: none(), unsent: none(), lists: none(), readers: none(), freed: Notify::new() }
    }
}

/// The account of one identity.
pub(crate) struct Account {
    own: Used,
    /// What all but kubelet have together.
    all: Option<Arc<Used>>,
}

/// A request or a watch that is under way, until it and all of its answer are gone.
pub(crate) struct Flow {
    account: Arc<Account>,
    began: Instant,
    unsent: AtomicUsize,
    /// When something was sent last, or handed over when nothing was unsent: milliseconds since it began.
    moved: AtomicU64,
}

/// Some of a share, until it is dropped.
pub(crate) struct Held {
    account: Arc<Account>,
    amount: usize,
    counter: fn(&Used) -> &AtomicUsize,
}

/// A piece of an answer, counted until HTTP has sent it.
struct Unsent {
    piece: Bytes,
    flow: Arc<Flow>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        let bytes = self.piece.len();
        self.flow.unsent.fetch_sub(bytes, Ordering::Relaxed);
        for used in self.flow.account.shares() {
            used.unsent.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.flow.moves();
    }
}

impl Accounts {
    /// Nothing is used.
    pub(crate) fn new() -> Self {
        let kubelet = Arc::new(Account { own: Used::new(KUBELET), all: None });
        Self { kubelet, others: Arc::new(Used::new(OTHERS)), of: Mutex::default() }
    }

    /// The account of a caller.
    pub(crate) fn of(&self, caller: &Caller) -> Arc<Account> {
        self.of_identity(&caller.identity, &caller.credential)
    }

    /// The account of a caller who is authorised.
    pub(crate) fn of_permit(&self, permit: &Permit) -> Arc<Account> {
        self.of_identity(permit.identity(), permit.credential())
    }

    fn of_identity(&self, identity: &Identity, credential: &Credential) -> Arc<Account> {
        if *credential == Credential::Node {
            return self.kubelet.clone();
        }
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= COUNTED {
            // Whatever is under way holds it.
            of.retain(|_, account| Arc::strong_count(account) > 1);
        }
        let new = || Account { own: Used::new(IDENTITY), all: Some(self.others.clone()) };
        of.entry(identity.clone()).or_insert_with(|| Arc::new(new())).clone()
    }
}

impl Account {
    fn shares(&self) -> impl Iterator<Item = &Used> {
        std::iter::once(&self.own).chain(self.all.as_deref())
    }

    /// Takes `amount` of every share, or of none.
    fn take(
        &self,
        amount: usize,
        counter: impl Fn(&Used) -> &AtomicUsize,
        limit: impl Fn(&Share) -> usize,
    ) -> bool {
        let mut taken = Vec::with_capacity(2);
        for used in self.shares() {
            taken.push(used);
            if counter(used).fetch_add(amount, Ordering::Relaxed).saturating_add(amount) > limit(&used.share)
            {
                for used in taken {
                    counter(used).fetch_sub(amount, Ordering::Relaxed);
                }
                return false;
            }
        }
        true
    }

    /// One more request; `None` when there are too many.
    pub(crate) fn stream(self: &Arc<Self>) -> Option<Arc<Flow>> {
        let room = self.take(1, |used| &used.streams, |share| share.streams);
        room.then(|| {
            let (unsent, moved) = (AtomicUsize::new(0), AtomicU64::new(0));
            Arc::new(Flow { account: self.clone(), began: Instant::now(), unsent, moved })
        })
    }

    /// Room for a whole list in memory; `None` when there is none.
    pub(crate) fn list(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.hold(bytes, |used| &used.lists, |share| share.lists)
    }

    /// A place among those who read a list out of the store while it is sent; `None` when there is none.
    pub(crate) fn reader(self: &Arc<Self>) -> Option<Held> {
        self.hold(1, |used| &used.readers, |share| share.readers)
    }

    /// The same for a watch that begins behind much of what there is: it can do without, and a list cannot. Half of them
    /// are lists' alone.
    pub(crate) fn watch_reader(self: &Arc<Self>) -> Option<Held> {
        self.hold(1, |used| &used.readers, |share| share.readers / 2)
    }

    /// The same, waited for: all clients come back at once when the hub was away.
    pub(crate) async fn watch_reader_soon(self: &Arc<Self>) -> Option<Held> {
        let until = Instant::now() + READER_WITHIN;
        loop {
            let freed =
                futures::future::select_all(self.shares().map(|used| Box::pin(used.freed.notified())));
            if let Some(held) = self.watch_reader() {
                return Some(held);
            }
            timeout_at(until, freed).await.ok()?;
        }
    }

    fn hold(
        self: &Arc<Self>,
        amount: usize,
        counter: fn(&Used) -> &AtomicUsize,
        limit: fn(&Share) -> usize,
    ) -> Option<Held> {
        self.take(amount, counter, limit).then(|| Held { account: self.clone(), amount, counter })
    }

    fn may_send(&self) -> bool {
        self.shares().all(|used| used.unsent.load(Ordering::Relaxed) < used.share.unsent)
    }
}

impl Flow {
    /// Whether more may be handed to HTTP before what was is sent.
    pub(crate) fn may_send(&self) -> bool {
        self.account.may_send()
    }

    /// Counts a piece until it is sent, or given up with its stream.
    pub(crate) fn sending(self: &Arc<Self>, piece: Bytes) -> Bytes {
        let bytes = piece.len();
        if self.unsent.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.moves();
        }
        for used in self.account.shares() {
            used.unsent.fetch_add(bytes, Ordering::Relaxed);
        }
        Bytes::from_owner(Unsent { piece, flow: self.clone() })
    }

    fn moves(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Ordering::Relaxed);
    }

    /// How long its reader has taken nothing of what there is for it.
    pub(crate) fn stalled(&self) -> Duration {
        if self.unsent.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        self.began.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        for used in self.account.shares() {
            used.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for used in self.account.shares() {
            (self.counter)(used).fetch_sub(self.amount, Ordering::Relaxed);
            used.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use yurt_node::token::BearerToken;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller { identity: Identity::new(name), credential: Credential::Bearer(BearerToken::new("t")) }
    }

    fn kubelet() -> Caller {
        Caller { identity: Identity::new("system:node:edge"), credential: Credential::Node }
    }

    #[test]
    fn nobody_has_more_streams_than_its_share_and_kubelet_is_not_counted_with_the_others() {
        let accounts = Accounts::new();
        let mut streams: Vec<_> = std::iter::from_fn(|| accounts.of(&caller("a")).stream()).collect();
        assert_eq!(streams.len(), IDENTITY.streams);
        for other in 0..100 {
            streams.extend(std::iter::from_fn(|| accounts.of(&caller(&format!("b{other}"))).stream()));
        }
        assert_eq!(streams.len(), OTHERS.streams);
        assert!(accounts.of(&kubelet()).stream().is_some());
        streams.clear();
        assert!(accounts.of(&caller("a")).stream().is_some(), "places come back");
    }

    #[test]
    fn lists_in_memory_are_bounded_by_their_bytes() {
        let accounts = Accounts::new();
        let account = accounts.of(&caller("a"));
        assert!(account.list(IDENTITY.lists + 1).is_none());
        let all = account.list(IDENTITY.lists).unwrap();
        assert!(account.list(1).is_none());
        drop(all);
        let _all = account.list(IDENTITY.lists).unwrap();
        let others: Vec<_> = ["b", "c", "d"]
            .iter()
            .filter_map(|name| accounts.of(&caller(name)).list(IDENTITY.lists))
            .collect();
        assert_eq!(others.len(), OTHERS.lists / IDENTITY.lists - 1);
        assert!(accounts.of(&kubelet()).list(KUBELET.lists).is_some());
        let readers: Vec<_> = std::iter::from_fn(|| account.reader()).collect();
        assert_eq!(readers.len(), IDENTITY.readers);
        assert!(account.watch_reader().is_none());
        drop(readers);
        let watches: Vec<_> = std::iter::from_fn(|| account.watch_reader()).collect();
        assert_eq!(watches.len(), IDENTITY.readers / 2);
        assert!(account.reader().is_some(), "lists have places left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_waits_a_moment_for_a_reader() {
        let accounts = Accounts::new();
        let account = accounts.of(&caller("a"));
        let mut watches: Vec<_> = std::iter::from_fn(|| account.watch_reader()).collect();
        let began = Instant::now();
        assert!(account.watch_reader_soon().await.is_none());
        assert_eq!(began.elapsed(), READER_WITHIN);
        let (one, ()) = tokio::join!(account.watch_reader_soon(), async { drop(watches.pop()) });
        assert!(one.is_some());
        assert_eq!(began.elapsed(), READER_WITHIN);
    }

    #[test]
    fn what_is_handed_over_counts_until_it_is_gone() {
        let accounts = Accounts::new();
        let flow = accounts.of(&caller("a")).stream().unwrap();
        let mut pieces = Vec::new();
        while flow.may_send() {
            pieces.push(flow.sending(Bytes::from(vec![0; 1000])));
        }
        assert_eq!(pieces.len(), IDENTITY.unsent.div_ceil(1000));
        let part = pieces.pop().unwrap().slice(10..20);
        assert!(!flow.may_send(), "a part of it holds all of it");
        drop(part);
        assert!(flow.may_send());
        assert!(accounts.of(&kubelet()).stream().unwrap().may_send());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_known_by_its_time() {
        let accounts = Accounts::new();
        let flow = accounts.of(&caller("a")).stream().unwrap();
        let second = Duration::from_secs(1);
        tokio::time::advance(60 * second).await;
        assert_eq!(flow.stalled(), Duration::ZERO, "nothing is there to be sent");
        let one = flow.sending(Bytes::from_static(b"1"));
        tokio::time::advance(10 * second).await;
        let two = flow.sending(Bytes::from_static(b"2"));
        assert_eq!(flow.stalled(), 10 * second, "another piece is no progress");
        drop(one);
        assert_eq!(flow.stalled(), Duration::ZERO);
        tokio::time::advance(second).await;
        assert_eq!(flow.stalled(), second);
        drop(two);
        assert_eq!(flow.stalled(), Duration::ZERO);
    }

    #[test]
    fn who_has_nothing_under_way_is_forgotten() {
        let accounts = Accounts::new();
        let kept = accounts.of(&caller("kept")).stream().unwrap();
        for number in 0..4 * COUNTED {
            accounts.of(&caller(&number.to_string()));
        }
        assert!(accounts.of.lock().unwrap().len() <= COUNTED + 1);
        assert!(Arc::ptr_eq(&kept.account, &accounts.of(&caller("kept"))));
    }
}
