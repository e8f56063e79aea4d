//! The whole list of a view, encoded: one copy out of the memory map, shared by everyone who wants it at the same time.
//!
//! A list that there is no room for in memory is sent piece by piece while it is read ([`View::list_in_pieces`]). It has
//! to be of one state all the same, so it is one transaction, on a thread of its own: LMDB's readers hold up nobody, but
//! what is overwritten meanwhile is not freed. Reading it in several transactions was rejected: what has changed between
//! two of them cannot be had as it was.

use std::any::Any;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::record::{ObjectRecord, ViewRecord};
use super::{Progress, State, View, feed};
use crate::store::{Reader, StoreError, Table};
use crate::wire::TypeMeta;
use crate::wire::list::{ListSize, ListWriter};

/// What keeps room for a list in memory.
pub(crate) type Room = Box<dyn Any + Send + Sync>;

/// A complete list.
#[derive(Debug, Clone)]
pub(crate) struct ListBody {
    /// Of the last change that is in it.
    pub(crate) sequence: u64,
    /// Of the body.
    pub(crate) content_type: &'static str,
    /// The encoded `*List`.
    pub(crate) body: Bytes,
}

pub(super) struct SharedList {
    sequence: u64,
    resource_version: u64,
    body: Bytes,
    _room: Room,
}

/// A part of a list.
#[derive(Debug)]
pub(crate) enum Piece {
    /// More of it.
    Bytes(Bytes),
    /// That was all. A list without it is none.
    End,
}

/// How long the sending of a list may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until a piece is taken.
    pub(crate) piece: Duration,
    /// Until all are.
    pub(crate) all: Duration,
}

/// Keeps the list for others while somebody sends it.
struct SharedBody(Arc<SharedList>);

impl AsRef<[u8]> for SharedBody {
    fn as_ref(&self) -> &[u8] {
        &self.0.body
    }
}

impl View {
    /// The whole list, encoded.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn list(&self) -> Result<ListBody, StoreError> {
        let list = self.list_if(|_| Some(Box::new(())))?;
        list.ok_or_else(|| StoreError::Failed("there is no room for the list".to_owned()))
    }

    /// The same, if there is room for so many bytes, or others are being sent the same list.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn list_if(
        &self,
        room: impl FnOnce(usize) -> Option<Room>,
    ) -> Result<Option<ListBody>, StoreError> {
        self.touch();
        // Whoever lists will watch on from there.
        self.ring.expect_watcher();
        // Read before the transaction: whatever happened up to there is in it.
        let known = *self.progress.borrow();
        let shared = match self.shared(known) {
            Some(shared) => shared,
            None => {
                let Some(list) = self.build(known.resource_version, room)? else { return Ok(None) };
                let list = Arc::new(list);
                *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&list);
                list
            }
        };
        Ok(Some(ListBody {
            sequence: shared.sequence,
            content_type: self.spec.encoding().content_type(),
            body: Bytes::from_owner(SharedBody(shared)),
        }))
    }

    /// The list in pieces of about `length` bytes, one ahead of whoever takes them. `room` is kept until the end.
    pub(crate) fn list_in_pieces(
        self: &Arc<Self>,
        room: Room,
        length: usize,
        patience: Patience,
    ) -> mpsc::Receiver<Result<Piece, StoreError>> {
        self.touch();
        self.ring.expect_watcher();
        let (pieces, receiver) = mpsc::channel(1);
        let (view, runtime) = (Arc::clone(self), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _room = room;
            let until = Instant::now() + patience.all;
            let send = |piece| {
                let by = until.min(Instant::now() + patience.piece);
                let sent = runtime.block_on(timeout_at(by, pieces.send(piece)));
                // The reader is too slow, or gone.
                if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(StoreError::Closed) }
            };
            match view.write_pieces(length, |piece| send(Ok(Piece::Bytes(piece)))) {
                Ok(()) => drop(send(Ok(Piece::End))),
                Err(StoreError::Closed) => {
                    tracing::debug!(view = %view.name(), "a list was not taken to its end")
                }
                Err(error) => drop(send(Err(error))),
            }
        });
        receiver
    }

    fn shared(&self, known: Progress) -> Option<Arc<SharedList>> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        (list.sequence == known.sequence && list.resource_version == known.resource_version).then_some(list)
    }

    fn build(
        &self,
        known: u64,
        room: impl FnOnce(usize) -> Option<Room>,
    ) -> Result<Option<SharedList>, StoreError> {
        self.read(|reader| {
            let head = self.head(reader, known)?;
            let Some(room) = room(head.size.total()) else { return Ok(None) };
            let mut list = ListWriter::new(&head.kind, head.resource_version, &head.size);
            self.each(reader, &head.record, |body| {
                list.item(body);
                Ok(())
            })?;
            let (sequence, resource_version) = (head.record.sequence, head.resource_version);
            Ok(Some(SharedList { sequence, resource_version, body: list.finish(), _room: room }))
        })
    }

    fn write_pieces(
        &self,
        length: usize,
        send: impl Fn(Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let known = self.progress.borrow().resource_version;
        self.read(|reader| {
            let head = self.head(reader, known)?;
            let mut list = ListWriter::in_pieces(&head.kind, head.resource_version, &head.size);
            self.each(reader, &head.record, |body| {
                list.item(body);
                list.take(length).map_or(Ok(()), &send)
            })?;
            send(list.finish())
        })
    }

    /// What a list begins with. `known` is the collection's resourceVersion, read before the transaction began.
    fn head(&self, reader: &Reader<'_>, known: u64) -> Result<Head, StoreError> {
        let record = feed::load(reader, self.id)?;
        let kind = record.kind.clone().filter(|_| record.state != State::Empty);
        let kind = kind.ok_or_else(|| StoreError::Failed("the view is not complete".to_owned()))?;
        // Sealed and local bodies are opened twice: once to know their size. Both are rare.
        let mut size = ListSize::new(self.spec.encoding());
        self.each(reader, &record, |body| {
            size.add(body.len());
            Ok(())
        })?;
        let resource_version = record.resource_version.max(known);
        Ok(Head { record, kind, resource_version, size })
    }

    fn each(
        &self,
        reader: &Reader<'_>,
        record: &ViewRecord,
        mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        reader.scan(Table::Objects, &self.id.prefix(), None, |key, value| {
            each(&feed::body(reader, record, key, &ObjectRecord::decode(value)?)?)?;
            Ok(true)
        })
    }
}

/// What a list begins with.
struct Head {
    record: ViewRecord,
    kind: TypeMeta,
    resource_version: u64,
    size: ListSize,
}
