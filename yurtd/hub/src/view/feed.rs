//! What one watcher gets out of the store: the state first if it wants it, then the log from where it stands, in small
//! batches. One that keeps up is served from memory (`ring`) instead. A slow watcher costs nothing but its position.
//!
//! Pure over a [`Reader`]; the stream around it is in `stream`.
//!
//! ```text
//! the log   1 ── 2 ── 3 ── 4 ── 5 ── 6 ── 7 ── 8 ── 9        one entry an object, where it changed last
//!                     ▲              ▲         ▲
//!                 sequence        started    the ring's floor
//!
//! since = 70     a resourceVersion. Up to `started` the watcher is known by it: what is not newer is skipped
//! joins_at = 6   what is behind is not read here: the ring has every event of it
//! state          objects are still sent one by one, in the order of their keys, up to a key so far
//! ```
//!
//! `sequence` moves to the right: everything up to there was sent or skipped. Once nothing is left in the log it stands
//! where the transaction stood that has read it, and goes on in the ring from there.
//!
//! What is read in one transaction ([`Position::read`], then [`Position::read_on`]) is one step from what the watcher has
//! to what is there: each object once. Between two transactions things move in the log. What the watcher was told of then
//! is remembered ([`held`]), so that each event has the type that fits, and of what it never had nothing is told.
//!
//! The state is of one moment if it is read in one transaction. In another one what was sent of it is brought up to date
//! out of the log first, and the rest sent as it is then: so what was sent is what is there up to a key, and in the end,
//! where the bookmark comes, all of it.

mod held;

use std::borrow::Cow;

use bytes::Bytes;

use self::held::{Has, Held, Life};
use super::record::{LogEntry, ObjectRecord, ViewId, ViewRecord};
use crate::store::{Reader, StoreError, Table};
use crate::wire::frame::{encode_bookmark, encode_event};
use crate::wire::{Encoding, EventType, TypeMeta};

/// Bytes of frames a batch holds, unless it is a single one: what a watcher that stops reading keeps in memory.
const BATCH_BYTES: usize = if cfg!(test) { 100 } else { 32 << 10 };
/// Log entries a batch looks at.
const BATCH_ENTRIES: usize = 1024;

/// Reads a view's record.
pub(crate) fn load(reader: &Reader<'_>, id: ViewId) -> Result<ViewRecord, StoreError> {
    let record = reader.get(Table::Views, &id.prefix())?.map(ViewRecord::decode).transpose()?;
    record.ok_or_else(|| StoreError::Failed("the view was dropped".to_owned()))
}

/// Newest version of an object in its stored form: the hub's own if there is one.
pub(crate) fn body<'a>(
    reader: &Reader<'a>,
    record: &ViewRecord,
    full_key: &[u8],
    object: &ObjectRecord<'a>,
) -> Result<Cow<'a, [u8]>, StoreError> {
    if record.locals > 0
        && let Some(value) = reader.get(Table::Locals, full_key)?
    {
        let (sealed, body) =
            value.split_first().ok_or_else(|| StoreError::Damaged("a local version is empty".to_owned()))?;
        return if *sealed == 0 { Ok(body.into()) } else { Ok(reader.sealer().open(full_key, body)?.into()) };
    }
    object.open(reader.sealer(), full_key)
}

/// Where a watcher stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Everything in the log up to here was sent or skipped.
    sequence: u64,
    /// The view's sequence when the watch began.
    started: u64,
    held: Held,
    /// What is behind it is not the log's to say: the ring has every event of it. 0 if that is not so.
    joins_at: u64,
    state: Option<StatePart>,
}

/// Where it stands in the state that comes before the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StatePart {
    /// The key of the last one that was sent.
    after: Option<Vec<u8>>,
    /// The collection's resourceVersion when the watch began.
    known: u64,
    /// Whether a bookmark says where the state ends.
    announce_end: bool,
}

/// One step of a watcher.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) frames: Vec<Bytes>,
    /// Nothing is left to read for now.
    pub(crate) drained: bool,
    /// A frame may have a resourceVersion from long ago: the hub's own doing, or the state, which has no order.
    pub(crate) local: bool,
    /// Deletions may have been missed: the watch must end with 410.
    pub(crate) expired: bool,
    bytes: usize,
}

impl Batch {
    /// What the watcher has cannot be continued.
    pub(super) fn expired() -> Self {
        Self { expired: true, ..Self::default() }
    }

