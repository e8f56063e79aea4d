//! Nodes that were connected and are not: who asks why one does not answer wants to know when it last did.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use yurt_api::status::LostAgent;

/// How many are remembered; names come from certificates of the cluster, so there are never many more.
const MAX: usize = 1024;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Lost(BTreeMap<String, Ended>);

#[derive(Debug)]
struct Ended {
    at: Timestamp,
    remote: SocketAddr,
    reason: String,
}

impl Lost {
    /// The session of `node` is over.
    pub(super) fn ended(&mut self, node: &str, remote: SocketAddr, reason: &str, at: Timestamp) {
        if !self.0.contains_key(node) && self.0.len() >= MAX {
            let oldest = self.0.iter().min_by_key(|(_, ended)| ended.at).map(|(node, _)| node.clone());
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(node.to_owned(), Ended { at, remote, reason: reason.to_owned() });
    }

    /// It is back.
    pub(super) fn is_back(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// All of them, the newest first; `server` is whose sessions they were.
    pub(super) fn list(&self, server: &str) -> Vec<LostAgent> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(_, ended)| std::cmp::Reverse(ended.at));
        let shown = |(node, ended): (&String, &Ended)| LostAgent {
            node: node.clone(),
            server: server.to_owned(),
            remote_address: ended.remote.to_string(),
            // Fractions of a second say nothing to a reader of the status.
            last_seen: Timestamp::from_second(ended.at.as_second()).unwrap_or(ended.at).to_string(),
            reason: ended.reason.clone(),
        };
        all.into_iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_the_oldest_is_forgotten_first() {
        let mut lost = Lost::default();
        let remote = SocketAddr::from(([192, 0, 2, 1], 1));
        for n in 0..=MAX {
            lost.ended(&format!("n{n}"), remote, "silence", Timestamp::from_second(n as i64).unwrap());
        }
        let list = lost.list("cp-1");
        assert_eq!((list.len(), &*list[0].node), (MAX, &*format!("n{MAX}")));
        assert!(list.iter().all(|agent| agent.node != "n0" && agent.server == "cp-1"));
        lost.is_back("n7");
        assert!(lost.list("cp-1").iter().all(|agent| agent.node != "n7"));
    }
}
