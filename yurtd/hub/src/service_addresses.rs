//! Where pods look for the API server: the ClusterIPs of Service `default/kubernetes` and its port, learnt from upstream
//! while there is a link. Whoever needs them follows them; the addresses outlive the process in the hub's certificate.
//!
//! kubelet's own view of all Services has the object, so that following it costs nothing. Before kubelet comes through
//! the hub it is asked for once each time the link comes up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_node::link::LinkState;

use crate::caller::Permit;
use crate::link::Link;
use crate::node_client::NodeClient;
use crate::replica::Views;
use crate::view::Lookup;
use crate::wire::object::decode_object;
use crate::wire::proto::{self, Value as Field};
use crate::wire::{Encoding, Resource, WireError};

const PATH: &str = "/api/v1/namespaces/default/services/kubernetes";
/// Between two looks at the view; the Service's addresses change when a cluster gets another range for them.
const LOOK: Duration = Duration::from_secs(10);
/// A Service has one address a family.
const MOST: usize = 4;
/// Where everybody looks for it.
const TLS: u16 = 443;
/// How long a hub that starts waits for the API server's answer.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// Learns the addresses.
pub(crate) struct ServiceAddresses {
    /// Where kubelet's view of the Services is.
    pub(crate) views: Views,
    /// kubelet's.
    pub(crate) node: Permit,
    /// Asks while there is no such view.
    pub(crate) client: NodeClient,
    /// Whether it can be asked.
    pub(crate) link: Link,
    /// Who follows them. Before the first look: as last known.
    pub(crate) known: watch::Sender<BTreeSet<IpAddr>>,
    /// And who wants to know the port as well. Before the first look there are none.
    pub(crate) endpoints: watch::Sender<BTreeSet<SocketAddr>>,
    /// Ends it.
    pub(crate) stop: CancellationToken,
}