    /// Bytes of its frames.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    /// Whether the frame is for the next batch.
    fn is_too_much(&self, frame: &Bytes) -> bool {
        !self.frames.is_empty() && self.bytes + frame.len() > BATCH_BYTES
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }
}

impl Position {
    /// After resourceVersion `since`; nothing if deletions since then may be forgotten, or if it is of a history that
    /// is no more. `known` is the collection's resourceVersion.
    pub(crate) fn after(record: &ViewRecord, known: u64, since: u64, bookmarks: bool) -> Option<Self> {
        let abandoned = since > record.resource_version.max(known) && since <= record.abandoned;
        (since >= record.horizon && !abandoned).then_some(Self {
            sequence: 0,
            started: record.sequence,
            held: Held::since(record, known, since, bookmarks),
            joins_at: 0,
            state: None,
        })
    }

    /// The same for one who has seen all that upstream did up to a sequence number, and whom the ring tells the rest.
    /// What the hub made itself and nothing has replaced is still the log's.
    pub(crate) fn joining(self, seen: u64) -> Self {
        Self { joins_at: seen, ..self }
    }

    /// The whole state first. `known` is the collection's resourceVersion.
    pub(crate) fn from_state(record: &ViewRecord, known: u64, announce_end: bool) -> Self {
        let state = Some(StatePart { after: None, known, announce_end });
        let sequence = record.sequence;
        Self { sequence, started: sequence, held: Held::up_to(sequence), joins_at: 0, state }
    }

    /// Everything up to here was sent or skipped.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What is up to there was sent or skipped, by the ring.
    pub(super) fn pass(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
        self.held.reaches(self.sequence);
    }

    /// resourceVersion below which this watcher must not be sent bookmarks: it is there already.
    pub(crate) fn since(&self) -> u64 {
        self.held.version()
    }

    /// Reads on, in a transaction of its own.
    pub(crate) fn read(&mut self, reader: &Reader<'_>, id: ViewId) -> Result<Batch, StoreError> {
        self.held.reads_from(self.sequence);
        self.read_on(reader, id)
    }

    /// Reads on in the same transaction.
    pub(crate) fn read_on(&mut self, reader: &Reader<'_>, id: ViewId) -> Result<Batch, StoreError> {
        let record = load(reader, id)?;
        let mut batch = Batch::default();
        let Some(kind) = record.kind.clone() else {
            // Nothing was ever listed.
            batch.drained = true;
            return Ok(batch);
        };
        let expired = if self.started < record.reset_sequence {
            true
        } else if self.sequence < self.started {
            self.since() < record.horizon && self.sequence < record.horizon_sequence
        } else {
            self.sequence < record.horizon_sequence
        };
        if expired {
            return Ok(Batch::expired());
        }
        let view = Source { reader, id, record: &record, kind: &kind, encoding: record.spec.encoding() };
        if self.state.is_some() {
            // What was sent of the state as it is now, and then the rest.
            self.read_log(&view, &mut batch)?;
            if !batch.drained {
                return Ok(batch);
            }
            batch.drained = false;
            self.read_state(&view, &mut batch)?;
        }
        if self.state.is_none() && !batch.is_full() && !batch.expired {
            self.read_log(&view, &mut batch)?;
        }
        Ok(batch)
    }

