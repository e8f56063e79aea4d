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

    /// The sequence of a new Event, and those that make room for it.
    fn admit(&mut self, place: String, bytes: usize) -> (u64, Vec<u64>) {
        let mut gone: Vec<u64> = self.places.get(&place).copied().into_iter().collect();
        for older in &gone {
            self.remove(*older);
        }
        while self.queued.len() >= MAX_EVENTS || self.bytes + bytes > MAX_BYTES {
            let Some((&oldest, _)) = self.queued.first_key_value() else { break };
            self.remove(oldest);
            self.dropped += 1;
            gone.push(oldest);
        }
        let sequence = self.next;
        self.insert(sequence, place, bytes);
        (sequence, gone)
    }
}

/// The queue.
pub(crate) struct EventQueue {
    store: Store,
    index: Mutex<Index>,
    pending: watch::Sender<usize>,
}

impl EventQueue {
    /// Reads what an earlier process left.
    pub(crate) fn open(store: Store) -> Self {
        let mut index = Index::default();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = match store.scan(Bucket::Events, b"", after.as_deref(), 64) {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "the Events from the time without a link cannot be read");
                    break;
                }
            };
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in page {
                let sequence = key.try_into().ok().map(u64::from_be_bytes);
                match (sequence, Entry::from_bytes(&value)) {
                    (Some(sequence), Some(entry)) => index.insert(sequence, entry.place(), value.len()),
                    _ => tracing::warn!("the queue of Events has an entry that nothing of ours wrote"),
                }
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
        let stored = self.store.put_durable(Bucket::Events, &key(sequence), &value).await;
        if let Err(error) = stored {
            self.index().remove(sequence);
            self.tell();
            return Err(error.into());
        }
        self.tell();
        // After the new one is there: a power cut in between leaves one Event too many, and never one too few.
        self.delete(&gone).await?;
        Ok(())
    }

    /// The oldest Event.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub(crate) fn oldest(&self) -> Result<Option<(u64, Entry)>, StoreError> {
        let Some(sequence) = self.index().queued.first_key_value().map(|(sequence, _)| *sequence) else {
            return Ok(None);
        };
        let value = self.store.get(Bucket::Events, &key(sequence))?;
        match value.as_deref().and_then(Entry::from_bytes) {
            Some(entry) => Ok(Some((sequence, entry))),
            None => Err(StoreError::Damaged(format!("the Event {sequence} cannot be read"))),
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
        while let Some((sequence, entry)) = queue.oldest().unwrap() {
            queue.forget(sequence).await.unwrap();
            all.push((entry.place(), entry.body));
        }
        all
    }

    #[tokio::test]
    async fn events_survive_the_process_in_their_order_and_a_repeat_takes_its_elders_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone());
        for (name, count) in [("a", 1), ("b", 1), ("a", 2)] {
            queue.push(PATH, "application/json", &event(name, count)).await.unwrap();
        }
        drop((queue, store));
        let (store, _) = Store::open(dir.path()).unwrap();
        let queue = EventQueue::open(store.clone());
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
        let queue = EventQueue::open(store);
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
