//! How a view lies in the store: its record, its objects, its log. Codecs alone; `table` and `feed` use them.
//!
//! An object is where its newest version is. The log has one entry an object, at the sequence number of its latest
//! change, and one a tombstone; sequence numbers are the view's own and never leave the node. A watcher that has read
//! up to a sequence number reads on from there; one that comes back with a resourceVersion takes the entries behind
//! that version.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::ViewSpec;
use super::confirmation::Confirmation;
use super::state::{State, Why};
use crate::store::{Sealer, StoreError};
use crate::wire::TypeMeta;

/// Number of a view in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ViewId(pub(crate) u32);

impl ViewId {
    /// What all keys of the view start with.
    pub(crate) fn prefix(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// Key of an object.
    pub(crate) fn object(self, key: &str) -> Vec<u8> {
        [&self.prefix(), key.as_bytes()].concat()
    }

    /// Key of a log entry.
    pub(crate) fn log(self, sequence: u64) -> [u8; 12] {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&self.prefix());
        key[4..].copy_from_slice(&sequence.to_be_bytes());
        key
    }
}

/// What is known of a view as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ViewRecord {
    /// Whose view it is.
    pub(crate) identity: String,
    /// What it shows.
    pub(crate) spec: ViewSpec,
    /// Of its objects; known since the first list.
    pub(crate) kind: Option<TypeMeta>,
    /// What it is worth.
    #[serde(default)]
    pub(crate) state: State,
    /// Of the collection, as far as it is stored.
    pub(crate) resource_version: u64,
    /// Watches from before this resourceVersion may miss deletions: 410.
    pub(crate) horizon: u64,
    /// Watchers that have not read up to here may miss deletions: 410.
    pub(crate) horizon_sequence: u64,
    /// resourceVersion that a history had reached which etcd no longer has: watches from up to there, but from beyond
    /// what the view has reached since, continue nothing: 410.
    #[serde(default)]
    pub(crate) abandoned: u64,
    /// Watchers that began before this one are of such a history.
    #[serde(default)]
    pub(crate) reset_sequence: u64,
    /// Of the latest change.
    pub(crate) sequence: u64,
    /// Tombstones in the log, and their bytes.
    pub(crate) tombstones: u64,
    pub(crate) tombstone_bytes: u64,
    /// Objects with a local version.
    pub(crate) locals: u64,
    /// resourceVersion of the collection when the hub last changed something of it itself: what watchers were sent with
    /// one from before does not say all that they have.
    #[serde(default)]
    pub(crate) local_version: u64,
    /// Bytes of its objects.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// When somebody last used it, in seconds since 1970.
    pub(crate) used: u64,
    /// That its identity may read it, if the API server has been asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) confirmation: Option<Confirmation>,
}

impl ViewRecord {
    pub(crate) fn new(identity: &str, spec: &ViewSpec, now: u64) -> Self {
        Self {
            identity: identity.to_owned(),
            spec: spec.clone(),
            kind: None,
            state: State::Empty,
            resource_version: 0,
            horizon: 0,
            horizon_sequence: 0,
            abandoned: 0,
            reset_sequence: 0,
            sequence: 0,
            tombstones: 0,
            tombstone_bytes: 0,
            locals: 0,
            local_version: 0,
            bytes: 0,
            used: now,
            confirmation: None,
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(self).map_err(|error| StoreError::Failed(error.to_string()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |error| StoreError::Damaged(format!("a view's record: {error}"));
        let mut record: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if record.state == State::Empty {
            let flags: Flags = serde_json::from_slice(bytes).map_err(damaged)?;
            record.state = flags.state(record.used);
        }
        Ok(record)
    }

    /// The next sequence number.
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

/// What records had before they had a state.
#[derive(Debug, Deserialize)]
struct Flags {
    #[serde(default)]
    complete: bool,
    #[serde(default)]
    refused: bool,
}

impl Flags {
    /// Whether the view was followed to the end cannot be told.
    fn state(&self, used: u64) -> State {
        match (self.complete, self.refused) {
            (_, true) => State::Refused { since: used },
            (true, false) => State::Behind { since: used, why: Why::Unfollowed, heard: 0 },
            (false, false) => State::Empty,
        }
    }
}

/// One object as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObjectRecord<'a> {
    /// Of its latest change: where its log entry is.
    pub(crate) sequence: u64,
    /// Of its first appearance: watchers that have not read up to there get ADDED.
    pub(crate) entered_sequence: u64,
    /// The same as a resourceVersion.
    pub(crate) entered_version: u64,
    /// Its own resourceVersion.
    pub(crate) version: u64,
    /// Whether the body is sealed.
    pub(crate) sealed: bool,
    pub(crate) uid: &'a str,
    pub(crate) body: &'a [u8],
}

impl<'a> ObjectRecord<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let uid = &self.uid.as_bytes()[..self.uid.len().min(255)];
        let mut out = Vec::with_capacity(34 + uid.len() + self.body.len());
        out.push(u8::from(self.sealed));
        for number in [self.sequence, self.entered_sequence, self.entered_version, self.version] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.push(uid.len() as u8);
        out.extend_from_slice(uid);
        out.extend_from_slice(self.body);
        out
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let mut cursor = Cursor { rest: bytes };
        let sealed = cursor.byte()? != 0;
        let sequence = cursor.number()?;
        let entered_sequence = cursor.number()?;
        let entered_version = cursor.number()?;
        let version = cursor.number()?;
        let length = cursor.byte()?.into();
        let uid = cursor.text(length)?;
        Ok(Self { sequence, entered_sequence, entered_version, version, sealed, uid, body: cursor.rest })
    }

    /// The stored form of the object.
    pub(crate) fn open(&self, sealer: &Sealer, key: &[u8]) -> Result<Cow<'a, [u8]>, StoreError> {
        open(self.sealed, sealer, key, self.body)
    }
}

