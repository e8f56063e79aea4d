//! Events that kubelet makes while the link is down: what happened during the outage is what people ask for afterwards.
//!
//! Each is on the disk before it is acknowledged, and [`replay`] sends them in their order, with the times that kubelet
//! wrote into them, when the link is back.
//!
//! # Key layout (bucket `Events`)
//!
//! ```text
//! SEQUENCE     8 bytes, big endian, from one counter
//! ```
//!
//! The value is an [`Entry`]: a line of JSON with the path and the content type, then the Event as kubelet sent it.
//!
//! # Repeats
//!
//! An Event that happens again is not a new one: its recorder patches the count and the last time of the first. A patch
//! cannot be applied here to what was sent in protobuf or has only been seen by the API server; it is answered 404, upon
//! which every recorder posts the whole Event again under the same name, with the new count (client-go `recordEvent`).
//! So there is one place for a name: the newer Event takes the older one's.
//!
//! # Bounds
//!
//! [`MAX_EVENTS`] and [`MAX_BYTES`]; the oldest go first, and are counted. Nobody but kubelet has a place here: what
//! somebody else may write, and as whom, only the API server can say when the Events arrive there.

pub(crate) mod replay;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::token_request::is_protobuf;
use crate::store::{Bucket, Store, StoreError};
use crate::wire::object::decode_object;
use crate::wire::{Encoding, WireError};

/// Events kept at most: a day of a node in trouble.
const MAX_EVENTS: usize = 2000;
/// And their bytes.
const MAX_BYTES: usize = 2 << 20;
/// One Event; the API server takes at most 1.5 MB of anything, and kubelet's have a few hundred bytes.
const MAX_EVENT: usize = 64 << 10;

/// Why an Event is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    /// It is no Event in its content type, or has no name (one that the API server would make cannot be made here).
    #[error("the Event cannot be read: {0}")]
    Malformed(#[from] WireError),
    /// It is too large.
    #[error("the Event has more than {} KiB", MAX_EVENT >> 10)]
    TooLarge,
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Head of the stored form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    /// Of the collection: `/api/v1/namespaces/shop/events`.
    path: String,
    content_type: String,
    name: String,
}

/// One Event, as kubelet sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    head: Head,
    body: Bytes,
}

impl Entry {
    fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes =
            serde_json::to_vec(&self.head).map_err(|error| StoreError::Failed(error.to_string()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head = serde_json::from_slice(&bytes[..end]).ok()?;
        Some(Self { head, body: Bytes::copy_from_slice(&bytes[end + 1..]) })
    }

    fn place(&self) -> String {
        format!("{}/{}", self.head.path, self.head.name)
    }
}

/// What is in the queue, without the Events themselves.
#[derive(Debug, Default)]
struct Index {
    /// Oldest first: where each has its place, and its bytes.
    queued: BTreeMap<u64, (String, usize)>,
    /// Path and name → sequence.
    places: HashMap<String, u64>,
    bytes: usize,
    next: u64,
    dropped: u64,
}

impl Index {
    fn insert(&mut self, sequence: u64, place: String, bytes: usize) {
        self.bytes += bytes;
        self.next = self.next.max(sequence + 1);
        self.places.insert(place.clone(), sequence);
        self.queued.insert(sequence, (place, bytes));
    }

    fn remove(&mut self, sequence: u64) {
        let Some((place, bytes)) = self.queued.remove(&sequence) else { return };
        self.bytes -= bytes;
        if self.places.get(&place) == Some(&sequence) {
            self.places.remove(&place);
        }
    }

    /// Takes out an Event, as it can be [put back](Self::insert).
    fn take(&mut self, sequence: u64) -> Option<(u64, String, usize)> {
        let (place, bytes) = self.queued.get(&sequence)?.clone();
        self.remove(sequence);
        Some((sequence, place, bytes))
    }

    /// The sequence of a new Event, and those that make room for it.
    fn admit(&mut self, place: String, bytes: usize) -> (u64, Vec<(u64, String, usize)>) {
        let elder = self.places.get(&place).copied();
        let mut gone: Vec<_> = elder.and_then(|elder| self.take(elder)).into_iter().collect();
        while self.queued.len() >= MAX_EVENTS || self.bytes + bytes > MAX_BYTES {
            let Some((&oldest, _)) = self.queued.first_key_value() else { break };
            gone.extend(self.take(oldest));
            self.dropped += 1;
        }
        let sequence = self.next;
        self.insert(sequence, place, bytes);
        (sequence, gone)
    }
}

/// An Event that has its place, and is not on the disk yet. Unless it is [kept](Self::keep), its place is given back to
/// those that made room for it: also when whoever posts it hangs up.
struct Admitted<'q> {
    queue: &'q EventQueue,
    sequence: u64,
    gone: Vec<(u64, String, usize)>,
    kept: bool,
}