impl ServiceAddresses {
    /// Runs until stopped.
    pub(crate) async fn run(self) {
        let mut link = self.link.subscribe();
        let mut asked = false;
        loop {
            let online = *link.borrow_and_update() == LinkState::Online;
            let mut found = in_view(&self.views, &self.node);
            if found.is_none() && online && !asked {
                found = tokio::select! {
                    () = self.stop.cancelled() => return,
                    found = ask(&self.client) => found,
                };
                asked = found.is_some();
            }
            asked &= online;
            if let Some(found) = found {
                let addresses = found.iter().map(SocketAddr::ip).collect();
                self.known.send_if_modified(|known| {
                    let changed = *known != addresses;
                    if changed {
                        tracing::info!(?addresses, "the API server's addresses for pods");
                        *known = addresses;
                    }
                    changed
                });
                self.endpoints.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                changed = link.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The addresses for a hub that starts and has none in its certificate: out of the store, or asked for once. Nothing when
/// they cannot be known now.
pub(crate) async fn find(views: &Views, node: &Permit, client: &NodeClient) -> BTreeSet<IpAddr> {
    let found = match in_view(views, node) {
        None => tokio::time::timeout(ASKED_WITHIN, ask(client)).await.ok().flatten(),
        found => found,
    };
    found.iter().flatten().map(SocketAddr::ip).collect()
}

fn in_view(views: &Views, node: &Permit) -> Option<BTreeSet<SocketAddr>> {
    let services = Resource::new("", "v1", "services");
    let encodings = [Encoding::Protobuf, Encoding::Json];
    match views.lookup(node, &services, Some("default"), "kubernetes", &encodings) {
        Lookup::Found { encoding: Encoding::Protobuf, body, .. } => endpoints_of(&protobuf(&body).ok()?),
        Lookup::Found { body, .. } => endpoints_of(&serde_json::from_slice(&body).ok()?),
        _ => None,
    }
}

async fn ask(client: &NodeClient) -> Option<BTreeSet<SocketAddr>> {
    match client.get(PATH).await {
        Ok(service) => endpoints_of(&service),
        Err(error) => {
            tracing::debug!(%error, "the Service default/kubernetes could not be read; asking again");
            None
        }
    }
}

/// What [`endpoints_of`] reads of a Service: Service{spec 2}, ServiceSpec{ports 1 {name 1, port 3}, clusterIP 3,
/// clusterIPs 18}.
fn protobuf(body: &Bytes) -> Result<Value, WireError> {
    let what = "Service";
    let (_, item) = decode_object(Encoding::Protobuf, body)?;
    let (mut ports, mut addresses) = (Vec::new(), Vec::new());
    for field in proto::fields(what, &item.body) {
        let (2, Field::Bytes(spec)) = field? else { continue };
        for field in proto::fields(what, spec) {
            match field? {
                (1, Field::Bytes(port)) => {
                    let (mut name, mut number) = ("", 0);
                    for field in proto::fields(what, port) {
                        match field? {
                            (1, Field::Bytes(value)) => name = proto::text(what, value)?,
                            (3, Field::Number(value)) => number = value,
                            _ => {}
                        }
                    }
                    ports.push(json!({"name": name, "port": number}));
                }
                (3 | 18, Field::Bytes(value)) => addresses.push(proto::text(what, value)?),
                _ => {}
            }
        }
    }
    Ok(json!({"spec": {"ports": ports, "clusterIPs": addresses}}))
}

/// The ClusterIPs of a Service, and its port for TLS; nothing when it has none.
fn endpoints_of(service: &Value) -> Option<BTreeSet<SocketAddr>> {
    let spec = &service["spec"];
    let all = spec["clusterIPs"].as_array().into_iter().flatten().chain([&spec["clusterIP"]]);
    let ports = spec["ports"].as_array().into_iter().flatten();
    let mut ports = ports.filter_map(|port| Some((port, u16::try_from(port["port"].as_u64()?).ok()?)));
    let tls = ports.find(|(port, number)| port["name"] == "https" || *number == TLS);
    let port = tls.map_or(TLS, |(_, number)| number);
    let addresses: BTreeSet<SocketAddr> = all
        .filter_map(|address| Some(SocketAddr::new(address.as_str()?.parse().ok()?, port)))
        .take(MOST)
        .collect();
    (!addresses.is_empty()).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_in_protobuf_says_the_same() {
        use crate::wire::TypeMeta;
        use crate::wire::proto::{Writer, envelope};

        let (mut metadata, mut port, mut spec, mut object) = <[Writer; 4]>::default().into();
        metadata.bytes(1, b"kubernetes");
        port.bytes(1, b"https");
        port.varint(3, 8443);
        spec.bytes(1, &port.finish());
        spec.bytes(3, b"10.96.0.1");
        spec.bytes(4, b"ClusterIP");
        for address in ["10.96.0.1", "fd00::1"] {
            spec.bytes(18, address.as_bytes());
        }
        object.bytes(1, &metadata.finish());
        object.bytes(2, &spec.finish());
        let body = envelope(&TypeMeta::new("v1", "Service"), &object.finish());
        let both = ["10.96.0.1:8443", "[fd00::1]:8443"].map(|text| text.parse().unwrap());
        assert_eq!(endpoints_of(&protobuf(&body).unwrap()), Some(both.into()));
        assert!(protobuf(&body.slice(..body.len() - 9)).is_err());
        assert!(protobuf(&Bytes::from_static(b"{}")).is_err());
    }

    #[test]
    fn the_addresses_of_both_families_are_read_and_a_headless_service_has_none() {
        let read = |spec: Value| endpoints_of(&json!({ "spec": spec }));
        let of = |endpoints: &[&str]| Some(endpoints.iter().map(|text| text.parse().unwrap()).collect());
        let both = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]});
        assert_eq!(read(both), of(&["10.96.0.1:443", "[fd00::1]:443"]));
        let other = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "x", "port": 9}, {"name": "https", "port": 8443}]});
        assert_eq!(read(other), of(&["10.96.0.1:8443"]));
        for none in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({}),
            json!(null),
            json!({"clusterIPs": 1}),
        ] {
            assert_eq!(read(none), None);
        }
        let many: Vec<String> = (0..100).map(|at| format!("10.0.0.{at}")).collect();
        assert_eq!(read(json!({ "clusterIPs": many })).unwrap().len(), MOST);
    }
}
