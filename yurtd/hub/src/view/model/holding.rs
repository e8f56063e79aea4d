//! What a client holds, and so what it may be told. The reference is the whole history, which the view does not have.

use super::*;

/// Names and uids of all that was there, at every version of the history.
#[derive(Debug, Default)]
pub(super) struct Past(BTreeMap<u64, BTreeMap<String, String>>);

impl Server {
    /// What is there at its version.
    pub(super) fn remember(&mut self) {
        let there = self.objects.values().map(|item| (item.meta.name.clone(), item.meta.uid.clone()));
        self.past.0.insert(self.version, there.collect());
    }
}

/// What is known of what a client holds.
#[derive(Debug)]
pub(super) struct Holding {
    /// At the resourceVersion with which it came it held what there was, and nothing else. One that was cut off while it
    /// caught up does not, nor one that was sent something old last.
    exactly: bool,
    /// Up to here it may have been told of objects, as far as the hub can know.
    at_most: u64,
    since: u64,
}

impl Holding {
    /// Of one that begins with the state.
    pub(super) fn nothing() -> Self {
        Self { exactly: true, at_most: 0, since: 0 }
    }

    /// Whether the event fits what the client holds.
    pub(super) fn judge(&self, event_type: EventType, item: &Item, known: &Objects) {
        if !self.exactly {
            return;
        }
        let (name, version) = (&item.meta.name, item.meta.resource_version);
        let held = known.get(name).is_some_and(|body| is_of(body, &item.meta.uid));
        let told = format!("{event_type:?} {name} at {version}, since {}, of {known:?}", self.since);
        match event_type {
            EventType::Added => assert!(!known.contains_key(name), "it has one: {told}"),
            EventType::Modified => assert!(held, "it has not: {told}"),
            // An object of a life that began when the client may have been there without saying so.
            EventType::Deleted => assert!(held || made_at(item) <= self.at_most, "it has not: {told}"),
        }
    }
}

/// The version at which the object was made.
fn made_at(item: &Item) -> u64 {
    item.meta.uid.parse::<u64>().unwrap() % 1_000_000
}

fn is_of(body: &Bytes, uid: &str) -> bool {
    let uid = format!("\"uid\":\"{uid}\"");
    body.windows(uid.len()).any(|window| window == uid.as_bytes())
}

fn version_of(body: &Bytes) -> u64 {
    let object: serde_json::Value = serde_json::from_slice(body).unwrap();
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

impl World {
    /// What a client with these objects and this version is for the hub.
    pub(super) fn holding(&self, client: usize, known: &Objects, version: u64) -> Holding {
        let none = BTreeMap::new();
        let there = self.server.past.0.range(..=version).next_back().map_or(&none, |(_, there)| there);
        let same = |(name, uid): (&String, &String)| known.get(name).is_some_and(|body| is_of(body, uid));
        // One that was sent something old last holds newer versions than its own.
        let newer = known.values().any(|body| version_of(body) > version);
        let exactly = !newer && there.len() == known.len() && there.iter().all(same);
        let record = self.record();
        let at_most = match client {
            1 if version >= record.local_version => 0,
            1 => record.local_version,
            // One that takes no bookmarks may have been sent the state, which has no order.
            _ => self.view().resource_version().max(record.resource_version),
        };
        Holding { exactly, at_most, since: version }
    }

    /// Clients that have listed past the hub, and know what the view has not come to yet.
    pub(super) fn ahead(&self) -> Vec<usize> {
        let reached = self.record().resource_version;
        let ahead = self.clients.iter().enumerate().filter(|(_, client)| client.holds.since > reached);
        ahead.map(|(number, _)| number).collect()
    }

    /// Those of them whose version the view passes over, now that it lists instead of hearing of it: what has gone since
    /// then it cannot tell them. They list again.
    pub(super) fn passes_over(&self) -> Vec<usize> {
        let mut ahead = self.ahead();
        ahead.retain(|number| self.clients[*number].holds.since < self.server.version);
        ahead
    }

    pub(super) fn connect_again(&mut self, clients: Vec<usize>) {
        for client in clients {
            self.clients[client] = self.connect(client);
        }
    }
}
