//! What a watcher holds of a view, as far as its position says: which of two events an object is to it, ADDED or MODIFIED,
//! and whether the end of one is worth telling.
//!
//! An object's life in a view has two names: the sequence number and the resourceVersion of its first appearance. A
//! watcher holds what is in the view, or was until its last change, and
//!
//! ```text
//!   entered_version  ≤ since    it was there when the watcher was told of everything up to its resourceVersion
//!   entered_sequence ≤ base     it was there when the log was read to its end, or the ring after that
//!   entered_sequence in told    it came later, and was told out of a transaction that was not read to its end
//! ```
//!
//! and nothing else. Only the third has to be remembered. What is read in one transaction is there once, so it is asked
//! for only when a watcher goes on in another one; how much is remembered is bounded, and whoever has been told more and
//! meets an object that may have been among it has to list again.
//!
//! Some watchers have more than their resourceVersion says: one that was sent something old last. To them the end of what
//! they *may* have is told as well: a DELETED too many does no harm, one that is missing does.

use super::super::record::ViewRecord;

/// Objects that are remembered; eight bytes each. A batch has some dozens.
const TOLD: usize = if cfg!(test) { 64 } else { 1024 };

/// What a watcher holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// resourceVersion that the watcher came with: it has what was there then. 0 if it came without.
    since: u64,
    /// It may have what came into the view up to this resourceVersion.
    perhaps: u64,
    /// It has what came into the view up to this sequence number.
    base: u64,
    /// Up to there the log was read in transactions before this one.
    read: u64,
    /// What of that has come behind both, by its `entered_sequence`, in order.
    told: Vec<u64>,
    /// More was told than is remembered.
    more: bool,
}

/// An object's life in a view, or the end of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) entered_sequence: u64,
    pub(super) entered_version: u64,
}

/// Whether a watcher has an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    Yes,
    No,
    /// What it was told of is not remembered.
    Unknown,
}

impl Held {
    /// By one that comes with this resourceVersion. `known` is the collection's.
    ///
    /// The resourceVersion of the last object that a watcher was sent may be older than others that it has: after the
    /// initial state, which has no order, and after a local version. One that takes bookmarks was sent one behind them;
    /// for those that came before it was sent there is [`ViewRecord::local_version`].
    pub(super) fn since(record: &ViewRecord, known: u64, since: u64, bookmarks: bool) -> Self {
        let perhaps = if bookmarks { record.local_version } else { record.resource_version.max(known) };
        Self { since, perhaps, ..Self::default() }
    }

    /// By one that has been sent everything up to a sequence number.
    pub(super) fn up_to(sequence: u64) -> Self {
        Self { base: sequence, ..Self::default() }
    }

    /// resourceVersion that the watcher came with.
    pub(super) fn version(&self) -> u64 {
        self.since
    }

    /// Another transaction begins, at this sequence number.
    pub(super) fn reads_from(&mut self, sequence: u64) {
        self.read = sequence;
    }

    /// It has been told of everything up to a sequence number.
    pub(super) fn reaches(&mut self, sequence: u64) {
        self.base = self.base.max(sequence);
        (self.told, self.more) = (Vec::new(), false);
    }

    /// Whether it has the object.
    pub(super) fn has(&self, life: Life) -> Has {
        let known = life.entered_version <= self.since || life.entered_sequence <= self.base;
        if known || self.told.binary_search(&life.entered_sequence).is_ok() {
            Has::Yes
        } else if self.more && life.entered_sequence <= self.read {
            Has::Unknown
        } else {
            Has::No
        }
    }

    /// Whether it may have it although nothing says so.
    pub(super) fn may_have(&self, life: Life) -> bool {
        life.entered_version <= self.perhaps
    }

    /// It is told that the object is there.
    pub(super) fn is_told(&mut self, life: Life) {
        if self.has(life) == Has::Yes {
            return;
        }
        if self.told.len() == TOLD {
            self.more = true;
        } else if let Err(place) = self.told.binary_search(&life.entered_sequence) {
            self.told.insert(place, life.entered_sequence);
        }
    }

    /// It is told that the object is gone.
    pub(super) fn is_told_the_end(&mut self, life: Life) {
        if let Ok(place) = self.told.binary_search(&life.entered_sequence) {
            self.told.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(entered_sequence: u64, entered_version: u64) -> Life {
        Life { entered_sequence, entered_version }
    }

    fn since(version: u64) -> Held {
        Held { since: version, ..Held::default() }
    }

    #[test]
    fn what_was_there_is_held_and_what_was_told() {
        let mut held = since(100);
        held.reads_from(0);
        assert_eq!(held.has(life(7, 100)), Has::Yes);
        assert_eq!(held.has(life(8, 101)), Has::No);
        held.is_told(life(8, 101));
        held.reads_from(9);
        assert_eq!(held.has(life(8, 101)), Has::Yes);
        held.is_told_the_end(life(8, 101));
        assert_eq!(held.has(life(8, 101)), Has::No);
        held.reaches(20);
        assert_eq!((held.has(life(20, 150)), held.has(life(21, 151))), (Has::Yes, Has::No));
        assert_eq!(held.has(life(21, 99)), Has::Yes, "the view heard of it later than its watcher");
    }

    #[test]
    fn of_more_than_is_remembered_nothing_is_claimed() {
        let mut held = since(100);
        let told = TOLD as u64;
        (1..=told + 1).for_each(|number| held.is_told(life(number, 100 + number)));
        // In the same transaction each object is there once.
        assert_eq!(held.has(life(told + 1, 900)), Has::No);
        held.reads_from(told + 1);
        assert_eq!(held.has(life(1, 101)), Has::Yes);
        assert_eq!(held.has(life(told + 1, 900)), Has::Unknown);
        assert_eq!(held.has(life(told + 2, 901)), Has::No, "nobody can have told of it");
        held.reaches(told + 2);
        assert_eq!(held.has(life(told + 1, 900)), Has::Yes);
    }

    #[test]
    fn who_was_sent_something_old_may_have_more_and_not_everything() {
        let spec = crate::view::ViewSpec::new(
            crate::wire::Resource::new("", "v1", "pods"),
            None,
            "",
            "",
            crate::wire::Encoding::Json,
        );
        let mut record = ViewRecord::new("node", &spec, 0);
        (record.local_version, record.resource_version) = (110, 120);
        let perhaps =
            |bookmarks, version| Held::since(&record, 125, 100, bookmarks).may_have(life(1, version));
        assert_eq!((perhaps(true, 110), perhaps(true, 111)), (true, false));
        assert_eq!((perhaps(false, 125), perhaps(false, 126)), (true, false));
    }
}