    fn read_state(&mut self, view: &Source<'_, '_>, batch: &mut Batch) -> Result<(), StoreError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let mut sent = state.after.take();
        let mut more = false;
        let after = sent.clone();
        view.reader.scan(Table::Objects, &view.id.prefix(), after.as_deref(), |key, value| {
            let object = ObjectRecord::decode(value)?;
            let body = body(view.reader, view.record, key, &object)?;
            let frame = encode_event(view.encoding, EventType::Added, view.kind, &body);
            more = batch.is_full() || batch.is_too_much(&frame);
            if !more {
                batch.push(frame);
                sent = Some(key.to_vec());
            }
            Ok(!more)
        })?;
        if more {
            state.after = sent;
            return Ok(());
        }
        if state.announce_end {
            let version = view.record.resource_version.max(state.known);
            batch.push(encode_bookmark(view.encoding, view.kind, version, true));
        } else {
            batch.local = true;
        }
        self.state = None;
        Ok(())
    }

    /// Reads on in the log. The batch is drained when nothing is left of it, or expired.
    fn read_log(&mut self, view: &Source<'_, '_>, batch: &mut Batch) -> Result<(), StoreError> {
        let began = self.sequence;
        let end = if began < self.joins_at { self.joins_at } else { u64::MAX };
        let mut looked_at = 0;
        let mut more = false;
        let after = view.id.log(began);
        view.reader.scan(Table::Log, &view.id.prefix(), Some(&after), |key, value| {
            if batch.is_full() || looked_at == BATCH_ENTRIES {
                more = true;
                return Ok(false);
            }
            looked_at += 1;
            let sequence = key.last_chunk().map_or(began, |bytes| u64::from_be_bytes(*bytes));
            if sequence > end {
                return Ok(false);
            }
            let entry = LogEntry::decode(value)?;
            match self.told(view, sequence, key, entry)? {
                Told::Nothing => {}
                Told::Unknown => {
                    batch.expired = true;
                    return Ok(false);
                }
                Told::Event { event_type, life, body } => {
                    let frame = encode_event(view.encoding, event_type, view.kind, &body);
                    if batch.is_too_much(&frame) {
                        more = true;
                        return Ok(false);
                    }
                    batch.push(frame);
                    batch.local |= matches!(entry, LogEntry::Live { local: true, .. });
                    match event_type {
                        EventType::Deleted => self.held.is_told_the_end(life),
                        _ => self.held.is_told(life),
                    }
                }
            }
            self.sequence = sequence;
            Ok(true)
        })?;
        if !more && !batch.expired {
            batch.drained = true;
            self.sequence = self.sequence.max(end.min(view.record.sequence));
            self.held.reaches(self.sequence);
        }
        Ok(())
    }

    /// What an entry of the log is to the watcher.
    fn told<'a>(
        &self,
        view: &Source<'_, 'a>,
        sequence: u64,
        log_key: &[u8],
        entry: LogEntry<'a>,
    ) -> Result<Told<'a>, StoreError> {
        if self.is_of_the_rest(&view.id.object(entry.key())) {
            return Ok(Told::Nothing);
        }
        match entry {
            LogEntry::Live { version, local, key } => {
                if !local && version <= self.since() {
                    return Ok(Told::Nothing);
                }
                let full = view.id.object(key);
                let Some(value) = view.reader.get(Table::Objects, &full)? else { return Ok(Told::Nothing) };
                let object = ObjectRecord::decode(value)?;
                if object.sequence != sequence {
                    return Err(StoreError::Damaged("a view's log and objects disagree".to_owned()));
                }
                let (entered_sequence, entered_version) = (object.entered_sequence, object.entered_version);
                let life = Life { entered_sequence, entered_version };
                let event_type = match self.held.has(life) {
                    Has::Yes => EventType::Modified,
                    Has::No => EventType::Added,
                    Has::Unknown => return Ok(Told::Unknown),
                };
                let body = body(view.reader, view.record, &full, &object)?;
                Ok(Told::Event { event_type, life, body })
            }
            LogEntry::Tombstone { version, entered_sequence, entered_version, sealed, body, .. } => {
                if version <= self.since() {
                    return Ok(Told::Nothing);
                }
                let life = Life { entered_sequence, entered_version };
                match self.held.has(life) {
                    Has::Yes => {}
                    // An object that came and went behind a watcher's back is not worth two events.
                    _ if self.held.may_have(life) => {}
                    Has::No => return Ok(Told::Nothing),
                    Has::Unknown => return Ok(Told::Unknown),
                }
                let body = LogEntry::open_body(sealed, view.reader.sealer(), log_key, body)?;
                Ok(Told::Event { event_type: EventType::Deleted, life, body })
            }
        }
    }

    /// Whether the state has still to come to this key: it is sent as it is then.
    fn is_of_the_rest(&self, key: &[u8]) -> bool {
        self.state.as_ref().is_some_and(|state| state.after.as_deref().is_none_or(|sent| key > sent))
    }
}

/// What an entry of the log is to a watcher.
enum Told<'a> {
    Nothing,
    Event {
        event_type: EventType,
        life: Life,
        body: Cow<'a, [u8]>,
    },
    /// Nobody remembers what it would be.
    Unknown,
}

struct Source<'r, 'a> {
    reader: &'r Reader<'a>,
    id: ViewId,
    record: &'r ViewRecord,
    kind: &'r TypeMeta,
    encoding: Encoding,
}
