//! The events that a transaction makes, as it notes them for the ring.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits;
use crate::view::record::ViewRecord;
use crate::wire::EventType;

/// An event that a transaction has made.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) sequence: u64,
    /// Of the object, or of its deletion.
    pub(crate) version: u64,
    /// Made here: whatever resourceVersion a watcher came with, it has to hear of it.
    pub(crate) local: bool,
    pub(crate) event_type: EventType,
    /// The object in its stored form.
    pub(crate) body: Bytes,
}

/// The same, for those who look whether it is told.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) sequence: u64,
    pub(crate) version: u64,
    pub(crate) local: bool,
    pub(crate) event_type: EventType,
    body: Bytes,
}

#[cfg(test)]
impl Noted {
    /// Whether it is an event of this object.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        let name = format!("\"name\":\"{name}\"");
        self.body.windows(name.len()).any(|window| window == name.as_bytes())
    }
}

/// The events of a transaction, in their order.
#[derive(Debug)]
pub(crate) struct News {
    /// They are all there are behind this one.
    pub(super) from: u64,
    /// The collection's resourceVersion there.
    pub(super) from_version: u64,
    /// None when nobody listens, or when what was before cannot be continued.
    pub(super) events: Option<VecDeque<NewEvent>>,
    bytes: usize,
}

impl News {
    /// Of a transaction that begins with this record.
    pub(crate) fn after(record: &ViewRecord) -> Self {
        Self { from: record.sequence, from_version: record.resource_version, events: None, bytes: 0 }
    }

    /// Somebody listens.
    pub(crate) fn collect(&mut self) {
        self.events = Some(VecDeque::new());
    }

    /// Whether there is anybody to tell.
    pub(crate) fn are_collected(&self) -> bool {
        self.events.is_some()
    }

    /// Nothing is continued.
    pub(crate) fn drop_all(&mut self) {
        self.events = None;
    }

    /// What was noted.
    #[cfg(test)]
    pub(crate) fn noted(&self) -> Option<Vec<Noted>> {
        let noted = |event: &NewEvent| Noted {
            sequence: event.sequence,
            version: event.version,
            local: event.local,
            event_type: event.event_type,
            body: event.body.clone(),
        };
        self.events.as_ref().map(|events| events.iter().map(noted).collect())
    }

    /// One more. No more than a ring takes is kept: a transaction may be a list of everything.
    pub(crate) fn add(&mut self, event: NewEvent) {
        let Some(events) = &mut self.events else { return };
        self.bytes += event.body.len();
        events.push_back(event);
        while self.bytes > limits::RING
            && events.len() > 1
            && let Some(oldest) = events.pop_front()
        {
            self.bytes -= oldest.body.len();
            self.from = oldest.sequence;
            self.from_version = self.from_version.max(oldest.version);
        }
    }
}