impl Admitted<'_> {
    /// It is on the disk. Returns those that made room for it.
    fn keep(mut self) -> Vec<u64> {
        self.kept = true;
        self.gone.iter().map(|(sequence, ..)| *sequence).collect()
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let mut index = self.queue.index();
            index.remove(self.sequence);
            for (sequence, place, bytes) in self.gone.drain(..) {
                // Somebody may have posted it again meanwhile.
                if !index.places.contains_key(&place) {
                    index.insert(sequence, place, bytes);
                }
            }
        }
        self.queue.tell();
    }
}

/// The queue.
pub(crate) struct EventQueue {
    store: Store,
    index: Mutex<Index>,
    pending: watch::Sender<usize>,
}

impl EventQueue {
    /// Reads what an earlier process left. What cannot be read is removed: it would be in the way of all that follows.
    pub(crate) async fn open(store: Store) -> Self {
        let mut index = Index::default();
        let mut unreadable = Vec::new();
        let found = store.sizes(Bucket::Events).unwrap_or_else(|error| {
            tracing::error!(%error, "the Events from the time without a link cannot be read");
            Vec::new()
        });
        for (key, _) in found {
            let sequence = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes);
            match (sequence, store.get(Bucket::Events, &key)) {
                (_, Err(error)) if !matches!(error, StoreError::Damaged(_)) => {
                    tracing::warn!(%error, "an Event from the time without a link cannot be read now");
                }
                (Ok(sequence), Ok(Some(value))) if let Some(entry) = Entry::from_bytes(&value) => {
                    index.insert(sequence, entry.place(), value.len());
                }
                _ => unreadable.push(key),
            }
        }
        if !unreadable.is_empty() {
            index.dropped += unreadable.len() as u64;
            tracing::warn!(events = unreadable.len(), "the queue has Events of no use; they are removed");
            if let Err(error) = store.delete(Bucket::Events, &unreadable).await {
                tracing::warn!(%error, "and cannot be removed");
            }
        }
        let pending = watch::Sender::new(index.queued.len());
        Self { store, index: Mutex::new(index), pending }
    }

    /// Queues an Event that was posted to `path`; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`EventError`]; then it must not be answered as taken.
    pub(crate) async fn push(&self, path: &str, content_type: &str, body: &Bytes) -> Result<(), EventError> {
        if body.len() > MAX_EVENT {
            return Err(EventError::TooLarge);
        }
        let encoding = if is_protobuf(content_type) { Encoding::Protobuf } else { Encoding::Json };
        let name = decode_object(encoding, body)?.1.meta.name;
        let head =
            Head { path: path.trim_end_matches('/').to_owned(), content_type: content_type.to_owned(), name };
        let entry = Entry { head, body: body.clone() };
        let value = entry.to_bytes()?;
        let (sequence, gone) = self.index().admit(entry.place(), value.len());
        let admitted = Admitted { queue: self, sequence, gone, kept: false };
        self.store.put_durable(Bucket::Events, &key(sequence), &value).await?;
        let gone = admitted.keep();
        // After the new one is there: a power cut in between leaves one Event too many, and never one too few.
        self.delete(&gone).await?;
        Ok(())
    }

    /// The oldest Event. One that cannot be read is forgotten, and counted: it must not be in the way of the others.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or what is no use not be removed.
    pub(crate) async fn oldest(&self) -> Result<Option<(u64, Entry)>, StoreError> {
        loop {
            let Some(sequence) = self.index().queued.first_key_value().map(|(sequence, _)| *sequence) else {
                return Ok(None);
            };
            match self.store.get(Bucket::Events, &key(sequence)) {
                Ok(Some(value)) if let Some(entry) = Entry::from_bytes(&value) => {
                    return Ok(Some((sequence, entry)));
                }
                Ok(_) | Err(StoreError::Damaged(_)) => {
                    tracing::warn!(
                        sequence,
                        "an Event from the time without a link cannot be read; it is forgotten"
                    );
                    self.index().dropped += 1;
                    self.forget(sequence).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets Events that were sent, or are not wanted.
    ///
    /// # Errors
    ///
    /// When the store fails; they are then sent again after a restart, which changes nothing.
    pub(crate) async fn forget(&self, sequence: u64) -> Result<(), StoreError> {
        self.index().remove(sequence);
        self.tell();
        self.delete(&[sequence]).await
    }

    /// How many wait, now and whenever that changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
        self.pending.subscribe()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.index().queued.len()
    }

    /// How many were dropped because there were too many, since the process began.
    pub(crate) fn dropped(&self) -> u64 {
        self.index().dropped
    }

    async fn delete(&self, sequences: &[u64]) -> Result<(), StoreError> {
        if sequences.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = sequences.iter().map(|sequence| key(*sequence)).collect();
        self.store.delete(Bucket::Events, &keys).await
    }

    fn tell(&self) {
        let count = self.len();
        self.pending.send_replace(count);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(sequence: u64) -> Vec<u8> {
    sequence.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATH: &str = "/api/v1/namespaces/shop/events";

    fn event(name: &str, count: usize) -> Bytes {
        let event = json!({"kind": "Event", "apiVersion": "v1", "count": count,
            "metadata": {"name": name, "namespace": "shop"}});
        Bytes::from(event.to_string())
    }

    async fn drain(queue: &EventQueue) -> Vec<(String, Bytes)> {
        let mut all = Vec::new();
        while let Some((sequence, entry)) = queue.oldest().await.unwrap() {
            queue.forget(sequence).await.unwrap();
            all.push((entry.place(), entry.body));
        }
        all
    }

    #[tokio::test]
    async fn events_survive_the_process_in_their_order_and_a_repeat_takes_its_elders_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone()).await;
        for (name, count) in [("a", 1), ("b", 1), ("a", 2)] {
            queue.push(PATH, "application/json", &event(name, count)).await.unwrap();
        }
        drop((queue, store));
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone()).await;
        assert_eq!(*queue.subscribe().borrow(), 2);
        queue.push(PATH, "application/json", &event("c", 1)).await.unwrap();
        let expected = [("b", 1), ("a", 2), ("c", 1)];
        let expected: Vec<_> =
            expected.map(|(name, count)| (format!("{PATH}/{name}"), event(name, count))).into();
        assert_eq!(drain(&queue).await, expected);
        assert!(store.scan(Bucket::Events, b"", None, 10).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_no_event_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store).await;
        let push = |content_type: &'static str, body: Bytes| {
            let queue = &queue;
            async move { queue.push(PATH, content_type, &body).await }
        };
        assert!(matches!(
            push("application/json", Bytes::from_static(b"{")).await,
            Err(EventError::Malformed(_))
        ));
        let protobuf = push("application/vnd.kubernetes.protobuf", event("a", 1)).await;
        assert!(matches!(protobuf, Err(EventError::Malformed(_))));
        assert!(matches!(push("application/json", event("", 1)).await, Err(EventError::Malformed(_))));
        let large = Bytes::from(vec![b' '; MAX_EVENT + 1]);
        assert!(matches!(push("application/json", large).await, Err(EventError::TooLarge)));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_read_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone()).await;
        for name in ["a", "b", "c"] {
            queue.push(PATH, "application/json", &event(name, 1)).await.unwrap();
        }
        let tear = async |sequence: u64| {
            let key = crate::store::bucket_key(Bucket::Events, &key(sequence));
            let torn =
                move |tx: &mut crate::store::Tx<'_>| tx.put(crate::store::Table::Buckets, &key, b"torn");
            store.write(crate::store::Durability::Durable, torn).await.unwrap();
        };
        tear(0).await;
        let (_, entry) = queue.oldest().await.unwrap().unwrap();
        assert_eq!((entry.place(), queue.len(), queue.dropped()), (format!("{PATH}/b"), 2, 1));
        // Nor after a restart.
        tear(1).await;
        store.put(Bucket::Events, &key(7), b"nothing of ours").await.unwrap();
        let queue = EventQueue::open(store.clone()).await;
        assert_eq!(queue.dropped(), 2);
        assert_eq!(drain(&queue).await, [(format!("{PATH}/c"), event("c", 1))]);
        assert!(store.sizes(Bucket::Events).unwrap().is_empty());
    }

    #[tokio::test]
    async fn whoever_hangs_up_while_an_event_is_stored_leaves_the_queue_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone()).await;
        queue.push(PATH, "application/json", &event("a", 1)).await.unwrap();
        let again = event("a", 2);
        {
            let mut push = std::pin::pin!(queue.push(PATH, "application/json", &again));
            assert!(futures::poll!(&mut push).is_pending());
        }
        assert_eq!((queue.len(), *queue.subscribe().borrow()), (1, 1));
        assert_eq!(drain(&queue).await, [(format!("{PATH}/a"), event("a", 1))]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let mut index = Index::default();
        for number in 0..MAX_EVENTS + 3 {
            index.admit(number.to_string(), 100);
        }
        assert_eq!((index.queued.len(), index.dropped), (MAX_EVENTS, 3));
        assert_eq!(index.queued.first_key_value().unwrap().0, &3);
        // One that is as large as many takes the place of many.
        let (_, gone) = index.admit("large".into(), MAX_BYTES - 1000);
        assert_eq!(index.queued.len(), 11);
        assert_eq!(gone.len(), MAX_EVENTS - 10);
        assert_eq!(index.bytes, index.queued.values().map(|(_, bytes)| bytes).sum::<usize>());
        assert_eq!(index.places.len(), index.queued.len());
    }
}
