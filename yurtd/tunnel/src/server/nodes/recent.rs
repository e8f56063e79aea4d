//! Whose an address was a moment ago. Whoever asks for a node (the API server, metrics-server with its cache) may have read
//! its port just before that changed, and connects just after: what goes to an address that another node claimed until now
//! may be meant for that one. So it is nobody's for [`HOLD`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::Endpoints;
use super::ownership::{Fault, LeftOut};

/// How long what was read of a node may be used. A watch is behind by less than a second, as a rule.
pub(super) const HOLD: Duration = Duration::from_secs(5);

/// Who claims which address, and who did until lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    now: BTreeSet<(SocketAddr, String)>,
    until: HashMap<SocketAddr, BTreeMap<String, Instant>>,
}

impl Recent {
    /// Takes addresses from their owners that were others' a moment ago; returns when the next one is to be given.
    pub(super) fn hold_back(
        &mut self,
        endpoints: &mut Endpoints,
        left_out: &mut BTreeSet<LeftOut>,
        now: Instant,
    ) -> Option<Instant> {
        let owned = endpoints.0.iter().map(|(address, endpoint)| (*address, endpoint.node.to_string()));
        let claims: BTreeSet<_> =
            owned.chain(left_out.iter().map(|left| (left.address, left.node.clone()))).collect();
        let before = std::mem::replace(&mut self.now, claims);
        for (address, node) in before.difference(&self.now) {
            self.until.entry(*address).or_default().insert(node.clone(), now + HOLD);
        }
        self.until.retain(|_, nodes| {
            nodes.retain(|_, until| *until > now);
            !nodes.is_empty()
        });
        let mut next: Option<Instant> = None;
        for (address, nodes) in &self.until {
            let Some(endpoint) = endpoints.0.get(address) else { continue };
            let node = endpoint.node.to_string();
            let others = nodes.iter().filter(|(other, _)| **other != node);
            let Some(until) = others.clone().map(|(_, until)| *until).max() else { continue };
            next = next.into_iter().chain([until]).min();
            let fault = Fault::Lately(others.map(|(other, _)| other.clone()).collect());
            left_out.insert(LeftOut { node, address: *address, fault });
            endpoints.0.remove(address);
        }
        next
    }
}