fn open<'a>(sealed: bool, sealer: &Sealer, key: &[u8], body: &'a [u8]) -> Result<Cow<'a, [u8]>, StoreError> {
    if sealed { sealer.open(key, body).map(Cow::Owned) } else { Ok(Cow::Borrowed(body)) }
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogEntry<'a> {
    /// An object is at its newest version here.
    Live {
        /// Its resourceVersion.
        version: u64,
        /// Changed by the hub: whatever resourceVersion a watcher comes with, it has to hear of it.
        local: bool,
        key: &'a str,
    },
    /// An object is gone since here.
    Tombstone {
        /// Of the deletion.
        version: u64,
        /// Of its first appearance, as in an [`ObjectRecord`]; an old release has left 0, which everybody has seen.
        entered_sequence: u64,
        entered_version: u64,
        sealed: bool,
        key: &'a str,
        /// Its last state, as watchers get it.
        body: &'a [u8],
    },
}

const LIVE: u8 = 0;
const LOCAL: u8 = 1;
/// As older releases wrote it: without `entered_version`.
const OLD_TOMBSTONE: u8 = 2;
const TOMBSTONE: u8 = 3;

impl<'a> LogEntry<'a> {
    /// Of the object.
    pub(crate) fn key(&self) -> &'a str {
        let (Self::Live { key, .. } | Self::Tombstone { key, .. }) = *self;
        key
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match *self {
            Self::Live { version, local, key } => {
                out.push(if local { LOCAL } else { LIVE });
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(key.as_bytes());
            }
            Self::Tombstone { version, entered_sequence, entered_version, sealed, key, body } => {
                out.reserve(32 + key.len() + body.len());
                out.push(TOMBSTONE);
                for number in [version, entered_sequence, entered_version] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
                out.push(u8::from(sealed));
                // Keys are bounded by the store (511 bytes).
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(body);
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let mut cursor = Cursor { rest: bytes };
        let tag = cursor.byte()?;
        let version = cursor.number()?;
        match tag {
            LIVE | LOCAL => {
                Ok(Self::Live { version, local: tag == LOCAL, key: cursor.text(cursor.rest.len())? })
            }
            TOMBSTONE | OLD_TOMBSTONE => {
                let entered_sequence = cursor.number()?;
                let entered_version = if tag == TOMBSTONE { cursor.number()? } else { 0 };
                let sealed = cursor.byte()? != 0;
                let length = u16::from_be_bytes(cursor.array()?).into();
                let key = cursor.text(length)?;
                Ok(Self::Tombstone {
                    version,
                    entered_sequence,
                    entered_version,
                    sealed,
                    key,
                    body: cursor.rest,
                })
            }
            _ => Err(damaged()),
        }
    }

    /// The body of a tombstone.
    pub(crate) fn open_body(
        sealed: bool,
        sealer: &Sealer,
        key: &[u8],
        body: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, StoreError> {
        open(sealed, sealer, key, body)
    }
}

fn damaged() -> StoreError {
    StoreError::Damaged("a record of a view cannot be read".to_owned())
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, StoreError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, StoreError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(damaged)?;
        self.rest = rest;
        std::str::from_utf8(taken).map_err(|_| damaged())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_survive_their_codec() {
        let object = ObjectRecord {
            sequence: 5,
            entered_sequence: 2,
            entered_version: 100,
            version: 200,
            sealed: true,
            uid: "u",
            body: b"body",
        };
        assert_eq!(ObjectRecord::decode(&object.encode()).unwrap(), object);
        for local in [false, true] {
            let entry = LogEntry::Live { version: 9, local, key: "default/web" };
            assert_eq!(LogEntry::decode(&entry.encode()).unwrap(), entry);
        }
        let entry = LogEntry::Tombstone {
            version: 9,
            entered_sequence: 1,
            entered_version: 8,
            sealed: false,
            key: "default/web",
            body: b"last",
        };
        let encoded = entry.encode();
        assert_eq!(LogEntry::decode(&encoded).unwrap(), entry);
        // Of the release before.
        let old = [&[OLD_TOMBSTONE], &encoded[1..17], &encoded[25..]].concat();
        let entered_version = |entry| match entry {
            LogEntry::Tombstone { entered_version, body: b"last", .. } => Some(entered_version),
            _ => None,
        };
        assert_eq!(entered_version(LogEntry::decode(&old).unwrap()), Some(0));
    }

    #[test]
    fn records_of_before_there_were_states_are_read() {
        let spec = ViewSpec::new(
            crate::wire::Resource::new("", "v1", "pods"),
            None,
            "",
            "",
            crate::wire::Encoding::Json,
        );
        let text = |flags: &str| {
            let record = serde_json::to_string(&ViewRecord::new("node", &spec, 7)).unwrap();
            record.replace(r#""state":{"is":"empty"}"#, flags)
        };
        let state = |flags: &str| ViewRecord::decode(text(flags).as_bytes()).unwrap().state;
        let unfollowed = State::Behind { since: 7, why: Why::Unfollowed, heard: 0 };
        assert_eq!(state(r#""complete":true"#), unfollowed);
        assert_eq!(state(r#""complete":true,"refused":true"#), State::Refused { since: 7 });
        assert_eq!(state(r#""complete":false,"refused":false"#), State::Empty);
        assert_eq!(state(r#""state":{"is":"following","seen":9}"#), State::Following { seen: 9 });
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_codec_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = ObjectRecord::decode(&bytes);
            let _ = LogEntry::decode(&bytes);
            let _ = ViewRecord::decode(&bytes);
        }
    }
}
