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
//! state          objects are still sent one by one: everything that was there at `started`
//! ```
//!
//! `sequence` moves to the right: everything up to there was sent or skipped. Behind `started` the watcher is known by it
//! alone: it can have seen nothing that has come later. Once nothing is left in the log it stands where the transaction
//! stood that has read it, and goes on in the ring from there.
//!
//! What is read in one transaction ([`Position::read`], then [`Position::read_on`]) is one step from what the watcher has
//! to what is there: each object once, with the type that fits. Between two transactions things move in the log, and a
//! deletion may be told of something that was never sent. That does no harm; the other way round would.

use std::borrow::Cow;

use bytes::Bytes;

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
    /// The same when the transaction began: nothing that has come into the view since then has been sent.
    base: u64,
    /// The view's sequence when the watch began.
    started: u64,
    /// resourceVersion that the watcher came with; 0 after the state was sent.
    since: u64,
    /// Whether it has nothing that came into the view behind `since`.
    says_all: bool,
    /// What is behind it is not the log's to say: the ring has every event of it. 0 if that is not so.
    joins_at: u64,
    state: Option<StatePart>,
}

/// Where it stands in the state that comes before the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StatePart {
    after: Option<Vec<u8>>,
    /// resourceVersion of the state.
    version: u64,
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
    ///
    /// The resourceVersion of the last object that a watcher was sent may be older than others that it has: after the
    /// initial state, which has no order, and after a local version. One that takes bookmarks was sent one behind them;
    /// for those that came before it was sent there is [`ViewRecord::local_version`].
    pub(crate) fn after(record: &ViewRecord, known: u64, since: u64, bookmarks: bool) -> Option<Self> {
        let abandoned = since > record.resource_version.max(known) && since <= record.abandoned;
        (since >= record.horizon && !abandoned).then_some(Self {
            sequence: 0,
            base: 0,
            started: record.sequence,
            since,
            says_all: bookmarks && since >= record.local_version,
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
        let version = record.resource_version.max(known);
        let state = Some(StatePart { after: None, version, announce_end });
        let sequence = record.sequence;
        Self { sequence, base: sequence, started: sequence, since: 0, says_all: false, joins_at: 0, state }
    }

    /// Everything up to here was sent or skipped.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What is up to there was sent or skipped, by the ring.
    pub(super) fn pass(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// resourceVersion below which this watcher must not be sent bookmarks: it is there already.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// Reads on, in a transaction of its own.
    pub(crate) fn read(&mut self, reader: &Reader<'_>, id: ViewId) -> Result<Batch, StoreError> {
        // What was sent out of an earlier one may be gone since then.
        self.says_all &= self.sequence == 0;
        self.base = self.sequence;
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
            self.since < record.horizon && self.sequence < record.horizon_sequence
        } else {
            self.sequence < record.horizon_sequence
        };
        if expired {
            return Ok(Batch::expired());
        }
        let view = Source { reader, id, record: &record, kind: &kind, encoding: record.spec.encoding() };
        if self.state.is_some() {
            self.read_state(&view, &mut batch)?;
        }
        if self.state.is_none() && !batch.is_full() {
            self.read_log(&view, &mut batch)?;
        }
        Ok(batch)
    }

    fn read_state(&mut self, view: &Source<'_, '_>, batch: &mut Batch) -> Result<(), StoreError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let after = state.after.take();
        let started = self.started;
        let (mut last, mut previous) = (None, None);
        view.reader.scan(Table::Objects, &view.id.prefix(), after.as_deref(), |key, value| {
            let object = ObjectRecord::decode(value)?;
            // Newer than the watch: the log has it, and its deletion too. Sent here it could be deleted before the
            // log is read, and the deletion be taken for one that is not worth telling.
            if object.entered_sequence > started {
                return Ok(true);
            }
            let body = body(view.reader, view.record, key, &object)?;
            let frame = encode_event(view.encoding, EventType::Added, view.kind, &body);
            if batch.is_too_much(&frame) {
                last = previous.map(<[u8]>::to_vec);
                return Ok(false);
            }
            batch.push(frame);
            if batch.is_full() {
                last = Some(key.to_vec());
            }
            previous = Some(key);
            Ok(!batch.is_full())
        })?;
        if last.is_some() {
            state.after = last;
            return Ok(());
        }
        if state.announce_end {
            batch.push(encode_bookmark(view.encoding, view.kind, state.version, true));
        } else {
            batch.local = true;
        }
        self.state = None;
        Ok(())
    }

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
            if let Some(frame) = self.frame(view, sequence, key, entry)? {
                if batch.is_too_much(&frame) {
                    more = true;
                    return Ok(false);
                }
                batch.push(frame);
                batch.local |= matches!(entry, LogEntry::Live { local: true, .. });
            }
            self.sequence = sequence;
            Ok(true)
        })?;
        if !more {
            batch.drained = true;
            self.sequence = self.sequence.max(end.min(view.record.sequence));
        }
        Ok(())
    }

    fn frame(
        &self,
        view: &Source<'_, '_>,
        sequence: u64,
        log_key: &[u8],
        entry: LogEntry<'_>,
    ) -> Result<Option<Bytes>, StoreError> {
        // While it catches up a watcher is known by its resourceVersion, afterwards by its position.
        let by_version = self.base < self.started;
        let unseen = |entered_sequence: u64, entered_version: u64| {
            if by_version { entered_version > self.since } else { entered_sequence > self.base }
        };
        match entry {
            LogEntry::Live { version, local, key } => {
                if !local && version <= self.since {
                    return Ok(None);
                }
                let full = view.id.object(key);
                let Some(value) = view.reader.get(Table::Objects, &full)? else { return Ok(None) };
                let object = ObjectRecord::decode(value)?;
                if object.sequence != sequence {
                    return Err(StoreError::Damaged("a view's log and objects disagree".to_owned()));
                }
                let event_type = if unseen(object.entered_sequence, object.entered_version) {
                    EventType::Added
                } else {
                    EventType::Modified
                };
                let body = body(view.reader, view.record, &full, &object)?;
                Ok(Some(encode_event(view.encoding, event_type, view.kind, &body)))
            }
            LogEntry::Tombstone { version, entered_sequence, entered_version, sealed, body, .. } => {
                // An object that came and went behind a watcher's back is not worth two events. Where that cannot be
                // said the deletion is told: one too many does no harm.
                let can_be_said = !by_version || self.says_all;
                let never_seen = can_be_said && unseen(entered_sequence, entered_version);
                if version <= self.since || never_seen {
                    return Ok(None);
                }
                let body = LogEntry::open_body(sealed, view.reader.sealer(), log_key, body)?;
                Ok(Some(encode_event(view.encoding, EventType::Deleted, view.kind, &body)))
            }
        }
    }
}

struct Source<'r, 'a> {
    reader: &'r Reader<'a>,
    id: ViewId,
    record: &'r ViewRecord,
    kind: &'r TypeMeta,
    encoding: Encoding,
}
