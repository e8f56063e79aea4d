//! Where the other tunnel servers are: at the addresses of the Nodes that the DaemonSet puts them on.
//!
//! The same labels as in its manifest. A Node may not give itself the label of a control plane (NodeRestriction); whoever
//! is found has to prove that he is a server, and that he is the one of this Node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_api::names::{LABEL_CONTROL_PLANE, LABEL_EDGE_WORKER};
use yurt_api::tunnel::ServerId;

/// The servers of the cluster, this one among them, and where each may be reached.
pub(in crate::server) type Found = BTreeMap<ServerId, Vec<SocketAddr>>;

/// Follows the Nodes until `stop`. All servers listen on the same `port`.
pub(in crate::server) async fn follow(
    client: kube::Client,
    port: u16,
    found: watch::Sender<Found>,
    stop: CancellationToken,
) {
    let selector = format!("{LABEL_CONTROL_PLANE},{LABEL_EDGE_WORKER}=false");
    let config = watcher::Config::default().labels(&selector);
    let events = watcher(Api::<Node>::all(client), config).default_backoff();
    pin_mut!(events);
    let mut listed = None;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                found.send_if_modified(|found| apply(event, &mut listed, found, port));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot follow the nodes of other tunnel servers; trying again");
            }
            None => return,
        }
    }
}

/// Takes an event over; says whether something is new. A list counts when it is whole.
fn apply(event: Event<Node>, listed: &mut Option<Found>, found: &mut Found, port: u16) -> bool {
    match event {
        Event::Init => *listed = Some(Found::new()),
        Event::InitApply(node) => {
            if let Some(listed) = listed {
                listed.extend(server_of(&node, port));
            }
        }
        Event::InitDone => {
            if let Some(listed) = listed.take() {
                let changed = *found != listed;
                *found = listed;
                return changed;
            }
        }
        Event::Apply(node) => {
            if let Some((id, addresses)) = server_of(&node, port) {
                return found.insert(id, addresses.clone()) != Some(addresses);
            }
        }
        Event::Delete(node) => {
            return ServerId::new(&node.name_any()).is_some_and(|id| found.remove(&id).is_some());
        }
    }
    false
}

fn server_of(node: &Node, port: u16) -> Option<(ServerId, Vec<SocketAddr>)> {
    let id = ServerId::new(&node.name_any())?;
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    let ips = internal.filter_map(|address| address.address.parse::<IpAddr>().ok());
    Some((id, ips.map(|ip| SocketAddr::new(ip.to_canonical(), port)).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        serde_json::from_value(json!({ "metadata": { "name": name }, "status": { "addresses": addresses } }))
            .unwrap()
    }

    fn apply_all(events: Vec<Event<Node>>, found: &mut Found) -> Vec<bool> {
        let mut listed = None;
        events.into_iter().map(|event| apply(event, &mut listed, found, 10262)).collect()
    }

    #[test]
    fn servers_are_found_at_their_nodes_internal_addresses_as_these_come_and_go() {
        let mut found = Found::new();
        let first =
            || node("cp-1", &[("Hostname", "cp-1"), ("InternalIP", "10.0.0.1"), ("InternalIP", "fd00::1")]);
        let second = || node("cp-2", &[("ExternalIP", "192.0.2.2"), ("InternalIP", "10.0.0.2")]);
        let list = vec![Event::Init, Event::InitApply(first()), Event::InitApply(second()), Event::InitDone];
        assert_eq!(apply_all(list, &mut found), [false, false, false, true]);
        let (one, two) = (ServerId::new("cp-1").unwrap(), ServerId::new("cp-2").unwrap());
        let shown =
            |id: &ServerId, found: &Found| -> Vec<_> { found[id].iter().map(ToString::to_string).collect() };
        assert_eq!(shown(&one, &found), ["10.0.0.1:10262", "[fd00::1]:10262"]);
        assert_eq!(shown(&two, &found), ["10.0.0.2:10262"]);
        // A heartbeat, a new address, one that leaves.
        let moved = || node("cp-2", &[("InternalIP", "10.0.0.3")]);
        let events = vec![Event::Apply(second()), Event::Apply(moved()), Event::Delete(first())];
        assert_eq!(apply_all(events, &mut found), [false, true, true]);
        assert_eq!((found.len(), shown(&two, &found)), (1, vec!["10.0.0.3:10262".to_owned()]));
        // Nobody is forgotten before there is a whole list.
        assert_eq!(apply_all(vec![Event::Init], &mut found), [false]);
        assert_eq!(found.len(), 1);
    }
}
